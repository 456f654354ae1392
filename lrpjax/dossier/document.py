"""The `Dossier`: an object, and the two files that it is written to; and the comparison of two of them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lrpjax._html import Shown
from lrpjax.dossier import page
from lrpjax.dossier.errors import DossierError

FORMAT = 1
NAMES = ("dossier.html", "dossier.json")
VOLATILE = "made"
"""The entry of a dossier that no two runs share: date, duration and command."""


@dataclasses.dataclass(frozen=True)
class Dossier(Shown):
    """What was found of an explanation; `dossier.make` makes it, `save` writes it, `dossier.load` reads it.

    Attributes:
        data: JSON values by section: "model", "data", "composite", "environment", "explanations", "conservation",
            "sanity", "faithfulness", "clusters", "store", "repeat", "brief", "limits", and "made", which alone differs
            between two runs that gave the same bits. A number that is not finite is None.

    >>> import numpy as np
    >>> from lrpjax import dossier
    >>> made = dossier.make(lambda params, x: x @ params, np.eye(3, dtype="float32"), np.ones((2, 3), "float32"))
    >>> print(made)
    How much of the output is accounted for by the input? measured: 100.0% in the median of 2 samples (from ...
    Does the explanation depend on what the model has learned? ...
    """

    data: Mapping[str, Any]

    def __str__(self) -> str:
        return "\n".join(f"{row['question']} {row['verdict']}: {row['answer']}" for row in self.data["brief"])

    def json(self) -> str:
        """The data as JSON, with the keys of each level in order.

        >>> import numpy as np
        >>> from lrpjax import dossier
        >>> made = dossier.make(lambda params, x: x @ params, np.eye(3, dtype="float32"), np.ones((2, 3), "float32"))
        >>> made.json()[:17]
        '{\\n "brief": [\\n  {'
        """
        return json.dumps(self.data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"

    def html(self) -> str:
        """The dossier as one page for a browser or a printer, which needs nothing besides itself.

        >>> import numpy as np
        >>> from lrpjax import dossier
        >>> made = dossier.make(lambda params, x: x @ params, np.eye(3, dtype="float32"), np.ones((2, 3), "float32"))
        >>> made.html()[:15]
        '<!doctype html>'
        """
        return page.render(self.data)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes dossier.html and dossier.json into a folder, both or none; files that are there are replaced.

        Returns:
            The absolute path of the folder.

        Raises:
            DossierError: they cannot be written.

        >>> import tempfile
        >>> import numpy as np
        >>> from lrpjax import dossier
        >>> made = dossier.make(lambda params, x: x @ params, np.eye(3, dtype="float32"), np.ones((2, 3), "float32"))
        >>> folder = made.save(tempfile.mkdtemp() + "/audit")
        >>> sorted(file.name for file in folder.iterdir())
        ['dossier.html', 'dossier.json']
        """
        place = Path(folder).absolute()
        texts = (self.html(), self.json())
        paths = [place / name for name in NAMES]
        parts = [place / f".{name}.{os.getpid()}.part" for name in NAMES]
        try:
            place.mkdir(parents=True, exist_ok=True)
            for path in paths:
                if path.is_dir():
                    raise DossierError(f"{path} is a folder: a dossier cannot be written in its place")
            before = paths[0].read_bytes() if paths[0].exists() else None
            for part, text in zip(parts, texts, strict=True):
                part.write_text(text, encoding="utf-8")
            parts[0].replace(paths[0])
            try:
                parts[1].replace(paths[1])
            except OSError:  # the page of before comes back: a page and its numbers belong together
                paths[0].unlink() if before is None else paths[0].write_bytes(before)
                raise
        except OSError as error:
            raise DossierError(f"a dossier cannot be written to {place}: {error}") from error
        finally:
            for part in parts:
                part.unlink(missing_ok=True) if place.is_dir() else None
        return place


def load(file: str | os.PathLike[str]) -> Dossier:
    """Reads the dossier.json that `Dossier.save` wrote.

    Args:
        file: it, or the folder that holds it.

    Raises:
        DossierError: there is none, or it is damaged or something else.

    >>> import tempfile
    >>> import numpy as np
    >>> from lrpjax import dossier
    >>> made = dossier.make(lambda params, x: x @ params, np.eye(3, dtype="float32"), np.ones((2, 3), "float32"))
    >>> dossier.load(made.save(tempfile.mkdtemp())).data == made.data
    True
    """
    path = Path(file).absolute()
    path = path / NAMES[1] if path.is_dir() else path
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DossierError(f"there is no dossier in {path}") from error
    except (OSError, ValueError) as error:
        raise DossierError(f"{path} holds no dossier, or is damaged: {error}") from error
    if not isinstance(data, dict) or "format" not in data or VOLATILE not in data:
        raise DossierError(f"{path} holds no dossier: it is JSON of another kind")
    if data["format"] != FORMAT:
        raise DossierError(
            f"{path} is a dossier in format {data['format']}, of another version of lrpjax; this one "
            f"reads format {FORMAT}"
        )
    return Dossier(data)


@dataclasses.dataclass(frozen=True)
class Comparison(Shown):
    """What differs between two dossiers; `dossier.compare` makes it.

    Attributes:
        same: the sections that are equal in every bit.
        differences: {section: [(place in it, before, after)]}, all that is not.

    >>> print(Comparison(("model",), {"data": (("seed", 0, 1),)}))
    equal in every bit: model
    data: 1 values differ
      seed: 0 before, 1 now, 1 apart
    """

    same: tuple[str, ...]
    differences: Mapping[str, tuple[tuple[str, Any, Any], ...]]

    @property
    def equal(self) -> bool:
        """Whether nothing differs but date, duration and command.

        >>> Comparison(("model",), {}).equal
        True
        """
        return not self.differences

    def __str__(self) -> str:
        lines = [f"equal in every bit: {', '.join(self.same) or 'nothing'}"]
        for section, found in self.differences.items():
            lines.append(f"{section}: {len(found)} values differ")
            for place, before, after in found[:8]:
                lines.append(
                    f"  {place}: {_short(before)} before, {_short(after)} now{_apart(before, after)}"
                )
            if len(found) > 8:
                gaps = [abs(a - b) for _, b, a in found if _is_number(a) and _is_number(b)]
                most = f"; the numbers by at most {max(gaps):.3g}" if gaps else ""
                lines.append(f"  and {len(found) - 8} more{most}")
        return "\n".join(lines)


def compare(old: Dossier | str | os.PathLike[str], new: Dossier | str | os.PathLike[str]) -> Comparison:
    """Which parts of two dossiers are equal in every bit, and by how much the others differ.

    Numbers in JSON are written so that they are read back with all their bits. What was not copied but hashed (weights,
    inputs, outputs, relevances) is equal in every bit where the hashes are. Date, duration and command are not
    compared.

    Args:
        old, new: dossiers, or the paths of them.

    Raises:
        DossierError: as `dossier.load`.

    >>> import numpy as np
    >>> from lrpjax import dossier
    >>> make = lambda w: dossier.make(lambda params, x: x @ params, w, np.ones((2, 3), "float32"))
    >>> one = np.eye(3, dtype="float32")
    >>> dossier.compare(make(one), make(one)).equal
    True
    >>> list(dossier.compare(make(one), make(2 * one)).differences)[:2]
    ['conservation', 'explanations']
    """
    a, b = (d.data if isinstance(d, Dossier) else load(d).data for d in (old, new))
    same, differences = [], {}
    for section in sorted({*a, *b} - {VOLATILE}):
        found = tuple(_differences("", a.get(section), b.get(section)))
        if found:
            differences[section] = found
        else:
            same.append(section)
    return Comparison(tuple(same), differences)


def _differences(place: str, a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = [*a, *(k for k in b if k not in a)]
        return [d for k in keys for d in _differences(f"{place}.{k}".strip("."), a.get(k), b.get(k))]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [
            d for i, (u, v) in enumerate(zip(a, b, strict=True)) for d in _differences(f"{place}[{i}]", u, v)
        ]
    return [] if a == b and type(a) is type(b) else [(place or "all of it", a, b)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _apart(before: Any, after: Any) -> str:
    return f", {abs(after - before):.3g} apart" if _is_number(before) and _is_number(after) else ""


def _short(value: Any) -> str:
    text = repr(value) if _is_number(value) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def plain(value: Any) -> Any:
    """JSON values of what holds numbers of NumPy; a number that is not finite is None.

    >>> plain({"a": (np.float32(0.5), float("nan"))})
    {'a': [0.5, None]}
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)

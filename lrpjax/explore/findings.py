"""What the exploring of a data set found, as an object and as a file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lrpjax._html import Number, Shown, table
from lrpjax.errors import LrpjaxError

__all__ = ["Cluster", "ExploreError", "Findings", "load"]

FORMAT = 1
_Made = TypeVar("_Made")


class ExploreError(LrpjaxError, ValueError):
    """Stored explanations cannot be explored as asked: too few, not of one model, not finite, still being written.

    >>> import numpy as np, lrpjax
    >>> lrpjax.explore.load('nowhere.npz')
    Traceback (most recent call last):
    ...
    lrpjax.explore.findings.ExploreError: there are no findings in ...nowhere.npz
    """


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Samples of one group that the model treats alike.

    Attributes:
        number: the cluster's own, unique over all groups; what `Findings.labels` says.
        group: the class that its samples were explored with.
        rows: int [n], all of its samples as rows of the store, the most typical first.
        prototypes: int [p], those to look at: rows of the store, the most typical first.
        outliers: int [o], those that fit it least: rows of the store, the least typical first.
        unlike: how unlike its group it is, from 0 (just as the rest) to 1 (nothing in common); see
            `explore.spectral_analysis`.

    >>> import numpy as np
    >>> from lrpjax.explore import Cluster
    >>> len(Cluster(0, 3, np.array([5, 2]), np.array([5]), np.array([2]), 0.4))
    2
    """

    number: int
    group: int
    rows: NDArray[np.int64]
    prototypes: NDArray[np.int64]
    outliers: NDArray[np.int64]
    unlike: float

    def __len__(self) -> int:
        return len(self.rows)


@dataclasses.dataclass(frozen=True)
class Findings(Shown):
    """What `explore.spectral_analysis` found in N explanations; `save` keeps it, `explore.load` reads it.

    Attributes:
        rows: int [N], the rows of the store that were explored, ascending.
        groups: int [N], the class that each was explored with; 0 everywhere where all are one group.
        labels: int [N], the number of each row's cluster; −1 where its group was too small to be divided.
        position: float [N, 2], where a drawing puts each row. Groups have each their own plane, within [−1, 1].
        outlier: float [N], how far each lies from its neighbours, as a multiple of what is usual in its group (1).
        clusters: those of all groups, the one most unlike its group first.
        eigenvalues: {group: float [k]}, the smallest eigenvalues of the group's normalised Laplacian, ascending.
        skipped: {reason: int [m]}, rows of the store that were not explored.
        settings: the arguments, and what the store says of model and composite; JSON values.

    >>> import numpy as np
    >>> from lrpjax.explore import Findings
    >>> one = np.zeros(1)
    >>> found = Findings(np.array([7]), np.array([0]), np.array([-1]), np.zeros((1, 2)), one + 1, (), {}, {}, {})
    >>> print(found)
    1 explanations in 1 groups: 0 clusters
    """

    rows: NDArray[np.int64]
    groups: NDArray[np.int64]
    labels: NDArray[np.int64]
    position: NDArray[np.float64]
    outlier: NDArray[np.float64]
    clusters: tuple[Cluster, ...]
    eigenvalues: Mapping[int, NDArray[np.float64]]
    skipped: Mapping[str, NDArray[np.int64]]
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        head = f"{len(self.rows)} explanations in {len(np.unique(self.groups))} groups: {len(self.clusters)} clusters"
        lines = [
            f"  cluster {c.number} of class {c.group}: {len(c)} rows, unlike its class {c.unlike:.2f}; such as "
            + ", ".join(map(str, c.prototypes[:5]))
            for c in self.clusters
        ]
        return "\n".join([head, *lines, *(f"  {note}" for note in self._notes())])

    def _repr_html_(self) -> str:
        """The clusters, for notebooks."""
        rows = [
            [
                Number(str(c.number), c.number),
                Number(str(c.group), c.group),
                Number(str(len(c)), len(c)),
                Number(f"{c.unlike:.3f}", c.unlike),
                ", ".join(map(str, c.prototypes)),
                ", ".join(map(str, c.outliers)),
            ]
            for c in self.clusters
        ]
        head = ("cluster", "class", "rows", "unlike its class", "prototypes", "outliers")
        return table(f"clusters of {len(self.rows)} explanations", head, rows, self._notes())

    def _notes(self) -> list[str]:
        return [f"not explored: {len(rows)} rows, {reason}" for reason, rows in self.skipped.items()]

    def cluster(self, number: int) -> Cluster:
        """The cluster of that number.

        Raises:
            ExploreError: there is none.

        >>> import numpy as np
        >>> from lrpjax.explore import Cluster, Findings
        >>> rows = np.arange(2)
        >>> one = Cluster(4, 0, rows, rows[:1], rows[1:], 0.5)
        >>> found = Findings(rows, rows * 0, rows * 0 + 4, np.zeros((2, 2)), rows + 1.0, (one,), {}, {}, {})
        >>> found.cluster(4).rows
        array([0, 1])
        """
        found = next((c for c in self.clusters if c.number == number), None)
        if found is None:
            there = ", ".join(str(n) for n in sorted(c.number for c in self.clusters)) or "none"
            raise ExploreError(f"there is no cluster {number}; there are: {there}")
        return found

    def save(self, file: str | os.PathLike[str]) -> Path:
        """Writes everything into one .npz file, whole or not at all; a file that is there is replaced.

        Returns:
            The absolute path of the file.

        Raises:
            ExploreError: another ending than .npz, or the file cannot be written.

        >>> import tempfile
        >>> import numpy as np
        >>> from lrpjax import explore
        >>> rows, one = np.array([7]), np.zeros(1)
        >>> found = explore.Findings(rows, rows - 7, rows - 8, np.zeros((1, 2)), one, (), {}, {}, {})
        >>> explore.load(found.save(tempfile.mkdtemp() + "/findings.npz")).rows
        array([7])
        """
        arrays = {name: getattr(self, name) for name in ("rows", "groups", "labels", "position", "outlier")}
        for c in self.clusters:
            for part in ("rows", "prototypes", "outliers"):
                arrays[f"cluster/{c.number}/{part}"] = getattr(c, part)
        arrays |= {f"eigenvalues/{group}": values for group, values in self.eigenvalues.items()}
        arrays |= {f"skipped/{number}": rows for number, rows in enumerate(self.skipped.values())}
        about = {
            "format": FORMAT,
            "clusters": [[c.number, c.group, c.unlike] for c in self.clusters],
            "groups": [int(group) for group in self.eigenvalues],
            "skipped": list(self.skipped),
            "settings": dict(self.settings),
        }
        return write_npz(file, "findings", arrays, about)


def load(file: str | os.PathLike[str]) -> Findings:
    """Reads what `Findings.save` wrote.

    Raises:
        ExploreError: there is no such file, or it is damaged or something else.

    >>> import tempfile
    >>> import numpy as np
    >>> from lrpjax import explore
    >>> none = np.zeros(0, int)
    >>> found = explore.Findings(none, none, none, np.zeros((0, 2)), np.zeros(0), (), {}, {}, {"by": "class"})
    >>> explore.load(found.save(tempfile.mkdtemp() + "/findings.npz")).settings
    {'by': 'class'}
    """

    def made(about: dict[str, Any], found: Mapping[str, Any]) -> Findings:
        if about["format"] != FORMAT:
            raise ExploreError(
                f"{file} has findings in format {about['format']}, of another version of lrpjax; this one reads "
                f"format {FORMAT}. Explore again"
            )
        clusters = tuple(
            Cluster(
                number,
                group,
                *(found[f"cluster/{number}/{part}"] for part in ("rows", "prototypes", "outliers")),
                unlike,
            )
            for number, group, unlike in about["clusters"]
        )
        return Findings(
            *(found[name] for name in ("rows", "groups", "labels", "position", "outlier")),
            clusters,
            {group: found[f"eigenvalues/{group}"] for group in about["groups"]},
            {reason: found[f"skipped/{number}"] for number, reason in enumerate(about["skipped"])},
            about["settings"],
        )

    return read_npz(file, "findings", made)


def write_npz(
    file: str | os.PathLike[str], what: str, arrays: Mapping[str, Any], about: Mapping[str, Any]
) -> Path:
    """Writes arrays, and JSON that is said of them, into one .npz file, whole or not at all; its absolute path."""
    path = Path(file).absolute()
    if path.suffix != ".npz":
        raise ExploreError(f"{file}: {what} are kept in a .npz file, not in {path.suffix!r}")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as handle:
            np.savez_compressed(handle, allow_pickle=False, about=np.array(json.dumps(about)), **arrays)
        part.replace(path)
    except OSError as error:
        raise ExploreError(f"{path} cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    return path


def read_npz(
    file: str | os.PathLike[str], what: str, made: Callable[[dict[str, Any], Mapping[str, Any]], _Made]
) -> _Made:
    """What `made` makes of the JSON and the arrays that `write_npz` wrote."""
    path = Path(file).absolute()
    if not path.exists():
        raise ExploreError(f"there are no {what} in {path}")
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as found:
            return made(json.loads(str(found["about"])), found)
    except ExploreError:
        raise
    except Exception as error:
        raise ExploreError(f"{path} holds no {what}, or is damaged: {error}") from error

"""Reference samples of concepts, kept in a file with what they depend on."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax._version import __version__
from lrpjax.analysis import concepts
from lrpjax.analysis.concepts import Samples
from lrpjax.composites import Composite
from lrpjax.data import layout, programs
from lrpjax.explore.findings import ExploreError, read_npz, write_npz

__all__ = ["reference_samples"]

FORMAT = 1
WHAT = "reference samples"


def reference_samples(
    f: Callable,
    composite: Composite | None,
    batches: Iterable[Any],
    *,
    at: str,
    cache: str | os.PathLike[str],
    by: str = "relevance",
    target: Any = "max",
    k: int = 8,
    pool: str = "sum",
    normalise: bool = False,
    channel_axis: int = -1,
) -> Samples:
    """`concepts.maximising_samples`, kept in a file: the same call reads it and computes nothing.

    With the samples the file has fingerprints of the model (its program and the arrays that it closes over), of the
    composite (the program that it makes of the model) and of every batch, and the versions of lrpjax and jax. A call
    compares them: it traces the functions and reads the batches, and runs nothing. What was found for another model,
    another composite or other data is never returned.

    Args:
        f, composite, batches: as for `concepts.maximising_samples`; how the data is cut into batches counts as well.
        cache: a .npz file, in a folder that exists. It is written whole or not at all, and never replaced.
        at, by, target, k, pool, normalise, channel_axis: as for `concepts.maximising_samples` (Achtibat et al. 2023).

    Returns:
        `concepts.Samples`.

    Raises:
        ExploreError: the file holds samples of something else (the message says of what), is damaged, or cannot be
        written; there are no batches. Else as `concepts.maximising_samples`.

    >>> import tempfile
    >>> import jax.numpy as jnp, lrpjax
    >>> from lrpjax import explore
    >>> f = lambda x: lrpjax.tag(x, "in") @ jnp.array([[1.0], [2.0]])
    >>> batches, file = [jnp.array([[1.0, 0.0], [5.0, 1.0]])], tempfile.mkdtemp() + "/in.npz"
    >>> first = explore.reference_samples(f, None, batches, at="in", cache=file, k=1)
    >>> print(explore.reference_samples(f, None, batches, at="in", cache=file, k=1).index.T)
    [[1 1]]
    >>> explore.reference_samples(f, None, batches, at="in", cache=file, k=2)
    Traceback (most recent call last):
    ...
    lrpjax.explore.findings.ExploreError: ...in.npz holds reference samples of another call: k was 1 and is 2...
    """
    path = Path(cache).absolute()
    if path.suffix != ".npz" or not path.parent.is_dir():
        raise ExploreError(f"{cache}: {WHAT} are kept in a .npz file, in a folder that exists")
    stream = iter(batches)
    first = next(stream, None)
    if first is None:
        raise ExploreError("there are no batches to go through")
    stream = itertools.chain([first], stream)
    x = first[0] if isinstance(first, tuple) else first
    arguments = {
        "at": at,
        "by": by,
        "target": _described(target, f, x),
        "k": int(k),
        "pool": pool,
        "normalise": bool(normalise),
        "channel_axis": int(channel_axis),
        "lrpjax": __version__,
        "jax": jax.__version__,
        "the first batch": f"{jnp.asarray(x).dtype}{list(np.shape(x))}",
    }
    programs_of = {"the model": programs.fingerprint(jax.make_jaxpr(f)(x))}
    if by == "relevance":
        explain = concepts.channel_relevance(f, composite, at=at, channel_axis=channel_axis)
        programs_of["the composite"] = programs.fingerprint(jax.make_jaxpr(explain)(x))
    if path.exists():
        about, best = read_npz(path, WHAT, _read)
        if differs := _differences(about, arguments, programs_of, stream):
            raise ExploreError(
                f"{path} holds {WHAT} of another call: {'; '.join(differs)}. Name another file, or delete this one"
            )
        return best

    digest = hashlib.blake2b(digest_size=16)

    def hashed() -> Iterator[Any]:
        for batch in stream:
            digest.update(layout.fingerprint(batch).encode())
            yield batch

    best = concepts.maximising_samples(
        f,
        composite,
        hashed(),
        at=at,
        by=by,
        target=target,
        k=k,
        pool=pool,
        normalise=normalise,
        channel_axis=channel_axis,
    )
    about = {
        "references": FORMAT,
        "arguments": arguments,
        "programs": programs_of,
        "batches": digest.hexdigest(),
    }
    arrays = {name: np.asarray(v) for name, v in best._asdict().items()}
    write_npz(path, WHAT, arrays, about)
    return best


def _described(target: Any, f: Callable, x: Any) -> str | int | None:
    if target is None or isinstance(target, str):
        return target
    if isinstance(target, int | np.integer):
        return int(target)
    if callable(target):
        return programs.fingerprint(jax.make_jaxpr(target)(jax.eval_shape(f, x)))
    return layout.fingerprint(target)


def _read(about: dict[str, Any], found: Any) -> tuple[dict[str, Any], Samples]:
    if about["references"] != FORMAT:
        raise ExploreError(f"these {WHAT} are of another version of lrpjax, in format {about['references']}")
    said = {name: about[name] for name in ("arguments", "programs", "batches")}
    return said, Samples(*(jnp.asarray(found[name]) for name in Samples._fields))


def _differences(
    about: dict[str, Any], arguments: dict, programs_of: dict, batches: Iterable[Any]
) -> list[str]:
    """What is not as it was when the file was written; of the data, which takes longest, only if all else is."""
    before = about["arguments"]
    differs = [
        f"{name} was {before.get(name)} and is {v}" for name, v in arguments.items() if before.get(name) != v
    ]
    if not differs:
        # Another model makes another program with every composite.
        differs = [
            f"{name} is another" for name, v in programs_of.items() if about["programs"].get(name) != v
        ][:1]
    if not differs:
        digest = hashlib.blake2b(digest_size=16)
        for batch in batches:
            digest.update(layout.fingerprint(batch).encode())
        if digest.hexdigest() != about["batches"]:
            differs = ["the data is other, or cut into other batches"]
    return differs

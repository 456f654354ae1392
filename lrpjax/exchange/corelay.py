"""Files of CoRelAy, which clusters explanations with PyTorch's and scikit-learn's means, in both directions."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrpjax._version import __version__
from lrpjax.data import files
from lrpjax.data.store import Store
from lrpjax.exchange.shared import ExchangeError, hdf5, whole
from lrpjax.explore import Findings, graphs, vectors
from lrpjax.explore.spectral import Group, far_off, joined

ALL = "all"
"""The category of findings whose rows were explored as one group."""


def to_corelay(
    folder: str | os.PathLike[str],
    source: Store | str | os.PathLike[str] | Sequence[Store] | ArrayLike,
    classes: ArrayLike,
    findings: Findings | None = None,
    *,
    name: str = "relevance",
    partial: bool = False,
) -> Path:
    """Writes the files that CoRelAy 1.0 reads: `attribution.h5`, and `analysis.h5` if there are findings.

    The folder appears whole or not at all. Relevances are read and written some rows at a time.

    attribution.h5 has "attribution", float32 [N, C, H, W] (channels first, as CoRelAy has them), "label", uint32 [N],
    and "prediction", float32 [N, K], if the source has outputs. analysis.h5 has a group for each class, named by its
    number with eight digits (or "all", where all rows were explored as one group), with "index", uint32 [n], the rows;
    "embedding/position", float32 [n, 2], whose attribute "eigenvalue" has the Laplacian's, descending as CoRelAy has
    them; and "cluster/clusters", int64 [n], whose attribute "k" says how many clusters there are.

    Args:
        folder: is made; it must not be there yet.
        source: a store, its directory, or several stores that were made alike; or relevances [N, ...], channels last.
        classes: int [N], the class of each row: CoRelAy's scripts explore the rows of each class apart.
        findings: of the source.
        name: the array of the store that is written.
        partial: also write a store that is not complete.

    Returns:
        The absolute path of the folder.

    Raises:
        ExchangeError: the folder is there; classes or findings do not fit; a row is not finite.
        ExploreError: the source has no such array, or is not complete.
        ImportError: h5py is not installed.

    Example:
        >>> import tempfile
        >>> import h5py, numpy as np
        >>> from lrpjax import exchange
        >>> folder = exchange.to_corelay(tempfile.mkdtemp() + "/corelay", np.ones((4, 8, 6, 3)), [0, 0, 1, 1])
        >>> with h5py.File(folder / "attribution.h5") as file:
        ...     print(file["attribution"].shape, file["label"][:])
        (4, 3, 8, 6) [0 0 1 1]
    """
    h5py = hdf5()
    origin = vectors.source_of(source, name, partial)
    label = classes_of(classes, origin.rows)
    if findings is not None:
        check_rows(findings, origin.rows)
    target = Path(folder).absolute()
    with whole(target) as part:
        part.mkdir()
        with h5py.File(part / "attribution.h5", "w") as file:
            files.add_dataset(file, "attribution", _channels_first(origin, name))
            if "output" in origin:
                files.add_dataset(file, "prediction", _stored(origin, "output").as_type(np.float32))
            file["label"] = label
        if findings is not None:
            write_analysis(part / "analysis.h5", findings)
    return target


def _stored(origin: vectors.Source, name: str) -> files.Rows:
    """An array of a source, of one store or of several, some rows at a time."""
    array = origin.array_of(name)
    blocks = lambda: (block for _, block in origin.parts(name, np.arange(origin.rows)))
    return files.Rows(np.dtype(array.dtype), (origin.rows, *array.shape[1:]), blocks)


def _channels_first(origin: vectors.Source, name: str) -> files.Rows:
    rows = _stored(origin, name)
    shape = rows.shape
    if len(shape) == 3:
        shape = (shape[0], 1, *shape[1:])
    elif len(shape) == 4:
        shape = (shape[0], shape[3], *shape[1:3])

    def blocks() -> Any:
        start = 0
        for block in rows.blocks():
            block = block.astype(np.float32)
            bad = start + np.flatnonzero(~np.isfinite(block.reshape(len(block), -1)).all(1))
            if bad.size:
                raise ExchangeError(
                    f"rows are not finite: {bad[:5].tolist()}; CoRelAy looks at all rows of a class, and would find "
                    "no distances between them. Leave them out"
                )
            yield (
                block[:, None] if block.ndim == 3 else np.moveaxis(block, -1, 1) if block.ndim == 4 else block
            )
            start += len(block)

    return files.Rows(np.dtype(np.float32), shape, blocks)


def classes_of(classes: Any, rows: int) -> NDArray[np.uint32]:
    """The class of each row, as other tools have it."""
    if classes is None:
        raise ExchangeError(
            f"the true class of each of the {rows} rows is needed, int [{rows}]; a store does not keep it"
        )
    found: NDArray[Any] = np.asarray(classes)
    if found.shape != (rows,) or found.dtype.kind not in "iu":
        raise ExchangeError(
            f"there are {rows} rows, but the classes are {found.dtype.name} {found.shape}: it takes an int for each row"
        )
    if found.min(initial=0) < 0:
        raise ExchangeError(f"classes are numbered from 0, but there is a class {found.min()}")
    return found.astype(np.uint32)


def check_rows(findings: Findings, rows: int) -> None:
    """Refuses findings of something else."""
    if not len(findings.rows) or findings.rows.min() < 0 or findings.rows.max() >= rows:
        raise ExchangeError(f"the findings are of no row, or of rows that the store of {rows} rows lacks")


def write_analysis(path: Path, findings: Findings) -> None:
    """Findings in CoRelAy's layout, see `to_corelay`."""
    together = findings.settings.get("groups", "prediction") is None
    with hdf5().File(path, "w") as file:
        for group in np.unique(findings.groups).tolist():
            mine = findings.groups == group
            place = file.create_group(ALL if together else f"{group:08d}")
            place["index"] = findings.rows[mine].astype(np.uint32)
            place["embedding/position"] = findings.position[mine].astype(np.float32)
            if group in findings.eigenvalues:
                values = np.asarray(findings.eigenvalues[group], np.float32)[::-1]
                place["embedding/position"].attrs["eigenvalue"] = values
            labels = findings.labels[mine]
            place["cluster/clusters"] = labels
            place["cluster/clusters"].attrs["k"] = len(np.unique(labels[labels >= 0]))


def from_corelay(
    file: str | os.PathLike[str],
    source: Store | str | os.PathLike[str] | Sequence[Store] | ArrayLike,
    *,
    clustering: str | None = None,
    embedding: str | None = None,
    columns: tuple[int, int] = (0, 1),
    categories: Mapping[str, int] | None = None,
    name: str = "relevance",
    pool: int | Callable[[NDArray], NDArray] | None = 16,
    normalise: Literal["l1", "l2", "max"] | None = "l1",
    neighbours: int = 10,
    prototypes: int = 8,
    outliers: int = 8,
    partial: bool = False,
) -> Findings:
    """Reads the clusters that CoRelAy found, as findings of the relevances that it found them in.

    Clusters, positions and eigenvalues are the file's. Prototypes, outliers, and how unlike its class each cluster is,
    are not in such files: they are computed from the relevances, as by `explore.spectral_analysis`.

    Args:
        file: an analysis in CoRelAy's layout, `/<category>/{index, embedding/<name>, cluster/<name>}`.
        source: the relevances that "index" counts the rows of, as for `explore.spectral_analysis`; channels last.
            `exchange.import_store` makes a store from CoRelAy's own file of attributions.
        clustering, embedding: which of those in the file; None: the only one.
        columns: of the embedding, where a drawing puts the rows.
        categories: {category: class number}; None: names of categories are numbers, as "00000003" is, or the only one
            is "all".
        name, pool, normalise, prototypes, outliers, partial: as for `explore.spectral_analysis`.
        neighbours: how many neighbours tell how far off a row is (`Findings.outlier`).

    Returns:
        `Findings`. The label −1, noise for HDBSCAN, stays −1. Clusters are numbered on from class to class. Rows
        without relevance, or that are not finite, are in its `skipped`.

    Raises:
        ExchangeError: the file is no such analysis or is damaged; several clusterings or embeddings and none named; a
            category of unknown class; a row in two categories, or that the source lacks.
        ExploreError: the source has no such array, or is not complete.
        ImportError: h5py or scikit-learn is not installed.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from lrpjax import exchange, explore
        >>> R = np.zeros((60, 8, 8))
        >>> R[:48, 2:6, 2:6] = np.random.default_rng(0).uniform(1, 2, (48, 4, 4))
        >>> R[48:, 0, 7] = np.random.default_rng(1).uniform(1, 2, 12)
        >>> found = explore.spectral_analysis(R, groups=None, layout="spectral", progress=False)
        >>> folder = exchange.to_corelay(tempfile.mkdtemp() + "/corelay", R, np.zeros(60, int), found)
        >>> again = exchange.from_corelay(folder / "analysis.h5", R)
        >>> [len(cluster) for cluster in again.clusters], bool((again.labels == found.labels).all())
        ([12, 48], True)
    """
    h5py = hdf5()
    graphs.sklearn()
    for what, number in {"neighbours": neighbours, "prototypes": prototypes, "outliers": outliers}.items():
        if number < 1:
            raise ExchangeError(f"{what} must be 1 or more, not {number}")
    origin = vectors.source_of(source, name, partial)
    path = Path(file).absolute()
    if not path.exists():
        raise ExchangeError(f"there is no file {path}")
    try:
        with h5py.File(path, "r") as opened:
            together = categories is None and list(opened) == [ALL]
            read = _read(opened, path, clustering, embedding, columns, categories)
    except (OSError, KeyError, AttributeError) as error:
        raise ExchangeError(f"{path} holds no analysis of CoRelAy's, or is damaged: {error}") from error
    rows = np.concatenate([index for index, _ in read.values()])
    if len(np.unique(rows)) < len(rows):
        raise ExchangeError(
            f"{path} has rows in two categories at once, or twice in one; findings have each once"
        )
    if rows.max() >= origin.rows:
        raise ExchangeError(
            f"{path} is of other relevances: it has the row {rows.max()}, but there are {origin.rows}"
        )
    found = vectors.vectors(origin, name, np.sort(rows), pool, normalise, progress=False)
    members, groups, group_of = [], [], np.zeros(len(found.rows), np.int64)
    for number, (index, group) in sorted(read.items()):
        order = np.argsort(index)
        order = order[np.isin(index[order], found.rows)]
        mine = np.searchsorted(found.rows, index[order])
        if not len(mine):
            continue
        group_of[mine] = number
        position, outlier = _in_a_square(group.position[order]), np.ones(len(mine))
        if len(mine) > 2:
            near = max(1, min(neighbours, (len(mine) - 1) // 2))
            outlier = far_off(graphs.neighbourhood(found.values[mine], near, 0))
        members.append(mine)
        groups.append((number, Group(group.labels[order], position, outlier, group.eigenvalues)))
    settings = {
        "corelay": path.name,
        "clustering": clustering,
        "embedding": embedding,
        "name": name,
        "pool": pool if pool is None or isinstance(pool, int) else getattr(pool, "__name__", str(pool)),
        "normalise": normalise,
        "neighbours": neighbours,
        "groups": None if together else "given",
        "lrpjax": __version__,
        "store": dict(origin.settings),
    }
    numbers = np.array([number for number, _ in groups], np.int64)
    analysed = [group for _, group in groups]
    return joined(found, group_of, numbers, members, analysed, prototypes, outliers, settings)


def _in_a_square(position: NDArray) -> NDArray[np.float64]:
    """Places in the plane within [−1, 1], as findings have them; those that are within it stay."""
    if not position.size or np.abs(position).max() <= 1:
        return position
    middle = (position.max(0) + position.min(0)) / 2
    half = (position.max(0) - position.min(0)).max() / 2
    return (position - middle) / (half if half > 0 else 1.0)


def _only(found: Sequence[str], asked: str | None, what: str, where: str) -> str:
    if asked is None and len(found) == 1:
        return found[0]
    if asked is None or asked not in found:
        wanted = "name the one to read" if asked is None else f"there is no {asked!r}"
        raise ExchangeError(f"{where} has the {what}s {', '.join(found) or '(none)'}: {wanted} ({what}=)")
    return asked


def _read(
    opened: Any,
    path: Path,
    clustering: str | None,
    embedding: str | None,
    columns: tuple[int, int],
    categories: Mapping[str, int] | None,
) -> dict[int, tuple[NDArray[np.int64], Group]]:
    """{class number: rows [n], and the group's labels [n], position [n, 2] and eigenvalues, in the file's order}."""
    read: dict[int, tuple[NDArray[np.int64], Group]] = {}
    if not len(opened):
        raise ExchangeError(f"{path} has no category")
    for category, place in opened.items():
        where = f"the category {category!r} of {path}"
        lacks = [
            part for part in ("index", "embedding", "cluster") if part not in getattr(place, "keys", list)()
        ]
        if lacks:
            raise ExchangeError(f"{where} has no {', '.join(lacks)}; an analysis of CoRelAy's has")
        number = _class_of(category, len(opened), categories, where)
        if number in read:
            raise ExchangeError(f"{where} is class {number}, as another one is")
        at = place["embedding"][_only(list(place["embedding"]), embedding, "embedding", where)]
        by = place["cluster"][_only(list(place["cluster"]), clustering, "clustering", where)]
        index, labels = np.asarray(place["index"]), np.asarray(by)
        n = len(index) if index.ndim == 1 else 0
        if not n or index.dtype.kind not in "iu" or index.min() < 0:
            raise ExchangeError(
                f"{where} has an index {index.dtype.name}{list(index.shape)} that names no rows"
            )
        if labels.shape != (n,) or labels.dtype.kind not in "iu":
            raise ExchangeError(
                f"{where} has {n} rows, but labels of clusters {labels.dtype.name}{list(labels.shape)}"
            )
        if at.ndim != 2 or len(at) != n or not all(0 <= c < at.shape[1] for c in columns):
            raise ExchangeError(
                f"{where} has {n} rows, but an embedding {list(at.shape)}; it takes the columns {columns} of each row"
            )
        position = np.asarray(at, np.float64)[:, list(columns)]
        if not np.isfinite(position).all():
            raise ExchangeError(f"{where} has an embedding that is not finite")
        # What t-SNE or UMAP made of a spectral embedding names it, and that one has the eigenvalues.
        of = place["embedding"].get(at.attrs["embedding"], at) if "embedding" in at.attrs else at
        values = at.attrs.get("eigenvalue", of.attrs.get("eigenvalue"))
        eigenvalues = None if values is None else np.sort(np.asarray(values, np.float64).reshape(-1))
        group = Group(np.maximum(labels.astype(np.int64), -1), position, np.ones(n), eigenvalues)
        read[number] = (index.astype(np.int64), group)
    return read


def _class_of(category: str, count: int, categories: Mapping[str, int] | None, where: str) -> int:
    if categories is not None and category in categories:
        return int(categories[category])
    if categories is None and category.isdecimal():
        return int(category)
    if categories is None and category == ALL and count == 1:
        return 0
    raise ExchangeError(
        f"{where} is of no known class; say of which (categories={{{category!r}: number, …}})"
    )

"""Projects for ViRelAy, which shows the clusters of explanations in a browser."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lrpjax.data import files
from lrpjax.data.store import Store
from lrpjax.exchange.corelay import check_rows, classes_of, write_analysis
from lrpjax.exchange.shared import ExchangeError, hdf5, whole
from lrpjax.explore import Findings


def to_virelay(
    folder: str | os.PathLike[str],
    store: Store,
    inputs: Any,
    classes: ArrayLike,
    findings: Findings,
    *,
    names: Sequence[str] | None = None,
    dataset: str = "data",
    partial: bool = False,
) -> Path:
    """Writes a project that ViRelAy 1.0 opens: `virelay FOLDER/project.yaml`.

    The folder appears whole or not at all. Relevances and pictures are read and written some rows at a time.

    Args:
        folder: is made; it must not be there yet.
        store: with "relevance" [N, H, W, C] or [N, H, W], and "output" [N, K].
        inputs: the pictures [N, H, W, C] or [N, H, W] (C 1 or 3) as one looks at them: uint8, or floats in [0, 1]. An
            array, or anything with a shape, a dtype and slices of rows.
        classes: int [N], the true class of each row.
        findings: of the store. ViRelAy shows a project only with an analysis. It counts clusters from 1, so it calls
            cluster 0 "Cluster 1".
        names: of the classes; None: those of the store's settings, else their numbers.
        dataset: its name.
        partial: also write a store that is not complete.

    Returns:
        The absolute path of project.yaml.

    Raises:
        ExchangeError: the folder is there; the store is not complete; rows, classes or shapes do not
            fit; an explored row is not finite; pictures are out of range.
        ImportError: h5py or PyYAML is not installed.

    Example:
        >>> import tempfile
        >>> import numpy as np, lrpjax
        >>> from lrpjax import exchange, explore
        >>> folder, x = tempfile.mkdtemp(), np.ones((2, 4, 4, 1), np.float32)
        >>> results = lambda x: {"relevance": x, "output": x.reshape(2, 16)[:, :3]}
        >>> for _ in lrpjax.explain_batches(results, [x], store=f"{folder}/store", progress=False):
        ...     pass
        >>> rows = np.arange(2)
        >>> found = explore.Findings(rows, rows * 0, rows, np.zeros((2, 2)), rows + 1.0, (), {}, {}, {})
        >>> store = lrpjax.open_store(f"{folder}/store")
        >>> exchange.to_virelay(f"{folder}/project", store, x, [0, 1], found).name
        'project.yaml'
    """
    if not isinstance(store, Store) or not isinstance(findings, Findings):
        wrong = type(findings if isinstance(store, Store) else store).__name__
        raise ExchangeError(f"a project is made of an opened store and its Findings, not of {wrong}")
    h5py = hdf5()
    try:
        import yaml
    except ImportError as error:
        raise ImportError('projects for ViRelAy need PyYAML: pip install "lrpjax[exchange]"') from error
    target, number = Path(folder).absolute(), classes_of(classes, store.rows)
    if not store.complete and not partial:
        raise ExchangeError(
            f"{store.path} is not complete: {store.rows} rows are stored (partial=True takes them)"
        )
    if "relevance" not in store or "output" not in store:
        raise ExchangeError(
            f"{store.path} has the arrays {', '.join(store)}; relevance and output are needed"
        )
    relevance, output = store["relevance"], store["output"]
    if relevance.ndim not in (3, 4) or min(relevance.shape[1:3]) < 3 or output.ndim != 2:
        raise ExchangeError(
            f"ViRelAy shows pictures of 3 × 3 pixels or more with outputs [N, K], not relevances {relevance.shape} "
            f"with outputs {output.shape}"
        )
    shape = tuple(inputs.shape)
    if shape[0] != store.rows:
        raise ExchangeError(
            f"the store has {store.rows} rows, but the inputs have the shape {shape}: it takes a picture for each row"
        )
    if len(shape) not in (3, 4) or min(shape[1:3]) < 3 or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise ExchangeError(f"pictures are [N, H, W], or [N, H, W, C] with C 1 or 3, not {shape}")
    labels = names or store.settings.get("labels")
    count = max(output.shape[1], int(number.max(initial=0)) + 1, int(findings.groups.max(initial=0)) + 1)
    labels = list(labels) if labels else [str(n) for n in range(count)]
    if len(labels) < count:
        raise ExchangeError(f"there are {len(labels)} names, for {count} classes")
    check_rows(findings, store.rows)
    with whole(target) as part:
        part.mkdir()
        with h5py.File(part / "input.h5", "w") as file:
            rows = files.rows_of(inputs)
            planes = lambda: (_picture(block) for block in rows.blocks())
            files.add_dataset(
                file, "data", files.Rows(np.dtype(np.uint8), (shape[0], 3, *shape[1:3]), planes)
            )
            file["label"] = number
        with h5py.File(part / "attribution.h5", "w") as file:
            kept, dtype = files.rows_of(relevance), np.dtype(np.float32)
            planes = lambda: _planes(kept, findings.rows)
            size = (store.rows, 2, *relevance.shape[1:3])
            files.add_dataset(file, "attribution", files.Rows(dtype, size, planes))
            files.add_dataset(file, "prediction", files.rows_of(output).as_type(dtype))
            file["label"] = number
        write_analysis(part / "analysis.h5", findings)
        classes_named = [{"index": i, "word_net_id": f"{i:08d}", "name": n} for i, n in enumerate(labels)]
        (part / "labels.json").write_text(json.dumps(classes_named), encoding="utf-8")
        explained = store.settings.get("target", "unknown")
        project = {
            "name": target.name,
            "model": str(store.settings.get("model", "unknown")),
            "label_map": "labels.json",
            "dataset": {"name": dataset, "type": "hdf5", "path": "input.h5"},
            "attributions": {
                "attribution_method": str(store.settings.get("composite", "unknown")),
                "attribution_strategy": "predicted_label" if explained == "max" else str(explained),
                "sources": ["attribution.h5"],
            },
            "analyses": [{"analysis_method": "findings", "sources": ["analysis.h5"]}],
        }
        (part / "project.yaml").write_text(yaml.safe_dump({"project": project}), encoding="utf-8")
    return target / "project.yaml"


def _picture(block: np.ndarray) -> np.ndarray:
    """uint8 [B, 3, H, W]: with three channels, and as bytes, ViRelAy has neither axis nor range to guess."""
    if block.dtype != np.uint8:
        if not ((block >= 0) & (block <= 1)).all():
            raise ExchangeError("pictures are uint8, or floats in [0, 1]; take back what normalised them")
        block = np.rint(np.asarray(block, np.float64) * 255).astype(np.uint8)
    block = block[..., None] if block.ndim == 3 else block
    return np.moveaxis(np.broadcast_to(block, (*block.shape[:3], 3)), -1, 1)


def _planes(rows: files.Rows, explored: np.ndarray) -> Any:
    """float32 [B, 2, H, W]: the sum over channels and a plane of zeros: ViRelAy draws no single plane."""
    start = 0
    for block in rows.blocks():
        summed = np.asarray(block, np.float64)
        summed = (summed.sum(-1) if summed.ndim == 4 else summed).astype(np.float32)
        bad = start + np.flatnonzero(~np.isfinite(summed).all((1, 2)))
        if (lost := np.intersect1d(bad, explored)).size:
            raise ExchangeError(f"rows that were explored are not finite: {lost[:5].tolist()}")
        yield np.stack([summed, np.zeros_like(summed)], 1)
        start += len(block)

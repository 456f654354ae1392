"""What semanticlens reads: the samples that maximise each channel, among its cached results."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from lrpjax.analysis.concepts import Samples
from lrpjax.data import files
from lrpjax.exchange.shared import ExchangeError, whole


def to_semanticlens(
    folder: str | os.PathLike[str],
    samples: Samples,
    *,
    dataset: str,
    model: str,
    layer: str,
    aggregation: str = "aggregate_conv_mean",
) -> Path:
    """Writes the samples that maximise each channel where semanticlens 0.2 looks for its own.

    Its `ActivationComponentVisualizer(..., cache_dir=FOLDER, num_samples=k)` then loads them from
    `FOLDER/ActivationComponentVisualizer/<dataset>/<model>/<aggregation>-<k>-<layer>.safetensors`, and does not run the
    model. The file appears whole or not at all; folders above it are made.

    Args:
        folder: the directory that semanticlens is given as `cache_dir`.
        samples: of `concepts.maximising_samples`, float [channels, k] and int [channels, k]; semanticlens calls the
            scores activations, also where they are relevances.
        dataset, model: what the attribute `name` of the data set and of the model says there.
        layer: the module's name in the model there.
        aggregation: the name of the function there that makes one number of a channel's plane; it is not called.
            `pool="sum"` chooses the samples that a mean chooses, if all planes have one size.

    Returns:
        The absolute path of the file.

    Raises:
        ExchangeError: a channel has fewer than k samples (semanticlens would take the number −1 for the last sample); a
            name cannot be part of a path; the file is there already.
        ImportError: safetensors is not installed.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp, lrpjax
        >>> from lrpjax import concepts, exchange
        >>> f = lambda x: lrpjax.tag(x, "in") @ jnp.array([[1.0], [2.0]])
        >>> batches = [jnp.array([[1.0, 0.0], [5.0, 1.0], [2.0, 3.0]])]
        >>> best = concepts.maximising_samples(f, None, batches, at="in", by="activation", k=2)
        >>> file = exchange.to_semanticlens(tempfile.mkdtemp(), best, dataset="data", model="net", layer="conv1")
        >>> file.name
        'aggregate_conv_mean-2-conv1.safetensors'
    """
    score, index = np.asarray(samples.score, np.float32), np.asarray(samples.index, np.int64)
    if score.ndim != 2 or index.shape != score.shape or 0 in score.shape:
        raise ExchangeError(f"samples have scores {score.shape} and numbers {index.shape}, not [channels, k]")
    few = np.flatnonzero((index < 0).any(1) | ~np.isfinite(score).all(1))
    if few.size:
        raise ExchangeError(
            f"channels {few[:5].tolist()} have fewer than {score.shape[1]} samples; semanticlens has no such gaps. "
            "Look at more samples, or take a smaller k"
        )
    for what, name in {
        "dataset": dataset,
        "model": model,
        "layer": layer,
        "aggregation": aggregation,
    }.items():
        if not name or name in (".", "..") or set(name) & set("/\\\0"):
            raise ExchangeError(f"the {what}'s name is part of a path, which {name!r} cannot be")
    about = {
        "aggregation_fn_name": aggregation,
        "n_collect": str(score.shape[1]),
        "n_latents": str(score.shape[0]),
        "layer_name": layer,
    }
    place = Path(folder).absolute() / "ActivationComponentVisualizer" / dataset / model
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExchangeError(f"{place} cannot be made: {error}") from error
    target = place / f"{aggregation}-{score.shape[1]}-{layer}.safetensors"
    arrays = {"activations": files.rows_of(score), "sample_ids": files.rows_of(index)}
    with whole(target) as part:
        files.write_safetensors(part, arrays, about)
    return target

"""Checks of a method of explanation, which need to explain again: randomised parameters, noisy inputs."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from lrpjax._evaluate import apply, as_callable, check_positive, map_batched
from lrpjax.metrics.agreement import spearman


class Robustness(NamedTuple):
    """Largest and mean relative change of the relevance under noise, each of shape [B].

    Example:
        >>> import jax.numpy as jnp
        >>> print(*robustness(lambda x: 2 * x, jnp.ones((1, 4)), noise=jnp.full((1, 1, 4), 0.5)))
        [0.5] [0.5]
    """

    maximum: jax.Array
    mean: jax.Array


def randomisation(
    explain: Callable,
    params: Any,
    fresh: Any,
    x: ArrayLike,
    *,
    layers: Sequence[str],
    similarity: Callable = spearman,
    cascade: bool = True,
) -> Any:
    """Model-parameter randomisation test (MPRT): how alike explanations stay when layers lose what they
    learned.

    Step l explains x with the parameters of the layers 0 … l (cascade) or of layer l alone replaced by
    fresh ones, and compares with the explanation of the trained model. Adebayo et al., NeurIPS 2018,
    sections 3.1 (cascading) and 3.2 (independent). Agrees with Quantus' `MPRT` for the same fresh
    parameters; its default compares absolute values, here `similarity=lambda a, b: spearman(abs(a),
    abs(b))`.

    Does not show: that a method whose explanation changes is a good one: noise passes with the best score.
    An explanation may also stay similar for reasons other than blindness to the model: x itself dominates
    it, or the randomised layers still pass the same edges on (Binder et al., CVPR 2023). Similarity
    measures disagree with each other; report more than one.

    Args:
        explain: (params, x) -> relevance [B, ...]. Give it fixed classes: those that the trained model
            predicts.
        params: pytree of parameters.
        fresh: pytree like params, newly initialised, for example `model.init(other_key, x)`.
        x: [B, ...].
        layers: in the order in which they are randomised, for the paper's test from the output down. A name
            is the path to a part of the tree, its keys joined by "/", as "params/Dense_1"; parameters under
            none of the names are never randomised.
        similarity: (trained, randomised) -> [B]; may return a pytree of several of them.
        cascade: replace layers cumulatively, or one at a time.

    Returns:
        What similarity returns, with an axis of layers in front: [layers, B].

    Raises:
        ValueError: if fresh differs from params in structure or shapes, a layer holds no parameters, two
            layers share some, or there are no layers.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> params = {"a": jnp.array([1.0, 2.0, 3.0]), "b": jnp.array(2.0)}
        >>> fresh = {"a": jnp.array([3.0, 2.0, 1.0]), "b": jnp.array(4.0)}
        >>> explain = lambda p, x: x * p["a"] * p["b"]
        >>> print(metrics.randomisation(explain, params, fresh, jnp.ones((1, 3)), layers=["b", "a"]).round(4))
        [[ 1.]
         [-1.]]
    """
    where = _leaf_layers(params, fresh, layers)
    steps = jnp.arange(len(layers))
    return _randomisation(
        as_callable(explain), params, fresh, jnp.asarray(x), steps, as_callable(similarity), where, cascade
    )


@functools.partial(jax.jit, static_argnames=("where", "cascade"))
def _randomisation(explain, params, fresh, x, steps, similarity, where, cascade):
    trained = apply(explain, params, x)
    leaves, tree = jax.tree.flatten(params)
    new = jax.tree.leaves(fresh)

    def one(step):
        lost = lambda layer: layer <= step if cascade else layer == step
        mixed = [
            old if layer is None else jnp.where(lost(layer), other, old)
            for old, other, layer in zip(leaves, new, where, strict=True)
        ]
        return similarity(trained, apply(explain, jax.tree.unflatten(tree, mixed), x))

    return jax.lax.map(one, steps)


def _leaf_layers(params, fresh, layers):
    """For every leaf of params the number of its layer, or None."""
    kinds = lambda tree: [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)]
    if jax.tree.structure(params) != jax.tree.structure(fresh) or kinds(params) != kinds(fresh):
        raise ValueError("fresh must have the structure, shapes and dtypes of params")
    if not layers:
        raise ValueError("layers is empty: nothing would be randomised")
    path_of = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    where: list[int | None] = [None] * len(paths)
    for number, layer in enumerate(layers):
        inside = [i for i, path in enumerate(paths) if path == layer or path.startswith(layer + "/")]
        if not inside:
            raise ValueError(f"no parameters under {layer!r}; there are {', '.join(paths)}")
        for i in inside:
            if where[i] is not None:
                raise ValueError(f"{paths[i]!r} belongs to two layers, {layers[where[i]]!r} and {layer!r}")
            where[i] = number
    return tuple(where)


def robustness(
    explain: Callable,
    x: ArrayLike,
    *,
    noise: float | ArrayLike,
    samples: int | None = None,
    key: jax.Array | None = None,
    batch: int = 8,
) -> Robustness:
    """Max-sensitivity and avg-sensitivity: change of the explanation in a neighbourhood of x.

    max_k and mean_k of ‖R(x + δ_k) − R(x)‖₂ / ‖R(x)‖₂, δ_k uniform in [−r, r]. Yeh et al., NeurIPS 2019
    (arXiv 1901.09392), max-sensitivity; divided by the norm of the explanation as Quantus and captum do.
    Quantus' `MaxSensitivity` and `AvgSensitivity` agree for the same δ and
    `return_nan_when_prediction_changes=False`.

    Does not show: whether the explanation is faithful: one that ignores the model is perfectly robust. A
    large value may be the model's own: where the function changes quickly so should its explanation. The
    maximum over samples is a lower bound of the maximum over the neighbourhood, and grows with their
    number.

    Args:
        explain: x -> relevance [B, ...]; give it fixed classes, or a change of class counts as a change of
            relevance.
        x: [B, ...], floating.
        noise: radius r in the unit of x, or the perturbations δ themselves, [K, *x.shape].
        samples: number K of perturbations, with a radius.
        key: random key, with a radius.
        batch: number of perturbed copies of x that are explained at once.

    Returns:
        `Robustness(maximum [B], mean [B])`; NaN where R(x) is 0.

    Raises:
        ValueError: if the radius is not positive or comes without samples or key, samples is not positive, or
            perturbations do not have the shape of x.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> x, noise = jnp.ones((1, 4)), jnp.full((1, 1, 4), 0.5)
        >>> worst, mean = metrics.robustness(lambda x: 2 * x, x, noise=noise)
        >>> print(worst, mean)
        [0.5] [0.5]
    """
    x = jnp.asarray(x)
    if np.ndim(noise) == 0:
        if samples is None or key is None:
            raise ValueError("a noise radius needs samples and key")
        check_positive("samples", samples)
        if not isinstance(noise, Tracer) and not np.asarray(noise) > 0:
            raise ValueError(f"the noise radius must be positive, not {noise}")
        radius = jnp.asarray(noise, x.dtype)
        seeds = jax.random.split(key, samples)
    else:
        seeds, radius = jnp.asarray(noise, x.dtype), None
        if seeds.shape[1:] != x.shape:
            raise ValueError(f"perturbations must be [K, {', '.join(map(str, x.shape))}], not {seeds.shape}")
    distances = _distances(as_callable(explain), x, seeds, radius, batch)
    return Robustness(distances.max(0), distances.mean(0))


@functools.partial(jax.jit, static_argnames="batch")
def _distances(explain, x, seeds, radius, batch):
    relevance = apply(explain, x)
    norm = lambda r: jnp.linalg.norm(r.reshape(len(x), -1), axis=1)

    def one(seed):
        delta = seed if radius is None else jax.random.uniform(seed, x.shape, x.dtype, -radius, radius)
        return norm(apply(explain, x + delta) - relevance)

    return map_batched(one, seeds, batch) / norm(relevance)

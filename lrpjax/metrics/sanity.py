"""Sanity: does the explanation depend on what the model has learned, and on the class that it is asked for?"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike

from lrpjax._evaluate import Target, apply, as_callable, check_range, sum_batched, target_index
from lrpjax.errors import TargetError
from lrpjax.metrics._noise import normal, perturbations
from lrpjax.metrics.agreement import pearson, spearman
from lrpjax.metrics.simplicity import histogram_entropy


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


def smooth_mprt(
    explain: Callable,
    params: Any,
    fresh: Any,
    x: ArrayLike,
    *,
    layers: Sequence[str],
    noise: float | ArrayLike,
    samples: int | None = None,
    key: jax.Array | None = None,
    similarity: Callable = spearman,
    cascade: bool = True,
    batch: int = 8,
) -> Any:
    """Smooth MPRT: `randomisation` of explanations that are averaged over noisy inputs.

    R̄(x) = 1/K Σ_k R(x + δ_k), δ_k normal, in place of R, so that the noise of gradients does not pass for sensitivity
    to parameters. Hedström et al., XAI in Action workshop at NeurIPS 2023 (arXiv 2401.06465), who advise to
    randomise from the input up (`layers` in that order). Quantus' `SmoothMPRT` agrees for the same δ; it draws others
    for every layer, and the last of its K inputs is x itself.

    Does not show: see `randomisation`.

    Args:
        explain, params, fresh, x, layers, similarity, cascade: as in `randomisation`.
        noise: standard deviation of δ in shares of the range of each sample (max x − min x), or the δ themselves,
            [K, *x.shape], in the unit of x.
        samples: number K of noisy inputs, with a standard deviation.
        key: random key, with a standard deviation. Every explanation gets the same noise.
        batch: number of noisy copies of x that are explained at once.

    Returns:
        As `randomisation`.

    Raises:
        ValueError: as `randomisation`; and a deviation that is not positive or without samples or key, or
            perturbations of another shape than x.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> params, fresh = {"a": jnp.array([1.0, 2.0, 3.0])}, {"a": jnp.array([3.0, 2.0, 1.0])}
        >>> noise = jnp.array([[[0.5, 0.5, 0.5]], [[-0.5, -0.5, -0.5]]])
        >>> explain = lambda p, x: x * p["a"]
        >>> print(metrics.smooth_mprt(explain, params, fresh, jnp.ones((1, 3)), layers=["a"], noise=noise).round(4))
        [[-1.]]
    """
    x = jnp.asarray(x)
    seeds, share = perturbations(x, noise, samples, key)
    axes = tuple(range(1, x.ndim))
    deviation = None if share is None else share * (x.max(axes, keepdims=True) - x.min(axes, keepdims=True))
    smooth = Partial(functools.partial(_smoothed, batch=batch), as_callable(explain), seeds, deviation)
    return randomisation(smooth, params, fresh, x, layers=layers, similarity=similarity, cascade=cascade)


def _smoothed(explain, seeds, deviation, params, x, *, batch):
    total = sum_batched(lambda seed: explain(params, x + normal(seed, deviation, x)), seeds, batch)
    return total / len(seeds)


def efficient_mprt(explain: Callable, params: Any, fresh: Any, x: ArrayLike, *, bins: int = 100) -> jax.Array:
    """Efficient MPRT: by how much the explanation gets more complex if all parameters are replaced by fresh ones.

    (ξ(R̂) − ξ(R)) / ξ(R), ξ the `histogram_entropy`, R of the trained model and R̂ of the random one. Hedström et al.,
    XAI in Action workshop at NeurIPS 2023 (arXiv 2401.06465): no layers, and no similarity of two maps. Large is good.
    Agrees with Quantus' `EfficientMPRT` for the same fresh parameters.

    Does not show: see `randomisation`. It looks at the values of a map and not at where they stand: a method whose map
    only becomes another one of the same kind has 0.

    Args:
        explain, params, fresh, x: as in `randomisation`.
        bins: of the histogram.

    Returns:
        [B]; not finite where all relevance of the trained model falls into one bin.

    Raises:
        ValueError: if bins is less than 2.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> explain = lambda p, x: x * p
        >>> x, trained, fresh = jnp.ones((1, 4)), jnp.array([0.0, 0.0, 0.0, 1.0]), jnp.arange(4.0)
        >>> print(metrics.efficient_mprt(explain, trained, fresh, x).round(4))
        [1.4652]
    """
    explain, x = as_callable(explain), jnp.asarray(x)
    trained, random = (histogram_entropy(apply(explain, p, x), bins=bins) for p in (params, fresh))
    return (random - trained) / trained


def random_logit(
    explain: Callable,
    x: ArrayLike,
    target: ArrayLike,
    *,
    classes: int,
    key: jax.Array,
    similarity: Callable = pearson,
) -> Any:
    """Random logit test: how alike the maps of the target class and of another class, drawn at random, are.

    similarity(R(x; c), R(x; c′)), c′ ≠ c uniform. Sixt et al., ICML 2020 (arXiv 1912.09818), with SSIM
    (`similarity=metrics.ssim` for maps without channels). Small is good: modified backpropagation whose
    relevance converges to one direction gives all classes the same map. Quantus' `RandomLogit` agrees for the same c′;
    its SSIM is that of flattened maps.

    Does not show: whether the class that is compared is a rival at all (see `class_contrast`); classes that share their
    evidence should have maps that are alike.

    Args:
        explain: (x, classes [B]) -> relevance [B, ...].
        x: [B, ...].
        target: class c, an integer or integers [B].
        classes: their number.
        key: random key, draws c′.
        similarity: (a, b) -> [B]; may return a pytree of several of them.

    Returns:
        What similarity returns.

    Raises:
        ValueError: if there are fewer than 2 classes.
        TargetError: if the target is no class.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> explain = lambda x, c: x * jnp.where(c[:, None] == 0, 1.0, -1.0)
        >>> x = jnp.array([[1.0, 2.0, 3.0]])
        >>> print(metrics.random_logit(explain, x, 0, classes=3, key=jax.random.key(0)).round(4))
        [-1.]
    """
    x = jnp.asarray(x)
    if classes < 2:
        raise ValueError(f"another class needs at least 2 classes, not {classes}")
    check_range("target", target, classes, TargetError)
    target = jnp.broadcast_to(jnp.asarray(target), (len(x),))
    step = jax.random.randint(key, target.shape, 1, classes, dtype=target.dtype)
    return _between(explain, x, target, (target + step) % classes, similarity)


def class_contrast(
    f: Callable, explain: Callable, x: ArrayLike, *, target: Target = "max", similarity: Callable = pearson
) -> jax.Array:
    """Class contrast: 1 − correlation of the maps of the target class and of its strongest rival.

    1 − corr(R(x; c), R(x; c′)), c′ the class with the largest score besides c: 0 if a map does not depend on the class
    that it explains, 1 if the two maps have nothing in common, 2 if evidence for one class is evidence against the
    other. `random_logit` (Sixt et al. 2020) asked of the class that matters; ours in this form.

    Does not show: that a contrast is right: noise has a contrast of 1, and classes that rest on the same evidence
    should have little. Of the scales of the two maps it sees nothing.

    Args:
        f: x -> scores [B, classes].
        explain: (x, classes [B]) -> relevance [B, ...], as
            `lambda x, c: lrpjax.relevance(f, composite, target=c)(x)`.
        x: [B, ...].
        target: class c, as in `flipping`.
        similarity: (a, b) -> [B], 1 for maps that are alike.

    Returns:
        [B], from 0 to 2 for a correlation; NaN where a map is constant.

    Raises:
        TargetError: if the target is no class, or is None.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> w = jnp.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [0.0, 0.0, 0.0]])
        >>> f, explain = (lambda x: x @ w.T), (lambda x, c: x * w[c])
        >>> print(metrics.class_contrast(f, explain, jnp.ones((1, 3))).round(4))
        [2.]
    """
    f, x = as_callable(f), jnp.asarray(x)
    scores = apply(f, x)
    index = target_index(scores, target)
    if index is None or scores.shape[1] < 2:
        raise TargetError(
            f"a rival needs scores of at least 2 classes and a target, not {scores.shape} and {target!r}"
        )
    own = jnp.arange(scores.shape[1], dtype=index.dtype) == index[:, None]
    rival = jnp.argmax(jnp.where(own, -jnp.inf, scores), 1).astype(index.dtype)
    return 1 - _between(explain, x, index, rival, similarity)


def _between(explain, x, target, rival, similarity):
    explain = as_callable(explain)
    return similarity(apply(explain, x, target), apply(explain, x, rival))

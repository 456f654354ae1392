"""Curves: how the model's score changes as regions are replaced in the order of their relevance."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from lrpjax._evaluate import (
    Target,
    apply,
    as_callable,
    check_positive,
    check_range,
    fill_like,
    map_batched,
    read,
    target_index,
)
from lrpjax.errors import TargetError
from lrpjax.metrics._regions import as_fill, of_elements, prepare, region_sums, replace
from lrpjax.metrics.perturb import LinearImputation, patches


class Curve(NamedTuple):
    """A perturbation curve: `scores[b, s]` is f of sample b with `counts[s]` of its regions flipped.

    Example:
        >>> import jax.numpy as jnp
        >>> Curve(counts=jnp.array([0, 1]), scores=jnp.array([[3.0, 1.0]])).scores.shape
        (1, 2)
    """

    counts: jax.Array
    scores: jax.Array


def flipping(
    f: Callable,
    x: ArrayLike,
    relevance: ArrayLike,
    *,
    target: Target = "max",
    order: str = "morf",
    regions: int | ArrayLike | None = None,
    fill: ArrayLike | Callable = 0.0,
    steps: int | Sequence[int] | None = None,
    key: jax.Array | None = None,
    batch: int = 8,
) -> Curve:
    """Pixel and region flipping: the class score as regions are replaced in the order of their relevance.

    x⁽⁰⁾ = x, and x⁽ᵏ⁾ is x with its k first regions replaced by `fill`; a region's relevance is the sum
    over its elements. Bach et al., PLOS ONE 10(7), 2015 (pixel flipping); Samek et al., IEEE TNNLS 28(11),
    2017, section III (region perturbation: most relevant first).

    Does not show: whether a score falls because evidence is gone or because the flipped image is unlike any
    that the model was trained on; curves of different fill-ins are different questions. Does not show that
    the relevance of any single element is right (only the order counts), nor anything about features that
    act only jointly. On digits (tests/papers/results/samek.md, five trainings) LRP beats sensitivity where
    flipping erases ink, all rules if pixels turn black and γ with a box if they are blurred or put to the mean;
    with uniform noise or inverted pixels, which add ink, sensitivity beats LRP.

    Args:
        f: x -> scores [B, classes], or [B] with `target=None`. Logits and probabilities give different
            curves.
        x: input, [B, ...].
        relevance: of the shape of x, or with axes of size 1 that broadcast to it (one value per pixel).
            Unused, and still needed, for `order="random"`.
        target: class whose score is read: "max" (the largest for the unperturbed x), an integer, or
            integers [B].
        order: "morf" (most relevant first), "lerf" (least relevant first) or "random".
        regions: None, patch size, or labels that broadcast to `x.shape[1:]` or to `x.shape` (see the module).
        fill: broadcasts to x; or a callable (x, flipped) -> array that broadcasts to x, which sees where x is
            flipped, bool of its shape (see `LinearImputation`).
        steps: None evaluates after every single region; an integer S at S + 1 evenly spaced numbers of
            regions from 0 to all; a sequence at exactly these numbers of flipped regions.
        key: random key; orders "random", and decides between regions of equal relevance, which otherwise
            go in the order of their labels (top left first).
        batch: number of perturbed copies of x that are evaluated at once.

    Returns:
        `Curve(counts [S], scores [B, S])`.

    Raises:
        ValueError: on shapes that do not fit, an unknown order, `order="random"` without key, steps out of
            range.
        TargetError: if the target is no class.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> x = jnp.array([[3.0, 1.0, 2.0]])
        >>> f = lambda x: x.sum(1, keepdims=True)
        >>> counts, scores = metrics.flipping(f, x, relevance=x)
        >>> print(counts, scores)
        [0 1 2 3] [[6. 3. 1. 0.]]
    """
    f, x, relevance, labels, regions_n = prepare(f, x, relevance, regions)
    if order not in ("morf", "lerf", "random"):
        raise ValueError(f"order must be 'morf', 'lerf' or 'random', not {order!r}")
    if order == "random" and key is None:
        raise ValueError("order='random' needs a key")
    index, fill = target_index(apply(f, x), target), as_fill(fill, x)
    counts = _counts(steps, regions_n)
    scores = _flipping(f, x, relevance, index, labels, fill, counts, key, order, regions_n, batch)
    return Curve(counts, scores)


@functools.partial(jax.jit, static_argnames=("order", "regions_n", "batch"))
def _flipping(f, x, relevance, index, labels, fill, counts, key, order, regions_n, batch):
    sums = region_sums(relevance, labels, regions_n)
    value = {"morf": -sums, "lerf": sums, "random": jnp.zeros_like(sums)}[order]
    tie = jnp.zeros_like(sums) if key is None else jax.random.uniform(key, sums.shape, sums.dtype)
    rows, positions = jnp.arange(len(x))[:, None], jnp.arange(regions_n, dtype=counts.dtype)
    rank = jnp.zeros(sums.shape, counts.dtype).at[rows, jnp.lexsort((tie, value))].set(positions)
    rank = of_elements(rank, labels, x.shape)
    score = lambda count: read(f(replace(x, rank < count, fill)), index)
    return map_batched(score, counts, batch).T


def aopc(scores: ArrayLike) -> jax.Array:
    """Area over a perturbation curve, AOPC = 1/(L+1) Σ_{k=0..L} (f(x⁽⁰⁾) − f(x⁽ᵏ⁾)), per sample.

    Samek et al., IEEE TNNLS 28(11), 2017, section III; the paper averages it over samples. Large is good
    for MoRF.

    Does not show: more than the curve (see `flipping`). Its size depends on the model's output scale, on the
    fill-in and on how many regions are flipped; compare only values obtained alike.

    Args:
        scores: [..., L + 1], the first being the unperturbed score; the points should be evenly spaced.

    Returns:
        [...], in the unit of f.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> print(metrics.aopc(jnp.array([[6.0, 3.0, 1.0, 0.0]])))
        [3.5]
    """
    scores = jnp.asarray(scores)
    return jnp.mean(scores[..., :1] - scores, -1)


def abpc(morf: ArrayLike, lerf: ArrayLike) -> jax.Array:
    """Area between perturbation curves, ABPC = 1/(L+1) Σ_{k=0..L} (f(x⁽ᵏ⁾ LeRF) − f(x⁽ᵏ⁾ MoRF)), per sample.

    Samek et al., IEEE TNNLS 28(11), 2017, appendix. Large is good; the expectation for a random order is 0.
    That the fill-in pushes the score down shows in both curves and cancels in part.

    Does not show: more than the two curves (see `flipping`); the scale is that of f.

    Args:
        morf: scores [..., L + 1] of order "morf".
        lerf: scores [..., L + 1] of order "lerf", at the same steps with the same fill-in.

    Returns:
        [...], in the unit of f.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> print(metrics.abpc(jnp.array([6.0, 3.0, 1.0, 0.0]), jnp.array([6.0, 5.0, 3.0, 0.0])))
        1.0
    """
    morf, lerf = jnp.asarray(morf), jnp.asarray(lerf)
    if morf.shape != lerf.shape:
        raise ValueError(f"the curves differ in shape: morf {morf.shape}, lerf {lerf.shape}")
    return jnp.mean(lerf - morf, -1)


def selectivity(scores: ArrayLike) -> jax.Array:
    """Selectivity: the area under a perturbation curve, as the mean score of its trapezoids, per sample.

    1/L Σ_{k=1..L} (f(x⁽ᵏ⁻¹⁾) + f(x⁽ᵏ⁾)) / 2. Montavon et al., Digital Signal Processing 73, 2018, section
    7.2: relevant regions are removed first, and a small area is good. Quantus' `Selectivity` returns the
    curve of `flipping` without its first point, f(x), and sums the trapezoids of what is left.

    Does not show: more than the curve (see `flipping`). It says the same as `aopc`, counted from zero instead
    of from f(x), so that samples with high scores weigh more.

    Args:
        scores: [..., L + 1] of order "morf", the first being the unperturbed score; evenly spaced.

    Returns:
        [...], in the unit of f.

    Raises:
        ValueError: if there are fewer than two points.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> print(metrics.selectivity(jnp.array([[8.0, 4.0, 0.0]])))
        [4.]
    """
    scores = jnp.asarray(scores)
    if scores.shape[-1] < 2:
        raise ValueError(f"an area needs a curve of at least 2 points, not {scores.shape}")
    return jnp.mean((scores[..., 1:] + scores[..., :-1]) / 2, -1)


def irof(
    f: Callable,
    x: ArrayLike,
    relevance: ArrayLike,
    *,
    regions: int | ArrayLike,
    target: Target = "max",
    fill: ArrayLike | Callable = 0.0,
    batch: int = 8,
) -> jax.Array:
    """Iterative removal of features: the area over the curve of f(x⁽ᵏ⁾) / f(x), segments going by their mean relevance.

    1 − 1/L Σ_{k=1..L} (p_{k−1} + p_k) / 2, p_k = f(x⁽ᵏ⁾) / f(x⁽⁰⁾), L the number of segments. Rieger & Hansen
    2020 (arXiv 2003.08747), with superpixels as segments and f a probability. Large is good, 1 if the
    score is gone at once. Quantus' `IROF` leaves out k = 0 and does not divide by L: it returns
    L · irof + (1 + p_1) / 2.

    Does not show: see `flipping`. The quotient means little where f(x) is near 0 or scores change their sign:
    give it probabilities. The segments are chosen without the explanation, and a map that is finer than they
    are gains nothing by it.

    Args:
        f, x, relevance, target, fill, batch: as in `flipping`.
        regions: segments, as in `flipping`; superpixels for instance. Every label from 0 to the largest occurs.

    Returns:
        [B].

    Raises:
        ValueError, TargetError: as `flipping`.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> x = jnp.array([[3.0, 1.0]])
        >>> f = lambda x: x.sum(1, keepdims=True)
        >>> print(metrics.irof(f, x, x, regions=jnp.arange(2)))
        [0.625]
    """
    _, wide, relevance, labels, count = prepare(f, x, relevance, regions)
    sizes = region_sums(jnp.ones_like(relevance), labels, count)
    mean = relevance / of_elements(sizes, labels, wide.shape)
    scores = flipping(f, x, mean, target=target, regions=regions, fill=fill, batch=batch).scores
    return 1 - selectivity(scores / scores[:, :1])


def road(
    f: Callable,
    x: ArrayLike,
    relevance: ArrayLike,
    *,
    target: Target = "max",
    order: str = "morf",
    steps: int | Sequence[int] | None = 10,
    noise: float = 0.01,
    key: jax.Array | None = None,
    channel_axis: int = -1,
    batch: int = 8,
) -> Curve:
    """Remove and debias (ROAD): whether the class is still found when pixels are replaced by noisy linear imputation.

    Curve of 1[argmax f(x⁽ᵏ⁾) = target], where the removed pixels of x⁽ᵏ⁾ are what `LinearImputation` makes of
    those that are left; the mean over samples is the accuracy. Rong et al., ICML 2022 (arXiv 2202.00449):
    imputing keeps the *shape* of what is removed from telling the class. Quantus' `ROAD` agrees for
    images of one channel without noise; with more channels its indices run past the image.

    Does not show: see `flipping`. A pixel's neighbours tell much of it, so that single pixels that are removed
    are mostly restored; only what is missing from an area is.

    Args:
        f: x -> scores [B, classes].
        x: images [B, H, W, channels], or with the channels elsewhere; floating.
        relevance, target, order, steps, batch: as in `flipping`; pixels go with all of their channels.
        noise: standard deviation of what is added to imputed pixels, in the unit of x.
        key: random key of the noise; may be left out if that is 0. Also decides between equal relevances.
        channel_axis: of x, counted with the batch.

    Returns:
        `Curve(counts [S], hits [B, S])`, 0 or 1, in the dtype of x.

    Raises:
        ValueError: as `flipping`; noise without key; x that is no image.
        TargetError: if the target is no class, or is None.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> x = jnp.zeros((1, 3, 3, 1)).at[0, 1, 1, 0].set(1.0)
        >>> f = lambda x: jnp.stack([x[:, 1, 1, 0], 0.5 * jnp.ones(len(x), x.dtype)], 1)
        >>> print(metrics.road(f, x, x, steps=[0, 1], noise=0.0).scores)
        [[1. 0.]]
    """
    x, f = jnp.asarray(x), as_callable(f)
    scores = apply(f, x)
    index = target_index(scores, target)
    if index is None:
        raise TargetError(
            "whether a class is still found needs classes: give f with scores [B, classes] and a target"
        )
    fill = LinearImputation(noise=noise, key=key, channel_axis=channel_axis)
    regions = patches(x.shape, 1, channel_axis=channel_axis)
    hits = Partial(_hits, f, jnp.zeros((), x.dtype))
    return flipping(
        hits,
        x,
        relevance,
        target=index,
        order=order,
        regions=regions,
        fill=fill,
        steps=steps,
        key=key,
        batch=batch,
    )


def _hits(f, zero, x):
    scores = f(x)
    return jax.nn.one_hot(jnp.argmax(scores, -1), scores.shape[-1], dtype=zero.dtype)


def monotonicity(
    f: Callable,
    x: ArrayLike,
    relevance: ArrayLike,
    *,
    target: Target = "max",
    regions: int | ArrayLike | None = None,
    fill: ArrayLike = 0.0,
    batch: int = 8,
) -> jax.Array:
    """Monotonicity of Arya et al.: whether the score never falls as regions are added in rising order of relevance.

    1[f(x₍₁₎) ≤ f(x₍₂₎) ≤ … ≤ f(x₍L₎)], x₍ₖ₎ being `fill` but for its k least relevant regions, which are those
    of x. Arya et al. 2019 (arXiv 1909.03012), metric of that name. Quantus' `Monotonicity` fills the
    baseline with itself, adds nothing, and with a fixed baseline returns true always; the two agree where this
    is 1.

    Does not show: how much a score rises, and so is 0 for nearly everything with many regions: give few large
    ones. The order of the first, irrelevant regions decides as much as that of the last.

    Args:
        f, x, target, regions, batch: as in `flipping`.
        relevance: as in `flipping`; its absolute value, if evidence against the class is to count as relevant.
        fill: what is there before anything is added; broadcasts to x.

    Returns:
        [B], 1 or 0, in the dtype of the scores.

    Raises:
        ValueError, TargetError: as `flipping`.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> x = jnp.array([[3.0, 1.0, 2.0], [3.0, 1.0, -2.0]])
        >>> f = lambda x: x.sum(1, keepdims=True)
        >>> print(metrics.monotonicity(f, x, abs(x)))
        [1. 0.]
    """
    f, x = as_callable(f), jnp.asarray(x)
    index = target_index(apply(f, x), target)
    base = jnp.broadcast_to(fill_like(fill, x), x.shape)
    scores = flipping(
        f, base, relevance, target=index, order="lerf", regions=regions, fill=x, batch=batch
    ).scores
    return jnp.all(jnp.diff(scores[:, 1:]) >= 0, 1).astype(scores.dtype)


def _counts(steps, count):
    """Numbers of flipped regions at which the score is read."""
    if steps is None:
        steps = count
    if isinstance(steps, int):
        check_positive("steps", steps)
        return jnp.asarray(np.linspace(0, count, steps + 1).round(), jnp.int32)
    steps = np.asarray(steps)
    check_range("steps", steps, count + 1)
    return jnp.asarray(steps, jnp.int32)

"""The gradient family: sensitivity, gradient × input, SmoothGrad, integrated gradients, occlusion, Grad-CAM.

SmoothGrad and integrated gradients are here what they are in essence, functions of an explanation:
`smooth(explain)` averages any explanation over noisy inputs and `integrate(explain)` any along a path, so
that LRP-SmoothGrad is `smooth(lrpjax.relevance(f, composite, target=3), ...)`. Like `lrpjax.relevance` the
functions returned can be jitted, vmapped and differentiated; wrap them in `jax.jit` to compile once for
many calls. Inputs have the batch first.

Deconvnet and guided backpropagation are composites: `lrpjax.composites.deconvnet`,
`lrpjax.composites.guided_backprop`."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from lrpjax import _hints, composites
from lrpjax._evaluate import (
    Target,
    check_positive,
    fill_like,
    read,
    sum_batched,
    target_index,
)
from lrpjax.core.program import Program
from lrpjax.core.seeds import output_relevance
from lrpjax.errors import PathError


@_hints.hinted
def gradient(f: Callable, *, target: Any = None) -> Callable:
    """Gradient of the target with respect to the input, R_i = ∂f/∂x_i, signed.

    The same as `lrpjax.relevance(f, composites.gradient(), target=target)`, by `jax.vjp` alone and so for
    every function that JAX differentiates.

    Args:
        f: x -> output; further arguments are passed on and not explained.
        target: what is differentiated, as in `lrpjax.relevance`: None (the sum of all outputs), "max", a
            class, classes [B], the cotangent of the output, or a callable output -> cotangent.

    Returns:
        x -> gradient, of the shape of x.

    Raises:
        TargetError: when called, if the target does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import gradients
        >>> print(gradients.gradient(lambda x: x**2, target=1)(jnp.array([[3.0, 1.0]])))
        [[0. 2.]]
    """

    def explain(x: ArrayLike, *args: Any, **kwargs: Any) -> jax.Array:
        y, pull = jax.vjp(lambda x: f(x, *args, **kwargs), jnp.asarray(x))
        return pull(output_relevance(y, target, "gradient"))[0]

    return explain


@_hints.hinted
def sensitivity(f: Callable, *, target: Any = None, squared: bool = False) -> Callable:
    """Sensitivity analysis, R_i = |∂f/∂x_i|, or (∂f/∂x_i)².

    Simonyan et al., ICLR workshop 2014, section 3 (absolute value); Montavon et al., Digital Signal
    Processing 73, 2018, section 4.1 (squared, Σ_i R_i = ‖∇f‖²). It says what would change the score, not
    what makes it.

    Args:
        f, target: as in `gradient`.
        squared: square instead of absolute value.

    Returns:
        x -> sensitivity, of the shape of x, not negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import gradients
        >>> print(gradients.sensitivity(lambda x: -(x**2), target=1)(jnp.array([[3.0, 1.0]])))
        [[0. 2.]]
    """
    signed = gradient(f, target=target)
    measure = jnp.square if squared else jnp.abs
    return lambda x, *args, **kwargs: measure(signed(x, *args, **kwargs))


@_hints.hinted
def input_x_gradient(f: Callable, *, target: Any = None) -> Callable:
    """Gradient × input, R_i = x_i ∂f/∂x_i.

    Shrikumar et al., arXiv 1605.01713, 2016. Equals LRP-0 for networks of ReLUs without biases (shown there
    too), and Σ_i R_i = f(x) there.

    Args:
        f, target: as in `gradient`.

    Returns:
        x -> relevance, of the shape of x.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import gradients
        >>> print(gradients.input_x_gradient(lambda x: x**2, target=0)(jnp.array([[3.0, 1.0]])))
        [[18.  0.]]
    """
    signed = gradient(f, target=target)
    return lambda x, *args, **kwargs: jnp.asarray(x) * signed(x, *args, **kwargs)


@_hints.hinted
def smooth(
    explain: Callable,
    *,
    noise: float | ArrayLike = 0.1,
    samples: int | None = None,
    key: jax.Array | None = None,
    batch: int = 4,
) -> Callable:
    """Mean of an explanation over noisy copies of the input: R(x) = 1/n Σ_k explain(x + δ_k), δ_k ~ N(0, σ²).

    Smilkov et al., arXiv 1706.03825, 2017, section 2.2 (SmoothGrad, for gradients). σ is a fraction of the
    range of the values of each sample, σ = noise · (max x − min x), as in the paper and in zennit.

    Args:
        explain: (x, ...) -> relevance, an array or a pytree; for example `lrpjax.relevance(f, composite,
            target=classes)`. Give it fixed classes: with "max" noise may change what is explained.
        noise: the fraction, or the δ themselves, [n, *x.shape]. zennit leaves its last copy unperturbed:
            δ_n = 0.
        samples: number n of copies, needed with a fraction.
        key: random key, needed with a fraction. Every call uses the same draws.
        batch: number of copies explained at once; memory grows with it and not with n.

    Returns:
        (x, ...) -> the mean, in the structure of explain's result.

    Raises:
        ValueError: if noise is negative or comes without samples or key, samples or batch is not positive;
            when called, if given δ do not have the shape of x.

    Example:
        >>> import jax, jax.numpy as jnp, lrpjax
        >>> from lrpjax import gradients
        >>> f = lambda x: x @ jnp.ones((4, 2))
        >>> explain = gradients.smooth(lrpjax.relevance(f, target=0), samples=10, key=jax.random.key(0))
        >>> print(explain(jnp.ones((1, 4))).round(4))
        [[1. 1. 1. 1.]]
    """
    check_positive("batch", batch)
    if np.ndim(noise) == 0:
        if samples is None or key is None:
            raise ValueError("noise given as a fraction needs samples and key")
        check_positive("samples", samples)
        if not isinstance(noise, Tracer) and np.asarray(noise) < 0:
            raise ValueError(f"noise must not be negative, and is {noise}")
        keys = jax.random.split(key, samples)
    else:
        keys = None

    def explain_smoothly(x: ArrayLike, *args: Any, **kwargs: Any) -> Any:
        x = jnp.asarray(x)
        if keys is None:
            seeds, delta = jnp.asarray(noise, x.dtype), lambda seed: seed
            if seeds.shape[1:] != x.shape:
                raise ValueError(f"noise must be [n, {', '.join(map(str, x.shape))}], not {seeds.shape}")
        else:
            axes = tuple(range(1, x.ndim))
            sigma = jnp.asarray(noise, x.dtype) * (x.max(axes, keepdims=True) - x.min(axes, keepdims=True))
            seeds, delta = keys, lambda seed: sigma * jax.random.normal(seed, x.shape, x.dtype)
        total = sum_batched(lambda seed: explain(x + delta(seed), *args, **kwargs), seeds, batch)
        return jax.tree.map(lambda r: r / len(seeds), total)

    return explain_smoothly


@_hints.hinted
def integrate(
    explain: Callable,
    *,
    steps: int | Sequence[float] = 20,
    baseline: ArrayLike = 0.0,
    times_input: bool = True,
    batch: int = 4,
) -> Callable:
    """Mean of an explanation along the straight path from a baseline x′ to the input, times the way.

    R(x) = (x − x′) ⊙ 1/m Σ_k explain(x′ + α_k (x − x′)). With the gradient it is integrated gradients,
    Sundararajan et al., ICML 2017, Eq. (1), and with α_k = k/m, k = 1 … m, its approximation, Eq. (3), as
    in zennit; then Σ_i R_i → f(x) − f(x′) as m grows (their Proposition 1;
    `lrpjax.metrics.completeness_gap` measures the rest).

    Args:
        explain: (x, ...) -> relevance of the shape of x. Either of the kind of a gradient (`gradient`,
            guided backpropagation, ...), or, with `times_input=False`, of the kind of a relevance, which
            has been multiplied by its input already (LRP).
        steps: m, or the points α_k themselves: `(np.arange(m) + 0.5) / m` (midpoints) needs fewer;
            iNNvestigate takes `np.arange(m) / m`.
        baseline: x′, broadcasts to x.
        times_input: whether to multiply by x − x′; without, the result is the plain mean along the path.
        batch: number of points explained at once; memory grows with it and not with m.

    Returns:
        (x, ...) -> relevance, of the shape of x.

    Raises:
        ValueError: if steps or batch is not positive or there are no points; when called, if the baseline
            does not broadcast to x.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import gradients
        >>> explain = gradients.integrate(gradients.gradient(lambda x: x**2, target=0), steps=[0.25, 0.75])
        >>> print(explain(jnp.array([[3.0, 1.0]])))
        [[9. 0.]]
    """
    check_positive("batch", batch)
    if isinstance(steps, int):
        check_positive("steps", steps)
        points = np.arange(1, steps + 1) / steps
    else:
        points = np.asarray(steps)
        if points.ndim != 1 or not points.size:
            raise ValueError(f"steps must be a number or a sequence of points on the path, not {steps!r}")

    def explain_path(x: ArrayLike, *args: Any, **kwargs: Any) -> Any:
        x = jnp.asarray(x)
        start = fill_like(baseline, x, "baseline")
        along = lambda alpha: explain(start + alpha * (x - start), *args, **kwargs)
        total = sum_batched(along, jnp.asarray(points, x.dtype), batch)
        way = (x - start if times_input else jnp.ones_like(x)) / len(points)
        return jax.tree.map(lambda r: way * r, total)

    return explain_path


@_hints.hinted
def smoothgrad(
    f: Callable,
    *,
    target: Any = None,
    noise: float | ArrayLike = 0.1,
    samples: int | None = None,
    key: jax.Array | None = None,
    batch: int = 4,
) -> Callable:
    """SmoothGrad: `smooth` of the signed `gradient`. Smilkov et al., arXiv 1706.03825, 2017, section 2.2.

    Args:
        f, target: as in `gradient`.
        noise, samples, key, batch: as in `smooth`.

    Returns:
        x -> relevance, of the shape of x.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lrpjax import gradients
        >>> explain = gradients.smoothgrad(lambda x: 2 * x, target=0, samples=5, key=jax.random.key(0))
        >>> print(explain(jnp.array([[3.0, 1.0]])))
        [[2. 0.]]
    """
    return smooth(gradient(f, target=target), noise=noise, samples=samples, key=key, batch=batch)


@_hints.hinted
def integrated_gradients(
    f: Callable,
    *,
    target: Any = None,
    steps: int | Sequence[float] = 20,
    baseline: ArrayLike = 0.0,
    batch: int = 4,
) -> Callable:
    """Integrated gradients: `integrate` of the `gradient`. Sundararajan et al., ICML 2017, Eq. (3).

    Args:
        f, target: as in `gradient`.
        steps, baseline, batch: as in `integrate`.

    Returns:
        x -> relevance, of the shape of x.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import gradients
        >>> explain = gradients.integrated_gradients(lambda x: x**2, target=0, steps=1000)
        >>> print(explain(jnp.array([[3.0, 1.0]])).round(1))
        [[9. 0.]]
    """
    return integrate(gradient(f, target=target), steps=steps, baseline=baseline, batch=batch)


MEASURES = ("logit", "probability", "class")


@_hints.hinted
def occlusion(
    f: Callable,
    *,
    patch: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    target: Target = "max",
    measure: str = "logit",
    fill: ArrayLike = 0.0,
    keep: bool = False,
    overlap: str = "mean",
    channel_axis: int | None = -1,
    batch: int = 8,
) -> Callable:
    """Occlusion map: what a sliding patch changes where it hides the input.

    A window w hides x: x_w = fill inside, x outside; its value is s(x) − s(x_w), and every element gets the
    mean of the values of the windows that cover it. Zeiler & Fergus, ECCV 2014, section 4.2 (score, and
    class predicted).

    Windows start at 0, stride, 2 stride, … and are cut at the border. zennit's `Occlusion` is `keep=True,
    overlap="sum"` with the same window and stride; where its windows cross the border they go on at the
    other side.

    Args:
        f: x -> scores [B, classes]; further arguments are passed on.
        patch: side of the window, one for all spatial axes or one for each.
        stride: likewise; None takes the patch.
        target: class of the scores: "max" (the largest for x), a class, or classes [B].
        measure: s is the score of the class ("logit"), its softmax ("probability"), or 1 as long as the
            class has the largest score and else 0 ("class", which with target "max" asks where the
            prediction flips).
        fill: broadcasts to x; see `lrpjax.metrics` for other fill-ins.
        keep: hide everything but the window, the value being s(x_w): what the window alone gives.
        overlap: "mean", or "sum" over the windows that cover an element.
        channel_axis: axis of the channels, hidden together; None if there is none.
        batch: number of windows evaluated at once.

    Returns:
        (x, ...) -> map of the shape of x, the channel axis being 1; 0 where no window comes (stride > patch).

    Raises:
        ValueError: if stride or batch is not positive, measure or overlap is unknown; when called, if the
            patch is larger than the image or the fill does not fit.
        TargetError: when called, if the target is no class.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import gradients
        >>> f = lambda x: x.sum((1, 2))
        >>> print(gradients.occlusion(f, patch=1)(jnp.arange(4.0).reshape(1, 2, 2, 1))[0, ..., 0])
        [[0. 1.]
         [2. 3.]]
    """
    check_positive("batch", batch)
    if measure not in MEASURES:
        raise ValueError(f"measure must be one of {', '.join(MEASURES)}, not {measure!r}")
    if target is None and measure != "logit":
        raise ValueError(f"measure={measure!r} needs classes: target must not be None")
    if overlap not in ("mean", "sum"):
        raise ValueError(f"overlap must be 'mean' or 'sum', not {overlap!r}")

    def explain(x: ArrayLike, *args: Any, **kwargs: Any) -> jax.Array:
        x = jnp.asarray(x)
        axes = [a for a in range(1, x.ndim) if channel_axis is None or a != channel_axis % x.ndim]
        sides = [x.shape[a] for a in axes]
        window = _per_axis("patch", patch, sides)
        moves = _per_axis("stride", window if stride is None else stride, sides)
        if any(w > side for w, side in zip(window, sides, strict=True)):
            raise ValueError(f"the patch {window} is larger than the image {tuple(sides)}")
        filling = fill_like(fill, x)
        y = f(x, *args, **kwargs)
        index = target_index(y, target)

        def score(y):
            if measure == "logit":
                return read(y, index)
            if measure == "probability":
                return read(jax.nn.softmax(y), index)
            predicted = jax.lax.argmax(y, 1, jnp.int32)
            return (predicted == jnp.asarray(index, jnp.int32)).astype(y.dtype)

        whole = score(y)

        def value(start):
            inside = jnp.ones((1,) * x.ndim, bool)
            for axis, first, width in zip(axes, start, window, strict=True):
                place = jnp.arange(x.shape[axis], dtype=start.dtype)
                along = (place >= first) & (place < first + width)
                inside &= along.reshape(-1, *(1,) * (x.ndim - axis - 1))
            hidden = score(f(jnp.where(inside ^ keep, filling, x), *args, **kwargs))
            change = (hidden if keep else whole - hidden).reshape(-1, *(1,) * (x.ndim - 1))
            return jnp.where(inside, change, jnp.zeros_like(change)), inside.astype(jnp.int32)

        starts = itertools.product(*(range(0, s, m) for s, m in zip(sides, moves, strict=True)))
        total, covered = sum_batched(value, jnp.asarray(list(starts), jnp.int32), batch)
        return total / jnp.maximum(covered, 1).astype(total.dtype) if overlap == "mean" else total

    return explain


def _per_axis(name: str, value: int | Sequence[int], sides: Sequence[int]) -> tuple[int, ...]:
    sizes = (value,) * len(sides) if isinstance(value, int) else tuple(value)
    if not sides or len(sizes) != len(sides):
        raise ValueError(f"{name} {value} does not fit an image with {len(sides)} spatial axes")
    for size in sizes:
        check_positive(name, size)
    return sizes


@_hints.hinted
def grad_cam(f: Callable, *, at: str, target: Any = "max", channel_axis: int = -1) -> Callable:
    """Grad-CAM at a named layer: where the channels that raise the score are active.

    L = max(0, Σ_k α_k A_k) with α_k the mean of ∂y/∂A_k over space; A_k are the channels of the layer's
    output. Selvaraju et al., ICCV 2017, Eqs. (1) and (2).

    Args:
        f: x -> scores; further arguments are passed on.
        at: path of the layer as in `lrpjax.relevance`; A is the value that leaves that scope last. The
            paper takes the last convolution after its ReLU. A layer and the BatchNorm right after it count as
            one: A is then the output of the BatchNorm.
        target: class whose score is differentiated, as in `gradient`.
        channel_axis: axis of the channels in A.

    Returns:
        (x, ...) -> map [B, *spatial] at the layer's resolution; `jax.image.resize` brings it to that of the
            input.

    Raises:
        PathError: when called, if no value leaves such a scope, or `at` is a glob.
        ValueError: when called, if A has no spatial axes.
        TargetError: when called, if the target does not fit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lrpjax import gradients
        >>> def f(x):
        ...     with jax.named_scope("features"):
        ...         h = jnp.maximum(x * jnp.array([1.0, -1.0]), 0.0)
        ...     return h.mean((1, 2)) @ jnp.array([[8.0], [4.0]])
        >>> print(gradients.grad_cam(f, at="features", target=0)(jnp.array([[[[1.0], [-1.0]]]])))
        [[[4. 2.]]]
    """

    def explain(x: ArrayLike, *args: Any, **kwargs: Any) -> jax.Array:
        program = _Tapped(f, composites.gradient(), (x, *args), kwargs, 0, at, False)
        if not program.single:
            raise PathError(f"Grad-CAM is taken at one path, not at {at!r}")
        y, _, pull = program.linearise()
        activation, cotangent = pull(output_relevance(y, target, "gradient"))
        channel = channel_axis % activation.ndim
        spatial = tuple(a for a in range(1, activation.ndim) if a != channel)
        if not spatial:
            shape = activation.shape
            raise ValueError(f"what leaves {at!r} has shape {shape}: no axes besides batch and channels")
        alpha = cotangent.mean(spatial, keepdims=True)
        return jax.nn.relu((alpha * activation).sum(channel))

    return explain


class _Tapped(Program):
    """Reads the pair (value, cotangent) at a scope in place of a relevance."""

    def read(self, value, x, c):
        return x, c


__getattr__ = _hints.missing("lrpjax.gradients")

"""Regions that are perturbed together, and what they are replaced by."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def patches(
    shape: tuple[int, ...], size: int | tuple[int, ...], *, channel_axis: int | None = -1
) -> np.ndarray:
    """Labels of patches that tile the spatial axes from the top left; the channels of a pixel go together.

    Where the size does not divide an axis the last patches are smaller. (Quantus pads on both sides
    instead, so that its first and last patches are.)

    Args:
        shape: of the input, [B, ...], channels included.
        size: side of a patch in elements, one for all spatial axes or one for each.
        channel_axis: axis of the channels in `shape`; None if there is none.

    Returns:
        int32 labels of the shape of one sample, the channel axis being 1; counted in row-major order.

    Raises:
        ValueError: if a side is not positive or larger than the image, or their number does not fit.

    Example:
        >>> from lrpjax import metrics
        >>> print(metrics.patches((8, 4, 4, 3), 2)[..., 0])
        [[0 0 1 1]
         [0 0 1 1]
         [2 2 3 3]
         [2 2 3 3]]
    """
    channel = None if channel_axis is None else channel_axis % len(shape)
    if channel == 0:
        raise ValueError("channel_axis counts from the batch axis, which is 0, and cannot be 0 itself")
    sides = [n for axis, n in enumerate(shape) if axis not in (0, channel)]
    size = (size,) * len(sides) if isinstance(size, int) else tuple(size)
    if not sides:
        raise ValueError(f"the input {shape} has no spatial axes besides batch and channels")
    if len(size) != len(sides):
        raise ValueError(f"{len(size)} patch sides {size} for {len(sides)} spatial axes of the input {shape}")
    if any(not 1 <= s <= n for s, n in zip(size, sides, strict=True)):
        raise ValueError(f"patch {size} must be at least 1 and not larger than the image {tuple(sides)}")
    labels = np.zeros(sides, np.int32)
    for axis, (s, n) in enumerate(zip(size, sides, strict=True)):
        index = np.arange(n) // s
        labels = labels * (index[-1] + 1) + index.reshape(-1, *(1,) * (len(sides) - axis - 1))
    labels = labels.astype(np.int32)
    return labels if channel is None else np.expand_dims(labels, channel - 1)


def channel_mean(x: ArrayLike, *, channel_axis: int | None = -1) -> jax.Array:
    """Mean of every channel over the spatial axes of its sample, as fill-in.

    Args:
        x: [B, ...].
        channel_axis: axis of the channels; None takes the mean of the whole sample.

    Returns:
        Of the rank of x, the spatial axes being 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> print(metrics.channel_mean(jnp.arange(8.0).reshape(1, 2, 2, 2)))
        [[[[3. 4.]]]]
    """
    x = jnp.asarray(x)
    keep = {0} if channel_axis is None else {0, channel_axis % x.ndim}
    return x.mean(tuple(a for a in range(x.ndim) if a not in keep), keepdims=True)


def uniform_noise(
    key: jax.Array, x: ArrayLike, *, low: ArrayLike | None = None, high: ArrayLike | None = None
) -> jax.Array:
    """Uniform noise, as fill-in.

    Samek et al. (IEEE TNNLS 28(11), 2017) use it and average over several draws.

    Args:
        key: random key.
        x: [B, ...]; gives shape and dtype.
        low, high: broadcast to x; None takes the smallest and the largest value in x.

    Returns:
        Of the shape of x.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> noise = metrics.uniform_noise(jax.random.key(0), jnp.zeros((2, 5)), low=1.0, high=2.0)
        >>> print(noise.shape, bool(((noise >= 1) & (noise < 2)).all()))
        (2, 5) True
    """
    x = jnp.asarray(x)
    low = x.min() if low is None else jnp.asarray(low, x.dtype)
    high = x.max() if high is None else jnp.asarray(high, x.dtype)
    return jax.random.uniform(key, x.shape, x.dtype, low, high)


def blur(x: ArrayLike, sigma: float, *, channel_axis: int | None = -1, truncate: float = 4.0) -> jax.Array:
    """Gaussian blur of the spatial axes, as fill-in; the border is continued with its own value.

    Quantus blurs with a box and zeros beyond the border instead.

    Args:
        x: [B, ...], floating.
        sigma: standard deviation, in elements.
        channel_axis: axis that is not blurred; None blurs all but the batch axis.
        truncate: the kernel reaches this many standard deviations to each side.

    Returns:
        Of the shape of x.

    Raises:
        ValueError: if sigma is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> print(metrics.blur(jnp.eye(5)[None, :, :, None], 1.0)[0, 2, :, 0].round(2))
        [0.12 0.22 0.28 0.22 0.12]
    """
    x = jnp.asarray(x)
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, not {sigma}")
    radius = int(truncate * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = jnp.asarray(kernel / kernel.sum(), x.dtype)
    convolve = jax.vmap(lambda row: jnp.convolve(row, kernel, mode="valid", precision="highest"))
    for axis in range(1, x.ndim):
        if channel_axis is None or axis != channel_axis % x.ndim:
            rows = jnp.moveaxis(x, axis, -1)
            padded = jnp.pad(rows.reshape(-1, rows.shape[-1]), ((0, 0), (radius, radius)), mode="edge")
            x = jnp.moveaxis(convolve(padded).reshape(rows.shape), -1, axis)
    return x


def translate(x: ArrayLike, shift: ArrayLike, *, axis: int, fill: ArrayLike = 0.0) -> jax.Array:
    """x moved along an axis; what comes in from beyond the border is `fill`.

    Args:
        x: [B, ...].
        shift: how far, an integer, which may be traced; towards larger indices if positive.
        axis: along which, counted with the batch.
        fill: broadcasts to x.

    Returns:
        Of the shape of x.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> print(metrics.translate(jnp.array([[1.0, 2.0, 3.0]]), 1, axis=1))
        [[0. 1. 2.]]
    """
    x, shift = jnp.asarray(x), jnp.asarray(shift)
    size = x.shape[axis]
    source = jnp.arange(size, dtype=shift.dtype) - shift
    inside = ((source >= 0) & (source < size)).reshape(-1, *(1,) * (x.ndim - 1 - axis % x.ndim))
    moved = jnp.take(x, jnp.clip(source, 0, size - 1), axis=axis)
    return jnp.where(inside, moved, jnp.asarray(fill, x.dtype))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearImputation:
    """Noisy linear imputation, as fill-in: a removed pixel is the weighted mean of its eight neighbours.

    For every removed pixel i: Σ_j w_ij (x_j − x_i) = 0, w = 1/6 for the four that share a side with it and 1/12
    for the four at its corners, of those that lie in the image; removed neighbours count with the value that they
    are given themselves. Then normal noise is added. Rong et al., ICML 2022 (arXiv 2202.00449). The
    linear system, which their code and Quantus solve with sparse matrices, is solved here by conjugate
    gradients, without a matrix. Where nothing of an image is left it becomes noise around 0.

    Args:
        noise: standard deviation, in the unit of x.
        key: random key; may be left out if noise is 0. Every call draws the same noise.
        channel_axis: axis of the channels of x, each of which is an image of its own.

    Raises:
        ValueError: if there is noise and no key; when called, if x is not a batch of images with channels.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> x = jnp.arange(9.0).reshape(1, 3, 3, 1)
        >>> removed = jnp.zeros(x.shape, bool).at[0, 1, 1, 0].set(True)
        >>> print(metrics.LinearImputation(noise=0.0)(jnp.where(removed, 100.0, x), removed)[0, 1, 1].round(4))
        [4.]
    """

    noise: float = 0.01
    key: jax.Array | None = None
    channel_axis: int = dataclasses.field(default=-1, metadata={"static": True})

    def __post_init__(self):
        if self.key is None and isinstance(self.noise, (int, float)) and self.noise != 0:
            raise ValueError("noise needs a key; without one give noise=0.0")

    def __call__(self, x: jax.Array, removed: jax.Array) -> jax.Array:
        if x.ndim != 4:
            raise ValueError(
                f"linear imputation is for images with channels, [B, H, W, C] or [B, C, H, W], not {x.shape}"
            )
        first = lambda v: jnp.moveaxis(v, self.channel_axis, 1)
        filled = jnp.moveaxis(jax.vmap(jax.vmap(_impute))(first(x), first(removed)), 1, self.channel_axis)
        if self.key is None:
            return filled
        return filled + jnp.asarray(self.noise, x.dtype) * jax.random.normal(self.key, x.shape, x.dtype)


_NEIGHBOURS = np.array([[1, 2, 1], [2, 0, 2], [1, 2, 1]]) / 12


def _impute(image, removed):
    """One channel [H, W]: CG on the removed pixels, whose system is symmetric and positive definite."""
    weights = jnp.asarray(_NEIGHBOURS, image.dtype)
    around = lambda v: jax.scipy.signal.convolve2d(v, weights, mode="same", precision="highest")
    total, zero = around(jnp.ones_like(image)), jnp.zeros_like(image)
    inside = lambda v: jnp.where(removed, v, zero)
    known = jnp.where(removed, zero, image)
    tolerance = float(jnp.finfo(image.dtype).eps) ** 0.75
    solution, _ = jax.scipy.sparse.linalg.cg(
        lambda v: inside(total * v - around(v)),
        inside(around(known)),
        tol=tolerance,
        maxiter=8 * sum(image.shape),
    )
    return known + inside(solution)

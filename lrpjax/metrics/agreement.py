"""How alike two maps are, sample by sample."""

import functools

import jax
import jax.numpy as jnp
from jax.scipy.stats import rankdata
from jax.typing import ArrayLike


@jax.jit
def pearson(a: ArrayLike, b: ArrayLike) -> jax.Array:
    """Pearson correlation over all elements of a sample.

    corr = Σ (a − ā)(b − b̄) / √(Σ (a − ā)² Σ (b − b̄)²).

    Does not show: whether the two maps agree in scale or offset.

    Args:
        a: [B, ...].
        b: [B, ...], of the same shape.

    Returns:
        [B], in [−1, 1]; NaN where a map is constant.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> print(metrics.pearson(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[5.0, 3.0, 1.0]])))
        [-1.]
    """
    # The squares of relevance that grew to 10²⁰, or shrank to 10⁻²⁰, are no float32 numbers; the scale is no matter.
    a, b = (_of_size_one(_centred(v)) for v in _pair(a, b))
    return jnp.sum(a * b, 1) / jnp.sqrt(jnp.sum(a * a, 1) * jnp.sum(b * b, 1))


@jax.jit
def spearman(a: ArrayLike, b: ArrayLike) -> jax.Array:
    """Spearman correlation: `pearson` of the ranks, equal values sharing their mean rank.

    Does not show: differences that keep the order. Large areas of equal relevance (a background of zeros)
    all share one rank and weigh as much as the object. The sign counts: pass |a|, |b| to ignore it (Adebayo
    et al. 2018 report both).

    Args:
        a: [B, ...].
        b: [B, ...], of the same shape.

    Returns:
        [B], in [−1, 1]; NaN where a map is constant.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> print(metrics.spearman(jnp.array([[1.0, 2.0, 9.0]]), jnp.array([[0.0, 0.1, 0.2]])).round(4))
        [1.]
    """
    a, b = _pair(a, b)
    return pearson(rankdata(a, axis=1).astype(a.dtype), rankdata(b, axis=1).astype(b.dtype))


@functools.partial(jax.jit, static_argnames="window")
def ssim(a: ArrayLike, b: ArrayLike, *, window: int = 7) -> jax.Array:
    """Structural similarity, the mean over all windows that lie inside the map.

    SSIM = (2 μ_a μ_b + c₁)(2 σ_ab + c₂) / ((μ_a² + μ_b² + c₁)(σ_a² + σ_b² + c₂)), c₁ = (0.01 L)², c₂ =
    (0.03 L)². Wang et al., IEEE Trans. Image Process. 13(4), 2004, Eq. (13), with uniform windows and
    unbiased (co)variances, as is the default of scikit-image; L is the range of the values of a and b
    together, per sample.

    Does not show: agreement of position at scales larger than the window. Two maps that are mostly
    background are alike whatever the object shows. Quantus passes flattened maps, so that its windows are
    lines of pixels.

    Args:
        a: [B, *spatial], one map without channels per sample.
        b: of the same shape.
        window: side of the windows, odd; in elements.

    Returns:
        [B], at most 1; NaN where both maps are the same constant.

    Raises:
        ValueError: if the shapes differ, or a window is even, less than 3 or larger than the map.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> a = jnp.arange(100.0).reshape(1, 10, 10)
        >>> print(metrics.ssim(a, a).round(4))
        [1.]
    """
    a, b = jnp.asarray(a), jnp.asarray(b)
    _pair(a, b)
    if window % 2 == 0 or window < 3 or window > min(a.shape[1:]):
        raise ValueError(f"window must be odd, at least 3 and fit into {a.shape[1:]}, not {window}")
    axes = tuple(range(1, a.ndim))
    size = (1,) + (window,) * len(axes)
    n, stride = window ** len(axes), (1,) * a.ndim
    total = lambda v: jax.lax.reduce_window(v, jnp.zeros((), v.dtype), jax.lax.add, size, stride, "VALID")
    mean = lambda v: total(v) / n
    span = jnp.maximum(a.max(axes), b.max(axes)) - jnp.minimum(a.min(axes), b.min(axes))
    c1, c2 = ((k * span.reshape(-1, *(1,) * len(axes))) ** 2 for k in (0.01, 0.03))
    mu_a, mu_b = mean(a), mean(b)
    unbias = n / (n - 1)
    var_a = unbias * (mean(a * a) - mu_a * mu_a)
    var_b = unbias * (mean(b * b) - mu_b * mu_b)
    cov = unbias * (mean(a * b) - mu_a * mu_b)
    top = (2 * mu_a * mu_b + c1) * (2 * cov + c2)
    return jnp.mean(top / ((mu_a * mu_a + mu_b * mu_b + c1) * (var_a + var_b + c2)), axes)


def _pair(a, b):
    a, b = jnp.asarray(a), jnp.asarray(b)
    if a.shape != b.shape:
        raise ValueError(f"the maps differ in shape: {a.shape} and {b.shape}")
    return a.reshape(len(a), -1), b.reshape(len(b), -1)


def _centred(v):
    return v - v.mean(1, keepdims=True)


def _of_size_one(v):
    """Rows over the power of two at their largest element: exact, and of a size whose squares can be written."""
    largest = jax.lax.stop_gradient(jnp.abs(v).max(1, keepdims=True))
    _, exponent = jnp.frexp(jnp.where(jnp.isfinite(largest), largest, 1))
    return jnp.ldexp(v, -exponent)

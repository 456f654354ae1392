"""The functions that clusterings and densities are, and their relevance."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike

from lrpjax.custom import custom_relevance
from lrpjax.errors import InputError, LrpjaxError


class ModelError(LrpjaxError, ValueError):
    """A model cannot be neuralised: it is not fitted, of another kind, or has a kernel that is not Gaussian.

    >>> from sklearn.cluster import KMeans
    >>> import lrpjax
    >>> lrpjax.neuralised.kmeans(KMeans(3))
    Traceback (most recent call last):
    ...
    lrpjax.neuralised.functions.ModelError: KMeans has no cluster_centers_: call fit first, ...
    """


def stiffness(f: "ClusterEvidence", x: ArrayLike) -> float:
    """A β for `kmeans` that fits the scale of data: 1 / mean of max_c f_c(x), as in the paper's
    demonstration.

    Args:
        f: the evidence, with any beta.
        x: data [..., D], floating-point.

    Raises:
        InputError: the data do not fit the model, or no evidence is above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import neuralised
        >>> f = neuralised.ClusterEvidence(jnp.array([[0.0], [4.0]]))
        >>> print(round(neuralised.stiffness(f, jnp.array([[0.0], [1.0], [4.0]])), 6))
        0.075
    """
    mean = float(ClusterEvidence(f.centers)(jnp.asarray(x)).max(-1).mean())
    if not mean > 0:
        raise InputError(f"the mean evidence of these data is {mean}, and no scale can be read off it")
    return 1 / mean


def check_beta(beta: Any, soft: bool) -> None:
    if soft and beta is None:
        raise ModelError("a soft minimum needs a beta, such as neuralised.stiffness(f, x)")
    if isinstance(beta, (int, float)) and not 0 < beta < math.inf:
        raise ModelError(f"beta must be positive and finite, but is {beta}; None stands for infinity")


def _points(x: Any, features: int) -> jax.Array:
    """x as a floating-point array [..., D]."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"x has dtype {x.dtype}, but distances to it need floating-point numbers")
    if x.ndim == 0 or x.shape[-1] != features:
        raise InputError(f"the model has {features} features, but x has shape {x.shape}")
    return x


# ----------------------------------------------------------------------------------------------- parts of relevance
# What uses these is compiled, also where the caller is not: no array [..., J, D] is made, as differences are
# summed as they are computed.


def _squares(x: jax.Array, points: jax.Array) -> jax.Array:
    """‖x − u_j‖², [..., J]."""
    return ((x[..., None, :] - points) ** 2).sum(-1)


def _weighted_squares(x: jax.Array, points: jax.Array, weights: jax.Array) -> jax.Array:
    """Σ_j a_j (x_i − u_ji)², [..., D]."""
    return (weights[..., None] * (x[..., None, :] - points) ** 2).sum(-2)


def _times_precision(difference: jax.Array, factors: jax.Array) -> jax.Array:
    """Λ_j δ_j with Λ = P Pᵀ, [..., J, D]. P is [J, D] or, with all entries, [J, D, D] or [1, D, D]."""
    if factors.ndim == 2:
        return difference * factors**2
    product = lambda v, matrix: jnp.matmul(v[..., None, :], matrix, precision="highest")[..., 0, :]
    return product(product(difference, factors), factors.swapaxes(-1, -2))


def _quotient(shares: jax.Array, totals: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(shares / totals, 0 where a total is 0; the shares of those, which are to be given in another way)."""
    none = totals == 0
    zero = jnp.zeros_like(shares)
    return (
        jnp.where(none, zero, shares / jnp.where(none, jnp.ones_like(totals), totals)),
        jnp.where(none, shares, zero),
    )


def _rivals(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """h_ck = s_c − s_k, [..., K, K], and where k ≠ c."""
    h = scores[..., :, None] - scores[..., None, :]
    return h, jnp.broadcast_to(~np.eye(scores.shape[-1], dtype=bool), h.shape)


def _shares(h: jax.Array, rival: jax.Array, beta: jax.Array | None) -> jax.Array:
    """softmin_k(β h_ck) over k ≠ c; without β all of it to the smallest, evenly where several are."""
    if beta is not None:
        return jax.nn.softmax(-beta * h, axis=-1, where=rival)
    first = (rival & (h == jnp.where(rival, h, jnp.inf).min(-1, keepdims=True))).astype(h.dtype)
    return first / first.sum(-1, keepdims=True)


# ------------------------------------------------------------------------------------------------- k-means


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ClusterEvidence:
    """The evidence for each cluster of a k-means, a function [..., D] -> [..., K]: f_c(x) = min_{k≠c} h_ck(x).

    h_ck(x) = ‖x − μ_k‖² − ‖x − μ_c‖² = w_ck · x + b_ck with w_ck = 2 (μ_c − μ_k) and b_ck = ‖μ_k‖² − ‖μ_c‖²
    (Kauffmann et al. 2022): a layer of linear units and a minimum. f_c(x) > 0 if and only if x is nearest to
    μ_c.

    Relevance: R_ck = R_c · exp(−β h_ck) / Σ_k exp(−β h_ck), and R_i = Σ_ck R_ck w_cki (x_i − m_cki) / h_ck
    with the midpoint m_ck = (μ_c + μ_k) / 2, a root of h_ck, so that Σ_i w_cki (x_i − m_cki) = h_ck exactly:
    the midpoint rule. Where h_ck is 0, x is a root itself and R_ck is shared in proportion to w², the
    direction to the centres. Differs from the demonstration in that nothing is added to the denominator.

    Explain the cluster that x is in (`target="max"`): all h_ck are at least f_c > 0 there. The evidence for
    another cluster is negative, its h_ck have both signs, and one that is nearly 0 makes relevances that are
    large and cancel, unless β is None.

    Args:
        centers: μ [K, D].
        beta: the stiffness β, in units of 1 / squared distance. Small: all competitors share; None: the
            nearest one takes all (β → ∞; several that are equally near share evenly).
        soft: f_c(x) = −1/β log Σ_{k≠c} exp(−β h_ck) in place of the minimum, which is 1/β times the log-odds
            log P(c | x) / (1 − P(c | x)) for P(c | x) ∝ exp(−β ‖x − μ_c‖²).

    Raises:
        ModelError: when called, beta is not positive, or None though soft. InputError: when called, x is not
            floating-point or has another number of features.

    Example:
        >>> import jax.numpy as jnp, lrpjax
        >>> from lrpjax import neuralised
        >>> f = neuralised.ClusterEvidence(jnp.array([[0.0, 0.0], [4.0, 0.0], [0.0, 6.0]]), beta=0.01)
        >>> x = jnp.array([1.0, 1.0])
        >>> print(f(x))
        [  8.  -8. -24.]
        >>> print(lrpjax.relevance(f, target=0)(x).round(1))
        [4.3 3.7]
    """

    centers: Any
    beta: Any = None
    soft: bool = dataclasses.field(default=False, metadata={"static": True})

    def __call__(self, x: ArrayLike) -> jax.Array:
        check_beta(self.beta, self.soft)
        x = _points(x, self.centers.shape[-1])
        beta = None if self.beta is None else jnp.asarray(self.beta, x.dtype)
        evidence = _soft_evidence if self.soft else _evidence
        return evidence(x, jnp.asarray(self.centers, x.dtype), beta)


@custom_relevance
@jax.jit
def _evidence(x, centers, beta):
    h, rival = _rivals(-_squares(x, centers))
    return jnp.where(rival, h, jnp.inf).min(-1)


@custom_relevance
@jax.jit
def _soft_evidence(x, centers, beta):
    h, rival = _rivals(-_squares(x, centers))
    return -logsumexp(-beta * h, axis=-1, where=rival) / beta


@jax.jit
def _evidence_relevance(residuals, R):
    x, centers, beta = residuals
    h, rival = _rivals(-_squares(x, centers))
    # w_cki (x_i − m_cki) = (x_i − μ_ki)² − (x_i − μ_ci)², whose sum is h_ck: weights of K squares in place of
    # K² terms.
    per_unit, at_root = _quotient(_shares(h, rival, beta) * R[..., None], h)
    R_x = _weighted_squares(x, centers, per_unit.sum(-2) - per_unit.sum(-1))
    apart = jnp.where(rival, _squares(centers, centers), jnp.ones_like(h))
    per_unit = jnp.where(rival, at_root / apart, jnp.zeros_like(h))
    # Σ_ck a_ck (μ_ci − μ_ki)², multiplied out.
    product = (per_unit[..., None] * centers).sum(-2)
    R_x += ((per_unit.sum(-1) + per_unit.sum(-2))[..., None] * centers**2 - 2 * centers * product).sum(-2)
    return R_x, jnp.zeros_like(centers), jax.tree.map(jnp.zeros_like, beta)


for _function in (_evidence, _soft_evidence):
    _function.defrelevance(lambda *args, f=_function.f: (f(*args), args), _evidence_relevance)


# ------------------------------------------------------------------------------------------------- Gaussian mixtures


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class MixtureEvidence:
    """The evidence for each component of a Gaussian mixture, a function [..., D] -> [..., K].

    f_c(x) = log P(c | x) / (1 − P(c | x)), the log-odds. With the logarithm of a component's density at x,
    l_k = log π_k N(x; μ_k, Σ_k), and h_ck = l_c − l_k, it is a soft minimum: f_c = −log Σ_{k≠c} exp(−h_ck).
    With equal weights and covariances σ² I, f_c is the soft evidence of k-means (`ClusterEvidence`) with
    β = 1 / (2 σ²), multiplied by β, and so is its relevance.

    Relevance: R_ck = R_c · exp(−h_ck) / Σ_k exp(−h_ck), and R_i = Σ_ck R_ck z_cki / h_ck, where z is the
    expansion of h_ck at the midpoint, feature by feature, so that Σ_i z_cki = h_ck exactly. With e = x − (μ_c
    + μ_k) / 2, a = μ_c − μ_k, the mean Λ̄ and the difference Δ = Λ_k − Λ_c of the two precisions:

        z_i = e_i (Λ̄ a)_i + ½ e_i (Δ e)_i + ⅛ a_i (Δ a)_i + b s_i,    s_i = a_i (Λ̄ a)_i / aᵀ Λ̄ a

    b is what h_ck holds besides the distances: weights and determinants; it is shared as the distance of the
    two means is (evenly between equal means). With one covariance for all, z_i = w_i (x_i − m_i) with w = Λ
    (μ_c − μ_k) and m the root of h_ck on the line through the means: the midpoint rule, moved as the weights
    move the border. For diagonal covariances z_i = ½ (x_i − μ_ki)² / σ²_ki − ½ (x_i − μ_ci)² / σ²_ci + b s_i.
    Where h_ck is 0, R_ck is shared by s. This extension of the papers to covariances and weights is our own.

    As with k-means, explain the component that x is in; with full covariances even there some z are negative.

    Args:
        means: μ [K, D].
        factors: P with Σ⁻¹ = Λ = P Pᵀ: [K, D] for diagonal covariances, else [K, D, D], or [1, D, D] if all
            share one.
        heights: log π_k + log |det P_k| − D/2 log 2π, [K], the logarithm of a component's density at its
            mean.

    Raises:
        InputError: when called, x is not floating-point or has another number of features.

    Example:
        >>> import jax.numpy as jnp, lrpjax
        >>> from lrpjax import neuralised
        >>> means = jnp.array([[0.0, 0.0], [4.0, 0.0]])
        >>> f = neuralised.MixtureEvidence(means, jnp.ones((2, 2)), jnp.log(jnp.array([0.5, 0.5])))
        >>> x = jnp.array([1.0, 3.0])
        >>> print(f(x).round(2), lrpjax.relevance(f, target=0)(x).round(2))
        [ 4. -4.] [4. 0.]
    """

    means: Any
    factors: Any
    heights: Any

    def __call__(self, x: ArrayLike) -> jax.Array:
        x = _points(x, self.means.shape[-1])
        return _log_odds(x, *(jnp.asarray(v, x.dtype) for v in (self.means, self.factors, self.heights)))


def _scores(x: jax.Array, means: jax.Array, factors: jax.Array, heights: jax.Array) -> tuple:
    """δ = x − μ_k and Λ_k δ, [..., K, D]; h and where k ≠ c, [..., K, K]."""
    difference = x[..., None, :] - means
    scaled = _times_precision(difference, factors)
    return difference, scaled, *_rivals(heights - 0.5 * (difference * scaled).sum(-1))


@custom_relevance
@jax.jit
def _log_odds(x, means, factors, heights):
    _, _, h, rival = _scores(x, means, factors, heights)
    return -logsumexp(-h, axis=-1, where=rival)


@jax.jit
def _log_odds_relevance(residuals, R):
    x, means, factors, heights = residuals
    difference, scaled, h, rival = _scores(x, means, factors, heights)
    per_unit, at_root = _quotient(_shares(h, rival, jnp.ones((), h.dtype)) * R[..., None], h)
    apart = means[:, None] - means
    own = _times_precision(apart, factors)  # Λ_k (μ_c − μ_k)
    mean, half = (own - own.swapaxes(0, 1)) / 2, (own + own.swapaxes(0, 1)) / 2  # Λ̄ a and ½ Δ a
    total = (apart * mean).sum(-1, keepdims=True)
    even = jnp.full_like(apart, 1 / means.shape[-1])
    parts = jnp.where(total > 0, apart * mean / jnp.where(total > 0, total, jnp.ones_like(total)), even)
    over_pairs = lambda weights, v: jnp.einsum("...ck,cki->...i", weights, v, precision="highest")
    R_x = over_pairs(per_unit * (heights[:, None] - heights) + at_root, parts)
    # ½ (δ_k Λ_k δ_k − δ_c Λ_c δ_c), feature by feature, shares e Λ̄ a + ½ e Δ e + ⅛ a Δ a as this is
    # symmetric in e and a …
    R_x += 0.5 * ((per_unit.sum(-2) - per_unit.sum(-1))[..., None] * difference * scaled).sum(-2)
    if factors.ndim == 3:
        # … and ½ (e Λ̄ a − a Λ̄ e), which is 0 for diagonal precisions, is the rest.
        # Λ̄ e = ½ (Λ_c δ_c + Λ_k δ_k) − ¼ Δ a; e = (x − o) − (m − o), with an o among the means, for digits.
        origin = means.mean(0)
        middle = (means[:, None] + means) / 2 - origin
        R_x += 0.5 * ((x - origin) * over_pairs(per_unit, mean) - over_pairs(per_unit, middle * mean))
        R_x += 0.25 * over_pairs(per_unit, apart * half)
        along = lambda axes: jnp.einsum(f"...ck,cki->...{axes}", per_unit, apart, precision="highest")
        R_x -= 0.25 * ((along("ci") + along("ki")) * scaled).sum(-2)
    return R_x, *(jnp.zeros_like(v) for v in (means, factors, heights))


_log_odds.defrelevance(lambda *args: (_log_odds.f(*args), args), _log_odds_relevance)


# ------------------------------------------------------------------------------------------------------- outlierness


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Outlierness:
    """How far x is from weighted points, a function [..., D] -> [...].

    o(x) = −1/γ log Σ_j α_j exp(−γ ‖x − u_j‖²): a layer of distances h_j = ‖x − u_j‖² − 1/γ log α_j and a soft
    minimum over them (Kauffmann, Müller, Montavon 2020), for kernel density estimates and one-class SVMs. With
    Σ α_j = 1, o(x) ≥ 0.

    Relevance: R_j = R · exp(−γ h_j) / Σ_j exp(−γ h_j), and R_i = Σ_j R_j (x_i − u_ji)² / ‖x − u_j‖²: each
    distance is shared among the features with its root at u_j. The offset −1/γ log α_j has no features of its
    own: R_j holds its share of o(x), and the squared differences, which are not negative, divide all of it.
    Where x is u_j, R_j is shared evenly among the features. (What the paper does with the offset could not be
    read; this conserves.)

    Args:
        points: u [J, D].
        log_weights: log α [J].
        gamma: γ.
        threshold: the outlierness above which the model calls x an outlier, if it does.

    Raises:
        InputError: when called, x is not floating-point or has another number of features.

    Example:
        >>> import jax.numpy as jnp, lrpjax
        >>> from lrpjax import neuralised
        >>> f = neuralised.Outlierness(jnp.array([[0.0, 0.0], [4.0, 0.0]]), jnp.log(jnp.array([0.5, 0.5])), 1.0)
        >>> y, R = lrpjax.value_and_relevance(f)(jnp.array([2.0, 2.0]))
        >>> print(y.round(3), R.round(3))
        8.0 [4. 4.]
    """

    points: Any
    log_weights: Any
    gamma: Any
    threshold: Any = None

    def __call__(self, x: ArrayLike) -> jax.Array:
        x = _points(x, self.points.shape[-1])
        return _outlier(x, *(jnp.asarray(v, x.dtype) for v in (self.points, self.log_weights, self.gamma)))


@custom_relevance
@jax.jit
def _outlier(x, points, log_weights, gamma):
    return -logsumexp(log_weights - gamma * _squares(x, points), axis=-1) / gamma


@jax.jit
def _outlier_relevance(residuals, R):
    x, points, log_weights, gamma = residuals
    distances = _squares(x, points)
    shares = jax.nn.softmax(log_weights - gamma * distances, axis=-1) * R[..., None]
    per_unit, at_root = _quotient(shares, distances)
    R_x = _weighted_squares(x, points, per_unit) + at_root.sum(-1, keepdims=True) / x.shape[-1]
    return R_x, *(jnp.zeros_like(v) for v in (points, log_weights, gamma))


_outlier.defrelevance(lambda *args: (_outlier.f(*args), args), _outlier_relevance)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class MixtureOutlierness:
    """How far the log-density of a Gaussian mixture is below its bound, a function [..., D] -> [...].

    o(x) = log p̄ − log p(x), where p̄ = Σ_k π_k N(μ_k; μ_k, Σ_k) is what the density would be if all components
    had their mean at x; so o(x) ≥ 0, and it does not depend on the units of the features, as log p does.
    `offset` is log p̄: scikit-learn's `score_samples` is offset − o(x). The outlierness is the soft minimum
    −log Σ_k α_k exp(−½ d_k) over the Mahalanobis distances d_k, with α_k = π_k N(μ_k; μ_k, Σ_k) / p̄, and is
    explained as `Outlierness` is (an extension of ours to covariances).

    Relevance: R_k = R · P(k | x), and R_i = Σ_k R_k q_ki / d_k with q_ki = (x − μ_k)_i (Λ_k (x − μ_k))_i,
    which sum to d_k: (x_i − μ_ki)² / σ²_ki for diagonal covariances; with correlations some are negative.
    Offsets go with R_k, as in `Outlierness`, and where x is a mean, R_k is shared evenly.

    Args:
        means, factors: as in `MixtureEvidence`.
        log_weights: log α [K].
        offset: log p̄; of no effect.

    Raises:
        InputError: when called, x is not floating-point or has another number of features.

    Example:
        >>> import jax.numpy as jnp, lrpjax
        >>> from lrpjax import neuralised
        >>> f = neuralised.MixtureOutlierness(jnp.zeros((1, 2)), jnp.array([[1.0, 0.5]]), jnp.zeros(1))
        >>> print(lrpjax.relevance(f)(jnp.array([4.0, 4.0])))
        [8. 2.]
    """

    means: Any
    factors: Any
    log_weights: Any
    offset: Any = 0.0

    def __call__(self, x: ArrayLike) -> jax.Array:
        x = _points(x, self.means.shape[-1])
        return _below(x, *(jnp.asarray(v, x.dtype) for v in (self.means, self.factors, self.log_weights)))


@custom_relevance
@jax.jit
def _below(x, means, factors, log_weights):
    return -logsumexp(log_weights - 0.5 * _mahalanobis(x, means, factors).sum(-1), axis=-1)


def _mahalanobis(x: jax.Array, means: jax.Array, factors: jax.Array) -> jax.Array:
    """δ_i (Λ δ)_i, [..., K, D], whose sum over i is δᵀ Λ δ: half of gradient × input, with its root at 0."""
    difference = x[..., None, :] - means
    return difference * _times_precision(difference, factors)


@jax.jit
def _below_relevance(residuals, R):
    x, means, factors, log_weights = residuals
    terms = _mahalanobis(x, means, factors)
    distances = terms.sum(-1)
    shares = jax.nn.softmax(log_weights - 0.5 * distances, axis=-1) * R[..., None]
    per_unit, at_root = _quotient(shares, jnp.maximum(distances, jnp.zeros_like(distances)))
    R_x = (per_unit[..., None] * terms).sum(-2) + at_root.sum(-1, keepdims=True) / x.shape[-1]
    return R_x, *(jnp.zeros_like(v) for v in (means, factors, log_weights))


_below.defrelevance(lambda *args: (_below.f(*args), args), _below_relevance)

"""The rules of weighted layers: how the relevance R_j of an output is shared among the inputs i.

Each formula stands in the rule's `back`. Notation: x the input, w the kernel, b the bias, z = wx + b, x⁺ =
max(x, 0), x⁻ = min(x, 0). The stabiliser is `z + ε·sign(z)` with sign(0) = +1; where the denominator is exactly
0 (only possible with ε = 0), the quotient is 0.

Rules that tell positive contributions from negative ones (z⁺, αβ, γ) run in one of two forms (`halves`). Where x ≥ 0
is known when tracing, because x follows a ReLU, say, the sums are x w⁺ and x w⁻. Where it is not, they are found from z
and A = |x||w|, Σ(x w)⁺ = (z + A) / 2 and Σ(x w)⁻ = (z − A) / 2, and relevance goes back along wᵀ and |w|ᵀ: with any of
the rules twice the flops of the gradient. A sum that is below 4 · 10⁻⁶ of A in float32 (7 · 10⁻¹⁵ in float64) drowns in
the rounding of that difference and counts as nothing; with one of 2 · 10⁻⁴ of A relevance is right to 2 · 10⁻⁴
(tests/benchmarks/results/widths.md). In bfloat16 and float16, where z has too few digits for a difference, in quantised
layers and in pools x is split into x⁺ and x⁻ instead, for up to twice as many products.

Sources: Bach et al. 2015 (PLoS ONE 10(7), e0130140), Montavon et al. 2017 (Pattern Recognition 65, Deep
Taylor), Montavon et al. 2019 (LRP overview), Andéol et al. 2021 (generalised γ), Kindermans et al. 2018
(patterns).
"""

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from lrpjax.errors import PatternError, RuleError
from lrpjax.rules.arithmetic import Layer, broadcasts, divide, halves, is_zero, negative, positive, uniform
from lrpjax.rules.base import LAYERS, LINEAR, PLAIN, RATIO, Rule, check, rule

SHARE = "share"
"""What `bias` is where the bias gives its share to the layer's inputs, evenly."""

MAGNITUDE = "magnitude"
"""What `bias` is where bias and inputs share by magnitude."""


class _Biased(Rule):
    """A rule whose denominator has the bias for a term; `Epsilon` says what its field `bias` chooses."""

    kinds: ClassVar = LAYERS

    def __post_init__(self):
        super().__post_init__()
        if not (isinstance(self.bias, bool) or self.bias in (SHARE, MAGNITUDE)):
            name = type(self).__name__
            raise RuleError(f'{name}: bias is True, False, "{SHARE}" or "{MAGNITUDE}", but is {self.bias!r}')

    @property
    def emits(self) -> str:  # type: ignore[override]
        return PLAIN if self.bias == SHARE else RATIO

    def split(self, layer: Layer, z: Any, R: Any) -> tuple[Any, Any]:
        """(the relevance that the rule shares, the bias in its denominator)."""
        if self.bias != MAGNITUDE:
            return R, layer.b if self.bias else 0.0
        u, b = abs(z - layer.b), abs(jnp.asarray(layer.b, z.dtype))
        return layer.lose(R, divide(b, u + b)), 0.0

    def kept(self, bias: Any) -> Any:
        """The part of a denominator that no input is credited with, of the bias's part of it."""
        return 0.0 if self.bias == SHARE else bias

    def given(self, layer: Layer, x: Any, c: Any, bias: Any) -> Any:
        """What `back` returns: c, the relevance of x divided by x; with what the bias of each output earned added to
        it, where it is given to the inputs."""
        if self.bias != SHARE:
            return c
        return x * c if is_zero(layer.b) else x * c + layer.evenly(bias)


@rule("bias")
class Epsilon(_Biased):
    """LRP-ε: R_i = x_i Σ_j w_ij R_j / (z_j + ε sign z_j) (Bach et al. 2015, eq. 58). ε = 0 is LRP-0, with 0/0 = 0.

    What `bias` says of the bias b_j, which includes what a BatchNorm adds, here and in the other rules that have it:

    - True: it keeps the share that is its own, as a contribution does, and relevance is lost to it.
    - False: it is left out of the denominator.
    - "share": it gives its share to the inputs, each the same part (the bias factor of the LRP toolbox, Lapuschkin et
      al. 2016, and of Arras et al. 2017): R_i = Σ_j (x_i w_ij + b_j / N_j) R_j / (z_j + ε sign z_j), with N_j the
      number of inputs of j, without padding; other rules weigh b_j first as they do contributions. Inputs that are
      zero get a share, too. Nothing is lost, but by neurons without a contribution of the sign that a rule asks for
      (under z⁺ those that nothing excites).
    - "magnitude": the inputs' sum u_j = z_j − b_j and the bias share R_j as |u_j| : |b_j|, and the rule divides the
      first part as if there was no bias (Hui & Binder 2019, for the shift of a BatchNorm). Neither part can exceed
      R_j where the two all but cancel.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f = lambda x: x @ jnp.array([[1.0], [-3.0]])
    >>> composite = lrpjax.Composite([("*", Epsilon(epsilon=0.0))])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([2.0, 1.0])))
    [ 2. -3.]
    """

    epsilon: Any = 1e-6
    bias: bool | str = True
    kinds: ClassVar = (*LINEAR, "product", "quotient", "norm")

    def kernels(self, w: Any) -> tuple[Any, ...]:
        return (w,)

    def back(self, layer: Layer, x: Any, z: Any, R: Any) -> Any:
        (w,) = layer.kernels
        R, b = self.split(layer, z, R)
        s = layer.share(R, z if b is layer.b else z - layer.b, self.epsilon, self.kept(b))
        return self.given(layer, x, layer.transpose(s, w), s * b)


class Norm(Rule):
    """The ε-rule of sums and pools, in proportion to the terms: R_i = x_i R_j / (Σ x + ε sign Σ x) (zennit's `Norm`).

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x.sum(), lrpjax.Composite([('*', Norm())])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([1.0, 2.0])).round(1))
    [1. 2.]
    """

    epsilon: Any = 1e-6
    kinds: ClassVar = LINEAR
    emits: ClassVar = RATIO
    bias: ClassVar[bool] = True
    kernels, back = Epsilon.kernels, Epsilon.back
    split, kept, given = Epsilon.split, Epsilon.kept, Epsilon.given


def is_epsilon(rule: Rule) -> bool:
    """Whether a rule's formula is that of `Epsilon`, whatever its class: then it is JAX's own transpose behind
    a stabilised denominator."""
    own = type(rule)
    return getattr(own, "back", None) is Epsilon.back and own.kernels is Epsilon.kernels  # type: ignore[attr-defined]


@rule("bias")
class Gamma(_Biased):
    """Generalised LRP-γ: positive contributions count 1 + γ times where z_j > 0, negative ones where z_j < 0
    (Andéol et al. 2021).

    R_i = Σ_j (x_i w_ij + γ (x_i w_ij)^±) R_j / Σ_i (x_i w_ij + γ (x_i w_ij)^±) with ± the sign of z_j; the bias
    b + γ b^± is a term of the denominator unless `bias=False`. z_j = 0 gives nothing. For x ≥ 0 and z > 0 this
    is the γ-rule of Montavon et al. 2019.

    With the bias the denominator is z_j + γ (Σ_i (x_i w_ij)^± + b^±), which has the sign of z_j and at least its size.
    Without, it is z_j − b_j + γ Σ_i (x_i w_ij)^±, while the sign is still that of z_j: where b_j makes z_j positive
    although z_j − b_j is negative (or the other way round), it crosses zero, and the relevance R_j / denominator has
    no bound but ε; through many layers (a BatchNorm folded into each) Σ|R| reaches 10³⁰. `relevance(..., check=True)`
    and `lrpjax.audit` say so, and name the layer.

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x @ jnp.array([3.0, -1.0]), lrpjax.Composite([('*', Gamma(1.0))])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([1.0, 2.0])).round(1))
    [ 1.5 -0.5]
    """

    gamma: Any = 0.25
    epsilon: Any = 1e-6
    bias: bool | str = True

    def __post_init__(self):
        super().__post_init__()
        check(lambda g: g >= 0, self.gamma, message=f"Gamma: gamma must not be negative, but is {self.gamma}")

    def kernels(self, w: Any, apart: bool = True) -> tuple[Any, ...]:
        g = (np if isinstance(w, np.ndarray) else jnp).asarray(self.gamma, w.dtype)
        return (*halves(w, apart), w + g * positive(w)) if apart else halves(w, apart)

    def back(self, layer: Layer, x: Any, z: Any, R: Any) -> Any:
        g = jnp.asarray(self.gamma, z.dtype)
        R, b = self.split(layer, z, R)
        linear, b = z - layer.b, jnp.asarray(b, z.dtype)
        above = layer.positive(x, z)
        b_gamma = b + g * positive(b)
        denominator = linear + g * above + b_gamma
        if not layer.rectified:
            b_gamma = jnp.where(z > 0, b_gamma, b + g * negative(b))
            below = linear + g * negative(linear - above) + b_gamma
            denominator = jnp.where(z > 0, denominator, below)
        s = layer.share(jnp.where(z == 0, 0.0, R), denominator, self.epsilon, self.kept(b_gamma))
        s_above, s_below = jnp.where(z > 0, s, 0.0), jnp.where(z < 0, s, 0.0)
        if layer.nonnegative and layer.rectified:
            c = layer.transpose(s_above, layer.kernels[2])
        else:
            c = layer.give(x, (1 + g) * s_above + s_below, s_above + (1 + g) * s_below)
        return self.given(layer, x, c, s * b_gamma)


@rule("bias")
class AlphaBeta(_Biased):
    """LRP-αβ: R_i = Σ_j (α (x_i w_ij)⁺ / z⁺_j − β (x_i w_ij)⁻ / z⁻_j) R_j, α − β = 1 (Bach et al. 2015, eq. 60,
    there with β of the other sign).

    z⁺_j = Σ_i (x_i w_ij)⁺ + b⁺_j and z⁻_j alike, stabilised by ε; with `bias=False` the bias is left out of both.

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x @ jnp.array([3.0, -1.0]), lrpjax.Composite([('*', AlphaBeta(2.0, 1.0))])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([1.0, 2.0])).round(1))
    [ 2. -1.]
    """

    alpha: Any = 2.0
    beta: Any = 1.0
    epsilon: Any = 1e-6
    bias: bool | str = True

    def __post_init__(self):
        super().__post_init__()
        check(
            lambda alpha, beta: (alpha >= 0) & (beta >= 0),
            self.alpha,
            self.beta,
            message=(
                f"AlphaBeta: alpha - beta must be 1, and neither negative, but they are {self.alpha} and "
                f"{self.beta}. (Bach et al. 2015 give beta the other sign, alpha + beta = 1: their 2 and -1 are "
                "AlphaBeta(2, 1) here)"
            ),
        )
        check(
            lambda alpha, beta: abs(alpha - beta - 1) < 1e-4,
            self.alpha,
            self.beta,
            message=(
                "AlphaBeta: alpha - beta must be 1 (relevance is conserved only then), but "
                f"{self.alpha} - {self.beta} is not"
            ),
        )

    def kernels(self, w: Any, apart: bool = True) -> tuple[Any, ...]:
        return halves(w, apart)

    def back(self, layer: Layer, x: Any, z: Any, R: Any) -> Any:
        R, b = self.split(layer, z, R)
        above, b = layer.positive(x, z), jnp.asarray(b, z.dtype)
        b_above, b_below = positive(b), negative(b)
        s_above = layer.share(
            jnp.asarray(self.alpha, z.dtype) * R, above + b_above, self.epsilon, self.kept(b_above)
        )
        if is_zero(self.beta):
            c = layer.give(x, jnp.where(above > 0, s_above, 0.0))
            return self.given(layer, x, c, s_above * b_above)
        below = layer.negative(x, z, above)
        s_below = layer.share(
            -jnp.asarray(self.beta, z.dtype) * R, below + b_below, self.epsilon, self.kept(b_below)
        )
        c = layer.give(x, jnp.where(above > 0, s_above, 0.0), jnp.where(below < 0, s_below, 0.0))
        return self.given(layer, x, c, s_above * b_above + s_below * b_below)


@rule("bias")
class ZPlus(_Biased):
    """The z⁺-rule: R_i = Σ_j (x_i w_ij)⁺ / (Σ_i (x_i w_ij)⁺ + b⁺_j) R_j (Montavon et al. 2017, eq. 15; αβ with
    α = 1, β = 0).

    With `bias=False` the bias is left out and relevance is conserved exactly.

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x @ jnp.array([3.0, -1.0]), lrpjax.Composite([('*', ZPlus())])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([1.0, 2.0])).round(1))
    [1. 0.]
    """

    epsilon: Any = 1e-6
    bias: bool | str = True

    kernels = AlphaBeta.kernels

    def back(self, layer: Layer, x: Any, z: Any, R: Any) -> Any:
        return AlphaBeta(1.0, 0.0, self.epsilon, self.bias).back(layer, x, z, R)


class ZBox(Rule):
    """The z^B-rule, for inputs known to lie in a box l ≤ x ≤ h, such as pixels (Montavon et al. 2017, eq. 19).

    R_i = Σ_j (x_i w_ij − l_i w⁺_ij − h_i w⁻_ij) / Σ_i (…) R_j. `low` and `high` are numbers, or arrays that
    broadcast against the function's input, where only movements of elements (transpositions, reshapes, slices, padding,
    whose elements get theirs for bounds) lead from it to the layer; or else against x. In a loop over a part of the
    input, that is what a turn is given. The bias cancels. Inputs that are exactly zero get their share.

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x @ jnp.array([3.0, -1.0]), lrpjax.Composite([('*', ZBox(low=0.0, high=4.0))])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([1.0, 2.0])).round(1))
    [0.6 0.4]
    """

    low: Any
    high: Any
    epsilon: Any = 1e-6
    emits: ClassVar = PLAIN
    of_argument: ClassVar = ("low", "high")

    def __post_init__(self):
        Rule.__post_init__(self)
        low, high = np.shape(self.low), np.shape(self.high)
        try:
            np.broadcast_shapes(low, high)
        except ValueError:
            raise RuleError(
                f"ZBox: low has shape {low} and high {high}, which do not broadcast against each other"
            ) from None
        check(lambda low, high: low <= high, self.low, self.high, message="ZBox: low must not exceed high")

    def back(self, layer: Layer, x: Any, z: Any, R: Any) -> Any:
        above, below = layer.kernels
        for name, bound in (("low", self.low), ("high", self.high)):
            if not broadcasts(jnp.shape(bound), x.shape):
                raise RuleError(
                    f"ZBox: {name} has shape {jnp.shape(bound)}, which does not broadcast against the "
                    f"layer's input of shape {x.shape}"
                )
        ones = layer.ones()
        low, high = (jnp.asarray(v, x.dtype) * ones for v in (self.low, self.high))
        if layer.coarse:
            total = layer.apply(x - low, above) + layer.apply(x - high, below)
        else:
            total = z - layer.b - layer.apply(low, above) - layer.apply(high, below)
        s = layer.share(R, total, self.epsilon)
        return (x - low) * layer.transpose(s, above) + (x - high) * layer.transpose(s, below)


def box(mean: Any, std: Any, lowest: Any = 0.0, highest: Any = 1.0) -> tuple[Any, Any]:
    """The bounds of z^B for inputs that are normalised by (x − mean) / std: `ZBox(*box(mean, std))`.

    low = (lowest − mean) / std and high = (highest − mean) / std, which is how far pixels can go (Montavon et al. 2017,
    eq. 19, asks for such bounds).

    Args:
        mean, std: what inputs are normalised with: numbers, or arrays or lists with an entry for each channel. These
            broadcast against inputs whose channels come last; give those of shape (C, 1, 1) where they come first.
        lowest, highest: the range before the normalisation: 0 and 1, or 0 and 255 for bytes.

    Returns:
        (low, high), numbers or arrays, of the shapes to which mean, std, lowest and highest broadcast.

    Raises:
        RuleError: a std is not positive, lowest exceeds highest, or the shapes do not broadcast against each other.

    >>> low, high = box(mean=[0.5, 0.25], std=[0.5, 0.25])
    >>> print(low, high)
    [-1. -1.] [1. 3.]
    """
    values = [np.asarray(v) if isinstance(v, (list, tuple)) else v for v in (mean, std, lowest, highest)]
    try:
        np.broadcast_shapes(*map(np.shape, values))
    except ValueError:
        shapes = ", ".join(str(np.shape(v)) for v in values)
        raise RuleError(
            f"box: mean, std, lowest and highest have shapes {shapes}, which do not broadcast against each other"
        ) from None
    mean, std, lowest, highest = values
    check(lambda std: std > 0, std, message=f"box: std must be positive, but is {std}")
    check(lambda a, b: a <= b, lowest, highest, message="box: lowest must not exceed highest")
    return (lowest - mean) / std, (highest - mean) / std


@rule("bias")
class WSquare(_Biased):
    """The w²-rule: R_i = Σ_j w²_ij / (Σ_i w²_ij + b²_j) R_j, for unbounded inputs (Montavon et al. 2017, eq.
    12; b² as zennit has it).

    With `bias=False` the b² is left out and relevance is conserved. It looks at the weights only: inputs that
    are zero get their share.

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x @ jnp.array([1.0, -1.0]), lrpjax.Composite([('*', WSquare())])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([5.0, 1.0])).round(1))
    [2. 2.]
    """

    epsilon: Any = 1e-6
    bias: bool | str = True
    emits: ClassVar = PLAIN  # type: ignore[assignment]

    def kernels(self, w: Any) -> tuple[Any, ...]:
        return (w * w,)

    def back(self, layer: Layer, x: Any, z: Any, R: Any) -> Any:
        (squared,) = layer.kernels
        R, b = self.split(layer, z, R)
        total, b = layer.apply(layer.ones(), squared), b * b
        s = layer.share(R, total + b, self.epsilon, self.kept(b))
        return self.given(layer, jnp.ones((), z.dtype), layer.transpose(s, squared), s * b)


class Flat(Rule):
    """The flat rule: every input of a neuron gets the same share, R_i = Σ_j R_j / (number of inputs of j)
    (Lapuschkin et al. 2019).

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x @ jnp.array([3.0, -1.0]), lrpjax.Composite([('*', Flat())])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([1.0, 2.0])).round(1))
    [0.5 0.5]
    """

    epsilon: Any = 1e-6
    emits: ClassVar = PLAIN

    def kernels(self, w: Any) -> tuple[Any, ...]:
        return (uniform(w),)

    def back(self, layer: Layer, x: Any, z: Any, R: Any) -> Any:
        return layer.evenly(R, self.epsilon)


@rule("attribution", "path", "mark")
class Pattern(Rule):
    """PatternNet: the layer is propagated with its pattern a for kernel, R_i = Σ_j a_ij R_j; PatternAttribution
    (`attribution`): with a ⊙ w.

    Kindermans et al. 2018, section 4.3. `composites.pattern_net` and `pattern_attribution` make it from fitted
    patterns; `path` and `mark` (see `mark_of`) say which kernel the pattern was fitted to.

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x @ jnp.array([3.0, -1.0]), lrpjax.Composite([('*', Pattern(jnp.array([1.0, 2.0])))])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([1.0, 2.0])).round(1))
    [1. 2.]
    """

    pattern: Any
    attribution: bool = False
    path: str = ""
    mark: tuple[float, ...] = ()
    emits: ClassVar = PLAIN
    looks: ClassVar = True

    def kernels(self, w: Any) -> tuple[Any, ...]:
        if tuple(w.shape) != tuple(self.pattern.shape):
            raise PatternError(
                f"the pattern of layer {self.path!r} has shape {self.pattern.shape}, but the layer's "
                f"kernel has shape {w.shape}"
            )
        known = isinstance(w, np.ndarray)
        if known and self.mark and not same_mark(mark_of(w), self.mark):
            raise PatternError(
                f"the pattern of layer {self.path!r} was fitted to other weights: fit the patterns again after training"
            )
        pattern = (np if known else jnp).asarray(self.pattern, w.dtype)
        return (pattern * w if self.attribution else pattern,)

    def back(self, layer: Layer, x: Any, z: Any, R: Any) -> Any:
        return layer.transpose(R, layer.kernels[0])

    def __str__(self) -> str:
        return "PatternAttribution" if self.attribution else "PatternNet"


def mark_of(w: Any) -> tuple[float, ...]:
    """Three numbers by which a kernel is known again: its mean, its root mean square and a projection, over at
    most 65536 entries."""
    entries = np.asarray(w).ravel()[:: max(1, w.size // 65536)].astype(np.float64)
    return (
        float(entries.mean()),
        float(np.sqrt((entries**2).mean())),
        float((entries * np.cos(np.arange(entries.size))).mean()),
    )


def same_mark(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether two marks are those of one kernel, up to rounding."""
    return len(a) == len(b) and bool(np.allclose(a, b, rtol=0, atol=1e-4 * abs(b[1])))

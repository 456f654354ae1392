"""The rules: how the relevance R_j of a unit's output is shared among its inputs i.

Every rule is a frozen dataclass and a pytree whose hyper-parameters are leaves, so `jax.vmap` over an ε or a γ works. Each formula stands in
the rule's `back`; nothing here knows of jaxprs. Notation: x the input, w the kernel, b the bias, z = wx + b, x⁺ = max(x, 0), x⁻ = min(x, 0).
The stabiliser is `z + ε·sign(z)` with sign(0) = +1; where the denominator is exactly 0 (only possible with ε = 0), the quotient is 0.

Sources: Bach et al. 2015 (PLoS ONE 10(7), e0130140), Montavon et al. 2017 (Pattern Recognition 65, Deep Taylor), Montavon et al. 2019
(LRP overview), Andéol et al. 2021 (generalised γ), Achtibat et al. 2024 (AttnLRP), Arras et al. 2017 (gates).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax.arithmetic import Layer as Layer
from lrpjax.arithmetic import divide as divide
from lrpjax.arithmetic import is_zero as is_zero
from lrpjax.arithmetic import negative as negative
from lrpjax.arithmetic import positive as positive
from lrpjax.arithmetic import quotient as quotient
from lrpjax.arithmetic import stabilize as stabilize
from lrpjax.errors import PatternError, RuleError

__all__ = [
    "AlphaBeta",
    "BetaSmooth",
    "Deconvnet",
    "Epsilon",
    "Flat",
    "Gamma",
    "Gradient",
    "GuidedBackprop",
    "Norm",
    "Pass",
    "Pattern",
    "Product",
    "Rule",
    "Stop",
    "Sum",
    "WSquare",
    "ZBox",
    "ZPlus",
]

RATIO, PLAIN = "ratio", "plain"
"""The two forms of a cotangent c of a value x. RATIO: the relevance of x is x·c. PLAIN: c is the relevance itself."""

LAYERS = ("dense", "conv")
LINEAR = (*LAYERS, "sum", "pool", "linear", "affine", "custom")


class Rule:
    """Base class of rules. `kinds` are the kinds of unit that a rule can explain; a composite passes it over for others.

    A rule for weighted layers defines `back(layer, x, z, R)`, which returns what `emits` says: the relevance of x (PLAIN) or that divided
    by x (RATIO, which neither divides by x nor loses anything); and `kernels(w)`, all that it computes from the kernel alone, which is
    done once and for all where the kernel is known when tracing.

    >>> isinstance(Epsilon(), Rule), Epsilon.kinds[:2], Flat.emits
    (True, ('dense', 'conv'), 'plain')
    """

    kinds: ClassVar[tuple[str, ...]] = LAYERS
    emits: ClassVar[str] = RATIO

    def __post_init__(self):
        epsilon = getattr(self, "epsilon", 0.0)
        _check(
            lambda e: e >= 0,
            epsilon,
            message=f"{type(self).__name__}: epsilon must not be negative, but is {epsilon}",
        )

    def kernels(self, w: jax.Array) -> tuple[jax.Array, ...]:
        return positive(w), negative(w)

    def back(self, layer: Layer, x: jax.Array, z: jax.Array, R: jax.Array) -> jax.Array:
        raise NotImplementedError(f"{type(self).__name__} is no rule for weighted layers")

    def __str__(self) -> str:
        shown = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.name == "bias" and value is True:
                continue
            text = (
                f"{value:g}"
                if isinstance(value, (int, float)) and not isinstance(value, bool)
                else _brief(value)
            )
            shown.append(f"{field.name}={text}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _brief(value: Any) -> str:
    return f"array{tuple(value.shape)}" if hasattr(value, "shape") else repr(value)


def rule(*static: str) -> Callable[[type], type]:
    """Makes a class a frozen dataclass and a pytree; the fields named are static, all others are leaves."""

    def register(cls: type) -> type:
        cls = dataclasses.dataclass(frozen=True)(cls)
        names = [f.name for f in dataclasses.fields(cls)]
        return jax.tree_util.register_dataclass(
            cls, [n for n in names if n not in static], [n for n in names if n in static]
        )

    return register


def _check(holds: Callable[..., Any], *values: Any, message: str) -> None:
    """Raises RuleError when a condition on hyper-parameters fails. Traced ones, and the placeholders of tree transformations, pass."""
    concrete = (int, float, np.ndarray, np.generic, jax.Array)
    if all(isinstance(v, concrete) and not isinstance(v, jax.core.Tracer) for v in values) and not np.all(
        holds(*(np.asarray(v) for v in values))
    ):
        raise RuleError(message)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether an array of one shape can be stretched to another."""
    return len(shape) <= len(to) and all(
        n in (1, m) for n, m in zip(reversed(shape), reversed(to), strict=False)
    )


@rule("bias")
class Epsilon(Rule):
    """LRP-ε: R_i = x_i Σ_j w_ij R_j / (z_j + ε sign z_j) (Bach et al. 2015, eq. 58). ε = 0 is LRP-0, with 0/0 = 0.

    The bias takes its share b_j of z_j out of the sum; with `bias=False` it is left out of the denominator.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f = lambda x: x @ jnp.array([[1.0], [-3.0]])
    >>> composite = lrpjax.Composite([("*", Epsilon(epsilon=0.0))])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([2.0, 1.0])))
    [ 2. -3.]
    """

    epsilon: Any = 1e-6
    bias: bool = True
    kinds: ClassVar = (*LINEAR, "product", "quotient", "norm")

    def kernels(self, w):
        return (w,)

    def back(self, layer, x, z, R):
        (w,) = layer.kernels
        s = (
            layer.share(R, z, self.epsilon, layer.b)
            if self.bias
            else layer.share(R, z - layer.b, self.epsilon)
        )
        return layer.transpose(s, w)


@rule()
class Norm(Rule):
    """The ε-rule of sums and pools, in proportion to the terms: R_i = x_i R_j / (Σ x + ε sign Σ x) (zennit's `Norm`).

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x.sum(), lrpjax.Composite([('*', Norm())])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([1.0, 2.0])).round(1))
    [1. 2.]
    """

    epsilon: Any = 1e-6
    kinds: ClassVar = LINEAR
    bias: ClassVar[bool] = True


@rule("bias")
class Gamma(Rule):
    """Generalised LRP-γ: positive contributions count 1 + γ times where z_j > 0, negative ones where z_j < 0 (Andéol et al. 2021).

    R_i = Σ_j (x_i w_ij + γ (x_i w_ij)^±) R_j / Σ_i (x_i w_ij + γ (x_i w_ij)^±) with ± the sign of z_j; the bias b + γ b^± is a term of the
    denominator unless `bias=False`. z_j = 0 gives nothing. For x ≥ 0 and z > 0 this is the γ-rule of Montavon et al. 2019.

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x @ jnp.array([3.0, -1.0]), lrpjax.Composite([('*', Gamma(1.0))])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([1.0, 2.0])).round(1))
    [ 1.5 -0.5]
    """

    gamma: Any = 0.25
    epsilon: Any = 1e-6
    bias: bool = True

    def __post_init__(self):
        Rule.__post_init__(self)
        _check(
            lambda g: g >= 0, self.gamma, message=f"Gamma: gamma must not be negative, but is {self.gamma}"
        )

    def kernels(self, w):
        g = (np if isinstance(w, np.ndarray) else jnp).asarray(self.gamma, w.dtype)
        return positive(w), negative(w), w + g * positive(w), w + g * negative(w)

    def back(self, layer, x, z, R):
        above, below, w_above, w_below = layer.kernels
        g = jnp.asarray(self.gamma, z.dtype)
        linear, b = z - layer.b, jnp.asarray(layer.b if self.bias else 0.0, z.dtype)
        z_above = layer.positive(x, above, below)
        b_gamma = b + g * positive(b)
        denominator = linear + g * z_above + b_gamma
        if not layer.rectified:
            b_gamma = jnp.where(z > 0, b_gamma, b + g * negative(b))
            below = linear + g * negative(linear - z_above) + b_gamma
            denominator = jnp.where(z > 0, denominator, below)
        s = layer.share(jnp.where(z == 0, 0.0, R), denominator, self.epsilon, b_gamma)
        s_above, s_below = jnp.where(z > 0, s, 0.0), jnp.where(z < 0, s, 0.0)

        def pull(
            w_above, w_below
        ):  # the kernels that favour positive and negative contributions for this sign of x
            c = layer.transpose(s_above, w_above)
            return c if layer.rectified else c + layer.transpose(s_below, w_below)

        return layer.pull(x, pull, w_above, w_below)


@rule("bias")
class AlphaBeta(Rule):
    """LRP-αβ: R_i = Σ_j (α (x_i w_ij)⁺ / z⁺_j − β (x_i w_ij)⁻ / z⁻_j) R_j, α − β = 1 (Bach et al. 2015, eq. 60, there with β of the other sign).

    z⁺_j = Σ_i (x_i w_ij)⁺ + b⁺_j and z⁻_j alike, stabilised by ε; with `bias=False` the bias is left out of both.

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x @ jnp.array([3.0, -1.0]), lrpjax.Composite([('*', AlphaBeta(2.0, 1.0))])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([1.0, 2.0])).round(1))
    [ 2. -1.]
    """

    alpha: Any = 2.0
    beta: Any = 1.0
    epsilon: Any = 1e-6
    bias: bool = True

    def __post_init__(self):
        Rule.__post_init__(self)
        _check(
            lambda alpha, beta: (alpha >= 0) & (beta >= 0),
            self.alpha,
            self.beta,
            message=f"AlphaBeta: alpha and beta must not be negative, but are {self.alpha} and {self.beta}",
        )
        _check(
            lambda alpha, beta: abs(alpha - beta - 1) < 1e-4,
            self.alpha,
            self.beta,
            message=f"AlphaBeta: alpha - beta must be 1 (relevance is conserved only then), but {self.alpha} - {self.beta} is not",
        )

    def back(self, layer, x, z, R):
        w_above, w_below = layer.kernels
        above = layer.positive(x, w_above, w_below)
        b = jnp.asarray(layer.b, z.dtype)
        b_above, b_below = (positive(b), negative(b)) if self.bias else (jnp.zeros_like(b),) * 2
        s_above = layer.share(jnp.asarray(self.alpha, z.dtype) * R, above + b_above, self.epsilon, b_above)
        if is_zero(self.beta):
            return layer.pull(x, lambda above, below: layer.transpose(s_above, above), w_above, w_below)
        # Σ_i (x_i w_ij)⁻ without a second forward pass; where it drowns in the rounding of that difference, it counts as large as the rounding
        below = jnp.minimum(negative(z - b - above), -jnp.asarray(layer.noise, z.dtype) * above)
        s_below = layer.share(-jnp.asarray(self.beta, z.dtype) * R, below + b_below, self.epsilon, b_below)
        pull = lambda above, below: layer.transpose(s_above, above) + layer.transpose(s_below, below)
        return layer.pull(x, pull, w_above, w_below)


@rule("bias")
class ZPlus(Rule):
    """The z⁺-rule: R_i = Σ_j (x_i w_ij)⁺ / (Σ_i (x_i w_ij)⁺ + b⁺_j) R_j (Montavon et al. 2017, eq. 15; αβ with α = 1, β = 0).

    With `bias=False` the bias is left out and relevance is conserved exactly.

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x @ jnp.array([3.0, -1.0]), lrpjax.Composite([('*', ZPlus())])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([1.0, 2.0])).round(1))
    [1. 0.]
    """

    epsilon: Any = 1e-6
    bias: bool = True

    def back(self, layer, x, z, R):
        return AlphaBeta(1.0, 0.0, self.epsilon, self.bias).back(layer, x, z, R)


@rule()
class ZBox(Rule):
    """The z^B-rule, for inputs known to lie in a box l ≤ x ≤ h, such as pixels (Montavon et al. 2017, eq. 19).

    R_i = Σ_j (x_i w_ij − l_i w⁺_ij − h_i w⁻_ij) / Σ_i (…) R_j. `low` and `high` are numbers, or arrays that broadcast against x. The bias
    cancels. Inputs that are exactly zero get their share.

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x @ jnp.array([3.0, -1.0]), lrpjax.Composite([('*', ZBox(low=0.0, high=4.0))])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([1.0, 2.0])).round(1))
    [0.6 0.4]
    """

    low: Any
    high: Any
    epsilon: Any = 1e-6
    emits: ClassVar = PLAIN

    def __post_init__(self):
        Rule.__post_init__(self)
        low, high = np.shape(self.low), np.shape(self.high)
        try:
            np.broadcast_shapes(low, high)
        except ValueError:
            raise RuleError(
                f"ZBox: low has shape {low} and high {high}, which do not broadcast against each other"
            ) from None
        _check(lambda low, high: low <= high, self.low, self.high, message="ZBox: low must not exceed high")

    def back(self, layer, x, z, R):
        above, below = layer.kernels
        for name, bound in (("low", self.low), ("high", self.high)):
            if not _broadcasts(jnp.shape(bound), x.shape):
                raise RuleError(
                    f"ZBox: {name} has shape {jnp.shape(bound)}, which does not broadcast against the layer's input of shape {x.shape}"
                )
        ones = layer.ones()
        low, high = (jnp.asarray(v, x.dtype) * ones for v in (self.low, self.high))
        s = layer.share(R, z - layer.b - layer.apply(low, above) - layer.apply(high, below), self.epsilon)
        return (x - low) * layer.transpose(s, above) + (x - high) * layer.transpose(s, below)


@rule("bias")
class WSquare(Rule):
    """The w²-rule: R_i = Σ_j w²_ij / (Σ_i w²_ij + b²_j) R_j, for unbounded inputs (Montavon et al. 2017, eq. 12; b² as zennit has it).

    With `bias=False` the b² is left out and relevance is conserved. It looks at the weights only: inputs that are zero get their share.

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x @ jnp.array([1.0, -1.0]), lrpjax.Composite([('*', WSquare())])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([5.0, 1.0])).round(1))
    [2. 2.]
    """

    epsilon: Any = 1e-6
    bias: bool = True
    emits: ClassVar = PLAIN

    def kernels(self, w):
        return (w * w,)

    def back(self, layer, x, z, R):
        (squared,) = layer.kernels
        total, b = layer.apply(layer.ones(), squared), layer.b * layer.b if self.bias else 0.0
        return layer.transpose(layer.share(R, total + b, self.epsilon, b), squared)


@rule()
class Flat(Rule):
    """The flat rule: every input of a neuron gets the same share, R_i = Σ_j R_j / (number of inputs of j) (Lapuschkin et al. 2019).

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x @ jnp.array([3.0, -1.0]), lrpjax.Composite([('*', Flat())])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([1.0, 2.0])).round(1))
    [0.5 0.5]
    """

    epsilon: Any = 1e-6
    emits: ClassVar = PLAIN

    def kernels(self, w):
        return ((np if isinstance(w, np.ndarray) else jnp).ones_like(w),)

    def back(self, layer, x, z, R):
        (ones,) = layer.kernels
        return layer.transpose(layer.share(R, layer.apply(layer.ones(), ones), self.epsilon), ones)


@rule("attribution", "path", "mark")
class Pattern(Rule):
    """PatternNet: the layer is propagated with its pattern a for kernel, R_i = Σ_j a_ij R_j; PatternAttribution (`attribution`): with a ⊙ w.

    Kindermans et al. 2018, section 4.3. `composites.pattern_net` and `pattern_attribution` make it from fitted patterns; `path` and `mark`
    (see `mark_of`) say which kernel the pattern was fitted to.

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

    def kernels(self, w):
        if tuple(w.shape) != tuple(self.pattern.shape):
            raise PatternError(
                f"the pattern of layer {self.path!r} has shape {self.pattern.shape}, but the layer's kernel has shape {w.shape}"
            )
        known = isinstance(w, np.ndarray)
        if known and self.mark and not same_mark(mark_of(w), self.mark):
            raise PatternError(
                f"the pattern of layer {self.path!r} was fitted to other weights: fit the patterns again after training"
            )
        pattern = (np if known else jnp).asarray(self.pattern, w.dtype)
        return (pattern * w if self.attribution else pattern,)

    def back(self, layer, x, z, R):
        return layer.transpose(R, layer.kernels[0])

    def __str__(self) -> str:
        return "PatternAttribution" if self.attribution else "PatternNet"


def mark_of(w: Any) -> tuple[float, ...]:
    """Three numbers by which a kernel is known again: its mean, its root mean square and a projection, over at most 65536 entries."""
    entries = np.asarray(w).ravel()[:: max(1, w.size // 65536)].astype(np.float64)
    return (
        float(entries.mean()),
        float(np.sqrt((entries**2).mean())),
        float((entries * np.cos(np.arange(entries.size))).mean()),
    )


def same_mark(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether two marks are those of one kernel, up to rounding."""
    return len(a) == len(b) and bool(np.allclose(a, b, rtol=0, atol=1e-4 * abs(b[1])))


@rule()
class Pass(Rule):
    """R_i = R_j, unchanged: the default of activations (AttnLRP's identity rule, eq. 9; zennit's `Pass`).

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: jnp.tanh(x), lrpjax.Composite([('*', Pass())])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([0.0, 20.0])).round(1))
    [0. 1.]
    """

    kinds: ClassVar = ("activation", "affine", "norm", "custom")


@rule()
class Gradient(Rule):
    """The plain chain rule, applied to the relevance itself: R_i = Σ_j ∂z_j/∂x_i R_j, as zennit does to modules that no rule names.

    It conserves nothing in general; `composites.gradient()` is this rule everywhere.

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x @ jnp.array([3.0, -1.0]), lrpjax.Composite([('*', Gradient())])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([1.0, 2.0])).round(1))
    [ 3. -1.]
    """

    kinds: ClassVar = ("*",)
    emits: ClassVar = PLAIN


@rule()
class Stop(Rule):
    """No relevance goes below this unit (CP-LRP stops at the attention weights, Ali et al. 2022).

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x @ jnp.array([3.0, -1.0]), lrpjax.Composite([('*', Stop())])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([1.0, 2.0])).round(1))
    [0. 0.]
    """

    kinds: ClassVar = ("*",)


@rule()
class Deconvnet(Rule):
    """Zeiler & Fergus 2014: the backward signal passes a ReLU where it is positive itself, R_i = max(R_j, 0). For units named "relu".

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: jax.nn.relu(x) @ jnp.array([2.0, -1.0, 3.0]), lrpjax.Composite([('*', Deconvnet())], default=Gradient(), method='gradient')
    >>> print(lrpjax.relevance(f, composite)(jnp.array([-1.0, 1.0, 1.0])).round(1))
    [2. 0. 3.]
    """

    kinds: ClassVar = ("relu",)
    emits: ClassVar = PLAIN

    def through(self, x, y, R, derivative):
        return positive(R)


@rule()
class GuidedBackprop(Rule):
    """Springenberg et al. 2015: the gradient through a ReLU, where it is positive, R_i = [x_i > 0] max(R_j, 0). For units named "relu".

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: jax.nn.relu(x) @ jnp.array([2.0, -1.0, 3.0]), lrpjax.Composite([('*', GuidedBackprop())], default=Gradient(), method='gradient')
    >>> print(lrpjax.relevance(f, composite)(jnp.array([-1.0, 1.0, 1.0])).round(1))
    [0. 0. 3.]
    """

    kinds: ClassVar = ("relu",)
    emits: ClassVar = PLAIN

    def through(self, x, y, R, derivative):
        return jnp.where(x > 0, positive(R), jnp.zeros((), R.dtype))


@rule()
class BetaSmooth(Rule):
    """R_i = R_j · sigmoid(β x_i) through a ReLU: a smooth derivative for second-order uses (zennit's `ReLUBetaSmooth`).

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: jax.nn.relu(x) @ jnp.array([2.0, -1.0, 3.0]), lrpjax.Composite([('*', BetaSmooth(1.0))], default=Gradient(), method='gradient')
    >>> print(lrpjax.relevance(f, composite)(jnp.array([0.0, 0.0, 9.0])).round(1))
    [ 1.  -0.5  3. ]
    """

    beta: Any = 10.0
    kinds: ClassVar = ("relu",)
    emits: ClassVar = PLAIN

    def through(self, x, y, R, derivative):
        return R * jax.nn.sigmoid(jnp.asarray(self.beta, x.dtype) * x)


@rule("share")
class Product(Rule):
    """How a product y = a·b·… of values that all carry relevance shares it (matrix products and attention included).

    share: "gate" (the default): a sigmoid gate receives nothing and the signal takes all (Arras et al. 2017); without a gate, uniform.
    "activated": a factor that comes straight from an activation receives nothing (the gate of SwiGLU in CP-LRP); without one, uniform.
    "selective": state-space models; the state, or else the input of the recurrence, takes all (Jafari et al. 2024; see `lrpjax.selective`).
    "uniform": each of N factors gets R/N (AttnLRP, Achtibat et al. 2024, eq. 7 and 13). "magnitude": in proportion to |a|, |b|, …
    (elementwise products only). An int: that factor, in the order of writing, takes all. Along an axis (`jnp.prod`, `jnp.cumprod`) all share alike.

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x[0] * x[1], lrpjax.Composite([('*', Product('magnitude'))])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([6.0, 2.0])).round(1))
    [9. 3.]
    """

    share: str | int = "gate"
    kinds: ClassVar = ("product",)

    def __post_init__(self):
        shares = ("gate", "activated", "selective", "uniform", "magnitude")
        if isinstance(self.share, bool) or not (isinstance(self.share, int) or self.share in shares):
            raise RuleError(
                f"Product: share must be {', '.join(map(repr, shares))} or the number of a factor, but is {self.share!r}"
            )


@rule("share")
class Sum(Rule):
    """How a sum y = a + b of two values that carry relevance (a residual connection) shares it.

    share: "native": in proportion to a and b, conserved exactly and divided by nothing (the default). "magnitude": in proportion to |a|, |b|.
    "uniform": half to each. An int: that operand takes all (0 is the first written).

    >>> import jax.numpy as jnp, lrpjax
    >>> f, composite = lambda x: x + 2 * x[::-1], lrpjax.Composite([('*', Sum('uniform'))])
    >>> print(lrpjax.relevance(f, composite)(jnp.array([1.0, 3.0])).round(1))
    [6. 6.]
    """

    share: str | int = "native"
    kinds: ClassVar = ("sum",)

    def __post_init__(self):
        if isinstance(self.share, bool) or self.share not in ("native", "uniform", "magnitude", 0, 1):
            raise RuleError(
                f"Sum: share must be 'native', 'magnitude', 'uniform' or the number of an operand, but is {self.share!r}"
            )

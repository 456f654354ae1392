"""Composites: which rule for which unit, and the usual presets, with zennit's defaults where zennit has the preset.

Every preset works on any network: what a preset does not name takes the default of its kind (activations pass
relevance on, softmax and normalisation have their own rules, products share uniformly, …; notebooks/which_rule.md
has the table).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from lrpjax import _hints, rules, select
from lrpjax.core.primitives import CHOICES, FAMILIES
from lrpjax.errors import RuleError
from lrpjax.rules import Rule
from lrpjax.rules.base import EVERY
from lrpjax.select import Selector, as_selector

METHODS = ("relevance", "gradient", "input_x_gradient")


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Composite:
    """An ordered list of (selector, rule): the first pair that matches a unit, and whose rule can explain its
    kind, gives the rule.

    Args:
        pairs: selectors (or path globs) with rules.
        default: the rule of all that no pair matches. None, the usual choice, is each kind's own default.
        method: "relevance"; or "gradient", where the target selects what to differentiate and the result is the
            cotangent of the input; or "input_x_gradient", the same multiplied by the input.
        primitives: families for primitives that lrpjax does not know, as {"name": "structural" | "sum" |
            "elementwise" | "stop"}.
        calls: plain functions that are traced in place of what a function calls by these names: a function under
            `jax.jit`, `custom_jvp` or `custom_vjp` by the function's name, a Pallas kernel or a foreign function
            by the name that it was given, anything else by its primitive's. A function is given the arrays that
            the call reads, in order (those that it closes over first, then the leaves of its arguments, without
            what is static), and returns what the call returns, with the same shapes and types. With a
            keyword-only parameter `static` it is also given the values of the `nondiff_argnums` of a `custom_vjp`.

    >>> from lrpjax import Composite, rules, select
    >>> composite = Composite([("head/*", rules.Epsilon(0.01)), (select.kind("conv"), rules.Gamma(0.1))])
    """

    pairs: Sequence[tuple[Selector | str, Rule]] = ()
    default: Rule | None = None
    method: str = "relevance"
    primitives: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    preset: str = ""
    calls: Mapping[str, Callable[..., Any]] = dataclasses.field(default_factory=dict[str, Callable[..., Any]])

    def __post_init__(self):
        checked: list[tuple[Selector, Rule]] = []
        for pair in self.pairs:  # checked all the same: mistakes are made without a type checker, too
            if not isinstance(pair, tuple) or len(pair) != 2:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise RuleError(f"Composite: each entry is a pair (selector, rule), but one is {pair!r}")
            if isinstance(pair[1], type):
                name = pair[1].__name__
                raise RuleError(f"Composite: {name} is a class; give an instance, {name}()")
            if not isinstance(pair[1], Rule):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise RuleError(
                    f"Composite: the second of a pair is a rule from lrpjax.rules, but is {pair[1]!r}"
                )
            made: type[tuple[Any, Rule]] = _PresetPair if isinstance(pair, _PresetPair) else tuple
            checked.append(made((as_selector(pair[0]), pair[1])))
        object.__setattr__(self, "pairs", tuple(checked))
        if self.method not in METHODS:
            raise RuleError(f"Composite: method must be one of {', '.join(METHODS)}, but is {self.method!r}")
        for name, family in self.primitives.items():
            if family not in CHOICES:
                raise RuleError(
                    f"Composite: the family of primitive {name!r} must be one of "
                    f"{', '.join(CHOICES)}, but is {family!r}"
                )
        for name, function in self.calls.items():
            if not isinstance(name, str) or not callable(function):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise RuleError(
                    f"Composite: calls are functions by the names of what they replace, but one is "
                    f"{name!r}: {function!r}"
                )

    @property
    def derives(self) -> bool:
        """Whether every unit of every function is explained by its derivative."""
        return not self.pairs and isinstance(self.default, rules.Gradient)

    @property
    def families(self) -> Mapping[str, str]:
        return {**FAMILIES, **self.primitives} if self.primitives else FAMILIES

    @property
    def whole(self) -> bool:
        """Whether loops stay as they are: where all is derivatives, or patterns, which count a model's layers."""
        return self.derives or any(isinstance(rule, rules.Pattern) for _, rule in self.pairs)

    def assign(self, units: Sequence[select.Selectable]) -> tuple[list[Rule | None], list["_Pair"]]:
        """The rule of each unit (None for what its kind itself chooses), and what became of each pair."""
        assigned: dict[int, Rule] = {}
        pairs: list[_Pair] = []
        for pair in self.pairs:
            selector, rule = as_selector(pair[0]), pair[1]
            chosen = [i for i, c in enumerate(selector.choose(units)) if c]
            fitting = [i for i in chosen if _is_for(rule, units[i], selector.names_units)]
            for i in fitting:
                assigned.setdefault(i, rule)
            found = [units[i] for i in chosen], [units[i] for i in fitting]
            pairs.append(_Pair(selector, rule, *found, isinstance(pair, _PresetPair)))
        return [assigned.get(i, self.default_of(u)) for i, u in enumerate(units)], pairs

    @property
    def ends(self) -> list[select.End]:
        """The selectors of a first or last unit in it."""
        return [end for selector, _ in self.pairs for end in select.ends_of(as_selector(selector))]

    def default_of(self, unit: select.Selectable) -> Rule | None:
        """The rule of a unit that no pair matches."""
        return self.default if self.default is not None and _is_for(self.default, unit) else None

    def tree_flatten(self) -> tuple[Sequence[Any], Any]:
        return (*tuple(r for _, r in self.pairs), self.default), (
            tuple((type(pair), pair[0]) for pair in self.pairs),
            self.method,
            tuple(self.primitives.items()),
            self.preset,
            tuple(self.calls.items()),
        )

    @classmethod
    def tree_unflatten(cls, static: Any, leaves: Sequence[Any]) -> "Composite":
        selectors, method, primitives, preset, calls = static
        self = object.__new__(cls)
        for name, value in (
            ("pairs", tuple(made((s, r)) for (made, s), r in zip(selectors, leaves[:-1], strict=True))),
            ("default", leaves[-1]),
            ("method", method),
            ("primitives", dict(primitives)),
            ("preset", preset),
            ("calls", dict(calls)),
        ):
            object.__setattr__(self, name, value)
        return self


class _PresetPair(tuple[Any, Rule]):
    """A pair of a preset's. Presets are for any network, so that it may match nothing, also where it was put into a
    composite of the user's own."""


@dataclasses.dataclass
class _Pair:
    """What became of a pair of a composite: the units that its selector chose, and those among them that its
    rule is for; whether it is a preset's."""

    selector: Selector
    rule: Rule
    chosen: list[Any]
    fitting: list[Any]
    preset: bool

    @property
    def names_units(self) -> bool:
        """Whether the selector names what it wants (a kind, a path without wildcards), so that a rule for
        something else is a mistake."""
        return self.selector.names_units


def _is_for(rule: Rule, unit: select.Selectable, by_name: bool = False) -> bool:
    """Whether a rule is for units of this kind, or with this function; by_name: where a selector names the unit."""
    kinds = (*rule.kinds, *rule.named) if by_name else rule.kinds
    return not {EVERY, unit.kind, unit.name}.isdisjoint(kinds)


DEFAULT = Composite((), preset="default")
"""Every kind's own choice."""

_SUMS = (select.kind("sum", "pool") & ~select.kind("max_pool"), rules.Norm(1e-6))
_DENSE = (select.kind("dense"), rules.Epsilon(1e-6))
_FIRST = select.first("conv", "dense")
_RECTIFIERS = select.kind(*rules.RECTIFIERS)


def _preset(name: str, *pairs: Any) -> Composite:
    return Composite([_PresetPair(pair) for pair in pairs], preset=name)


@_hints.hinted
def epsilon(epsilon: Any = 1e-6) -> Composite:
    """LRP-ε in every weighted layer (zennit has no name for it; its building block is `Epsilon`). ε = 0 is
    LRP-0 and leaves sums native.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f = lambda x: jax.nn.relu(jnp.convolve(x, jnp.array([2.0, -1.0]), 'valid')) @ jnp.array([2.0, -1.0])
    >>> print(lrpjax.relevance(f, epsilon())(jnp.array([1.0, 2.0, 3.0])).round())
    [-2. 10. -6.]
    """
    sums = () if rules.is_zero(epsilon) else (_SUMS,)
    return _preset("epsilon", (select.kind("conv", "dense"), rules.Epsilon(epsilon)), *sums)


@_hints.hinted
def epsilon_plus(epsilon: Any = 1e-6) -> Composite:
    """z⁺ in convolutions, ε in dense layers (zennit's `EpsilonPlus`).

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f = lambda x: jax.nn.relu(jnp.convolve(x, jnp.array([2.0, -1.0]), 'valid')) @ jnp.array([2.0, -1.0])
    >>> print(lrpjax.relevance(f, epsilon_plus())(jnp.array([1.0, 2.0, 3.0])).round())
    [ 0.  6. -4.]
    """
    return _preset(
        "epsilon_plus",
        (select.kind("conv"), rules.ZPlus()),
        (select.kind("dense"), rules.Epsilon(epsilon)),
        _SUMS,
    )


@_hints.hinted
def epsilon_plus_flat(epsilon: Any = 1e-6) -> Composite:
    """As `epsilon_plus`, with the flat rule in the first layer that is executed (zennit's `EpsilonPlusFlat`).

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f = lambda x: jax.nn.relu(jnp.convolve(x, jnp.array([2.0, -1.0]), 'valid')) @ jnp.array([2.0, -1.0])
    >>> print(lrpjax.relevance(f, epsilon_plus_flat())(jnp.array([1.0, 2.0, 3.0])).round())
    [ 3.  1. -2.]
    """
    base = epsilon_plus(epsilon)
    return _preset("epsilon_plus_flat", (_FIRST, rules.Flat()), *base.pairs)


@_hints.hinted
def epsilon_alpha2_beta1(epsilon: Any = 1e-6) -> Composite:
    """α2β1 in convolutions, ε in dense layers (zennit's `EpsilonAlpha2Beta1`).

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f = lambda x: jax.nn.relu(jnp.convolve(x, jnp.array([2.0, -1.0]), 'valid')) @ jnp.array([2.0, -1.0])
    >>> print(lrpjax.relevance(f, epsilon_alpha2_beta1())(jnp.array([1.0, 2.0, 3.0])).round())
    [-6. 16. -8.]
    """
    pairs = (
        (select.kind("conv"), rules.AlphaBeta(2.0, 1.0)),
        (select.kind("dense"), rules.Epsilon(epsilon)),
        _SUMS,
    )
    return _preset("epsilon_alpha2_beta1", *pairs)


@_hints.hinted
def epsilon_alpha2_beta1_flat(epsilon: Any = 1e-6) -> Composite:
    """As `epsilon_alpha2_beta1`, with the flat rule in the first layer (zennit's `EpsilonAlpha2Beta1Flat`).

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f = lambda x: jax.nn.relu(jnp.convolve(x, jnp.array([2.0, -1.0]), 'valid')) @ jnp.array([2.0, -1.0])
    >>> print(lrpjax.relevance(f, epsilon_alpha2_beta1_flat())(jnp.array([1.0, 2.0, 3.0])).round())
    [ 3.  1. -2.]
    """
    return _preset("epsilon_alpha2_beta1_flat", (_FIRST, rules.Flat()), *epsilon_alpha2_beta1(epsilon).pairs)


@_hints.hinted
def epsilon_gamma_box(low: Any, high: Any, epsilon: Any = 1e-6, gamma: Any = 0.25) -> Composite:
    """z^B in the first convolution, γ in the others, ε in dense layers (zennit's `EpsilonGammaBox`).

    `low` and `high` are the smallest and largest value that an input (after normalisation) can take: numbers,
    or arrays that broadcast against the input of the function, also where this transposes it first.
    `epsilon_gamma_box(*rules.box(mean, std))` takes them from how inputs are normalised.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f = lambda x: jax.nn.relu(jnp.convolve(x, jnp.array([2.0, -1.0]), 'valid')) @ jnp.array([2.0, -1.0])
    >>> print(lrpjax.relevance(f, epsilon_gamma_box(low=0.0, high=4.0))(jnp.array([1.0, 2.0, 3.0])).round())
    [ 3.  2. -3.]
    """
    return _preset(
        "epsilon_gamma_box",
        (select.first("conv"), rules.ZBox(low, high)),
        (select.kind("conv"), rules.Gamma(gamma)),
        (select.kind("dense"), rules.Epsilon(epsilon)),
        _SUMS,
    )


@_hints.hinted
def gamma_stages(
    low: Any = None,
    high: Any = None,
    gamma: Any = 0.25,
    upper: Any = 0.04,
    start: float = 2 / 3,
    epsilon: Any = 1e-6,
) -> Composite:
    """γ by stage, for maps that tell classes apart: ε in the dense layers and the last convolution, a small γ (`upper`)
    in the others of the last third of the network, γ below, z^B in the first one if bounds are given (after Montavon et
    al. 2019, section 10.3, who advise a rule for each stage).

    With one γ, or z⁺, in all convolutions, the maps of all classes of a deep network with BatchNorm are nearly one
    (EfficientNet-Lite0 on six photographs: a correlation of 0.97 between the top class and the runner-up, median 0.99);
    with a small one everywhere they are noise. Here it is 0.66, median 0.88, and flipping patches in the order of
    relevance separates the curves more (area 0.50 of the logit against 0.44). `lrpjax.tune` finds what is best for a
    model and images of your own.

    Args:
        low, high: the smallest and largest value that an input can take, as for `epsilon_gamma_box`; both or none:
            `gamma_stages(*rules.box(mean, std))`.
        gamma, upper: γ below `start`, and from there on.
        start: a part of the convolutions, from the input (0) to the output (1).
        epsilon: of all layers.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> conv = lambda x, *w: jax.nn.relu(jnp.convolve(x, jnp.array(w), 'valid'))
    >>> f = lambda x: conv(conv(conv(x, 1.0, 0.5), 1.0, -0.5), 2.0, 1.0) @ jnp.array([2.0])
    >>> R = lrpjax.relevance(f, gamma_stages())(jnp.array([2.0, 1.0, 3.0, 4.0]))
    >>> [f"{r:.1f}" for r in R]
    ['-0.7', '-0.5', '6.7', '14.6']
    """
    return _preset(
        "gamma_stages",
        *_box("gamma_stages", low, high, epsilon),
        (select.last("conv"), rules.Epsilon(epsilon)),
        (select.between(start, 1, "conv"), rules.Gamma(upper, epsilon)),
        (select.kind("conv"), rules.Gamma(gamma, epsilon)),
        (select.kind("dense"), rules.Epsilon(epsilon)),
        _SUMS,
    )


@_hints.hinted
def gamma_shared(low: Any = None, high: Any = None, gamma: Any = 1.0, epsilon: Any = 1e-9) -> Composite:
    """γ in every weighted layer with biases that share their relevance evenly among the inputs (`bias="share"` of
    `rules.Gamma`), for maps that sum to f(x) in networks with biases and BatchNorm; z^B in the first convolution if
    bounds are given.

    Under z⁺ and γ the biases of a deep network with BatchNorm take nearly all: of EfficientNet-Lite0's logits 0.02 %
    arrive at the input under z⁺, and 1.4 % under γ. Here 99 % do, and what the biases are given is spread out over what
    they see: the maps are smooth, and tell classes apart less still.

    Args:
        low, high: the smallest and largest value that an input can take, as for `epsilon_gamma_box`; both or none:
            `gamma_shared(*rules.box(mean, std))`.
        gamma: γ ≥ 1 keeps relevance bounded.
        epsilon: of all layers; small, for it takes relevance too.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f = lambda x: jax.nn.relu(jnp.convolve(x, jnp.array([2.0, -1.0]), 'valid') + 1.0) @ jnp.array([2.0, -1.0])
    >>> x = jnp.array([1.0, 2.0, 3.0])
    >>> R = lrpjax.relevance(f, gamma_shared())(x)
    >>> print(R.round(2), R.sum().round(2), f(x))
    [ 0.    4.48 -1.48] 3.0 3.0
    """
    return _preset(
        "gamma_shared",
        *_box("gamma_shared", low, high, epsilon),
        (select.kind("conv", "dense"), rules.Gamma(gamma, epsilon, bias="share")),
        _SUMS,
    )


def _box(preset: str, low: Any, high: Any, epsilon: Any) -> list[tuple[Selector, Rule]]:
    """The pair of the first convolution, where bounds are given."""
    if (low is None) != (high is None):
        raise RuleError(f"{preset}: give both low and high, or neither")
    return [] if low is None else [(select.first("conv"), rules.ZBox(low, high, epsilon))]


def excitation_backprop() -> Composite:
    """z⁺ in every weighted layer, the gradient through activations (Zhang et al. 2016; zennit's `ExcitationBackprop`).

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f = lambda x: jax.nn.relu(jnp.convolve(x, jnp.array([2.0, -1.0]), 'valid')) @ jnp.array([2.0, -1.0])
    >>> print(lrpjax.relevance(f, excitation_backprop())(jnp.array([1.0, 2.0, 3.0])).round())
    [0. 2. 0.]
    """
    return _preset(
        "excitation_backprop",
        (select.kind("conv", "dense"), rules.ZPlus()),
        _SUMS,
        (select.kind("activation"), rules.Gradient()),
    )


@_hints.hinted
def deep_taylor(low: Any = None, high: Any = None, epsilon: Any = 1e-6) -> Composite:
    """Deep Taylor decomposition (Montavon et al. 2017): z⁺ inside; at the input z^B if bounds are given
    (`deep_taylor(*rules.box(mean, std))`), else w². No biases anywhere.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f = lambda x: jax.nn.relu(jnp.convolve(x, jnp.array([2.0, -1.0]), 'valid')) @ jnp.array([2.0, -1.0])
    >>> print(lrpjax.relevance(f, deep_taylor())(jnp.array([1.0, 2.0, 3.0])).round(1))
    [0.4 1.6 0. ]
    """
    box = _box("deep_taylor", low, high, epsilon)
    first = box[0][1] if box else rules.WSquare(epsilon, bias=False)
    inner = rules.ZPlus(epsilon, bias=False)
    return _preset("deep_taylor", (_FIRST, first), (select.kind("conv", "dense"), inner))


def gradient() -> Composite:
    """The gradient of the target with respect to the input (sensitivity is its absolute value or its square).

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f = lambda x: jax.nn.relu(jnp.convolve(x, jnp.array([2.0, -1.0]), 'valid')) @ jnp.array([2.0, -1.0])
    >>> print(lrpjax.relevance(f, gradient())(jnp.array([1.0, 2.0, 3.0])).round())
    [-2.  5. -2.]
    """
    return Composite((), default=rules.Gradient(), method="gradient", preset="gradient")


def input_x_gradient() -> Composite:
    """The input times the gradient of the target.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f = lambda x: jax.nn.relu(jnp.convolve(x, jnp.array([2.0, -1.0]), 'valid')) @ jnp.array([2.0, -1.0])
    >>> print(lrpjax.relevance(f, input_x_gradient())(jnp.array([1.0, 2.0, 3.0])).round())
    [-2. 10. -6.]
    """
    return Composite((), default=rules.Gradient(), method="input_x_gradient", preset="input_x_gradient")


def deconvnet() -> Composite:
    """Deconvolution (Zeiler & Fergus 2014): the gradient, with only positive signals through ReLUs, whatever
    their input.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f = lambda x: jax.nn.relu(jnp.convolve(x, jnp.array([2.0, -1.0]), 'valid')) @ jnp.array([2.0, -1.0])
    >>> print(lrpjax.relevance(f, deconvnet())(jnp.array([1.0, 2.0, 3.0])).round())
    [-2.  4.  0.]
    """
    return Composite(
        ((_RECTIFIERS, rules.Deconvnet()),),
        default=rules.Gradient(),
        method="gradient",
        preset="deconvnet",
    )


def guided_backprop() -> Composite:
    """Guided backpropagation (Springenberg et al. 2015): the gradient, with only positive signals through active ReLUs.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f = lambda x: jax.nn.relu(jnp.convolve(x, jnp.array([2.0, -1.0]), 'valid')) @ jnp.array([2.0, -1.0])
    >>> print(lrpjax.relevance(f, guided_backprop())(jnp.array([1.0, 2.0, 3.0])).round())
    [-2.  4.  0.]
    """
    return Composite(
        ((_RECTIFIERS, rules.GuidedBackprop()),),
        default=rules.Gradient(),
        method="gradient",
        preset="guided_backprop",
    )


def beta_smooth(beta: Any = 10.0) -> Composite:
    """The gradient with a smooth derivative sigmoid(βx) in place of that of ReLUs (Dombrowski et al. 2019; zennit's
    `BetaSmooth`).

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f = lambda x: jax.nn.relu(jnp.convolve(x, jnp.array([2.0, -1.0]), 'valid')) @ jnp.array([2.0, -1.0])
    >>> print(lrpjax.relevance(f, beta_smooth(beta=0.0))(jnp.array([1.0, 2.0, 3.0])).round(1))
    [-1.   2.5 -1. ]
    """
    return Composite(
        ((_RECTIFIERS, rules.BetaSmooth(beta)),),
        default=rules.Gradient(),
        method="gradient",
        preset="beta_smooth",
    )


def pattern_net(patterns: Any) -> Composite:
    """PatternNet (Kindermans et al. 2018): the gradient, with the fitted pattern of each layer
    (`lrpjax.patterns.fit`) in place of its kernel.

    As in the paper it begins with the output itself: `target=c` explains the value of logit c, not 1.

    >>> import jax.numpy as jnp, lrpjax
    >>> from lrpjax import patterns
    >>> x, f = jnp.array([[2.0, 1.0], [0.0, 1.0], [2.0, -1.0], [0.0, -1.0]]), lambda x: x @ jnp.array([[1.0], [-1.0]])
    >>> print(lrpjax.relevance(f, pattern_net(patterns.fit(f, [x], "linear")))(x)[0])
    [ 0.5 -0.5]
    """
    return Composite(patterns.pairs(attribution=False), default=rules.Gradient(), preset="pattern_net")


def pattern_attribution(patterns: Any) -> Composite:
    """PatternAttribution (Kindermans et al. 2018): as `pattern_net`, with pattern times kernel, a root point
    estimator for Deep Taylor.

    >>> import jax.numpy as jnp, lrpjax
    >>> from lrpjax import patterns
    >>> x, f = jnp.array([[2.0, 1.0], [0.0, 1.0], [2.0, -1.0], [0.0, -1.0]]), lambda x: x @ jnp.array([[1.0], [-1.0]])
    >>> print(lrpjax.relevance(f, pattern_attribution(patterns.fit(f, [x], "linear")))(x)[0])
    [0.5 0.5]
    """
    return Composite(patterns.pairs(attribution=True), default=rules.Gradient(), preset="pattern_attribution")


@_hints.hinted
def attnlrp(epsilon: Any = 1e-6, share: str = "gate", gamma: Any = None) -> Composite:
    """AttnLRP (Achtibat et al. 2024): ε in linear layers, products shared uniformly, softmax by its Taylor expansion,
    normalisations with their statistics held fixed, activations passed through.

    `share` is that of `rules.Product`: "gate" gives sigmoid gates nothing (Arras et al. 2017) and is uniform
    otherwise; "uniform" gives them half, as proposition 3.3 does, which was written for attention. Through a
    gate relevance comes to a sum Wh + b that may be close to zero, where it grows: R_i = w_i h_i R / (Σ w h + b).
    Recurrent networks do that at every step, and nothing bounds it: over 256 steps of an LSTM or GRU, Σ|R| came to
    10⁴⁷ times the output with "uniform" in float64, beyond what float32 holds.

    With a `gamma`, the generalised γ-rule in linear layers, as the paper takes it for vision transformers.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f = lambda x: (jax.nn.softmax(x @ x.T) @ x)[1]
    >>> R = lrpjax.relevance(f, attnlrp(), target=1)(jnp.array([[1.0, 1.0], [0.0, 1.0]]))
    >>> print([f'{r:.2f}' for r in R.sum(1)])  # of each token
    ['0.25', '0.25']
    """
    return _preset(
        "attnlrp",
        (select.kind("conv", "dense"), _epsilon_or_gamma(epsilon, gamma)),
        (select.kind("product"), rules.Product(share)),
    )


@_hints.hinted
def cp_lrp(epsilon: Any = 1e-6, gamma: Any = None) -> Composite:
    """CP-LRP (Ali et al. 2022): as `attnlrp`, with no relevance through attention weights and through the
    activated factor of gated MLPs.

    With a `gamma`, the generalised γ-rule in linear layers. On the sentence transformer MiniLM (ten pairs of sentences;
    medians) γ = 0.05 keeps 95 % of the similarity, where ε keeps 88 %, with Σ|R| / |Σ R| 1.3 in place of 2.2, and is
    more faithful to the removal of words (area between the curves 0.28 of the similarity, against 0.25).

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f = lambda x: (jax.nn.softmax(x @ x.T) @ x)[1]
    >>> R = lrpjax.relevance(f, cp_lrp(), target=1)(jnp.array([[1.0, 1.0], [0.0, 1.0]]))
    >>> print([f'{r:.2f}' for r in R.sum(1)])  # of each token
    ['0.50', '0.50']
    """
    return _preset(
        "cp_lrp",
        (select.kind("softmax"), rules.Stop()),
        (select.kind("conv", "dense"), _epsilon_or_gamma(epsilon, gamma)),
        (select.kind("product"), rules.Product("activated")),
    )


@_hints.hinted
def relp(epsilon: Any = 0.0, fixed_attention: bool = False) -> Composite:
    """The coefficients of RelP (Jafari et al. 2025, arXiv 2508.21258, table 1): the scale of norms is held fixed (Ali
    et al. 2022), activations are passed through (Jafari et al. 2024), gates take half, attention is as its derivative
    has it, and layers take ε.

    For `lrpjax.linearise` and `lrpjax.circuits`, which multiply coefficients by changes. As a relevance it is not
    conserved: both factors of attention's products take all. `fixed_attention` holds the weights of attention fixed,
    the paper's AH-rule; without gates that is `cp_lrp`, which gives the activated factor of a gated MLP nothing.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> f = lambda x: (jax.nn.softmax(x @ x.T) @ x)[1]
    >>> x = jnp.array([[1.0, 1.0], [0.0, 1.0]])
    >>> lin = lrpjax.linearise(f, relp(), x)
    >>> weight = jnp.array([0.0, 1.0])
    >>> bool(jnp.allclose(lin.coefficients(unit=weight).input, jax.grad(lambda x: f(x) @ weight)(x)))
    True
    """
    return _preset(
        "relp",
        (select.kind("conv", "dense"), rules.Epsilon(epsilon)),
        *(((select.kind("softmax"), rules.Stop()),) if fixed_attention else ()),
        (select.contracted(), rules.Product("each")),
        (select.kind("product"), rules.Product("uniform")),
    )


@_hints.hinted
def mambalrp(epsilon: Any = 1e-6, gamma: Any = None) -> Composite:
    """MambaLRP (Jafari et al. 2024): as `attnlrp`, but in the recurrence of a state-space model relevance runs
    along the state and the input only; the discretised A, B and the readout C are held fixed. With a `gamma`,
    the generalised γ-rule in weighted layers (the paper takes 0.25).

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> step = lambda h, x: (jax.nn.sigmoid(x) * h + x, h)
    >>> f = lambda x: jax.lax.scan(step, jnp.zeros(2), x)[0].sum()
    >>> print(lrpjax.relevance(f, mambalrp())(jnp.array([[1.0, 2.0], [0.0, 0.0]])).round(2))
    [[0.5 1. ]
     [0.  0. ]]
    """
    return _preset(
        "mambalrp",
        (select.kind("conv", "dense"), _epsilon_or_gamma(epsilon, gamma)),
        (select.kind("product"), rules.Product("selective")),
    )


def _epsilon_or_gamma(epsilon: Any, gamma: Any) -> Rule:
    return rules.Epsilon(epsilon) if gamma is None else rules.Gamma(gamma, epsilon)


__getattr__ = _hints.missing("lrpjax.composites")

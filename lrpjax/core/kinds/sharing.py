"""Products and sums of values that all carry relevance: who takes which part of it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax.core.graph import Node, Value
from lrpjax.core.kinds.base import Kind, Propagation, Proportional
from lrpjax.core.kinds.linear import PROPORTIONAL
from lrpjax.core.units import Unit
from lrpjax.core.vjps import scale, wide
from lrpjax.errors import RuleError
from lrpjax.rules import PLAIN, RATIO, Factor, Product, Rule, is_epsilon
from lrpjax.rules.arithmetic import broadcasts

ADDITIONS = ("add", "sub", "add_any")


class ProductKind(Kind):
    """The native derivative gives each factor all of the relevance in ratio form; each takes its weight of it."""

    name = "product"
    default = Product("gate")
    takes = "products take Epsilon, Product and rules that define weights(values)"

    def by_default(self, unit):
        shared = super().by_default(unit)
        if unit.name == "reduce_product":
            shared.text = "all factors alike"
        elif isinstance(shared, Shared) and shared.alike:
            all_take = len(shared.receives) == len(unit.operands)
            shared.text = f"1/{len(unit.operands)} each" if all_take else "signal takes all"
        return shared

    def carry_out(self, unit, rule):
        sharing, epsilon = (Product("gate"), rule.epsilon) if is_epsilon(rule) else (rule, None)
        if not hasattr(sharing, "weights"):
            raise self.misfit()
        if unit.name == "reduce_product":
            return AlongAxis(unit, rule, sharing, epsilon)
        shared = Shared(unit, rule, sharing, RATIO, epsilon)
        if sharing is rule:
            shared.text += f": {len(shared.receives)} of {len(unit.operands)} factors"
        return shared


class SumKind(Kind):
    name = "sum"
    takes = "sums take Epsilon, Norm, Sum and (those of two terms) rules that define weights(values)"

    def unnamed(self, unit):
        return Proportional(unit, PROPORTIONAL)

    def carry_out(self, unit, rule):
        if is_epsilon(rule):
            return Proportional(unit, str(rule), epsilon=rule.epsilon)
        if not hasattr(rule, "weights"):
            raise self.misfit()
        if abstract_weights(rule, unit.operands) is None:
            return Proportional(unit, str(rule))
        (node,) = unit.nodes
        if node.name not in ADDITIONS or len(unit.operands) != 2:
            raise self.misfit(f"the sum that {node.name} makes is not one of two terms")
        return Shared(unit, rule, rule, PLAIN, None)


class Shared(Propagation):
    """Operands that take part of the relevance each, as a rule's `weights` say."""

    def __init__(self, unit: Unit, rule: Rule, sharing: Any, form: str, epsilon: Any):
        super().__init__(unit, str(rule), _takers(unit, sharing))
        self.sharing, self.form, self.epsilon = sharing, form, epsilon
        weights = abstract_weights(sharing, self.receives)
        if weights is None:
            raise RuleError("its weights are None, which only a sum can carry out")
        shapes = [np.shape(w) for w in weights]
        if unit.contracts and any(shape != () for shape in shapes):
            raise RuleError(
                "its weights are arrays, defined for elementwise products only, but that at "
                f"{unit.main.source} is a contraction"
            )
        for shape in shapes:
            if not broadcasts(shape, unit.out.shape):
                raise RuleError(f"its weights have shape {shape}, the product has {unit.out.shape}")
        numbers = all(isinstance(w, (int, float)) for w in weights)
        self.alike = numbers and all(w == 1 / len(weights) for w in weights)

    def forms(self, form, meant):
        return self.form, self.form

    def credits(self, form):
        return self.form == RATIO

    def part(self, value: Value, receivers: Sequence[Value]) -> float | None:
        """The share that an operand takes, where it is a number."""
        weight = abstract_weights(self.sharing, receivers)[receivers.index(value)]  # type: ignore[index]
        return weight if isinstance(weight, (int, float)) else None

    def run(self, frame):
        unit, gives = self.unit, frame.routes.gives[self.unit]
        takers = [v for v in unit.operands if v in gives]
        weights = self.sharing.weights(_Lazily(takers, lambda v: wide(frame.fixed(v))))
        negated = [unit.nodes[-1].name == "sub" and place == 1 for place in range(len(takers))]
        signed = [-w if minus else w for w, minus in zip(weights, negated, strict=True)]
        # A product of a value with itself: each of its readings takes the same.
        by_value = {v: [w for t, w in zip(takers, signed, strict=True) if t is v] for v in takers}
        alone = self.form == PLAIN and len(takers) == len(unit.operands)

        def operand(value, place):
            array = frame.operand(unit, value)
            if value not in gives:
                return array
            own = by_value[value]
            weight = signed[place] if alone else own[0] if len(own) == 1 else sum(own) / len(own)
            if isinstance(weight, (int, float)) and weight == 1:
                return array
            if np.ndim(weight):
                array = jnp.broadcast_to(array, np.broadcast_shapes(array.shape, np.shape(weight)))
            return scale(array, jnp.asarray(weight, wide(array).real.dtype))

        frame.native(unit, self.epsilon, operand)


class AlongAxis(Proportional):
    """A product along an axis, whose factors take the same share each."""

    def __init__(self, unit: Unit, rule: Rule, sharing: Any, epsilon: Any):
        super().__init__(unit, str(rule), epsilon=epsilon)
        two = [Factor((), False, False)] * 2
        alike = all(sharing.takes(two)) if hasattr(sharing, "takes") else True
        if not alike or list(abstract_weights(sharing, [unit.operands[0]] * 2) or ()) != [0.5, 0.5]:
            raise RuleError("it is not defined for the product along an axis, whose factors share alike")

    def run(self, frame):
        frame.native(self.unit, self.epsilon, share=1 / _number_of_factors(self.unit.nodes[0]))


def _takers(unit: Unit, sharing: Any) -> list[Value]:
    """The operands that take part, by a rule's `takes`."""
    if not hasattr(sharing, "takes"):
        return unit.operands
    signals = lambda v: unit.find_signals is None or v in unit.find_signals()
    factors = [
        Factor(v.shape, v in unit.gates, v in unit.activated, lambda v=v: signals(v)) for v in unit.operands
    ]
    taken = sharing.takes(factors)
    if len(taken) != len(factors):
        raise RuleError(f"its takes gave {len(taken)} answers for {len(factors)} factors")
    return [v for v, takes in zip(unit.operands, taken, strict=True) if takes]


def abstract_weights(sharing: Any, values: Sequence[Value]) -> Sequence[Any] | None:
    """The weights of values that are not computed yet: numbers, or, where they depend on the values, what shape
    and type they have. None stands for shares in proportion to the terms."""
    shapes = [jax.ShapeDtypeStruct(v.shape, v.aval.dtype) for v in values]
    seen: list[Any] = []

    def look(*arrays: jax.Array) -> None:
        made = sharing.weights([wide(a) for a in arrays])
        seen.extend(w if isinstance(w, (int, float)) else jax.typeof(jnp.asarray(w)) for w in made)

    try:
        weights = sharing.weights(shapes)
    except (TypeError, AttributeError):  # it computes with the values
        try:
            jax.eval_shape(look, *shapes)
        except (TypeError, ValueError) as error:
            sizes = ", ".join(str(v.shape) for v in values)
            raise RuleError(
                f"its weights cannot be computed for values of shapes {sizes} ({error})"
            ) from error
        weights = seen
    if weights is None:
        return None
    if len(weights) != len(values):
        raise RuleError(f"its weights are {len(weights)}, for {len(values)} values")
    return weights


class _Lazily(Sequence):
    """Values as arrays, each of which is made when it is looked at: most rules look at none."""

    def __init__(self, values: Sequence[Value], array_of: Callable[[Value], Any]):
        self.values, self.array_of = values, array_of

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return self.array_of(self.values[index])


def _number_of_factors(node: Node) -> np.ndarray:
    """Of each element of a product along axes."""
    x, p = node.inputs[0], node.params
    if node.name == "reduce_prod":
        return np.asarray(math.prod(x.shape[a] for a in p["axes"]))
    numbers = np.arange(1, x.shape[p["axis"]] + 1)
    return np.expand_dims(
        numbers[::-1] if p["reverse"] else numbers, [d for d in range(len(x.shape)) if d != p["axis"]]
    )

"""Functions with a derivative of their own (`jax.custom_jvp`, `jax.custom_vjp`) that stay one unit."""

from lrpjax.core.kinds.base import Derivative, Kind, PassOn, is_pass, refused
from lrpjax.core.units import Unit
from lrpjax.rules import Gradient


class CallKind(Kind):
    """A call that was not inlined. What its inside computes is not looked at: its own derivative counts, or a rule
    that passes relevance on."""

    name = "call"
    takes = "functions with a derivative of their own take Pass, where they keep the shape of one array"

    def unnamed(self, unit):
        if _by_derivative(unit):
            return Derivative(unit, str(Gradient()))
        call = unit.nodes[0].call
        return refused(
            unit,
            f"the function cannot be explained from inside: {call.obstacle}. Its own derivative can explain it: name "
            f"(select.kind('call'), rules.Gradient()), or (select.kind({call.name!r}), rules.Gradient()), in the "
            f"composite. A plain function is traced in its place with Composite(..., calls={{{call.name!r}: "
            "function}); custom_relevance gives it a relevance of its own",
        )

    def carry_out(self, unit, rule):
        same = len(unit.operands) == 1 and len(unit.outputs) == 1 and unit.operands[0].shape == unit.out.shape
        if is_pass(rule) and same:
            return PassOn(unit, str(rule), unit.operands[0])
        if _by_derivative(unit):
            return Derivative(unit, str(Gradient()))
        raise self.misfit()


def _by_derivative(unit: Unit) -> bool:
    """Whether a call stays one unit because all inside would have been explained by the plain derivative. Then a
    rule that its name happens to ask for is none for it."""
    return any(node.call is not None and node.call.obstacle is None for node in unit.nodes)

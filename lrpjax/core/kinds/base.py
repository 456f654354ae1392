"""What a kind of unit is, and the ways in which relevance goes through a unit that several kinds share.

A `Kind` answers one question: how does relevance go through a unit of mine under this rule? The answer is a
`Propagation`, which holds all that the rest of the core asks: who receives relevance, in which form of the
cotangent it is taken and given, how the unit is run, and what the plan says. A rule that a unit cannot carry
out is a RuleError, raised by the kind; nothing else decides about it.
"""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

from lrpjax.core.graph import Value
from lrpjax.core.kinds.functions import Own, arrays_of, run_own
from lrpjax.core.units import Unit
from lrpjax.core.vjps import relevance_of, unbroadcast
from lrpjax.errors import LrpjaxError, RuleError, UnsupportedError
from lrpjax.rules import PLAIN, RATIO, Gradient, Pass, Rule, Stop
from lrpjax.rules.base import doubts


class Propagation(abc.ABC):
    """How relevance goes through one unit.

        unit: the unit. text: what the plan says. receives: the operands that are handed relevance; all of them, if
        not given. rectifies: relevance reaches its operand only where that is positive. selects: every element of
        an output is one of an operand's, so that what holds of all the output's relevance holds of the operand's.
        bias_takes_rest: all that the unit loses, besides what a stabiliser absorbs, is the share of its constants.
        adds: it adds constants, and hands relevance on in proportion, where its output is zero too. linear: see
    `Rule`. valid: whether the rule's traced hyper-parameters are what they may be, a traced bool; the relevance is
    NaN where it is false.
    """

    rectifies: bool = False
    selects: bool = False
    bias_takes_rest: bool = False
    adds: bool = False
    linear: bool = True
    valid: Any = None

    def __init__(self, unit: Unit, text: str, receives: Sequence[Value] | None = None):
        self.unit, self.text = unit, text
        self.receives = unit.operands if receives is None else list(receives)

    @abc.abstractmethod
    def forms(self, form: str, meant: bool) -> tuple[str, str]:
        """(the form in which cotangents of the outputs are taken, that in which those of the operands are given).

        form: that in which they arrive, PLAIN if any output's is. meant: a rule further up wants it PLAIN;
            without, only the target does.
        """

    def part(self, value: Value, receivers: Sequence[Value]) -> float | None:
        """Which part of the relevance an operand takes, where several share it: a number, or None if it is
        another for each element."""
        return 1.0

    def credits(self, form: str) -> bool:
        """Whether a constant that it reads, times its own cotangent, is the relevance that goes through the constant,
        where the outputs' cotangents come in this form: the unit runs as JAX differentiates it, in ratio form."""
        return False

    @abc.abstractmethod
    def run(self, frame: Any) -> None:
        """Computes the unit's outputs in a `lrpjax.core.frame.Frame` and defines them there: by `frame.native`, or from
        `frame.operand(unit, value)` and `frame.fixed(value)` by `frame.define(value, array)`."""


class Proportional(Propagation):
    """JAX's own derivative in ratio form: relevance in proportion to the terms. With an epsilon, behind a
    stabilised denominator (ε-rule)."""

    def __init__(
        self,
        unit: Unit,
        text: str,
        receives: Sequence[Value] | None = None,
        epsilon: Any = None,
        bias_takes_rest: bool = False,
    ):
        super().__init__(unit, text, receives)
        if any(unit.operands.count(v) > self.receives.count(v) for v in self.receives):
            raise RuleError("a value that receives relevance is also read where none is received")
        self.epsilon = None if isinstance(epsilon, (int, float)) and epsilon == 0 else epsilon
        self.bias_takes_rest = bias_takes_rest

    def forms(self, form, meant):
        return RATIO, RATIO

    def credits(self, form):
        return True

    def run(self, frame):
        frame.native(self.unit, self.epsilon)


class Derivative(Propagation):
    """The chain rule on the relevance itself."""

    def forms(self, form, meant):
        return PLAIN, PLAIN

    def run(self, frame):
        frame.native(self.unit)


class Along(Propagation):
    """Relevance moves along with the elements, in either form."""

    selects = True

    def forms(self, form, meant):
        return form, form

    def credits(self, form):
        return form == RATIO

    def run(self, frame):
        frame.native(self.unit)


class Cut(Propagation):
    """No relevance goes on."""

    def __init__(self, unit: Unit, text: str):
        super().__init__(unit, text, ())

    def forms(self, form, meant):
        return form, form

    def run(self, frame):
        frame.bind_fixed(self.unit)


class PassOn(Propagation):
    """The relevance of the output becomes that of one operand, unchanged."""

    def __init__(self, unit: Unit, text: str, receiver: Value):
        super().__init__(unit, text, (receiver,))

    def forms(self, form, meant):
        return PLAIN, PLAIN

    def run(self, frame):
        form = frame.routes.form[self.unit.out]
        backward = lambda x, rest, y, c: unbroadcast(relevance_of(y, c, form), x.shape)
        run_own(frame, Own(self.unit, self.receives[0], backward))


class Line(PassOn):
    """A map of one signal by fixed values: relevance goes to the signal, in proportion in ratio form, unchanged
    in plain form."""

    def forms(self, form, meant):
        return form, form

    def credits(self, form):
        return form == RATIO

    def run(self, frame):
        if frame.routes.takes[self.unit] == PLAIN:
            super().run(frame)
        else:
            frame.native(self.unit)


class Refused(Propagation):
    """No rule explains the unit: an error, if relevance reaches it."""

    def __init__(self, unit: Unit, error: type[LrpjaxError], line: str):
        super().__init__(unit, "refused")
        self.error, self.line = error, line

    def forms(self, form, meant):
        return RATIO, RATIO

    def run(self, frame):
        raise self.error(self.line)


class Kind(abc.ABC):
    """One kind of unit: what its units do under each rule.

    name: what units, selectors and plans call it. default: the rule of a unit that no pair of a composite
    names; without one, `unnamed` says what happens to it. shown: whether a plan lists its units and a selector
    finds them. stands_for_inside: whether a value inside a unit (a convolution before its BatchNorm) may be
    named for the unit's output. takes: in words, the rules that its units can carry out.

    A new kind defines `name`, `takes`, and `default` or `unnamed`; where it takes rules of its own, `carry_out`.
    """

    name: ClassVar[str]
    takes: ClassVar[str]
    default: Rule | None = None
    shown: ClassVar[bool] = True
    stands_for_inside: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        missing = [n for n in ("name", "takes") if not isinstance(getattr(cls, n, None), str)]
        if not missing and cls.default is None and cls.unnamed is Kind.unnamed:
            missing = ["default (a rule) or unnamed (a method)"]
        if missing and not cls.__name__.startswith("_"):
            raise TypeError(f"the kind {cls.__name__} lacks {' and '.join(missing)}")

    def explain(self, unit: Unit, rule: Rule | None) -> Propagation:
        """How relevance goes through a unit under a rule; None stands for what the kind itself chooses.

        Raises:
            RuleError: the unit cannot carry the rule out. The message says why, but not where.
        """
        if rule is None:
            return self.unnamed(unit) if self.default is None else self.by_default(unit)
        arrays_of(rule)  # its fields are checked here, where the unit is known
        how = self._as_ruled(unit, rule)
        how.valid = doubts(rule)
        return how

    def _as_ruled(self, unit: Unit, rule: Rule) -> Propagation:
        if not has_formula(rule):
            if isinstance(rule, Gradient):
                return Derivative(unit, str(rule))
            if isinstance(rule, Stop):
                return Cut(unit, str(rule))
        return self.carry_out(unit, rule)

    def by_default(self, unit: Unit) -> Propagation:
        """How relevance goes through a unit under the kind's default rule."""
        return self.explain(unit, self.default)

    def unnamed(self, unit: Unit) -> Propagation:
        """How relevance goes through a unit that no rule names, where the kind has no default rule."""
        raise NotImplementedError(f"the kind {self.name!r} has neither a default rule nor another way")

    def carry_out(self, unit: Unit, rule: Rule) -> Propagation:
        """As `explain`, for all rules but `Gradient` and `Stop`, which every unit can carry out."""
        raise self.misfit()

    def misfit(self, why: str = "") -> RuleError:
        """The error for a rule that a unit of this kind cannot carry out."""
        return RuleError(f"{why or 'its formula does not fit'}; {self.takes}, Gradient() or Stop()")


def has_formula(rule: Rule) -> bool:
    return any(hasattr(rule, method) for method in ("back", "through", "weights"))


def is_pass(rule: Rule) -> bool:
    return isinstance(rule, Pass) and not has_formula(rule)


def refused(unit: Unit, reason: str) -> Refused:
    """For a unit that no rule of the literature explains."""
    return Refused(unit, UnsupportedError, f"{unit.nodes[-1].place}: {reason}")


def by_derivative(unit: Unit) -> str:
    """What an error says of the choice to explain a function by its derivative."""
    return (
        f"Its derivative can explain it: name (select.kind({unit.name!r}), rules.Gradient()) in the composite; or "
        "detach it with jax.lax.stop_gradient, or give it a relevance of its own with custom_relevance"
    )

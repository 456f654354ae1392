"""Selectors: which units of a function a rule is for. Combine them with `&`, `|` and `~`.

>>> from lrpjax import select
>>> encoder_convs = select.path("encoder/*") & select.kind("conv")
>>> inner = select.kind("conv", "dense") & ~select.first("conv", "dense")
"""

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from lrpjax import _hints
from lrpjax.errors import RuleError

__all__ = ["Selector", "between", "contracted", "first", "kind", "last", "matches", "path"]


class Selectable(Protocol):
    """What a selector looks at in a unit."""

    path: str
    kind: str
    name: str


class Selector:
    """Chooses units: `choose(units)` gives one bool for each unit, in execution order.

    >>> from types import SimpleNamespace as Unit
    >>> units = [Unit(path=p, kind=k, name='') for p, k in [('stem', 'conv'), ('body/a', 'conv'), ('body/b', 'dense')]]
    >>> (kind('conv') & ~first('conv')).choose(units)
    [False, True, False]
    """

    names_units: ClassVar[bool] = False
    """Whether it names what it chooses, a kind or a path, where a glob takes whatever there is."""

    def choose(self, units: Sequence[Selectable]) -> list[bool]:
        raise NotImplementedError

    def __and__(self, other: "Selector | str") -> "Selector":
        return Combined("&", (self, as_selector(other)))

    def __or__(self, other: "Selector | str") -> "Selector":
        return Combined("|", (self, as_selector(other)))

    def __invert__(self) -> "Selector":
        return Combined("~", (self,))


@dataclasses.dataclass(frozen=True)
class Combined(Selector):
    """Selectors joined by & or |, or one that is negated."""

    operator: str
    parts: tuple[Selector, ...]

    @property
    def names_units(self) -> bool:  # type: ignore[override]
        if self.operator == "~":
            return False
        return (any if self.operator == "&" else all)(part.names_units for part in self.parts)

    def choose(self, units: Sequence[Selectable]) -> list[bool]:
        chosen = [part.choose(units) for part in self.parts]
        if self.operator == "~":
            return [not c for c in chosen[0]]
        return [all(c) if self.operator == "&" else any(c) for c in zip(*chosen, strict=True)]

    def __str__(self) -> str:
        if self.operator == "~":
            return f"~{self.parts[0]}"
        return f"({f' {self.operator} '.join(map(str, self.parts))})"


@dataclasses.dataclass(frozen=True)
class Path(Selector):
    """Units whose path matches a glob."""

    glob: str

    @property
    def names_units(self) -> bool:  # type: ignore[override]
        return not is_glob(self.glob)

    def choose(self, units: Sequence[Selectable]) -> list[bool]:
        return among(self.glob, [u.path for u in units])

    def __str__(self) -> str:
        return repr(self.glob)


@dataclasses.dataclass(frozen=True)
class Kind(Selector):
    """Units of certain kinds, or with certain functions."""

    kinds: tuple[str, ...]
    names_units: ClassVar[bool] = True

    def choose(self, units: Sequence[Selectable]) -> list[bool]:
        return [u.kind in self.kinds or u.name in self.kinds for u in units]

    def __str__(self) -> str:
        return f"kind({', '.join(self.kinds)})"


@dataclasses.dataclass(frozen=True)
class Contracted(Selector):
    """Products that are contractions."""

    def choose(self, units: Sequence[Selectable]) -> list[bool]:
        return [u.kind == "product" and getattr(u, "contracts", False) for u in units]

    def __str__(self) -> str:
        return "contracted()"


@dataclasses.dataclass(frozen=True)
class End(Selector):
    """The first or the last unit of certain kinds; of a branch, that of each alternative."""

    which: str
    kinds: tuple[str, ...]
    names_units: ClassVar[bool] = True

    def choose(self, units: Sequence[Selectable]) -> list[bool]:
        found = [u for u, c in zip(units, Kind(self.kinds).choose(units), strict=True) if c]
        runs = [u for u in found if all(holder.steps != 0 for holder, _ in _holders(u))]
        ends = self._ends(runs if self.which == "first" else runs[::-1], 0)
        return [any(u is end for end in ends) for u in units]

    def _ends(self, units: Sequence[Any], depth: int) -> list[Any]:
        """Of units in the order in which they are executed (or the reverse), those before which none is executed,
        whichever branches are taken. All lie inside the same `depth` holders."""
        if not units or len(_holders(units[0])) == depth:
            return list(units[:1])
        holder = _holders(units[0])[depth][0]
        alternatives: dict[int, list[Any]] = {}
        for unit in units:
            if len(_holders(unit)) > depth and _holders(unit)[depth][0] is holder:
                alternatives.setdefault(_holders(unit)[depth][1], []).append(unit)
        if len(alternatives) < len(holder.bodies):
            raise RuleError(
                f"{self}: which one is {self.which} depends on the branch that is taken, {holder.place}; some of "
                f"its branches have none. Name the units by their path, select.path({units[0].path!r})"
            )
        return [end for inside in alternatives.values() for end in self._ends(inside, depth + 1)]

    def __str__(self) -> str:
        return f"{self.which}({', '.join(self.kinds)})"


@dataclasses.dataclass(frozen=True)
class Between(Selector):
    """Units of certain kinds within a part of the way from the input to the output."""

    start: float
    stop: float
    kinds: tuple[str, ...]
    names_units: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 <= self.start <= self.stop <= 1:
            raise RuleError(
                "between: start and stop are parts of the way, 0 ≤ start ≤ stop ≤ 1, but are "
                f"{self.start} and {self.stop}"
            )

    def choose(self, units: Sequence[Selectable]) -> list[bool]:
        of_kind = Kind(self.kinds).choose(units)
        count, before = sum(of_kind), 0
        start, stop = (round(part * count, 6) for part in (self.start, self.stop))  # 0.7 · 10 is more than 7
        chosen: list[bool] = []
        for is_one in of_kind:
            chosen.append(is_one and start <= before < stop)
            before += is_one
        return chosen

    def __str__(self) -> str:
        return f"between({self.start:g}, {self.stop:g}, {', '.join(self.kinds)})"


def _holders(unit: Any) -> Sequence[tuple[Any, int]]:
    """The loops, branches, … that a unit stands in, outermost first, each with the number of its sub-program."""
    return getattr(unit, "within", ())


def ends_of(selector: Selector) -> list[End]:
    """The selectors of first and last units that a selector is made of."""
    if isinstance(selector, Combined):
        return [end for part in selector.parts for end in ends_of(part)]
    return [selector] if isinstance(selector, End) else []


def kinds_of(selector: Selector) -> list[str]:
    """The names of kinds and functions that a selector is made of."""
    if isinstance(selector, Combined):
        return [name for part in selector.parts for name in kinds_of(part)]
    return list(getattr(selector, "kinds", ()))


def matches(glob: str, path: str) -> bool:
    """Whether a glob matches a path, or the path below its outermost scope (flax linen begins every path with
    the root module's class).

    `*` also crosses "/".

    >>> matches("encoder/*", "Net/encoder/Dense_0"), matches("encoder", "Net/encoder/Dense_0")
    (True, False)
    """
    return any(tail == glob or fnmatch.fnmatchcase(tail, glob) for tail in tails(path))


def tails(path: str) -> list[str]:
    """A path, and the path below its outermost scope."""
    return [path, *path.split("/", 1)[1:]]


def is_glob(path: str) -> bool:
    """Whether a path is read as a pattern where nothing has just this name."""
    return any(c in path for c in "*?[")


def among(glob: str, paths: Sequence[str]) -> list[bool]:
    """Which of these paths a glob matches. A path that is written just so wins over the pattern, and so do
    brackets that belong to a name.

    >>> among("layer[0]", ["layer[0]", "layer0"]), among("layer[0]/*", ["layer[0]/a", "layer0/a"])
    ([True, False], [True, False])
    >>> among("layer[0]", ["layer0", "layer1"])
    [True, False]
    """
    named = [glob in tails(p) for p in paths]
    if any(named) or not is_glob(glob):
        return named
    literal = [matches(glob.replace("[", "[[]"), p) for p in paths]
    return literal if any(literal) else [matches(glob, p) for p in paths]


def path(glob: str) -> Selector:
    """Units whose module path (named scopes joined by "/") matches a glob; see `matches`. A path that is
    written just so, with brackets say, wins over the pattern.

    >>> from types import SimpleNamespace as Unit
    >>> units = [Unit(path=p, kind=k, name='') for p, k in [('stem', 'conv'), ('body/a', 'conv'), ('body/b', 'dense')]]
    >>> path('body/*').choose(units)
    [False, True, True]
    """
    return Path(glob)


def kind(*kinds: str) -> Selector:
    """Units of these kinds: "conv", "dense", "activation", "sum", "pool", "product", "quotient", "softmax",
    "norm", "affine", "linear", "custom", "call", "unknown".

    The names of functions serve too, as a plan shows them: "relu", "gelu", "sigmoid", "max_pool", "avg_pool",
    "logsumexp", …

    Raises:
        RuleError: a name that another library gives to a kind, such as "convolution"; the message has the one here.
            What is nearly the name of a kind, "covn", is one as soon as a function has no unit of this name.

    "call" are functions with a derivative of their own, which are explained from inside otherwise:
    `(kind("call"), rules.Gradient())` takes that derivative. JAX's own, `jax.nn.relu` say, are none as long as a
    rule explains them.

    >>> from types import SimpleNamespace as Unit
    >>> units = [Unit(path=p, kind=k, name='') for p, k in [('stem', 'conv'), ('body/a', 'conv'), ('body/b', 'dense')]]
    >>> kind('conv').choose(units)
    [True, True, False]
    """
    return Kind(_checked_kinds(kinds, "kind"))


def _checked_kinds(kinds: tuple[Any, ...], call: str) -> tuple[str, ...]:
    """
    Raises:
        RuleError: a kind is no text, or has the name that it has elsewhere.
    """
    for name in kinds:
        if not isinstance(name, str):
            raise RuleError(f"{call}: kinds are texts, {call}('conv', 'dense'), but one is {name!r}")
        here = _hints.KINDS.get(name.lower())
        if here is not None:
            raise RuleError(f"{call}: no kind is called {name!r}: here it is {here!r}")
    return kinds


def contracted() -> Selector:
    """The products that sum over an axis of their factors, as the two of attention do, q kᵀ and the weights with v; not
    the elementwise ones, such as gates.

    >>> from types import SimpleNamespace as Unit
    >>> units = [Unit(path='', kind='product', name='', contracts=c) for c in (True, False)]
    >>> contracted().choose(units)
    [True, False]
    """
    return Contracted()


def first(*kinds: str) -> Selector:
    """The one unit of these kinds that is executed first (not the one that was registered or named first).

    Of a loop (`jax.lax.scan`, `fori_loop`, `nn.scan`) it is the unit in the first turn only, as if the loop were
    unrolled; where no turn depends on the one before (`jax.lax.map`), each is a run of its own, as under `jax.vmap`,
    and has its first unit. Of `jax.lax.cond` it is the first of each branch; if one has none, that is a RuleError.

    >>> from types import SimpleNamespace as Unit
    >>> units = [Unit(path=p, kind=k, name='') for p, k in [('stem', 'conv'), ('body/a', 'conv'), ('body/b', 'dense')]]
    >>> first('conv', 'dense').choose(units)
    [True, False, False]
    """
    return End("first", _checked_kinds(kinds, "first"))


def last(*kinds: str) -> Selector:
    """The one unit of these kinds that is executed last; in loops and branches as with `first`.

    >>> from types import SimpleNamespace as Unit
    >>> units = [Unit(path=p, kind=k, name='') for p, k in [('stem', 'conv'), ('body/a', 'conv'), ('body/b', 'dense')]]
    >>> last('conv').choose(units)
    [False, True, False]
    """
    return End("last", _checked_kinds(kinds, "last"))


def between(start: float, stop: float, *kinds: str) -> Selector:
    """The units of these kinds in a part of the way from the input (0) to the output (1): of n such units in the order
    in which they are executed, counted from 0, those with start · n ≤ place < stop · n.

    For rules by stage, as Montavon et al. 2019 advise (LRP overview, section 10.3: ε above, γ in the middle, …),
    whatever the depth of a network. A unit in the body of a loop counts once.

    Args:
        start, stop: 0 ≤ start ≤ stop ≤ 1.
        kinds: as for `kind`.

    Raises:
        RuleError: start and stop are not in this order, or outside [0, 1].

    >>> from types import SimpleNamespace as Unit
    >>> units = [Unit(path=str(i), kind='conv', name='') for i in range(5)]
    >>> between(0.0, 0.5, 'conv').choose(units)
    [True, True, True, False, False]
    >>> between(0.5, 1.0, 'conv').choose(units)
    [False, False, False, True, True]
    """
    return Between(float(start), float(stop), _checked_kinds(kinds, "between"))


def as_selector(selector: Any) -> Selector:
    """A selector itself, or a string taken for a path glob."""
    if isinstance(selector, str):
        return Path(selector)
    if isinstance(selector, Selector):
        return selector
    raise TypeError(f"a selector is a path glob or made by lrpjax.select, but this is {selector!r}")

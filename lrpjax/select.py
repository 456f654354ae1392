"""Selectors: which units of a function a rule is for. Combine them with `&`, `|` and `~`.

>>> from lrpjax import select
>>> encoder_convs = select.path("encoder/*") & select.kind("conv")
>>> inner = select.kind("conv", "dense") & ~select.first("conv", "dense")
"""

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import ClassVar, Protocol

__all__ = ["Selector", "first", "kind", "last", "matches", "path"]


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

    def __and__(self, other: "Selector") -> "Selector":
        return Combined("&", (self, as_selector(other)))

    def __or__(self, other: "Selector") -> "Selector":
        return Combined("|", (self, as_selector(other)))

    def __invert__(self) -> "Selector":
        return Combined("~", (self,))


@dataclasses.dataclass(frozen=True)
class Combined(Selector):
    """Selectors joined by & or |, or one that is negated."""

    operator: str
    parts: tuple[Selector, ...]

    def choose(self, units):
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

    def choose(self, units):
        return among(self.glob, [u.path for u in units])

    def __str__(self) -> str:
        return repr(self.glob)


@dataclasses.dataclass(frozen=True)
class Kind(Selector):
    """Units of certain kinds, or with certain functions."""

    kinds: tuple[str, ...]
    names_units: ClassVar[bool] = True

    def choose(self, units):
        return [u.kind in self.kinds or u.name in self.kinds for u in units]

    def __str__(self) -> str:
        return f"kind({', '.join(self.kinds)})"


@dataclasses.dataclass(frozen=True)
class End(Selector):
    """The first or the last unit of certain kinds."""

    which: str
    kinds: tuple[str, ...]
    names_units: ClassVar[bool] = True

    def choose(self, units):
        positions = [i for i, c in enumerate(Kind(self.kinds).choose(units)) if c]
        wanted = positions[0 if self.which == "first" else -1] if positions else None
        return [i == wanted for i in range(len(units))]

    def __str__(self) -> str:
        return f"{self.which}({', '.join(self.kinds)})"


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
    "norm", "affine", "linear", "custom", "unknown".

    The names of functions serve too, as a plan shows them: "relu", "gelu", "sigmoid", "max_pool", "avg_pool",
    "logsumexp", …

    >>> from types import SimpleNamespace as Unit
    >>> units = [Unit(path=p, kind=k, name='') for p, k in [('stem', 'conv'), ('body/a', 'conv'), ('body/b', 'dense')]]
    >>> kind('conv').choose(units)
    [True, True, False]
    """
    return Kind(kinds)


def first(*kinds: str) -> Selector:
    """The one unit of these kinds that is executed first (not the one that was registered or named first).

    >>> from types import SimpleNamespace as Unit
    >>> units = [Unit(path=p, kind=k, name='') for p, k in [('stem', 'conv'), ('body/a', 'conv'), ('body/b', 'dense')]]
    >>> first('conv', 'dense').choose(units)
    [True, False, False]
    """
    return End("first", kinds)


def last(*kinds: str) -> Selector:
    """The one unit of these kinds that is executed last.

    >>> from types import SimpleNamespace as Unit
    >>> units = [Unit(path=p, kind=k, name='') for p, k in [('stem', 'conv'), ('body/a', 'conv'), ('body/b', 'dense')]]
    >>> last('conv').choose(units)
    [False, True, False]
    """
    return End("last", kinds)


def as_selector(selector: "Selector | str") -> Selector:
    """A selector itself, or a string taken for a path glob."""
    if isinstance(selector, str):
        return Path(selector)
    if isinstance(selector, Selector):
        return selector
    raise TypeError(f"a selector is a path glob or made by lrpjax.select, but this is {selector!r}")

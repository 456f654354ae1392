"""Units: the things that a rule can be given to.

A unit is a group of nodes with one meaning: a weighted layer with its bias and the affine constants that follow
it (so a BatchNorm is folded into its layer), an activation however it is written, a softmax, a product of
several values, a normalisation, a sum, a pool. Nodes that only move or scale values become units of one node,
of kind "structural" and "affine". Nothing here knows of rules: `lrpjax.core.recognise` finds the units,
`lrpjax.core.kinds` says what a rule does to them.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

from lrpjax.core.graph import Graph, Node, Value

CONTRACTIONS = ("dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general")
"""Primitives that multiply two values and sum over an axis."""

RUNNING_MAXIMUM = "running maximum"
"""The name of a unit that holds an exponential with a running maximum, of which no softmax was found."""


class Late(NamedTuple):
    """Of a softmax's division put off, Σ e v / Σ e. products: for each term above the line, the product e v and its
    operand that is e; None for a term that was multiplied with nothing that carries relevance. below: the operand
    below the line."""

    products: frozenset[tuple[Node, Value] | None]
    below: Value


@dataclasses.dataclass(eq=False)
class Kernel:
    """A multiplication with constants in a weighted layer: the operand of a node at a place.

    value: the constants, before they are spread out for the node by `moves`. sign: −1 where what the node makes
    is subtracted. scales: for each node behind it that scales, the dimensions of the constants that the scale
    varies along. merged: multiplications of the same value in the same way, whose constants are added to these.
    """

    node: Node
    place: int
    value: Value
    moves: list[Node] = dataclasses.field(default_factory=list)
    sign: int = 1
    scales: dict[Node, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    merged: list["Kernel"] = dataclasses.field(default_factory=list)

    def all(self) -> list["Kernel"]:
        return [self, *self.merged]


@dataclasses.dataclass(eq=False)
class Region:
    """The nodes from x to the sum of a weighted layer, in order: every way passes one multiplication with constants,
    and otherwise sums, additions and movements of elements. A dot is a region of one node."""

    x: Value
    nodes: list[Node]
    kernels: list[Kernel]

    @property
    def out(self) -> Value:
        return self.nodes[-1].out

    @property
    def plain(self) -> bool:
        """Whether it is one dot or convolution, of x or of what x is padded to."""
        kernel = self.kernels[0]
        whole = kernel.node is self.nodes[-1] and kernel.node.name in ("dot_general", "conv_general_dilated")
        return whole and len(self.kernels) == 1 and not kernel.moves and not kernel.merged


@dataclasses.dataclass(eq=False)
class Unit:
    """A group of nodes that one rule explains. A kind that wants to know more of its units derives a class of its own.

    kind: the name of its kind, a key of `lrpjax.core.kinds.KINDS`. name: the function, where it is known
    ("relu", "max_pool", "gelu"). nodes: in order; the last one makes the outputs. operands: the values that
    carry relevance in, one entry for each reading (of weighted layers, x once). signal: of a normalisation or a
    quotient, the operand above the line. gates, activated: of a product, the factors that are sigmoids, and those
    that come straight from an activation. find_signals: of a product, a function that gives the factors that are
    the signal of a recurrence. core: of weighted layers, sums and pools, the node that stands for the unit. linear:
    of weighted layers, the part of it between x and the bias. flipped: of weighted layers, rules see
    kernel, bias and sum with the other sign. late: of a quotient that is a softmax's division put
    off. native: of a weighted sum that is no weighted layer, why. bodies: the units of each sub-program. within: the
    units that hold it, outermost first, each with the number of the sub-program.
    """

    kind: str
    nodes: list[Node]
    operands: list[Value]
    name: str = ""
    signal: Value | None = None
    gates: list[Value] = dataclasses.field(default_factory=list)
    activated: list[Value] = dataclasses.field(default_factory=list)
    find_signals: Callable[[], list[Value]] | None = None
    core: Node | None = None
    linear: "Region | None" = None
    flipped: bool = False
    late: Late | None = None
    native: str = ""
    bodies: list["Level"] = dataclasses.field(default_factory=list)
    within: tuple[tuple["Unit", int], ...] = ()

    @property
    def coded(self) -> frozenset[Value]:
        """What it reads that stands for an operand, be it an integer."""
        return frozenset()

    @property
    def contracts(self) -> bool:
        """Whether it sums over an axis that its factors have in common."""
        return any(node.name in CONTRACTIONS for node in self.nodes)

    @property
    def outputs(self) -> list[Value]:
        return self.nodes[-1].outputs

    @property
    def out(self) -> Value:
        return self.nodes[-1].outputs[0]

    @property
    def entering(self) -> list[Value]:
        return self.nodes[0].entering

    @property
    def carry(self) -> tuple[int, int]:
        return self.nodes[0].carry

    @property
    def steps(self) -> int | None:
        return self.nodes[0].steps

    @property
    def main(self) -> Node:
        """The node that gives the unit its path and source."""
        return self.core or self.nodes[-1]

    @property
    def path(self) -> str:
        return self.main.path

    @property
    def place(self) -> str:
        """Kind and function, module path and the user's line, as errors name them."""
        what = f"{self.kind}:{self.name}" if self.name else self.kind
        return f"{what} in '{self.path or '(no module path)'}' at {self.main.source}"


@dataclasses.dataclass(eq=False)
class Solve(Unit):
    """The solution of a linear system. right: the right-hand sides that carry relevance."""

    right: list[Value] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Level:
    """A graph and its units, in an order that can be run. Nodes that carry no relevance belong to no unit; they
    stand in `steps` as they are."""

    graph: Graph
    steps: list[Unit | Node]

    @property
    def inputs(self) -> list[Value]:
        return self.graph.inputs

    @property
    def outputs(self) -> list[Value]:
        return self.graph.outputs

    @functools.cached_property
    def units(self) -> list[Unit]:
        return [u for u in self.steps if isinstance(u, Unit)]

    def walk(self) -> Iterable[Unit]:
        """All units in execution order, those of sub-programs included."""
        for unit in self.units:
            yield unit
            for body in unit.bodies:
                yield from body.walk()

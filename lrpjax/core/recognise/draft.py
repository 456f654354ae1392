"""What the recognisers share: a marked graph, the units found so far, and ways to follow a value to where it
comes from and goes."""

from collections.abc import Callable, Mapping

from lrpjax.core.graph import Graph, Node, Value
from lrpjax.core.recognise.elementwise import Dependence
from lrpjax.core.recognise.exponentials import Exponentials
from lrpjax.core.units import Level, Unit


class Draft:
    """The units of one graph while they are being found: a node belongs to the unit that takes it first.

    kept: values that stay visible, so that no unit is grown across them. folds: but for a weighted layer, which takes
    in the constants behind it all the same. carrying: the nodes that relevance may pass. unit_of: the unit of each
    node that has one. native: weighted sums that are no layers, by the node that ends them: why, and the
    multiplications. level_of: finds the units of a sub-program. exponentials: those of the whole program that are a
    softmax's.
    """

    def __init__(
        self,
        graph: Graph,
        families: Mapping[str, str],
        kept: frozenset[Value],
        level_of: Callable[[Graph], Level],
        exponentials: Exponentials,
        folds: bool,
    ):
        self.graph, self.families, self.kept, self.level_of = graph, families, kept, level_of
        self.folds = folds
        self.exponentials = exponentials
        self.unit_of: dict[Node, Unit] = {}
        self.native: dict[Node, tuple[str, list[Node]]] = {}
        self.dependence = Dependence(graph, families)
        self.carrying = [
            n for n in graph.nodes if any(v.carries for v in n.inputs) and any(v.carries for v in n.outputs)
        ]

    def family(self, node: Node) -> str:
        return self.families.get(node.name, "unknown")

    def add(self, unit: Unit) -> None:
        """Adds a unit, which takes its nodes over from units of which it holds them."""
        for node in unit.nodes:
            self.unit_of[node] = unit

    def copy(self, node: Node, inputs: list[Value]) -> Node:
        """A node that computes the same once more, for a unit that cannot share it."""
        new = Node(node.eqn, inputs, node.path, node.within, node.sites)
        new.index = node.index
        for v in inputs:
            v.users.append(new)
        for old, copied in zip(node.outputs, new.outputs, strict=True):
            copied.carries, copied.depends, copied.nonnegative = old.carries, old.depends, old.nonnegative
        return new

    def free(self, node: Node) -> bool:
        return node not in self.unit_of

    def visible(self, value: Value) -> bool:
        """Whether a value is wanted by others than the nodes that read it."""
        return value.returned or value in self.kept

    def light(self, node: Node, families: tuple[str, ...]) -> bool:
        """Whether a node is of these families ("affine" among them: adding, scaling, clipping) and has one
        operand that carries relevance."""
        family = self.family(node)
        if family == "bilinear":
            family = "affine" if node.name == "mul" else family
        elif node.name in ("add", "sub", "neg", "max", "min", "abs"):
            family = "affine"
        elif family == "quotient":
            family = "affine" if node.inputs[0].carries else family
        return family in families and len(node.carriers()) == 1

    def forward(self, value: Value, families: tuple[str, ...]) -> list[Value]:
        """`value` and all that light nodes of these families make of it."""
        reached, stack = [], [value]
        while stack:
            v = stack.pop()
            reached.append(v)
            for user in v.users:
                if self.light(user, families) and user.carriers() == [v]:
                    stack.extend(o for o in user.outputs if o.carries)
        return reached

    def origin(self, value: Value, families: tuple[str, ...]) -> Node | None:
        """The node that made `value`, behind light nodes of these families; an activation is not looked into."""
        node = value.node
        while node is not None and self.light(node, families) and not self._activated(node):
            node = node.carriers()[0].node
        return node

    def unit_before(self, value: Value, families: tuple[str, ...]) -> Unit | None:
        """The unit that made `value`, behind light nodes of these families, if it is found already."""
        origin = self.origin(value, families)
        unit = None if origin is None else self.unit_of.get(origin)
        return unit if unit is not None and unit.nodes[-1] is origin else None

    def _activated(self, node: Node) -> bool:
        return node in self.unit_of and self.unit_of[node].kind == "activation"

    def bilinear(self, node: Node) -> bool:
        """Whether a node multiplies two values that both carry relevance."""
        return (
            self.family(node) == "bilinear" and len(node.inputs) == 2 and all(v.carries for v in node.inputs)
        )

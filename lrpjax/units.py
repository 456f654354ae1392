"""From the graph to units: the things that a rule can be given to.

A unit is a group of nodes with one meaning: a weighted layer with its bias and the affine constants that follow it (so a BatchNorm is folded
into its layer), an activation however it is written, a softmax, a product of several values, a normalisation, a sum, a pool. Nodes that
only move or scale values become units of one node, of kind "structural" and "affine". Nothing here knows of rules.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from lrpjax import activations, dimensions, softmaxes
from lrpjax.elementwise import Dependence
from lrpjax.graph import Graph, Node, Value

SHOWN = (
    "conv",
    "dense",
    "activation",
    "sum",
    "pool",
    "product",
    "quotient",
    "norm",
    "softmax",
    "affine",
    "linear",
    "custom",
)
"""The kinds of unit that a plan lists and a selector can find; further ones are "structural" and those of structured control flow."""

STRUCTURED = ("scan", "cond", "while", "remat", "shard_map")


@dataclasses.dataclass(eq=False)
class Unit:
    """A group of nodes that one rule explains.

    kind: one of SHOWN, "structural", "stop", "unknown" or one of STRUCTURED. name: the function, where it is known ("relu", "max_pool", "gelu").
    nodes: in order; the last one makes the outputs. operands: the values that carry relevance in; passing: those among them that receive
    relevance (a denominator, a gate and the statistics of a normalisation do not). activated: the factors of a product that come straight
    from an activation. selected: the factors that `selective.Signals` found to be the signal, where a plan asked for it.
    core, scales: for weighted layers, the dot or convolution and, for each node of the affine chain that scales, the dimensions of the kernel
    that its constant varies along. weights: of a quotient that is a softmax's division put off, e in Σ e v / Σ e; its core is the product e v.
    bodies: the units of each sub-program.
    """

    kind: str
    nodes: list[Node]
    operands: list[Value]
    passing: list[Value]
    name: str = ""
    core: Node | None = None
    scales: dict[Node, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    activated: list[Value] = dataclasses.field(default_factory=list)
    selected: list[Value] = dataclasses.field(default_factory=list)
    weights: Value | None = None
    bodies: list["Level"] = dataclasses.field(default_factory=list)

    @property
    def outputs(self) -> list[Value]:
        return self.nodes[-1].outputs

    @property
    def out(self) -> Value:
        return self.nodes[-1].outputs[0]

    @property
    def main(self) -> Node:
        """The node that gives the unit its path and source."""
        return self.core or self.nodes[-1]


@dataclasses.dataclass
class Level:
    """A graph and its units, in an order that can be run. Nodes that carry no relevance belong to no unit; they stand in `order` as they are."""

    graph: Graph
    order: list[Unit | Node]

    @property
    def units(self) -> list[Unit]:
        return [u for u in self.order if isinstance(u, Unit)]

    def walk(self) -> Iterable[Unit]:
        """All units in execution order, those of sub-programs included."""
        for unit in self.units:
            yield unit
            for body in unit.bodies:
                yield from body.walk()


def find(graph: Graph, families: Mapping[str, str], kept: frozenset[Value] = frozenset()) -> Level:
    """Groups the nodes of a marked graph. Values in `kept` stay visible: no activation is grown across them."""
    return Finder(graph, families, kept).level()


class Finder:
    """The units of one graph while they are being found: what is named first is taken first."""

    def __init__(self, graph: Graph, families: Mapping[str, str], kept: frozenset[Value]):
        self.graph = graph
        self.families = families
        self.kept = kept
        self.unit_of: dict[Node, Unit] = {}
        self.dependence = Dependence(graph, families)
        self.live = [
            n for n in graph.nodes if any(v.carries for v in n.inputs) and any(v.carries for v in n.outputs)
        ]

    def family(self, node: Node) -> str:
        return self.families.get(node.name, "unknown")

    def add(self, unit: Unit) -> None:
        for node in unit.nodes:
            self.unit_of[node] = unit

    def make(self, *args: Any, **kwargs: Any) -> None:
        """Adds the Unit that these arguments make."""
        self.add(Unit(*args, **kwargs))

    def level(self) -> Level:
        softmaxes.find(self)
        self.activations()
        self.statistics()
        self.layers()
        self.normalisations()
        self.products()
        for node in self.live:
            if node not in self.unit_of:
                self.single(node)
        return Level(self.graph, self.sort())

    def sort(self) -> list[Unit | Node]:
        """Stable topological order of units and of the nodes that belong to none."""
        done: set[Node] = set()
        order: list[Unit | Node] = []
        for node in self.graph.nodes:
            stack = [node]
            while stack:
                top = stack[-1]
                if top in done:
                    stack.pop()
                    continue
                unit = self.unit_of.get(top)
                nodes = unit.nodes if unit else [top]
                waiting = [
                    v.node
                    for n in nodes
                    for v in n.inputs
                    if v.node and v.node not in done and v.node not in nodes
                ]
                if waiting:
                    stack.extend(waiting)
                    continue
                done.update(nodes)
                order.append(unit or top)
                stack.pop()
        return order

    # ------------------------------------------------------------------------------------------------------------- following values

    def forward(self, value: Value, families: tuple[str, ...]) -> list[Value]:
        """`value` and all that is made from it by nodes of these families with no second operand that carries relevance."""
        found, stack = [], [value]
        while stack:
            v = stack.pop()
            found.append(v)
            for user in v.users:
                if self.light(user, families) and user.carriers() == [v]:
                    stack.extend(o for o in user.outputs if o.carries)
        return found

    def light(self, node: Node, families: tuple[str, ...]) -> bool:
        family = self.family(node)
        if family == "bilinear":
            family = "affine" if node.name == "mul" else family
        elif node.name in ("add", "sub", "neg", "max", "min", "abs"):
            family = "affine"
        elif family == "quotient":
            family = "affine" if node.inputs[0].carries else family
        return family in families and len(node.carriers()) == 1

    def activated(self, node: Node) -> bool:
        return node in self.unit_of and self.unit_of[node].kind == "activation"

    def origin(self, value: Value, families: tuple[str, ...]) -> Node | None:
        """The node that made `value`, behind nodes of these families; an activation is not looked into."""
        node = value.node
        while node is not None and self.light(node, families) and not self.activated(node):
            node = node.carriers()[0].node
        return node

    # ---------------------------------------------------------------------------------------------------------------- activations

    def activations(self) -> None:
        """Elementwise, non-linear functions of one value: all nodes between a node and its immediate dominator, if all are elementwise.

        The dominator keeps an affine prefix (a bias, a BatchNorm) out. Where scalar constants alone stand between two such functions, both
        are one (`1 / (1 + exp(-x))`).
        """
        dominators = self.dependence.dominators()
        for end in reversed(self.live):
            if end in self.unit_of or not self.dependence.elementwise(end):
                continue
            source = dominators[end]
            region = None if source is None else self.region(source, end)
            if region is None or not any(self.dependence.nonlinear(n) for n in region):
                continue
            source, region = self.absorb(*self.extend(source, region, dominators))
            self.add(Unit("activation", region, [source], [source], activations.name_of(region)))

    def extend(self, source: Value, region: list[Node], dominators: dict) -> tuple[Value, list[Node]]:
        """Grows an activation upwards over scalar constants to an earlier non-linear node of the same value."""
        value, prefix = source, []
        while (
            value.node is not None
            and value.node not in self.unit_of
            and value not in self.kept
            and not value.returned
        ):
            node = value.node
            if any(
                u not in region and u not in prefix for u in value.users
            ) or not self.dependence.elementwise(node):
                break
            start = dominators.get(node)
            inner = None if start is None else self.region(start, node)
            if inner is None or not all(
                v.carries or activations.is_scalar(v) for n in inner for v in n.inputs
            ):
                break
            prefix = inner + prefix
            if any(self.dependence.nonlinear(n) for n in inner):
                source, region, prefix = start, prefix + region, []  # type: ignore[assignment]
            value = start
        return source, region

    def absorb(self, source: Value, region: list[Node]) -> tuple[Value, list[Node]]:
        """Takes in the scalar constants before and behind an activation that belong to the same library call (`selu`, `hard_sigmoid`)."""
        call = activations.call_of(region)
        if call is None:
            return source, region

        def belongs(node: Node) -> bool:
            return (
                node.within[: len(call)] == call
                and node not in self.unit_of
                and self.dependence.elementwise(node)
                and len(node.carriers()) == 1
                and all(v.carries or activations.is_scalar(v) for v in node.inputs)
            )

        while (
            len(region[-1].out.users) == 1 and not region[-1].out.returned and region[-1].out not in self.kept
        ):
            after = region[-1].out.users[0]
            if not belongs(after):
                break
            region = [*region, after]
        while (
            source.node is not None
            and belongs(source.node)
            and source not in self.kept
            and not source.returned
        ):
            if any(u not in region for u in source.users):
                break
            region = [source.node, *region]
            source = source.node.carriers()[0]
        return source, region

    def statistics(self) -> None:
        """max(0, variance) under a root is no ReLU of the network (flax's LayerNorm): rules for "relu" leave it alone."""
        through = ("structural", "affine")
        for unit in set(self.unit_of.values()):
            if unit.name != "relu":
                continue
            values = self.forward(unit.out, through)
            uses = {
                u for v in values for u in v.users if not (self.light(u, through) and u.carriers() == [v])
            }
            roots = [u for u in uses if u.name == "sqrt" or activations.divides(u)]
            if roots and len(roots) == len(uses) and not any(v.returned for v in values):
                unit.name = "clip"

    def region(self, source: Value, end: Node) -> list[Node] | None:
        """The elementwise nodes between `source` and `end`, or None if one of them is not elementwise or is needed elsewhere."""
        if source.shape != end.out.shape:
            return None
        found = {end}
        stack = [end]
        while stack:
            for v in stack.pop().inputs:
                if v is source or not self.dependence.depends(v) or v.node in found:
                    continue
                if (
                    v.node is None
                    or v.node in self.unit_of
                    or not self.dependence.elementwise(v.node)
                    or v in self.kept
                    or v.returned
                ):
                    return None
                found.add(v.node)
                stack.append(v.node)
        if any(u not in found for n in found if n is not end for u in n.out.users):
            return None
        return sorted(found, key=lambda n: n.index)

    # --------------------------------------------------------------------------------------------------------------------- layers

    def layers(self) -> None:
        """Weighted layers, pools and free-standing affine maps, each with the constants that follow it."""
        for node in self.live:
            if node in self.unit_of or len(node.carriers()) != 1:
                continue
            if node.name in ("dot_general", "conv_general_dilated"):
                kind, labels = (
                    ("dense", dimensions.of_dot(node))
                    if node.name == "dot_general"
                    else ("conv", dimensions.of_convolution(node))
                )
                nodes, scales = self.chain(node, labels)
                self.add(Unit(kind, nodes, node.carriers(), node.carriers(), core=node, scales=scales))
            elif node.name in ("reduce_sum", "reduce_window_sum"):
                nodes, _ = self.chain(node, [0] * len(node.out.shape), bias=False)
                self.add(
                    Unit(
                        "pool",
                        nodes,
                        node.carriers(),
                        node.carriers(),
                        "sum_pool" if len(nodes) == 1 else "avg_pool",
                        core=node,
                    )
                )
            elif self.affine(node):
                nodes, _ = self.chain(node, [0] * len(node.out.shape), grow_structure=False)
                self.add(Unit("affine", nodes, node.carriers(), node.carriers(), core=node))

    def affine(self, node: Node) -> bool:
        """Adding, or multiplying with, something that carries no relevance."""
        if len(node.carriers()) != 1 or len(node.outputs) != 1:
            return False
        return node.name in ("add", "sub", "mul", "neg", "add_any") or (
            node.name == "div" and node.inputs[0].carries
        )

    def chain(
        self, node: Node, labels: list, bias: bool = True, grow_structure: bool = True
    ) -> tuple[list[Node], dict[Node, tuple[int, ...]]]:
        """Follows the single use of a layer's output over constants (and the reshapes before them) as long as a kernel can absorb them.

        `labels` says for each dimension of the output which dimension of the kernel it comes from, or None.
        """
        nodes, pending = [node], []
        scales: dict[Node, tuple[int, ...]] = {}
        value = node.out
        while len(value.users) == 1 and not value.returned:
            user = value.users[0]
            if user in self.unit_of or not user.outputs or not user.out.carries:
                break
            if grow_structure and user.name in (
                "reshape",
                "transpose",
                "squeeze",
                "expand_dims",
                "convert_element_type",
                "copy",
            ):
                if value in self.kept and user.out.shape != value.shape:
                    break
                labels = dimensions.moved(user, labels, value.shape)
                pending.append(user)
            elif (
                grow_structure
                and user.name == "broadcast_in_dim"
                and activations.size(user.out) == activations.size(value)
            ):
                labels = dimensions.moved(user, labels, value.shape)
                pending.append(user)
            elif grow_structure and user.name in ("psum", "psum_invariant") and len(user.inputs) == 1:
                nodes += [
                    *pending,
                    user,
                ]  # a layer whose contraction is sharded: its rule needs the whole sum
                pending = []
            elif self.affine(user) and user.out.shape == value.shape:
                if user.name in ("add", "sub", "add_any"):
                    if not bias:
                        break
                else:
                    varies = dimensions.varying(user, value)
                    if any(labels[d] is None for d in varies):
                        break
                    scales[user] = tuple(labels[d] for d in varies)
                nodes += [*pending, user]
                pending = []
            else:
                break
            value = user.out
        return nodes, scales

    # ---------------------------------------------------------------------------------------------- products, quotients, normalisations

    def normalisations(self) -> None:
        """A quotient's denominator, and a factor made by rsqrt, a negative power or a reciprocal, receive no relevance."""
        for node in self.live:
            if node in self.unit_of:
                continue
            if node.name == "div" and node.inputs[1].carries:
                top, bottom = node.inputs
                if top.carries:
                    origin = self.origin(bottom, ("structural", "affine"))
                    kind = "norm" if origin is not None and self.inside(origin, "sqrt") else "quotient"
                    self.add(Unit(kind, [node], node.carriers(), [top]))
            elif node.name == "mul" and len(node.carriers()) == 2 and node.inputs[0] is not node.inputs[1]:
                divides = [self.reciprocal(v) for v in node.inputs]
                if sum(divides) == 1:
                    signal = node.inputs[divides.index(False)]
                    self.add(Unit("norm", [node], node.carriers(), [signal]))

    def inside(self, node: Node, name: str) -> bool:
        """Whether a node, or the activation that it ends, is the function `name`."""
        unit = self.unit_of.get(node)
        return node.name == name or (unit is not None and any(n.name == name for n in unit.nodes))

    def reciprocal(self, value: Value) -> bool:
        origin = self.origin(value, ("structural", "affine"))
        return origin is not None and activations.divides(origin) and not self.is_gate(value)

    def products(self) -> None:
        """Multilinear trees: `a * b * c` is one product of three factors, however it is associated."""
        for node in reversed(self.live):
            if node in self.unit_of or not self.bilinear(node):
                continue
            nodes, leaves = self.factors(node)
            gates = [self.is_gate(v) for v in leaves]
            signals = [v for v, g in zip(leaves, gates, strict=True) if not g]
            unit = Unit(
                "product",
                nodes,
                leaves,
                leaves,
                activated=[v for v in leaves if self.origin_kind(v) == "activation"],
            )
            if signals and len(signals) < len(leaves):
                unit.name = "gate"
                unit.passing = signals
            self.add(unit)

    def bilinear(self, node: Node) -> bool:
        return (
            self.family(node) == "bilinear" and len(node.inputs) == 2 and all(v.carries for v in node.inputs)
        )

    def factors(self, node: Node) -> tuple[list[Node], list[Value]]:
        nodes, leaves = [node], []
        for v in node.inputs:
            inner, moves = v.node, []
            while inner is not None and self.light(inner, ("structural",)) and self.sole(inner):
                moves.append(inner)
                inner = inner.carriers()[0].node
            if inner is not None and inner not in self.unit_of and self.bilinear(inner) and self.sole(inner):
                below, more = self.factors(inner)
                nodes += [*moves, *below]
                leaves += more
            else:
                leaves.append(v)
        return sorted(set(nodes), key=lambda n: n.index), leaves

    def sole(self, node: Node) -> bool:
        return (
            len(node.out.users) == 1
            and not node.out.returned
            and node.out not in self.kept
            and node not in self.unit_of
        )

    def origin_kind(self, value: Value) -> str | None:
        origin = self.origin(value, ("structural",))
        unit = self.unit_of.get(origin) if origin is not None else None
        return None if unit is None or unit.nodes[-1] is not origin else unit.kind

    def is_gate(self, value: Value) -> bool:
        """Sigmoids (and one minus them): they decide how much of the signal passes and receive no relevance (Arras et al. 2017)."""
        origin = self.origin(value, ("structural", "affine"))
        unit = self.unit_of.get(origin) if origin is not None else None
        return (
            unit is not None
            and unit.kind == "activation"
            and unit.name in ("sigmoid", "hard_sigmoid")
            and unit.nodes[-1] is origin
        )

    # ---------------------------------------------------------------------------------------------------------------------- the rest

    def single(self, node: Node) -> None:
        family, carriers = self.family(node), node.carriers()
        if family in STRUCTURED:
            unit = Unit(family, [node], carriers, carriers)
            unit.bodies = [find(body, self.families, self.kept) for body in node.bodies]
        elif family == "structural":
            pooled = node.name in ("reduce_window_max", "reduce_window_min", "reduce_max", "reduce_min")
            unit = (
                Unit("pool", [node], carriers, carriers, "max_pool")
                if pooled
                else Unit("structural", [node], carriers, carriers)
            )
        elif family == "sum":
            unit = Unit("sum" if len(carriers) > 1 else "linear", [node], carriers, carriers)
        elif family == "custom":
            unit = Unit(
                "custom", [node], carriers, carriers, getattr(node.params["call"].function, "__name__", "")
            )
        elif family == "reduce_product":
            unit = Unit("product", [node], carriers, carriers, family)
        elif node.name in ("max", "min") and len(carriers) > 1:  # the larger, or smaller, one takes all
            unit = Unit("structural", [node], carriers, carriers)
        elif family in ("elementwise", "quotient") and len(node.outputs) == 1 and len(carriers) == 1:
            unit = Unit("activation", [node], carriers, carriers, activations.name_of([node]))
        elif family == "bilinear" and len(carriers) == 1:
            unit = Unit("linear", [node], carriers, carriers)
        else:
            unit = Unit("unknown", [node], carriers, carriers)
        self.add(unit)

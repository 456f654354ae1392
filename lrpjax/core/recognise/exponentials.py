"""Which exponentials of a program are those of a softmax, wherever it sums and divides: behind the product with the
values, in another step of a loop, in blocks.

A softmax is the same if all its exponentials grow by one factor: what is made of them grows by that factor, or,
divided by their sum, does not. So each value of a program either is in proportion to some exponentials, or it is not,
and exponentials that end in quotients of two such values, or in logarithms, and nowhere else, are a softmax's.
"""

import dataclasses
from collections.abc import Iterator, Mapping

from lrpjax.core.dataflow import Flow
from lrpjax.core.graph import Graph, Node, Value
from lrpjax.core.recognise.names import size
from lrpjax.core.units import Late

EXPONENTIALS = ("exp", "exp2")
SUMS = ("reduce_sum", "cumsum", "reduce_window_sum", "scatter-add", "psum", "psum_invariant")
"""Sums of one operand's elements."""
ADDITIONS = ("add", "add_any")
MAXIMA = (
    "reduce_max",
    "reduce_min",
    "reduce_window_max",
    "reduce_window_min",
    "cummax",
    "cummin",
    "scatter-max",
    "scatter-min",
    "pmax",
    "pmin",
)
_JOINING = ("concatenate", "select_n", "stack", "dynamic_update_slice", "scatter", "max", "min")
_REARRANGING = ("reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "gather")

Axes = tuple[int, ...]
Sum = Value | tuple[Value, Axes]
"""What tells a sum from others: the value that is it; s and the axes of Σ exp(s − m), which may be written twice."""
Product = tuple[Node, Value]
"""A product e v, and the operand that is e."""


@dataclasses.dataclass(frozen=True)
class Share:
    """A value in proportion to the exponentials that the nodes `sources` make.

    products: the products with other values through which it is so; None for a part that was in no product. above:
    the sums that it is, but for constant factors and moves; without, it holds exponentials as they are. below: the
    sums that it has been divided by, so that it is in proportion to nothing any more. inverse: 1 over what is
    below. log: the logarithm of what is above, or divided. over, along: the axes of the sum that it is, and of that
    which it was divided by, where they are known. score: s of an exp(s − m) itself.
    """

    sources: frozenset[Node] = frozenset()
    products: frozenset[Product | None] = frozenset([None])
    above: frozenset[Sum] = frozenset()
    below: frozenset[Sum] = frozenset()
    inverse: bool = False
    log: bool = False
    over: Axes | None = None
    along: Axes | None = None
    score: Value | None = None

    @property
    def bound(self) -> bool:
        """Whether it has to be divided yet."""
        return bool(self.sources) and not self.log and (self.inverse or not self.below)

    @property
    def attended(self) -> bool:
        """Whether it is an average of values with weights that exponentials make."""
        return bool(self.below) and self.products != {None}

    @property
    def sum(self) -> bool:
        return bool(self.above) and not self.below and not self.log and self.products == {None}


PLAIN = Share(products=frozenset())
"""Of a value that carries relevance, but is in proportion to no exponentials."""


def _joined(a: Share | None, b: Share | None) -> Share | None:
    if a is None or b is None or a == b:
        return b if a is None else a
    same = (bool(a.below), a.inverse, a.log) == (bool(b.below), b.inverse, b.log)
    if PLAIN in (a, b) or not same:
        return PLAIN
    above = a.above | b.above if a.above and b.above else frozenset()
    over, along = (x if x == y else None for x, y in ((a.over, b.over), (a.along, b.along)))
    both = a.sources | b.sources, a.products | b.products
    return Share(
        *both,
        above,
        a.below | b.below,
        a.inverse,
        a.log,
        over,
        along,
        a.score if a.score is b.score else None,
    )


class Exponentials:
    """What of a marked graph, and of its sub-programs, belongs to softmaxes that are divided late.

    exponentials: the nodes that make them. sums: the sums of what is in proportion to them, and of what was divided
    already if something is divided by that sum as well. divisions: quotients (and products with a reciprocal) of two
    such values, and products in which a quotient is undone; with how the operands share. reciprocals, logarithms: of
    sums of them.
    """

    def __init__(self, graph: Graph, families: Mapping[str, str]):
        self.families = families
        self.exponentials: set[Node] = set()
        self.sums: set[Node] = set()
        self.divisions: dict[Node, Late] = {}
        self.reciprocals: set[Node] = set()
        self.logarithms: set[Node] = set()
        self.log_additions: set[Node] = set()
        if not any(n.name in EXPONENTIALS and n.inputs[0].carries for n in graph.walk()):
            return
        self.flow = Flow(None, _joined, self._transfer)
        self.flow.solve(graph, [PLAIN if v.carries else None for v in graph.inputs])
        self._collect(graph)

    def family(self, node: Node) -> str:
        return self.families.get(node.name, "unknown")

    def _transfer(self, flow: Flow, node: Node) -> Iterator[tuple[Value, Share | None]]:
        if any(v.carries for v in node.inputs):
            made = self._made(node)
            for value in node.outputs:
                if value.carries:
                    yield value, made

    def _made(self, node: Node) -> Share | None:
        """What a node makes of its operands: PLAIN where that is in no proportion to them, None where nothing has
        been heard of them yet."""
        carriers, name = node.carriers(), node.name
        shares = [s for v in carriers if (s := self.flow[v]) is not None]
        if not shares:
            return None
        if name in EXPONENTIALS:
            return self._exp(node, shares[0])
        if name in (*ADDITIONS, "select_n") and (found := log_addition(node)) is not None:
            added = [s for v in found[1:] if (s := self.flow[v]) is not None]
            if all(s.log and not s.below for s in added):
                sources = frozenset[Node]().union(*(s.sources for s in added))
                return Share(sources, above=frozenset([node.out]), log=True)
        if len(carriers) == 1:
            return PLAIN if shares[0] == PLAIN else self._of_one(node, carriers[0], shares[0])
        if name in ADDITIONS or name in _JOINING or name == "scatter-add":
            return self._together(node, shares)
        if len(shares) < len(carriers) or len(carriers) > 2:
            return None if len(carriers) == 2 else PLAIN
        (a, b), (x, y) = carriers, shares
        if self.family(node) == "bilinear":
            return self._product(node, a, b, x, y)
        if name == "div":
            return self._quotient(x, y)
        logs = [s.log and not s.below for s in (x, y)]
        if name == "sub" and any(logs) and (all(logs) or PLAIN in (x, y)):
            below, along = (y.above, y.over) if logs[1] else (x.above, x.over)
            return Share(
                x.sources | y.sources,
                above=x.above if logs[1] else frozenset(),
                below=below,
                log=True,
                along=along,
            )
        return PLAIN

    def _exp(self, node: Node, share: Share) -> Share:
        if not share.log:
            return Share(frozenset([node]), score=_score(node.inputs[0]))
        alone = share.above or share.inverse  # nothing but sums of exponentials is in the logarithm
        return dataclasses.replace(
            share, log=False, sources=share.sources | (frozenset() if alone else {node})
        )

    def _together(self, node: Node, shares: list[Share]) -> Share | None:
        made: Share | None = None
        for share in shares:
            made = _joined(made, share)
        if made == PLAIN or made is None or node.name in _JOINING:
            bounded = made is not None and made.log and node.name in ("max", "min")
            return PLAIN if bounded or made == PLAIN else made and dataclasses.replace(made, score=None)
        above = frozenset() if made.attended else frozenset([node.out])
        return PLAIN if made.log else dataclasses.replace(made, above=above, score=None)

    def _of_one(self, node: Node, value: Value, share: Share) -> Share:
        family, name = self.family(node), node.name
        moves = family == "structural" and name not in MAXIMA
        if moves:
            share = share if name == "convert_element_type" else dataclasses.replace(share, score=None)
            rearranged = name in _REARRANGING and (
                name != "gather" or len(node.out.shape) != len(value.shape)
            )
            return dataclasses.replace(share, along=None) if rearranged else share
        score, share = share.score, dataclasses.replace(share, score=None)
        if share.log:
            if name == "neg" and share.above and not share.below:
                return dataclasses.replace(
                    share, above=frozenset(), below=share.above, inverse=True, along=share.over
                )
            return share if name in ADDITIONS or (name == "sub" and node.inputs[0] is value) else PLAIN
        if name in SUMS or (family == "bilinear" and name != "mul"):
            if share.inverse:
                return PLAIN
            if (
                share.attended
            ):  # the sum of averages, each with its weight; else it is one value as others are
                return (
                    dataclasses.replace(share, above=frozenset()) if share.above and name in SUMS else PLAIN
                )
            over = None
            if name == "reduce_sum":
                over = tuple(sorted(d - len(value.shape) for d in node.params["axes"]))
            of = node.out if score is None or over is None else (score, over)
            return dataclasses.replace(share, above=frozenset([of]), over=over)
        if name == "log":
            return (
                dataclasses.replace(share, log=True)
                if share.sum or (share.below and not share.above)
                else PLAIN
            )
        if (name == "div" and node.inputs[1] is value) or (name == "integer_pow" and node.params["y"] == -1):
            below = {"below": share.above, "inverse": True, "along": share.over}
            return Share(share.sources, **below) if share.sum else PLAIN  # type: ignore[arg-type]
        if name in (*ADDITIONS, "max"):
            return share if share.above or share.products != {None} else PLAIN
        if name in ("mul", "div") and share.attended and not share.above:  # by an array: what a layer does
            return share if all(size(v) == 1 for v in node.inputs if v is not value) else PLAIN
        return share if name in ("mul", "neg", "div", "abs") else PLAIN

    def _product(self, node: Node, a: Value, b: Value, x: Share, y: Share) -> Share:
        for v, e, other in ((a, x, y), (b, y, x)):
            if e.bound and other.inverse and not e.inverse and e != PLAIN:
                return self._quotient(
                    e, dataclasses.replace(other, above=other.below, below=frozenset(), inverse=False)
                )
            if _undone(e, other):
                return dataclasses.replace(
                    other, sources=e.sources | other.sources, below=e.below, above=e.above
                )
            alone = e != PLAIN and e.products == {None} and not (e.above or e.log or e.inverse)
            if alone and (other == PLAIN or not other.bound) and not other.log:
                return dataclasses.replace(e, products=frozenset([(node, v)]), score=None)
        return PLAIN

    def _quotient(self, top: Share, bottom: Share) -> Share:
        if PLAIN in (top, bottom) or top.log or top.inverse:
            return PLAIN
        top = dataclasses.replace(top, sources=top.sources | bottom.sources, score=None)
        if bottom.sum and not top.below:
            return dataclasses.replace(top, below=bottom.above, along=bottom.over)
        again = (
            top.products == bottom.products == {None}
            and bottom.above
            and not bottom.log
            and top.along is not None
        )
        if again and top.below == bottom.below and top.along == bottom.over:
            return dataclasses.replace(top, below=bottom.above)
        return PLAIN

    # ----------------------------------------------------------------------------------------------------- collect

    def _collect(self, graph: Graph) -> None:
        """Takes those exponentials that are used as a softmax's, and as nothing else."""
        uses: list[tuple[Node, frozenset[Node]]] = []
        dead: set[Node] = set()
        groups: list[frozenset[Node]] = []
        for node in graph.walk():
            shares = [s for v in node.carriers() if (s := self.flow[v]) is not None]
            if node.bodies:
                self._across(node, dead)
                continue
            if not shares or not any(v.carries for v in node.outputs):
                continue
            made = self._made(node)
            bound = frozenset[Node]().union(*(s.sources for s in shares if s.bound))
            if made is None or not bound <= made.sources:
                dead |= bound
            if made is not None and made != PLAIN:
                groups.append(made.sources)
                uses.append((node, made.sources))
        for value in graph.outputs:
            share = self.flow[value] if value.carries else None
            if share is not None and share.bound:
                dead |= share.sources
        while True:
            grown = dead.union(*(g for g in groups if g & dead))
            if grown == dead:
                break
            dead = grown
        taken = [node for node, sources in uses if not sources & dead]
        renormalising = self._renormalising(taken)
        for node in taken:
            if node in renormalising or not self._adds_weights(node):
                self._take(node)

    def _adds_weights(self, node: Node) -> bool:
        """Whether a node adds what has been divided and is in no product: the weights of softmaxes."""
        shares = [self.flow[v] or PLAIN for v in node.carriers()]
        weights = all(s.below and s.products == {None} and not (s.log or s.inverse) for s in shares)
        return weights and node.name in (*SUMS, *ADDITIONS, "sub")

    def _renormalising(self, nodes: list[Node]) -> set[Node]:
        """Those sums of weights that weights are divided by. Others are sums as of any values, and may be layers."""
        waiting = {n for n in nodes if self._adds_weights(n)}
        if not waiting:
            return set()
        above = {n: (self._made(n) or PLAIN).above for n in waiting}
        below: set[Sum] = set().union(*((self._made(n) or PLAIN).below for n in nodes))
        found: set[Node] = set()
        while added := {n for n in waiting - found if above[n] & below}:
            found |= added
            below |= {v for n in added for c in n.carriers() for v in (self.flow[c] or PLAIN).above}
        return found

    def _across(self, node: Node, dead: set[Node]) -> None:
        """What enters and leaves a loop or branch in proportion to exponentials must stay so."""
        first, count = node.carry
        for body in node.bodies:
            pairs = [
                *zip(node.entering, body.inputs, strict=True),
                *zip(body.outputs, node.outputs, strict=True),
            ]
            pairs += zip(body.outputs[:count], body.inputs[first : first + count], strict=True)
            for before, after in pairs:
                share, then = (self.flow[v] if v.carries else None for v in (before, after))
                if share is not None and share.bound and (then is None or not share.sources <= then.sources):
                    dead |= share.sources

    def _take(self, node: Node) -> None:
        made, carriers, name = self._made(node), node.carriers(), node.name
        shares: list[Share] = [self.flow[v] or PLAIN for v in carriers]
        assert made is not None
        if name in EXPONENTIALS:
            self.exponentials.add(node)
        elif log_addition(node) is not None:
            self.log_additions.add(node)
        elif name in SUMS or name in ADDITIONS or name == "sub":
            if len(carriers) > 1 or name in SUMS:
                self.sums.add(node)
        elif name == "log":
            self.logarithms.add(node)
        elif len(carriers) == 1:
            if made.inverse and not shares[0].inverse:
                self.reciprocals.add(node)
        elif name == "div":
            self.divisions[node] = Late(made.products, carriers[1])
        else:
            for e, other, value in zip(shares, shares[::-1], carriers, strict=True):
                if e.inverse or _undone(e, other):
                    self.divisions[node] = Late(made.products, value)


def _score(value: Value) -> Value:
    """s, of s − m with an m that carries no relevance."""
    while value.node is not None:
        shifted = (
            value.node.name == "sub" and value.node.inputs[0].carries and not value.node.inputs[1].carries
        )
        if not shifted and value.node.name != "convert_element_type":
            break
        value = value.node.inputs[0]
    return value


def _undone(e: Share, other: Share) -> bool:
    """Whether e, a sum of exponentials, is what `other` has been divided by."""
    whole = e.products == {None} and bool(e.above) and not (e.log or e.inverse)
    return whole and other.below == e.above and not (other.inverse or other.log)


def log_addition(node: Node) -> tuple[list[Node], Value, Value] | None:
    """(the nodes, a, b) of log(e^a + e^b) = max(a, b) + log1p(exp(−|a − b|)), of which `node` is the last; where a − b
    is not a number, it may be a + b."""
    if node.name == "select_n" and len(node.inputs) == 3 and node.inputs[1].node is not None:
        inner, other, test = log_addition(node.inputs[1].node), node.inputs[2].node, node.inputs[0].node
        if inner is None or other is None or test is None or other.name not in ADDITIONS or test.name != "ne":
            return None
        nodes, a, b = inner
        taken = {nodes[1].out, a, b}
        return ([*nodes, other, test, node], a, b) if {*other.inputs, *test.inputs} <= taken else None
    if node.name not in ADDITIONS:
        return None
    for larger, rest in (node.inputs, node.inputs[::-1]):
        chain: list[Node] = []
        below = rest.node
        for name in ("log1p", "exp", "neg", "abs", "sub"):
            if below is None or below.name != name:
                break
            chain.append(below)
            below = below.inputs[0].node
        else:
            a, b = chain[-1].inputs
            if larger.node is not None and larger.node.name == "max" and {a, b} == set(larger.node.inputs):
                return [larger.node, *chain[::-1], node], a, b
    return None

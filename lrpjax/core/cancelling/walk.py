"""A program walked with what growing each of its stabilisers does to every value, loops and branches included."""

from collections.abc import Sequence

from lrpjax.core.cancelling.changes import GUARD, NONE, RULES, ZERO, Change, Key, alike, of_constant, one
from lrpjax.core.cancelling.labels import MOVES, constant, is_constant, own, translated
from lrpjax.core.graph import Graph, Node, Value

ENTERED = ("scan", "remat2", "checkpoint", "cond")
_COMPARE = ("eq", "ne", "lt", "le", "gt", "ge", "is_finite")
_LOGIC = ("and", "or", "not", "reduce_and", "reduce_or")

Names = dict[Value, tuple[Value, dict[int, int]]]


class Walk:
    """What growing each of the symbols does to every value of a program; `broken` are those that something other than
    a stabilised sum depends on."""

    def __init__(self, symbols: frozenset[Value]):
        self.symbols = symbols
        self.broken: set[Value] = set()
        self.known: dict[Value, Change] = {}

    def __getitem__(self, value: Value) -> Change:
        if value.constant is not None:
            return of_constant(value.constant)
        return self.known.get(value, NONE)

    def breaks(self, *changes: Change) -> Change:
        self.broken.update(symbol for change in changes for symbol, _ in change.terms)
        return NONE

    def program(self, graph: Graph) -> None:
        for node in graph.nodes:
            changes = [self[v] for v in node.inputs]
            outs = [NONE] * len(node.outputs)
            if any(c is not NONE for c in changes) or node.bodies:
                made = self.loop(node, changes) if node.bodies else self.node(node, changes)
                outs = made if isinstance(made, list) else [made] * len(node.outputs)
            for value, change in zip(node.outputs, outs, strict=True):
                self.note(value, change)

    def note(self, value: Value, change: Change) -> None:
        if value in self.symbols:
            change = Change(True, {(value, own(value.shape)): 1.0})
        if change is NONE:
            self.known.pop(value, None)
        else:
            self.known[value] = change

    def node(self, node: Node, changes: list[Change]) -> Change | list[Change]:
        name = node.name
        if any(v in self.symbols for v in node.outputs) and len(node.outputs) == 1:
            return NONE  # it takes the place of all that it is made of
        if name == "stop_gradient":
            return NONE
        if name in _COMPARE:
            changed = any(c.terms for c in changes)
            return GUARD if changed else NONE
        if name in _LOGIC:
            return GUARD if any(c.guard for c in changes) else NONE
        if not any(c.terms for c in changes):
            return self.unchanged(node, changes)
        rule = RULES.get(name)
        made = None if rule is None else rule(node, changes)
        return self.breaks(*changes) if made is None else made

    def unchanged(self, node: Node, changes: list[Change]) -> Change:
        """What is made of zeros, and of what does not change at all."""
        zero = [c.zero for c in changes]
        if node.name in MOVES:
            return ZERO if zero[0] else GUARD if changes[0].guard else NONE
        if node.name in ("mul", "div", "exp", "exp2", "dot_general"):
            return ZERO if zero[0] or (zero[-1] and node.name != "div") else NONE
        if node.name == "select_n":
            return ZERO if all(zero[1:]) else NONE
        return NONE

    # ------------------------------------------------------------------------------------------------------- loops

    def loop(self, node: Node, changes: list[Change]) -> list[Change]:
        if node.name not in ENTERED:
            self.breaks(*changes)
            for body in node.bodies:
                self.program(body)
                self.breaks(*(self[v] for v in body.outputs))
            return [NONE] * len(node.outputs)
        if node.name == "cond":
            return self.branches(node, changes[1:])
        (body,) = node.bodies
        first, count = node.carry
        stacked = node.name == "scan"
        inside = self.inside(body)
        entering = [self.sliced(c) if stacked and i >= first + count else c for i, c in enumerate(changes)]
        inits, starts = changes[first : first + count], body.inputs[first : first + count]
        carried = [ZERO] * count
        for _ in range(4 + count):
            for i, value in enumerate(body.inputs):
                self.note(value, carried[i - first] if first <= i < first + count else entering[i])
            self.program(body)
            outs = [self[v] for v in body.outputs]
            names = _names(outs[:count], starts)
            back = [self.renamed(change, names, inside) for change in outs[:count]]
            back = [NONE if b.zero and not i.zero else b for b, i in zip(back, inits, strict=True)]
            again = [b if c.zero else c for b, c in zip(back, carried, strict=True)]
            if again == carried:
                break
            carried = again
        for i, start in enumerate(starts):
            if start in self.symbols:
                if start not in (name for name, _ in names.values()):
                    self.broken.add(start)
            elif not alike(back[i], carried[i]):
                self.breaks(back[i], carried[i])
        self.begin(starts, inits, carried)
        last = _names(outs[:count], node.outputs[:count])
        each = _names(outs[count:], node.outputs[count:])
        result = []
        for i, (change, outer) in enumerate(zip(outs, node.outputs, strict=True)):
            stack = outer.shape[:1] if stacked and i >= count else None
            result.append(self.left(change, each if i >= count else last, inside, stack))
        return result

    def branches(self, node: Node, changes: list[Change]) -> list[Change]:
        """What all branches leave; where they leave a stabiliser, each its own, that is one outside."""
        left = []
        for body in node.bodies:
            for value, change in zip(body.inputs, changes, strict=True):
                self.note(value, change)
            self.program(body)
            outs, inside = [self[v] for v in body.outputs], self.inside(body)
            names = _names(outs, node.outputs)
            left.append([self.left(change, names, inside | names.keys(), None) for change in outs])
        result = []
        for made in zip(*left, strict=True):
            same = one(made)
            result.append(self.breaks(*made) if same is None else same)
        return result

    def inside(self, body: Graph) -> set[Value]:
        return {*body.inputs, *(v for n in body.nodes for v in n.outputs)} & self.symbols

    def renamed(self, change: Change, names: Names, inside: set[Value]) -> Change:
        """A change in the names of the next step; symbols without one are broken."""
        self.broken.update(s for s, _ in change.terms if s in inside and s not in names)
        terms = {
            (names[s][0], translated(labels, names[s][1])) if s in names else (s, labels): c
            for (s, labels), c in change.terms.items()
        }
        return Change(change.log, terms) if terms else change

    def begin(self, starts: list[Value], inits: list[Change], carried: list[Change]) -> None:
        """Checks what a loop begins with against what it carries."""
        first = dict(zip(starts, inits, strict=True))
        names: dict[Value, Value | None] = {}
        for start, init in first.items():
            if start in self.symbols:
                names[start] = next((s for s in _names([init], [start])), None)
                if init.terms and names[start] is None:
                    self.breaks(init)
                    self.broken.add(start)
        for start, init, change in zip(starts, inits, carried, strict=True):
            if start in self.symbols or init.zero:
                continue
            renamed = {(names.get(s, s), labels): c for (s, labels), c in change.terms.items()}
            expected = Change(change.log, {key: c for key, c in renamed.items() if key[0] is not None})
            if not alike(expected, init):
                self.breaks(init, change)

    def left(self, change: Change, names: Names, inside: set[Value], stack: tuple[int, ...] | None) -> Change:
        """What a loop leaves, in the names of its outputs. stack: the dimension along which it stacks it."""
        if not change.terms:
            return NONE if change.guard else change
        terms: dict[Key, float] = {}
        for (symbol, labels), c in change.terms.items():
            if symbol not in inside:
                if stack is not None:
                    labels = (*constant(stack), *labels)
                terms[symbol, labels] = c
            elif symbol in names and names[symbol][0] in self.symbols:
                named, dims = names[symbol]
                labels = translated(labels, dims)
                if stack is not None:
                    dims = {d: d + 1 for d in range(len(named.shape))}
                    labels = (*own(stack), *translated(labels, dims))
                terms[named, labels] = c
            else:
                self.broken.add(symbol)
        return Change(change.log, terms)

    def sliced(self, change: Change) -> Change:
        """What a loop is given of a stack in each step."""
        if not change.terms:
            return change
        if any(not is_constant(labels[0]) for _, labels in change.terms):
            return self.breaks(change)
        return Change(change.log, {(s, labels[1:]): c for (s, labels), c in change.terms.items()})


def _names(changes: Sequence[Change], called: Sequence[Value]) -> Names:
    """The symbols that some values are, what else they are called, and which of its dimensions are theirs."""
    names: Names = {}
    for change, name in zip(changes, called, strict=True):
        if not change.log or len(change.terms) != 1:
            continue
        (((symbol, labels), power),) = change.terms.items()
        ours = [(d, dim) for d, dim in enumerate(own(symbol.shape)) if dim]
        there = [(d, dim) for d, dim in enumerate(labels) if dim]
        if power == 1.0 and [dim for _, dim in ours] == [dim for _, dim in there]:
            names.setdefault(symbol, (name, {d: e for (d, _), (e, _) in zip(ours, there, strict=True)}))
    return names

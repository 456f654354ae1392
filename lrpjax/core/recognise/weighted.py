"""Weighted sums that are written otherwise than as a dot or a convolution, as layers.

`(x[..., None] * W).sum(1)`, `sum(x[:, i, None] * W[i] for i in …)`, shifted adds, `x[:, :k] @ U + x[:, k:] @ V`,
products summed group by group: nodes that are linear in one value x, in which every way from an element of x to an
output passes one multiplication with constants, and there is one such way at most (`lrpjax.core.ways`).
"""

import dataclasses
import itertools

import numpy as np

from lrpjax.core import dimensions, ways
from lrpjax.core.graph import Node, Value
from lrpjax.core.recognise import layer, names
from lrpjax.core.recognise.draft import Draft
from lrpjax.core.units import Kernel, Level, Region, Unit
from lrpjax.core.ways import Way

SUMS = ("reduce_sum", "reduce_window_sum", "cumsum", "scatter-add")
ADDITIONS = ("add", "sub", "add_any")
MOST = 512
"""More ways than these to one value are not followed."""
UNFOLLOWED = "its elements are moved in a way that is not followed"


class Unfit(Exception):
    """A region is no layer. weighted: it is a weighted sum nonetheless."""

    def __init__(self, why: str = ""):
        super().__init__(why)
        self.why = why


def find(draft: Draft) -> None:
    """Layers of several nodes, the largest first; for those that fail because of the ways in them, says so."""
    weighted = _weighted(draft)
    for end in reversed(draft.carrying):
        if end not in weighted or not draft.free(end) or not _joins(end):
            continue
        for scaled in (
            True,
            False,
        ):  # is what multiplies behind a dot a scale of that, or a kernel of its own?
            search = Search(draft, end, scaled)
            try:
                search.run()
            except Unfit as error:
                if error.why and not scaled:
                    draft.native[end] = error.why, list(search.kernels)
            else:
                break


INVISIBLE = {
    "fft": "a Fourier transform",
    "triangular_solve": "a solve",
    "linear_solve": "a solve",
    "custom_linear_solve": "a solve",
}
"""Linear maps whose weights no array holds."""


NATIVELY = "which is explained in proportion to its terms"


def mark(draft: Draft) -> None:
    """Says of the units that are weighted sums of constant weights, but no layers, why they are none."""
    for end, (why, kernels) in draft.native.items():
        if any(draft.unit_of[k].linear is None for k in kernels):
            draft.unit_of[
                end
            ].native = f"a weighted sum, which is explained in proportion to its terms because {why}"
    for node in draft.carrying:
        unit = draft.unit_of[node]
        if node.name in INVISIBLE and len(node.carriers()) == 1:
            what = INVISIBLE[node.name]
            unit.native = f"{what}, {NATIVELY} because its weights are in no array"
        elif node.name == "scan" and len(unit.bodies) == 1:
            _mark_accumulators(node, unit.bodies[0])


def _mark_accumulators(node: Node, body: Level) -> None:
    """Σ over the steps of a loop of something multiplied with constants: the sum is one of all steps."""
    first, count = node.carry
    owner = {n: u for u in body.units for n in u.nodes}
    for given, handed in zip(body.inputs[first : first + count], body.outputs[:count], strict=True):
        derived, end = {given}, handed.node
        while end is not None and end.name in ways.MOVERS and len(end.carriers()) == 1:
            end = end.carriers()[0].node
        if end is None or end.name not in ADDITIONS or len(end.carriers()) != 2:
            continue
        for each in body.graph.nodes:
            if each is not end and any(v in derived for v in each.inputs):
                derived.update(v for v in each.outputs if v.carries)
        terms = [v for v in end.carriers() if v not in derived]
        kept = [v for v in end.carriers() if v in derived and _from(v, given)]
        if len(terms) != 1 or len(kept) != 1:
            continue
        changing = set(body.inputs[first + count :])
        for each in body.graph.nodes:
            if any(v in changing for v in each.inputs):
                changing.update(each.outputs)
        if _scaled(terms[0], changing, owner) and end in owner:
            owner[end].native = f"a weighted sum over the steps of a loop, {NATIVELY} step by step"


def _scaled(value: Value, changing: set[Value], owner: dict[Node, Unit]) -> bool:
    """Whether a value was multiplied with constants that are arrays, or others in each step, and then moved and
    added at most."""
    node = value.node
    if node is None:
        return False
    if _multiplies(node):
        (x,) = node.carriers()
        fixed = [v for v in node.inputs if v is not x]
        return node.name in layer.KERNELS or any(names.size(v) > 1 or v in changing for v in fixed)
    if not _passes(node) or (node in owner and owner[node].kind == "activation"):
        return False
    return any(_scaled(v, changing, owner) for v in node.carriers())


def _joins(node: Node) -> bool:
    carriers = node.carriers()
    if len(node.outputs) != 1 or np.issubdtype(node.out.aval.dtype, np.complexfloating):
        return False
    return (node.name in SUMS and len(carriers) == 1) or (
        node.name in ADDITIONS and len(carriers) == 2 and carriers[0] is not carriers[1]
    )


def _multiplies(node: Node) -> bool:
    """Whether a node multiplies one value that carries relevance with constants."""
    if len(node.carriers()) != 1:
        return False
    return node.name in ("mul", *layer.KERNELS) or (node.name == "div" and node.inputs[0].carries)


def _passes(node: Node) -> bool:
    """Whether a node only moves, adds up, negates or shifts."""
    return node.name in ways.MOVERS or node.name == "neg" or node.name in SUMS or node.name in ADDITIONS


def _weighted(draft: Draft) -> set[Node]:
    """The nodes to which all relevance has passed a multiplication with constants that is not followed by anything
    but sums and moves."""
    found: set[Node] = set()
    for node in draft.carrying:
        if not draft.free(node):
            continue
        if _multiplies(node) or (_passes(node) and all(v.node in found for v in node.carriers())):
            found.add(node)
    return found


@dataclasses.dataclass
class Track:
    """What is known of a kernel at a value behind it. labels: for each dimension, that of the constants. varies:
    whether they differ along it. scales: the nodes that have scaled it."""

    labels: list
    varies: list[bool]
    scales: tuple[Node, ...] = ()

    def joined(self, other: "Track") -> "Track":
        """What is known where two ways of one kernel come together."""
        if self.scales != other.scales:
            raise Unfit
        labels = [a if a == b else None for a, b in zip(self.labels, other.labels, strict=True)]
        return Track(labels, [a or b for a, b in zip(self.varies, other.varies, strict=True)], self.scales)


class Search:
    """The region that ends in one node. scaled: constants behind a dot scale it."""

    def __init__(self, draft: Draft, end: Node, scaled: bool):
        self.draft, self.end, self.scaled = draft, end, scaled
        self.kernels: dict[Node, Kernel] = {}
        self.ways: dict[Value, list[Way]] = {}
        self.tracks: dict[Value, dict[Node, Track]] = {}

    def run(self) -> None:
        behind = self.collect()
        source, before = self.source(behind)
        nodes = sorted(behind, key=lambda n: n.index)
        inside = {*behind, *before}
        for node in behind:
            if node is not self.end and any(
                self.draft.visible(v) or any(u not in inside for u in v.users) for v in node.outputs
            ):
                raise Unfit
        self.ways[source] = [ways.whole(source.shape)]
        for node in sorted(before, key=lambda n: n.index):
            for i, out in enumerate(node.outputs):
                self.ways[out] = self.through(
                    node, lambda place, way, n=node, i=i: ways.moved(n, place, i, way)
                )
        for node in nodes:
            self.follow(node)
        self.check()
        if self.rotates(source):
            raise Unfit
        self.add(source, layer.own(self.draft, sorted(before, key=lambda n: n.index), nodes), nodes)

    # ------------------------------------------------------------------------------------------ what belongs to it

    def collect(self) -> set[Node]:
        """The nodes from the kernels to the end."""
        found, stack = {self.end}, [self.end]
        while stack:
            node = stack.pop()
            if node is not self.end and not self.draft.free(node):
                raise Unfit
            if _multiplies(node):
                (x,) = node.carriers()
                if not self.scales(node):
                    place = next(i for i, v in enumerate(node.inputs) if v is not x)
                    self.kernels[node] = _kernel(node, place)
                    continue
            elif not _passes(node):
                raise Unfit
            for v in node.carriers():
                if v.node is None:
                    raise Unfit
                if v.node not in found:
                    found.add(v.node)
                    stack.append(v.node)
        return found

    def scales(self, node: Node) -> bool:
        """Whether a multiplication is a scale of a kernel before it."""
        if node.name not in ("mul", "div") or not self.scaled:
            return False
        (x,) = node.carriers()
        number = all(names.size(v) == 1 for v in node.inputs if v is not x)
        at = x.node
        while at is not None and self.draft.free(at) and len(at.carriers()) == 1:
            if _multiplies(at):
                return number or at.name in layer.KERNELS
            if not _passes(at):
                return False
            at = at.carriers()[0].node
        return number and at is not None and at.name in ADDITIONS and len(at.carriers()) == 2

    def source(self, behind: set[Node]) -> tuple[Value, set[Node]]:
        """The value that all kernels multiply, and the nodes that move its elements to them."""
        starts = {k.node.carriers()[0] for k in self.kernels.values()}
        if len(starts) == 1:
            return starts.pop(), set()
        source = self.draft.dependence.dominators.get(self.end)
        if source is None or not source.carries:
            raise Unfit
        before: set[Node] = set()
        stack = [v for v in starts if v is not source]
        while stack:
            node = stack.pop().node
            if node is None or node in behind or not self.draft.free(node):
                raise Unfit
            if not self.draft.kept.isdisjoint(node.outputs):
                raise Unfit  # relevance is wanted there, and would pass by a copy of it
            if node.name not in ways.MOVERS:
                moves = self.draft.family(node) == "structural" and len(node.carriers()) == 1
                raise Unfit(self.why(UNFOLLOWED) if moves else "")
            if node not in before:
                before.add(node)
                stack += [v for v in node.carriers() if v is not source]
        return source, before

    # ------------------------------------------------------------------------------------------------------- ways

    def through(self, node: Node, step) -> list[Way]:
        """The ways through a node, from all of its operands."""
        found = []
        for place, value in enumerate(node.inputs):
            for way in self.ways.get(value, ()):
                new = step(place, way)
                if new is None:
                    raise Unfit(self.why(UNFOLLOWED))
                if not new.empty:
                    found.append(new)
        if len(found) > MOST:
            raise Unfit(self.why(f"it has more than {MOST} terms"))
        return found

    def follow(self, node: Node) -> None:
        """Ways and kernels behind a node of the region."""
        out, carriers = node.out, node.carriers()
        if node in self.kernels:
            (x,) = carriers
            kernel = self.kernels[node]
            self.ways[out] = self.through(node, lambda place, way: ways.through_kernel(node, place, x, way))
            if node.name in layer.KERNELS:
                labels = layer.KERNELS[node.name][1](node)
            else:
                labels = dimensions.of_product(node, kernel.place, kernel.value, kernel.moves)
            varies = [d is not None and n > 1 for d, n in zip(labels, out.shape, strict=True)]
            self.tracks[out] = {node: Track(list(labels), varies)}
            return
        tracks: dict[Node, Track] = {}
        for v in carriers:
            for k, track in self.tracks[v].items():
                tracks[k] = tracks[k].joined(track) if k in tracks else track
        if node.name in SUMS:
            axes: list[int] = []

            def step(place, way):
                through = ways.through_sum(node, way)
                if through is None:
                    return None
                axes[:] = through[1]
                return through[0]

            self.ways[out] = self.through(node, step)
            (x,) = carriers
            if not any(t.varies[d] for t in tracks.values() for d in axes):
                raise Unfit  # a sum, or an average, behind a layer
            if node.name == "scatter-add":
                blank = Track([None] * len(out.shape), [True] * len(out.shape))
                self.tracks[out] = {k: dataclasses.replace(blank, scales=t.scales) for k, t in tracks.items()}
                return
            gone = set(axes) if node.name == "reduce_sum" else set()
            kept = [d for d in range(len(x.shape)) if d not in gone]
            self.tracks[out] = {
                k: Track(
                    [None if d in axes else t.labels[d] for d in kept], [t.varies[d] for d in kept], t.scales
                )
                for k, t in tracks.items()
            }
        elif node.name in ADDITIONS or node.name in ("neg", "mul", "div"):
            if node.name in ("mul", "div"):
                tracks = self.scale(node, tracks)
            flipped = lambda place: node.name == "neg" or (node.name == "sub" and place == 1)

            def pass_on(place, way):
                shape = node.inputs[place].shape
                new = ways.spread(way, shape, out.shape, range(len(shape)))
                return new.but(sign=-way.sign) if flipped(place) else new

            self.ways[out] = self.through(node, pass_on)
            self.tracks[out] = tracks
        else:
            known = [t for v in carriers for t in self.tracks[v].values()]
            one_number = len(tracks) == 1 and not any(any(t.varies) or t.scales for t in known)
            alike = len(carriers) == 1 or one_number
            for i, each in enumerate(node.outputs):
                self.ways[each] = self.through(node, lambda place, way, i=i: ways.moved(node, place, i, way))
                self.tracks[each] = own = {}
                for v in carriers:
                    for k, track in self.tracks[v].items():
                        new = _tracked(node, track, v.shape, each.shape)
                        if node.name == "concatenate" and not alike:  # of one thing and another
                            varies = [v or d == node.params["dimension"] for d, v in enumerate(new.varies)]
                            new = dataclasses.replace(new, varies=varies)
                        own[k] = own[k].joined(new) if k in own else new

    def scale(self, node: Node, tracks: dict[Node, Track]) -> dict[Node, Track]:
        """Enters a scale for all kernels behind which it stands."""
        (value,) = node.carriers()
        if node.out.shape != value.shape:
            raise Unfit
        varies = dimensions.varying(node, value)
        for kernel, track in tracks.items():
            if any(track.labels[d] is None for d in varies):
                raise Unfit
            self.kernels[kernel].scales[node] = tuple(track.labels[d] for d in varies)
        return {k: dataclasses.replace(t, scales=(*t.scales, node)) for k, t in tracks.items()}

    # ------------------------------------------------------------------------------------------------------ checks

    def why(self, text: str) -> str:
        """Why a weighted sum is no layer; nothing, if the layers that it is the sum of are found by themselves."""
        return text if all(k.name in ("mul", "div") for k in self.kernels) else ""

    def check(self) -> None:
        """That there is one way at most from each element of x to each output; kernels that multiply the same in
        the same way are added first."""
        found = self.ways[self.end.out]
        if not found or any(way.kernel is None for way in found):
            raise Unfit
        for node, kernel in self.kernels.items():
            signs = {way.sign for way in found if way.kernel is node}
            if len(signs) > 1:
                raise Unfit(self.why("one multiplication is both added and subtracted"))
            kernel.sign = signs.pop() if signs else 1
        twice = self.why("an element comes to an output along several ways")
        if not all(ways.apart(way) for way in found):
            raise Unfit(twice)
        merged: dict[Node, Node] = {}
        for a, b in _meeting(found):
            first, second = (merged.get(k, k) for k in (a.kernel, b.kernel))
            if first is second:
                if a.kernel is b.kernel:
                    raise Unfit(twice)
                continue
            if not self.alike(first, second):
                raise Unfit(twice)
            merged.update({k: first for k, to in merged.items() if to is second})
            merged[second] = first
        self.merged = merged
        self.found = [way for way in found if way.kernel not in merged]
        sums = any(n > 1 for way in self.found for _, n in way.inner)
        if not sums and len(self.found) < 2:
            raise Unfit  # x w + x v, without a sum
        if not sums and not any(ways.overlap(a, b) for a, b in itertools.pairwise(self.found)):
            raise Unfit

    def alike(self, a: Node, b: Node) -> bool:
        """Whether two kernels multiply the same value in the same way, and are only scaled and added behind that."""
        first, second = self.kernels[a], self.kernels[b]
        same = a.name == b.name and a.inputs[1 - first.place] is b.inputs[1 - second.place]
        if not same or first.place != second.place or str(a.params) != str(b.params):
            return False
        if a.inputs[first.place].shape != b.inputs[second.place].shape or a.out.shape != b.out.shape:
            return False
        behind = {v: self._straight(v) for v in (a, b)}
        if not behind[a] & behind[b]:
            return False
        moves = [[str(m.params) for m in kernel.moves] for kernel in (first, second)]
        return moves[0] == moves[1] and first.value.shape == second.value.shape

    def _straight(self, node: Node) -> set[Node]:
        """The additions behind a node that nothing but scales and additions lead to."""
        found = set()
        while node is not self.end and len(node.out.users) == 1:
            (user,) = node.out.users
            if user.name not in (*ADDITIONS, "neg", "mul", "div") or user.out.shape != node.out.shape:
                break
            found.add(user)
            node = user
        return found

    def rotates(self, source: Value) -> bool:
        """Whether pairs of elements are turned by fixed angles (rotary positions): linear, but no layer."""
        found = self.found
        if any(n > 1 for way in found for _, n in way.inner) or len(found) > 4:
            return False
        if any(t == 0 and n > 1 for way in found for t, n in zip(way.strides, way.sizes, strict=True)):
            return False
        if any(sum(ways.overlap(a, b) for b in found) > 2 for a in found):
            return False
        values = [k.value for k in self.kernels.values()]
        if any(_angle(v) for v in values):
            return True
        turned = lambda node: node.name == "mul" and any(_from(v, source) for v in node.carriers())
        shared = lambda v: v.constant is None and sum(map(turned, _uses(v))) > 1
        if all(shared(v) for v in values):
            return True
        axes = _axes(source.shape, [abs(a.offset - b.offset) for a, b in itertools.combinations(found, 2)])
        for way in found:
            varies = self.tracks[self.end.out][way.kernel].varies
            along = [abs(t) for t, v, n in zip(way.strides, varies, way.sizes, strict=True) if v and n > 1]
            if _axes(source.shape, along) & axes:
                return True
        return False

    # -------------------------------------------------------------------------------------------------------- unit

    def add(self, source: Value, before: list[Node], nodes: list[Node]) -> None:
        for second, first in self.merged.items():
            self.kernels[first].merged.append(self.kernels[second])
        kernels = [
            k for node, k in sorted(self.kernels.items(), key=lambda e: e[0].index) if node not in self.merged
        ]
        tracks = self.tracks[self.end.out]
        labels = [tracks[k.node].labels for kernel in kernels for k in kernel.all()]
        slides = any(ways.slides(self.found[0], way) for way in self.found[1:])
        windows = any(n.name in ("conv_general_dilated", "reduce_window_sum") for n in nodes)
        kind = "conv" if slides or windows else "dense"
        region = Region(source, [*before, *nodes], kernels)
        layer.add(self.draft, kind, region, labels, kernels[0].node)


def _kernel(node: Node, place: int) -> Kernel:
    """A kernel, with its constants as they were before they were broadcast."""
    value, moves = node.inputs[place], []
    if node.name in ("mul", "div"):
        while value.node is not None and value.node.name == "broadcast_in_dim" and not value.carries:
            moves.insert(0, value.node)
            value = value.node.inputs[0]
    return Kernel(node, place, value, moves)


def _tracked(node: Node, track: Track, old: tuple[int, ...], new: tuple[int, ...]) -> Track:
    """A track behind a node that moves elements."""
    if node.name in layer.MOVES or node.name == "broadcast_in_dim":
        labels = dimensions.moved(node, track.labels, old)
        if node.name == "reshape":
            varies = [False] * len(new)
            for before, after in ways.groups(old, new) or ():
                for d in after:
                    varies[d] = any(track.varies[k] for k in before) and new[d] > 1
        else:
            varies = [bool(v) for v in dimensions.moved(node, track.varies, old)]
        return Track(labels, varies, track.scales)
    same = node.name in ("reduce_precision", "optimization_barrier")
    kept = [same or (node.name != "rev" and a == b) for a, b in zip(old, new, strict=True)]
    return Track(
        [d if k else None for d, k in zip(track.labels, kept, strict=True)], track.varies, track.scales
    )


def _meeting(found: list[Way]):
    """The pairs of ways that meet."""
    form = {}
    forms = [form.setdefault((w.low, w.high, w.strides, w.inner), len(form)) for w in found]
    known: dict[tuple[int, int, int], bool] = {}
    for (i, a), (k, b) in itertools.combinations(list(enumerate(found)), 2):
        key = forms[i], forms[k], a.offset - b.offset
        if key not in known:
            known[key] = ways.meet(a, b)
        if known[key]:
            yield a, b


def _angle(value: Value) -> bool:
    """Whether constants are cosines or sines."""
    while value.node is not None and len(value.node.inputs) and not value.node.bodies:
        if value.node.name in ("cos", "sin"):
            return True
        if value.node.name not in ways.MOVERS and value.node.name != "gather":
            return False
        value = value.node.inputs[0]
    return False


def _uses(value: Value) -> list[Node]:
    """The nodes that read constants, also where they were broadcast first."""
    found = []
    for user in value.users:
        found += _uses(user.out) if user.name == "broadcast_in_dim" else [user]
    return found


def _from(value: Value, source: Value) -> bool:
    """Whether a value is another's elements, moved."""
    while value is not source:
        if value.node is None or value.node.name not in ways.MOVERS or len(value.node.carriers()) != 1:
            return False
        value = value.node.carriers()[0]
    return True


def _axes(shape: tuple[int, ...], numbers: list[int]) -> set[int]:
    """The axes of an array along which steps of these sizes lead."""
    found = set()
    for number in numbers:
        for d, stride in enumerate(ways.whole(shape).strides):
            if shape[d] > 1 and number >= stride:
                found.add(d)
                number %= stride
    return found

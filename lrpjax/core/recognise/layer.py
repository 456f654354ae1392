"""Weighted layers, pools and free-standing affine maps, each with the constants that follow it."""

import itertools

from lrpjax.core import dimensions
from lrpjax.core.graph import Node, Value, known_zero
from lrpjax.core.recognise import formulas, names
from lrpjax.core.recognise.draft import Draft
from lrpjax.core.units import Kernel, Region, Unit

KERNELS = {
    "dot_general": ("dense", dimensions.of_dot),
    "conv_general_dilated": ("conv", dimensions.of_convolution),
    "ragged_dot_general": ("dense", dimensions.of_ragged_dot),
}
MOVES = ("reshape", "transpose", "squeeze", "expand_dims", "convert_element_type", "copy")
COLLECTIVE_SUMS = ("psum", "psum_invariant")


def find(draft: Draft) -> None:
    for node in draft.carrying:
        if not draft.free(node) or len(node.carriers()) != 1:
            continue
        if node.name in KERNELS and not _scales(node):
            kind, labels_of = KERNELS[node.name]
            (x,) = node.carriers()
            place = 1 - node.inputs.index(x)
            kernel = Kernel(node, place, node.inputs[place])
            add(draft, kind, Region(x, [node], [kernel]), [labels_of(node)], node)
        elif node.name in ("reduce_sum", "reduce_window_sum"):
            nodes = _chain(draft, node, bias=False)
            name = "sum_pool" if len(nodes) == 1 else "avg_pool"
            draft.add(Unit("pool", nodes, node.carriers(), name, core=node))
        elif affine(node):
            nodes = _chain(draft, node, move=False)
            draft.add(Unit("affine", nodes, node.carriers(), core=node))


def _scales(node: Node) -> bool:
    """Whether a dot only multiplies elements one by one: a scale in another spelling."""
    if node.name != "dot_general":
        return False
    (contracted, _), batches = node.params["dimension_numbers"]
    kernel = 0 if node.inputs[1].carries else 1
    return not contracted and len(batches[kernel]) == len(node.inputs[kernel].shape)


def add(draft: Draft, kind: str, region: Region, labels: list, core: Node) -> None:
    """Adds a weighted layer: a region and what its kernels absorb behind it. `labels` says for each of all its
    kernels, and for each dimension of the region's output, which dimension of the constants it comes from, or None."""
    kernels = [k for kernel in region.kernels for k in kernel.all()]
    chain = _chain(draft, region.nodes[-1], [(k.scales, own) for k, own in zip(kernels, labels, strict=True)])
    _unpad(draft, region)
    draft.add(
        Unit(
            kind,
            [*region.nodes, *chain[1:]],
            [region.x],
            core=core,
            linear=region,
            flipped=_flipped(draft, chain),
        )
    )


def _flipped(draft: Draft, chain: list[Node]) -> bool:
    """Whether a layer is negated for a sigmoid that negates once more, `1 / (1 + exp(-(x @ w) - b))`: that is the
    sigmoid of the layer as it is written, and so are its contributions."""
    readers = {draft.unit_of.get(user) for user in chain[-1].out.users}
    if len(readers) != 1 or (reader := readers.pop()) is None or reader.kind != "activation":
        return False
    signs = [_negative(node, before.out) for before, node in itertools.pairwise(chain)]
    return sum(signs) % 2 == 1 and formulas.falls(reader.nodes, reader.operands[0])


def _negative(node: Node, value: Value) -> bool:
    """Whether a node behind a layer changes the sign."""
    if node.name == "sub":
        return node.inputs[0] is not value
    line = formulas.line(node)
    return line is not None and line[0] < 0


def _unpad(draft: Draft, region: Region) -> None:
    """Takes in zeros that x is padded with, so that they are no inputs: as if the layer padded. Where the relevance of
    what is padded is wanted, it stays outside: it would pass by a copy of it."""
    before: list[Node] = []
    node, padded = region.x.node, 0
    while node is not None and draft.free(node) and len(node.carriers()) == 1:
        if not draft.kept.isdisjoint(node.outputs):
            break
        zeros = pads(node)
        if not zeros and node.name not in MOVES:
            break
        before.insert(0, node)
        node, padded = node.carriers()[0].node, len(before) if zeros else padded
    if padded:
        region.nodes[:0] = own(draft, before[len(before) - padded :], region.nodes)
        region.x = region.nodes[0].carriers()[0]


def pads(node: Node) -> bool:
    """Whether a node puts zeros beside a value."""
    if node.name not in ("pad", "concatenate") or len(node.carriers()) != 1:
        return False
    return all(v.carries or known_zero(v) for v in node.inputs)


def own(draft: Draft, before: list[Node], nodes: list[Node]) -> list[Node]:
    """`before`, whose nodes lead to those of a unit, or copies of those that others read as well."""
    inside, shared = {*before, *nodes}, set()
    for node in reversed(before):
        users = {u for v in node.outputs for u in v.users}
        if any(map(draft.visible, node.outputs)) or not users <= inside - shared:
            shared.add(node)
    copies: dict[Value, Value] = {}
    found = []
    for node in before:
        if node in shared:
            found.append(draft.copy(node, [copies.get(v, v) for v in node.inputs]))
            copies.update(zip(node.outputs, found[-1].outputs, strict=True))
        else:
            found.append(node)
    for node in inside - shared:
        for i, v in enumerate(node.inputs):
            if v in copies:
                node.inputs[i] = copies[v]
                v.users.remove(node)
                copies[v].users.append(node)
    return found


def affine(node: Node) -> bool:
    """Adding, or multiplying with, something that carries no relevance."""
    if len(node.carriers()) != 1 or len(node.outputs) != 1:
        return False
    return node.name in ("add", "sub", "mul", "neg", "add_any") or (
        node.name == "div" and node.inputs[0].carries
    )


def _negates_for_activation(draft: Draft, node: Node, negated: bool) -> bool:
    """Whether a node, and what follows it, is a line of numbers with a negative slope in front of an activation.

    The negation is that of the function (`exp(-z)`), so the layer's kernel keeps its signs. Where the layer is
    `negated` before, `tanh(-(-b - z))`, it gives them back, but not in a sigmoid, which has a negation of its own.
    """
    slope = 1.0
    while (line := formulas.line(node)) is not None or node.name in MOVES:
        slope *= 1.0 if line is None else line[0]
        readers = {draft.unit_of.get(user) for user in node.out.users}
        functions = [unit for unit in readers if unit is not None and unit.kind == "activation"]
        if functions:
            falls = any(formulas.falls(unit.nodes, unit.operands[0]) for unit in functions)
            return slope < 0 and (falls or not negated)
        if len(node.out.users) != 1:
            return False
        node = node.out.users[0]
    return False


def _chain(
    draft: Draft, node: Node, kernels: list | None = None, bias: bool = True, move: bool = True
) -> list[Node]:
    """Follows the single use of a layer's output over constants (and the reshapes before them) as long as its
    kernels can absorb them: pairs (scales, which are entered; labels). None: any scale will do."""
    nodes, pending, negated = [node], [], False
    value = node.out
    free = [0] * len(value.shape)
    labelled = [({}, free)] if kernels is None else kernels
    folds = draft.folds and kernels is not None
    while len(value.users) == 1 and not (value.returned or (value in draft.kept and not folds)):
        user = value.users[0]
        if not draft.free(user) or not user.outputs or not user.out.carries:
            break
        stretches = user.name == "broadcast_in_dim" and names.size(user.out) == names.size(value)
        if move and (user.name in MOVES or stretches):
            if value in draft.kept and user.out.shape != value.shape and not stretches:
                break
            labelled = [(scales, dimensions.moved(user, own, value.shape)) for scales, own in labelled]
            pending.append(user)
        elif move and user.name in COLLECTIVE_SUMS and len(user.inputs) == 1:
            nodes += [*pending, user]  # a layer whose contraction is sharded: its rule needs the whole sum
            pending = []
        elif (
            affine(user)
            and user.out.shape == value.shape
            and not _negates_for_activation(draft, user, negated)
        ):
            if user.name in ("add", "sub", "add_any"):
                if not bias:
                    break
            else:
                varies = dimensions.varying(user, value)
                if any(own[d] is None for _, own in labelled for d in varies):
                    break
                for scales, own in labelled:
                    scales[user] = tuple(own[d] for d in varies)
            nodes += [*pending, user]
            pending = []
            negated ^= _negative(user, value)
        else:
            break
        value = user.out
    return nodes

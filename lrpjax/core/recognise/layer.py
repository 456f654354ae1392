"""Weighted layers, pools and free-standing affine maps, each with the constants that follow it."""

from lrpjax.core import dimensions
from lrpjax.core.graph import Node
from lrpjax.core.recognise import names
from lrpjax.core.recognise.draft import Draft
from lrpjax.core.units import Unit

KERNELS = {
    "dot_general": ("dense", dimensions.of_dot),
    "conv_general_dilated": ("conv", dimensions.of_convolution),
}
MOVES = ("reshape", "transpose", "squeeze", "expand_dims", "convert_element_type", "copy")
COLLECTIVE_SUMS = ("psum", "psum_invariant")


def find(draft: Draft) -> None:
    for node in draft.carrying:
        if not draft.free(node) or len(node.carriers()) != 1:
            continue
        if node.name in KERNELS:
            kind, labels_of = KERNELS[node.name]
            nodes, scales = _chain(draft, node, labels_of(node))
            draft.add(Unit(kind, nodes, node.carriers(), core=node, scales=scales))
        elif node.name in ("reduce_sum", "reduce_window_sum"):
            nodes, _ = _chain(draft, node, [0] * len(node.out.shape), bias=False)
            name = "sum_pool" if len(nodes) == 1 else "avg_pool"
            draft.add(Unit("pool", nodes, node.carriers(), name, core=node))
        elif _affine(node):
            nodes, _ = _chain(draft, node, [0] * len(node.out.shape), move=False)
            draft.add(Unit("affine", nodes, node.carriers(), core=node))


def _affine(node: Node) -> bool:
    """Adding, or multiplying with, something that carries no relevance."""
    if len(node.carriers()) != 1 or len(node.outputs) != 1:
        return False
    return node.name in ("add", "sub", "mul", "neg", "add_any") or (
        node.name == "div" and node.inputs[0].carries
    )


def _chain(
    draft: Draft, node: Node, labels: list, bias: bool = True, move: bool = True
) -> tuple[list[Node], dict[Node, tuple[int, ...]]]:
    """Follows the single use of a layer's output over constants (and the reshapes before them) as long as a
    kernel can absorb them.

    `labels` says for each dimension of the output which dimension of the kernel it comes from, or None.
    """
    nodes, pending = [node], []
    scales: dict[Node, tuple[int, ...]] = {}
    value = node.out
    while len(value.users) == 1 and not value.returned:
        user = value.users[0]
        if not draft.free(user) or not user.outputs or not user.out.carries:
            break
        stretches = user.name == "broadcast_in_dim" and names.size(user.out) == names.size(value)
        if move and (user.name in MOVES or stretches):
            if value in draft.kept and user.out.shape != value.shape and not stretches:
                break
            labels = dimensions.moved(user, labels, value.shape)
            pending.append(user)
        elif move and user.name in COLLECTIVE_SUMS and len(user.inputs) == 1:
            nodes += [*pending, user]  # a layer whose contraction is sharded: its rule needs the whole sum
            pending = []
        elif _affine(user) and user.out.shape == value.shape:
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

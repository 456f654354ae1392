"""Which dimension of a weighted layer's output comes from which dimension of its kernel: what a scale behind
the layer may be folded along."""

from lrpjax.core.graph import Node, Value


def varying(node: Node, value: Value) -> list[int]:
    """The dimensions along which the constant operand of an affine node is not one number."""
    if len(node.inputs) == 1:
        return []
    other = next(v for v in node.inputs if v is not value)
    return [d for d, n in enumerate(other.shape) if n > 1]


def of_dot(node: Node, at: int | None = None) -> list[int | None]:
    """For each output dimension of a dot, the dimension of the constant operand that it comes from. The other one is
    at place `at`; without, it is that which carries relevance."""
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = node.params["dimension_numbers"]
    data_left = node.inputs[0].carries if at is None else at == 0
    weights = node.inputs[1] if data_left else node.inputs[0]
    batch, contract = (rhs_batch, rhs_contract) if data_left else (lhs_batch, lhs_contract)
    free = [d for d in range(len(weights.shape)) if d not in batch and d not in contract]
    others = [None] * (len(node.out.shape) - len(batch) - len(free))
    return [*batch, *others, *free] if data_left else [*batch, *free, *others]


def of_ragged_dot(node: Node) -> list[int | None]:
    """As `of_dot`, where each group of rows has a matrix of its own."""
    numbers = node.params["ragged_dot_dimension_numbers"]
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = numbers.dot_dimension_numbers
    labels: list[int | None] = [None] * len(node.out.shape)
    ragged = list(numbers.lhs_ragged_dimensions)
    if node.inputs[0].carries and not {*ragged} & {*lhs_contract, *lhs_batch}:
        gone = {*rhs_contract, *rhs_batch, *numbers.rhs_group_dimensions}
        free = [d for d in range(len(node.inputs[1].shape)) if d not in gone]
        labels[: len(rhs_batch)] = rhs_batch
        labels[len(labels) - len(free) :] = free
    return labels


def of_product(node: Node, place: int, value: Value, moves: list[Node]) -> list[int | None]:
    """For each dimension of an elementwise product, that of the constants before they were spread out."""
    labels: list[int | None] = [d if n > 1 else None for d, n in enumerate(value.shape)]
    for move in moves:
        spread: list[int | None] = [None] * len(move.out.shape)
        for d, to in enumerate(move.params["broadcast_dimensions"]):
            spread[to] = labels[d]
        labels = spread
    return labels if labels or not node.out.shape else [None] * len(node.out.shape)


def of_convolution(node: Node, at: int | None = None) -> list[int | None]:
    dn = node.params["dimension_numbers"]
    labels: list[int | None] = [None] * len(node.out.shape)
    if node.inputs[0].carries if at is None else at == 0:
        labels[dn.out_spec[1]] = dn.rhs_spec[0]
    elif node.params["batch_group_count"] == 1:
        labels[dn.out_spec[0]] = dn.lhs_spec[0]
    return labels


def moved(node: Node, labels: list, shape: tuple[int, ...]) -> list:
    """Carries the labels of dimensions through a node that only moves elements."""
    p, new = node.params, node.out.shape
    if node.name == "transpose":
        return [labels[d] for d in p["permutation"]]
    if node.name == "squeeze":
        gone = {d % len(shape) for d in p["dimensions"]}
        return [label for d, label in enumerate(labels) if d not in gone]
    if node.name == "broadcast_in_dim":
        moved: list = [None] * len(new)
        for d, label in zip(p["broadcast_dimensions"], labels, strict=True):
            moved[d] = label
        return moved
    if node.name in ("convert_element_type", "copy"):
        return labels
    moved = [None] * len(new)
    head = 0
    while head < min(len(shape), len(new)) and shape[head] == new[head]:
        moved[head] = labels[head]
        head += 1
    tail = 1
    while tail <= min(len(shape), len(new)) - head and shape[-tail] == new[-tail]:
        moved[-tail] = labels[-tail]
        tail += 1
    return moved

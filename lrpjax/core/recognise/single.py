"""What no other recogniser took: units of one node, by the family of its primitive."""

from lrpjax.core.graph import Node
from lrpjax.core.primitives import FACTORISATIONS
from lrpjax.core.recognise import names, solve
from lrpjax.core.recognise.draft import Draft
from lrpjax.core.units import Unit

CONTROL = ("scan", "cond", "while", "remat", "shard_map")
MAXIMA = ("reduce_window_max", "reduce_window_min", "reduce_max", "reduce_min")


def find(draft: Draft) -> None:
    for node in draft.carrying:
        if draft.free(node):
            kind, name = _kind(draft, node)
            bodies = [draft.level_of(body) for body in node.bodies]
            draft.add(Unit(kind, [node], node.carriers(), name, bodies=bodies))


def _kind(draft: Draft, node: Node) -> tuple[str, str]:
    """(kind, name of the function)"""
    family, carriers = draft.family(node), len(node.carriers())
    if node.call is not None:
        return "call", node.call.name
    if family in CONTROL:
        return family, ""
    if family == "structural":
        return ("pool", "max_pool") if node.name in MAXIMA else ("structural", "")
    if family == "sum":
        return ("sum" if carriers > 1 else "linear"), ""
    if family == "custom":
        return "custom", getattr(node.params["call"].function, "__name__", "")
    if family == "reduce_product":
        return "product", family
    if family == "logsumexp":
        return "softmax", family
    if node.name in ("max", "min") and carriers > 1:  # the larger, or smaller, one takes all
        return "structural", ""
    if family in ("elementwise", "quotient") and len(node.outputs) == 1 and carriers == 1:
        return "activation", names.name_of([node], node.carriers()[0])
    if family == "bilinear" and carriers == 1:
        return "linear", ""
    return "unknown", solve.name_of(draft, node) if node.name in FACTORISATIONS else ""

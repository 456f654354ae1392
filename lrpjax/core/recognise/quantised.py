"""Quantised layers: the units of what `lrpjax.core.quantised` found."""

import dataclasses

from lrpjax.core.graph import Value
from lrpjax.core.quantised import Quantised
from lrpjax.core.recognise.draft import Draft
from lrpjax.core.units import Unit

KINDS = {"dot_general": "dense", "conv_general_dilated": "conv"}


@dataclasses.dataclass(eq=False)
class QuantisedLayer(Unit):
    """A weighted layer whose nodes begin at its core, which reads codes of the operand."""

    how: Quantised | None = None

    @property
    def coded(self) -> frozenset[Value]:
        return frozenset(v for node in self.nodes for v in node.inputs)


def find(draft: Draft) -> None:
    """The units; what they quantise stays visible, so that no activation is grown across it."""
    draft.kept = draft.kept.union(found.x for found in draft.graph.quantised)
    for found in draft.graph.quantised:
        if found.x.carries and all(map(draft.free, found.behind)):
            kind = KINDS[found.core.name]
            draft.add(QuantisedLayer(kind, found.behind, [found.x], core=found.core, how=found))

"""Values that a program computes with, though its result does not depend on them: they are divided or subtracted
here, and multiplied or added again there.

Such a value takes no relevance: it is a constant of the relevance, as if the program had stopped its gradient. A
finder is a function of a graph, marked with what carries relevance, and of the families of its primitives; it
gives the values that cancel. A new one is a file here and a line in FINDERS.
"""

from collections.abc import Callable, Mapping

from lrpjax.core.cancelling import scales, stabilisers
from lrpjax.core.graph import Graph, Value

FINDERS: tuple[Callable[[Graph, Mapping[str, str]], frozenset[Value]], ...] = (
    stabilisers.find,
    scales.find,
)


def find(graph: Graph, families: Mapping[str, str]) -> frozenset[Value]:
    """All values of a marked graph, and of its sub-programs, that cancel."""
    return frozenset(value for finder in FINDERS for value in finder(graph, families))

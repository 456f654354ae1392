"""Values that a program computes with, though its result does not depend on them: they are divided or subtracted
here, and multiplied or added again there.

Such a value takes no relevance: it is a constant of the relevance, as if the program had stopped its gradient. A
finder is a function of a graph, marked with what carries relevance, and of the families of its primitives; it
gives the values that cancel. A new one is a file here and a line in EXACT, or in ROUNDED if they cancel but for
what is rounded between: such a value is left out of relevance, but its derivative is not zero.
"""

from collections.abc import Callable, Mapping

from lrpjax.core.cancelling import scales, stabilisers
from lrpjax.core.graph import Graph, Value

Finder = Callable[[Graph, Mapping[str, str]], frozenset[Value]]

EXACT: tuple[Finder, ...] = (stabilisers.find,)
ROUNDED: tuple[Finder, ...] = (scales.find,)


def find(graph: Graph, families: Mapping[str, str], rounded: bool = True) -> frozenset[Value]:
    """All values of a marked graph, and of its sub-programs, that cancel; with `rounded`, also those that do so up to
    rounding."""
    finders = (*EXACT, *ROUNDED) if rounded else EXACT
    return frozenset(value for finder in finders for value in finder(graph, families))

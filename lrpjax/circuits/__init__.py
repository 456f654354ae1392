"""Circuits: which parts of a function, and which features of it, bring about what it says.

`patch` measures it by exchanging values between two runs, `attribute` and `attribute_edges` estimate it for all
values at once (RelP, attribution patching), `split` takes later values apart by an earlier one, and `intervene` runs
a function with values of its own replaced. `reconstructed` and `transcoded` put sparse autoencoders and transcoders
into a function, so that their features are named values; `graph` makes of a linearised program (`lrpjax.linearise`) a
graph of features, errors, inputs and outputs, which can be pruned, drawn (`lrpjax.viz.circuit`) and exported.
"""

from lrpjax.circuits.features import reconstructed, transcoded
from lrpjax.circuits.graphs import Graph, GraphError, Node, Scores
from lrpjax.circuits.making import graph
from lrpjax.circuits.patching import Split, attribute, attribute_edges, intervene, patch, split
from lrpjax.circuits.replacing import PatchError

__all__ = [
    "Graph",
    "GraphError",
    "Node",
    "PatchError",
    "Scores",
    "Split",
    "attribute",
    "attribute_edges",
    "graph",
    "intervene",
    "patch",
    "reconstructed",
    "split",
    "transcoded",
]

"""How the concepts of one layer are made up of those of the layer below: the attribution graph of a prediction."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.tree_util import keystr, tree_leaves_with_path

from lrpjax.circuits import Graph, graph
from lrpjax.composites import Composite
from lrpjax.explore.findings import ExploreError
from lrpjax.linearised import INPUT, linearise

__all__ = ["attribution_graph"]


def attribution_graph(
    f: Callable,
    composite: Composite | None,
    x: Any,
    *,
    at: str | Sequence[str],
    target: Any = "max",
    concepts: int | None = 5,
    channel_axis: int = -1,
    batch: int = 16,
) -> Graph:
    """The most relevant channels of some layers for a prediction, and what relevance goes from one to another.

    The attribution graph of Achtibat et al. 2023 (Methods): nodes are channels, with their relevance summed over
    positions; the edge from an upper channel j to a lower one i is R(i | j), the relevance of i when only what passes
    through j is kept, `concepts.channel_relevance(f, composite, at=lower, conditions={upper: j})`. Here an edge counts
    what goes from the one to the other directly, without passing through another of the layers: in a chain of layers
    that is the same, and past skip connections nothing is counted twice. It is `circuits.graph` with the channels as
    nodes, whose edges add up: Σ_i R(i | j) + remainder_j + absorbed_j = R_j.

    Args:
        f: as for `lrpjax.relevance`.
        composite: as for `lrpjax.relevance`, one that gives relevance and no gradients.
        x: floating [1, ...], one sample; of several the relevances are summed.
        at: names of values, in any order, as for `lrpjax.relevance`: the layers.
        target: as for `lrpjax.relevance`; the default explains the class predicted.
        concepts: how many channels of each layer, those of the largest |relevance|; None for all. What goes to others
            is in `Graph.remainder`.
        channel_axis: axis of the channels in the values' own shapes.
        batch: how many backward passes at once, of which every node takes one.

    Returns:
        A `circuits.Graph`, with one node for each array of the input: `viz.circuit` draws it, `to_networkx` and
        `to_json` hand it on.

    Raises:
        ExploreError: a value has no such axis. Else as `lrpjax.linearise` and `circuits.graph`.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> from lrpjax import explore
    >>> w, v = jnp.array([[1.0, 0.0], [2.0, 1.0]]), jnp.array([[1.0, 1.0], [0.0, 3.0]])
    >>> f = lambda x: lrpjax.tag(jax.nn.relu(lrpjax.tag(jax.nn.relu(x @ w), "low") @ v), "high").sum(1, keepdims=True)
    >>> found = explore.attribution_graph(f, lrpjax.composites.epsilon(0.0), jnp.ones((1, 2)), at=["high", "low"])
    >>> for source, target, weight in found.edges():
    ...     print(f"{source} -> {target}: {weight:.1f}")
    input -> low[0]: 6.0
    input -> low[1]: 3.0
    low[0] -> high[0]: 3.0
    low[0] -> high[1]: 3.0
    low[1] -> high[1]: 3.0
    high[0] -> output[0, 0]: 3.0
    high[1] -> output[0, 0]: 6.0
    """
    lin = jax.jit(lambda x: linearise(f, composite, x, at=at))(x)
    split: dict[str, tuple[int, ...]] = {
        INPUT + keystr(key): () for key, _ in tree_leaves_with_path(lin.inputs)
    }
    for name, value in lin.values.items():
        loops = len(lin.loops(name))
        own = value.ndim - loops
        if not -own <= channel_axis < own:
            raise ExploreError(
                f"{name!r} has shape {value.shape[loops:]}: it has no axis {channel_axis} for channels"
            )
        split[name] = (*range(loops), loops + channel_axis % own)
    return graph(lin, target, split=split, tokens=None, at_most=concepts, batch=batch)

"""Attribution graphs: features, errors, inputs and outputs, what relevance goes from one directly to another, and what
is left of them when they are pruned."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from lrpjax.circuits import exports
from lrpjax.errors import LrpjaxError

__all__ = ["Graph", "GraphError", "Node", "Scores"]


class GraphError(LrpjaxError, ValueError):
    """A graph cannot be made, or pruned, as it was asked for.

    >>> import jax.numpy as jnp, lrpjax
    >>> lin = lrpjax.linearise(lambda x: lrpjax.tag(2.0 * x, "h").sum(), None, jnp.ones(3), at="h")
    >>> lrpjax.circuits.graph(lin, at_most=0)
    Traceback (most recent call last):
    ...
    lrpjax.circuits.graphs.GraphError: at_most must be at least 1, not 0
    >>> lrpjax.circuits.graph(lin).prune(nodes=80)
    Traceback (most recent call last):
    ...
    lrpjax.circuits.graphs.GraphError: nodes is a share of the influence, between 0 and 1, not 80
    """


@dataclasses.dataclass(frozen=True)
class Node:
    """A node of a `Graph`: one element of a named value, or a sum of them.

    path: the value's. index: where along the axes that are split. kind: "feature", "error", "input" or "output".
    value: what the function computed; of several elements the root of the sum of their squares. relevance: the sum of
    theirs. layer: 0 for inputs, then the places of the graph in the order of the program, the output last. token: the
    place along the axis of tokens, or None. feature: the number along the other split axes (loops apart), or None.

    >>> node = Node("mlp", (2, 7), "feature", 1.5, -0.5, 1, 2, 7)
    >>> print(node.name, node.kind)
    mlp[2, 7] feature
    """

    path: str
    index: tuple[int, ...]
    kind: str
    value: float
    relevance: float
    layer: int
    token: int | None = None
    feature: int | None = None

    @property
    def name(self) -> str:
        """The path with the index: what the node is called in exports."""
        return f"{self.path}[{', '.join(map(str, self.index))}]" if self.index else self.path


class Scores(NamedTuple):
    """How much of a graph runs through features, and not through errors: `Graph.scores`.

    replacement: the share of the inputs in the influence of inputs and errors. completeness: the share of what comes
    from others than errors in the edges, which are weighted by the influence of where they end.

    >>> print(Scores(0.5, 0.75))
    Scores(replacement=0.5, completeness=0.75)
    """

    replacement: float
    completeness: float


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """Features, errors, inputs and outputs, and the relevance between them: `lrpjax.circuits.graph` makes it.

    nodes: in the order of their layers, so that every edge leads from an earlier to a later one. weights: float64 [n,
    n], weights[t, s] the relevance R_{s ← t} that node t hands directly to s. remainder: float64 [n], what t hands to
    elements that are no nodes, or along edges that were dropped. absorbed: float64 [n], what biases and stabilisers
    keep; so that Σ_s weights[t, s] + remainder[t] + absorbed[t] is the relevance of t, for features and outputs.
    ranks: float64 [n] in a pruned graph, how much of the influence the nodes down to this one made up before.
    node_share, edge_share: how much of the influence the kept nodes, and edges, made up in the graph that was pruned.

    >>> import numpy as np
    >>> nodes = (Node("x", (), "input", 1.0, 3.0, 0), Node("h", (), "feature", 1.0, 2.0, 1),
    ...          Node("y", (), "output", 1.0, 3.0, 2))
    >>> three = Graph(nodes, np.array([[0.0, 0, 0], [2, 0, 0], [1, 2, 0]]), np.zeros(3), np.zeros(3))
    >>> print(three.edges())
    [('x', 'h', 2.0), ('x', 'y', 1.0), ('h', 'y', 2.0)]
    >>> print(three.influence().round(3), three.strongest(nodes=0).edges())
    [1.    0.667 0.   ] [('x', 'y', 1.0)]
    """

    nodes: tuple[Node, ...]
    weights: np.ndarray
    remainder: np.ndarray
    absorbed: np.ndarray
    ranks: np.ndarray | None = None
    node_share: float = 1.0
    edge_share: float = 1.0

    def __post_init__(self):
        if np.triu(self.weights).any():
            raise GraphError(
                "the nodes of a graph stand in an order in which every edge leads to a later one"
            )

    def __repr__(self) -> str:
        kinds = [node.kind for node in self.nodes]
        said = ", ".join(f"{kinds.count(kind)} {kind}s" for kind in dict.fromkeys(kinds))
        return f"Graph({said}, {np.count_nonzero(self.weights)} edges)"

    def where(self, *kinds: str) -> np.ndarray:
        """Which nodes are of these kinds, bool [n]."""
        return np.array([node.kind in kinds for node in self.nodes], bool)

    def edges(self) -> list[tuple[str, str, float]]:
        """(name of the source, name of the target, weight) of all edges that are not 0, by target."""
        targets, sources = np.nonzero(self.weights)
        return [
            (self.nodes[s].name, self.nodes[t].name, float(self.weights[t, s]))
            for t, s in zip(targets, sources, strict=True)
        ]

    def influence(self, outputs: ArrayLike | None = None) -> np.ndarray:
        """How much of the output comes through every node, along all ways: w B with B = A + A² + … = (I − A)⁻¹ − I.

        A[t, s] = |weights[t, s]| / Σ_s |weights[t, s]|, and w are the weights of the outputs (Ameisen et al. 2025,
        on pruning; `compute_influence` of circuit-tracer). Since relevance is the edge of the paper
        times a factor of the target, A is the same. What went to the remainder does not count.

        Args:
            outputs: numbers that are not negative, one for each output node, such as probabilities; None for
                |relevance| / Σ |relevance|.

        Returns:
            float64 [n]; 0 at outputs.

        Raises:
            GraphError: the weights do not fit.
        """
        return _influence(_normalised(self.weights), self._of_outputs(outputs))

    def scores(self, outputs: ArrayLike | None = None) -> Scores:
        """How much runs through features and not through errors (`compute_graph_scores` of circuit-tracer).

        With I the influence and A as in `influence`, replacement = Σ_inputs I / (Σ_inputs I + Σ_errors I) and
        completeness = Σ_t (I + w)_t (1 − Σ_errors A[t, s]) / Σ_t (I + w)_t. NaN where neither inputs nor errors have
        any.

        Args:
            outputs: as for `influence`.
        """
        A, w = _normalised(self.weights), self._of_outputs(outputs)
        influence, errors = _influence(A, w), self.where("error")
        inputs, wrong = influence[self.where("input")].sum(), influence[errors].sum()
        through, right = influence + w, 1 - A[:, errors].sum(1)
        ends = inputs + wrong
        return Scores(
            float(inputs / ends) if ends else math.nan, float((through * right).sum() / through.sum())
        )

    def prune(self, nodes: float = 0.8, edges: float = 0.98, outputs: ArrayLike | None = None) -> "Graph":
        """The nodes, and then the edges among them, that make up these shares of the influence.

        As `prune_graph` of circuit-tracer: the fewest nodes whose influence sums to the share, together with all
        inputs and outputs; then the fewest edges, by A[t, s] (I + w)_t within the nodes that are left; then features
        without an edge in or out go, and errors without one out, until none is left. Ties are kept together. What has
        no influence at all is never kept, which is the one difference.

        Args:
            nodes, edges: shares, 0 … 1.
            outputs: as for `influence`.

        Returns:
            A `Graph`; what led to nodes and along edges that are dropped is in its remainder.

        Raises:
            GraphError: a share is out of range, or the weights do not fit.
        """
        for what, share in (("nodes", nodes), ("edges", edges)):
            if not 0 <= share <= 1:
                raise GraphError(f"{what} is a share of the influence, between 0 and 1, not {share}")
        w = self._of_outputs(outputs)
        influence = _influence(_normalised(self.weights), w)
        free, features = self.where("feature", "error"), self.where("feature")
        kept = _making_up(influence, nodes) | ~free
        A = _normalised(self.weights * kept[:, None] * kept)
        by_edge = A * (_influence(A, w) + w)[:, None]
        on = _making_up(by_edge, edges)
        while True:
            loose = kept & ((free & ~on.any(0)) | (features & ~on.any(1)))
            if not loose.any():
                break
            kept &= ~loose
            on &= kept[:, None] & kept
        return self._part(
            kept,
            on,
            node_share=_share(influence, kept),
            edge_share=_share(by_edge, on),
            ranks=self._ranks(influence),
        )

    def strongest(
        self, nodes: int | None = None, edges: int | None = None, threshold: float = 0.0
    ) -> "Graph":
        """The features and errors of the largest |relevance|, and the edges of the largest |weight|.

        Args:
            nodes: how many features and errors at most; None for all.
            edges: how many edges at most.
            threshold: edges stay whose |weight| is at least this share of Σ |relevance| of the outputs.

        Returns:
            A `Graph`; what is dropped is in its remainder. Inputs and outputs stay, and nodes without edges too.

        Raises:
            GraphError: a number is negative.
        """
        for what, number in (("nodes", nodes), ("edges", edges), ("threshold", threshold)):
            if number is not None and number < 0:
                raise GraphError(f"{what} must not be negative, but is {number}")
        free = self.where("feature", "error")
        sizes = np.where(free, np.abs([node.relevance for node in self.nodes]), -1.0)
        kept = ~free
        kept[np.argsort(-sizes, kind="stable")[: free.sum() if nodes is None else min(nodes, free.sum())]] = (
            True
        )
        size = np.abs(self.weights) * kept[:, None] * kept
        scale = np.abs([node.relevance for node in self.nodes if node.kind == "output"]).sum()
        on = (size > 0) & (size >= threshold * scale)
        if edges is not None:
            order = np.argsort(-np.where(on, size, -1.0), axis=None, kind="stable")
            chosen = np.zeros(on.size, bool)
            chosen[order[:edges]] = True
            on &= chosen.reshape(on.shape)
        A, w = _normalised(self.weights), self._of_outputs(None)
        influence = _influence(A, w)
        return self._part(
            kept,
            on,
            node_share=_share(influence, kept),
            edge_share=_share(A * (influence + w)[:, None], on),
            ranks=self._ranks(influence),
        )

    def to_networkx(self) -> Any:
        """A `networkx.DiGraph`, from sources to targets: nodes by name with the fields of `Node` and their
        `influence`, `remainder` and `absorbed`; edges that are not 0, with `weight`.

        Raises:
            ImportError: networkx is not installed.
        """
        return exports.to_networkx(self)

    def to_json(
        self,
        path: str | Path | None = None,
        *,
        slug: str = "graph",
        scan: str = "lrpjax",
        tokens: Sequence[str] | None = None,
        prompt: str | None = None,
        labels: Mapping[str, str] | None = None,
        probabilities: Sequence[float] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The graph in the format that the viewers of circuit-tracer and Neuronpedia show.

        Args:
            path: a file to write; None writes none.
            slug, scan: what the viewers call the graph, and the model.
            tokens: the text of every token; None for their numbers.
            prompt: the whole text; None for the tokens, joined.
            labels: {name of a node: what it stands for}.
            probabilities: of the outputs, in the order of the nodes.
            metadata: further entries, such as "feature_details" (where Neuronpedia finds the features).

        Returns:
            What the file holds: {"metadata", "qParams", "nodes", "links"}. `influence` is how much of the influence
            the nodes down to this one make up, by which viewers prune further.

        Raises:
            GraphError: fewer tokens, or another number of probabilities, than the graph has; or labels for nodes that
                it has not. ValueError: a number is not finite. OSError: the file cannot be written.
        """
        outputs = [node for node in self.nodes if node.kind == "output"]
        reached = 1 + max((node.token or 0 for node in self.nodes), default=0)
        if tokens is not None and len(tokens) < reached:
            raise GraphError(f"the graph has nodes at {reached} tokens, but was given {len(tokens)}")
        if probabilities is not None and len(probabilities) != len(outputs):
            raise GraphError(
                f"the graph has {len(outputs)} outputs, but was given {len(probabilities)} probabilities"
            )
        strange = set(labels or {}) - {node.name for node in self.nodes}
        if strange:
            raise GraphError(f"the graph has no nodes {', '.join(sorted(strange))} that labels could name")
        ranks = self._ranks(self.influence()) if self.ranks is None else self.ranks
        texts = [str(t) for t in range(reached)] if tokens is None else list(tokens)
        whole = "".join(texts) if prompt is None else prompt
        made = exports.viewer(
            self, ranks, slug, scan, texts, whole, labels or {}, probabilities, metadata or {}
        )
        if path is not None:
            exports.write(made, Path(path))
        return made

    def _of_outputs(self, outputs: ArrayLike | None) -> np.ndarray:
        """Weights of the output nodes, float64 [n], 0 at others."""
        at = self.where("output")
        sizes = np.abs([node.relevance for node in self.nodes])[at]
        given = sizes / sizes.sum() if outputs is None else np.asarray(outputs, np.float64)
        if given.shape != sizes.shape or (given < 0).any() or not given.any():
            raise GraphError(
                f"outputs are {at.sum()} weights that are not negative, and not all 0, but were given as {given}"
            )
        w = np.zeros(len(self.nodes))
        w[at] = given
        return w

    def _ranks(self, influence: np.ndarray) -> np.ndarray:
        order = np.argsort(-influence, kind="stable")
        ranks = np.empty_like(influence)
        ranks[order] = np.cumsum(influence[order]) / (influence.sum() or 1.0)
        return ranks

    def _part(self, kept: np.ndarray, on: np.ndarray, **fields: Any) -> "Graph":
        """The graph of some nodes and some edges; what else there was is in the remainder."""
        left = np.where(on & kept[:, None] & kept, self.weights, 0.0)
        lost = (self.weights - left).sum(1)
        fields["ranks"] = fields["ranks"][kept]
        return dataclasses.replace(
            self,
            nodes=tuple(node for node, k in zip(self.nodes, kept, strict=True) if k),
            weights=left[np.ix_(kept, kept)],
            remainder=(self.remainder + lost)[kept],
            absorbed=self.absorbed[kept],
            **fields,
        )


def _normalised(weights: np.ndarray) -> np.ndarray:
    """|weights|, over the sum of each row where it is not 0."""
    sizes = np.abs(weights)
    sums = sizes.sum(1, keepdims=True)
    return np.divide(sizes, sums, out=np.zeros_like(sizes), where=sums > 0)


def _share(scores: np.ndarray, kept: np.ndarray) -> float:
    whole = scores.sum()
    return float(scores[kept].sum() / whole) if whole else 1.0


def _influence(A: np.ndarray, w: np.ndarray) -> np.ndarray:
    """w (A + A² + …). Every edge leads to a later node, so that one sweep from the last node on does."""
    total = w.copy()
    for t in range(len(w) - 1, -1, -1):
        total[:t] += total[t] * A[t, :t]
    return total - w


def _making_up(scores: np.ndarray, share: float) -> np.ndarray:
    """The fewest of the scores, none negative, that make up a share of their sum, the largest; and ties with them."""
    order = np.sort(scores, axis=None)[::-1]
    sums = np.cumsum(order)
    if not sums.size or not sums[-1] > 0:
        return np.zeros(scores.shape, bool)
    # The sum of numbers in another order may end a rounding below the share that it makes up.
    last = min(int(np.searchsorted(sums, (share - 1e-12) * sums[-1])), len(sums) - 1)
    return (scores >= order[last]) & (scores > 0)


# ----------------------------------------------------------------------------------------------- a graph from a program

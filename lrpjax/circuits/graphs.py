"""Attribution graphs: features, errors, inputs and outputs, and what relevance goes from one directly to another."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lrpjax._evaluate import map_batched
from lrpjax.circuits import exports
from lrpjax.circuits.features import ERROR
from lrpjax.core import compat
from lrpjax.errors import LrpjaxError
from lrpjax.linearised import INPUT, OUTPUT, Linearised

__all__ = ["Graph", "GraphError", "Node", "Scores", "graph"]


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
            nodes, edges: shares, 0 … 1. outputs: as for `influence`.

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
            nodes: how many features and errors at most; None for all. edges: how many edges at most. threshold: edges
                stay whose |weight| is at least this share of Σ |relevance| of the outputs.

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
            path: a file to write; None writes none. slug, scan: what the viewers call the graph, and the model.
            tokens: the text of every token; None for their numbers. prompt: the whole text; None for the tokens,
                joined.
            labels: {name of a node: what it stands for}. probabilities: of the outputs, in the order of the nodes.
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


@dataclasses.dataclass(frozen=True)
class _Place:
    """An array whose elements are nodes: its path, kind, values, relevance, leading axes of loops, split axes, axis of
    tokens."""

    path: str
    kind: str
    value: np.ndarray
    relevance: np.ndarray
    loops: int
    split: tuple[int, ...]
    token: int | None

    @functools.cached_property
    def groups(self) -> np.ndarray:
        """For every element the number of its group: of those that share a place along the split axes."""
        shape = self.value.shape
        own = [n if a in self.split else 1 for a, n in enumerate(shape)]
        return np.broadcast_to(np.arange(math.prod(own)).reshape(own), shape)

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(self.value.shape[a] for a in self.split)

    def summed(self, array: np.ndarray) -> np.ndarray:
        return np.bincount(self.groups.ravel(), array.ravel(), math.prod(self.sizes))

    def node(self, group: int, value: float, relevance: float) -> Node:
        index = tuple(int(i) for i in np.unravel_index(group, self.sizes))
        along = dict(zip(self.split, index, strict=True))
        last = self.value.ndim - 1
        numbered = lambda a: a >= self.loops and a != self.token and (a == last or self.value.shape[a] > 1)
        others = list(filter(numbered, self.split))
        shape = [self.value.shape[a] for a in others]
        feature = int(np.ravel_multi_index([along[a] for a in others], shape)) if others else None
        token = None if self.token is None else along.get(self.token)
        return Node(self.path, index, self.kind, value, relevance, 0, token, feature)


def graph(
    lin: Linearised,
    seed: Any = None,
    *,
    nodes: str | Sequence[str] | None = None,
    split: Mapping[str, int | Sequence[int]] | str | None = "features",
    tokens: int | Mapping[str, int | None] | None = -2,
    at_most: int | None = None,
    threshold: float | None = None,
    batch: int = 16,
) -> Graph:
    """The attribution graph of a linearised program: its features, errors, inputs and outputs, and all direct edges.

    An edge is the relevance R_{s ← t} that node s gets of that of node t without passing through another named value:
    in the frozen program h_t = Σ_s J_ts h_s + …, and R_{s ← t} = c_t J_ts h_s, where c_t = R_t / h_t. In the
    attribution graphs of Ameisen et al. 2025 ("Circuit Tracing: Revealing Computational Graphs in Language Models") an
    edge is J_ts h_s; here each is multiplied by what its target matters for the output, so that edges add up to
    relevance: Σ_s R_{s ← t} + remainder_t + absorbed_t = R_t, and in a graph of all elements also Σ_t R_{s ← t} = R_s.

    One forward pass was run by `lrpjax.linearise`. Here one backward pass gives the relevance of all nodes, and one
    more for each node that is a feature or an output gives its edges, `batch` of them at once.

    Args:
        lin: from `lrpjax.linearise(..., at=[...])`. The features of `circuits.reconstructed` and `transcoded` are
            named by their name, and their errors by name + "/error". seed: as for `lin.pull`; every element of the
            output that it gives relevance is an output node.
        nodes: paths of the named values whose elements are nodes; None for all. Relevance passes through the others.
            The input and the output always are; a named value that no input leads to (an embedding, where the input is
            token numbers) counts as input.
        split: which axes (loops first) of a value are told apart; along the others elements are one node, whose
            relevance is the sum. "features": all of features and outputs; all but the last of errors and inputs, but
            the only axis of an input with one. A mapping {path: axes} says so for some, "input" and "output" among
            them. None: every value is one node; only the steps of loops, which lead to each other, are told apart,
            always.
        tokens: the axis of tokens, in values with at least two axes besides loops, where it has more than one token or
            no value has; a mapping {path: axis} for others; None for none. Viewers and drawings go by it.
        at_most: how many nodes of each value at most, those of the largest |relevance|. threshold: only as many of
            them as make up this share of Σ |relevance| of the value. Both hold for features and inputs; errors and
            outputs are all kept.
        batch: how many backward passes at once.

    Returns:
        A `Graph` with float64 numbers. Features that are not active, or get no relevance, are no nodes.

    Raises:
        PathError: a path is not named. GraphError: at_most is not positive; threshold is not in (0, 1]; split names
        axes that the value has not, or leaves out those of a loop; the seed gives no relevance; the composite is of
        gradients, which do not add up, or its backward pass is no linear map; or under `jax.jit`, where it is not
        known which nodes there are. TargetError: as `lin.pull`.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> from lrpjax import circuits
    >>> w = jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, -1.0]])
    >>> def f(x):
    ...     h = circuits.reconstructed(x, lambda h: jax.nn.relu(h @ w), lambda a: a @ w.T / 2, "sae")
    ...     return h @ jnp.array([[1.0], [2.0]])
    >>> lin = lrpjax.linearise(f, lrpjax.composites.epsilon(0.0), jnp.array([4.0, 2.0]), at=["sae", "sae/error"])
    >>> graph = circuits.graph(lin, 0)
    >>> graph
    Graph(2 inputs, 3 features, 1 errors, 1 outputs, 8 edges)
    >>> for source, target, weight in graph.edges():
    ...     print(f"{source} -> {target}: {weight:.1f}")
    input[0] -> sae[0]: 2.0
    input[1] -> sae[1]: 2.0
    input[0] -> sae[2]: -2.0
    input[1] -> sae[2]: 1.0
    sae[0] -> output[0]: 2.0
    sae[1] -> output[0]: 2.0
    sae[2] -> output[0]: -1.0
    sae/error -> output[0]: 5.0
    >>> print(round(graph.scores().completeness, 2))
    0.8
    """
    if at_most is not None and at_most < 1:
        raise GraphError(f"at_most must be at least 1, not {at_most}")
    if threshold is not None and not 0 < threshold <= 1:
        raise GraphError(f"threshold is a share of relevance, above 0 and at most 1, not {threshold}")
    if batch < 1:
        raise GraphError(f"batch must be at least 1, not {batch}")
    if isinstance(split, str) and split != "features":
        raise GraphError(f'split is "features", a mapping from paths to axes, or None, not {split!r}')
    if lin._layout.method == "gradient":
        raise GraphError("the composite gives gradients, which do not add up: take one that gives relevance")
    if lin._layout.nonlinear:
        raise GraphError(
            "edges add up where relevance is a linear map of that of the output; these rules make none: "
            f"{'; '.join(lin._layout.nonlinear)}"
        )
    if not all(compat.is_known(leaf) for leaf in jax.tree.leaves((lin.output, lin._seen, lin._leaves))):
        raise GraphError(
            "which nodes a graph has depends on numbers: make it outside of jax.jit and jax.vmap, from a linearised "
            "program that may come from a function under jax.jit"
        )
    taps = _chosen(lin, nodes)
    first, silent = lin._begun(seed, None)
    gates = [g if i not in taps.values() else jnp.zeros_like(g) for i, g in enumerate(lin._gates((), False))]
    floating, inner = lin._run(first, silent, lin._gates((), False))
    places = _places(lin, taps, first, floating, inner, split, tokens)
    if not any(np.any(place.relevance) for place in places if place.kind == "output"):
        raise GraphError("the seed gives no element of the output relevance")

    found, numbers, starts = [], [], []
    for place in places:
        groups = _kept(place, at_most, threshold)
        where = np.full(math.prod(place.sizes), -1)
        where[groups] = len(found) + np.arange(len(groups))
        value, relevance = np.sqrt(place.summed(place.value**2)), place.summed(place.relevance)
        if place.value.size == len(value):
            value = place.value.ravel()[np.argsort(place.groups.ravel())]
        found += [place.node(g, float(value[g]), float(relevance[g])) for g in groups]
        starts += [place.loops] * len(groups)
        numbers.append(where[place.groups])
    targets = np.array([i for i, node in enumerate(found) if node.kind in ("feature", "output")])
    # Elements that are no nodes are counted together, behind the last node.
    ids = [jnp.asarray(np.where(n < 0, len(found), n), jnp.int32) for n in numbers]
    count_in = sum(p is not None for p in lin._layout.inputs)
    ends = len(ids) - len(jax.tree.leaves(lin.output))
    of_taps = dict(zip(taps.values(), ids[count_in:ends], strict=True))
    rows = _rows(
        lin,
        first,
        inner,
        gates,
        ids[:count_in],
        of_taps,
        ids[ends:],
        jnp.asarray(targets, jnp.int32),
        len(found),
        batch,
    )
    rows = np.asarray(rows).astype(np.float64)

    size = len(found)
    weights, remainder, absorbed = np.zeros((size, size)), np.zeros(size), np.zeros(size)
    weights[targets], remainder[targets] = rows[:, :-1], rows[:, -1]
    absorbed[targets] = np.array([found[t].relevance for t in targets]) - rows.sum(1)
    layers = _layers(found, weights, starts)
    order = np.array(sorted(range(size), key=lambda i: layers[i]))
    return Graph(
        tuple(dataclasses.replace(found[i], layer=layers[i]) for i in order),
        weights[np.ix_(order, order)],
        remainder[order],
        absorbed[order],
    )


@functools.partial(jax.jit, static_argnames=("size", "batch"))
def _rows(
    lin: Linearised,
    first: list,
    inner: list,
    gates: list,
    of_inputs: list,
    of_taps: dict,
    of_outputs: list,
    targets: jax.Array,
    size: int,
    batch: int,
) -> jax.Array:
    """What every target hands directly to all nodes, and to the elements that are none, [targets, size + 1]."""

    def one(target: jax.Array) -> jax.Array:
        only = lambda c, ids: jnp.where(ids == target, c, jnp.zeros_like(c))
        starts = lin._silence()[1]
        for tap, ids in of_taps.items():
            starts[tap] = only(inner[tap], ids)
        outs = [only(c, ids) for c, ids in zip(first, of_outputs, strict=True)]
        inputs, taps = lin._run(outs, starts, gates)
        kept = [
            (lin._relevance(c, h, p), ids)
            for (c, h, p), ids in zip(
                [
                    one
                    for one in zip(inputs, lin._leaves, lin._layout.inputs, strict=True)
                    if one[2] is not None
                ],
                of_inputs,
                strict=True,
            )
        ]
        kept += [
            (lin._relevance(taps[i], lin._seen[i], lin._layout.taps[i]), ids) for i, ids in of_taps.items()
        ]
        total = jnp.zeros(size + 1, jnp.result_type(*(R.dtype for R, _ in kept)) if kept else first[0].dtype)
        for R, ids in kept:
            total = total.at[ids.ravel()].add(R.ravel().astype(total.dtype))
        return total

    return map_batched(one, targets, batch)


def _chosen(lin: Linearised, nodes: str | Sequence[str] | None) -> dict[str, int]:
    """The named values whose elements are nodes, {path: number}; each once, and those that lead to the output."""
    names = lin._layout.names
    chosen = {}
    for path in names if nodes is None else [nodes] if isinstance(nodes, str) else nodes:
        number, step = lin._named(path)
        if step is not None:
            raise GraphError(f"{path!r} is one step of a loop: name the value, whose steps are all nodes")
        if number not in chosen.values() and lin._layout.taps[number].leads:
            chosen[path] = number
    return chosen


def _places(
    lin: Linearised, taps: dict[str, int], first: list, floating: list, inner: list, split: Any, tokens: Any
) -> list[_Place]:
    """All arrays whose elements may be nodes: inputs, named values, outputs."""
    layout = lin._layout
    whole = jax.tree.unflatten(layout.treedef, list(range(len(layout.inputs))))
    named = jax.tree_util.tree_leaves_with_path(whole if layout.several else whole[0])
    arrays = [
        (INPUT + jax.tree_util.keystr(key), "input", lin._leaves[i], floating[i], layout.inputs[i])
        for key, i in named
        if layout.inputs[i] is not None
    ]
    for path, i in taps.items():
        kind = "error" if path.endswith(ERROR) else "feature" if layout.taps[i].ways else "input"
        arrays.append((path, kind, lin._seen[i], inner[i], layout.taps[i]))
    outputs = jax.tree_util.tree_leaves_with_path(lin.output)
    for (key, y), c, place in zip(outputs, first, layout.outputs, strict=True):
        arrays.append((OUTPUT + jax.tree_util.keystr(key), "output", y, c, place))
    for what, given in (("split", split), ("tokens", tokens)):
        strange = set(given) - {one[0] for one in arrays} if isinstance(given, Mapping) else ()
        if strange:
            raise GraphError(
                f"{what} speaks of {', '.join(sorted(strange))}, which are no values of the graph"
            )
    numbers = lambda a: np.asarray(a).astype(np.float64)
    made = [
        _Place(
            path,
            kind,
            numbers(h),
            numbers(lin._relevance(c, h, place)),
            len(place.loops),
            _axes(path, kind, np.ndim(h), len(place.loops), split),
            _token_axis(path, np.ndim(h), len(place.loops), tokens),
        )
        for path, kind, h, c, place in arrays
    ]
    # Logits [1, V] of the sentence in a batch [1, T, D] are at none of its tokens.
    long = max((p.value.shape[p.token] for p in made if p.token is not None), default=1)
    given = tokens if isinstance(tokens, Mapping) else {}
    strays = lambda p: p.token is not None and p.value.shape[p.token] == 1 < long and p.path not in given
    return [dataclasses.replace(p, token=None) if strays(p) else p for p in made]


def _axes(path: str, kind: str, ndim: int, loops: int, split: Any) -> tuple[int, ...]:
    """The axes of a value that are told apart."""
    if split is None:
        return tuple(range(loops))
    if isinstance(split, Mapping) and path in split:
        given = split[path]
        axes = [given] if isinstance(given, int) else list(given)
        if any(not -ndim <= a < ndim for a in axes):
            raise GraphError(f"split has the axes {axes} of {path!r}, which has {ndim} axes")
        own = tuple(sorted({a % ndim for a in axes}))
        if own[:loops] != tuple(range(loops)):
            raise GraphError(
                f"split has the axes {axes} of {path!r}, of which the first {loops} are steps of loops: steps lead to "
                "each other, and one node of several would lead to itself; add them"
            )
        return own
    last = kind in ("feature", "output") or (kind == "input" and ndim - loops == 1)
    return tuple(range(ndim if last else max(ndim - 1, loops)))


def _token_axis(path: str, ndim: int, loops: int, tokens: Any) -> int | None:
    if isinstance(tokens, Mapping) and path in tokens:
        if tokens[path] is None:
            return None
        if not -ndim <= tokens[path] < ndim:
            raise GraphError(f"tokens has the axis {tokens[path]} of {path!r}, which has {ndim} axes")
        return tokens[path] % ndim
    axis = -2 if isinstance(tokens, Mapping) else tokens
    if axis is None or ndim - loops < 2:
        return None
    if not loops - ndim <= axis < ndim - loops:
        raise GraphError(f"tokens is the axis {axis}, but {path!r} has {ndim - loops}")
    return axis % (ndim - loops) + loops


def _kept(place: _Place, at_most: int | None, threshold: float | None) -> np.ndarray:
    """The groups of a value that are nodes."""
    if place.kind == "error":
        return np.arange(math.prod(place.sizes))
    counts = place.summed(((place.relevance != 0) & (place.value != 0)).astype(np.float64)) > 0
    if place.kind == "output":
        return np.flatnonzero(counts)
    sizes = np.abs(place.summed(place.relevance))
    chosen = np.arange(len(sizes)) if place.kind == "input" else np.flatnonzero(counts)
    chosen = chosen[np.argsort(-sizes[chosen], kind="stable")]
    if threshold is not None and sizes[chosen].sum() > 0:
        sums = np.cumsum(sizes[chosen])
        chosen = chosen[: 1 + int(np.searchsorted(sums, (threshold - 1e-12) * sums[-1]))]
    return np.sort(chosen[:at_most])


def _layers(nodes: list[Node], weights: np.ndarray, loops: list[int]) -> list[int]:
    """The layer of every node: its place's, in the order of the longest ways from the inputs."""
    place = [
        (node.path.removesuffix(ERROR) if node.kind == "error" else node.path, node.index[:k])
        for node, k in zip(nodes, loops, strict=True)
    ]
    number = {p: i for i, p in enumerate(dict.fromkeys(place))}
    own = np.array([number[p] for p in place])
    leads = np.zeros((len(number), len(number)), bool)
    targets, sources = np.nonzero(weights)
    leads[own[targets], own[sources]] = True
    depth = np.zeros(len(number), int)
    for _ in range(len(number) + 1):
        deeper = np.where(leads, depth + 1, 0).max(1, initial=0)
        if (deeper == depth).all():
            break
        depth = deeper
    else:
        raise GraphError(
            "the graph has a circle: one of its nodes is made of what it makes; split it further"
        )
    inner = sorted(
        {own[i] for i, node in enumerate(nodes) if node.kind in ("feature", "error")},
        key=lambda p: (depth[p], p),
    )
    rank = {p: 1 + i for i, p in enumerate(inner)}
    ends = {"input": 0, "output": 1 + len(inner)}
    return [ends[n.kind] if n.kind in ends else rank[p] for n, p in zip(nodes, own, strict=True)]

"""From a linearised program to the graph of its features: which elements are nodes, and what goes between them."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax._evaluate import map_batched
from lrpjax.circuits.features import ERROR
from lrpjax.circuits.graphs import Graph, GraphError, Node
from lrpjax.core import compat
from lrpjax.linearised import INPUT, OUTPUT, Linearised

__all__ = ["graph"]


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
        lin: from `lrpjax.linearise(..., at=[...])`. The features of `circuits.reconstructed` and `transcoded` are named
            by their name, and their errors by name + "/error".
        seed: as for `lin.pull`; every element of the output that it gives relevance is an output node.
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
        at_most: how many nodes of each value at most, those of the largest |relevance|.
        threshold: only as many of them as make up this share of Σ |relevance| of the value. Both hold for features and
            inputs; errors and outputs are all kept.
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
    if not (split is None or isinstance(split, Mapping) or split == "features"):
        raise GraphError(f'split is "features", a mapping from paths to axes, or None, not {split!r}')
    if lin.frozen.layout.method == "gradient":
        raise GraphError("the composite gives gradients, which do not add up: take one that gives relevance")
    if lin.frozen.layout.nonlinear:
        raise GraphError(
            "edges add up where relevance is a linear map of that of the output; these rules make none: "
            f"{'; '.join(lin.frozen.layout.nonlinear)}"
        )
    if not all(
        compat.is_known(leaf) for leaf in jax.tree.leaves((lin.output, lin.frozen.seen, lin.frozen.leaves))
    ):
        raise GraphError(
            "which nodes a graph has depends on numbers: make it outside of jax.jit and jax.vmap, from a linearised "
            "program that may come from a function under jax.jit"
        )
    taps = _chosen(lin, nodes)
    first, silent = lin.frozen.begun(seed, None)
    gates = [
        g if i not in taps.values() else jnp.zeros_like(g) for i, g in enumerate(lin.frozen.gates((), False))
    ]
    floating, inner = lin.frozen.run(first, silent, lin.frozen.gates((), False))
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
    count_in = sum(p is not None for p in lin.frozen.layout.inputs)
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
        starts = lin.frozen.silence()[1]
        for tap, ids in of_taps.items():
            starts[tap] = only(inner[tap], ids)
        outs = [only(c, ids) for c, ids in zip(first, of_outputs, strict=True)]
        inputs, taps = lin.frozen.run(outs, starts, gates)
        kept = [
            (lin.frozen.relevance(c, h, p), ids)
            for (c, h, p), ids in zip(
                [
                    one
                    for one in zip(inputs, lin.frozen.leaves, lin.frozen.layout.inputs, strict=True)
                    if one[2] is not None
                ],
                of_inputs,
                strict=True,
            )
        ]
        kept += [
            (lin.frozen.relevance(taps[i], lin.frozen.seen[i], lin.frozen.layout.taps[i]), ids)
            for i, ids in of_taps.items()
        ]
        total = jnp.zeros(size + 1, jnp.result_type(*(R.dtype for R, _ in kept)) if kept else first[0].dtype)
        for R, ids in kept:
            total = total.at[ids.ravel()].add(R.ravel().astype(total.dtype))
        return total

    return map_batched(one, targets, batch)


def _chosen(lin: Linearised, nodes: str | Sequence[str] | None) -> dict[str, int]:
    """The named values whose elements are nodes, {path: number}; each once, and those that lead to the output."""
    names = lin.frozen.layout.names
    chosen = {}
    for path in names if nodes is None else [nodes] if isinstance(nodes, str) else nodes:
        number, step = lin.frozen.named(path)
        if step is not None:
            raise GraphError(f"{path!r} is one step of a loop: name the value, whose steps are all nodes")
        if number not in chosen.values() and lin.frozen.layout.taps[number].leads:
            chosen[path] = number
    return chosen


def _places(
    lin: Linearised, taps: dict[str, int], first: list, floating: list, inner: list, split: Any, tokens: Any
) -> list[_Place]:
    """All arrays whose elements may be nodes: inputs, named values, outputs."""
    layout = lin.frozen.layout
    whole = jax.tree.unflatten(layout.treedef, list(range(len(layout.inputs))))
    named = jax.tree_util.tree_leaves_with_path(whole if layout.several else whole[0])
    arrays = [
        (INPUT + jax.tree_util.keystr(key), "input", lin.frozen.leaves[i], floating[i], layout.inputs[i])
        for key, i in named
        if layout.inputs[i] is not None
    ]
    for path, i in taps.items():
        kind = "error" if path.endswith(ERROR) else "feature" if layout.taps[i].ways else "input"
        arrays.append((path, kind, lin.frozen.seen[i], inner[i], layout.taps[i]))
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
            numbers(lin.frozen.relevance(c, h, place)),
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

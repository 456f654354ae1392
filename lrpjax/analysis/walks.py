"""Walks and subgraphs: which sequences of nodes relevance passes on its way through the layers of a graph network, and
which sets of nodes it never leaves.

A node is a row of the states that a network computes: an atom of a molecule, a token of a sentence (attention makes
these a graph in which all are neighbours), a patch of a picture. A walk names one node in the input and one in each of
the named states, from the first layer to the last; its relevance is that which comes down along these nodes only
(GNN-LRP). It is a nested condition: a mask of one node on every state. Masks are arrays, so that one forward pass
serves all walks, and `jax.vmap` explains many at once:

    path = walks.along(adjacency, 3)
    R = walks.relevance(f, composite, x, path, at=["layer1", "layer2", "layer3"])
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lrpjax._chosen import chosen
from lrpjax._evaluate import map_batched
from lrpjax.analysis.concepts import bypassed
from lrpjax.composites import Composite
from lrpjax.core import compat
from lrpjax.core.frame import Tap
from lrpjax.core.graph import Value
from lrpjax.core.plan import flow
from lrpjax.core.program import Program
from lrpjax.core.seeds import output_relevance
from lrpjax.core.vjps import wide
from lrpjax.errors import LrpjaxError, RuleError

__all__ = [
    "WalkError",
    "all_walks",
    "along",
    "dividends",
    "query",
    "relevance",
    "subset_relevance",
    "unions",
]


class WalkError(LrpjaxError, ValueError):
    """Walks, subsets or named states do not fit each other.

    >>> import jax.numpy as jnp, lrpjax
    >>> f = lambda x: lrpjax.tag(2.0 * x, 'h').sum()
    >>> lrpjax.walks.relevance(f, None, jnp.ones((3, 2)), [[0, 1, 2]], at=['h'])
    Traceback (most recent call last):
    ...
    lrpjax.analysis.walks.WalkError: a walk has 2 nodes here (input, h), but these are an array of shape (1, 3)
    """


# ------------------------------------------------------------------------------------------------------- walks and sets


def relevance(
    f: Callable,
    composite: Composite | None,
    x: ArrayLike,
    walks: ArrayLike,
    *,
    at: str | Sequence[str],
    target: Any = None,
    node_axis: int = 0,
    batch: int = 16,
) -> jax.Array:
    """The relevance of walks W = (i_0, …, i_L): that which passes node i_L at the last named state, then i_{L−1} at the
    one before, …, and comes to node i_0 of the input.

    R(W) = Σ_{features of i_0} R(x | θ_1 … θ_L) with θ_k = 1 at node i_k of state k and 0 elsewhere (GNN-LRP, Schnake et
    al. 2022, "Higher-Order Explanations of Graph Neural Networks via Relevant Walks", IEEE TPAMI 44, where LRP runs
    nested from the last layer to the first, and sums over the neurons of a node; conditions as in
    `lrpjax.concepts.relevance`). What rule each layer has the composite says. Theirs is γ, Σ_i λ_ij h_i w↑ / Σ_{i'}
    λ_{i'j} h_{i'} w↑ with w↑ = w + γ w⁺: that of `rules.Gamma` where a layer is written as (A @ h) @ w, with A and
    h not negative. The relevances of all walks sum to Σ R(x).

    One forward pass for all, and one backward pass for all walks that differ in i_0 only.

    Args:
        f: a function of one array x, a graph; what else it needs (weights, the adjacency) it holds itself.
        composite: as for `lrpjax.relevance`.
        x: floating, with the nodes along `node_axis`. Where it holds integers (numbers of tokens), i_0 is a node of the
            first named state, and a walk has one node less.
        walks: ints [n, L + 1], the node in the input first; see `along`. Traced ones that are out of range give NaN.
        at: the states, from the first layer to the last: module paths, tags or globs, as for `lrpjax.relevance`. A
            value in a loop (a scan over layers) stands for the states of all its steps. All relevance has to pass each
            of them, as it does behind a skip connection, x + layer(x), and not inside of it.
        target: as for `lrpjax.relevance`.
        node_axis: the axis of the nodes, in x and in the states' own shapes.
        batch: how many backward passes run at once.

    Returns:
        [n], in the dtype of the relevance (at least float32).

    Raises:
        WalkError: walks do not have a node for each state, or are no integers, or out of range; x is not one array; a
            state has another number of nodes; states are named twice or in another order; or relevance passes around
            one (in loops, under `jax.jit`, the result is NaN then).
        PathError: a name is not known, or no relevance comes to its value. RuleError: the rules make a backward pass
            that is not linear (deconvnet, guided backprop), in which walks do not add up. Else as `lrpjax.relevance`.

    Example:
        >>> import jax, jax.numpy as jnp, lrpjax
        >>> from lrpjax import walks
        >>> A = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])  # a chain of three, with loops
        >>> def f(x):
        ...     h = lrpjax.tag(jax.nn.relu(A @ x), "h1")
        ...     return lrpjax.tag(jax.nn.relu(A @ h), "h2").sum()
        >>> x = jnp.array([[1.0], [2.0], [4.0]])
        >>> print(jnp.rint(walks.relevance(f, None, x, [[0, 1, 2], [2, 1, 0], [0, 2, 2]], at=["h1", "h2"])))
        [1. 4. 0.]
    """
    graph = _Graph(f, composite, x, at, target, node_axis)
    nodes = graph.checked(walks)
    if isinstance(nodes, np.ndarray):
        above, which = np.unique(nodes[:, 1:], axis=0, return_inverse=True)
        which = which.reshape(-1)
    else:
        above, which = nodes[:, 1:], np.arange(len(nodes))
    R = map_batched(lambda i: graph.pull(graph.one_hot(i)), jnp.asarray(above), batch)
    found = R[jnp.asarray(which), jnp.asarray(nodes[:, 0])] * graph.whole(batch)
    exist = ((nodes >= 0) & (nodes < graph.count)).all(1)
    return jnp.where(jnp.asarray(exist), found, jnp.asarray(jnp.nan, found.dtype))


def all_walks(
    f: Callable,
    composite: Composite | None,
    x: ArrayLike,
    *,
    at: str | Sequence[str],
    target: Any = None,
    node_axis: int = 0,
    batch: int = 16,
) -> jax.Array:
    """The relevance of all walks, R[i_0, i_1, …, i_L], for small graphs: N^L backward passes for N nodes and L states.

    Args, Raises: as for `walks.relevance`.

    Returns:
        [N, …, N], one axis for the input and one for each state.

    Example:
        >>> import jax.numpy as jnp, lrpjax
        >>> from lrpjax import walks
        >>> f = lambda x: lrpjax.tag(jnp.array([[1.0, 0.0], [1.0, 2.0]]) @ x, "h").sum()
        >>> print(jnp.rint(walks.all_walks(f, None, jnp.array([[1.0], [3.0]]), at="h")))
        [[1. 1.]
         [0. 6.]]
    """
    graph = _Graph(f, composite, x, at, target, node_axis)
    count, above = graph.count, graph.length - 1
    powers = jnp.asarray([count**k for k in reversed(range(above))], jnp.int32)
    one = lambda code: graph.pull(graph.one_hot(code // powers % count))
    R = map_batched(one, jnp.arange(count**above, dtype=jnp.int32), batch) * graph.whole(batch)
    return jnp.moveaxis(R.reshape((count,) * graph.length), -1, 0)


def subset_relevance(
    f: Callable,
    composite: Composite | None,
    x: ArrayLike,
    subsets: ArrayLike,
    *,
    at: str | Sequence[str],
    target: Any = None,
    node_axis: int = 0,
    batch: int = 16,
) -> jax.Array:
    """The relevance that never leaves a set of nodes, R(S) = Σ R(W) over the walks W whose nodes are all in S.

    It takes one backward pass with the mask of S on every state, and no list of walks (sGNN-LRP, Xiong et al. 2022,
    "Efficient Computation of Higher-Order Subgraph Attribution via Message Passing", ICML; not its generalised
    attribution, in which nodes outside of S count by a factor α).

    Args:
        subsets: bool [n, N]: the nodes of each set. [n, L + 1, N] gives each place of the walk a set of its own.
        Else as for `walks.relevance`.

    Returns:
        [n], in the dtype of the relevance (at least float32).

    Raises:
        WalkError: subsets are not bool, or have another shape. Else as `walks.relevance`.

    Example:
        >>> import jax.numpy as jnp, lrpjax
        >>> from lrpjax import walks
        >>> f = lambda x: lrpjax.tag(jnp.array([[1.0, 0.0], [1.0, 2.0]]) @ x, "h").sum()
        >>> sets = jnp.array([[True, False], [False, True], [True, True]])
        >>> print(jnp.rint(walks.subset_relevance(f, None, jnp.array([[1.0], [3.0]]), sets, at="h")))
        [1. 6. 8.]
    """
    graph = _Graph(f, composite, x, at, target, node_axis)
    subsets = subsets if isinstance(subsets, jax.Array) else np.asarray(subsets)
    if subsets.dtype != bool:
        raise WalkError(
            f"subsets are masks of bools, one for each node, but these have dtype {subsets.dtype}"
        )
    wanted = (graph.count,), (graph.length, graph.count)
    if subsets.ndim < 2 or subsets.shape[1:] not in wanted or not len(subsets):
        raise WalkError(
            f"subsets of {graph.count} nodes are an array [n, {graph.count}] "
            f"(or [n, {graph.length}, {graph.count}]), but these have shape {subsets.shape}"
        )

    def one(subset: jax.Array) -> jax.Array:
        masks = jnp.broadcast_to(subset, (graph.length, graph.count))
        R = graph.pull(masks[1:].astype(jnp.float32))
        return jnp.where(masks[0], R, jnp.zeros_like(R)).sum()

    return map_batched(one, jnp.asarray(subsets), batch) * graph.whole(batch)


def along(adjacency: ArrayLike, length: int) -> np.ndarray:
    """All walks of `length` steps along the edges of a graph.

    Args:
        adjacency: [N, N], not 0 at [j, i] where node j reads node i, as in the layer A @ h. A node that reads itself,
            as in the normalised adjacency of graph convolution, has an entry on the diagonal.
        length: the number of steps, which is that of the named states.

    Returns:
        int32 [n, length + 1], for `walks.relevance`, in the order of the nodes. The number of walks grows as its
        degrees to the power of the length.

    Raises:
        WalkError: the adjacency is not square, or the length is negative.

    Example:
        >>> import numpy as np
        >>> from lrpjax import walks
        >>> print(walks.along(np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]), 2))
        [[0 1 0]
         [0 1 2]
         [1 0 1]
         [1 2 1]
         [2 1 0]
         [2 1 2]]
    """
    adjacency = np.asarray(adjacency)
    if adjacency.ndim != 2 or adjacency.shape[0] != adjacency.shape[1] or length < 0:
        raise WalkError(
            f"walks go along a square adjacency for 0 or more steps, "
            f"but this one has shape {adjacency.shape}, and the length is {length}"
        )
    readers = [np.flatnonzero(column) for column in adjacency.T]
    found = np.arange(len(adjacency))[:, None]
    for _ in range(length):
        counts = [len(readers[i]) for i in found[:, -1]]
        nexts = np.concatenate([readers[i] for i in found[:, -1]] or [np.zeros(0, int)])
        found = np.concatenate([np.repeat(found, counts, axis=0), nexts[:, None]], axis=1)
    return found.astype(np.int32)


# ---------------------------------------------------------------------------------------------------- logic over groups


def unions(groups: ArrayLike) -> np.ndarray:
    """The unions of all choices of k groups of nodes, for `subset_relevance`.

    Args:
        groups: bool [k, N], the nodes of each group; no node in two of them.

    Returns:
        bool [2^k, N]. In row t are the groups j for which bit j of t is set: none, the first, the second, both, ….

    Raises:
        WalkError: groups are not bool [k, N], or share a node.

    Example:
        >>> import numpy as np
        >>> from lrpjax import walks
        >>> print(walks.unions(np.array([[True, False, True], [False, True, False]])).astype(int))
        [[0 0 0]
         [1 0 1]
         [0 1 0]
         [1 1 1]]
    """
    groups = np.asarray(groups)
    if groups.dtype != bool or groups.ndim != 2:
        raise WalkError(
            f"groups are masks of bools [k, N], but these have dtype {groups.dtype} and shape {groups.shape}"
        )
    shared = np.flatnonzero(groups.sum(0) > 1)
    if shared.size:
        raise WalkError(f"a node is in one group at most, but these share {', '.join(map(str, shared))}")
    return _members(len(groups)).T @ groups


def dividends(values: ArrayLike) -> jax.Array:
    """What each set of groups adds beyond the sets inside of it, μ(T) = Σ_{U ⊆ T} (−1)^{|T| − |U|} R(U).

    These are the Harsanyi dividends, the Möbius inverse of R over sets: R(T) = Σ_{U ⊆ T} μ(U). With R(U) of
    `subset_relevance`, μ(T) is the relevance of the walks that visit every group in T and nothing else: the multi-order
    decomposition of symbolic XAI (Schnake et al. 2025, "Towards symbolic XAI – explanation through human understandable
    logical relationships between features", Information Fusion; arXiv 2408.17198).

    Args:
        values: floating [2^k], the relevance of the `unions` of k groups, in their order; further axes may follow.

    Returns:
        μ, of the same shape, in the same order.

    Raises:
        WalkError: the number of values is no power of 2, or they are no floating-point numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import walks
        >>> print(walks.dividends(jnp.array([0.0, 1.0, 2.0, 5.0])))  # nothing, a, b, both: 2 is of a with b
        [0. 1. 2. 2.]
    """
    values = jnp.asarray(values)
    size = values.shape[0] if values.ndim else 0
    if size < 1 or size & (size - 1) or not compat.is_float(values):
        raise WalkError(
            f"there are 2^k values for the unions of k groups, floating-point numbers, "
            f"but these have shape {values.shape} and dtype {values.dtype}"
        )
    for axis in range(size.bit_length() - 1):
        pairs = values.reshape(-1, 2, 2**axis, *values.shape[1:])
        without, with_it = pairs[:, 0], pairs[:, 1]
        values = jnp.stack([without, with_it - without], 1).reshape(values.shape)
    return values


def query(values: ArrayLike, formula: Callable[..., Any]) -> jax.Array:
    """The relevance for which a formula holds, Σ μ(T) over the sets T of groups that it is true of.

    A group is true where walks visit it, so that `lambda a, b: a & ~b` asks for the relevance that involves a and not b
    (symbolic XAI, Schnake et al. 2025, where the relevance of a query is the sum over the orders that it is true of).
    What leaves the union of all groups is not in it: groups that cover all nodes account for all of the relevance.

    Args:
        values: floating [2^k], relevance of the `unions` of k groups, as for `dividends`.
        formula: a function of k arrays of bools, one for each group, made with &, |, ~ and ^.

    Returns:
        A number (of shape [...] if further axes follow in values).

    Raises:
        WalkError: the formula gives other than bools [2^k]. Else as `dividends`.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import walks
        >>> R = jnp.array([0.0, 1.0, 2.0, 5.0])  # of nothing, a, b, and both
        >>> print(walks.query(R, lambda a, b: a & b), walks.query(R, lambda a, b: a & ~b))
        2.0 1.0
        >>> print(walks.query(R, lambda a, b: a | b))
        5.0
    """
    mu = dividends(values)
    holds = np.asarray(formula(*_members(mu.shape[0].bit_length() - 1)))
    if holds.dtype != bool or holds.shape != mu.shape[:1]:
        raise WalkError(
            f"a formula makes bools {mu.shape[:1]} of the groups with &, |, ~ and ^, "
            f"but this gives dtype {holds.dtype} and shape {holds.shape}"
        )
    return jnp.where(holds.reshape(-1, *(1,) * (mu.ndim - 1)), mu, jnp.zeros_like(mu)).sum(0)


def _members(count: int) -> np.ndarray:
    """[k, 2^k]: whether a group is in each of the sets."""
    return (np.arange(2**count) >> np.arange(count)[:, None] & 1).astype(bool)


# ------------------------------------------------------------------------------------------ the states, and their masks


class _Graph:
    """A function that was run once, with the states that walks pass; `pull` is its backward pass under masks.

    count: of the nodes. length: of a walk, in nodes.
    """

    def __init__(
        self,
        f: Callable,
        composite: Composite | None,
        x: ArrayLike,
        at: str | Sequence[str],
        target: Any,
        node_axis: int,
    ):
        names = [at] if isinstance(at, str) else list(at)
        if not names:
            raise WalkError("`at` names no state: walks need one for each layer")
        if not jax.tree_util.all_leaves([x]):
            raise WalkError(
                f"x is one array, a graph, and not {jax.tree.structure(x)}: hold the rest in the function"
            )
        x = jnp.asarray(x)
        self.program = program = Program(f, chosen(composite, "walks.relevance"), (x,), {}, 0, names, False)
        program.warn()
        propagations = program.assignment.propagations
        nonlinear = [
            unit.place
            for unit in program.level.walk()
            if unit in program.routes.takes and not propagations[unit].linear
        ]
        if nonlinear:
            raise RuleError(
                "walks add up where the backward pass is linear; these rules are not: " + "; ".join(nonlinear)
            )
        self.axis = node_axis
        # Exact names keep their order; what a glob finds stands in that of the program.
        order = names if all(name in program.taps for name in names) else list(program.taps)
        self.states = {name: program.taps[name] for name in order}
        self.floating = compat.is_float(x)
        self.input = program.graph.inputs[len(program.consts)]
        first = "input" if self.floating else order[0]
        self.count = self._nodes(first, x.shape if self.floating else self.states[first].shape)
        for name, value in self.states.items():
            if self._nodes(name, value.shape) != self.count:
                raise WalkError(
                    f"{name!r} has {value.shape[node_axis]} nodes along axis {node_axis}, but {first!r} has "
                    f"{self.count}: name states before the nodes are pooled, and their axis as node_axis"
                )
        self._check_order(names)
        self.places = [first] if self.floating else []
        for name, value in self.states.items():
            loops = self._loops(value)
            steps = ([f"{name}[{', '.join(map(str, i))}]" for i in np.ndindex(*loops)]) if loops else [name]
            self.places += steps
        self.length = len(self.places)
        self.doubtful = self._check_bypassed()
        self._run(x, target)

    def _nodes(self, name: str, shape: tuple[int, ...]) -> int:
        if not -len(shape) <= self.axis < len(shape):
            raise WalkError(f"{name!r} has shape {shape}: it has no axis {self.axis} for nodes")
        return shape[self.axis]

    def _loops(self, value: Value) -> tuple[int, ...]:
        shape = self.program.shape_of(value)
        return shape[: len(shape) - len(value.shape)]

    def _check_order(self, names: list[str]) -> None:
        """Every state is made from the one before."""
        level, propagations = self.program.level, self.program.assignment.propagations
        values = list(self.states.values())
        if len(set(values)) < len(values) or len(set(names)) < len(names):
            raise WalkError(f"a state is named twice: {', '.join(names)}")
        above = [flow(level, [False] * len(level.inputs), propagations, frozenset([v])) for v in values]
        for (low, high), over, under in zip(itertools.pairwise(self.states), above, above[1:], strict=False):
            if self.states[high] not in over or self.states[low] in under:
                raise WalkError(
                    f"no relevance goes from {high!r} down to {low!r}, or they are made in turn in one loop: "
                    "name the states from the first layer to the last, and one of each loop"
                )

    def _check_bypassed(self) -> list[int]:
        """The places inside of loops: what passes around them only the numbers tell.

        Raises:
            WalkError: relevance passes around a state elsewhere.
        """
        program = self.program
        start = self.input if self.floating else next(iter(self.states.values()))
        for name, value in self.states.items():
            if not self._loops(value) and bypassed(program, start, value):
                raise WalkError(self._around(name))
        inside = [
            bool(self._loops(v)) for v in self.states.values() for _ in range(math.prod(self._loops(v)))
        ]
        return [i for i, loop in enumerate(inside, self.length - len(inside)) if loop and i]

    def _around(self, name: str) -> str:
        return (
            f"relevance passes around {name!r}, as over a skip connection, and walks would miss it: "
            "name the sum behind the connection"
        )

    def _run(self, x: jax.Array, target: Any) -> None:
        program = self.program
        values = list(self.states.values())
        numbers = [program.tapped.index(v) for v in values]
        count = len(program.output_leaves()[0])
        self.gates = []
        for v in values:
            own = [1] * len(v.shape)
            own[self.axis] = self.count
            self.gates.append((*self._loops(v), *own))

        def run(given: list, zeros: list) -> tuple[list, list]:
            taps = {
                i: Tap(z, gate=jnp.ones(g, jnp.float32))
                for i, z, g in zip(numbers, zeros, self.gates, strict=True)
            }
            outputs, seen = program.rewritten.run(program.level, [*program.consts, *(given or [x])], taps)
            return outputs[:count], [seen[i] for i in numbers]

        self.zeros = [jnp.zeros(program.shape_of(v), v.aval.dtype) for v in values]
        (ys, seen), self.back = jax.vjp(run, [x] if self.floating else [], self.zeros)
        y = jax.tree.unflatten(jax.tree.structure(program.shapes), ys)
        R = jax.tree.leaves(output_relevance(y, target, program.composite.method))
        self.seeds = [jnp.asarray(r).astype(v.dtype) for r, v in zip(R, ys, strict=True)]
        self.first = x if self.floating else seen[0][0]

    def checked(self, walks: ArrayLike) -> Any:
        """Walks as an array, NumPy's where they are known."""
        nodes = walks if isinstance(walks, jax.core.Tracer) else np.asarray(walks)
        if not jnp.issubdtype(nodes.dtype, jnp.integer):
            raise WalkError(f"walks are numbers of nodes, ints, but these have dtype {nodes.dtype}")
        if nodes.ndim != 2 or nodes.shape[1] != self.length or not len(nodes):
            raise WalkError(
                f"a walk has {self.length} nodes here ({', '.join(self.places)}), "
                f"but these are an array of shape {nodes.shape}"
            )
        if isinstance(nodes, np.ndarray) and not ((nodes >= 0) & (nodes < self.count)).all():
            raise WalkError(
                f"the nodes are 0 … {self.count - 1}, but the walks name {nodes.min()} … {nodes.max()}"
            )
        return nodes

    def one_hot(self, nodes: jax.Array) -> jax.Array:
        """The masks of single nodes, [places, N]."""
        return (nodes[:, None] == jnp.arange(self.count, dtype=nodes.dtype)).astype(jnp.float32)

    def pull(self, masks: jax.Array) -> jax.Array:
        """The relevance of the nodes in the first place, [N], under masks [length − 1, N] on the other places."""
        inputs, taps = self._cotangents(masks)
        if self.floating:
            R = self.program.read(self.input, self.first, inputs[0])
        else:
            value = next(iter(self.states.values()))
            R = self.program.read(value, self.first, taps[0])[(0,) * len(self._loops(value))]
        R = jnp.moveaxis(wide(R), self.axis, 0)
        return R.reshape(self.count, -1).sum(1)

    def _cotangents(self, masks: jax.Array) -> tuple[list, list]:
        """What comes to the input and to the states from above, under masks on all places but the first."""
        if not self.floating:
            masks = jnp.concatenate([jnp.ones((1, self.count), masks.dtype), masks])
        gates, begin = [], 0
        for shape, value in zip(self.gates, self.states.values(), strict=True):
            steps = math.prod(self._loops(value))
            gates.append(masks[begin : begin + steps].reshape(shape))
            begin += steps
        return self.back((self.seeds, list(zip(self.zeros, gates, strict=True))))

    def _arrives(self, masks: jax.Array) -> jax.Array:
        """At which places anything comes from above, bool [length]."""
        inputs, taps = self._cotangents(masks)
        found = [(jnp.abs(c) > 0).any() for c in inputs]
        for c, value in zip(taps, self.states.values(), strict=True):
            found += list((jnp.abs(c) > 0).reshape(math.prod(self._loops(value)), -1).any(1))
        return jnp.stack(found)

    def whole(self, batch: int) -> jax.Array:
        """1; or NaN where relevance passes around a place inside of a loop, and that cannot be said.

        Nothing passes around a place if nothing comes to the place before when all of it is masked. That tells also a
        loop that runs in reverse.

        Raises:
            WalkError: it does.
        """
        one = jnp.ones((), wide(self.first).dtype)
        if not self.doubtful:
            return one
        places = np.asarray(self.doubtful)
        masks = np.ones((len(places), self.length - 1, self.count), np.float32)
        masks[np.arange(len(places)), places - 1] = 0
        arrives = map_batched(self._arrives, jnp.asarray(masks), batch)
        around = arrives[np.arange(len(places)), places - 1]
        if compat.is_known(around) and around.any():
            name = self.places[places[int(np.argmax(np.asarray(around)))]]
            raise WalkError(
                f"{self._around(name)}. Or the loop runs in reverse, where walks are not followed"
            )
        return jnp.where(around.any(), jnp.asarray(jnp.nan, one.dtype), one)

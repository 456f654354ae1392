"""The relevance of a function's parameters: what every weight, bias and scale contributes, and pruning by it.

In a layer z_j = Σ_i a_i w_ij + b_j the relevance R_j passes through the weights: R_ij = a_i w_ij R_j / z_j goes to the
input i, and through the weight w_ij. Its sum over examples and positions is the relevance of the weight, and that of
the bias is b_j R_j / z_j (Vakilzadeh Hatefi et al. 2025, "Attribution-guided Pruning for Compression, Circuit
Discovery, and Targeted Correction in LLMs", arXiv 2506.13727, section 3; Becking et al. 2022). The parameters are
constants of the relevance here, which is what sets this apart from `lrpjax.relevance(f, argnums=...)` of the
parameters: that explains W·h as a product of two explained values, half to each.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax._chosen import chosen
from lrpjax.composites import Composite
from lrpjax.core import compat
from lrpjax.core.dataflow import Flow
from lrpjax.core.frozen import per_unit
from lrpjax.core.graph import Node, Value
from lrpjax.core.program import Program
from lrpjax.core.seeds import output_relevance
from lrpjax.core.units import Unit
from lrpjax.errors import InputError, LrpjaxError, RuleError
from lrpjax.rules import PLAIN

__all__ = ["PruneError", "prune", "relevance", "summed"]


class PruneError(LrpjaxError, ValueError):
    """Scores do not fit parameters, or a sparsity is not one.

    >>> import jax.numpy as jnp, lrpjax
    >>> lrpjax.parameters.prune({"w": jnp.ones(3)}, {"w": jnp.ones(3)}, 1.5)
    Traceback (most recent call last):
    ...
    lrpjax.analysis.parameters.PruneError: the sparsity is the part that is pruned, between 0 and 1, but is 1.5
    """


def relevance(
    f: Callable, composite: Composite | None = None, *, argnums: int | None = 0, target: Any = None
) -> Callable:
    """The relevance of parameters: R_w = w ⊙ c, with c the derivative of the frozen program, in which products,
    norms and activations are what the composite makes of them.

    In a layer R_{w_ij} = Σ a_i w_ij R_j / (z_j + ε sign z_j), of a bias b_j R_j / (z_j + ε sign z_j), summed over
    examples, positions and the places where a parameter is used; of the scale of a norm or a BatchNorm and of an
    embedding alike. In a layer without bias Σ R_w = Σ R. It costs a backward pass in which every layer is transposed
    once more, as a gradient for all parameters does.

    Args:
        f: a function of parameters and inputs, such as `model.apply`.
        composite: as for `lrpjax.relevance`; layers with parameters take ε-rules (`composites.epsilon`, `attnlrp`,
            `cp_lrp`; the first three differ in how products are shared).
        argnums: the argument that holds the parameters, of any structure.
        target: as for `lrpjax.relevance`. With the gradient family of composites the result is the gradient of the
            parameters, or parameters ⊙ gradient.

    Returns:
        A function of the same arguments, which returns relevances in the structure, shapes and dtypes of the
            parameters; zeros where they are integers.

    Raises:
        InputError: there is no other argument: inputs are given as arguments, not captured. RuleError: a unit that
            reads a parameter has a rule for which this is not defined (γ, z⁺, αβ, …); all such units are listed.
            TargetError: the target gives relevance to outputs that are exactly 0 (NaN under `jax.jit`). Else as
            `lrpjax.relevance`.

    >>> import jax.numpy as jnp, lrpjax
    >>> f = lambda params, x: x @ params["w"] + params["b"]
    >>> params = {"w": jnp.array([2.0, -1.0]), "b": jnp.array(4.0)}
    >>> R = lrpjax.parameters.relevance(f, lrpjax.composites.epsilon(0.0))(params, jnp.array([3.0, 2.0]))
    >>> print(jnp.rint(R["w"]), jnp.rint(R["b"]))
    [ 6. -2.] 4.0
    """

    def explain(*args: Any, **kwargs: Any) -> Any:
        if not isinstance(argnums, (int, np.integer)) or not -len(args) <= argnums < len(args):
            raise InputError(f"argnums={argnums!r} names no argument of {len(args)}")
        number = argnums % len(args)
        inputs = tuple(i for i in range(len(args)) if i != number and jax.tree.leaves(args[i]))
        if not inputs:
            raise InputError(
                "the function has no argument besides the parameters: inputs that it captures cannot be told from "
                "constants; give them as arguments, f(params, x)"
            )
        asked = chosen(composite, "parameters.relevance")
        per_unit = asked.method == "relevance"
        program = Program(f, asked, args, kwargs, inputs, None, False, per_unit=per_unit, beside=(number,))
        program.warn()
        count = len(program.output_leaves()[0])
        _refuse(program)
        params = program.beside_leaves
        floating = [i for i, leaf in enumerate(params) if compat.is_float(leaf)]
        own = program.consts[: len(program.consts) - len(params)]

        def run(given: list) -> list:
            leaves = dict(enumerate(params)) | dict(zip(floating, given, strict=True))
            arrays = [*own, *(leaves[i] for i in range(len(params))), *program.leaves]
            return program.rewritten.run(program.level, arrays, {})[0][:count]

        outputs, back = jax.vjp(run, [params[i] for i in floating])
        y = jax.tree.unflatten(jax.tree.structure(program.shapes), outputs)
        method = program.composite.method
        seed = jax.tree.leaves(output_relevance(y, target, method))
        values = program.graph.outputs[:count]
        (slopes,) = back([_started(program, v, s, h) for v, s, h in zip(values, seed, outputs, strict=True)])
        found = dict(zip(floating, slopes, strict=True))
        times = lambda c, w: c if method == "gradient" else c * w
        flat = [times(found[i], w) if i in found else jnp.zeros_like(w) for i, w in enumerate(params)]
        return jax.tree.unflatten(jax.tree.structure(args[number]), flat)

    return explain


def _started(program: Program, value: Value, seed: Any, y: jax.Array) -> jax.Array:
    """The cotangent of an output for its relevance."""
    seed = jnp.asarray(seed).astype(y.dtype)
    if program.composite.method != "relevance" or program.routes.form.get(value) == PLAIN:
        return seed
    return per_unit(seed, y, "the output")


def _refuse(program: Program) -> None:
    """
    Raises:
        RuleError: a unit that reads parameters does not hand them their relevance.
    """
    if program.composite.method != "relevance":
        return
    graph, level, routes = program.graph, program.level, program.routes
    first = len(program.consts) - len(program.beside_leaves)
    borders = [
        first <= i < len(program.consts) and compat.is_float(v.aval) for i, v in enumerate(graph.inputs)
    ]

    def transfer(known: Flow[bool], node: Node) -> Iterator[tuple[Value, bool]]:
        if any(known[v] for v in node.inputs):
            yield from ((v, True) for v in node.outputs)

    known = Flow(False, lambda a, b: a or b, transfer).solve(graph, borders).known
    reads = lambda nodes: any(known.get(v) and not v.carries for node in nodes for v in node.inputs)
    found = []
    for unit in level.walk():
        how = program.assignment.propagations[unit]
        if unit in routes.takes and reads(unit.nodes) and not how.credits(routes.takes[unit]):
            found.append(f"{how.text} for {unit.place}")
    for step in _nodes(level):
        plain = any(routes.form.get(v) == PLAIN for v in step.outputs if v in routes.reached)
        if plain and reads([step]):
            found.append(step.place)
    if found:
        raise RuleError(
            "the relevance of parameters is defined where contributions share in proportion, as the ε-rule has it; not "
            "for\n  " + "\n  ".join(found) + "\nTake composites.epsilon, attnlrp or cp_lrp"
        )


def _nodes(level: Any) -> Iterator[Node]:
    """The nodes that belong to no unit, in sub-programs too: look-ups of tokens among them."""
    for step in level.steps:
        if isinstance(step, Unit):
            for body in step.bodies:
                yield from _nodes(body)
        else:
            yield step


def summed(R: Any, axis: int | None = None, *, groups: int | None = None) -> Any:
    """The relevance of parameters by layer, by neuron, channel or head: a tree of sums.

    Args:
        R: relevances of parameters.
        axis: the axis that is kept, in kernels of Flax the last for what a neuron or channel receives (with its bias)
            and the last but one for what it sends; None for one number for each array, by layer. Arrays that lack the
            axis are summed up whole.
        groups: the axis is taken as this many equal groups, as heads.

    Raises:
        PruneError: the axis of an array cannot be divided into so many groups.

    >>> import jax.numpy as jnp
    >>> R = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "bias": jnp.array([10.0, 20.0])}
    >>> {name: sums.tolist() for name, sums in sorted(summed(R, axis=-1).items())}
    {'bias': [10.0, 20.0], 'kernel': [4.0, 6.0]}
    """

    def one(r: jax.Array) -> jax.Array:
        r = jnp.asarray(r)
        if axis is None or not -r.ndim <= axis < r.ndim:
            return r.sum()
        sums = r.sum(tuple(a for a in range(r.ndim) if a != axis % r.ndim))
        if groups is None:
            return sums
        if groups < 1 or sums.size % groups:
            raise PruneError(f"an axis of {sums.size} cannot be divided into {groups} equal groups")
        return sums.reshape(groups, -1).sum(-1)

    return jax.tree.map(one, R)


def prune(
    params: Any,
    scores: Any,
    sparsity: float,
    *,
    within: str = "array",
    select: Callable[[str, jax.Array], bool] | None = None,
) -> Any:
    """Parameters of which those with the smallest |score| are 0.

    With the relevance of weights over reference samples for scores this is the pruning of Vakilzadeh Hatefi et al. 2025
    (SparC3); with the parameters themselves, pruning by magnitude; with |w| times the norm of the layer's inputs, Wanda
    (Sun et al. 2023). Sum the sizes |R_w| of single samples, by `jax.vmap` of `relevance`: what Σ R_w lets cancel is
    pruned too early (tests/papers/results/hatefi.md, which also says where magnitude does better). Layers that are
    stacked in one array compete with each other: take them apart first.

    Args:
        params: a tree of arrays.
        scores: of the same structure and shapes.
        sparsity: the part that becomes 0, of the arrays that are pruned.
        within: where scores compete: "array", each for itself; "column", each output of a kernel [..., inputs, outputs]
            for itself (as SparC3 and Wanda do); "all", those of all arrays.
        select: which arrays are pruned, by path ("layers/0/kernel") and array; None for all of two axes and more, the
            kernels.

    Raises:
        PruneError: the structures or shapes differ, or an option is none of those above.

    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.array([[1.0, -5.0], [2.0, 3.0]])}
    >>> print(prune(params, {"w": jnp.array([[9.0, 0.5], [-0.1, 3.0]])}, 0.5)["w"])
    [[1. 0.]
     [0. 3.]]
    """
    if not isinstance(sparsity, (int, float)) or not 0 <= sparsity <= 1:
        raise PruneError(f"the sparsity is the part that is pruned, between 0 and 1, but is {sparsity!r}")
    if within not in ("array", "column", "all"):
        raise PruneError(f"scores compete within 'array', 'column' or 'all', but this is {within!r}")
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    given = jax.tree.leaves(scores)
    if jax.tree.structure(scores) != treedef or [jnp.shape(s) for s in given] != [
        jnp.shape(w) for _, w in leaves
    ]:
        raise PruneError("the scores have another structure, or other shapes, than the parameters")
    chosen = select or (lambda path, w: jnp.ndim(w) > 1)
    pruned = [i for i, (path, w) in enumerate(leaves) if chosen(_name(path), w)]
    sizes = {i: jnp.abs(jnp.asarray(given[i])) for i in pruned}
    if within == "all" and pruned:
        together = jnp.concatenate([s.reshape(-1).astype(jnp.float32) for s in sizes.values()])
        ends = np.cumsum([s.size for s in sizes.values()])[:-1]
        parts = jnp.split(_kept(together, sparsity), ends)
        kept = {i: part.reshape(s.shape) for (i, s), part in zip(sizes.items(), parts, strict=True)}
    elif within == "column":
        of_columns = jax.vmap(lambda s: _kept(s, sparsity), in_axes=-1, out_axes=-1)
        kept = {i: of_columns(s.reshape(-1, s.shape[-1])).reshape(s.shape) for i, s in sizes.items()}
    else:
        kept = {i: _kept(s.reshape(-1), sparsity).reshape(s.shape) for i, s in sizes.items()}
    flat = [jnp.where(kept[i], w, jnp.zeros_like(w)) if i in kept else w for i, (_, w) in enumerate(leaves)]
    return jax.tree.unflatten(treedef, flat)


def _name(path: tuple) -> str:
    """A path in a tree as text: "layers/0/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _kept(scores: jax.Array, sparsity: float) -> jax.Array:
    """Which of the scores are not among the smallest, of which there are as many as the sparsity says."""
    order = jnp.argsort(jnp.argsort(scores))
    return order >= round(sparsity * scores.size)

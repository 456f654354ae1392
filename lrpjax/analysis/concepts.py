"""Concepts: relevance that flows through chosen channels, and the samples that a channel stands for.

A condition is a mask that multiplies the relevance of a named value on its way down (Concept Relevance Propagation,
Achtibat et al. 2023, "From attribution maps to human-understandable explanations through Concept Relevance
Propagation", Nature Machine Intelligence 5). Masks are arrays, so `jax.vmap` explains many concepts with one forward
pass:

    heatmap = lambda channel: concepts.relevance(f, composite, {"conv2": channel}, target=3)(x)
    heatmaps = jax.vmap(heatmap)(jnp.arange(64))
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lrpjax._chosen import chosen
from lrpjax._evaluate import check_positive, map_batched
from lrpjax.composites import DEFAULT, Composite
from lrpjax.core.graph import Value
from lrpjax.core.plan import flow
from lrpjax.core.program import Program
from lrpjax.core.seeds import output_relevance
from lrpjax.core.vjps import wide
from lrpjax.errors import InputError, LrpjaxError

__all__ = [
    "ConditionError",
    "Samples",
    "channel_relevance",
    "crop",
    "maximising_samples",
    "receptive_fields",
    "relevance",
]


class ConditionError(LrpjaxError, ValueError):
    """A condition does not fit the value that it is put on.

    >>> import jax.numpy as jnp, lrpjax
    >>> f = lambda x: lrpjax.tag(2.0 * x, 'h').sum()
    >>> lrpjax.concepts.relevance(f, None, {'h': 5})(jnp.ones(3))
    Traceback (most recent call last):
    ...
    lrpjax.analysis.concepts.ConditionError: 'h' has 3 channels, 0 … 2, but the condition names 5
    """


# ------------------------------------------------------------------------------------------------ conditional relevance


def relevance(
    f: Callable,
    composite: Composite | None,
    conditions: Mapping[str, ArrayLike],
    *,
    argnums: int | Sequence[int] | None = None,
    target: Any = None,
    at: str | Sequence[str] | None = None,
    around: bool = False,
    channel_axis: int = -1,
    has_aux: bool = False,
) -> Callable:
    """As `lrpjax.relevance`, for the relevance that flows through chosen channels only.

    R(x | θ): the messages into a value are multiplied by its mask, R_{i←j} → θ_j R_{i←j} (Achtibat et al. 2023,
    Methods: θ_j is 1 for the channels chosen and 0 for others). Conditions on several values are a conjunction: the
    relevance that passes through all of them. Relevance is linear in each mask, so the heatmaps of all single channels
    add up to that of the whole value.

    Args:
        f: as for `lrpjax.relevance`; it is traced and run once, whatever the number of conditions and of vmaps over
            them.
        composite: as for `lrpjax.relevance`.
        conditions: {name: condition}. A name is a module path, a `lrpjax.tag` or a glob over units, as for `at`. A
            condition is an int or ints [n], the channels that are kept; or a mask, bool or floating, which broadcasts
            to the value (so [channels] fits channels that come last). Inside a scan the value is stacked over its
            steps, and a mask may differ between them.
        argnums, target, at, has_aux: as for `lrpjax.relevance`. Relevance `at` a conditioned value is that behind the
            mask.
        around: whether relevance counts that reaches x without passing a conditioned value (over a skip connection).
            Without it, a network with n conditioned values that can be bypassed takes 2ⁿ backward passes: R(θ) less
            what flows with θ = 0.
        channel_axis: axis of the channels that ints count along, in the value's own shape.

    Returns:
        A function of the same arguments as f, which returns relevances as `lrpjax.relevance` does.

    Raises:
        ConditionError: a mask does not broadcast, a channel does not exist (a traced one gives NaN), or there is no
            condition.
        PathError: a name is not known, or no relevance flows through its value.
        Else as `lrpjax.relevance`.

    Example:
        >>> import jax, jax.numpy as jnp, lrpjax
        >>> from lrpjax import concepts
        >>> def f(x):
        ...     hidden = lrpjax.tag(jax.nn.relu(x @ jnp.array([[1.0, 1.0], [1.0, -1.0]])), "hidden")
        ...     return hidden @ jnp.array([1.0, 2.0])
        >>> x = jnp.array([3.0, 1.0])
        >>> one = lambda channel: concepts.relevance(f, None, {"hidden": channel})(x)
        >>> print(jnp.rint(jax.vmap(one)(jnp.arange(2))), jnp.rint(lrpjax.relevance(f)(x)))
        [[ 3.  1.]
         [ 6. -2.]] [ 9. -1.]
    """
    conditions = _checked(conditions)

    def explain(*args: Any, **kwargs: Any) -> Any:
        program = Program(
            f, chosen(composite, "concepts"), args, kwargs, argnums, at, has_aux, tuple(conditions)
        )
        aux, R = _conditional(program, conditions, target, around, channel_axis)
        return (R, aux) if has_aux else R

    return explain


def channel_relevance(
    f: Callable,
    composite: Composite | None = None,
    *,
    at: str | Sequence[str],
    conditions: Mapping[str, ArrayLike] | None = None,
    target: Any = None,
    argnums: int | Sequence[int] | None = None,
    around: bool = False,
    channel_axis: int = -1,
) -> Callable:
    """The relevance of each channel of a named value, summed over positions: R_c = Σ_p R_{p,c} (Achtibat et al. 2023).

    With `conditions` on a value above, it tells how a concept is made up of the channels below it.

    Args:
        f: as for `lrpjax.relevance`, of values whose leading axis counts examples.
        composite, target, argnums: as for `lrpjax.relevance`.
        at: the value's name, see `lrpjax.relevance`.
        conditions, around: as for `concepts.relevance`; None for no conditions.
        channel_axis: axis of the channels in the value's own shape; ints in conditions count along it too.

    Returns:
        A function of the same arguments as f, which returns [B, channels], in the value's dtype (a dict of them for
        several names or a glob; [steps, B, channels] inside a scan).

    Raises:
        ConditionError: the value has no examples or no channel axis. Else as `concepts.relevance`.

    Example:
        >>> import jax.numpy as jnp, lrpjax
        >>> from lrpjax import concepts
        >>> f = lambda x: lrpjax.tag(x * jnp.array([1.0, 2.0]), "scaled").sum((1, 2))
        >>> print(concepts.channel_relevance(f, at="scaled")(jnp.ones((1, 3, 2))))
        [[3. 6.]]
    """
    conditions = _checked(conditions) if conditions is not None else {}

    def explain(*args: Any, **kwargs: Any) -> Any:
        program = Program(
            f, chosen(composite, "concepts"), args, kwargs, argnums, at, False, tuple(conditions)
        )
        _, R = _conditional(program, conditions, target, around, channel_axis)

        def summed(name: str, R: jax.Array) -> jax.Array:
            value = program.taps[name]
            axis = _example_and_channel_axis(value, channel_axis, name)
            steps = R.ndim - len(value.shape)
            kept = {*range(steps + 1), steps + axis}
            return R.sum(tuple(a for a in range(R.ndim) if a not in kept))

        if program.single:
            return summed(next(iter(program.taps)), R)
        return {name: summed(name, r) for name, r in R.items()}

    return explain


def _checked(conditions: Mapping[str, ArrayLike]) -> dict[str, ArrayLike]:
    if not isinstance(conditions, Mapping) or not conditions:
        raise ConditionError(
            f"conditions are a mapping from names to channels or masks, but this is {conditions!r}"
        )
    return dict(conditions)


def _conditional(program: Program, conditions: dict, target: Any, around: bool, channel_axis: int) -> tuple:
    """(auxiliary data, relevance) under conditions."""
    weights = {}
    for name, condition in conditions.items():
        for value in program.conditions[name]:
            weight = _weight(name, condition, value, program.shape_of(value), channel_axis)
            weights[value] = weights[value] * weight if value in weights else weight

    def run(weights: Mapping[Value, Any]) -> tuple:
        y, aux, pull = program.linearise(weights)
        return aux, pull(output_relevance(y, target, program.composite.method))

    starts = program.tapped or [
        v for v in program.graph.inputs[len(program.consts) :] if v in program.routes.reached
    ]
    skipped = {c: [v for v in starts if bypassed(program, v, c)] for c in weights if not around}
    skipped = {c: starts for c, starts in skipped.items() if starts}
    if not skipped:
        return run(weights)

    subsets = np.asarray(list(itertools.product([1.0, 0.0], repeat=len(skipped))))

    def keeping(factors: jax.Array) -> tuple:
        factor = dict(zip(skipped, factors, strict=True))
        return run({v: w * factor[v].astype(w.dtype) if v in factor else w for v, w in weights.items()})

    aux, R = jax.vmap(keeping, out_axes=(None, 0))(jnp.asarray(subsets, jnp.float32))

    def signs(start: Value) -> np.ndarray:
        """(−1)^(conditions switched off), where these stand between the output and what is explained; else 0."""
        mine = np.asarray([start in starts for starts in skipped.values()])
        off = subsets == 0
        return np.where((off & ~mine).any(1), 0.0, (-1.0) ** off.sum(1))

    def combined(R: jax.Array, start: Value | None) -> jax.Array:
        return jnp.tensordot(jnp.asarray(signs(start), R.dtype), R, 1) if start is not None else R[0]

    if program.tapped:
        taps = list(program.taps.values())
        return aux, combined(R, taps[0]) if program.single else {
            n: combined(R[n], v) for n, v in program.taps.items()
        }
    leaves, treedef = jax.tree.flatten(R)
    inputs = program.graph.inputs[len(program.consts) :]
    pairs = [(r, v if v in program.routes.reached else None) for r, v in zip(leaves, inputs, strict=True)]
    return aux, jax.tree.unflatten(treedef, [combined(r, v) for r, v in pairs])


def _weight(name: str, condition: Any, value: Value, shape: tuple[int, ...], channel_axis: int) -> jax.Array:
    """A condition as an array to multiply the value's relevance by; `shape` is the value's as seen from outside."""
    array = condition if isinstance(condition, jax.Array) else np.asarray(condition)
    if array.dtype == bool or jnp.issubdtype(array.dtype, jnp.floating):
        try:
            fits = array.size > 0 and jnp.broadcast_shapes(array.shape, shape) == shape
        except ValueError:
            fits = False
        if not fits:
            raise ConditionError(
                f"the mask for {name!r} has shape {array.shape}, which does not broadcast to {shape}"
            )
        weight = jnp.asarray(array).astype(value.aval.dtype)
    elif jnp.issubdtype(array.dtype, jnp.integer) and array.ndim <= 1:
        axis = _channel_axis(value, channel_axis, name)
        count = value.shape[axis]
        if not isinstance(array, jax.core.Tracer) and not ((array >= 0) & (array < count)).all():
            raise ConditionError(
                f"{name!r} has {count} channels, 0 … {count - 1}, but the condition names {condition}"
            )
        channels = jnp.asarray(array).reshape(-1)
        hot = (jnp.arange(count, dtype=channels.dtype)[:, None] == channels).any(1).astype(value.aval.dtype)
        exist = ((channels >= 0) & (channels < count)).all()
        weight = jnp.where(exist, hot, jnp.asarray(jnp.nan, hot.dtype))
        weight = weight.reshape(count, *(1,) * (len(value.shape) - axis - 1))
    else:
        raise ConditionError(
            f"a condition is a channel, a list of channels or a mask of bools or floats, "
            f"but that for {name!r} has dtype {array.dtype} and shape {array.shape}"
        )
    return weight if len(shape) == len(value.shape) else jnp.broadcast_to(weight, shape)


def _channel_axis(value: Value, channel_axis: int, name: str) -> int:
    ndim = len(value.shape)
    if not -ndim <= channel_axis < ndim:
        raise ConditionError(f"{name!r} has shape {value.shape}: it has no axis {channel_axis} for channels")
    return channel_axis % ndim


def _example_and_channel_axis(value: Value, channel_axis: int, name: str) -> int:
    axis = _channel_axis(value, channel_axis, name)
    if axis == 0:
        raise ConditionError(
            f"{name!r} has shape {value.shape}, whose first axis counts examples: "
            f"channel_axis={channel_axis} cannot be the same"
        )
    return axis


def bypassed(program: Program, start: Value, condition: Value) -> bool:
    """Whether relevance reaches a value both through a conditioned one and around it.

    Loops and branches are taken as one step, so a condition inside of them counts as bypassed by what else they hold.
    """
    if start is condition:
        return False
    level, propagations = program.level, program.assignment.propagations
    above = flow(level, [v is start for v in level.inputs], propagations, frozenset([start]))
    if condition not in above:
        return False
    reached = {start}
    for unit in level.units:
        if unit in program.routes.takes and reached & set(program.routes.gives[unit]):
            reached.update(v for v in unit.outputs if v is not condition)
    inside = start not in level.graph.inputs and not any(start in n.outputs for n in level.graph.nodes)
    return inside or any(v in reached for v in level.graph.outputs)


# --------------------------------------------------------------------------------------------------- maximising samples


class Samples(NamedTuple):
    """The k samples of a data set for which each channel scores highest, best first; what fewer samples leave open is
    −inf and −1.

    score: float [channels, k]. index: int32 [channels, k], the samples' numbers in the data set. position: int32
    [channels, k], where in the channel's plane the largest entry is, flat (row-major). seen: int32 [], how many samples
    have been looked at.

    >>> import jax.numpy as jnp, lrpjax
    >>> f = lambda x: lrpjax.tag(x, 'in').sum(1)
    >>> batches = [jnp.array([[1.0], [3.0], [2.0]])]
    >>> best = lrpjax.concepts.maximising_samples(f, None, batches, at='in', target=None, k=2)
    >>> print(best.score, best.index, best.position, best.seen)
    [[3. 2.]] [[1 2]] [[0 0]] 3
    """

    score: jax.Array
    index: jax.Array
    position: jax.Array
    seen: jax.Array

    def merge(self, other: "Samples") -> "Samples":
        """The best of both, for parts of a data set that were gone through apart; equal scores keep their order, this
        one's first.

        Example:
            >>> import jax.numpy as jnp
            >>> from lrpjax.concepts import Samples
            >>> part = lambda score, index: Samples(*map(jnp.asarray, ([score], [index], [[0, 0]], 2)))
            >>> print(part([5.0, 1.0], [0, 1]).merge(part([3.0, 2.0], [2, 3])).index)
            [[0 2]]
        """
        if self.score.shape[0] != other.score.shape[0]:
            raise ConditionError(
                f"samples of {self.score.shape[0]} channels cannot be merged with samples of {other.score.shape[0]}"
            )
        k = self.score.shape[1]
        columns = [jnp.concatenate(pair, 1) for pair in zip(self[:3], other[:3], strict=True)]
        score, chosen = jax.lax.top_k(columns[0], k)
        index, position = (jnp.take_along_axis(c, chosen, 1) for c in columns[1:])
        return Samples(score, index, position, self.seen + other.seen)


def maximising_samples(
    f: Callable,
    composite: Composite | None,
    batches: Iterable[Any],
    *,
    at: str,
    by: str = "relevance",
    target: Any = "max",
    k: int = 8,
    pool: str = "sum",
    normalise: bool = False,
    channel_axis: int = -1,
    previous: Samples | None = None,
) -> Samples:
    """The samples of a data set that maximise the relevance, or the activation, of each channel of a named value.

    Relevance and activation maximisation of Achtibat et al. 2023 (Methods, "Relevance Maximization"): s_c = Σ_p v_{p,c}
    or max_p v_{p,c}, for v = R or the value itself. One pass, compiled once; the best are merged on the device, so
    memory does not grow with the data set.

    Args:
        f: a function of a batch [B, ...].
        composite: as for `lrpjax.relevance`.
        batches: batches [B, ...], or pairs (batch, target) with a target for each. The last may be smaller.
        at: the value's name, see `lrpjax.relevance`; its leading axis counts the samples.
        by: "relevance" or "activation".
        target: as for `lrpjax.relevance`; the default explains the class predicted.
        k: how many samples to keep for each channel.
        pool: "sum" or "max" over positions.
        normalise: divide the scores of each sample by Σ_c |s_c|, as zennit-crp does, so that samples with large outputs
            do not prevail.
        channel_axis: axis of the channels in the value's own shape.
        previous: what an earlier call returned, to go on from there; sample numbers go on too.

    Returns:
        Samples, in the value's dtype (at least float32).

    Raises:
        ValueError: `by`, `pool` or `k` is none of the above, or there are no batches.
        ConditionError: the value does not have the samples along its leading axis. InputError: a score is NaN.
        Else as `lrpjax.relevance`.

    Example:
        >>> import jax.numpy as jnp, lrpjax
        >>> from lrpjax import concepts
        >>> f = lambda x: lrpjax.tag(x, "in") @ jnp.array([[1.0], [2.0]])
        >>> batches = [jnp.array([[1.0, 0.0], [5.0, 1.0]]), jnp.array([[2.0, 3.0]])]
        >>> best = concepts.maximising_samples(f, None, batches, at="in", k=2)
        >>> print(best.index, best.seen)
        [[1 2]
         [2 1]] 3
    """
    if by not in ("relevance", "activation"):
        raise ValueError(f"by must be 'relevance' or 'activation', not {by!r}")
    if pool not in ("sum", "max"):
        raise ValueError(f"pool must be 'sum' or 'max', not {pool!r}")
    check_positive("k", k)
    if previous is not None and previous.score.shape[1] != k:
        raise ValueError(f"k={k}, but the previous samples are {previous.score.shape[1]} for each channel")

    def scores(x: jax.Array, labels: Any) -> tuple[jax.Array, jax.Array]:
        """Of each sample and channel, the score and the position of its largest entry, [B, channels] each."""
        program = Program(f, chosen(composite, "concepts"), (x,), {}, 0, at, False)
        if len(program.taps) != 1:
            raise ConditionError(f"`at` must name one value, but {at!r} names {len(program.taps)}")
        ((name, value),) = program.taps.items()
        axis = _example_and_channel_axis(value, channel_axis, name)
        shape = program.shape_of(value)
        if len(shape) != len(value.shape) or shape[0] != len(x):
            raise ConditionError(
                f"{name!r} has shape {shape}, whose first axis does not count the {len(x)} samples"
            )
        if by == "activation":
            v = program.values()[name]
        else:
            y, _, pull = program.linearise()
            R = pull(output_relevance(y, target if labels is None else labels, program.composite.method))
            v = R if program.single else R[name]
        v = jnp.moveaxis(wide(v), axis, -1).reshape(len(x), -1, value.shape[axis])
        score = v.sum(1) if pool == "sum" else v.max(1)
        if normalise:
            score = score / (jnp.abs(score).sum(1, keepdims=True) + jnp.asarray(1e-10, score.dtype))
        return score, v.argmax(1).astype(jnp.int32)

    @jax.jit
    def ranked(x: jax.Array, labels: Any, rows: jax.Array, first: jax.Array) -> Samples:
        """The samples of one batch, ranked; rows from `rows` on are padding."""
        score, position = scores(x, labels)
        number = jnp.arange(len(x), dtype=jnp.int32)
        real = number < rows
        score = jnp.where(real[:, None], score, -jnp.inf).T
        index = jnp.broadcast_to(jnp.where(real, first + number, -1), score.shape)
        score, chosen = jax.lax.top_k(score, min(k, len(x)))
        index, position = (jnp.take_along_axis(c, chosen, 1) for c in (index, position.T))
        return Samples(score, index, jnp.where(index < 0, -1, position), rows)

    merge = jax.jit(Samples.merge)
    best, size = previous, 0
    for batch in batches:
        x, labels = batch if isinstance(batch, tuple) else (batch, None)
        rows = len(x)
        size = max(size, rows)
        labels = labels if labels is None or np.ndim(labels) == 0 else _padded(labels, size)
        first = jnp.int32(0) if best is None else best.seen
        found = ranked(_padded(x, size), labels, jnp.int32(rows), first)
        best = merge(_none(found, k) if best is None else best, found)
    if best is None:
        raise ValueError("there are no batches to go through")
    if jnp.isnan(best.score).any():
        raise InputError(f"the {by} of {at!r} is NaN for some samples")
    return best


def _padded(x: ArrayLike, size: int) -> jax.Array:
    """x with its last row repeated up to `size` rows, so that a smaller batch does not compile anew."""
    x = jnp.asarray(x)
    return x[jnp.minimum(jnp.arange(size), len(x) - 1)] if len(x) < size else x


def _none(like: Samples, k: int) -> Samples:
    shape = (like.score.shape[0], k)
    nothing = jnp.full(shape, -1, jnp.int32)
    return Samples(jnp.full(shape, -jnp.inf, like.score.dtype), nothing, nothing, jnp.int32(0))


def receptive_fields(f: Callable, *, at: str, channel_axis: int = -1, batch: int = 32) -> Callable:
    """The part of the input that each position of a named value depends on, found by running f.

    Each row (column, …) of the input is made NaN in turn, and the positions where the value becomes NaN depend on it:
    exact whatever the weights and the input are, at the cost of one forward pass of one sample for each row and column
    (own method). A comparison that drops NaN (`jnp.where(x > 0, x, 0)` in place of `jax.nn.relu`) hides what lies
    behind it; accelerators whose convolutions work on tiles can give fields that are wider by a part of a tile.

    Args:
        f: as for `lrpjax.relevance`, of x: floating [B, ...], with the channels where the value has them.
        at: the value's name, see `lrpjax.relevance`.
        channel_axis: axis of the channels, in the input and in the value.
        batch: how many forward passes to run at once.

    Returns:
        A function of x, of whose samples only the first is used, which returns int32 [*positions, axes, 2]: for each
        spatial position of the value and each spatial axis of the input the half-open range [start, stop); (0, 0) where
        nothing is depended on.

    Raises:
        ConditionError: an axis does not fit, or no position becomes NaN. Else as `lrpjax.relevance`.

    Example:
        >>> import jax.numpy as jnp, lrpjax
        >>> from lrpjax import concepts
        >>> f = lambda x: lrpjax.tag(x[:, :-1] + x[:, 1:], "pairs").sum((1, 2))
        >>> print(concepts.receptive_fields(f, at="pairs")(jnp.ones((1, 4, 1)))[:, 0])
        [[0 2]
         [1 3]
         [2 4]]
    """

    @jax.jit
    def fields(x: jax.Array) -> jax.Array:
        program = Program(f, DEFAULT, (x,), {}, 0, at, False)
        ((name, value),) = program.taps.items()
        _example_and_channel_axis(value, channel_axis, name)
        spatial = [a for a in range(1, x.ndim) if a != channel_axis % x.ndim]

        def depends(axis: int, row: jax.Array) -> jax.Array:
            """[*positions]: whether the value depends on a row of the input."""
            here = jnp.arange(x.shape[axis]) == row
            struck = jnp.where(
                here.reshape(-1, *(1,) * (x.ndim - axis - 1)), jnp.asarray(jnp.nan, x.dtype), x
            )
            _, seen = program.run([struck], program.zeros(), {})
            return jnp.isnan(seen[0]).any(channel_axis)[0]

        ranges = []
        for axis in spatial:
            number = x.shape[axis]
            hits = map_batched(lambda row, axis=axis: depends(axis, row), jnp.arange(number), batch)
            start, stop = hits.argmax(0), number - hits[::-1].argmax(0)
            ranges.append(jnp.where(hits.any(0)[..., None], jnp.stack([start, stop], -1), 0))
        return jnp.stack(ranges, -2).astype(jnp.int32)

    def explain(x: ArrayLike) -> jax.Array:
        x = jnp.asarray(x)
        if x.ndim < 3 or not -x.ndim <= channel_axis < x.ndim or channel_axis % x.ndim == 0:
            raise ConditionError(
                f"the input has shape {x.shape}: it needs examples first, spatial axes, "
                f"and channels at channel_axis={channel_axis}"
            )
        found = fields(x[:1])
        if not isinstance(found, jax.core.Tracer) and not found.any():
            raise ConditionError(
                f"{at!r} does not become NaN where the input is: something on the way drops NaN"
            )
        return found

    return explain


def crop(x: ArrayLike, field: ArrayLike, *, channel_axis: int = -1) -> np.ndarray:
    """The part of a sample that lies in a receptive field.

    Args:
        x: one sample, without the axis of examples.
        field: int [axes, 2], a range for each spatial axis, as `receptive_fields` gives for one position.
        channel_axis: axis of the channels in the sample.

    Returns:
        A view of x as a NumPy array.

    Raises:
        ConditionError: the field has another number of axes than the sample.

    Example:
        >>> import numpy as np
        >>> from lrpjax import concepts
        >>> concepts.crop(np.zeros((8, 8, 3)), [[0, 3], [2, 6]]).shape
        (3, 4, 3)
    """
    x, field = np.asarray(x), np.asarray(field)
    spatial = [a for a in range(x.ndim) if a != channel_axis % x.ndim]
    if field.shape != (len(spatial), 2):
        raise ConditionError(
            f"a field for a sample of shape {x.shape} is [{len(spatial)}, 2], not {field.shape}"
        )
    ranges = [slice(None)] * x.ndim
    for axis, (start, stop) in zip(spatial, field.tolist(), strict=True):
        ranges[axis] = slice(start, stop)
    return x[tuple(ranges)]

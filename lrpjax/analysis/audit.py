"""Where relevance went: an account for every unit of the plan, and the messages of single layers."""

import bisect
import dataclasses
import functools
from collections.abc import Callable, Sequence
from posixpath import commonpath
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax._chosen import chosen
from lrpjax._html import Number, Shown, number, table
from lrpjax._types import P, Target
from lrpjax.composites import Composite
from lrpjax.core.accounts import BOUND, Accounts, run, total
from lrpjax.core.ends import End
from lrpjax.core.given import checked_function
from lrpjax.core.program import Program
from lrpjax.core.seeds import output_relevance
from lrpjax.core.units import Unit
from lrpjax.core.vjps import BIAS, BROKEN, EPSILON, PASSED, RECEIVED, SIZE_PASSED, SIZE_RECEIVED
from lrpjax.errors import PathError
from lrpjax.select import among


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=(
        "relevance_in",
        "relevance_out",
        "bias",
        "epsilon",
        "other",
        "broken",
        "size_in",
        "size_out",
    ),
    meta_fields=("path", "kind", "rule", "shape", "source", "turns"),
)
@dataclasses.dataclass
class Account:
    """What happened to the relevance of one unit, summed over all its elements (and the batch, and the steps of a
    loop).

    relevance_in: what reached its output. relevance_out: what it handed to its operands. bias, epsilon: what was
    absorbed by the bias (and other constants) and by the stabiliser. other: the rest of in − out: a softmax, a rule
    that does not conserve. broken: how many values of its output are not finite.
    size_in, size_out: the sums of |R| at its output and at its operands. turns: how often a loop runs it.
    """

    path: str
    kind: str
    rule: str
    shape: tuple[int, ...]
    source: str
    turns: int
    relevance_in: jax.Array
    relevance_out: jax.Array
    bias: jax.Array
    epsilon: jax.Array
    other: jax.Array
    broken: jax.Array
    size_in: jax.Array
    size_out: jax.Array

    @property
    def gain(self) -> float:
        """By which factor it multiplies the sizes |R| of relevance, of the whole batch: far above 1 where terms cancel
        in what it divides by. 0 where no relevance came."""
        size_in, size_out = float(np.sum(self.size_in)), float(np.sum(self.size_out))
        return size_out / size_in if size_in > 0 else 0.0

    @property
    def lost(self) -> jax.Array:
        """relevance_in − relevance_out; negative where the unit makes relevance."""
        return self.relevance_in - self.relevance_out


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("relevance",),
    meta_fields=("path", "name", "shape", "source", "place"),
)
@dataclasses.dataclass
class Constant:
    """What ended at a constant that enters by itself (a class token, a prompt, the state that a loop starts with; also
    what the program detaches), summed like an `Account`.

    relevance: the relevance that came to it. path, source: where it enters. name: the primitive there, "output" for a
    part of the output that does not depend on what is explained. shape: the constant's. place: how many of the audit's
    units run before it enters.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    source: str
    place: int
    relevance: jax.Array


@dataclasses.dataclass(frozen=True)
class Stage:
    """Units that run one after another in one part of a network.

    path: of the modules. units: their numbers in the audit. relevance: what is left of the output's when it has come
    through this stage and all that run after it; kept: the share that this is. bias, epsilon, other, constants: what
    was lost in this stage, so that relevance + bias + epsilon + other + constants is what had come to it.
    """

    path: str
    units: range
    relevance: jax.Array
    kept: jax.Array
    bias: jax.Array
    epsilon: jax.Array
    other: jax.Array
    constants: jax.Array


class Stages(Shown, tuple[Stage, ...]):
    """The stages of an audit, from the output to the input, as a tuple; `str(stages)` is a table, of sums over the
    batch, which a notebook shows so that it can be sorted and searched."""

    def __str__(self) -> str:
        return "\n".join(_aligned([STAGES, *self._rows()], left=1))

    def _repr_html_(self) -> str:
        return table("what is left after each stage, from the output to the input", STAGES, self._rows())

    def _rows(self) -> list[tuple[Number | str, ...]]:
        rows, seed = [], 0.0
        for stage in self:
            left, *lost = (number(getattr(stage, c)) for c in ("relevance", *STAGES[4:]))
            seed = seed or left.value + sum(n.value for n in lost)
            share = number(left.value / seed, ".1%") if seed else "-"
            rows.append((stage.path or "-", number(len(stage.units), ".0f"), left, share, *lost))
        return rows


STAGES = ("path", "units", "left", "kept", "bias", "epsilon", "other", "constants")
COLUMNS = ("#", "path", "kind", "rule", "in", "out", "bias", "epsilon", "other")


def _number(a: Any) -> str:
    return number(a).text


def _aligned(table: Sequence[Sequence[Any]], left: int) -> list[str]:
    """The lines of a table, its first columns aligned on the left and the others, numbers, on the right."""
    rows = [tuple(map(str, row)) for row in table]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            v.ljust(w) if c < left else v.rjust(w) for c, (v, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("units", "constants", "seed", "relevance", "ended", "size", "size_ended"),
    meta_fields=("conserves",),
)
@dataclasses.dataclass
class Audit(Shown):
    """The accounts of a relevance: `units` in execution order, `constants` where it ends besides, `seed` the sum of the
    output's relevance, `relevance` the sum of what arrived at the arguments, or at the value that `at` names (a dict of
    sums, by name, where `relevance` gives a dict). A pytree; `str(audit)` is a table, and
    a notebook shows one that can be sorted and searched. Under `jax.vmap` each number has
    the axis of the batch: `audit[i]` is that of one example.

    The sums close: seed = ended + Σ units (bias + epsilon + other) + Σ constants, up to rounding. `ended` is what came
    to the arguments; with `at`, what came to the named values (to the lowest of them, where one lies below another)
    or, beside them, to the arguments. `rest` is what these sums leave. `size` is the sum of |R| over the output,
    `size_ended` that over what `ended` sums. `kept` and `cancelled` say in two numbers how much of the output the
    relevance accounts for; `stages` where the rest went. `conserves`: whether relevance is meant to be conserved, as it
    is not in the gradient family, whose seeds are no parts of f(x).

    Example:
        >>> import jax.numpy as jnp, lrpjax
        >>> f = lambda x: x @ jnp.array([1.0, 1.0]) + 1.0
        >>> audit = lrpjax.audit(f)(jnp.array([2.0, 1.0]))
        >>> print(audit.seed, audit.relevance.round(2), audit.worst().bias.round(2))
        4.0 3.0 1.0
    """

    units: list[Account]
    constants: list[Constant]
    seed: jax.Array
    relevance: Any
    ended: jax.Array
    size: jax.Array
    size_ended: jax.Array
    conserves: bool = True

    @property
    def kept(self) -> jax.Array:
        """The share Σ R / f(x) of the output's relevance that arrived: 1 where it is conserved."""
        return jnp.divide(self.ended, self.seed)

    @property
    def cancelled(self) -> jax.Array:
        """Σ|R| / |Σ R| of what arrived, at least 1: large where relevance of one sign cancels that of the other, and
        single elements claim more than the output has."""
        return jnp.divide(self.size_ended, jnp.abs(self.ended))

    @property
    def absorbed(self) -> jax.Array:
        """What the units took: Σ (bias + epsilon + other)."""
        return sum((u.bias + u.epsilon + u.other for u in self.units), jnp.zeros_like(self.seed))

    @property
    def rest(self) -> jax.Array:
        """seed − ended − what the units and the constants took: zero, up to rounding."""
        taken = sum((c.relevance for c in self.constants), jnp.zeros_like(self.seed))
        return self.seed - self.ended - self.absorbed - taken

    def __getitem__(self, index: Any) -> "Audit":
        return jax.tree.map(lambda a: a[index], self)

    def stages(self, depth: int = 1) -> Stages:
        """What is left of the output's relevance after each part of the network, from the output to the input.

        A stage are units that run one after another and whose module paths begin alike; units that stand in no module
        of this depth belong to the stage that runs before them, and so do constants that enter. What is left
        counts all relevance, also that which passes a stage by on a skip connection. Under `jax.vmap` each number has
        the axis of the batch.

        Args:
            depth: how many parts of the path tell stages apart, of those that follow what all paths have in common.

        Raises:
            ValueError: the depth is below 1.

        Example:
            >>> import jax, jax.numpy as jnp, lrpjax
            >>> def f(x):
            ...     for name, bias in (("first", 1.0), ("second", 3.0)):
            ...         with jax.named_scope(name):
            ...             x = x @ jnp.eye(2) + bias
            ...     return x[0]
            >>> print(lrpjax.audit(f, lrpjax.composites.epsilon(0.0))(jnp.array([2.0, 1.0])).stages())
            path    units  left   kept  bias  epsilon  other  constants
            second      1     3  50.0%     3        0      0          0
            first       1     2  33.3%     1        0      0          0
        """
        if depth < 1:
            raise ValueError(f"the depth of stages is at least 1, but is {depth}")
        left, rows = self.seed, []
        for path, units in reversed(_runs([u.path for u in self.units], depth)):
            lost = [sum(getattr(self.units[i], c) for i in units) for c in ("bias", "epsilon", "other")]
            # A constant belongs to the unit that runs before it, or to the first.
            entering = [c.relevance for c in self.constants if max(c.place - 1, 0) in units]
            lost.append(sum(entering, jnp.zeros_like(self.seed)))
            left = left - sum(lost)
            rows.append(Stage("/".join(path), units, left, jnp.divide(left, self.seed), *lost))
        return Stages(rows)

    def worst(self) -> Account:
        """The unit that leaks or amplifies most: the largest |in − out|. Where something is not finite, the first unit
        that makes it so."""
        found = self.first_broken()
        return max(self.units, key=lambda u: float(np.sum(np.abs(u.lost)))) if found is None else found[0]

    def first_broken(self) -> tuple[Account, str] | None:
        """(unit, "value" or "relevance"): the first unit whose output is not finite, or, where all values are finite,
        the first on the way back that makes relevance which is not. None where all relevance and the last unit's output
        are finite, such as behind the −∞ of an attention's mask."""
        broken = [unit for unit in self.units if np.any(np.asarray(unit.broken) > 0)]
        sums = [r for unit in self.units for r in (unit.relevance_in, unit.relevance_out)]
        if broken and (broken[-1] is self.units[-1] or not np.all(np.isfinite(np.stack(sums)))):
            return broken[0], "value"
        for unit in reversed(self.units):
            if np.all(np.isfinite(unit.relevance_in)) and not np.all(np.isfinite(unit.relevance_out)):
                return unit, "relevance"
        return None

    def growth(self) -> float:
        """How many times the output's relevance the sizes |R| at a unit's operands sum to, where that is most; in a
        loop, the mean over its turns."""
        size = float(np.sum(self.size))
        return (
            max((float(np.sum(u.size_out)) / u.turns / size for u in self.units), default=0.0)
            if size
            else 0.0
        )

    def amplifier(self) -> Account | None:
        """The unit with the largest `gain`; None where no relevance comes to any."""
        finite = [u for u in self.units if np.isfinite(u.gain) and u.gain > 0]
        return max(finite, key=lambda u: u.gain, default=None)

    def _index(self, unit: Account) -> int:
        return next(i for i, u in enumerate(self.units) if u is unit)

    def __str__(self) -> str:
        return "\n".join([*_aligned([COLUMNS, *self._rows()], left=4), *self._lines()])

    def _repr_html_(self) -> str:
        return table(
            "relevance in and out of every unit, and what absorbed it", COLUMNS, self._rows(), self._lines()
        )

    def _rows(self) -> list[tuple[Number | str, ...]]:
        columns = ("relevance_in", "relevance_out", *COLUMNS[6:])
        return [
            (Number(str(i), i), u.path or "-", u.kind, u.rule, *(number(getattr(u, c)) for c in columns))
            for i, u in enumerate(self.units)
        ]

    def _lines(self) -> list[str]:
        """What stands below the table."""
        taking = [c for c in self.constants if np.any(np.asarray(c.relevance) != 0)]
        lines = [
            f"constant  {c.path or '-'}  {c.name}  {'×'.join(map(str, c.shape)) or '()'}  {_number(c.relevance)}"
            for c in taking
        ]
        named = self.relevance if isinstance(self.relevance, dict) else {}
        lines += [f"at {name}: {_number(R)}" for name, R in named.items()]
        where = "ended" if named else "arguments"
        if taking:
            taken = sum(np.sum(np.asarray(c.relevance)) for c in taking)
            lines.append(
                f"output {_number(self.seed)} = {where} {_number(self.ended)} + units {_number(self.absorbed)} + "
                f"constants {_number(taken)} + rest {_number(self.rest)}"
            )
        else:
            lines.append(f"output {_number(self.seed)}, {where} {_number(self.ended)}")
        arrived, came = float(np.sum(np.asarray(self.ended))), float(np.sum(np.asarray(self.seed)))
        if arrived and came and self.conserves:
            size = float(np.sum(np.asarray(self.size_ended)))
            lines.append(f"kept: Σ R / f(x) = {arrived / came:.4g}, Σ|R| / |Σ R| = {size / abs(arrived):.4g}")
        found = self.first_broken()
        if found is not None:
            lines.append(f"not finite: the {found[1]} of unit {self._index(found[0])}")
        elif self.units:
            lines.append(
                f"largest loss or gain: {_number(self.worst().lost)} in unit {self._index(self.worst())}"
            )
        worst = self.amplifier()
        if worst is not None and self.growth() > BOUND:
            lines.append(
                f"relevance grows to {self.growth():.1g} times the output's; most, by a factor {worst.gain:.1g}, in "
                f"unit {self._index(worst)}"
            )
        return lines


@overload
def audit(
    f: Callable[P, Any],
    composite: Composite | None = None,
    *,
    argnums: int | Sequence[int] | None = None,
    target: Target = None,
    at: str | Sequence[str] | None = None,
    with_relevance: Literal[False] = False,
) -> Callable[P, Audit]: ...


@overload
def audit(
    f: Callable[P, Any],
    composite: Composite | None = None,
    *,
    argnums: int | Sequence[int] | None = None,
    target: Target = None,
    at: str | Sequence[str] | None = None,
    with_relevance: Literal[True],
) -> Callable[P, tuple[Any, Audit]]: ...


def audit(
    f: Callable[P, Any],
    composite: Composite | None = None,
    *,
    argnums: int | Sequence[int] | None = None,
    target: Target = None,
    at: str | Sequence[str] | None = None,
    with_relevance: bool = False,
) -> Callable[P, Any]:
    """Transforms `f` into the function that gives the `Audit` of `relevance(f, composite)`: for every unit, relevance
    in and out and what absorbed the difference, in − out = bias + ε + other; and what ended at constants that enter by
    themselves, so that the sums close.

    Takes one forward and one backward pass. Works under `jax.jit`; under `jax.vmap` it gives an audit of every example.

    Args:
        f, composite, argnums, target, at: as in `lrpjax.relevance`. With `at` the units are those between the output
            and the named values, at which relevance ends, and those on ways around them.
        with_relevance: give (relevance, audit), the relevance as `lrpjax.relevance` does, from the same passes.

    Raises:
        As `lrpjax.relevance`.

    >>> import jax.numpy as jnp, lrpjax
    >>> token = jnp.array([3.0])
    >>> print(lrpjax.audit(lambda x: jnp.concatenate([token, x]) @ jnp.array([2.0, 1.0]))(jnp.array([1.0])))
    #  path  kind   rule                    in  out  bias  epsilon  other
    0  -     dense  Epsilon(epsilon=1e-06)   7    7     0    1e-06      0
    constant  -  concatenate  1  6
    output 7 = arguments 1 + units 1e-06 + constants 6 + rest 0
    kept: Σ R / f(x) = 0.1429, Σ|R| / |Σ R| = 1
    largest loss or gain: 1e-06 in unit 0
    >>> f = lambda x: jnp.maximum(x @ jnp.eye(2) + 1.0, 0.0) @ jnp.array([[1.0], [2.0]])
    >>> print(lrpjax.audit(f, lrpjax.composites.epsilon(2.0))(jnp.array([[1.0, 1.0]])))
    #  path  kind        rule                 in    out   bias  epsilon  other
    0  -     dense       Epsilon(epsilon=2)  4.5  1.125  1.125     2.25      0
    1  -     activation  Pass()              4.5    4.5      0        0      0
    2  -     dense       Epsilon(epsilon=2)    6    4.5      0      1.5      0
    output 6, arguments 1.125
    kept: Σ R / f(x) = 0.1875, Σ|R| / |Σ R| = 1
    largest loss or gain: 3.375 in unit 0
    """

    asked = chosen(composite, "audit")

    @functools.wraps(checked_function(f, "audit"))
    def explain(*args: P.args, **kwargs: P.kwargs) -> Any:
        program = Program(f, asked, args, kwargs, argnums, at, False)
        made = run(program, target, closing=True)
        hows = [program.assignment.propagations[unit] for unit in made.units]
        entries = [
            _account(planned, columns, how.bias_takes_rest, turns)
            for planned, columns, how, turns in zip(made.planned, made.columns, hows, made.turns, strict=True)
        ]
        single = program.single or not program.tapped
        sums = total(made.R) if single else {name: total(R) for name, R in made.R.items()}
        places = _places(program, made)
        constants = [_constant(end, own, at) for (end, own), at in zip(made.ended, places, strict=True)]
        ended = _ended(program, made)
        sizes = total(made.seed, jnp.abs), total(ended, jnp.abs)
        conserves = program.composite.method == "relevance"
        audit = Audit(entries, constants, total(made.seed), sums, total(ended), *sizes, conserves)
        return (made.R, audit) if with_relevance else audit

    return explain


def _ended(program: Program, made: Accounts) -> Any:
    """What came to where relevance ends: the arguments, or the lowest named values, each once."""
    if not program.tapped:
        return made.R
    named = {v: made.R if program.single else made.R[name] for name, v in program.taps.items()}
    return [R for v, R in named.items() if v in made.stops], made.passing


def _places(program: Program, made: Accounts) -> list[int]:
    """How many of the audited units run before each constant enters; all, where that is the output."""
    order = {unit: i for i, unit in enumerate(program.level.walk())}
    audited = [order[unit] for unit in made.units]
    ends = (end.unit for end, _ in made.ended)
    return [len(audited) if unit is None else bisect.bisect(audited, order[unit]) for unit in ends]


def _runs(paths: Sequence[str], depth: int) -> list[tuple[tuple[str, ...], range]]:
    """(beginning of the path, numbers) of what follows each other and begins alike; a path that ends before a stage is
    told apart belongs to the one before, if that is of its module."""
    split = lambda path: tuple(filter(None, path.split("/")))
    named = ["/".join(split(path)) for path in paths if path]
    shared = len(split(commonpath(named))) if named else 0
    runs: list[tuple[tuple[str, ...], range]] = []
    for i, path in enumerate(paths):
        name = split(path)[: shared + depth]
        if runs and runs[-1][0][: len(name)] == name:
            runs[-1] = (runs[-1][0], range(runs[-1][1].start, i + 1))
        else:
            runs.append((name, range(i, i + 1)))
    return runs


def _constant(end: End, relevance: jax.Array, place: int) -> Constant:
    path, source = (end.node.path, end.node.source) if end.node else ("", "")
    name = "output" if end.unit is None or end.node is None else end.node.name
    return Constant(path, name, end.value.shape, source, place, relevance)


def _account(planned: Any, columns: jax.Array, bias_takes_rest: bool, turns: int) -> Account:
    received, passed, epsilon = columns[RECEIVED], columns[PASSED], columns[EPSILON]
    rest = received - passed - epsilon
    bias, other = (rest, jnp.zeros_like(rest)) if bias_takes_rest else (columns[BIAS], rest - columns[BIAS])
    static = (planned.path, planned.kind, planned.rule, planned.shape, planned.source, turns)
    sizes = columns[SIZE_RECEIVED], columns[SIZE_PASSED]
    return Account(*static, received, passed, bias, epsilon, other, columns[BROKEN], *sizes)


def messages(
    f: Callable[P, Any],
    composite: Composite | None = None,
    *,
    at: str,
    argnums: int | None = None,
    target: Target = None,
) -> Callable[P, jax.Array]:
    """Transforms `f` into the function that gives the messages R_{i←j} of one dense layer: what its input i gets from
    its output j (Bach et al. 2015: Σ_j R_{i←j} is the relevance that the layer gives its input, Σ_i
    R_{i←j} that of its output, less what the bias and the stabiliser absorb).

    Args:
        f, composite, target: as in `lrpjax.relevance`.
        argnums: the argument explained.
        at: the module path of a dense layer.

    Returns:
        A function of f's arguments. It returns an array of the shape of the layer's input with one more axis for its
        outputs, (…, inputs, outputs); memory and time are those of as many backward passes through the layer.

    Raises:
        PathError: no dense layer has this path, several have, or it stands inside a loop.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> def f(x):
    ...     with jax.named_scope("layer"):
    ...         return x @ jnp.array([[1.0, 2.0], [3.0, -1.0]])
    >>> print(lrpjax.messages(f, lrpjax.composites.epsilon(0.0), at="layer")(jnp.array([1.0, 1.0])))
    [[ 1.  2.]
     [ 3. -1.]]
    """

    asked = chosen(composite, "messages")

    @functools.wraps(checked_function(f, "messages"))
    def explain(*args: P.args, **kwargs: P.kwargs) -> jax.Array:
        program = Program(f, asked, args, kwargs, argnums, None, False)
        unit = _dense_at(program, at)
        (x,) = unit.operands
        program.route([x, unit.out])
        program.rewrite()

        def run(zeros: Any) -> Any:
            outputs, seen = program.run(program.leaves, zeros, {})
            return (outputs, seen[1]), seen[0]

        (outputs, z), back, values = jax.vjp(run, program.zeros(), has_aux=True)
        y = jax.tree.unflatten(jax.tree.structure(program.shapes), outputs)
        seed = jax.tree.leaves(output_relevance(y, target, program.composite.method))
        seed = [s.astype(o.dtype) for s, o in zip(seed, outputs, strict=True)]
        (cotangents,) = back((seed, jnp.zeros_like(z)))
        c = cotangents[1]
        silent = [jnp.zeros_like(o) for o in outputs]

        def message(j: jax.Array) -> jax.Array:
            one = (jnp.arange(z.shape[-1]) == j).astype(c.dtype)
            (cotangents,) = back((silent, c * one))
            return program.read(x, values, cotangents[0])

        return jax.vmap(message, out_axes=-1)(jnp.arange(z.shape[-1]))

    return explain


def _dense_at(program: Program, at: str) -> Unit:
    dense = [u for u in program.level.walk() if u.kind == "dense" and u in program.routes.takes]
    hits = [u for u, hit in zip(dense, among(at, [u.path for u in dense]), strict=True) if hit]
    if len(hits) != 1:
        known = ", ".join(sorted({u.path or "(no path)" for u in dense}))
        raise PathError(
            f"messages: {len(hits)} dense layers have the path {at!r}. Dense layers: {known or '(none)'}"
        )
    if hits[0] not in program.level.units:
        raise PathError(f"messages: the dense layer {at!r} stands inside a loop or branch; name one outside")
    return hits[0]

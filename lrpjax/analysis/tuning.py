"""Which composite, with which hyper-parameters, explains *this* model on *these* inputs best, by several measures.

There is no single best explanation: what conserves relevance may tell classes apart badly, and what tells them apart
well may flip pixels no better than chance. `tune` computes every candidate by every measure and returns them all, with
the Pareto front: the candidates that no other one beats in every measure.
"""

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lrpjax import metrics
from lrpjax._evaluate import (
    Target,
    apply,
    as_callable,
    check_positive,
    fill_like,
    map_batched,
    read,
    target_index,
)
from lrpjax._html import Number, Shown, number, table
from lrpjax.composites import Composite
from lrpjax.core.seeds import output_relevance
from lrpjax.errors import LrpjaxError, TargetError
from lrpjax.transform import vjp

__all__ = [
    "MEASURES",
    "Explained",
    "Front",
    "Measure",
    "Row",
    "Tuning",
    "TuningError",
    "alike",
    "flipping",
    "kept",
    "size",
    "tune",
]


class TuningError(LrpjaxError, ValueError):
    """Candidates or measures that cannot be compared.

    >>> import jax.numpy as jnp, lrpjax
    >>> lrpjax.tune(lambda x: x, jnp.ones((1, 2)), {})
    Traceback (most recent call last):
    lrpjax.analysis.tuning.TuningError: tune: give at least one candidate
    """


class Explained(NamedTuple):
    """A batch of explained inputs, as a measure is given it.

    f: the model, x -> scores. x: the inputs, [B, ...]. relevance: of the target class, of x's shape. rival: the
    relevance of the class with the largest score among the others, likewise; None where f has no other. score: f(x)
    at the target, [B]. target: the target class, int [B]; None where f returns scores [B].

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[1.0, 2.0]])
    >>> kept(Explained(f=None, x=x, relevance=x, rival=None, score=jnp.array([4.0]), target=None)).tolist()
    [0.75]
    """

    f: Callable[..., Any]
    x: jax.Array
    relevance: jax.Array
    rival: jax.Array | None
    score: jax.Array
    target: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Measure:
    """What candidates are compared by.

    of: a function of an `Explained` batch that gives a number for each sample, [B]. goal: "max", "min", or the number
    that it should come close to.

    >>> from lrpjax import tuning
    >>> entropy = tuning.Measure(lambda e: metrics.complexity(e.relevance), "min")
    """

    of: Callable[[Explained], jax.Array]
    goal: str | float = "max"

    def __post_init__(self):
        if self.goal not in ("max", "min") and not isinstance(self.goal, (int, float)):
            raise TuningError(f'a goal is "max", "min" or a number, but is {self.goal!r}')

    def cost(self, values: np.ndarray) -> np.ndarray:
        """How far values are from the goal: less is better, and what is not finite is worst."""
        cost = (
            {"max": -values, "min": values}[self.goal]
            if isinstance(self.goal, str)
            else abs(values - self.goal)
        )
        return np.where(np.isfinite(cost), cost, np.inf)


def kept(e: Explained) -> jax.Array:
    """The share of the score that arrives at the input, Σ R / f(x): 1 where nothing is lost to biases and stabilisers
    (Bach et al. 2015, eq. 2).

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[3.0, -1.0]])
    >>> print(kept(Explained(None, x, x, None, jnp.array([2.0]), None)))
    [1.]
    """
    return metrics.axioms.kept_of(e.relevance, e.score).share


def size(e: Explained) -> jax.Array:
    """Σ|R| / |Σ R|: 1 where all relevance has one sign; large where it is a small difference of large parts.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[3.0, -1.0]])
    >>> print(size(Explained(None, x, x, None, jnp.array([2.0]), None)))
    [2.]
    """
    return metrics.axioms.kept_of(e.relevance, e.score).size


def alike(e: Explained) -> jax.Array:
    """The correlation (Pearson) of the relevances of the target and of its strongest rival: 1 where both have one map,
    whatever the class (1 − `lrpjax.metrics.class_contrast`). Of inputs [B, positions, …, channels] the last axis is
    summed first.

    Raises:
        TargetError: f has no second class.

    >>> import jax.numpy as jnp
    >>> R = jnp.array([[3.0, -1.0, 0.0]])
    >>> print(alike(Explained(None, R, R, -R, jnp.array([2.0]), None)).round(6))
    [-1.]
    """
    if e.rival is None:
        raise TargetError(
            "alike needs a rival class: f must return scores [B, classes], with two classes or more"
        )
    map_of = lambda R: R.sum(-1) if R.ndim > 2 else R
    return metrics.pearson(map_of(e.relevance), map_of(e.rival))


def flipping(
    patch: int, fill: ArrayLike = 0.0, steps: int | Sequence[int] = 10, batch: int = 8
) -> Callable[[Explained], jax.Array]:
    """A measure of faithfulness: the area between the curves of region flipping, least relevant first and most relevant
    first, over the score (`lrpjax.metrics.abpc`); 0 for a random order.

    Args:
        patch: the side of the square regions, in pixels.
        fill, steps, batch: as in `lrpjax.metrics.flipping`.

    Returns:
        A function of an `Explained` batch [B, H, W, C].

    >>> import jax.numpy as jnp
    >>> f, x = lambda x: x.sum((1, 2, 3)), jnp.arange(4.0).reshape(1, 2, 2, 1)
    >>> print(flipping(1, steps=2)(Explained(f, x, x, None, f(x), None)).round(3))
    [0.222]
    """

    def measure(e: Explained) -> jax.Array:
        curves = [
            metrics.flipping(
                e.f,
                e.x,
                e.relevance,
                target=e.target,
                order=order,
                regions=patch,
                fill=fill_of(e),
                steps=steps,
                batch=batch,
            ).scores
            for order in ("morf", "lerf")
        ]
        return metrics.abpc(*curves) / jnp.abs(e.score)

    fill_of = lambda e: fill_like(fill, e.x)
    return measure


MEASURES: Mapping[str, Measure] = {
    "kept": Measure(kept, 1.0),
    "size": Measure(size, "min"),
    "alike": Measure(alike, "min"),
}
"""The measures of `tune` that are for every model with two classes or more. For images add a `flipping`."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One candidate with one setting of its hyper-parameters.

    name: the candidate's. settings: its hyper-parameters. composite: what they make. values: each measure of each
    sample, {name: [B]}. costs: how far their medians over the samples are from the goals; less is better.

    >>> import jax.numpy as jnp, lrpjax
    >>> from lrpjax import composites
    >>> rows = lrpjax.tune(lambda x: x, jnp.eye(2), {"z": composites.epsilon(0.0)}).rows
    >>> print(rows[0].name, rows[0].values["kept"])
    z [1. 1.]
    """

    name: str
    settings: dict[str, Any]
    composite: Composite
    values: dict[str, np.ndarray]
    costs: dict[str, float]

    def median(self, measure: str) -> float:
        """The median of a measure over the samples."""
        return float(np.median(self.values[measure]))

    def beats(self, other: "Row") -> bool:
        """Whether it is as good in every measure and better in one (Pareto dominance)."""
        pairs = [(self.costs[m], other.costs[m]) for m in self.costs]
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    @property
    def text(self) -> str:
        """Name and settings in a line."""
        given = ", ".join(
            f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in self.settings.items()
        )
        return f"{self.name}({given})" if given else self.name


class Front(tuple[Row, ...]):
    """The rows of a Pareto front, as a tuple that a notebook shows as a table.

    >>> import jax.numpy as jnp, lrpjax
    >>> from lrpjax import composites
    >>> front = lrpjax.tune(lambda x: x, jnp.eye(2), {"z": composites.epsilon(0.0)}).front
    >>> [row.name for row in front], "<td>z</td>" in front._repr_html_()
    (['z'], True)
    """

    def _repr_html_(self) -> str:
        measures = self[0].values if self else ()
        return _page("candidates of the Pareto front", measures, self)


@dataclasses.dataclass(frozen=True)
class Tuning(Shown):
    """All candidates with what was measured. As `str`, and in a notebook, a table in which * marks the Pareto front.

    >>> import jax.numpy as jnp, lrpjax
    >>> from lrpjax import composites
    >>> candidates = {"z": composites.epsilon(0.0), "ε": (composites.epsilon, {"epsilon": [1.0, 3.0]})}
    >>> result = lrpjax.tune(lambda x: x @ jnp.array([[2.0, -1.0], [0.0, 1.0]]), jnp.array([[1.0, 2.0]]), candidates)
    >>> print(result)
    candidate       kept size alike
    z             *    1    1    -1
    ε(epsilon=1)   0.667    1    -1
    ε(epsilon=3)     0.4    1    -1
    >>> result.best("kept").name
    'z'
    """

    measures: dict[str, Measure]
    rows: tuple[Row, ...]

    @property
    def front(self) -> Front:
        """The Pareto front: the rows that no other row beats."""
        return Front(row for row in self.rows if not any(other.beats(row) for other in self.rows))

    def best(self, measure: str, among: Callable[[Row], bool] = lambda row: True) -> Row:
        """The row that is best in one measure, among those of which a condition holds.

        Raises:
            TuningError: there is no such measure, or the condition holds of no row.
        """
        if measure not in self.measures:
            raise TuningError(f"there is no measure {measure!r}, only {', '.join(self.measures)}")
        rows = [row for row in self.rows if among(row)]
        if not rows:
            raise TuningError("the condition holds of no candidate")
        return min(rows, key=lambda row: row.costs[measure])

    def __str__(self) -> str:
        front = self.front
        head = ["candidate", "", *self.measures]
        lines = [
            [row.text, "*" if row in front else "", *(f"{row.median(m):.3g}" for m in self.measures)]
            for row in self.rows
        ]
        return _table([head, *lines])

    def _repr_html_(self) -> str:
        return _page(
            "medians of the measures; * marks the Pareto front", self.measures, self.rows, self.front
        )


def _page(
    caption: str, measures: Iterable[str], rows: Sequence[Row], front: Sequence[Row] | None = None
) -> str:
    """The HTML of rows, with a column of marks where a front is given."""
    names = list(measures)
    lines: list[list[Number | str]] = [
        [row.text, *(number(row.median(m), ".3g") for m in names)] for row in rows
    ]
    if front is None:
        return table(caption, ["candidate", *names], lines)
    for row, line in zip(rows, lines, strict=True):
        line.insert(1, "*" if row in front else "")
    return table(caption, ["candidate", "front", *names], lines)


def _table(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rest = lambda line: " ".join(cell.rjust(w) for cell, w in zip(line[2:], widths[2:], strict=True))
    return "\n".join(f"{line[0].ljust(widths[0])} {line[1].ljust(widths[1])} {rest(line)}" for line in lines)


Candidate = Composite | tuple[Callable[..., Composite], Mapping[str, Sequence[Any]]]


def tune(
    f: Callable[..., Any],
    x: ArrayLike,
    candidates: Mapping[str, Candidate],
    measures: Mapping[str, Measure] | None = None,
    *,
    target: Target = "max",
    batch: int = 8,
    together: int = 4,
) -> Tuning:
    """Measures every candidate on a user's own model and inputs: a search over composites and hyper-parameters.

    Each candidate is compiled once for each choice of the settings that a rule's formula does not compute with
    (switches, names, places); over the others, such as γ and ε, it is vmapped. The forward pass is shared by the
    settings, where it does not depend on them, and by the target and its strongest rival.

    Args:
        f: x -> scores [B, classes], or [B] with `target=None`; samples must not depend on each other.
        x: inputs, [B, ...], floating.
        candidates: by name, a composite, or a pair of a function that makes one and the values to try of each of its
            arguments, {name: [value, …]}; all combinations are tried.
        measures: by name; None: `MEASURES` (kept, size, alike), or kept and size with `target=None`.
        target: the class that is explained: "max", an int, ints [B], or None.
        batch: how many samples are explained at once.
        together: how many settings at once.

    Returns:
        A `Tuning`: rows in the order of the candidates, the Pareto front, a table.

    Raises:
        TuningError: no candidates, a value that is no list, a name that the function does not have.
        TargetError: if the target is no class. Else what `relevance` raises.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> from lrpjax import composites
    >>> w = jnp.array([[1.0, -1.0], [2.0, 1.0]])
    >>> f = lambda x: jax.nn.relu(x @ w) @ jnp.array([[1.0, 0.0], [-1.0, 1.0]]) + 1.0
    >>> grid = {"gamma": (lambda gamma: composites.epsilon_gamma_box(0.0, 1.0, gamma=gamma), {"gamma": [0.25, 1.0]})}
    >>> len(lrpjax.tune(f, jnp.array([[1.0, 0.5], [0.2, 1.0]]), grid).rows)
    2
    """
    check_positive("batch", batch)
    check_positive("together", together)
    if not candidates:
        raise TuningError("tune: give at least one candidate")
    x = jnp.asarray(x)
    if measures is None:
        measures = {name: m for name, m in MEASURES.items() if target is not None or m.of is not alike}
    scores = jnp.concatenate([apply(as_callable(f), part) for part in _parts(x, batch)])
    index = target_index(scores, target)
    rows = []
    for name, candidate in candidates.items():
        for make, settings, fixed in _families(name, candidate):
            found = _measured(f, x, scores, index, make, settings, measures, batch, together)
            for setting, values in zip(settings, found, strict=True):
                costs = {m: float(measures[m].cost(np.median(values[m]))) for m in measures}
                rows.append(Row(name, {**fixed, **setting}, make(**setting), values, costs))
    return Tuning(dict(measures), tuple(rows))


def _parts(x: jax.Array, batch: int) -> Iterator[jax.Array]:
    return (x[i : i + batch] for i in range(0, len(x), batch))


def _families(
    name: str, candidate: Candidate
) -> Iterator[tuple[Callable[..., Composite], list[dict[str, float]], dict[str, Any]]]:
    """(a function of floats that makes a composite, the floats to try, the settings that are fixed), for each choice of
    the settings that are no floats."""
    if isinstance(candidate, Composite):
        yield lambda: candidate, [{}], {}
        return
    if not (isinstance(candidate, tuple) and len(candidate) == 2 and callable(candidate[0])):
        raise TuningError(
            f"{name}: a candidate is a composite, or a pair of a function that makes one and the values to try of its "
            f"arguments, but is {candidate!r}"
        )
    make, grid = candidate
    try:
        inspect.signature(make).bind_partial(**grid)
    except TypeError as error:
        raise TuningError(f"{name}: {error}") from None
    for key, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise TuningError(f"{name}: the values of {key} to try are a list, but are {values!r}")
    swept = [key for key in grid if _is_swept(make, grid, key)]
    fixed = [key for key in grid if key not in swept]
    settings = [dict(zip(swept, v, strict=True)) for v in itertools.product(*(grid[k] for k in swept))]
    for values in itertools.product(*(grid[k] for k in fixed)):
        chosen = dict(zip(fixed, values, strict=True))
        yield lambda chosen=chosen, **floats: make(**chosen, **floats), settings, chosen


def _is_swept(make: Callable[..., Any], grid: Mapping[str, Sequence[Any]], key: str) -> bool:
    """Whether an argument is a float that may be traced, as ε and γ may, and a part of the way may not."""
    if not all(isinstance(v, float) for v in grid[key]):
        return False
    others = {k: values[0] for k, values in grid.items() if k != key}
    try:
        jax.eval_shape(lambda v: jax.tree.leaves(make(**others, **{key: v})), grid[key][0])
    except jax.errors.ConcretizationTypeError:
        return False
    return True


def _measured(f, x, scores, index, make, settings, measures, batch, together) -> list[dict[str, np.ndarray]]:
    """The measures of each setting, {name: [B]}."""
    names = list(settings[0])
    method = make(**settings[0]).method
    grid = jnp.asarray([[s[n] for n in names] for s in settings], x.dtype).reshape(len(settings), len(names))

    @jax.jit
    def explain(x, seeds, grid):
        def one(values):
            _, pull = vjp(f, make(**dict(zip(names, values, strict=True))), x)
            return jax.vmap(lambda seed: pull(seed)[0])(seeds)

        return map_batched(one, grid, min(together, len(settings)))

    found: list[dict[str, list]] = [{m: [] for m in measures} for _ in settings]
    for start in range(0, len(x), batch):
        rows = slice(start, start + batch)
        part, y = x[rows], scores[rows]
        at = None if index is None else index[rows]
        seeds = jnp.stack([output_relevance(y, target, method) for target in _targets(y, at)])
        for values, R in zip(found, explain(part, seeds, grid), strict=True):
            explained = Explained(f, part, R[0], R[1] if len(R) > 1 else None, read(y, at), at)
            for m, measure in measures.items():
                values[m].append(np.asarray(measure.of(explained)))
    return [{m: np.concatenate(parts) for m, parts in values.items()} for values in found]


def _targets(y: jax.Array, index: jax.Array | None) -> list[jax.Array | None]:
    """The target, and its strongest rival where there is a second class."""
    if index is None or y.shape[1] < 2:
        return [index]
    own = jnp.arange(y.shape[1]) == index[:, None]
    return [index, jnp.where(own, -jnp.inf, y).argmax(1)]

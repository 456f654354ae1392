"""What is asked of one model: runs without an error, leaves the forward value alone, is finite, bounded, and the same
under jit; its accounts close, and it warns of nothing that nobody expects."""

import contextlib
import dataclasses
import re
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lrpjax
from lrpjax import composites
from lrpjax.core.recognise import formulas

MODELS: dict[str, Callable[[], "Case"]] = {}
"""Name -> builder, filled by `model`."""

IMAGE = "image"
TOKENS = "tokens"
GATED = "gated"

BOUND = 100.0
"""Largest Σ|R| / |logit| that passes; where input × gradient exceeds 1 itself, so many times that."""

REST = 1e-4
"""Largest part of the relevance that the accounts of an audit may leave open: rounding, in float32."""

RESEMBLANCE = 0.95
"""Least cosine between the maps of a network and those of the one that it is like, from which rounding tells it."""

NOTED = {"CutWarning": "cut: ", "NativeWarning": "native: "}
"""Warnings of which a plan's notes name the places, and how these begin."""

WARNINGS = (lrpjax.CutWarning, lrpjax.NativeWarning, lrpjax.ConservationWarning)


@dataclasses.dataclass
class Case:
    """One model, ready to be explained.

    f: a function of one array, with an array as output whose largest entry is explained. x: the array. at: the module
    path that `f`'s tokens are embedded by, or None where x itself is explained. kind: IMAGE models are explained with
    z⁺ and γ in their convolutions, TOKENS models with AttnLRP and CP-LRP beside ε, GATED recurrences with rules that
    give nothing to gates. conserves: f has no biases, so Σ R must be the logit under every composite. note: what to
    know when reading the row. expected: parts of the warnings and of the plan's notes that are right for this model;
    any other is a failure. composites: in place of those of the kind, where a model needs what an error message
    advises. like: the same network in another writing, with maps that f's must resemble.
    """

    f: Callable[[Any], Any]
    x: Any
    at: str | None = None
    kind: str = IMAGE
    conserves: bool = False
    note: str = ""
    weights: tuple[Callable[[Any], Any], Any] | None = None
    expected: tuple[str, ...] = ()
    composites: dict[str, Any] | None = None
    like: Callable[[Any], Any] | None = None

    @property
    def presets(self) -> dict[str, Any]:
        return presets(self.kind) if self.composites is None else self.composites


@dataclasses.dataclass
class Row:
    """One line of the table; `failures` empty means a pass.

    kinds: how many units of each kind the plan has. rest: what the audits leave open, of all relevance in them.
    absorbed: by each kind of unit, what it took that is neither a bias's nor the stabiliser's, of the output's. said:
    the warnings and the notes of the plan.
    """

    name: str
    equations: int = 0
    units: int = 0
    unrecognised: Counter = dataclasses.field(default_factory=Counter)
    kinds: Counter = dataclasses.field(default_factory=Counter)
    rest: dict[str, float] = dataclasses.field(default_factory=dict)
    absorbed: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    said: Counter = dataclasses.field(default_factory=Counter)
    ratios: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    trace: float = float("nan")
    compile: float = float("nan")
    run: float = float("nan")
    failures: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def model(name: str) -> Callable:
    """Registers a builder of a Case under a name."""

    def register(build: Callable[[], Case]) -> Callable[[], Case]:
        if name in MODELS:
            raise ValueError(f"two models are called {name!r}")
        MODELS[name] = build
        return build

    return register


def shake(tree: Any, seed: int = 0, amount: float = 0.1) -> Any:
    """Weights as after some training: arrays that initialisers leave constant (biases, scales, running statistics) get noise.

    Zeros get N(0, amount²), positive constants are multiplied by exp N(0, amount²), everything else stays.
    """
    rng = np.random.default_rng(seed)

    def disturb(a: Any) -> Any:
        if (
            not (isinstance(a, (jax.Array, np.ndarray)) and jnp.issubdtype(a.dtype, jnp.floating))
            or a.size == 0
        ):
            return a
        first = float(np.asarray(a).flat[0])
        if not np.all(np.asarray(a) == first):
            return a
        noise = amount * rng.standard_normal(a.shape)
        return jnp.asarray(noise if first == 0 else first * np.exp(noise), a.dtype)

    return jax.tree.map(disturb, tree)


def calibrate(statistics: Any, update: Callable[[Any], Any]) -> Any:
    """Running statistics equal to those of the batch that `update` (one step in training mode) sees, whatever its momentum.

    From 0 a step leads to (1 − m)·b, from 1 to m + (1 − m)·b: two steps give m and the batch's b.
    """
    zeros, ones = (update(jax.tree.map(lambda a, v=v: jnp.full_like(a, v), statistics)) for v in (0, 1))
    return jax.tree.map(lambda zero, one: zero / jnp.maximum(1 - (one - zero), 1e-3), zeros, ones)


def image(*shape: int, seed: int = 0) -> jax.Array:
    """Standard normal noise, as normalised images are."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def tokens(batch: int, length: int, vocabulary: int, seed: int = 0) -> jax.Array:
    """Token numbers from 3 on (0 to 2 are padding, start and end in many vocabularies)."""
    return jnp.asarray(np.random.default_rng(seed).integers(3, vocabulary, (batch, length)), jnp.int32)


def presets(kind: str) -> dict[str, Any]:
    """The three composites for a kind of model."""
    if kind == TOKENS:
        return {
            "epsilon": composites.epsilon(),
            "attnlrp": composites.attnlrp(),
            "cp_lrp": composites.cp_lrp(),
        }
    if kind == GATED:
        return {
            "epsilon": composites.epsilon(),
            "epsilon_plus": composites.epsilon_plus(),
            "mambalrp": composites.mambalrp(),
        }
    return {
        "epsilon": composites.epsilon(),
        "epsilon_plus": composites.epsilon_plus(),
        "alpha2beta1": composites.epsilon_alpha2_beta1(),
    }


def largest(y: jax.Array) -> jax.Array:
    """A target: the relevance of the output is its entry of largest size alone."""
    flat = y.reshape(-1)
    hot = jnp.arange(flat.size) == jnp.argmax(jnp.abs(flat))
    return jnp.where(hot, flat, jnp.zeros((), y.dtype)).reshape(y.shape)


def count_equations(jaxpr: Any) -> int:
    """Equations, those of calls and loop bodies included."""
    total = 0
    for eqn in jaxpr.eqns:
        subs = [s for p in eqn.params.values() for s in (p if isinstance(p, (tuple, list)) else [p])]
        inner = [getattr(s, "jaxpr", s) for s in subs if hasattr(getattr(s, "jaxpr", s), "eqns")]
        total += sum(count_equations(j) for j in inner) if inner else 1
    return total


FAMILIAR = {*formulas.KNOWN, "celu", "leaky_relu", "prelu", "clip", "bound"}
"""Activations that a plan names; every other name of an activation means that a piece of something else was taken for one."""


def unrecognised(plan: Any) -> Counter:
    """Units that no rule of the literature is about: unknown primitives, pieces of a larger function taken for activations, quotients."""
    found: Counter = Counter()
    for unit in plan.units:
        if unit.kind == "unknown" or (unit.kind == "activation" and unit.name not in FAMILIAR):
            found[
                f"{unit.kind}:{unit.name}" if unit.kind == "activation" else f"unknown:{unit.node.name}"
            ] += 1
        elif unit.kind == "quotient":
            found["quotient"] += 1
    return found


def check(name: str, *, eager: bool = True, times: bool = True, verbose: bool = False) -> Row:
    """All checks of one model."""
    row = Row(name)
    try:
        case = MODELS[name]()
        y = jax.jit(case.f)(case.x)
    except Exception as error:  # the model's own failure, no fault of lrpjax
        row.failures.append(f"MODEL {_brief(error)}")
        return row
    row.equations = count_equations(jax.make_jaxpr(case.f)(case.x).jaxpr)
    if case.note:
        row.notes.append(case.note)
    for preset, composite in case.presets.items():
        try:
            _explain(row, case, preset, composite, y, eager and preset == "epsilon")
        except Exception as error:
            row.failures.append(f"{preset}: {_brief(error)}")
            if verbose:
                traceback.print_exc()
    try:
        _baseline(row, case, y)
        row.failures += _unexpected(row, case)
        if times:
            _times(row, case)
        bound = BOUND * max(1.0, row.ratios["gradient"][0])
        row.failures += [
            f"{p}: Σ|R| is {size:.1e} times the logit" for p, (size, _) in row.ratios.items() if size > bound
        ]
    except Exception as error:
        row.failures.append(f"times: {_brief(error)}")
    jax.clear_caches()
    return row


def _unexpected(row: Row, case: Case) -> list[str]:
    """What the model says that it was not expected to, and warnings that disagree with the notes of the plan."""
    expected = case.expected
    if (
        row.ratios.get("epsilon", (0.0,))[0] <= 2 * row.ratios["gradient"][0]
    ):  # the network's own derivatives do
        expected = (*expected, "relevance grows")
    if not case.conserves:  # biases may take all of it, and the audit has shown that they do
        expected = (*expected, "relevance is lost")
    known = {*NOTED, *(text for text in row.said for part in expected if part in text)}
    found = [f"says {text}" for text in row.said if text not in known]
    for kind, note in NOTED.items():
        if (kind in row.said) != any(text.startswith(note) for text in row.said):
            found.append(f"{kind} and the plan's notes do not agree")
    return found


def _brief(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' | '.join(lines[:3])[:300]}"


def _explain(row: Row, case: Case, preset: str, composite: Any, y: Any, eager: bool) -> None:
    plan = lrpjax.plan(case.f, composite, case.x, **({} if case.at is None else {"at": case.at}))
    row.said.update(plan.notes)
    if preset == "epsilon":
        row.units, row.unrecognised = len(plan), unrecognised(plan)
        row.kinds = Counter(unit.kind for unit in plan.units)
        if not str(plan):
            row.failures.append("plan prints nothing")
    first = preset == next(iter(case.presets))
    both = lrpjax.value_and_relevance(case.f, composite, target=largest, at=case.at)
    checked = lrpjax.relevance(case.f, composite, target=largest, at=case.at, check=True)
    with _listening(row):
        value, R = jax.jit(both)(case.x)
        if first:  # the audit shows as much of the others, and compiling takes most of the time
            jax.jit(checked)(case.x)
    _audit(row, case, preset, composite, R)
    if case.like is not None:
        hot = np.asarray(largest(value)) != 0
        same = lambda y: jnp.where(hot, y, 0)
        other = jax.jit(lrpjax.relevance(case.like, composite, target=same, at=case.at))(case.x)
        cosine = float(np.vdot(R, other) / (np.linalg.norm(R) * np.linalg.norm(other)))
        if not cosine >= RESEMBLANCE:
            row.failures.append(f"{preset}: the cosine with the maps of what it is like is {cosine:.3f}")
    if not _close(value, y, 0.03 if _coarse(case) else 1e-4):
        row.failures.append(f"{preset}: forward value changed by {_difference(value, y):.1e}")
    if not np.all(np.isfinite(R)):
        row.failures.append(
            f"{preset}: {np.size(R) - np.isfinite(R).sum()} of {np.size(R)} relevances not finite"
        )
        return
    logit = float(np.asarray(largest(y)).sum())
    total, size = float(np.sum(R, dtype=np.float64)), float(np.abs(R).sum(dtype=np.float64))
    row.ratios[preset] = size / abs(logit), total / logit
    if size == 0:
        row.failures.append(f"{preset}: no relevance at all")
    if case.conserves and abs(total / logit - 1) > 0.01:
        row.failures.append(f"{preset}: ΣR is {total / logit:.4f} of the logit, without biases")
    if eager:
        _, unjitted = both(case.x)
        if not _close(unjitted, R, 0.03 if _coarse(case) else 1e-3):
            row.failures.append(f"{preset}: jit and no jit differ by {_difference(unjitted, R):.1e}")


@contextlib.contextmanager
def _listening(row: Row) -> Any:
    """Writes down what lrpjax warns of."""
    with warnings.catch_warnings(record=True) as caught:
        for category in WARNINGS:
            warnings.simplefilter("always", category)
        yield
        jax.effects_barrier()
    for warning in caught:
        if issubclass(warning.category, WARNINGS):
            kind = warning.category.__name__
            row.said[kind if kind in NOTED else f"{kind}: {warning.message}"] += 1


def _audit(row: Row, case: Case, preset: str, composite: Any, R: Any) -> None:
    """Whether the accounts close, and give the sum of the relevance that was found without them."""
    options = {"target": largest, "at": case.at}
    audit = lrpjax.audit(case.f, composite, **options)
    audit = jax.jit(audit)(case.x)
    seed, size = (
        float(audit.size),
        max([float(audit.size), *(float(u.size_out / u.turns) for u in audit.units)]),
    )
    row.rest[preset] = abs(float(audit.rest)) / size
    taken: Counter = Counter()
    for unit in audit.units:
        taken[unit.kind] += abs(float(unit.other)) / seed
    row.absorbed[preset] = {kind: part for kind, part in taken.items() if part > 1e-3}
    tolerance = 300 * REST if _coarse(case) else REST
    if not row.rest[preset] <= tolerance:
        row.failures.append(f"{preset}: the audit leaves {row.rest[preset]:.1e} of the relevance open")
    total = float(np.sum(R, dtype=np.float64))
    if not abs(float(audit.relevance) - total) <= tolerance * max(
        size, float(np.abs(R).sum(dtype=np.float64))
    ):
        row.failures.append(f"{preset}: ΣR is {total:.4g}, in the audit {float(audit.relevance):.4g}")


def _coarse(case: Case) -> bool:
    """Whether a part of the model computes in 16 bits or fewer: compiled with something else, it is rounded elsewhere,
    and a number at the edge of two codes takes the other."""
    return re.search(r"\b(b?f16|f8\w*|[iu][48])\[", str(jax.make_jaxpr(case.f)(case.x))) is not None


def _baseline(row: Row, case: Case, y: Any) -> None:
    """Input × gradient, which every method is to be smaller than, and which lrpjax must give as `jax.grad` does."""
    hot = np.asarray(largest(y)) != 0
    explain = lrpjax.relevance(
        case.f, composites.input_x_gradient(), target=lambda y: jnp.asarray(hot, y.dtype), at=case.at
    )
    R = jax.jit(explain)(case.x)
    logit = abs(float(np.asarray(y)[hot].sum()))
    row.ratios["gradient"] = (
        float(np.abs(R).sum(dtype=np.float64)) / logit,
        float(np.sum(R, dtype=np.float64)) / logit,
    )
    if case.at is None:
        expected = jax.jit(jax.grad(lambda x: jnp.sum(jnp.where(hot, case.f(x), 0))))(case.x) * case.x
        if not _close(R, expected, 1e-3):
            row.failures.append(f"input x gradient: differs from jax.grad by {_difference(R, expected):.1e}")


def _difference(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def _close(a: Any, b: Any, tolerance: float) -> bool:
    return np.shape(a) == np.shape(b) and _difference(a, b) <= tolerance


def _times(row: Row, case: Case) -> None:
    """CPU seconds of this process to trace and to compile, and seconds to run, each divided by the gradient's."""
    explain = lrpjax.relevance(case.f, case.presets["epsilon"], target=largest, at=case.at)
    if case.at is None:
        differentiate, start = jax.grad(lambda x: jnp.sum(largest(case.f(x)))), case.x
    else:
        if case.weights is None:  # nothing to differentiate by but the tokens
            return
        g, start = case.weights
        differentiate = jax.grad(lambda w: jnp.sum(largest(g(w))))
    gradient, *baseline = _cost(differentiate, start)
    ours, *costs = _cost(explain, case.x)
    row.trace, row.compile = (cost / base for cost, base in zip(costs, baseline, strict=True))
    seconds: dict[Any, float] = {gradient: float("inf"), ours: float("inf")}
    for _ in range(5):
        for program, x in ((gradient, start), (ours, case.x)):
            began = time.perf_counter()
            jax.block_until_ready(program(x))
            seconds[program] = min(seconds[program], time.perf_counter() - began)
    row.run = seconds[ours] / seconds[gradient]


def _cost(f: Callable, x: Any) -> tuple[Any, float, float]:
    """The compiled program, CPU seconds of tracing, CPU seconds of compiling; the first trace fills caches and does not count."""
    jax.jit(f).trace(x)
    jax.clear_caches()
    start = time.process_time()
    traced = jax.jit(f).trace(x)
    between = time.process_time()
    compiled = traced.lower().compile()
    return compiled, between - start, time.process_time() - between

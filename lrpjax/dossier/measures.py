"""What is measured of an explanation: conservation, sanity, faithfulness, and whether a second run gives the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax import metrics
from lrpjax.dossier.intervals import LEAST, RESAMPLES, mean_interval
from lrpjax.dossier.subject import Subject, first_uses

ALIKE = 0.5
ALIKE_REASON = (
    "Two rank orders that correlate by 0.5 share a quarter of their variance (0.5² = 0.25). No standard sets this "
    "number; it is ours. An explanation of a network that has forgotten everything, and which is still more alike than "
    "that, shows the input more than the model."
)
DIFFERENT = 0.9
DIFFERENT_REASON = (
    "Two maps that correlate by 0.9 share four fifths of their variance (0.9² = 0.81). No standard "
    "sets this number; it "
    "is ours. Classes may share evidence, so that their maps may well be alike, but not nearly the same."
)
STEPS = 16
REGIONS = 64
ORDERS = 3
SUBSETS = 32
LAYERS = 12


def answered(values: Any, unit: str, **more: Any) -> dict[str, Any]:
    return {"applies": True, **more, "values": values, "unit": unit}


def refused(reason: str) -> dict[str, Any]:
    """The answer of a section that has none."""
    return {"applies": False, "because": reason}


def verdict(found: dict[str, Any], threshold: float, *, below: bool) -> str:
    """ "passed" where the whole interval lies on the right side of a threshold, "failed" where it lies on the other,
    and "undecided" where it holds the threshold, or where there is no interval.

    >>> verdict({"low": 0.1, "high": 0.3}, 0.5, below=True), verdict({"low": 0.4, "high": 0.6}, 0.5, below=True)
    ('passed', 'undecided')
    """
    low, high = found["low"], found["high"]
    if low is None or high is None or low <= threshold <= high:
        return "undecided"
    return "passed" if (high < threshold) == below else "failed"


def conservation(subject: Subject, y: np.ndarray, R: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
    """Σ R / f(x) of each sample, and where the rest went."""
    flat = R.reshape(len(R), -1).astype(np.float64)
    output = explained(subject, y)
    total, size = flat.sum(1), np.abs(flat).sum(1)
    samples = [
        {
            "row": int(row),
            "class": None if c is None else int(c),
            "output": float(o),
            "sum": float(t),
            "size": float(s),
        }
        for row, c, o, t, s in zip(rows, _classes(subject), output, total, size, strict=True)
    ]
    if subject.composite.method != "relevance":
        reason = (
            f"the composite's method is {subject.composite.method!r}: gradients are no shares of the output, and their "
            "sum promises nothing"
        )
        return refused(reason) | {"samples": samples}
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(output != 0, total / output, np.nan)
        cancelled = np.where(total != 0, size / np.abs(total), np.nan)
    known, ledger = share[np.isfinite(share)], subject.audit()
    if not len(known):
        return refused("all explained outputs are exactly 0: there is nothing to share") | {
            "samples": samples
        }
    low, high = np.quantile(known, [0.0, 1.0])
    edges = np.histogram_bin_edges(known, 20) if high > low else np.array([low - 0.05, low + 0.05])
    seed = float(np.sum(ledger.seed))
    part = lambda name: float(sum(np.sum(getattr(u, name)) for u in ledger.units))
    constants = [
        {"path": c.path, "name": c.name, "shape": list(c.shape), "relevance": float(np.sum(c.relevance))}
        for c in ledger.constants
        if np.any(c.relevance != 0)
    ]
    stages = [
        {"path": s.path or "-", "units": len(s.units)}
        | {
            name: float(np.sum(getattr(s, name)))
            for name in ("relevance", "bias", "epsilon", "other", "constants")
        }
        for s in ledger.stages()
    ]
    return {
        "applies": True,
        "unit": "share of the explained output (1 = all of it)",
        "n": len(known),
        "zero_outputs": int(len(share) - len(known)),
        "share": {
            "median": float(np.median(known)),
            "min": float(low),
            "max": float(high),
            "mean": mean_interval(known, 0),
            "histogram": {"edges": edges.tolist(), "counts": np.histogram(known, edges)[0].tolist()},
        },
        "cancelled": {"median": _median(cancelled), "max": _largest(cancelled)},
        "ledger": {
            "unit": "the output's own unit, summed over all samples",
            "output": seed,
            "arrived": float(np.sum(ledger.ended)),
            "bias": part("bias"),
            "epsilon": part("epsilon"),
            "other": part("other"),
            "constants": float(sum(c["relevance"] for c in constants)),
            "rest": float(np.sum(ledger.rest)),
            "taken_by_constants": constants,
        },
        "stages": stages,
        "growth": float(ledger.growth()),
        "samples": samples,
    }


def explained(subject: Subject, y: np.ndarray) -> np.ndarray:
    """The number that is explained of each sample, float64 [n]."""
    y = y.astype(np.float64)
    if subject.classes is None:
        return y.reshape(len(y), -1).sum(1)
    return y[np.arange(len(y)), subject.classes]


def _classes(subject: Subject) -> Sequence[Any]:
    return [None] * len(subject.x) if subject.classes is None else list(subject.classes)


def _median(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def _largest(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.max()) if len(known) else None


# ------------------------------------------------------------------------------------------------------------ sanity


def shuffled(params: Any, seed: int) -> Any:
    """Params whose entries are shuffled within each leaf: what was learned is gone, while each leaf keeps its values,
    and so its scale (and variances of normalisation stay positive). Leaves that are no floating-point numbers stay.

    >>> bool((shuffled(jnp.arange(9.0), 0) != jnp.arange(9.0)).any())
    True
    """
    leaves, tree = jax.tree.flatten(params)
    random = np.random.default_rng(seed)

    def one(leaf: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating) or np.size(leaf) < 2:
            return leaf
        values = np.asarray(leaf)
        return jnp.asarray(random.permutation(values.ravel()).reshape(values.shape), values.dtype)

    return jax.tree.unflatten(tree, [one(leaf) for leaf in leaves])


def layers(subject: Subject) -> list[tuple[str, list[int]]]:
    """The layers of the params, from the output to the input: a name, and the numbers of its leaves.

    Leaves that stand in one place of the tree are one layer. Where there are more than `LAYERS`,
    neighbours go together.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(subject.params)]
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    parents: dict[str, list[int]] = {}
    # Leaves side by side at the top, as in a tuple of matrices, are layers themselves.
    for i, path in enumerate(paths):
        parents.setdefault(name(path[:-1]) if len(path) > 1 else name(path) or "all", []).append(i)
    used = first_uses(subject.f, subject.params, subject.x[:1])
    ordered = sorted(parents.items(), key=lambda item: -min(used[i] for i in item[1]))
    parts = np.array_split(np.arange(len(ordered)), min(LAYERS, len(ordered)))
    merged = []
    for part in parts:
        some = [ordered[i] for i in part]
        title = some[0][0] if len(some) == 1 else f"{some[0][0]} … {some[-1][0]} ({len(some)} layers)"
        merged.append((title, [leaf for _, leaves in some for leaf in leaves]))
    return merged


def sanity(subject: Subject, y: np.ndarray, R: np.ndarray, fresh: Any, seed: int) -> dict[str, Any]:
    """Model randomisation and class dependence."""
    given = fresh is not None
    fresh = fresh if given else shuffled(subject.params, seed)
    return {
        "applies": True,
        "seed": seed,
        "randomisation": _randomisation(subject, R, fresh, given, seed),
        "classes": _class_dependence(subject, y, R, seed),
    }


def _randomisation(subject: Subject, R: np.ndarray, fresh: Any, given: bool, seed: int) -> dict[str, Any]:
    old, tree = jax.tree.flatten(subject.params)
    new = jax.tree.leaves(fresh)
    same = all(
        np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(old, new, strict=True) if _floating(a)
    )
    if not any(map(_floating, old)) or same:
        return refused(
            "params has no weights that randomising would change (f may hold its weights itself): give them as params, "
            "or newly drawn ones as fresh"
        )
    if R[0].size < 2:
        return refused("an explanation of a single number has no order that could be compared")
    steps, mixed, lost = [], list(old), R
    for name, leaves in layers(subject):
        for i in leaves:
            mixed[i] = new[i]
        _, lost = subject.explain(params=jax.tree.unflatten(tree, mixed))
        signed = np.asarray(metrics.spearman(jnp.asarray(R), jnp.asarray(lost)))
        size = np.asarray(metrics.spearman(jnp.asarray(np.abs(R)), jnp.asarray(np.abs(lost))))
        steps.append(
            {"layer": name, "signed": mean_interval(signed, seed), "absolute": mean_interval(size, seed)}
        )
    last = steps[-1]
    checks = [
        {
            "name": f"model randomisation, {kind} relevance",
            "question": "Is the explanation of the fully randomised network unlike that of the trained one?",
            "measure": "Spearman correlation of the two explanations, mean over samples",
            "found": last[key],
            "rule": f"passed if the whole interval lies below {ALIKE}",
            "threshold": ALIKE,
            "verdict": verdict(last[key], ALIKE, below=True),
            "reason": ALIKE_REASON,
        }
        for key, kind in (("signed", "signed"), ("absolute", "absolute"))
    ]
    rise = _rise(R, lost)
    found = mean_interval(rise, seed)
    checks.append(
        {
            "name": "complexity rises (efficient MPRT)",
            "question": "Does the explanation lose its order when the network has forgotten everything?",
            "measure": "rise of the entropy of the histogram of relevance, as a share of the trained one's",
            "found": found,
            "rule": "passed if the whole interval lies above 0",
            "threshold": 0.0,
            "verdict": verdict(found, 0.0, below=False),
            "reason": "0 is no change. The test sees only the values of a map and not where they stand: a map that "
            "becomes another one of the same kind fails it without being blind to the model.",
        }
    )
    how = (
        "weights that the maker of this dossier gave"
        if given
        else f"the trained weights, shuffled within each array (NumPy's default generator, seed {seed})"
    )
    likeness = metrics.spearman(jnp.asarray(np.abs(R)), jnp.asarray(np.abs(subject.x)))
    return {
        "applies": True,
        "fresh": how,
        "steps": steps,
        "checks": checks,
        "input_likeness": mean_interval(np.asarray(likeness), seed),
        "unit": "Spearman correlation, −1 to 1",
    }


def _floating(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))


def _rise(R: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """What `metrics.efficient_mprt` gives, of relevances that are there already."""
    before, after = (
        np.asarray(metrics.histogram_entropy(jnp.asarray(a), bins=100), np.float64) for a in (R, lost)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return (after - before) / before


def _class_dependence(subject: Subject, y: np.ndarray, R: np.ndarray, seed: int) -> dict[str, Any]:
    if subject.classes is None:
        return refused(
            "the outputs are explained all together (target None), so that there are no classes to tell apart"
        )
    if y.shape[1] < 2:
        return refused("there is one class only")
    own = np.arange(y.shape[1]) == subject.classes[:, None]
    rival = np.where(own, -np.inf, y).argmax(1)
    step = np.random.default_rng(seed).integers(1, y.shape[1], len(y))
    checks = []
    for name, others, measure in (
        (
            "strongest rival (class contrast)",
            rival,
            "the class with the largest output besides the explained one",
        ),
        ("random class (random logit)", (subject.classes + step) % y.shape[1], "a class drawn at random"),
    ):
        _, other = subject.explain(classes=others.astype(np.int32))
        found = mean_interval(np.asarray(metrics.pearson(jnp.asarray(R), jnp.asarray(other))), seed)
        checks.append(
            {
                "name": name,
                "question": "Does the explanation depend on the class that it is asked for?",
                "measure": f"Pearson correlation of the explanation with that of {measure}, mean over samples",
                "found": found,
                "rule": f"passed if the whole interval lies below {DIFFERENT}",
                "threshold": DIFFERENT,
                "verdict": verdict(found, DIFFERENT, below=True),
                "reason": DIFFERENT_REASON,
            }
        )
    return {"applies": True, "checks": checks, "unit": "Pearson correlation, −1 to 1"}


# ------------------------------------------------------------------------------------------------------ faithfulness


def regions_of(shape: tuple[int, ...], regions: Any = None) -> tuple[np.ndarray, str]:
    """Labels of what is replaced together, and in words. Pictures go in squares, sequences position by position, other
    inputs element by element; not more than about 64 regions, where that can be told.

    >>> regions_of((5, 16, 16, 1))[1]
    'squares of 2×2 pixels'
    """
    if regions is not None:
        if isinstance(regions, int):
            return metrics.patches(shape, regions), f"squares of {regions}×{regions} pixels"
        return np.asarray(regions), "regions that the maker of this dossier gave"
    if len(shape) == 4:
        channel = 1 if shape[1] <= 4 < shape[-1] else -1
        sides = shape[2:] if channel == 1 else shape[1:3]
        side = max(1, -(-max(sides) // 8))
        side = min(side, *sides)
        return metrics.patches(shape, side, channel_axis=channel), f"squares of {side}×{side} pixels"
    if len(shape) == 3:
        count, size = shape[1], -(-shape[1] // REGIONS)
        labels = (np.arange(count, dtype=np.int32) // size)[:, None]
        return (
            labels,
            "positions along the first axis" if size == 1 else f"{size} positions along the first axis",
        )
    count = int(np.prod(shape[1:], dtype=np.int64))
    size = max(1, -(-count // REGIONS))
    labels = (np.arange(count, dtype=np.int32) // size).reshape(shape[1:] or (1,))
    return labels, "single elements" if size == 1 else f"{size} elements that follow each other"


def faithfulness(
    subject: Subject, R: np.ndarray, baselines: dict[str, Any], regions: Any, seed: int
) -> dict[str, Any]:
    """Curves of flipping in the order of relevance against random orders, and what sets of regions lose."""
    labels, words = regions_of(subject.x.shape, regions)
    count = int(labels.max()) + 1
    if count < 3:
        return refused(f"the input has {count} regions that could be put in an order, and 3 are the least")
    f, x = subject.scores(), jnp.asarray(subject.x)
    steps = min(STEPS, count)
    keys = jax.random.split(jax.random.key(seed), ORDERS + 1)
    fills = []
    for name, given in baselines.items():
        fill = jnp.broadcast_to(jnp.asarray(given, x.dtype), x.shape)
        # One program for all orders: regions of equal relevance go at random, and so do all where it is 0 everywhere.
        curve = lambda relevance, key, fill=fill: metrics.flipping(
            f, x, jnp.asarray(relevance), target=None, regions=labels, fill=fill, steps=steps, key=key
        )
        found = {"morf": curve(R, keys[-1]), "lerf": curve(-R, keys[-1])}
        random = np.mean([np.asarray(curve(0 * R, k).scores, np.float64) for k in keys[:ORDERS]], 0)
        scores = {k: np.asarray(c.scores, np.float64) for k, c in found.items()} | {"random": random}
        with np.errstate(invalid="ignore"):  # replaced inputs may have outputs that are not finite
            gain = np.mean(
                random - scores["morf"], 1
            )  # AOPC of the explanation's order − that of a random one
            area = np.mean(scores["lerf"] - scores["morf"], 1)  # ABPC
        correlation = np.asarray(
            metrics.sensitivity_n(
                f, x, jnp.asarray(R), n=max(1, count // 4), key=keys[-1], subsets=SUBSETS, target=None,
                regions=labels, fill=fill,
            )
        )  # fmt: skip
        numbers = {
            "gain": mean_interval(gain, seed),
            "abpc": mean_interval(area, seed),
            "correlation": mean_interval(correlation, seed),
        }
        fills.append(
            {
                "fill": name,
                "counts": np.asarray(found["morf"].counts).tolist(),
                "curves": {
                    order: [mean_interval(column, seed) for column in values.T]
                    for order, values in scores.items()
                },
                **numbers,
                "verdict": verdict(numbers["gain"], 0.0, below=False),
            }
        )
    return {
        "applies": True,
        "unit": "the explained output's own unit; the correlation has none",
        "regions": {"what": words, "number": count},
        "orders": ORDERS,
        "subsets": SUBSETS,
        "subset_regions": max(1, count // 4),
        "seed": seed,
        "bootstrap": {"resamples": RESAMPLES, "level": 0.95, "least": LEAST, "seed": seed},
        "fills": fills,
    }


# --------------------------------------------------------------------------------------------------------- a second run


def repeated(subject: Subject, y: np.ndarray, R: np.ndarray) -> dict[str, Any]:
    """Whether the same program gives the same bits again, and so does one that is compiled anew."""
    runs = {
        "same program, run again": subject.explain(),
        "program compiled anew": subject.explain(executable=subject.again()),
    }
    found = []
    for name, (y2, R2) in runs.items():
        same = y.tobytes() == y2.tobytes() and R.tobytes() == R2.tobytes()
        gap = np.abs(R2.astype(np.float64) - R.astype(np.float64))
        largest = float(np.abs(R).max())
        found.append(
            {
                "what": name,
                "bit_equal": same,
                "largest_difference": float(gap.max()),
                "largest_relevance": largest,
                "samples_that_differ": int((R2 != R).reshape(len(R), -1).any(1).sum()),
            }
        )
    return {"unit": "the explained output's own unit", "runs": found}

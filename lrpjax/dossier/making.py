"""`make` examines an explanation, and gives the `Dossier` of it."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lrpjax._chosen import chosen
from lrpjax.composites import Composite
from lrpjax.data.store import Store, open_store
from lrpjax.dossier import identity, measures
from lrpjax.dossier.document import FORMAT, Dossier, plain
from lrpjax.dossier.errors import DossierError
from lrpjax.dossier.intervals import proportion_interval
from lrpjax.dossier.limits import brief, limits
from lrpjax.dossier.subject import Subject, fixed_classes
from lrpjax.explore.findings import Findings
from lrpjax.explore.findings import load as load_findings


def make(
    f: Callable[..., Any],
    params: Any,
    x: Any,
    composite: Composite | None = None,
    *,
    target: str | int | ArrayLike | None = "max",
    classes: ArrayLike | None = None,
    names: Sequence[str] | None = None,
    baseline: ArrayLike | None = None,
    regions: int | ArrayLike | None = None,
    fresh: Any = None,
    findings: Findings | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    seed: int = 0,
    samples: int = 64,
    batch: int = 32,
    model: str | None = None,
    composite_name: str | None = None,
    command: str | None = None,
) -> Dossier:
    """Examines the relevance of a model's input on some samples, and writes down what a reviewer asks for.

    What it measures, on n samples and always for the class that the trained model gives (or `target`):

    - conservation, Σ R / f(x) of each sample (Bach et al. 2015, eq. 2), and where the rest went (`lrpjax.audit`);
    - model randomisation from the output down (Adebayo et al. 2018, section 3.1), its rise in complexity (Hedström et
      al. 2023, arXiv 2401.06465), and how unlike the map of another class is (Sixt et al. 2020; `metrics.random_logit`,
      `metrics.class_contrast`), each with a threshold and its reason;
    - region flipping (Samek et al. 2017): AOPC of the order of relevance less AOPC of random orders, paired by sample;
      the area between the curves, `metrics.abpc`; and `metrics.sensitivity_n`. All with 95 % intervals by bootstrap;
    - whether the explanation gives the same bits when it is run again, and when it is compiled anew.

    With the same arguments, versions and machine `data` is the same again, but for the entry "made" (date, duration and
    command), where XLA gives the same bits; `dossier.compare` says where not.

    Args:
        f: (params, x) -> outputs [B, classes], or [B, ...] with `target=None`.
        params: pytree of arrays.
        x: floating [N, ...], or an object with `rows` that slices give rows of, such as `lrpjax.loading.Inputs`. Rows
            that are not finite are left out, and listed.
        composite: as in `lrpjax.relevance`.
        target: "max", each sample's largest output; a class, or classes [N]; None, all outputs together.
        classes: int [N], the true classes, for the accuracy.
        names: of the classes.
        baseline: what regions are replaced by; broadcasts to x. None: 0, and besides the mean of each channel (of each
            element, if x is [N, elements]).
        regions: which elements are replaced together, as in `metrics.flipping`; None: squares of pictures, positions of
            sequences, or single elements, about 64 of them.
        fresh: newly initialised params; None: the trained ones, shuffled within each array.
        findings: what `explore.spectral_analysis` found; None: STORE/findings.npz, if it is there.
        store: stored explanations of the same inputs, or their directory.
        seed: of all that is drawn.
        samples: how many of the inputs are examined, drawn without replacement.
        batch: how many samples are explained at once, at most.
        model, composite_name, command: how they are called, for the page.

    Returns:
        A `Dossier`.

    Raises:
        DossierError: no samples, or none that is finite; f fails or its outputs are several arrays; a target, true
            classes or names that do not fit; a store of another model. Else as `lrpjax.relevance`.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from lrpjax import dossier
        >>> x = np.random.default_rng(0).random((12, 6)).astype("float32")
        >>> w = np.random.default_rng(1).normal(size=(6, 3)).astype("float32")
        >>> made = dossier.make(lambda params, x: x @ params, w, x)
        >>> round(made.data["conservation"]["share"]["median"], 3), made.data["model"]["weights"]["parameters"]
        (1.0, 18)
        >>> made.data["repeat"]["runs"][0]["bit_equal"]
        True
    """
    began, warned = time.monotonic(), []
    rules = chosen(composite, "dossier.make")
    if samples < 1 or batch < 1:
        raise DossierError(f"samples and batch must be at least 1, not {samples} and {batch}")
    params = jax.tree.map(lambda a: jnp.asarray(a) if isinstance(a, (np.ndarray, np.generic)) else a, params)
    total, rows, read = _drawn(x, samples, seed)
    target = _of_rows("target", target, total, rows)
    truth = None if classes is None else _of_rows("classes", np.asarray(classes), total, rows)
    if truth is not None and (truth.dtype.kind not in "iu" or truth.ndim != 1):
        raise DossierError(
            f"classes must be int [{total}], one for each sample, not {truth.dtype}{list(truth.shape)}"
        )
    finite = np.isfinite(read.reshape(len(read), -1)).all(1)
    left = [{"row": int(row), "reason": "the input is not finite"} for row in rows[~finite]]
    rows, read, target, truth = (_only(a, finite) for a in (rows, read, target, truth))
    if not len(rows):
        raise DossierError(
            f"none of the {len(left)} samples that were drawn is finite: there is nothing to explain"
        )
    with _recorded(warned):
        subject, y, R = _explained(f, rules, params, read, target, batch)
        finite = np.isfinite(y.reshape(len(y), -1)).all(1) & np.isfinite(R.reshape(len(R), -1)).all(1)
        if not finite.all():
            left += [
                {"row": int(row), "reason": "its output or relevance is not finite"} for row in rows[~finite]
            ]
            rows, read, target, truth = (_only(a, finite) for a in (rows, read, target, truth))
            if not len(rows):
                raise DossierError(
                    "no sample has an output and a relevance that are finite; lrpjax.audit names the unit"
                )
            subject, y, R = _explained(f, rules, params, read, target, batch)
        if names is not None and (y.ndim != 2 or len(names) != y.shape[1]):
            raise DossierError(f"{len(names)} names were given, but the outputs have shape {tuple(y.shape)}")

        opened = open_store(store) if isinstance(store, (str, os.PathLike)) else store
        if findings is None and opened is not None and (opened.path / "findings.npz").exists():
            findings = load_findings(opened.path / "findings.npz")
        baselines = _baselines(read) if baseline is None else {"the baseline that was given": baseline}
        planned = identity.plan(f, rules, params, subject.x[:1])
        data: dict[str, Any] = {"format": FORMAT}
        data["model"] = {
            "name": model,
            "weights": identity.weights(params),
            "program": identity.program(f, params, subject.x),
            "explanation": identity.compiled(subject.lowered, subject.executable),
            "outputs": list(y.shape[1:]),
            "names": None if names is None else list(names),
        }
        data["data"] = _data(total, rows, read, left, y, truth, seed, batch)
        data["composite"] = identity.composite(rules, composite_name) | {
            "target": _target_text(target),
            "plan": planned,
            "warnings": [],
        }
        data["environment"] = identity.environment()
        data["explanations"] = {
            "outputs_sha256": identity.array_hash(y),
            "relevance_sha256": identity.array_hash(R),
        }
        data["conservation"] = measures.conservation(subject, y, R, rows)
        data["sanity"] = measures.sanity(subject, y, R, _checked_fresh(fresh, params), seed)
        data["faithfulness"] = measures.faithfulness(subject, R, baselines, regions, seed)
        data["clusters"] = _clusters(findings, opened)
        data["store"] = None if opened is None else _store(opened, total, rows, y)
        data["repeat"] = measures.repeated(subject, y, R)
    data["composite"]["warnings"] = warned
    data["brief"] = brief(data)
    data["limits"] = limits(data)
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    data["made"] = {
        "date": now.isoformat(),
        "seconds": round(time.monotonic() - began, 1),
        "seconds_compiling_the_explanation": round(subject.compiling, 1),
        "command": command,
    }
    return Dossier(plain(data))


@contextlib.contextmanager
def _recorded(texts: list[str]) -> Iterator[None]:
    """What lrpjax warns of goes into a list, each once; other warnings come as ever, at the end."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for w in caught:
        if w.category.__module__.startswith("lrpjax."):
            text = identity.placed(f"{w.category.__name__}: {w.message}")
            texts += [text] if text not in texts else []
        else:
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)


def _drawn(x: Any, samples: int, seed: int) -> tuple[int, np.ndarray, np.ndarray]:
    """(number of rows, those that were drawn, ascending, and what they are)."""
    total = getattr(x, "rows", None)
    if total is None:
        x = np.asarray(x)
        total = len(x) if x.ndim else 0
    if not total or (isinstance(x, np.ndarray) and x.ndim < 2):
        shape = getattr(x, "shape", ())
        raise DossierError(
            f"a dossier is made from inputs [N, ...] with N of at least 1, not from shape {tuple(shape)}"
        )
    rows = np.arange(total)
    if samples < total:
        rows = np.sort(np.random.default_rng(seed).choice(total, samples, replace=False))
    read = np.concatenate([x[int(row) : int(row) + 1] for row in rows])
    read = read.astype(jax.dtypes.canonicalize_dtype(read.dtype), copy=False)
    if not jnp.issubdtype(read.dtype, jnp.floating):
        raise DossierError(f"the inputs are {read.dtype}: only floating-point inputs have relevance")
    return total, rows, read


def _of_rows(name: str, given: Any, total: int, rows: np.ndarray) -> Any:
    if given is None or isinstance(given, str) or np.ndim(given) == 0:
        return given
    if len(np.asarray(given)) != total:
        raise DossierError(f"{name} has {len(np.asarray(given))} entries, but there are {total} samples")
    return np.asarray(given)[rows]


def _only(given: Any, mask: np.ndarray) -> Any:
    return given[mask] if isinstance(given, np.ndarray) and given.ndim else given


def _explained(
    f: Callable[..., Any], rules: Composite, params: Any, x: np.ndarray, target: Any, batch: int
) -> tuple[Subject, np.ndarray, np.ndarray]:
    size = -(-len(x) // -(-len(x) // batch))
    try:
        shape = jax.eval_shape(f, params, jax.ShapeDtypeStruct(x.shape, x.dtype))
    except Exception as error:
        raise DossierError(
            f"f(params, x) failed for x of {x.dtype}{list(x.shape)} with {type(error).__name__}: {error}"
        ) from error
    subject = Subject(f, rules, params, x, fixed_classes(shape, target, len(x)), size)
    y, R = subject.explain()
    if isinstance(target, str):
        subject.classes = fixed_classes(y, target, len(x))
        y, R = subject.explain()
    return subject, y, R


def _checked_fresh(fresh: Any, params: Any) -> Any:
    shapes = lambda tree: [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)]
    if fresh is not None and (
        jax.tree.structure(fresh) != jax.tree.structure(params) or shapes(fresh) != shapes(params)
    ):
        raise DossierError("fresh must have the structure, shapes and dtypes of params")
    return fresh


def _baselines(x: np.ndarray) -> dict[str, Any]:
    if x.ndim == 2:
        mean, words = x.mean(0, keepdims=True), "the mean of each element over the samples"
    else:
        channel = 1 if x.ndim == 4 and x.shape[1] <= 4 < x.shape[-1] else x.ndim - 1
        mean = x.mean(tuple(a for a in range(x.ndim) if a != channel), keepdims=True)
        words = "the mean of each channel over the samples"
    return {"0": 0.0, words: mean}


def _target_text(target: Any) -> Any:
    if target is None:
        return "all outputs together"
    if isinstance(target, str):
        return "the class with the largest output, of each sample"
    return f"class {int(target)}" if np.ndim(target) == 0 else "a class that was given for each sample"


def _data(
    total: int,
    rows: np.ndarray,
    x: np.ndarray,
    left: list[Any],
    y: np.ndarray,
    truth: Any,
    seed: int,
    batch: int,
) -> dict[str, Any]:
    about: dict[str, Any] = {
        "given": total,
        "examined": len(rows),
        "rows": rows.tolist(),
        "seed": seed,
        "batch": batch,
        "left_out": left,
        "shape": list(x.shape[1:]),
        "dtype": x.dtype.name,
        "range": [float(x.min()), float(x.max())],
        "mean": float(x.mean(dtype=np.float64)),
        "sha256": identity.array_hash(x),
        "accuracy": None,
        "wrong": [],
        "true_classes": None,
    }
    if truth is not None:
        if y.ndim != 2:
            raise DossierError(
                f"true classes need outputs [N, classes], but the outputs have shape {tuple(y.shape)}"
            )
        right = y.argmax(1) == truth
        about["accuracy"] = proportion_interval(int(right.sum()), len(right))
        about["wrong"] = [
            {"row": int(r), "true": int(t), "predicted": int(p)}
            for r, t, p in zip(rows[~right], truth[~right], y.argmax(1)[~right], strict=True)
        ]
        found, counts = np.unique(truth, return_counts=True)
        about["true_classes"] = {str(c): int(n) for c, n in zip(found, counts, strict=True)}
    return about


def _clusters(findings: Findings | None, store: Store | None) -> dict[str, Any]:
    if findings is None:
        where = "the store has none" if store is not None else "no store was given"
        return measures.refused(
            f"nobody has explored the explanations ({where}). lrpjax explain stores them, "
            "lrpjax.explore.spectral_analysis(store).save(STORE/findings.npz) finds clusters, and a dossier with the "
            "store then has them"
        )
    order = np.argsort(-findings.outlier, kind="stable")[:10]
    return {
        "applies": True,
        "explored": len(findings.rows),
        "groups": len(np.unique(findings.groups)),
        "unit": "unlike its class: from 0 (as the rest) to 1 (nothing in common); outlier: times what is usual (1)",
        "clusters": [
            {
                "number": c.number,
                "class": c.group,
                "size": len(c),
                "unlike": float(c.unlike),
                "prototypes": np.asarray(c.prototypes)[:8].tolist(),
                "outliers": np.asarray(c.outliers)[:8].tolist(),
            }
            for c in findings.clusters
        ],
        "outliers": [
            {
                "row": int(findings.rows[i]),
                "class": int(findings.groups[i]),
                "outlier": float(findings.outlier[i]),
            }
            for i in order
        ],
        "skipped": {reason: len(some) for reason, some in findings.skipped.items()},
        "settings": json.loads(json.dumps(dict(findings.settings), default=str)),
    }


def _store(store: Store, total: int, rows: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """What a store says of itself, and whether its outputs are those of this model."""
    about: dict[str, Any] = {
        "name": Path(store.path).name,
        "rows": store.rows,
        "complete": store.complete,
        "settings": store.settings,
        "versions": store.versions,
        "not_finite": int(store.batches[:, 1].sum()),
        "outputs_compared": None,
        "kept": None,
    }
    if "output" in store and store.rows == total and tuple(store["output"].shape[1:]) == y.shape[1:]:
        stored = np.concatenate([np.asarray(store["output"][int(r) : int(r) + 1]) for r in rows]).astype(
            np.float64
        )
        gap, largest = float(np.nanmax(np.abs(stored - y), initial=0.0)), float(np.abs(y).max())
        about["outputs_compared"] = {
            "largest_difference": gap,
            "largest_output": largest,
            "samples": len(rows),
        }
        if gap > 0.01 * largest:
            raise DossierError(
                f"the store {store.path} is of another model or other inputs: its outputs differ from those of f by up "
                f"to {gap:.3g}, where the largest output is {largest:.3g}"
            )
    elif "output" in store and store.rows == total:
        raise DossierError(
            f"the store {store.path} is of another model: its outputs have shape "
            f"{store['output'].shape[1:]}, those of f "
            f"{y.shape[1:]}"
        )
    if "explained" in store and "arrived" in store:
        came, there = (np.asarray(store[name][:]).astype(np.float64) for name in ("explained", "arrived"))
        known = np.isfinite(came) & np.isfinite(there) & (came != 0)
        if known.any():
            share = there[known] / came[known]
            about["kept"] = {
                "n": int(known.sum()),
                "median": float(np.median(share)),
                "min": float(share.min()),
                "max": float(share.max()),
            }
    return about

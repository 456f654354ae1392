"""Rezaei Jafari et al. 2025, "RelP: Faithful and Efficient Circuit Discovery via Relevance Patching": how well attribution
patching and RelP agree with activation patching at the residual stream and at the outputs of attention and of MLPs; on
two-layer decoders trained on induction and on indirect objects, over trainings.

    python tests/papers/jafari.py    # about 20 minutes on one core; needs lrpjax[demo]
"""

import functools

import common  # before jax: it says that JAX runs on the CPU
import jax
import jax.numpy as jnp
import language
import numpy as np

from lrpjax import circuits, composites

SEEDS, PAIRS = range(5), 32
PLACES = {
    "residual stream": [f"residual{i}" for i in range(language.LAYERS)],
    "attention outputs": [f"attention{i}" for i in range(language.LAYERS)],
    "MLP outputs": [f"mlp{i}" for i in range(language.LAYERS)],
}
NAMES = [name for names in PLACES.values() for name in names]
METHODS = {
    "attribution patching": composites.gradient(),
    "RelP": composites.relp(),
    "RelP, attention fixed (AH-rule)": composites.cp_lrp(0.0),
    "AttnLRP's coefficients": composites.attnlrp(0.0),
}
QUERIES = [f"{what}{i}" for what in ("query", "key") for i in range(language.LAYERS)]
PARTS = [[f"attention{i}", f"mlp{i}"] for i in range(language.LAYERS)]


@jax.jit
def effects(params, clean, corrupted, answers):
    """What patching each word's value of the clean text into the corrupted one changes the difference of the two answers'
    logits by, {name: [pairs, words]}; of queries and keys by head and word."""
    each = dict.fromkeys(NAMES, 0) | dict.fromkeys(QUERIES, (0, 1))
    patch = lambda clean, corrupted, answers: circuits.patch(
        functools.partial(language.logits, params),
        clean,
        corrupted,
        at=[*NAMES, *QUERIES],
        metric=difference(answers),
        each=each,
    )
    return jax.lax.map(lambda pair: patch(*pair), (clean, corrupted, answers))


def attributed(composite, names, **options):
    """The function that estimates the same."""

    @jax.jit
    def run(params, clean, corrupted, answers):
        one = lambda clean, corrupted, answers: circuits.attribute(
            functools.partial(language.logits, params),
            composite,
            clean,
            corrupted,
            at=names,
            metric=difference(answers),
            **options,
        )
        return jax.lax.map(lambda pair: one(*pair), (clean, corrupted, answers))

    return run


def difference(answers):
    return lambda logits: logits[-1, answers[0]] - logits[-1, answers[1]]


def correlation(found, wanted, names):
    """Pearson's, over pairs, layers and words."""
    flat = lambda of: np.concatenate([np.asarray(of[name]).reshape(-1) for name in names])
    return float(np.corrcoef(flat(found), flat(wanted))[0, 1])


def study(task, seed, methods, corrected):
    """Correlations with patching, {method: {place: number}}, and the part of unseen texts that the model continues rightly."""
    params, accuracy = language.trained(task, seed, steps=3000)
    clean, corrupted, *answers = task.pairs(np.random.default_rng(seed + 2000), PAIRS)
    runs = [jnp.asarray(a, jnp.int32) for a in (clean, corrupted, np.stack(answers, 1))]
    exact = effects(params, *runs)
    found = {}
    for name, run in methods.items():
        scores = run(params, *runs)
        found[name] = {place: correlation(scores, exact, names) for place, names in PLACES.items()}
    sizes = {name: np.abs(effect) for name, effect in exact.items()}
    rest = {}
    for name, run in corrected.items():
        scores = run(params, *runs)
        if set(scores) == set(QUERIES):
            rest[name] = {"queries and keys": correlation(scores, exact, QUERIES)}
        else:
            rest[name] = {
                place: correlation({n: np.abs(s) for n, s in scores.items()}, sizes, names)
                for place, names in PLACES.items()
            }
    return found, rest, accuracy


def main():
    methods = {name: attributed(composite, NAMES) for name, composite in METHODS.items()}
    heads = {"each": dict.fromkeys(QUERIES, (0, 1))}
    through = {name: f"weights{name[-1]}" for name in QUERIES}
    corrected = {
        "attribution patching, softmax as its derivative": attributed(
            composites.gradient(), QUERIES, **heads
        ),
        "attribution patching, softmax exact": attributed(
            composites.gradient(), QUERIES, through=through, **heads
        ),
        "RelP, softmax as its derivative": attributed(composites.relp(), QUERIES, **heads),
        "RelP, softmax exact": attributed(composites.relp(), QUERIES, through=through, **heads),
        "attribution patching, sizes": attributed(composites.gradient(), NAMES),
        "attribution patching with GradDrop, sizes": attributed(composites.gradient(), NAMES, drop=PARTS),
    }
    tables, findings, rates = {}, [], []
    for task_name, task in language.TASKS.items():
        runs = []
        for seed in SEEDS:
            runs.append(study(task, seed, methods, corrected))
            print(task_name, seed, runs[-1], flush=True)
        gather = lambda part, method, runs=runs: {
            place: [run[part][method][place] for run in runs] for place in runs[0][part][method]
        }
        rows = {method: gather(0, method) for method in methods}
        tables[f"{task_name}: correlation with activation patching"] = rows
        softmax = {name: gather(1, name) for name in corrected if "softmax" in name}
        sizes = {name: gather(1, name) for name in corrected if "sizes" in name}
        tables[f"{task_name}: AtP*'s correction for softmax, queries and keys by head and word"] = softmax
        tables[f"{task_name}: AtP*'s GradDrop, which gives sizes: correlation of |effects|"] = sizes
        others = [m for m in methods if m != "attribution patching"]
        findings.append(f"{task_name}. {common.against(rows, others, 'attribution patching')}")
        findings.append(
            f"{task_name}. {common.against(softmax, ['attribution patching, softmax exact'], 'attribution patching, softmax as its derivative')}"
        )
        findings.append(
            f"{task_name}. {common.against(sizes, ['attribution patching with GradDrop, sizes'], 'attribution patching, sizes')}"
        )
        rates.append(f"{task_name} {min(r[2] for r in runs):.1%} to {max(r[2] for r in runs):.1%}")
    common.write(
        "jafari",
        "Rezaei Jafari et al. 2025: RelP and attribution patching against activation patching",
        f"Mean ± 95 % t interval over {len(SEEDS)} trainings (seeds {list(SEEDS)}) of decoders with {language.LAYERS} layers, {language.HEADS} heads and "
        f"a width of {language.WIDTH}, LayerNorm, GELU and learned positions; unseen texts continued rightly: {'; '.join(rates)}. {PAIRS} pairs of texts; "
        "the clean values go into the corrupted run, word by word, and the metric is the difference of the two answers' logits. Pearson's correlation over "
        "pairs, layers and words. In the paper, on GPT-2 small and indirect objects, attribution patching has 0.753, 0.979 and 0.195 at the three places, "
        "and RelP 0.968, 0.962 and 0.992.",
        tables,
        findings,
    )


if __name__ == "__main__":
    main()

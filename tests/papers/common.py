"""What the scripts of this folder share: trained digits networks, intervals, tables with a finding checked on the numbers."""

import datetime
import functools
import os
import pathlib
import platform

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
from jax.tree_util import Partial

import lrpjax
from lrpjax import demo, metrics

RESULTS = pathlib.Path(__file__).parent / "results"
APPLY = demo.CNN().apply


def digits_networks(seeds, *, epochs=10, images=64):
    """For every seed: the trained CNN as a pytree (one compilation serves all), unseen images, its test accuracy."""
    data = demo.load_digits()
    x = data.test_images[:images]
    for seed in seeds:
        f = Partial(APPLY, demo.train(data, epochs, seed).args[0])
        yield f, x, float((f(data.test_images).argmax(1) == data.test_labels).mean())


def networks(module, seeds, *, epochs=10, images=64, low=0.0):
    """As `digits_networks`, of any flax module, with pixels from `low` to 1."""
    data, apply = demo.load_digits(), module.apply
    scaled = lambda pixels: 1 - (1 - low) * (1 - pixels)
    train, test = scaled(data.train_images), scaled(data.test_images)
    count = len(train) // demo.BATCH
    adam = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 3e-3, count, count * epochs + 1))

    def loss(variables, x, labels):
        return optax.softmax_cross_entropy_with_integer_labels(apply(variables, x), labels).mean()

    @jax.jit
    def step(variables, state, x, labels):
        updates, state = adam.update(jax.grad(loss)(variables, x, labels), state, variables)
        return optax.apply_updates(variables, updates), state

    for seed in seeds:
        variables = jax.jit(module.init)(jax.random.key(seed), train[:1])
        state, random = adam.init(variables), np.random.default_rng(seed)
        for _ in range(epochs):
            for chosen in random.permutation(len(train))[: count * demo.BATCH].reshape(count, -1):
                shifted = np.roll(train[chosen], random.integers(-1, 2, 2), (1, 2))
                variables, state = step(variables, state, shifted, data.train_labels[chosen])
        f = Partial(apply, variables)
        yield f, test[:images], float((f(test).argmax(1) == data.test_labels).mean())


def explainer(composite, *, magnitude=False):
    """(f, x) -> relevance of the largest logit, compiled once for all networks of one structure."""

    @jax.jit
    def explain(f, x):
        relevance = lrpjax.relevance(f, composite, target="max")(x)
        return jnp.abs(relevance) if magnitude else relevance

    return explain


def interval(values):
    """Mean over seeds, and the half-width of its 95 % interval by Student's t."""
    values = np.asarray(values, np.float64)
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean(), half


def always_above(first, second):
    """For each setting, whether the first is above the second by the mean of the paired differences and its interval."""
    held = []
    for setting in first:
        mean, half = interval(np.asarray(first[setting]) - np.asarray(second[setting]))
        held.append(bool(mean - half > 0))
    return held


def areas(f, x, maps, fills, sizes, key, *, steps, between=False):
    """The area of region flipping for each map, fill and size of patches, {name: {"fill, size px": [B]}}.

    It is that over the curve of the most relevant first (AOPC), or that between it and the curve of the least relevant
    first (ABPC). "random" is a random order. Where there is one size, the settings do not name it.
    """
    found = {name: {} for name in [*maps, "random"]}
    for fill, make in fills.items():
        for size in sizes:
            flip = functools.partial(
                metrics.flipping, f, x, regions=size, fill=make(x, key), steps=steps, key=key
            )
            for name, row in found.items():
                if name == "random":
                    # Both orders are one if it is random: nothing is expected between their curves.
                    area = np.zeros(len(x)) if between else metrics.aopc(flip(x, order="random").scores)
                else:
                    morf = flip(maps[name], order="morf").scores
                    area = (
                        metrics.abpc(morf, flip(maps[name], order="lerf").scores)
                        if between
                        else metrics.aopc(morf)
                    )
                row[f"{fill}, {size} px" if len(sizes) > 1 else fill] = np.asarray(area)
    return found


def over_trainings(found):
    """Of what `areas` finds of each training the means over the images, {name: {setting: [trainings]}}."""
    return {
        name: {setting: [float(one[name][setting].mean()) for one in found] for setting in found[0][name]}
        for name in found[0]
    }


def against(rows, methods, other):
    """A finding: where each method is above the other beyond the interval of paired differences, and where below."""
    found = [f"Against {other}:"]
    for method in methods:
        settings = list(rows[method])
        above, below = (always_above(rows[a], rows[b]) for a, b in ((method, other), (other, method)))
        found.append(f"{method}: above {_places(settings, above)}; below {_places(settings, below)}.")
    return "\n  - ".join(found)


def _places(settings, held):
    """Where something holds. Settings begin with a word; where all of several with one word hold, the word is given."""
    where = [setting for setting, yes in zip(settings, held, strict=True) if yes]
    if len(where) in (0, len(held)):
        return "everywhere" if where else "nowhere"
    family = lambda setting: setting.split()[0].rstrip(",")
    size = lambda settings, setting: sum(family(s) == family(setting) for s in settings)
    whole = lambda setting: size(where, setting) == size(settings, setting) > 1
    named = dict.fromkeys(family(s) if whole(s) else s for s in where)
    return f"in {len(where)} of {len(held)} ({'; '.join(named)})"


def write(name, title, settings, tables, findings):
    """A page of results: what was run, tables of intervals ({heading: {row: {column: values}}}), and what they say."""
    lines = [f"# {title}", "", f"{datetime.date.today()}, lrpjax {lrpjax.__version__}, jax {jax.__version__}, "
             f"Python {platform.python_version()}, CPU. {settings}", ""]  # fmt: skip
    for heading, rows in tables.items():
        columns = list(next(iter(rows.values())))
        lines += [f"## {heading}", "", f"| | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
        lines += [
            f"| {row} | {' | '.join(_cell(values[c]) for c in columns)} |" for row, values in rows.items()
        ]
        lines.append("")
    meaning = "“Above” and “below” mean: by the numbers, beyond the 95 % interval of paired differences."
    lines += ["## Findings", "", meaning, "", *(f"- {finding}" for finding in findings), ""]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines))


def _cell(values):
    """Mean ± half-width, with fewer decimals of large figures and more of small ones."""
    mean, half = interval(values)
    digits = 0 if abs(mean) >= 100 else 2 if abs(mean) >= 0.05 else 4
    return f"{mean:.{digits}f} ± {half:.{digits}f}"

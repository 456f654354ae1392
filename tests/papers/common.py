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
    """In how many of the settings the first is above the second by the mean of the paired differences and its interval."""
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


def orders(found, pairs):
    """A line for each pair of names, on where the first is above the second."""
    lines = []
    for above, below in pairs:
        held = always_above(found[above], found[below])
        where = [setting for setting, yes in zip(found[above], held, strict=True) if yes]
        place = "in all settings" if all(held) else f"in {len(where)} of {len(held)}"
        named = f": {'; '.join(where)}" if where and not all(held) else ""
        lines.append(
            f"{above} above {below}, beyond the 95 % interval of paired differences: {place}{named}."
        )
    return lines


def write(name, title, settings, tables, findings):
    """A page of results: what was run, tables of intervals ({heading: {row: {column: values}}}), and what they say."""
    cell = lambda values: "{:.2f} ± {:.2f}".format(*interval(values))
    lines = [f"# {title}", "", f"{datetime.date.today()}, lrpjax {lrpjax.__version__}, jax {jax.__version__}, "
             f"Python {platform.python_version()}, CPU. {settings}", ""]  # fmt: skip
    for heading, rows in tables.items():
        columns = list(next(iter(rows.values())))
        lines += [f"| {heading} | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
        lines += [
            f"| {row} | " + " | ".join(cell(values[c]) for c in columns) + " |"
            for row, values in rows.items()
        ]
        lines.append("")
    lines += [*(f"- {finding}" for finding in findings), ""]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines))

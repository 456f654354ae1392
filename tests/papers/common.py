"""What the scripts of this folder share: trained digits networks, intervals, tables with a finding checked on the numbers."""

import datetime
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
from lrpjax import demo

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


def write(name, title, settings, columns, rows, findings):
    """A page of results: what was run, the table of intervals, and what it says."""
    cell = lambda values: "{:.2f} ± {:.2f}".format(*interval(values))
    lines = [f"# {title}", "", f"{datetime.date.today()}, lrpjax {lrpjax.__version__}, jax {jax.__version__}, "
             f"Python {platform.python_version()}, CPU. {settings}", "",
             "| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]  # fmt: skip
    lines += [
        f"| {row} | " + " | ".join(cell(values[c]) for c in columns) + " |" for row, values in rows.items()
    ]
    lines += ["", *(f"- {finding}" for finding in findings), ""]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines))

"""Time and memory of the kernel decomposition R^(3) of `lrpjax.bow`, next to a loop over images in NumPy.

    python tests/benchmarks/bench_bow.py [--images 1000 --support 1500 --words 300 --repeat 3 --json FILE]

Memory is what XLA sets aside for temporary values (`memory_analysis`), apart from inputs and results. The
error is the largest one against the NumPy loop, relative to the largest relevance; |f(x0)| is the largest
score at a root point. The machine has random coefficients, the histograms are random and sparse.
"""

import argparse
import json
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax import bow
from lrpjax.bow.words import _word_relevance

KERNELS = {
    "intersection": bow.intersection(),
    "chi2": bow.chi2(),
    "chi2_rbf (Taylor, with root search)": bow.chi2_rbf(1.0),
}
CHUNKS = [(16, 64), (64, 64), (256, 256)]


def data(images: int, support: int, words: int):
    """Histograms that sum to 1, and coefficients of both signs that sum to 0."""
    draw = np.random.default_rng(0)
    x, vectors = (draw.dirichlet(np.full(words, 0.3), count) for count in (images, support))
    coefficients = draw.normal(size=support)
    return x, vectors, coefficients - coefficients.mean()


def numpy_loop(name: str, x, vectors, coefficients) -> np.ndarray:
    """R^(3) of a sum-decomposable kernel, one image at a time."""
    words = np.empty_like(x)
    for n, row in enumerate(x):
        if name == "intersection":
            values = np.minimum(vectors, row)
        else:
            values = 2 * vectors * row / np.maximum(vectors + row, 1e-300)
        words[n] = coefficients @ values
    return words


def seconds(run, repeat: int) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(options) -> list[dict]:
    """One row for each kernel and chunk."""
    x, vectors, coefficients = data(options.images, options.support, options.words)
    rows = []
    for name, kernel in KERNELS.items():
        expected = None
        if kernel.decomposable:
            expected = numpy_loop(name, x, vectors, coefficients)
            taken = seconds(partial(numpy_loop, name, x, vectors, coefficients), options.repeat)
            rows.append({"kernel": name, "how": "NumPy loop, float64", "run_s": taken})
        svm = bow.make_svm(kernel, vectors, coefficients, 0.0)
        points = jnp.asarray(x, svm.support.dtype)
        for chunk, support_chunk in CHUNKS:
            start = time.perf_counter()
            lowered = _word_relevance.lower(svm, (points, None, None), svm.support, chunk, support_chunk)
            compiled = lowered.compile()
            compile_s = time.perf_counter() - start
            run = partial(lambda compiled, *given: jax.block_until_ready(compiled(*given)), compiled)
            arguments = (svm, (points, None, None), svm.support)
            result = run(*arguments)
            row = {
                "kernel": name,
                "how": f"chunks {chunk} x {support_chunk}, {points.dtype}",
                "compile_s": compile_s,
                "run_s": seconds(partial(run, *arguments), options.repeat),
                "temporary_MB": compiled.memory_analysis().temp_size_in_bytes / 1e6,
            }
            if result.root_score is not None:
                row["|f(x0)|"] = float(jnp.max(jnp.abs(result.root_score)))
            if expected is not None:
                row["error"] = float(np.abs(result.words - expected).max() / np.abs(expected).max())
            rows.append(row)
    return rows


def show(value) -> str:
    """A number with three digits."""
    return value if isinstance(value, str) else "" if value is None else f"{value:.3g}"


def main() -> None:
    """Print the table, then the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("images", 1000), ("support", 1500), ("words", 300), ("repeat", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", help="file to write the JSON to, besides printing it")
    options = parser.parse_args()
    rows = measure(options)
    columns = ["kernel", "how", "compile_s", "run_s", "temporary_MB", "error", "|f(x0)|"]
    table = [columns, *([show(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    pairs = options.images * options.support * options.words
    device = jax.devices()[0]
    print(f"{options.images} images x {options.support} support vectors x {options.words} words on {device}")
    print(f"all pairs at once would take {pairs * jnp.result_type(float).itemsize / 1e6:.0f} MB")
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    report = json.dumps({"options": vars(options), "device": str(device), "rows": rows})
    print(report)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            file.write(report)


if __name__ == "__main__":
    main()

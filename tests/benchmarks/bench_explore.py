"""From images to findings, end to end: `python tests/benchmarks/bench_explore.py [--rows 1000 10000 100000] [--markdown FILE]`.

Synthetic images of 224² in ten classes, of which one in five images of class 3 has a bright mark in a corner. A small convolutional network is explained
with `epsilon_plus` into a store that keeps 8 bits of the relevance's sum over the channels; the store is explored (layout by the spectrum alone); a report
with a budget is written. Each stage runs in a process of its own, whose time and peak memory are printed. Beside them: what 8 bits lost, the size on the
disk, and how many of the marked images are in the cluster that holds most of them. Rows of one class are 10 % of all, so with 10⁵ rows groups have 10⁴.
Needs 55 kB of disk for each row in the folder for temporary files.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

SIZE, BATCH, CLASSES = 224, 32, 10
MARK, MARKED, CORNER = 3, 0.2, 48
STAGES = ("explain", "explore", "report")


def images(rows):
    """Batches of images [BATCH, 224, 224, 3] with their classes; whoever has a mark is told by `marks`."""
    import numpy as np

    rng = np.random.default_rng(0)
    texture = rng.uniform(0, 1, (BATCH, SIZE, SIZE, 3)).astype(np.float32) * 0.05
    marked = marks(rows)
    for first in range(0, rows, BATCH):
        count = min(BATCH, rows - first)
        x = np.empty((count, SIZE, SIZE, 3), np.float32)
        numbers = np.arange(first, first + count)
        for i, number in enumerate(numbers):
            # No two are alike: equal images would be each other's only neighbours.
            x[i] = np.roll(texture[i], rng.integers(0, SIZE, 2), axis=(0, 1))
            row, column = divmod(int(number % CLASSES), 5)
            y, z = 60 + 70 * row, 40 * column
            x[i, y : y + 56, z : z + 40, number % 3] += rng.uniform(0.5, 1.0)
            if marked[number]:
                x[i, -CORNER:, -CORNER:] = 1.0
        yield x, (numbers % CLASSES).astype(np.int32)


def marks(rows):
    import numpy as np

    numbers = np.arange(rows)
    chosen = np.random.default_rng(1).uniform(size=rows) < MARKED
    return chosen & (numbers % CLASSES == MARK)


def explain(folder, rows):
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax import lax

    import lrpjax
    from lrpjax import composites
    from lrpjax.store import compact, open_store

    rng = np.random.default_rng(2)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])), jnp.float32)
    params = [normal(8, 8, 3, 16), normal(3, 3, 16, 32), normal(28 * 28 // 4 * 32, CLASSES)]

    def f(params, x):
        for w, stride in zip(params[:2], (8, 2), strict=True):
            x = lax.conv_general_dilated(
                x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x)
        return x.reshape(len(x), -1) @ params[2]

    def one(params, batch):
        x, classes = batch
        y, R = lrpjax.value_and_relevance(f, composites.epsilon_plus(), argnums=1, target=classes)(params, x)
        return {"output": y, "relevance": R.sum(-1, keepdims=True)}

    run = jax.jit(compact(one, "int8"))
    for _ in lrpjax.explain_batches(run, images(rows), params=params, store=folder / "store", progress=False):
        pass
    error = np.asarray(open_store(folder / "store")["relevance.error"])
    size = sum(path.stat().st_size for path in (folder / "store").rglob("*") if path.is_file())
    return {"lost to 8 bits, median": f"{np.median(error):.2%}", "store, MB": round(size / 1e6)}


def explore(folder, rows):
    import numpy as np

    from lrpjax import explore

    found = explore.spectral_analysis(
        folder / "store", groups=np.arange(rows) % CLASSES, layout="spectral", progress=False
    )
    found.save(folder / "store" / "findings.npz")
    marked = np.flatnonzero(marks(rows))
    cluster = max(found.clusters, key=lambda c: np.isin(marked, c.rows).sum())
    hits = int(np.isin(cluster.rows, marked).sum())
    return {
        "clusters": len(found.clusters),
        "marked": len(marked),
        "found": f"{hits} of {len(cluster)} in a cluster",
        "its rank": found.clusters.index(cluster) + 1,
    }


def report(folder, rows):
    import numpy as np

    from lrpjax import explore, report

    findings = explore.load(folder / "store" / "findings.npz")
    classes = np.arange(rows) % CLASSES
    path = report.write(folder / "store", folder / "report.html", classes=classes, findings=findings)
    files = [path] if path.is_file() and path.parent == folder else list(path.parent.rglob("*.html"))
    size = sum(file.stat().st_size for file in files)
    return {"pages": len(files), "pages, MB": round(size / 1e6, 1)}


def stage(name, folder, rows):
    """Runs a stage in this process and prints what came of it as JSON."""
    start = time.perf_counter()
    found = globals()[name](folder, rows)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({f"{name}, s": round(seconds, 1), f"{name}, MB": round(peak), **found}))


def measured(rows):
    with tempfile.TemporaryDirectory() as folder:
        found = {"rows": rows}
        for name in STAGES:
            command = [sys.executable, __file__, "--stage", name, "--folder", folder, "--rows", str(rows)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr[-3000:])
            found |= json.loads(done.stdout.splitlines()[-1])
            print(rows, name, found, flush=True)
        return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--markdown", type=pathlib.Path)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        return stage(args.stage, args.folder, args.rows[0])
    results = [measured(rows) for rows in args.rows]

    import jax

    head = list(results[0])
    lines = [
        "# From images to findings",
        "",
        f"Measured {datetime.date.today()}, {platform.machine()}, {os.cpu_count()} threads, jax {jax.__version__}; "
        "seconds and peak megabytes of the process of each stage. See tests/benchmarks/bench_explore.py.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
        *("| " + " | ".join(str(found[key]) for key in head) + " |" for found in results),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.markdown:
        args.markdown.write_text(text)
    return None


if __name__ == "__main__":
    main()

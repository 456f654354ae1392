"""What keeping results on disk costs: `python tests/benchmarks/bench_store.py [--images 192] [--small 10000] [--markdown FILE]`.

Batches of 8 random images of 224², explained with `epsilon_plus` for a small convolutional network, with a store and without, in turns in one process:
read the ratios. On a CPU the network and the store share the cores; a callback that waits stands for a device that computes elsewhere. Beside it what the machine takes to write the same bytes to plain files, one for each batch, synchronised, without anything else. Then
the time to resume a run that has stored everything, with its results and without (`skip_stored`), for these batches and for many tiny ones, and
the number of files. Takes disk space for the images' results in the folder for temporary files.
"""

import argparse
import datetime
import inspect
import os
import pathlib
import platform
import statistics
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import bench
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import lrpjax
from lrpjax import composites

BATCH, SIZE = 8, 224


def network():
    """Two convolutions of stride 2, a mean over places, and ten classes."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])), jnp.float32)
    params = [normal(3, 3, 3, 16), normal(3, 3, 16, 32), normal(32, 10)]

    def f(x):
        for w in params[:2]:
            x = lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(x)
        return x.mean((1, 2)) @ params[2]

    return jax.jit(lrpjax.relevance(f, composites.epsilon_plus(), target="max"))


def images(count):
    """Batches of different images, made quickly."""
    first = np.random.default_rng(0).normal(size=(BATCH, SIZE, SIZE, 3)).astype(np.float32)
    return (np.roll(first, n, axis=1) for n in range(count // BATCH))


def tiny(count):
    return (np.full((4, 2), n, np.float32) for n in range(count))


def seconds(explain, batches, **keywords):
    """The time of a whole run, and how many batches it yielded."""
    start = time.perf_counter()
    count = sum(1 for _ in lrpjax.explain_batches(explain, batches, progress=False, **keywords))
    return time.perf_counter() - start, count


def plain(folder, count):
    """The time to write as many bytes as these images have, a file for each batch, and to wait until they are on the disk."""
    content = np.random.default_rng(0).bytes(4 * BATCH * SIZE * SIZE * 3)
    start = time.perf_counter()
    for number in range(count // BATCH):
        with open(folder / str(number), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    return time.perf_counter() - start


def files(folder):
    return sum(path.is_file() for path in pathlib.Path(folder).rglob("*"))


def row(cells):
    return f"| {' | '.join(map(str, cells))} |"


def elsewhere(milliseconds):
    """An explanation by a device of its own, as far as this process is concerned: it waits, and computes nothing."""

    def wait(x):
        time.sleep(milliseconds / 1000)
        return np.asarray(x)

    return jax.jit(lambda x: jax.pure_callback(wait, jax.ShapeDtypeStruct(x.shape, x.dtype), x))


def writing(count, repeats):
    yield row(["explained by", "what", "milliseconds for each batch", "of the time without a store", "files"])
    yield row(["---", "---", "---:", "---:", "---:"])
    batches = count // BATCH
    for explain, where in ((network(), "the network, on these cores"), (elsewhere(40), "waiting 40 ms")):
        seconds(explain, images(2 * BATCH))
        times = {"without a store": [], "with a store": [], "plain files alone": []}
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                times["without a store"].append(seconds(explain, images(count))[0])
                times["with a store"].append(seconds(explain, images(count), store=f"{folder}/store")[0])
                (pathlib.Path(folder) / "plain").mkdir()
                times["plain files alone"].append(plain(pathlib.Path(folder) / "plain", count))
                there = {
                    "without a store": 0,
                    "with a store": files(f"{folder}/store"),
                    "plain files alone": batches,
                }
        for what, found in times.items():
            ratios = [one / other for one, other in zip(found, times["without a store"], strict=True)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            yield row([where, what, f"{1000 * statistics.median(found) / batches:.1f}", spread, there[what]])


def resuming(count, small):
    yield row(["batches", "what", "seconds", "milliseconds for each batch", "files"])
    yield row(["---:", "---", "---:", "---:", "---:"])
    skipping = "skip_stored" in inspect.signature(lrpjax.explain_batches).parameters
    for explain, make, size, name in (
        (jax.jit(lambda x: 2 * x), tiny, small, "of 4 × 2 numbers"),
        (network(), images, count, f"of {BATCH} × {SIZE}² × 3 numbers"),
    ):
        with tempfile.TemporaryDirectory() as folder:
            first, batches = seconds(explain, make(size), store=f"{folder}/store")
            found = [("the first run", first)]
            found.append(
                ("resumed, results yielded", seconds(explain, make(size), store=f"{folder}/store")[0])
            )
            if skipping:
                resumed = seconds(explain, make(size), store=f"{folder}/store", skip_stored=True)
                assert resumed[1] == 0
                found.append(("resumed, `skip_stored`", resumed[0]))
            for what, took in found:
                times = [f"{took:.2f}", f"{1000 * took / batches:.2f}"]
                yield row([f"{batches} {name}", what, *times, files(f"{folder}/store")])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--markdown", type=pathlib.Path)
    args = parser.parse_args()
    lines = [
        "What keeping results on disk costs, as `tests/benchmarks/bench_store.py` says it: "
        f"{datetime.date.today()}, {len(os.sched_getaffinity(0))} cores of a shared",
        f"{bench.processor()}, wall-clock time, jax {jax.__version__}, Python {platform.python_version()}. Times hold for this "
        "machine at this time; read the ratios.",
        "",
        f"## Explaining {args.images} images of {SIZE}², {BATCH} at a time",
        "",
        *writing(args.images, args.repeats),
        "",
        f'The median of {args.repeats} runs in turns, and the smallest and the largest ratio. "Plain files alone" explains nothing.',
        "",
        "## Resuming a run that has stored everything",
        "",
        *resuming(args.images, args.small),
    ]
    print("\n".join(lines))
    if args.markdown:
        args.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

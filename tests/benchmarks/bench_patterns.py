"""What fitting patterns costs: `python tests/benchmarks/bench_patterns.py [vgg16 resnet50] [--size 112] [--batch 16] [--repeats 3]`.

First, for a batch, next to a forward pass of it: flops as XLA counts them in the program as written and as compiled (where fusion repeats
element-wise work), temporary memory, and run time (the smallest of several, taken in turns). Then the peak memory of whole processes that fit
patterns to streams of different lengths.
"""

import argparse
import platform
import resource
import subprocess
import sys
import time

import jax
import networks
import numpy as np

from lrpjax import patterns

STREAMS = (16, 64, 256)


def measure(name, size, batch, kind, repeats):
    f, x = networks.make(name, size, batch)
    fitter = patterns._Fitter(f, x)
    layers = fitter.start(x, (kind,)).layers
    sums = [(layer.count, layer.y, layer.x, layer.xy) for layer in layers]
    args = fitter.network.consts, [layer.reference for layer in layers], sums, [x], batch
    written = fitter.step.lower(*args), jax.jit(f).lower(x)
    compiled = [program.compile() for program in written]
    ratio = lambda programs: programs[0].cost_analysis()["flops"] / programs[1].cost_analysis()["flops"]
    best = [float("inf")] * 2
    for _ in range(repeats):
        for i, run in enumerate((lambda: compiled[0](*args), lambda: compiled[1](x))):
            start = time.perf_counter()
            jax.block_until_ready(run())
            best[i] = min(best[i], time.perf_counter() - start)
    memory = compiled[0].memory_analysis().temp_size_in_bytes / x.nbytes
    kept = sum(a.nbytes for a in jax.tree.leaves(layers)) / sum(
        np.asarray(a).nbytes for a in fitter.network.consts
    )
    print(
        f"{name:9s} {kind:14s} {ratio(written):8.3f} {ratio(compiled):9.3f} {memory:7.1f} {kept:8.2f} {best[0] / best[1]:6.2f}",
        flush=True,
    )


def stream(count):
    """Fits a small VGG to `count` batches that are made one by one, and prints the peak memory of this process in MiB."""
    model = networks.VGG(widths=(32, 32, 0, 64, 64, 0), hidden=64, classes=10)
    example = jax.random.normal(jax.random.key(0), (64, 32, 32, 3))
    variables = model.init(jax.random.key(1), example[:1])
    rng = np.random.default_rng(0)
    batches = (rng.normal(size=example.shape).astype(np.float32) for _ in range(count))
    moments = patterns.collect(lambda x: model.apply(variables, x), batches)
    print(f"{moments.samples:7d} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:9.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["vgg16", "resnet50"])
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stream", type=int, help="only fit to a stream of this many batches")
    args = parser.parse_args()
    if args.stream:
        stream(args.stream)
        return
    device = jax.devices()[0].device_kind
    print(
        f"jax {jax.__version__}, {device}, {platform.machine()}, {args.size}×{args.size}, batch {args.batch}"
    )
    print(
        "flops and clock: ratios to a forward pass; memory: temporary, ratio to the batch; kept: moments, ratio to the parameters"
    )
    print(
        f"{'network':9s} {'kind':14s} {'flops':>8s} {'compiled':>9s} {'memory':>7s} {'kept':>8s} {'clock':>6s}"
    )
    for name in args.networks:
        for kind in ("relu", "linear"):
            measure(name, args.size, args.batch, kind, args.repeats)
    print("examples  peak MiB")
    for count in STREAMS:
        subprocess.run([sys.executable, __file__, "--stream", str(count)], check=True)


if __name__ == "__main__":
    main()

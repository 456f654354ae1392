"""What fitting patterns costs: `python tests/benchmarks/bench_patterns.py [vgg16 resnet50] [--size 112] [--batch 32] [--clock]`.

First, for a batch, next to a forward pass of it with the parameters for arguments (XLA drops biases that are constants of zero, as those of a
fresh model are): flops as XLA counts them in the program as written, and with `--clock` also as compiled (where fusion repeats element-wise
work), temporary memory, and run time (the smallest of several, taken in turns). Then the peak memory of whole processes that fit patterns to
streams of different lengths.
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

STREAMS, REPEATS = (16, 64, 256), 3


def measure(name, size, batch, kind, clock):
    f, x = networks.make(name, size, batch)
    fitter = patterns._Fitter(f, x)
    layers = fitter.start(x, (kind,)).layers
    sums = [(layer.count, layer.y, layer.x, layer.xy) for layer in layers]
    args = fitter.network.consts, [layer.reference for layer in layers], sums, [x], batch
    jaxpr = jax.make_jaxpr(f)(x)
    forward = jax.jit(lambda consts, x: jax.core.eval_jaxpr(jaxpr.jaxpr, consts, x))
    written = fitter.step.lower(*args), forward.lower(jaxpr.consts, x)
    ratio = lambda programs: programs[0].cost_analysis()["flops"] / programs[1].cost_analysis()["flops"]
    kept = sum(a.nbytes for a in jax.tree.leaves(layers)) / sum(
        np.asarray(a).nbytes for a in fitter.network.consts
    )
    row = f"{name:9s} {kind:7s} {ratio(written):8.4f} {kept:8.2f}"
    if clock:
        compiled = [program.compile() for program in written]
        best = [float("inf")] * 2
        for _ in range(REPEATS):
            for i, run in enumerate((lambda: compiled[0](*args), lambda: compiled[1](jaxpr.consts, x))):
                start = time.perf_counter()
                jax.block_until_ready(run())
                best[i] = min(best[i], time.perf_counter() - start)
        memory = compiled[0].memory_analysis().temp_size_in_bytes / x.nbytes
        row += f" {ratio(compiled):9.4f} {memory:7.1f} {best[0] / best[1]:6.2f}"
    print(row, flush=True)


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
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--clock", action="store_true", help="compile and run, too")
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
        "flops and clock: ratios to a forward pass; kept: moments, ratio to the parameters; memory: temporary, ratio to the batch"
    )
    columns = f"{'compiled':>9s} {'memory':>7s} {'clock':>6s}" if args.clock else ""
    print(f"{'network':9s} {'kind':7s} {'flops':>8s} {'kept':>8s} {columns}")
    for name in args.networks:
        for kind in ("relu", "linear"):
            measure(name, args.size, args.batch, kind, args.clock)
    print("examples  peak MiB")
    for count in STREAMS:
        subprocess.run([sys.executable, __file__, "--stream", str(count)], check=True)


if __name__ == "__main__":
    main()

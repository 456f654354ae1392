"""What relevance costs against the gradient: `python tests/benchmarks/bench_core.py [vgg16 resnet50 vit] [--size 112] [--batch 4] [--json FILE]`.

For every composite, next to `jax.grad` of the largest logit with respect to the input, in one process: flops and temporary memory as XLA counts
them, CPU time of tracing and compiling, and run time (the smallest of several runs, taken in turns), all as ratios to the gradient.
"""

import argparse
import json
import platform
import time

import jax
import networks

import lrpjax
from lrpjax import composites

COMPOSITES = {
    "epsilon": composites.epsilon(),
    "epsilon_plus": composites.epsilon_plus(),
    "epsilon_plus_flat": composites.epsilon_plus_flat(),
    "epsilon_alpha2_beta1": composites.epsilon_alpha2_beta1(),
    "epsilon_gamma_box": composites.epsilon_gamma_box(-3.0, 3.0),
    "deep_taylor": composites.deep_taylor(),
    "attnlrp": composites.attnlrp(),
    "cp_lrp": composites.cp_lrp(),
}
FOR = {"vit": ("epsilon", "attnlrp", "cp_lrp")}


def compiled(f, x):
    start = time.process_time()
    program = jax.jit(f).lower(x).compile()
    seconds = time.process_time() - start
    return program, program.cost_analysis()["flops"], program.memory_analysis().temp_size_in_bytes, seconds


def in_turns(programs, x, repeats):
    """The smallest run time of each program, all of them run one after the other `repeats` times."""
    best = [float("inf")] * len(programs)
    for _ in range(repeats):
        for i, program in enumerate(programs):
            start = time.perf_counter()
            jax.block_until_ready(program(x))
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def measure(name, size, batch, repeats):
    f, x = networks.make(name, size, batch)
    gradient = compiled(jax.grad(lambda x: f(x).max(-1).sum()), x)
    chosen = FOR.get(name, [n for n in COMPOSITES if n not in ("attnlrp", "cp_lrp")])
    others = [compiled(lrpjax.relevance(f, COMPOSITES[n], target="max"), x) for n in chosen]
    times = in_turns([gradient[0], *(o[0] for o in others)], x, repeats)
    rows = []
    for n, other, seconds in zip(chosen, others, times[1:], strict=True):
        flops, memory, compiling = (other[i] / gradient[i] for i in (1, 2, 3))
        rows.append(
            {
                "network": name,
                "composite": n,
                "flops": flops,
                "memory": memory,
                "compile": compiling,
                "clock": seconds / times[0],
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(networks.NETWORKS))
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="write the figures to this file as well")
    args = parser.parse_args()
    device = jax.devices()[0]
    print(
        f"jax {jax.__version__}, {device.device_kind}, {platform.machine()}, {args.size}×{args.size}, batch {args.batch}; ratios to jax.grad"
    )
    print(
        f"{'network':9s} {'composite':22s} {'flops':>6s} {'memory':>7s} {'trace+compile':>14s} {'clock':>6s}"
    )
    rows = []
    for name in args.networks:
        for row in measure(name, args.size, args.batch, args.repeats):
            print(
                "{network:9s} {composite:22s} {flops:6.2f} {memory:7.2f} {compile:14.2f} {clock:6.2f}".format(
                    **row
                ),
                flush=True,
            )
            rows.append(row)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(
                {
                    "jax": jax.__version__,
                    "device": device.device_kind,
                    "size": args.size,
                    "batch": args.batch,
                    "rows": rows,
                },
                file,
                indent=1,
            )


if __name__ == "__main__":
    main()

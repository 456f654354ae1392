"""What relevance costs: `python tests/benchmarks/bench.py [--networks vgg16 …] [--batches 1 8 32] [--peers] [--quick] [--json FILE] [--markdown FILE]`.

For every composite, next to `jax.grad` of the same logits with respect to the input, in one process: `dots`, the flops of matrix products and
convolutions (counting.py); all flops and temporary memory as XLA counts them in the compiled program; CPU time of tracing with lowering and of compiling,
and run time (the smallest of several, taken in turns), all as ratios to the gradient. `clock/flops` is the run time against what the flops predict. Then how these ratios grow with batch and depth; and with `--peers`, the
same networks in torch under zennit and captum (which have to be installed). Weights are arguments of the compiled functions; with `--closed` they
are constants in them, which takes XLA several times longer to compile.
"""

import argparse
import datetime
import functools
import gc
import importlib.metadata
import json
import os
import pathlib
import platform
import time

import counting
import jax
import jax.numpy as jnp
import networks
import numpy as np

import lrpjax
from lrpjax import composites, rules, select

BOUNDS = -networks.BOUND, networks.BOUND
COMPOSITES = {
    "epsilon": composites.epsilon(),
    "epsilon_plus": composites.epsilon_plus(),
    "epsilon_plus_flat": composites.epsilon_plus_flat(),
    "epsilon_alpha2_beta1": composites.epsilon_alpha2_beta1(),
    "epsilon_alpha2_beta1_flat": composites.epsilon_alpha2_beta1_flat(),
    "epsilon_gamma_box": composites.epsilon_gamma_box(*BOUNDS),
    "excitation_backprop": composites.excitation_backprop(),
    "deep_taylor": composites.deep_taylor(*BOUNDS),
    "attnlrp": composites.attnlrp(),
    "cp_lrp": composites.cp_lrp(),
    "gradient": composites.gradient(),
    "input_x_gradient": composites.input_x_gradient(),
    "deconvnet": composites.deconvnet(),
    "guided_backprop": composites.guided_backprop(),
    "relp": composites.relp(),
    "mambalrp": composites.mambalrp(),
}
EVERYWHERE = {
    "all epsilon": rules.Epsilon(1e-6),
    "all zplus": rules.ZPlus(),
    "all gamma": rules.Gamma(0.25),
    "all alpha2_beta1": rules.AlphaBeta(2.0, 1.0),
}
"""One rule for all layers with weights."""
COMPOSITES |= {
    name: lrpjax.Composite([(select.kind("conv", "dense"), rule)]) for name, rule in EVERYWHERE.items()
}
FAMILY = ("gradient", "input_x_gradient")
ATTENTION = ("attnlrp", "cp_lrp", "relp", "mambalrp")
TRANSFORMER = ("epsilon", *ATTENTION[:3], "excitation_backprop", "deep_taylor", *FAMILY, *EVERYWHERE)
RECURRENT = ("epsilon", "attnlrp", "mambalrp", *FAMILY, *EVERYWHERE)
CONVOLUTIONAL = tuple(name for name in COMPOSITES if name not in ATTENTION)
FEW = (
    "epsilon",
    "epsilon_plus_flat",
    "epsilon_alpha2_beta1",
    "epsilon_gamma_box",
    "attnlrp",
    "cp_lrp",
    "mambalrp",
    *EVERYWHERE,
)
"""Where not every composite is measured, these are."""


def fitting(model):
    """The composites that are for a network."""
    if isinstance(model, networks.networks_sequences.LSTM | networks.networks_sequences.Mamba):
        return RECURRENT
    return TRANSFORMER if isinstance(model, (networks.ViT, *networks.SEQUENCES)) else CONVOLUTIONAL


KINDS = ("dots", "flops", "memory", "trace", "compile")


def lowered(make, model, variables, x, closed=False):
    """(what the program is given, traced, lowered, CPU time of both) of what `make` makes of a network, from empty caches, as in a fresh process."""
    jax.clear_caches()
    start = time.process_time()
    given = (x,) if closed else (variables, x)
    constants = (variables,) if closed else ()
    f = lambda *given: make(functools.partial(model.apply, (*constants, *given)[0]))(given[-1])
    traced = jax.jit(f).trace(*given)
    made = traced.lower()
    return given, traced, made, time.process_time() - start


class Program:
    """What `make` makes of a network, compiled, and what XLA and the clock say of it."""

    def __init__(self, make, model, variables, x, closed=False):
        given, traced, made, self.trace = lowered(make, model, variables, x, closed)
        start = time.process_time()
        self.run = functools.partial(made.compile(), *given)
        self.compile = time.process_time() - start
        self.flops = self.run.func.cost_analysis()["flops"]
        self.memory = self.run.func.memory_analysis().temp_size_in_bytes
        self.dots = counting.products(traced.jaxpr).flops


def alone():
    """Whether all runs on a single thread of the CPU."""
    return jax.default_backend() == "cpu" and len(os.sched_getaffinity(0)) == 1


def in_turns(runs, repeats):
    """The smallest run time of each function in seconds, after one run to warm up: all of them one after the other, `repeats` times.

    On a single thread it is CPU time, which other work on the machine disturbs little; else wall-clock time.
    """
    clock = time.process_time if alone() else time.perf_counter
    best = [float("inf")] * len(runs)
    for turn in range(repeats + 1):
        for i, run in enumerate(runs):
            start = clock()
            jax.block_until_ready(run())
            if turn:
                best[i] = min(best[i], clock() - start)
    return best


def classes_of(model, variables, x):
    """The likeliest class of each example."""
    return np.asarray(jnp.argmax(jax.jit(model.apply)(variables, x), -1))


def gradient_of(classes):
    """f to the gradient of its logits of the given classes."""
    return lambda f: jax.grad(lambda x: jnp.take_along_axis(f(x), classes[:, None], 1).sum())


def relevance_of(composite, classes):
    """f to the relevance of its logits of the given classes."""
    return lambda f: lrpjax.relevance(f, composite, target=classes)


def far(a, b):
    """‖a − b‖ / ‖b‖."""
    a, b = (np.asarray(v, np.float64) for v in (a, b))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def ratios(program, gradient):
    return {kind: getattr(program, kind) / getattr(gradient, kind) for kind in KINDS}


def cost(name, size, batch, dtype, chosen, repeats, closed):
    """One row for each composite; without `repeats` nothing is run. In bfloat16 also how far the results are from those of float32."""
    model = networks.NETWORKS[name]
    cast = lambda tree: jax.tree.map(lambda a: a.astype(dtype), tree)
    given = model, cast(networks.weights(model, size)), cast(networks.inputs(model, size, batch))
    precise = model, *jax.tree.map(lambda a: a.astype(jnp.float32), given[1:])
    classes = classes_of(*precise)
    jax.block_until_ready((given[1:], precise[1:]))
    compared = repeats and dtype != "float32"
    error = lambda program, make: far(program.run(), Program(make, *precise).run())
    gradient = Program(gradient_of(classes), *given, closed)
    gradient_error = error(gradient, gradient_of(classes)) if compared else None
    for composite in [n for n in chosen if n in fitting(model)]:
        make = relevance_of(COMPOSITES[composite], classes)
        program = Program(make, *given, closed)
        row = {"network": name, "dtype": dtype, "batch": batch, "composite": composite}
        row |= ratios(program, gradient)
        if repeats:
            seconds = in_turns([program.run, gradient.run], repeats)
            row["clock"] = seconds[0] / seconds[1]
            row["clock/flops"] = row["clock"] / row["flops"]
            row["finite"] = bool(jnp.isfinite(program.run()).all())
            row["gradient_seconds"] = seconds[1]
            if compared:
                row["error"], row["gradient_error"] = error(program, make), gradient_error
        yield row | {f"gradient_{kind}": getattr(gradient, kind) for kind in KINDS}


def growth(quick):
    """The ratios for a transformer of 192 channels on 64×64 images under AttnLRP, as the batch grows and as the depth does."""
    cases = [(b, 4) for b in (1, 2, 4, 8)] + [(2, d) for d in (2, 8, 12)]
    for batch, depth in [(1, 1), (2, 1), (2, 2)] if quick else cases:
        model = networks.ViT(192, depth, 3, classes=10)
        variables, x = networks.weights(model, 64), networks.inputs(model, 64, batch)
        classes = classes_of(model, variables, x)
        gradient = Program(gradient_of(classes), model, variables, x)
        program = Program(relevance_of(COMPOSITES["attnlrp"], classes), model, variables, x)
        row = {"batch": batch, "depth": depth, "composite": "attnlrp"} | ratios(program, gradient)
        yield row | {f"own_{kind}": getattr(program, kind) for kind in KINDS}


def text(value):
    if isinstance(value, float):
        return f"{value:.2f}" if 0.01 <= abs(value) < 1000 else f"{value:.1e}"
    return "" if value is None else str(value)


def table(columns, rows):
    """Rows, dicts, as a table in Markdown."""
    cells = [columns, ["---"] * len(columns), *([text(row.get(c)) for c in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def settings(*packages):
    """What figures depend on: the day, the machine, the number of threads, the versions."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", *packages))
    threads = len(os.sched_getaffinity(0))
    clock = "CPU time" if alone() else "wall-clock time"
    device = jax.devices()[0]
    name = device.device_kind if device.platform != "cpu" else processor()
    return f"{datetime.date.today()}, a shared {name}, {threads} threads, {clock}, {versions}"


def processor():
    """The model of the processor, as far as the system tells."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())


def parsed(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--networks",
        nargs="*",
        default=[name for name in networks.NETWORKS if not name.startswith("tiny")],
        choices=list(networks.NETWORKS),
    )
    parser.add_argument(
        "--composites",
        nargs="+",
        choices=list(COMPOSITES),
        help="for all rows; by default every one for the first batch size in float32, and a few for the others",
    )
    parser.add_argument("--size", type=int, default=224, help="height and width of images")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument(
        "--largest", type=int, default=8, help="the largest batch that is run, not only compiled"
    )
    parser.add_argument(
        "--dtypes", nargs="*", default=["float32", "bfloat16"], choices=["float32", "bfloat16"]
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--closed", action="store_true", help="weights as constants, not as arguments")
    parser.add_argument("--no-growth", action="store_true", help="leave out the growth with batch and depth")
    parser.add_argument("--peers", action="store_true", help="compare with zennit and captum")
    parser.add_argument("--quick", action="store_true", help="small images, one batch size, two repeats")
    parser.add_argument("--threads", type=int, help="CPU threads to use, of JAX and of torch; all by default")
    parser.add_argument(
        "--markdown", type=pathlib.Path, help="write the tables as a page, over what is there"
    )
    parser.add_argument(
        "--json", type=pathlib.Path, help="write all figures to this file as well, or add them"
    )
    args = parser.parse_args(arguments)
    if args.quick:
        args.size, args.batches, args.repeats = min(args.size, 32), [2], 2
    return args


EXPLAINED = (
    "Random weights. `dots`: the flops of matrix products and convolutions alone; `flops` and `memory` (temporary): all of them, as XLA counts them;\n"
    "`trace` is with lowering and from empty caches. Seconds hold for this machine at this time; read the ratios."
)
COST = ("network", "dtype", "batch", "composite", *KINDS, "clock", "clock/flops", "error", "gradient_error")


def added(report, path):
    """The report with the rows of the file, which has to be of the same machine and settings."""
    if path is None or not path.exists():
        return report
    old = json.loads(path.read_text())
    for key in ("device", "size", "weights", "threads"):
        if old[key] != report[key]:
            raise SystemExit(f"{path} is of another {key}, {old[key]}: no figures can be added to it")
    rows = {key: old[key] for key in ("cost", "growth", "peers")}
    return report | rows | {"versions": old["versions"] | report["versions"]}


def main(arguments=None):
    args = parsed(arguments)
    if args.threads:  # before JAX starts its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    device = jax.devices()[0]
    report = {
        "date": datetime.date.today().isoformat(),
        "device": device.device_kind if device.platform != "cpu" else processor(),
        "platform": device.platform,
        "size": args.size,
        "tokens": networks.TOKENS,
        "weights": "constants" if args.closed else "arguments",
        "threads": len(os.sched_getaffinity(0)),
        "clock": "CPU time" if alone() else "wall-clock time",
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
    }
    if args.peers:
        import peers

        report["versions"] |= peers.versions()
    print(", ".join(f"{k} {v}" for k, v in report.items()))

    def costs():
        if args.dtypes and not args.quick:  # what is loaded once only, is loaded now
            next(cost("tiny_vgg", 32, 1, "float32", FEW, 0, False))
        for name in args.networks:
            for dtype in args.dtypes:
                for batch in args.batches:
                    first = dtype == "float32" and batch == args.batches[0]
                    repeats = args.repeats if batch <= args.largest else 0
                    chosen = args.composites or (COMPOSITES if first and not args.quick else FEW)
                    yield from cost(name, args.size, batch, dtype, chosen, repeats, args.closed)

    report = added(report | {"cost": [], "growth": [], "peers": []}, args.json)

    page = {}

    def section(kind, title, columns, rows):
        """Prints the rows as they come; each is in the files before the next is measured."""
        print(f"\n{title}")
        print(" ".join(c.replace("_", " ").rjust(max(9, len(c))) for c in columns), flush=True)
        for row in rows:
            print(" ".join(text(row.get(c)).rjust(max(9, len(c))) for c in columns), flush=True)
            report[kind].append(row)
            if args.json:
                args.json.write_text(json.dumps(report, indent=1) + "\n")
            if args.markdown:
                page[kind] = f"## {title.capitalize()}\n\n{table(columns, report[kind])}\n"
                head = f"What relevance costs, as `tests/benchmarks/bench.py` says it: {settings()}."
                args.markdown.write_text("\n".join([f"{head}\n{EXPLAINED}\n", *page.values()]))
            gc.collect()

    section("cost", "ratios to jax.grad", COST, costs())
    if not args.no_growth:
        columns = ("batch", "depth", *KINDS)
        section("growth", "growth: ratios to jax.grad", columns, growth(args.quick))
    if args.peers:
        rows = peers.compare(args.networks, args.size, args.batches, args.largest, args.repeats)
        section("peers", "peers, in turns in one process", peers.COLUMNS, rows)


if __name__ == "__main__":
    main()

"""How the cost of relevance grows, as ratios to the gradient's: `python tests/benchmarks/bench_growth.py [trace batch seeds …] [--quick] [--markdown FILE]`.

With batch, depth, sequence and image size; with the number of seeds, of taps, of conditions (CRP) and of SmoothGrad's samples; `audit`; what is stored;
and tracing with lowering of 12, 32 and 96 unrolled blocks, with and without `jax.checkpoint`. A ratio that stays the same as the first columns grow is
what is wanted. Parts that say so are compared with more than one gradient: as many seeds, conditions or samples.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import argparse
import pathlib
import tempfile
import time
import types

import bench
import bench_7b
import jax
import jax.numpy as jnp
import networks
import networks_sequences
import numpy as np
from jax import lax

import lrpjax
from lrpjax import composites, concepts, gradients

VGG = networks.VGG((16, 16, 0, 32, 32, 0, 64, 64, 0), 128, 16)
ATTNLRP, PLUS = composites.attnlrp(), composites.epsilon_plus()
COLUMNS = (*bench.KINDS, "clock")


def llama(depth=4):
    return networks_sequences.Llama(128, depth, 4, 2, 256, 512)


def given(model, size, batch, tokens=64):
    """(model, variables, x, classes)."""
    before, networks.TOKENS = networks.TOKENS, tokens
    try:
        variables, x = networks.weights.__wrapped__(model, size), networks.inputs(model, size, batch)
    finally:
        networks.TOKENS = before
    return model, variables, x, bench.classes_of(model, variables, x)


def ratio(ours, theirs, case, repeats):
    """The cost of one function of a network over that of another."""
    one, other = bench.Program(ours, *case[:3]), bench.Program(theirs, *case[:3])
    a, b = bench.in_turns([one.run, other.run], repeats)
    return bench.ratios(one, other) | {"clock": a / b, "seconds": a}


def over_gradient(composite, case, repeats):
    return ratio(bench.relevance_of(composite, case[3]), bench.gradient_of(case[3]), case, repeats)


def seeded(vjp, seeds, classes):
    """f to the explanations of as many classes of each example, by one forward pass."""

    def make(f):
        def explain(x):
            y, pull = vjp(f, x)
            chosen = (classes[:, None] + jnp.arange(seeds)).T % y.shape[-1]
            return jax.vmap(lambda c: pull(jax.nn.one_hot(c, y.shape[-1], dtype=y.dtype) * y)[0])(chosen)

        return explain

    return make


def batches(args):
    for batch in (1, 2, 4, 8, 16):
        yield {"network": "llama", "batch": batch} | over_gradient(
            ATTNLRP, given(llama(), 0, batch), args.repeats
        )
    for batch in (1, 2, 4, 8, 16):
        yield {"network": "vgg", "batch": batch} | over_gradient(PLUS, given(VGG, 32, batch), args.repeats)


def depths(args):
    for depth in (1, 2, 4, 8, 16):
        yield {"network": "llama", "depth": depth} | over_gradient(
            ATTNLRP, given(llama(depth), 0, 2), args.repeats
        )
    for depth in (1, 2, 4, 8, 16):
        model = networks.VGG((16,) * depth, 32, 16)
        yield {"network": "convolutions", "depth": depth} | over_gradient(
            PLUS, given(model, 16, 2), args.repeats
        )


def sequences(args):
    for tokens in (32, 64, 128, 256, 512):
        case = given(llama(2), 0, 1, tokens)
        yield {"network": "llama", "tokens": tokens} | over_gradient(ATTNLRP, case, args.repeats)
    for name in ("lstm", "mamba"):
        kind = {"lstm": networks_sequences.LSTM, "mamba": networks_sequences.Mamba}[name]
        for tokens in (32, 128, 512):
            case = given(kind(64, 1, 64), 0, 1, tokens)
            yield {"network": name, "tokens": tokens} | over_gradient(ATTNLRP, case, args.repeats)


def images(args):
    for size in (16, 32, 64, 128):
        yield {"network": "vgg", "size": size} | over_gradient(PLUS, given(VGG, size, 1), args.repeats)


def seeds(args):
    """Compared with as many seeds of one `jax.vjp`."""
    for name, composite, case in (
        ("llama", ATTNLRP, given(llama(2), 0, 1)),
        ("vgg", PLUS, given(VGG, 32, 1)),
    ):
        pulled = lambda f, x, composite=composite: lrpjax.vjp(f, composite, x)
        for number in (1, 4, 16):
            ours, theirs = seeded(pulled, number, case[3]), seeded(jax.vjp, number, case[3])
            yield {"network": name, "seeds": number} | ratio(ours, theirs, case, args.repeats)


def taps(args):
    """Compared with one gradient of the input."""
    case = given(llama(8), 0, 1)
    for number in (0, 1, 2, 4, 8):
        names = [f"LlamaBlock_{i}" for i in range(8 - number, 8)]
        more = {"at": names} if names else {}
        ours = lambda f, more=more: lrpjax.relevance(f, ATTNLRP, target=case[3], **more)
        yield {"network": "llama", "taps": number} | ratio(
            ours, bench.gradient_of(case[3]), case, args.repeats
        )


def conditions(args):
    """Compared with as many seeds of one `jax.vjp`."""
    case = given(VGG, 32, 1)

    def conditional(number):
        def make(f):
            one = lambda channel: concepts.relevance(f, PLUS, {"Conv_3": channel}, target=case[3])
            return lambda x: jax.vmap(lambda channel: one(channel)(x))(jnp.arange(number))

        return make

    for number in (1, 4, 16):
        theirs = seeded(jax.vjp, number, case[3])
        yield {"network": "vgg", "conditions": number} | ratio(
            conditional(number), theirs, case, args.repeats
        )


def samples(args):
    """Compared with as many gradients, four at once in a loop, as lrpjax's are."""
    key = jax.random.key(0)

    def smooth(explain, number):
        return lambda f: gradients.smooth(explain(f), samples=number, key=key)

    def by_hand(number):
        def make(f):
            def explain(x):
                spread = 0.1 * (x.max((1, 2, 3), keepdims=True) - x.min((1, 2, 3), keepdims=True))
                slope = bench.gradient_of(case[3])(f)
                one = lambda key: slope(x + spread * jax.random.normal(key, x.shape, x.dtype))
                return lax.map(one, jax.random.split(key, number), batch_size=4).mean(0)

            return explain

        return make

    case = given(VGG, 32, 1)
    kinds = {
        "smoothgrad": lambda f: gradients.gradient(f, target=case[3]),
        "epsilon_plus": bench.relevance_of(PLUS, case[3]),
    }
    for name, explain in kinds.items():
        for number in (4, 16, 64):
            row = {"network": "vgg", "explanation": name, "samples": number}
            yield row | ratio(smooth(explain, number), by_hand(number), case, args.repeats)


def audits(args):
    """Compared with one gradient; `relevance` is without the audit."""
    for name, composite, case in (("llama", ATTNLRP, given(llama(), 0, 2)), ("vgg", PLUS, given(VGG, 32, 2))):
        audit = lambda f, composite=composite, case=case: lrpjax.audit(f, composite, target=case[3])
        for what, make in (("relevance", bench.relevance_of(composite, case[3])), ("audit", audit)):
            yield {"network": name, "what": what} | ratio(
                make, bench.gradient_of(case[3]), case, args.repeats
            )


def stored(args):
    """Seconds for each batch of `lrpjax.explain_batches` after the first two, next to a plain loop over the same compiled function."""
    for batch in (8, 32):
        model, variables, x, _ = given(VGG, 32, batch)
        f = lambda x, model=model, variables=variables: model.apply(variables, x)
        explain = jax.jit(lrpjax.relevance(f, PLUS, target="max"))
        rows = [np.asarray(x) + i for i in range(50)]

        def seconds(results):
            for _ in range(2):
                next(results)
            start = time.perf_counter()
            count = sum(1 for _ in results)
            return (time.perf_counter() - start) / count

        def all_of(explain=explain, rows=rows, **more):
            return lrpjax.explain_batches(explain, rows, progress=False, **more)

        with tempfile.TemporaryDirectory() as folder:
            loop = seconds(np.asarray(explain(row)) for row in rows)
            both = seconds(all_of()), seconds(all_of(store=f"{folder}/store"))
        row = {"network": "vgg", "batch": batch, "loop, seconds": loop}
        yield row | {"explain_batches": both[0] / loop, "with store": both[1] / loop}


def tracing(depth, remat, turns=2):
    """CPU time of tracing with lowering by method, the smallest of so many from empty caches, in turns."""
    methods = {name: bench.relevance_of(bench.COMPOSITES[name], 0) for name in ("attnlrp", "epsilon_plus")}
    methods |= {"gradient": bench.gradient_of(np.zeros(1, int))}
    size = bench_7b.Size(depth, 64, 2, 128, 64, 16, "float32")
    params = size.shapes()
    layer = {name: size.abstract(leaf.shape[1:]) for name, leaf in params["layers"].items()}
    params |= {"layers": [layer] * depth}
    call = lambda params, x: bench_7b.decoder(size, params, x, remat, unrolled=True)
    model, best = types.SimpleNamespace(apply=call), dict.fromkeys(methods, float("inf"))
    for _ in range(turns):
        for name, make in methods.items():
            best[name] = min(best[name], bench.lowered(make, model, params, size.texts(1))[-1])
    return best


def traces(args):
    """CPU time, the smaller of two from empty caches, of a decoder 64 wide; `remat`: with `jax.checkpoint` of each block."""
    for remat in (False, True):
        tracing(1, remat, 1)  # loads what is loaded once only
    for depth in (2, 4) if args.quick else (12, 32, 96):
        for remat in (False, True):
            best = tracing(depth, remat)
            for name in ("attnlrp", "epsilon_plus"):
                row = {
                    "blocks": depth,
                    "remat": remat,
                    "composite": name,
                    "trace + lower": best[name] / best["gradient"],
                }
                yield row | {"seconds": best[name], "gradient's seconds": best["gradient"]}


PARTS = {
    "traces": ("Tracing and lowering of unrolled blocks", traces),
    "batch": ("Batch", batches),
    "depth": ("Depth", depths),
    "sequence": ("Sequence", sequences),
    "image": ("Image size", images),
    "seeds": ("Seeds: `jax.vmap(pull)` of `lrpjax.vjp`", seeds),
    "taps": ("Taps: `at=` so many blocks", taps),
    "conditions": ("Conditions: `lrpjax.concepts`", conditions),
    "samples": ("Samples of SmoothGrad: `gradients.smooth`", samples),
    "audit": ("Audit", audits),
    "store": ("The store", stored),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the first two rows of each part")
    parser.add_argument("--markdown", type=pathlib.Path, help="write the page to this file")
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # before JAX starts its threads
    page = [
        f"How cost grows, as `tests/benchmarks/bench_growth.py` says it: {bench.settings()}.\nSmall networks with random weights, float32: `llama` is 128 wide "
        "under AttnLRP, `vgg` has six convolutions under `epsilon_plus`. All but seconds are ratios to the gradient's,\nor to what the part says. `dots`: the flops "
        "of matrix products and convolutions; `trace` is with lowering. Seconds hold for this machine at this time."
    ]
    print(page[0], flush=True)
    list(zip(range(1), batches(args), strict=False))  # what is loaded once only, is loaded now
    for part in args.parts:
        title, rows = PARTS[part]
        found = []
        print(title, flush=True)
        for row in rows(args):
            found.append(row)
            print({k: bench.text(v) for k, v in row.items()}, flush=True)
            if args.quick and len(found) == 2:
                break
        said = (rows.__doc__ or "").strip()
        page.append("\n\n".join(filter(None, [f"## {title}", said, bench.table(list(found[0]), found)])))
        if args.markdown:
            args.markdown.write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    main()

"""What the relevance of every token for generated tokens costs: `python tests/benchmarks/bench_language.py [128 256 …] [--generated 32] [--markdown FILE]`.

A small decoder with random weights (4 layers in a scan, D = 128, 4 heads, a vocabulary of 8192, float32), explained by AttnLRP at its embedded tokens,
for the last tokens of texts of several lengths. Side by side: one call of `lrpjax.relevance` for each token, compiled once, as one would write it
without `lrpjax.language`; `language.token_relevance` from logits; the same with `unembed`, in which no logits of the whole text exist; and with
rematerialised layers. Memory is XLA's `memory_analysis` (temporary), time the smallest of several runs, taken in turns on one thread of the CPU. Then
what the number of tokens explained at once changes, and what `language.next_tokens` costs by the size of a block.
"""

import argparse
import datetime
import functools
import itertools
import os
import pathlib
import platform

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import bench
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import lrpjax
from lrpjax import composites, language

LAYERS, DIM, HEADS, VOCABULARY = 4, 128, 4, 8192
LENGTHS = (128, 256, 512, 1024)
COMPOSITE = composites.attnlrp()


def parameters():
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[-2]), jnp.float32)
    layers = {
        "qkv": normal(LAYERS, DIM, 3 * DIM),
        "o": normal(LAYERS, DIM, DIM),
        "up": normal(LAYERS, DIM, 4 * DIM),
        "down": normal(LAYERS, 4 * DIM, DIM),
    }
    return {
        "embedding": normal(VOCABULARY, DIM) * 50,
        "layers": layers,
        "unembed": normal(DIM, VOCABULARY),
    }


def norm(x):
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


def block(x, p):
    q, k, v = (u.reshape(len(x), HEADS, -1) for u in jnp.split(norm(x) @ p["qkv"], 3, -1))
    scores = jnp.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[1:], bool)), scores, -jnp.inf)
    x = x + jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores), v).reshape(x.shape) @ p["o"]
    return x + jax.nn.gelu(norm(x) @ p["up"]) @ p["down"], None


def hidden(params, ids, remat=False):
    x = lrpjax.tag(params["embedding"][ids], "embedded")
    return norm(lax.scan(jax.checkpoint(block) if remat else block, x, params["layers"])[0])


def logits(params, ids, remat=False):
    return hidden(params, ids, remat) @ params["unembed"]


def one(params, ids, t):
    """The relevance of all tokens for the one at position t, by itself."""
    seed = lambda y: jnp.zeros_like(y).at[t - 1, ids[t]].set(y[t - 1, ids[t]])
    f = functools.partial(logits, params)
    return lrpjax.relevance(f, COMPOSITE, at="embedded", target=seed)(ids).sum(-1)


def all_of(params, ids, generated, blocks=False, remat=False, seeds=8):
    f = functools.partial(hidden if blocks else logits, params, remat=remat)
    given = {"unembed": params["unembed"]} if blocks else {}
    start = len(ids) - generated
    return language.token_relevance(f, COMPOSITE, ids, at="embedded", start=start, seeds=seeds, **given)


def said_at_once(params, h, ids):
    z = h @ params["unembed"]
    return jax.nn.log_softmax(z)[jnp.arange(len(ids)), ids], lax.top_k(z, 5)


def said_in_blocks(params, h, ids, size):
    said = language.next_tokens(h, params["unembed"], ids=ids, block=size)
    return said.log_probability, (said.logits, said.tokens)


def compiled(f, *args):
    """(f on these arguments, its temporary memory in MB)."""
    program = jax.jit(f).lower(*args).compile()
    return functools.partial(program, *args), program.memory_analysis().temp_size_in_bytes / 2**20


VARIANTS = {
    "logits": {},
    "logits, remat": {"remat": True},
    "unembed": {"blocks": True},
    "unembed, remat": {"blocks": True, "remat": True},
}


def row(cells):
    return "| " + " | ".join(map(str, cells)) + " |"


def by_length(params, lengths, generated, repeats):
    yield row(["tokens", "what", "MB", "of the loop's", "seconds for each token", "of the loop's"])
    yield row(["---:", "---", "---:", "---:", "---:", "---:"])
    for length in lengths:
        ids = jnp.asarray(np.random.default_rng(length).integers(VOCABULARY, size=length))
        program, memory = compiled(one, params, ids, jnp.asarray(1))
        places = [jnp.asarray(t) for t in range(length - generated, length)]
        # The loop holds the program that is compiled for one position, and calls it for the others.
        loop = lambda: [program.func(params, ids, t) for t in places]  # noqa: B023
        runs, sizes = [loop], [memory]
        for options in VARIANTS.values():
            run, size = compiled(functools.partial(all_of, generated=generated, **options), params, ids)
            runs.append(run)
            sizes.append(size)
        wanted = np.stack(loop())
        for run in runs[1:]:
            error = np.abs(np.asarray(run()) - wanted).max() / np.abs(wanted).max()
            assert error < 1e-3, error
        times = [t / generated for t in bench.in_turns(runs, repeats)]
        for name, size, time in zip(["loop", *VARIANTS], sizes, times, strict=True):
            yield row(
                [
                    length,
                    name,
                    f"{size:.1f}",
                    f"{size / sizes[0]:.2f}",
                    f"{time:.3f}",
                    f"{time / times[0]:.2f}",
                ]
            )


def by_seeds(params, length, generated, repeats):
    yield row(["seeds", "MB", "seconds for each token"])
    yield row(["---:"] * 3)
    ids = jnp.asarray(np.random.default_rng(length).integers(VOCABULARY, size=length))
    seeds = [s for s in (1, 2, 4, 8, 16) if s <= generated]
    found = [
        compiled(functools.partial(all_of, generated=generated, blocks=True, seeds=s), params, ids)
        for s in seeds
    ]
    for s, (_, size), time in zip(
        seeds, found, bench.in_turns([run for run, _ in found], repeats), strict=True
    ):
        yield row([s, f"{size:.1f}", f"{time / generated:.3f}"])


def by_block(params, length, repeats):
    yield row(["block", "MB", "seconds"])
    yield row(["---:"] * 3)
    rng = np.random.default_rng(0)
    h = jnp.asarray(rng.normal(size=(length, DIM)), jnp.float32)
    ids = jnp.asarray(rng.integers(VOCABULARY, size=length))
    sizes = [256, 1024, 4096]
    found = [compiled(said_at_once, params, h, ids)]
    found += [compiled(functools.partial(said_in_blocks, size=s), params, h, ids) for s in sizes]
    for run, _ in found[1:]:
        np.testing.assert_allclose(run()[0], found[0][0]()[0], rtol=1e-4, atol=1e-4)
    times = bench.in_turns([run for run, _ in found], repeats)
    for name, (_, size), time in zip(["all at once", *sizes], found, times, strict=True):
        yield row([name, f"{size:.1f}", f"{time:.3f}"])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lengths", nargs="*", type=int, default=list(LENGTHS))
    parser.add_argument("--generated", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--markdown", type=pathlib.Path)
    args = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    params = parameters()
    longest = max(args.lengths)
    middle = args.lengths[len(args.lengths) // 2]
    lines = itertools.chain(
        [
            "What the relevance of every token for generated tokens costs, as `tests/benchmarks/bench_language.py` says it: "
            f"{datetime.date.today()}, a shared {bench.processor()}, one thread, CPU time, float32,",
            f"random weights, jax {jax.__version__}, Python {platform.python_version()}. A decoder with {LAYERS} layers in a scan, "
            f"D = {DIM}, {HEADS} heads and a vocabulary of {VOCABULARY}; AttnLRP at the embedded tokens, for the",
            f"last {args.generated} tokens of each text. MB is temporary memory as XLA counts it. Seconds hold for this machine at this "
            "time; read the ratios.",
            "",
            "## By length",
            "",
            "`loop` is a call of `lrpjax.relevance` for each token, compiled once. The others are `language.token_relevance` with "
            "`seeds=8`: from logits, or with `unembed`; `remat`: with",
            "`jax.checkpoint` around each layer.",
            "",
        ],
        by_length(params, args.lengths, args.generated, args.repeats),
        ["", f"## By the number of tokens explained at once, {middle} tokens, with `unembed`", ""],
        by_seeds(params, middle, args.generated, args.repeats),
        [
            "",
            f"## `language.next_tokens` for {longest} positions, by the size of a block of the vocabulary",
            "",
        ],
        by_block(params, longest, args.repeats),
    )
    with open(args.markdown or os.devnull, "w") as file:
        for line in lines:
            print(line, flush=True)
            print(line, file=file)


if __name__ == "__main__":
    main()

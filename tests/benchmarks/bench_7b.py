"""What relevance takes for a decoder of seven billion parameters: `python tests/benchmarks/bench_7b.py [--quick] [--markdown FILE]`.

Like Llama 2 7B: 32 layers in a `lax.scan`, 4096 wide, 32 heads, SwiGLU of 11008, RMSNorm, rotary positions, a vocabulary of 32000, 2048 tokens, bfloat16.
There are no weights: parameters are shapes, programs are traced, lowered, exported for other platforms and compiled, and never run. The largest logit of
the last token is explained at the embedded tokens by AttnLRP, next to `jax.grad` of it, with and without `jax.checkpoint` of each layer. On eight
devices weights are divided over the heads and hidden units ("tensor"), or over their rows, with one text on each device ("fsdp").
"""

import os

if __name__ == "__main__":  # before JAX starts its devices
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import argparse
import dataclasses
import functools
import pathlib
import time

import bench
import counting
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import lrpjax
from lrpjax import composites

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
COLLECTIVES += tuple(f"{name}-start" for name in COLLECTIVES)


@dataclasses.dataclass(frozen=True)
class Size:
    layers: int = 32
    width: int = 4096
    heads: int = 32
    hidden: int = 11008
    words: int = 32000
    tokens: int = 2048
    dtype: str = "bfloat16"

    def shapes(self) -> dict:
        """The parameters as shapes; those of layers are stacked."""
        D, H, L = self.width, self.hidden, self.layers
        layers = dict.fromkeys(("q", "k", "v", "o"), (L, D, D))
        layers |= {"gate": (L, D, H), "up": (L, D, H), "down": (L, H, D), "before": (L, D), "between": (L, D)}
        shapes = {"layers": layers, "norm": (D,), "unembed": (D, self.words)}
        return jax.tree.map(self.abstract, shapes, is_leaf=lambda v: isinstance(v, tuple))

    def abstract(self, shape) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(self.dtype))

    def texts(self, batch: int) -> jax.ShapeDtypeStruct:
        return self.abstract((batch, self.tokens, self.width))


def norm(x, scale):
    wide = x.astype(jnp.float32)
    return (wide * lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype) * scale


def rotated(x):
    """Rotary positions of [batch, tokens, heads, width]."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None, None] * 10000.0 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def block(heads, x, p):
    shaped = lambda y: y.reshape(*y.shape[:2], heads, -1)
    h = norm(x, p["before"])
    q, k, v = rotated(shaped(h @ p["q"])), rotated(shaped(h @ p["k"])), shaped(h @ p["v"])
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[2:], bool)), scores, -jnp.inf)
    seen = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores).astype(x.dtype), v)
    x = x + seen.reshape(x.shape) @ p["o"]
    h = norm(x, p["between"])
    return x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]


def decoder(size, params, x, remat=False, unrolled=False):
    """Embedded tokens to the logits of the last one. Unrolled, `params["layers"]` is a list."""
    layer = functools.partial(block, size.heads)
    layer = jax.checkpoint(layer) if remat else layer
    if unrolled:
        for p in params["layers"]:
            x = layer(x, p)
    else:
        x, _ = lax.scan(lambda x, p: (layer(x, p), None), x, params["layers"])
    return norm(x[:, -1], params["norm"]) @ params["unembed"]


def largest(f):
    """The gradient of the largest logit of each example."""
    return jax.grad(lambda x: f(x).max(-1).sum())


METHODS = {
    "gradient": largest,
    "attnlrp": lambda f: lrpjax.relevance(f, composites.attnlrp(), target="max"),
    "attnlrp, ε = 0": lambda f: lrpjax.relevance(f, composites.attnlrp(0.0), target="max"),
}


def of(size, method, remat):
    """(params, x) to the explanation of x."""
    return lambda params, x: METHODS[method](functools.partial(decoder, size, params, remat=remat))(x)


def sharded(size, kind):
    """(params, x) as shapes on eight devices."""
    mesh = Mesh(np.array(jax.devices()[:8]), ("d",))
    rows = ("o", "down") if kind == "tensor" else ("q", "k", "v", "o", "gate", "up", "down", "unembed")
    columns = ("q", "k", "v", "gate", "up", "unembed") if kind == "tensor" else ()

    def placed(path, leaf):
        name, before = path[-1].key, [None] * (len(leaf.shape) - 2)
        own = P(*before, "d", None) if name in rows else P(*before, None, "d") if name in columns else P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, own))

    x = size.texts(1 if kind == "tensor" else 8)
    spread = NamedSharding(mesh, P() if kind == "tensor" else P("d"))
    params = jax.tree_util.tree_map_with_path(placed, size.shapes())
    return params, jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread)


def traced(size, method, remat):
    """One row: what is known without compiling, and of the exports for other platforms."""
    given = size.shapes(), size.texts(1)
    seconds = float("inf")
    for _ in range(3):  # the first loads what is loaded once only
        jax.clear_caches()
        start = time.process_time()
        made = jax.jit(of(size, method, remat)).trace(*given)
        made.lower()
        seconds = min(seconds, time.process_time() - start)
    row = {"method": method, "remat": remat, "trace + lower seconds": seconds}
    row |= {
        "dots Tflops": counting.products(made.jaxpr).flops / 1e12,
        "stacked GB": counting.stacked(made.jaxpr) / 1e9,
    }
    for platform in ("tpu", "cuda"):
        start = time.process_time()
        exported = jax.export.export(jax.jit(of(size, method, remat)), platforms=[platform])(*given)
        row[f"export for {platform}, seconds"] = time.process_time() - start
        row[f"{platform} module kB"] = len(exported.mlir_module_serialized) / 1e3
    return row


def compiled(size, method, remat, kind):
    """One row: what the compiled program for one CPU, or for eight, takes."""
    given = (size.shapes(), size.texts(1)) if kind == "one" else sharded(size, kind)
    lowered = jax.jit(of(size, method, remat)).lower(*given)
    start = time.process_time()
    program = lowered.compile()
    row = {"method": method, "remat": remat, "devices": "1" if kind == "one" else f"8, {kind}"}
    row |= {"compile seconds": time.process_time() - start}
    row["temporary GB of each"] = program.memory_analysis().temp_size_in_bytes / 1e9
    found = {k: v for k, v in counting.operations(program.as_text()).items() if k in COLLECTIVES}
    row["collectives"] = sum(number for number, _ in found.values())
    row["collectives GB"] = sum(size for _, size in found.values()) / 1e9
    return row | {"which": ", ".join(f"{number} {name}" for name, (number, _) in sorted(found.items()))}


def beside(rows, columns):
    """Adds, to each row, columns over those of the gradient that it is compared with, the last one seen."""
    gradient = None
    for row in rows:
        gradient = row if row["method"] == "gradient" else gradient
        for column in columns:
            row[f"{column} / gradient's"] = row[column] / gradient[column] if gradient[column] else None
        print({k: bench.text(v) for k, v in row.items()}, flush=True)
        yield row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few layers, narrow")
    parser.add_argument("--kinds", nargs="*", default=["one", "tensor", "fsdp"], help="of compiled programs")
    parser.add_argument("--markdown", type=pathlib.Path, help="write the page to this file")
    args = parser.parse_args()
    size = Size(2, 64, 8, 128, 256, 32) if args.quick else Size()
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(size.shapes()))
    page = [
        f"A decoder of {count / 1e9:.2f} billion parameters without weights, as `tests/benchmarks/bench_7b.py` lowers and compiles it: "
        f"{bench.settings()}.\n{size}. AttnLRP of the last token's largest logit at the embedded tokens, next to `jax.grad` of it.\n"
        "`remat`: `jax.checkpoint` of each layer. `stacked`: what loops stack up over layers and something reads (residuals), from the jaxpr; `dots`: flops of "
        "matrix products."
    ]
    cases = [(method, remat) for remat in (False, True) for method in METHODS]
    parts = {
        "Traced, lowered and exported": (
            lambda: (traced(size, *case) for case in cases),
            ["trace + lower seconds", "dots Tflops", "stacked GB"],
        )
    }
    for kind in args.kinds:
        columns = ["compile seconds", "temporary GB of each", "collectives", "collectives GB"]
        rows = lambda kind=kind: (compiled(size, *case, kind) for case in cases)
        parts[f"Compiled for {'one CPU' if kind == 'one' else f'eight CPUs, {kind}'}"] = rows, columns
    for title, (rows, columns) in parts.items():
        found = list(beside(rows(), columns))
        page.append(f"## {title}\n\n{bench.table(list(found[0]), found)}")
        if args.markdown:
            args.markdown.write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    main()

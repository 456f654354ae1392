"""Run by test_sharding.py in a process of its own: the collectives of explanations on eight devices of the host."""

import json
import os
import re
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

import lrpjax
from lrpjax import composites, rules, select

P = PartitionSpec
EVERYWHERE = lrpjax.Composite([(select.kind("dense"), rules.ZPlus())])
SIZES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8}
OPS = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"


def collectives(compiled):
    """(how many, how many bytes of results), a body of a loop once."""
    found = re.findall(rf"= (.*?) (?:{OPS})(?:-start)?\(", compiled.as_text())
    size = lambda shape: SIZES[shape[0]] * int(np.prod([int(n) for n in shape[1].split(",") if n]))
    return len(found), sum(size(s) for text in found for s in re.findall(r"(\w+)\[([\d,]*)\]", text))


def convolutional(x, params):
    for i in range(4):
        w = params["blocks"][i]
        y = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        y = y * params["scale"][i] + params["shift"][i]
        x = jax.nn.relu(y if i % 2 else x + y)
    return x.mean((1, 2)) @ params["head"]


def decoder(x, params):
    def norm(x):
        return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + jnp.asarray(1e-6, x.dtype))

    def block(x, p):
        q, k, v = (u.reshape(*x.shape[:2], 4, -1) for u in (norm(x) @ p[n] for n in "qkv"))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[2:], bool)), scores, jnp.asarray(-jnp.inf, x.dtype))
        x = x + jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v).reshape(x.shape) @ p["o"]
        h = norm(x)
        return x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"], None

    x, _ = lax.scan(block, x, params["layers"])
    return x[:, -1] @ params["unembed"]


def convolutional_params():
    shape = lambda *s: jax.ShapeDtypeStruct(s, "float32")
    return {
        "blocks": shape(4, 3, 3, 16, 16),
        "scale": shape(4, 16),
        "shift": shape(4, 16),
        "head": shape(16, 16),
    }


def decoder_params(dtype):
    shape = lambda *s: jax.ShapeDtypeStruct(s, dtype)
    layers = {n: shape(3, 64, 64) for n in "qkvo"} | {
        "gate": shape(3, 64, 256),
        "up": shape(3, 64, 256),
        "down": shape(3, 256, 64),
    }
    return {"layers": layers, "unembed": shape(64, 128)}


WHOLE = P()
TENSOR = {  # columns of what leads into a block's inside, rows of what leads out of it
    **dict.fromkeys(("q", "k", "v", "gate", "up"), P(None, None, "model")),
    **dict.fromkeys(("o", "down"), P(None, "model", None)),
    "unembed": P(None, "model"),
}
FSDP = {
    **dict.fromkeys(("q", "k", "v", "gate", "up", "o", "down"), P(None, "data", None)),
    "unembed": P("data", None),
}


def placed(params, x, axis, specs, rows):
    """Shapes of parameters and of a batch, with their places on a mesh of one axis."""
    mesh = jax.make_mesh((8,), (axis,), axis_types=(jax.sharding.AxisType.Auto,))
    put = lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: put(leaf, specs.get(path[-1].key, P())), params
    )
    return params, put(x, rows)


def compare(f, params, x, chosen):
    gradient = jax.grad(lambda x, params: f(x, params).max(-1).sum())
    rows = {"the gradient": collectives(jax.jit(gradient).lower(x, params).compile())}
    for name in chosen:
        composite = EVERYWHERE if name == "z+" else getattr(composites, name)()
        explain = lrpjax.relevance(f, composite, target="max")
        rows[name] = collectives(jax.jit(explain).lower(x, params).compile())
    return rows


def main():
    image, found = jax.ShapeDtypeStruct((16, 8, 8, 16), "float32"), {}
    given = placed(convolutional_params(), image, "data", {}, P("data"))
    chosen = ("epsilon", "epsilon_plus_flat", "epsilon_alpha2_beta1", "deep_taylor")
    found["convolutional, data"] = compare(convolutional, *given, chosen)
    tokens = jax.ShapeDtypeStruct((8, 16, 64), "bfloat16")
    for name, axis, specs, rows in [
        ("data", "data", {}, P("data")),
        ("tensor", "model", TENSOR, P()),
        ("fsdp", "data", FSDP, P("data")),
    ]:
        given = placed(decoder_params("bfloat16"), tokens, axis, specs, rows)
        found[f"decoder, {name}"] = compare(decoder, *given, ("attnlrp", "z+"))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()

"""What half precision costs: `python tests/benchmarks/precision.py [--nets 64] [--only mlp] [--json FILE]`.

A table of every rule and preset on small random networks, in float32, bfloat16 and float16, against the same network
(weights and inputs rounded to that type) in float64: the largest error of the relevance relative to its largest value,
the median over the networks; behind it in how many networks the relevance was not finite, if it was in any. The columns
"rounding" say what rounding alone does: in float64, of a network in which the layers' outputs, and relevance where it
passes them on its way back, are rounded to the type (without its subnormal numbers, which makes it coarse in float16
where relevance is small). No computation of a rule in the type can be expected to come far below that.
"""

import argparse
import itertools
import json
import platform
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import lrpjax
from lrpjax import Composite, composites, rules, select

WEIGHTED = select.kind("dense", "conv")
BITS = {"float32": (8, 23), "bfloat16": (8, 7), "float16": (5, 10)}


def layers(rule):
    return Composite([(WEIGHTED, rule)], preset="precision")


RULES = {
    "epsilon": composites.epsilon(),
    "epsilon_0.25": layers(rules.Epsilon(0.25)),
    "zplus": layers(rules.ZPlus()),
    "alpha2_beta1": layers(rules.AlphaBeta(2.0, 1.0)),
    "gamma": layers(rules.Gamma(0.25)),
    "flat": layers(rules.Flat()),
    "wsquare": layers(rules.WSquare()),
    "zbox": Composite([(select.first("dense", "conv"), rules.ZBox(-3.0, 3.0)), (WEIGHTED, rules.ZPlus())]),
    "epsilon_plus_flat": composites.epsilon_plus_flat(),
    "epsilon_gamma_box": composites.epsilon_gamma_box(-3.0, 3.0),
    "excitation_backprop": composites.excitation_backprop(),
    "deep_taylor": composites.deep_taylor(),
    "gradient": composites.gradient(),
    "input_x_gradient": composites.input_x_gradient(),
    "deconvnet": composites.deconvnet(),
    "guided_backprop": composites.guided_backprop(),
}
ATTENTION = {"default": None, "attnlrp": composites.attnlrp(), "cp_lrp": composites.cp_lrp()}
ATTENTION |= {name: RULES[name] for name in ("gradient", "input_x_gradient")}

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}


def normal(rng, *shape, scale=1.0):
    return scale * rng.normal(size=shape)


class MLP:
    """Dense layers with biases."""

    def __init__(self, activation="relu", norm=None, sizes=(24, 48, 48, 10)):
        self.act, self.norm, self.sizes = ACTIVATIONS[activation], norm, sizes

    def params(self, rng):
        return [
            (normal(rng, m, n, scale=np.sqrt(2 / m)), normal(rng, n, scale=0.1))
            for m, n in itertools.pairwise(self.sizes)
        ]

    def input(self, rng):
        return normal(rng, 2, self.sizes[0])

    def __call__(self, params, x, rounded):
        for i, (w, b) in enumerate(params):
            x = rounded(x @ w + b)
            if i < len(params) - 1:
                if self.norm is not None:
                    x = rounded(self.norm(x))
                x = rounded(self.act(x))
        return x


def layer_norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred * lax.rsqrt((centred * centred).mean(-1, keepdims=True) + jnp.asarray(1e-5, x.dtype))


def rms_norm(x):
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + jnp.asarray(1e-5, x.dtype))


class CNN:
    """Three convolutions, a mean and a dense layer."""

    def __init__(self, activation="relu"):
        self.act = ACTIVATIONS[activation]

    def params(self, rng):
        channels = [3, 8, 16, 16]
        convs = [
            (normal(rng, 3, 3, m, n, scale=np.sqrt(2 / (9 * m))), normal(rng, n, scale=0.1))
            for m, n in itertools.pairwise(channels)
        ]
        return [*convs, (normal(rng, 16, 10, scale=0.35), normal(rng, 10, scale=0.1))]

    def input(self, rng):
        return normal(rng, 1, 12, 12, 3)

    def __call__(self, params, x, rounded):
        for i, (w, b) in enumerate(params[:-1]):
            strides = (1, 1) if i == 0 else (2, 2)
            z = lax.conv_general_dilated(x, w, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = rounded(self.act(rounded(z + b)))
        x = rounded(x.mean((1, 2)))
        return rounded(x @ params[-1][0] + params[-1][1])


class Attention:
    """A pre-norm block of attention and an MLP over eight tokens."""

    def params(self, rng):
        d = 16
        square = lambda m, n: normal(rng, m, n, scale=np.sqrt(1 / m))
        return [square(d, d) for _ in range(4)] + [square(d, 4 * d), square(4 * d, d), square(d, 10)]

    def input(self, rng):
        return normal(rng, 8, 16)

    def __call__(self, params, x, rounded):
        q, k, v, o, up, down, head = params
        y = rounded(layer_norm(x))
        scores = rounded(rounded(y @ q) @ rounded(y @ k).T * jnp.asarray(0.25, x.dtype))
        x = rounded(x + rounded(rounded(rounded(jax.nn.softmax(scores)) @ rounded(y @ v)) @ o))
        y = rounded(layer_norm(x))
        x = rounded(x + rounded(rounded(jax.nn.gelu(rounded(y @ up))) @ down))
        return rounded(rounded(layer_norm(x)).mean(0) @ head)


NETWORKS = {
    f"mlp {a}": (MLP(a), RULES if a == "relu" else {k: RULES[k] for k in list(RULES)[:7]})
    for a in ACTIVATIONS
}
NETWORKS |= {"cnn relu": (CNN(), RULES), "cnn silu": (CNN("silu"), {k: RULES[k] for k in list(RULES)[:5]})}
# Neurons with few inputs: sums of positive contributions that are zero, and small ones beside large.
NARROW = [MLP(a, sizes=(6, 5, 4, 3)) for a in ("gelu", "sigmoid")]
NETWORKS |= {
    f"narrow {a}": (net, {k: RULES[k] for k in list(RULES)[:7]})
    for a, net in zip(("gelu", "sigmoid"), NARROW, strict=True)
}
NETWORKS |= {
    "mlp layer norm": (MLP("gelu", layer_norm), {k: RULES[k] for k in list(RULES)[:5]}),
    "mlp rms norm": (MLP("gelu", rms_norm), {k: RULES[k] for k in list(RULES)[:2]}),
    "attention": (Attention(), ATTENTION),
}


def drawn(network, count, dtype, seed=0):
    """The weights and the inputs of `count` networks, rounded to a type, as float64."""
    draws = []
    for i in range(count):
        rng = np.random.default_rng(seed + i)
        draws.append((network.params(rng), network.input(rng)))
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *draws)
    return jax.tree.map(lambda a: a.astype(dtype).astype(jnp.float64), stacked)


def explained(network, composite, params, x, bits=None):
    """The relevances of all the networks at once; with `bits`, of those whose forward pass is rounded to them."""
    rounded = (lambda a: a) if bits is None else lambda a: lax.reduce_precision(a, *bits)

    def one(params, x):
        return lrpjax.relevance(lambda x: network(params, x, rounded), composite, target=one_class)(x)

    return jax.jit(jax.vmap(one))(params, x)


def one_class(y):
    """The relevance of the first class; 1 under the gradient family would say the same."""
    return jnp.zeros_like(y).at[..., 0].set(y[..., 0])


def errors(found, right):
    """For each network, the largest error relative to the largest value; and whether all is finite."""
    found, right = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (found, right))
    finite = np.isfinite(found).all(1)
    largest = np.abs(right).max(1)
    with np.errstate(invalid="ignore"):
        error = np.abs(found - right).max(1) / np.where(largest == 0, 1, largest)
    return np.where(finite, error, np.inf), finite


def measure(name, rule, count, dtypes=tuple(BITS), floor=True):
    """One row of the table: {dtype: {"error", "not_finite", "rounding"}}."""
    network, composites_of = NETWORKS[name]
    composite, row = composites_of[rule], {}
    for dtype in dtypes:
        params, x = drawn(network, count, dtype)
        right = explained(network, composite, params, x)
        low = jax.tree.map(lambda a, dtype=dtype: a.astype(dtype), (params, x))
        error, finite = errors(explained(network, composite, *low), right)
        row[dtype] = {"error": float(np.median(error)), "not_finite": int((~finite).sum())}
        if floor:
            limit, _ = errors(explained(network, composite, params, x, BITS[dtype]), right)
            row[dtype]["rounding"] = float(np.median(limit))
    return row


def table(rows):
    """The rows as a table in Markdown."""
    dtypes = list(BITS)
    heads = ["network", "rule", *(h for d in dtypes for h in (d, "rounding"))]
    lines = ["| " + " | ".join(heads) + " |", "| --- | --- |" + " ---: |" * (2 * len(dtypes))]
    for (network, rule), row in rows.items():
        cells = []
        for d in dtypes:
            broken = f" ({row[d]['not_finite']} not finite)" if row[d]["not_finite"] else ""
            cells += [f"{row[d]['error']:.1e}{broken}", f"{row[d].get('rounding', np.nan):.1e}"]
        lines.append("| " + " | ".join([network, rule, *cells]) + " |")
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", type=int, default=64, help="how many random networks (64)")
    parser.add_argument("--only", nargs="*", default=None, help="parts of the names of networks and rules")
    parser.add_argument("--no-floor", action="store_true", help="without the columns 'rounding'")
    parser.add_argument("--json", default=None, help="where to write the figures")
    parser.add_argument("--markdown", default=None, help="where to write the table")
    options = parser.parse_args(argv)
    jax.config.update("jax_enable_x64", True)
    rows = {}
    for name, (_, composites_of) in NETWORKS.items():
        for rule in composites_of:
            if options.only is None or any(part in f"{name} {rule}" for part in options.only):
                rows[name, rule] = measure(name, rule, options.nets, floor=not options.no_floor)
                print(table({(name, rule): rows[name, rule]}).splitlines()[-1], flush=True)
    print("\n" + table(rows))
    if options.markdown:
        with open(options.markdown, "w") as file:
            file.write(table(rows) + "\n")
    if options.json:
        report = {
            "nets": options.nets,
            "versions": {"jax": jax.__version__, "python": platform.python_version()},
            "device": jax.devices()[0].device_kind,
            "rows": [{"network": n, "rule": r, **row} for (n, r), row in rows.items()],
        }
        with open(options.json, "w") as file:
            json.dump(report, file, indent=1)
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])

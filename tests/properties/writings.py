"""The operations of `programs.py` in JAX, each in several writings that mean the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# --------------------------------------------------------------------------------------------------------- layers


def dense(step, w, add):
    """Ways to multiply the last axis of a value by w, and to add what follows."""
    as_conv = lambda x: lax.conv_general_dilated(
        x.reshape(1, -1, x.shape[-1]), w[None], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    ).reshape(*x.shape[:-1], -1)
    return [
        lambda x: add(x @ w),
        lambda x: add(jnp.einsum("...d,de->...e", x, w)),
        lambda x: add((w.T @ x.T).T),
        lambda x: add(lax.dot_general(w, x, (((0,), (x.ndim - 1,)), ((), ()))).T),
        lambda x: add(jnp.tensordot(x, w, 1)),
        lambda x: add(jax.vmap(lambda column: x @ column, 1, -1)(w)),
        lambda x: add(as_conv(x)),
        lambda x: lax.map(lambda row: add(row @ w), x) if x.ndim > 1 else add(x @ w),
        lambda x: add((x[..., None] * w).sum(-2)),
        lambda x: add(jnp.sum(w.T * x[..., None, :], axis=-1)),
        lambda x: add(jnp.einsum("...de->...e", jnp.einsum("...d,de->...de", x, w))),
        lambda x: add(sum(x[..., d, None] * w[d] for d in range(w.shape[0]))),
    ]


def conv(step, w, add):
    s = step.settings
    options = {
        "window_strides": (s["stride"],) * 2,
        "padding": s["padding"],
        "lhs_dilation": (s["spacing"],) * 2,
        "rhs_dilation": (s["dilation"],) * 2,
    }

    def nhwc(x, w, **others):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, w, dimension_numbers=numbers, **(options | others))

    def nchw(x):
        y = lax.conv_general_dilated(
            x.transpose(0, 3, 1, 2),
            w.transpose(3, 2, 0, 1),
            feature_group_count=s["groups"],
            **options,
        )
        return y.transpose(0, 2, 3, 1)

    def hwcn(x):
        numbers = lax.conv_dimension_numbers(
            (*x.shape[1:], 1), w.shape, lax.ConvDimensionNumbers((3, 2, 0, 1), (3, 2, 0, 1), (3, 2, 0, 1))
        )
        y = lax.conv_general_dilated(
            x.transpose(1, 2, 3, 0), w, dimension_numbers=numbers, feature_group_count=s["groups"], **options
        )
        return y.transpose(3, 0, 1, 2)

    def padded(x):
        """All the zeros around and between the pixels are in the image."""
        zeros = [(low, high, s["spacing"] - 1) for low, high in s["padding"]]
        image = lax.pad(x, np.zeros((), x.dtype), [(0, 0, 0), *zeros, (0, 0, 0)])
        inside = {"padding": "VALID", "lhs_dilation": (1, 1), "feature_group_count": s["groups"]}
        return nhwc(image, w, **inside)

    def half_padded(x):
        """Zeros above and to the left are in the image, those below and to the right the convolution's."""
        if s["spacing"] > 1:
            return padded(x)
        (top, bottom), (left, right) = s["padding"]
        image = jnp.pad(x, [(0, 0), (top, 0), (left, 0), (0, 0)])
        return nhwc(image, w, padding=[(0, bottom), (0, right)], feature_group_count=s["groups"])

    plain = lambda x: nhwc(x, w, feature_group_count=s["groups"])
    return [lambda x, way=way: add(way(x)) for way in (plain, nchw, hwcn, padded, half_padded)]


def behind(step, arrays):
    """Ways to add a bias, or a bias and a BatchNorm."""
    if step.settings["bias"] == "none":
        return [lambda y: y]
    b = arrays["b"]
    if step.settings["bias"] == "bias":
        return [lambda y: y + b, lambda y: b + y, lambda y: y - (-b), lambda y: -(-b - y)]
    mean, var, scale, offset = (arrays[name] for name in ("mean", "var", "scale", "offset"))
    root = jnp.sqrt(var + 1e-3)
    return [
        lambda y: (y + b - mean) / root * scale + offset,
        lambda y: (y + b - mean) * (scale * lax.rsqrt(var + 1e-3)) + offset,
        lambda y: y * (scale / root) + ((b - mean) * (scale / root) + offset),
        lambda y: offset + scale * ((b + y - mean) / root),
    ]


# ------------------------------------------------------------------------------------------- functions of one value

nn = jax.nn
ACTIVATIONS = {
    "relu": [
        nn.relu,
        lambda v: jnp.maximum(v, 0.0),
        lambda v: lax.max(jnp.zeros_like(v), v),
        lambda v: jnp.clip(v, 0.0),
        lambda v: jnp.where(v > 0, v, 0.0),
        lambda v: (v + jnp.abs(v)) / 2,
        lambda v: v * (v > 0).astype(v.dtype),
        lambda v: jnp.asarray(v > 0, v.dtype) * v,
    ],
    "tanh": [jnp.tanh, nn.tanh, lax.tanh],
    "sigmoid": [
        nn.sigmoid,
        lax.logistic,
        lambda v: 1.0 / (1.0 + jnp.exp(-v)),
        lambda v: jnp.exp(v) / (1.0 + jnp.exp(v)),
        lambda v: (lambda e: e / (e + 1.0))(jnp.exp(v)),
    ],
    "silu": [
        nn.silu,
        lambda v: v * nn.sigmoid(v),
        lambda v: v / (1.0 + jnp.exp(-v)),
        lambda v: v * jnp.exp(v) / (1.0 + jnp.exp(v)),
    ],
    "gelu": [
        functools.partial(nn.gelu, approximate=False),
        lambda v: v / 2 * (1 + lax.erf(v / np.sqrt(2))),
        lambda v: v / 2 * lax.erfc(-v / np.sqrt(2)),
    ],
    "softplus": [nn.softplus, lambda v: jnp.logaddexp(v, 0.0), lambda v: jnp.log1p(jnp.exp(v))],
    "leaky_relu": [
        nn.leaky_relu,
        lambda v: jnp.where(v > 0, v, 0.01 * v),
        lambda v: jnp.maximum(v, 0.01 * v),
    ],
    "elu": [nn.elu, lambda v: jnp.where(v > 0, v, jnp.exp(v) - 1)],
    "relu6": [nn.relu6, lambda v: jnp.clip(v, 0.0, 6.0), lambda v: jnp.minimum(jnp.maximum(v, 0.0), 6.0)],
    "hard_tanh": [nn.hard_tanh, lambda v: jnp.clip(v, -1.0, 1.0)],
}


def late_max(v):
    return v - lax.stop_gradient(v.max(-1, keepdims=True))


SOFTMAX = [
    nn.softmax,
    lambda v: jnp.exp(v) / jnp.exp(v).sum(-1, keepdims=True),
    lambda v: (lambda e: e / e.sum(-1, keepdims=True))(jnp.exp(late_max(v))),
    lambda v: jnp.exp(nn.log_softmax(v)),
    lambda v: (lambda e: e * (1 / e.sum(-1, keepdims=True)))(jnp.exp(late_max(v))),
    lambda v: jax.vmap(nn.softmax)(v),
    lambda v: jnp.exp(v - nn.logsumexp(v, -1, keepdims=True)),
    lambda v: jnp.exp(v - jnp.log(jnp.exp(v).sum(-1, keepdims=True))),
    lambda v: (lambda e: e / jnp.einsum("...s->...", e)[..., None])(jnp.exp(late_max(v))),
]


def norm(step):
    centred = step.op == "layer_norm"
    centre = [
        lambda v: v - v.mean(-1, keepdims=True) if centred else v,
        lambda v: v - v.sum(-1, keepdims=True) / v.shape[-1] if centred else v,
    ]

    def var(v):
        return v.var(-1, keepdims=True) if centred else (v * v).mean(-1, keepdims=True)

    def fast(v):
        square = (v**2).mean(-1, keepdims=True)
        return jnp.maximum(0.0, square - v.mean(-1, keepdims=True) ** 2) if centred else square

    return [
        lambda v: centre[0](v) / jnp.sqrt(var(v) + 1e-3),
        lambda v: centre[0](v) * lax.rsqrt(var(v) + 1e-3),
        lambda v: centre[1](v) * lax.rsqrt(fast(v) + 1e-3),
        lambda v: (lambda u: u / jnp.sqrt((u**2).mean(-1, keepdims=True) + 1e-3))(centre[0](v)),
        lambda v: centre[1](v) * (var(v) + 1e-3) ** -0.5,
    ]


def line(arrays, a, c):
    """Ways to scale by the array named a and to add that named c, where there are any."""
    a, c = arrays.get(a), arrays.get(c)
    if a is None and c is None:
        return [lambda v: v]
    if c is None:
        return [lambda v: v * a, lambda v: a * v, lambda v: v / (1 / a)]
    if a is None:
        return [lambda v: v + c, lambda v: c + v, lambda v: v - (-c)]
    return [lambda v: v * a + c, lambda v: c + a * v, lambda v: c - v * (-a)]


def shuffle(step):
    how = step.settings["how"]
    axis = lambda v: 0 if v.ndim == 2 else 1
    take = lambda v, numbers: jnp.take(v, np.asarray(numbers), axis(v))
    n = lambda v: v.shape[axis(v)]
    split = lambda v: jnp.split(v, [n(v) // 2], axis(v))
    return {
        "reverse": [
            lambda v: jnp.flip(v, axis(v)),
            lambda v: take(v, range(n(v))[::-1]),
            lambda v: lax.rev(v, (axis(v),)),
        ],
        "roll": [
            lambda v: jnp.roll(v, 1, axis(v)),
            lambda v: take(v, [n(v) - 1, *range(n(v) - 1)]),
        ],
        "swap": [
            lambda v: jnp.concatenate(split(v)[::-1], axis(v)),
            lambda v: take(v, [*range(n(v) // 2, n(v)), *range(n(v) // 2)]),
        ],
        "repeat": [
            lambda v: take(v, [0, *range(n(v) - 1)]),
            lambda v: jnp.concatenate(
                [lax.slice_in_dim(v, 0, 1, axis=axis(v)), lax.slice_in_dim(v, 0, n(v) - 1, axis=axis(v))],
                axis(v),
            ),
            lambda v: lax.dynamic_update_slice_in_dim(
                v, lax.slice_in_dim(v, 0, n(v) - 1, axis=axis(v)), 1, axis(v)
            ),
        ],
    }[how]


def slices(v, s):
    """The four elements of each window, stacked in front."""
    rows, columns = (v.shape[1] - 2) // s * s + 1, (v.shape[2] - 2) // s * s + 1
    return jnp.stack([v[:, i : i + rows : s, j : j + columns : s] for i in range(2) for j in range(2)])


def max_pool(step):
    s = step.settings["stride"]
    start = lambda v: np.asarray(-np.inf, v.dtype)
    return [
        lambda v: lax.reduce_window(v, start(v), lax.max, (1, 2, 2, 1), (1, s, s, 1), "VALID"),
        lambda v: slices(v, s).max(0),
    ]


def avg_pool(step):
    s = step.settings["stride"]
    zero = lambda v: np.zeros((), v.dtype)
    return [
        lambda v: lax.reduce_window(v, zero(v), lax.add, (1, 2, 2, 1), (1, s, s, 1), "VALID") / 4,
        lambda v: 0.25 * lax.reduce_window(v, zero(v), lax.add, (1, 2, 2, 1), (1, s, s, 1), "VALID"),
        lambda v: slices(v, s).mean(0),
    ]


# ---------------------------------------------------------------------------------------- functions of two values


def mix(a, b):
    half = a.shape[-1] // 2
    first = np.broadcast_to(np.arange(a.shape[-1]) < half, a.shape)
    return [
        jnp.concatenate([a[..., :half], b[..., half:]], -1),
        jnp.where(first, a, b),
        b.at[..., :half].set(a[..., :half]),
        lax.dynamic_update_slice(a, b[..., half:], [0] * (a.ndim - 1) + [half]),
    ]


TWO = {
    "add": [lambda a, b: a + b, lambda a, b: jnp.add(a, b), lax.add],
    "sub": [lambda a, b: a - b, lax.sub],
    "mul": [lambda a, b: a * b, lax.mul],
    "score": [
        lambda a, b: a @ b.T,
        lambda a, b: jnp.einsum("td,sd->ts", a, b),
        lambda a, b: lax.dot_general(a, b, (((1,), (1,)), ((), ()))),
        lambda a, b: jax.vmap(lambda row: row @ b.T)(a),
    ],
    "attend": [
        lambda a, b: a @ b,
        lambda a, b: jnp.einsum("ts,sd->td", a, b),
        lambda a, b: lax.dot_general(a, b, (((1,), (0,)), ((), ()))),
        lambda a, b: jax.vmap(lambda row: row @ b)(a),
    ],
    "maximum": [jnp.maximum, lambda a, b: jnp.where(a >= b, a, b)],
    "quotient": [lambda a, b: a / (1 + jnp.abs(b)), lambda a, b: a * (1 / (1 + jnp.abs(b)))],
    "mix": [lambda a, b, way=way: mix(a, b)[way] for way in range(4)],
}


SWAPPED = {
    "add": [lambda a, b: b + a],
    "mul": [lambda a, b: b * a],
    "score": [lambda a, b: (b @ a.T).T, lambda a, b: jax.vmap(lambda row: b @ row)(a)],
    "attend": [lambda a, b: (b.T @ a.T).T, lambda a, b: jnp.einsum("sd,ts->td", b, a)],
}
"""With the second value first; `einsum` puts it there as it likes."""

MULTIPLY_AND_SUM = {
    "score": [
        lambda a, b: (a[:, None] * b).sum(-1),
        lambda a, b: jnp.einsum("tsd->ts", jnp.einsum("td,sd->tsd", a, b)),
    ],
    "attend": [
        lambda a, b: (a[..., None] * b).sum(1),
        lambda a, b: jnp.einsum("tsd->td", jnp.einsum("ts,sd->tsd", a, b)),
    ],
}
"""A product of elements and a sum, each with a rule of its own: the same where both share in proportion."""


# ----------------------------------------------------------------------------------------------------------- programs


def of_two(step):
    numbered = isinstance(getattr(step.rule, "share", None), int)
    proportional = step.rule is None or hasattr(step.rule, "share")
    others = SWAPPED.get(step.op, []) + MULTIPLY_AND_SUM.get(step.op, []) * proportional
    return TWO[step.op] + ([] if numbered else others)


def run(step, arrays, *values):
    """One step, in its writing, with arrays that may be traced."""
    pick = lambda ways: ways[step.writing % len(ways)]
    if step.op in ("dense", "conv"):
        ways = behind(step, arrays)
        add = ways[step.writing // 2 % len(ways)]
        return pick({"dense": dense, "conv": conv}[step.op](step, arrays["w"], add))(*values)
    if step.op in ("layer_norm", "rms_norm"):
        return pick(line(arrays, "scale", "offset"))(pick(norm(step))(*values))
    ways = {
        "act": lambda: ACTIVATIONS[step.settings["name"]],
        "softmax": lambda: SOFTMAX,
        "affine": lambda: line(arrays, "a", "c"),
        "shuffle": lambda: shuffle(step),
        "max_pool": lambda: max_pool(step),
        "avg_pool": lambda: avg_pool(step),
        "flatten": lambda: [
            lambda v: v.ravel(),
            lambda v: v.reshape(-1),
            lambda v: lax.reshape(v, (v.size,)),
        ],
    }
    return pick(ways[step.op]() if step.op in ways else of_two(step))(*values)


def function(program, arrays=None, tags=()):
    """A program as a function of its input: every step in a scope of its own, s1, s2, ….

    arrays: for each step its arrays, where they are not the program's own. tags: the values that are tagged, as v1, v2, ….
    """
    import lrpjax

    arrays = [step.arrays for step in program.steps] if arrays is None else arrays

    def f(x):
        values = [x]
        for number, (step, own) in enumerate(zip(program.steps, arrays, strict=True), 1):
            with jax.named_scope(f"s{number}"):
                value = run(step, own, *(values[i] for i in step.inputs))
                values.append(lrpjax.tag(value, f"v{number}") if number in tags else value)
        return values[-1]

    return f

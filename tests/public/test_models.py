"""Flax models: the same network in linen, NNX and bare JAX is explained the same, and every layer of flax is."""

import functools

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import lenient
from jax import lax

import lrpjax
from lrpjax import composites, rules, select

close = functools.partial(helpers.close, tolerance=2e-5, of_largest=True)

KEY = jax.random.key(4)


def normal(*shape, key=KEY, dtype=jnp.float32):
    return jax.random.normal(key, shape, dtype)


# ------------------------------------------------------------------------------------------------------- one network, written in three ways


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        y = nn.relu(
            nn.BatchNorm(use_running_average=True, name="norm")(nn.Conv(self.width, (3, 3), name="conv1")(x))
        )
        return x + nn.Conv(x.shape[-1], (1, 1), name="conv2")(y)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="stem")(x))
        for i in range(2):
            x = Block(6, name=f"block_{i}")(x)
        x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(3, name="head")(nn.LayerNorm(name="norm")(x.mean((1, 2))))


class NNXBlock(nnx.Module):
    def __init__(self, width, channels, rngs):
        self.conv1 = nnx.Conv(channels, width, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(width, use_running_average=True, rngs=rngs)
        self.conv2 = nnx.Conv(width, channels, (1, 1), rngs=rngs)

    def __call__(self, x):
        return x + self.conv2(nnx.relu(self.norm(self.conv1(x))))


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.blocks = nnx.List([NNXBlock(6, 4, rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = nnx.max_pool(x, (2, 2), (2, 2))
        return self.head(self.norm(x.mean((1, 2))))


def bare(variables, x):
    def conv(p, x):
        return (
            lax.conv_general_dilated(
                x, p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            + p["bias"]
        )

    def norm(p, s, x):
        return (x - s["mean"]) / jnp.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    p, s = variables["params"], variables["batch_stats"]
    x = jnp.maximum(conv(p["stem"], x), 0.0)
    for i in range(2):
        b = p[f"block_{i}"]
        y = norm(b["norm"], s[f"block_{i}"]["norm"], conv(b["conv1"], x))
        x = x + conv(b["conv2"], jnp.maximum(y, 0.0))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = x.sum((1, 2)) / (x.shape[1] * x.shape[2])
    centred = x - x.mean(-1, keepdims=True)
    statistic = jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    x = centred * (p["norm"]["scale"] / statistic) + p["norm"]["bias"]
    return x @ p["head"]["kernel"] + p["head"]["bias"]


def random_variables(module, x):
    """Variables in float64, those of BatchNorm none of them trivial and its scales of both signs."""
    leaves, treedef = jax.tree.flatten(jax.eval_shape(lenient(module.init), KEY, x))
    keys = jax.random.split(KEY, len(leaves))
    values = [normal(*v.shape, key=k, dtype=jnp.float64) * 0.3 for k, v in zip(keys, leaves, strict=True)]
    variables = treedef.unflatten(values)
    variables["batch_stats"] = jax.tree.map(lambda v: abs(v) + 0.5, variables["batch_stats"])
    return variables


@functools.cache
def three():
    """(f, x) for each way of writing, with the same random parameters, in float64."""
    x = normal(2, 8, 8, 2, dtype=jnp.float64)
    variables = random_variables(Linen(), x)
    model = NNX(nnx.Rngs(0))
    parts = {"stem": model.stem, "norm": model.norm, "head": model.head}
    for i, block in enumerate(model.blocks):
        parts |= {f"block_{i}/{name}": getattr(block, name) for name in ("conv1", "norm", "conv2")}
    for path, module in parts.items():
        for collection in variables.values():
            found = functools.reduce(lambda tree, name: tree.get(name, {}), path.split("/"), collection)
            for name, value in found.items():
                getattr(module, name).set_value(value)
    return {
        "linen": (lenient(lambda x: Linen().apply(variables, x)), x),
        "NNX": (lenient(model), x),
        "bare": (functools.partial(bare, variables), x),
    }


COMPOSITES = {
    "default": None,
    "epsilon_plus_flat": composites.epsilon_plus_flat(),
    "epsilon_alpha2_beta1": composites.epsilon_alpha2_beta1(),
    "epsilon_gamma_box": composites.epsilon_gamma_box(-4.0, 4.0),
    "deep_taylor": composites.deep_taylor(),
    "excitation_backprop": composites.excitation_backprop(),
    "guided_backprop": composites.guided_backprop(),
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_linen_nnx_and_bare_jax_agree(name):
    (f, x), *others = three().values()
    y, R = lrpjax.value_and_relevance(f, COMPOSITES[name], target=1)(x)
    assert R.shape == x.shape and R.dtype == x.dtype
    assert jnp.isfinite(R).all() and R.any()
    for g, _ in others:
        y2, R2 = lrpjax.value_and_relevance(g, COMPOSITES[name], target=1)(x)
        close(y2, y, tolerance=1e-9)
        close(R2, R, tolerance=1e-6)


WANTED = [
    ("stem", "conv"),
    ("", "activation"),
    ("block_0/conv1", "conv"),
    ("block_0", "activation"),
    ("block_0/conv2", "conv"),
    ("block_0", "sum"),
    ("block_1/conv1", "conv"),
    ("block_1", "activation"),
    ("block_1/conv2", "conv"),
    ("block_1", "sum"),
    ("", "pool"),
    ("", "pool"),
    ("head", "dense"),
]


RENAME = {
    "linen": lambda path: path.removeprefix("Linen").removeprefix("/"),
    "NNX": lambda path: path.replace("blocks/", "block_"),
}


@pytest.mark.parametrize("way", RENAME)
def test_paths_are_those_of_the_modules(way):
    """NNX names no scopes itself. BatchNorm is in its layer, under the layer's path."""
    f, x = three()[way]
    units = [(RENAME[way](u.path), u.kind) for u in lrpjax.plan(f, None, x)]
    assert [u for u in units if u[0] != "norm" and u[1] != "affine"] == WANTED
    assert {kind for path, kind in units if path == "norm"} >= {"pool", "norm", "affine"}


@pytest.mark.parametrize(
    ("way", "path"), [("linen", "Linen/block_1"), ("linen", "block_1"), ("NNX", "blocks/1")]
)
def test_at_a_module_is_the_value_that_leaves_it(way, path):
    f, x = three()[way]
    R = lrpjax.relevance(f, composites.epsilon_plus(), target=1, at=path)(x)
    assert R.shape == (2, 8, 8, 4)
    reference, _ = three()["linen"]
    close(
        R,
        lrpjax.relevance(reference, composites.epsilon_plus(), target=1, at="Linen/block_1")(x),
        tolerance=1e-3,
    )


@pytest.mark.parametrize("way", ["linen", "NNX"])
def test_rules_by_path(way):
    f, x = three()[way]
    composite = lrpjax.Composite(
        [("*conv2", rules.Flat()), ("stem", rules.WSquare()), (select.kind("conv"), rules.Gamma())]
    )
    found = {u.path: u.rule.split("(")[0] for u in lrpjax.plan(f, composite, x) if u.kind == "conv"}
    assert [rule for _, rule in sorted((p.split("/")[-1], r) for p, r in found.items())] == [
        "Gamma",
        "Gamma",
        "Flat",
        "Flat",
        "WSquare",
    ]


def test_nnx_classes_are_left_as_they_were():
    before = NNX.__call__, NNXBlock.__call__, nnx.Linear.__call__
    f, x = three()["NNX"]
    lrpjax.relevance(f)(x)
    with pytest.raises(lrpjax.UnsupportedError):
        lrpjax.relevance(lambda x: jnp.linalg.cholesky(f(x).T @ f(x)))(x)
    assert before == (NNX.__call__, NNXBlock.__call__, nnx.Linear.__call__)


class Pair(nnx.Module):
    """Two layers, called in one of several ways."""

    def __init__(self, way, rngs):
        self.way = way
        self.first, self.second = NNXBlock(3, 2, rngs), NNXBlock(3, 2, rngs)

    def __call__(self, x):
        if self.way == "checkpoint":
            return jax.checkpoint(self.second)(jax.checkpoint(self.first)(x))
        if self.way == "shared":
            return self.first(self.first(x))
        if self.way == "another method":
            return self.second(self.halfway(x))
        return self.second(self.first(x))

    def halfway(self, x):
        return self.first.conv1(x)[..., :2]


BOTH = [f"{block}/{conv}" for block in ("first", "second") for conv in ("conv1", "conv2")]


@pytest.mark.parametrize(
    ("way", "paths"),
    [
        ("plain", BOTH),
        ("checkpoint", BOTH),
        ("merged inside", BOTH),
        ("shared", BOTH[:2] * 2),
        ("another method", [BOTH[0], *BOTH[2:]]),
    ],
)
def test_nnx_paths_however_a_module_is_called(way, paths):
    model = Pair(way, nnx.Rngs(0))
    graph, state = nnx.split(model)
    f = (lambda x: nnx.merge(graph, state)(x)) if way == "merged inside" else model
    x = normal(1, 4, 4, 2)
    assert [u.path for u in lrpjax.plan(f, None, x) if u.kind == "conv"] == paths
    if way in ("checkpoint", "merged inside"):
        plain = nnx.merge(*nnx.split(model))
        plain.way = "plain"
        close(
            lrpjax.relevance(f, composites.epsilon_plus())(x),
            lrpjax.relevance(plain, composites.epsilon_plus())(x),
        )


class Normed(nn.Module):
    """BatchNorm in inference mode on either side of a convolution."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True, name="before")(x)
        x = nn.Conv(4, (3, 3), name="conv", param_dtype=jnp.float64)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True, name="after")(x))
        return nn.Dense(3, name="head", param_dtype=jnp.float64)(x.mean((1, 2)))


class NNXNormed(nnx.Module):
    def __init__(self, rngs):
        self.before = nnx.BatchNorm(2, use_running_average=True, rngs=rngs)
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.after = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.after(self.conv(self.before(x))))
        return self.head(x.mean((1, 2)))


def normed(way):
    """The model, its input and its variables."""
    x = normal(2, 6, 6, 2, dtype=jnp.float64)
    variables = random_variables(Normed(), x)
    if way == "linen":
        return lenient(lambda x: Normed().apply(variables, x)), x, variables
    model = NNXNormed(nnx.Rngs(0))
    for collection in variables.values():
        for path, values in collection.items():
            for name, value in values.items():
                getattr(getattr(model, path), name).set_value(value)
    return lenient(model), x, variables


@pytest.mark.parametrize("rule", [rules.Epsilon(), rules.ZPlus(), rules.Gamma(), rules.AlphaBeta()], ids=str)
@pytest.mark.parametrize("way", ["linen", "NNX"])
def test_batch_norm_is_folded_into_the_layer_before_it_and_takes_its_share_before_a_layer(way, rule):
    f, x, variables = normed(way)
    p, stats = variables["params"], variables["batch_stats"]
    factor = {n: p[n]["scale"] / jnp.sqrt(stats[n]["var"] + 1e-5) for n in ("before", "after")}
    shift = {n: p[n]["bias"] - stats[n]["mean"] * factor[n] for n in ("before", "after")}
    kernel, bias = p["conv"]["kernel"] * factor["after"], p["conv"]["bias"] * factor["after"] + shift["after"]

    def folded(y):
        numbers = ("NHWC", "HWIO", "NHWC")
        z = lax.conv_general_dilated(y, kernel, (1, 1), "SAME", dimension_numbers=numbers) + bias
        return jax.nn.relu(z).mean((1, 2)) @ p["head"]["kernel"] + p["head"]["bias"]

    composite = lrpjax.Composite([(select.kind("conv"), rule), (select.kind("dense"), rules.Epsilon())])
    assert [u.kind for u in lrpjax.plan(f, composite, x)] == [
        "affine",
        "conv",
        "activation",
        "pool",
        "dense",
    ]
    y = x * factor["before"] + shift["before"]
    above = lrpjax.relevance(folded, composite, target=1)(y)
    close(lrpjax.relevance(f, composite, target=1)(x), x * factor["before"] / y * above, tolerance=1e-6)


@pytest.mark.parametrize("way", ["linen", "NNX"])
def test_parameters_as_arguments(way):
    """The relevance as a function of the parameters, under jit, with a gradient: what training on explanations needs."""
    x = normal(2, 8, 8, 2)
    if way == "NNX":
        graph, state = nnx.split(NNX(nnx.Rngs(0)))
        model = lambda state, x: nnx.merge(graph, state)(x)
    else:
        state = jax.tree.map(jnp.asarray, Linen().init(KEY, x))
        model = lambda state, x: Linen().apply(state, x)
    loss = lambda state: (
        lrpjax.relevance(model, composites.epsilon_plus(), argnums=1, target=0)(state, x) ** 2
    ).sum()
    gradients = jax.jit(jax.grad(loss))(state)
    assert jax.tree.structure(gradients) == jax.tree.structure(state)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert sum(float(abs(g).sum()) for g in jax.tree.leaves(gradients)) > 0


# --------------------------------------------------------------------------------------------------------------------- the layers of flax


def of(module, *shape):
    x = normal(*shape, key=jax.random.key(5))
    variables = module.init(KEY, x)
    return (lambda x: module.apply(variables, x)), x


IMAGE = (2, 6, 6, 4)
LAYERS = {
    "Dense": (nn.Dense(3, use_bias=False), (2, 5), "dense"),
    "Dense in the middle": (nn.Dense(3, use_bias=False), (2, 4, 5), "dense"),
    "DenseGeneral": (nn.DenseGeneral((2, 3), axis=(-2, -1), use_bias=False), (2, 4, 5), "dense"),
    "DenseGeneral, batched": (
        nn.DenseGeneral(3, axis=-1, batch_dims=(0,), use_bias=False),
        (2, 4, 5),
        "dense",
    ),
    "Einsum": (nn.Einsum((5, 3), "...i,io->...o", use_bias=False), (2, 5), "dense"),
    "Conv 1d": (nn.Conv(3, (3,), use_bias=False), (2, 6, 4), "conv"),
    "Conv 2d": (nn.Conv(3, (3, 3), use_bias=False), IMAGE, "conv"),
    "Conv 3d": (nn.Conv(3, (2, 2, 2), use_bias=False), (1, 4, 4, 4, 2), "conv"),
    "Conv, strided": (nn.Conv(3, (3, 3), strides=2, padding="VALID", use_bias=False), IMAGE, "conv"),
    "Conv, dilated": (nn.Conv(3, (3, 3), kernel_dilation=2, use_bias=False), IMAGE, "conv"),
    "Conv, transposed kernel": (
        nn.Conv(3, (3, 3), padding=1, input_dilation=2, use_bias=False),
        IMAGE,
        "conv",
    ),
    "Conv, grouped": (nn.Conv(6, (3, 3), feature_group_count=2, use_bias=False), IMAGE, "conv"),
    "Conv, depthwise": (nn.Conv(4, (3, 3), feature_group_count=4, use_bias=False), IMAGE, "conv"),
    "Conv, circular": (nn.Conv(3, (3, 3), padding="CIRCULAR", use_bias=False), IMAGE, "conv"),
    "Conv, causal": (nn.Conv(3, (3,), padding="CAUSAL", use_bias=False), (2, 6, 4), "conv"),
    "Conv, without batch": (nn.Conv(3, (3, 3), use_bias=False), (6, 6, 4), "conv"),
    "Conv, two batch dimensions": (nn.Conv(3, (3, 3), use_bias=False), (2, 2, 6, 6, 4), "conv"),
    "ConvLocal": (nn.ConvLocal(3, (3, 3), use_bias=False), IMAGE, "dense"),
    "ConvTranspose": (nn.ConvTranspose(3, (3, 3), strides=(2, 2), use_bias=False), IMAGE, "conv"),
    "ConvTranspose, valid": (
        nn.ConvTranspose(3, (2, 3), strides=(2, 1), padding="VALID", use_bias=False),
        IMAGE,
        "conv",
    ),
}
LRP0 = composites.epsilon(0.0)


@pytest.mark.parametrize("name", LAYERS)
def test_linear_layers_of_flax_are_layers(name):
    module, shape, kind = LAYERS[name]
    f, x = of(module, *shape)
    assert kind in [u.kind for u in lrpjax.plan(f, None, x)]
    close(lrpjax.relevance(f, LRP0)(x), x * jax.grad(lambda x: f(x).sum())(x))
    composite = lrpjax.Composite([(select.kind("dense", "conv"), rules.Flat(epsilon=0.0))])
    seed = jax.random.uniform(KEY, f(x).shape, jnp.float32, 0.5, 1.0)
    found = lrpjax.relevance(f, composite, target=seed)(x)
    if name != "Conv, causal":  # flax pads that itself: the zeros are inputs like others and take their share
        assert float(found.sum()) == pytest.approx(float(seed.sum()), rel=1e-4)


POOLS = {
    "max": lambda x: nn.max_pool(x, (2, 2), (2, 2)),
    "max, same": lambda x: nn.max_pool(x, (3, 3), (2, 2), "SAME"),
    "max, padded": lambda x: nn.max_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1))),
    "avg": lambda x: nn.avg_pool(x, (2, 2), (2, 2)),
    "avg, overlapping": lambda x: nn.avg_pool(x, (3, 3), (1, 1)),
    "avg, padded": lambda x: nn.avg_pool(x, (3, 3), (2, 2), "SAME"),
    "avg, pads not counted": lambda x: nn.avg_pool(x, (3, 3), (2, 2), "SAME", count_include_pad=False),
    "global avg": lambda x: x.mean((1, 2)),
    "global max": lambda x: x.max((1, 2)),
    "global sum": lambda x: jnp.sum(x, axis=(1, 2)),
}


@pytest.mark.parametrize("name", POOLS)
def test_pools_share_in_proportion_or_by_the_winner(name):
    x = normal(*IMAGE)

    f = lambda x: POOLS[name](x).astype(x.dtype)
    with jax.numpy_dtype_promotion("standard"):  # flax divides by counts of another dtype
        assert [u.kind for u in lrpjax.plan(f, None, x)] == ["pool"]
        seed = jax.random.uniform(KEY, f(x).shape, jnp.float32)
        y, back = jax.vjp(f, x)
        close(lrpjax.relevance(f, LRP0, target=seed)(x), x * back(seed / y)[0], tolerance=1e-4)


MAX_POOLS = {  # window, strides, padding, dilation of windows and of the array
    "apart": ((1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    "apart, a remainder": ((1, 3, 3, 1), (1, 3, 3, 1), "VALID"),
    "overlapping": ((1, 3, 3, 1), (1, 2, 2, 1), "SAME"),
    "every place": ((1, 3, 2, 1), (1, 1, 1, 1), "SAME"),
    "with gaps": ((1, 2, 2, 1), (1, 3, 3, 1), "VALID"),
    "of channels": ((1, 1, 1, 4), (1, 1, 1, 2), "VALID"),
    "more padding than needed": ((1, 2, 2, 1), (1, 2, 2, 1), ((0, 0), (3, 1), (0, 4), (0, 0))),
    "large": ((1, 5, 5, 1), (1, 2, 2, 1), "SAME"),
    "cropped": ((1, 2, 2, 1), (1, 2, 2, 1), ((0, 0), (-1, 0), (-1, -2), (0, 0))),
    "dilated": ((1, 2, 2, 1), (1, 2, 1, 1), ((0, 0), (1, 0), (1, 1), (0, 0)), (1, 1, 1, 1), (1, 2, 3, 1)),
    "large and dilated": ((1, 5, 5, 1), (1, 1, 1, 1), "SAME", (1, 1, 1, 1), (1, 1, 2, 1)),
    "spaced": ((1, 2, 3, 1), (1, 1, 2, 1), ((0, 0), (1, 2), (-1, 1), (0, 0)), (1, 2, 3, 1), (1, 2, 1, 1)),
}
UNDIFFERENTIABLE = ("cropped", "dilated", "large and dilated", "spaced")
"""JAX has no derivative of these."""


def pool_in_python(x, seed, window, strides, padding, spacing=(1,) * 4, gaps=(1,) * 4):
    """Maxima, and each of the seeds at the first of the maxima of its window, by loops over all windows and elements."""
    (low, high), strides, spacing, gaps = np.transpose(padding), *map(np.array, (strides, spacing, gaps))
    shape = (np.array(x.shape) - 1) * spacing + 1 + np.maximum(low, 0) + np.maximum(high, 0)
    spaced, where = np.full(shape, -np.inf), {}
    for i in np.ndindex(x.shape):
        at = tuple(np.maximum(low, 0) + spacing * i)
        spaced[at], where[at] = x[i], i
    y, R = np.empty(seed.shape), np.zeros(x.shape)
    for o in np.ndindex(seed.shape):
        first = np.maximum(-low, 0) + strides * o
        winner = max((tuple(first + gaps * place) for place in np.ndindex(window)), key=lambda at: spaced[at])
        y[o] = spaced[winner]
        if winner in where:
            R[where[winner]] += seed[o]
    return y, R


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", MAX_POOLS)
def test_max_pools_have_the_derivative_that_jax_gives_them(name, dtype):
    """Small integers, so that windows hold ties, of which the first wins, and sums are exact; and -inf, which wins where all are."""
    window, strides, padding, *dilations = MAX_POOLS[name]
    x = jax.random.randint(KEY, (2, 7, 8, 4), -2, 3).astype(dtype).at[0, :3, :4].set(-jnp.inf)
    pool = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding, *dilations)
    y, pull = lrpjax.vjp(pool, composites.gradient(), x)
    seed = jax.random.randint(KEY, y.shape, -9, 10).astype(dtype)
    if name in UNDIFFERENTIABLE:
        if padding == "SAME":
            reach = (np.array(window) - 1) * dilations[1] + 1
            padding = lax.padtype_to_pads(x.shape, reach, strides, padding)
        wanted, gradient = pool_in_python(
            np.asarray(x), np.asarray(seed), window, strides, padding, *dilations
        )
    else:
        wanted, back = jax.vjp(pool, x)
        (gradient,) = back(seed)
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_array_equal(jax.jit(pull)(seed)[0], gradient)
    np.testing.assert_array_equal(jax.vmap(pull)(jnp.stack([seed, 2 * seed]))[0][1], 2 * gradient)


def test_a_max_pool_keeps_nan():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(jnp.nan)
    R = lrpjax.relevance(
        lambda x: nn.max_pool(x, (2, 2), (2, 2)), LRP0, target=jnp.full((1, 2, 2, 1), jnp.nan)
    )(x)
    assert jnp.isnan(R).sum() == 4


def test_max_pools_cost_less_than_their_gradient():
    """XLA's own derivative is a scatter on the CPU, with an array of indices for each dimension."""
    x, f = normal(2, 64, 64, 8), lambda x: nn.max_pool(jnp.sin(x), (2, 2), (2, 2)).sum()
    memory = lambda f: jax.jit(f).lower(x).compile().memory_analysis().temp_size_in_bytes
    assert memory(lrpjax.relevance(f, composites.gradient())) <= 0.5 * memory(jax.grad(f))


def test_half_precision_keeps_no_float32_copies():
    """The CPU convolves bfloat16 in float32: XLA kept those copies of all layers' inputs for the backward pass."""
    kernels = [normal(3, 3, 8, 8).astype(jnp.bfloat16) for _ in range(6)]
    x = normal(2, 64, 64, 8).astype(jnp.bfloat16)

    def f(x):
        for w in kernels:
            x = nn.relu(
                lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            )
        return x.sum()

    memory = lambda f: jax.jit(f).lower(x).compile().memory_analysis().temp_size_in_bytes
    assert memory(lrpjax.relevance(f)) <= 1.25 * memory(jax.grad(f))


def test_compiled_programs_grow_with_depth_as_those_of_the_gradient():
    """XLA copied the sum of all cotangents of a residual stream into whatever waits for it: the square of the depth."""

    def ratio(depth):
        x, kernels = normal(4, 16), [normal(2, 16, 16, key=jax.random.key(i)) for i in range(depth)]

        def f(x):
            for first, second in kernels:
                x = x + nn.gelu((x - x.mean(-1, keepdims=True)) @ first) @ second
            return x.sum()

        size = lambda f: len(jax.jit(f).lower(x).compile().as_text())
        return size(lrpjax.relevance(f, composites.deep_taylor())) / size(jax.grad(f))

    assert ratio(8) <= 1.4 * ratio(2)


class Recurrent(nn.Module):
    cell: str

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(getattr(nn, self.cell)(5))(x)[:, -1])


@pytest.mark.parametrize("cell", ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell", "MGUCell"])
def test_recurrent_layers(cell):
    """The signal takes all at the gates (Arras et al. 2017); a step that can be seen from every later one has relevance."""
    f, x = of(Recurrent(cell), 2, 4, 3)
    for composite in (None, composites.epsilon_plus()):
        R = jax.jit(lrpjax.relevance(f, composite, target="max"))(x)
        assert jnp.isfinite(R).all()
        assert (abs(R).sum(-1) > 0).all()
        assert abs(R).sum() < 100 * abs(f(x)).sum()


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2, deterministic=True)(
            h, h, mask=nn.make_causal_mask(x[..., 0])
        )
        return nn.Dense(3)(x + nn.Dense(6)(nn.gelu(nn.Dense(12)(nn.LayerNorm()(x)))))


def test_attention():
    f, x = of(Attention(), 2, 5, 6)
    plan = lrpjax.plan(f, composites.attnlrp(), x)
    kinds = [u.kind for u in plan]
    assert kinds.count("softmax") == 1
    assert kinds.count("product") == 2
    assert kinds.count("norm") == 2
    assert {u.rule for u in plan if u.kind == "product"} == {"Product(share='gate'): 2 of 2 factors"}
    R = jax.jit(
        lrpjax.relevance(
            f, composites.attnlrp(), target=lambda y: y * (jnp.arange(5) == 1)[:, None].astype(y.dtype)
        )
    )(x)
    assert jnp.isfinite(R).all()
    assert not R[:, 2:].any()  # what the mask hides has no relevance
    assert (abs(R[:, :2]).sum(-1) > 0).all()


class Tokens(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        h = nn.Dense(7)(nn.Embed(11, 5)(tokens))
        return nn.Dense(3)(nn.gelu(h).mean(1))


def test_token_model_is_explained_at_its_embedding():
    tokens = jnp.array([[3, 1, 4], [1, 5, 9]])
    variables = Tokens().init(KEY, tokens)
    f = lambda tokens: Tokens().apply(variables, tokens)
    R = lrpjax.relevance(f, target="max", at="Embed_0")(tokens)
    assert R.shape == (2, 3, 5)
    p = variables["params"]
    rest = lambda e: (
        (nn.gelu(e @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]).mean(1)) @ p["Dense_1"]["kernel"]
        + p["Dense_1"]["bias"]
    )
    close(R, lrpjax.relevance(rest, target="max")(p["Embed_0"]["embedding"][tokens]))
    with pytest.raises(lrpjax.InputError, match="at='path/of/the/embedding'"):
        lrpjax.relevance(f)(tokens)


class Repeated(nn.Module):
    """Three blocks, their parameters stacked: as a scan over layers, rematerialised, or not."""

    lift: str

    @nn.compact
    def __call__(self, x):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _=None):
                return x + nn.relu(nn.Dense(4, name="dense")(x)), None

        block = nn.remat(Layer) if "remat" in self.lift else Layer
        if "scan" in self.lift:
            block = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            return block(name="layers")(x)[0]
        for i in range(3):
            x, _ = block(name=f"layer_{i}")(x)
        return x


@pytest.mark.parametrize("lift", ["scan", "remat", "scan and remat"])
@pytest.mark.parametrize("name", ["default", "epsilon_alpha2_beta1", "excitation_backprop"])
def test_lifted_transforms(lift, name):
    x = normal(2, 4)
    stacked = Repeated("scan").init(KEY, x)
    single = {
        "params": {
            f"layer_{i}": jax.tree.map(lambda v, i=i: v[i], stacked["params"]["layers"]) for i in range(3)
        }
    }
    variables = stacked if "scan" in lift else single
    found = lrpjax.relevance(lambda x: Repeated(lift).apply(variables, x), COMPOSITES[name], target=0)(x)
    close(
        found, lrpjax.relevance(lambda x: Repeated("plain").apply(single, x), COMPOSITES[name], target=0)(x)
    )


def test_dropout_and_batch_norm_in_inference_mode_are_no_obstacle():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x))
            return nn.Dense(2)(nn.Dropout(0.5, deterministic=True)(nn.relu(x)))

    f, x = of(Net(), 3, 5)
    assert [u.kind for u in lrpjax.plan(f, None, x)] == ["dense", "activation", "dense"]
    assert [u.path for u in lrpjax.plan(f, None, x)] == ["Net/Dense_0", "Net", "Net/Dense_1"]


@pytest.mark.parametrize(
    "composite", [None, composites.epsilon_plus_flat(), composites.epsilon_gamma_box(-4.0, 4.0)], ids=str
)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_models_in_mixed_precision(dtype, composite):
    """Parameters and input in float32, computation in another precision: the relevance is that of float32, up to its rounding."""

    class Net(nn.Module):
        dtype: jnp.dtype

        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 3), dtype=self.dtype)(x))
            x = nn.Conv(4, (3, 3), use_bias=False, dtype=self.dtype)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True, dtype=self.dtype)(x))
            x = nn.LayerNorm(dtype=self.dtype)(x.mean((1, 2)))
            return nn.Dense(3, dtype=self.dtype)(nn.gelu(x)).astype(jnp.float32)

    _, x = of(Net(jnp.float32), 2, 6, 6, 2)
    variables = Net(jnp.float32).init(KEY, x)
    explain = lambda dtype: lrpjax.relevance(
        lenient(lambda x: Net(dtype).apply(variables, x)), composite, target=1
    )(x)
    found, wanted = explain(dtype), explain(jnp.float32)
    assert found.dtype == jnp.float32
    tolerance = {jnp.bfloat16: 0.05, jnp.float16: 0.005, jnp.float64: 1e-5}[dtype]
    assert abs(found - wanted).sum() < tolerance * abs(wanted).sum()

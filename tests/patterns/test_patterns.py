"""Patterns against iNNvestigate's stored ones, against slow loops, and against what they are supposed to find."""

import functools
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import golden
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lrpjax
from lrpjax import composites, estimators, patterns
from lrpjax.errors import PathError, PatternError, UnsupportedError
from lrpjax.patterns import fitting
from lrpjax.patterns.network import Network

close = functools.partial(helpers.close, tolerance=1e-7, relative=0.0, of_largest=True)

RNG = np.random.default_rng(0)


def batches_of(x, size=16):
    return [x[i : i + size] for i in range(0, len(x), size)]


def random(*shape):
    return RNG.normal(size=shape)


def conv(x, w, stride=1, padding="SAME", dilation=1, groups=1, layout=("NHWC", "HWIO", "NHWC")):
    n = x.ndim - 2
    return jax.lax.conv_general_dilated(
        x,
        w,
        (stride,) * n,
        padding,
        rhs_dilation=(dilation,) * n,
        dimension_numbers=layout,
        feature_group_count=groups,
    )


# ------------------------------------------------------------------------------------------------------------------------ iNNvestigate


@pytest.fixture(scope="module")
def stored():
    return golden.load("innvestigate_cnn.npz")


@pytest.fixture(scope="module", params=["relu", "linear"])
def fitted(request, stored):
    return patterns.fit(stored.f, batches_of(stored["x_train"], 64), kind=request.param)


def test_patterns_equal_those_of_innvestigate(stored, fitted):
    assert list(fitted) == ["conv1", "conv2", "fc1", "fc2"]
    for name in fitted:
        want = stored[f"pattern/{fitted.kind}/{name}"]
        assert fitted[name].shape == want.shape
        close(fitted[name], want)


@pytest.mark.parametrize("method", ["net", "attribution"])
def test_attributions_equal_those_of_innvestigate(stored, fitted, method):
    (analysis,) = (a for a in stored.analyses if a["id"] == f"inn1_pattern.{method}_{fitted.kind}")
    composite = getattr(composites, f"pattern_{method}")(fitted)
    explain = lrpjax.relevance(stored.f, composite, target=jnp.asarray(stored[analysis["seed"]]))
    close(jax.jit(explain)(stored.x), stored[analysis["relevance"]])


def test_a_class_as_target_begins_with_its_logit(stored, fitted):
    composite = composites.pattern_attribution(fitted)
    by_class = lrpjax.relevance(stored.f, composite, target=1)(stored.x)
    y = stored.f(stored.x)
    seed = jnp.zeros_like(y).at[:, 1].set(y[:, 1])
    np.testing.assert_allclose(
        by_class, lrpjax.relevance(stored.f, composite, target=seed)(stored.x), rtol=1e-12
    )


# --------------------------------------------------------------------------------------------------------------------------- slow loops

W, G = random, 1.0 + np.abs(random(4))
LAYERS = {  # linear layer (x, w) -> out, example shape, kernel shape, (output axis, kernel axis) of the neurons
    "dense": (lambda x, w: x @ w, (5,), (5, 4), [(1, 1)]),
    "kernel_left": (lambda x, w: (w @ x.T).T, (5,), (4, 5), [(1, 0)]),
    "heads": (lambda x, w: jnp.einsum("btd,dhk->bthk", x, w), (3, 4), (4, 2, 3), [(2, 1), (3, 2)]),
    "per_head": (lambda x, w: jnp.einsum("bthd,hdk->bthk", x, w), (2, 3, 4), (3, 4, 2), [(2, 0), (3, 2)]),
    "strided": (lambda x, w: conv(x, w, 2), (5, 4, 3), (3, 2, 3, 4), [(3, 3)]),
    "dilated_groups_nchw": (
        lambda x, w: conv(x, w, 1, "VALID", 2, 2, ("NCHW", "OIHW", "NCHW")),
        (4, 6, 5),
        (4, 2, 2, 2),
        [(1, 0)],
    ),
    "depthwise": (lambda x, w: conv(x, w, groups=3), (3, 3, 3), (2, 2, 1, 6), [(3, 3)]),
    "one_dimension": (lambda x, w: conv(x, w, layout=("NWC", "WIO", "NWC")), (6, 2), (3, 2, 4), [(2, 2)]),
    "three_dimensions": (
        lambda x, w: conv(x, w, layout=("NDHWC", "DHWIO", "NDHWC")),
        (2, 3, 2, 2),
        (2, 2, 2, 2, 3),
        [(4, 4)],
    ),
    "transposed": (
        lambda x, w: jax.lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
        (3, 3, 2),
        (3, 3, 2, 4),
        [(3, 3)],
    ),
}


def slow_patterns(layer, x, w, bias, axes, kind):
    """One sample after the other: the layer's Jacobian with respect to its kernel holds what each output sees of x."""
    out = np.asarray(layer(x, w))
    seen = np.asarray(jax.jacobian(lambda w: layer(x, w))(w))
    sums = {}
    for e in np.ndindex(out.shape):
        neuron = tuple(e[o] for o, _ in axes)
        at = [slice(None)] * w.ndim
        for o, k in axes:
            at[k] = e[o]
        patch = seen[e][tuple(at)]
        count, mean_y, active, of_x, of_xy = sums.get(neuron, (0, 0.0, 0, 0.0, 0.0))
        z = out[e] + bias[neuron[-1]]
        counts = {"relu": z > 0, "relu.negative": z <= 0, "linear": True}[kind]
        if counts:
            active, of_x, of_xy = active + 1, of_x + patch, of_xy + patch * out[e]
        sums[neuron] = count + 1, mean_y + out[e], active, of_x, of_xy
    pattern = np.zeros_like(w)
    for neuron, (count, total, active, of_x, of_xy) in sums.items():
        at = [slice(None)] * w.ndim
        for i, (_, k) in enumerate(axes):
            at[k] = neuron[i]
        if active:
            covariance = of_xy / active - of_x / active * total / count
            pattern[tuple(at)] = covariance / (w[tuple(at)] * covariance).sum()
    return pattern


@pytest.mark.parametrize("name", LAYERS)
def test_patterns_of_a_layer_equal_slow_loops(name):
    layer, shape, kernel, axes = LAYERS[name]
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(11, *shape)), rng.normal(size=kernel)
    bias = rng.normal(size=kernel[axes[-1][1]])
    broadcast = bias.reshape(-1, *[1] * (layer(x, w).ndim - 1 - axes[-1][0]))

    def f(x):
        return jax.nn.relu(layer(x, w) + broadcast)

    kinds = ("relu", "relu.negative", "linear")
    for kind, got in zip(kinds, patterns.fit(f, batches_of(x, 4), kinds), strict=True):
        ((_, pattern),) = got.items()
        np.testing.assert_allclose(
            pattern, slow_patterns(layer, x, w, bias, axes, kind), rtol=1e-9, atol=1e-11
        )


def test_a_batch_norm_is_folded_into_the_kernel():
    x, w, scale, shift = random(40, 4), random(4, 3), random(3), random(3)
    folded = patterns.fit(lambda x: jax.nn.relu((x @ w - 0.3) * scale + shift), batches_of(x))
    want = patterns.fit(lambda x: jax.nn.relu(x @ (w * scale) + (shift - 0.3 * scale)), batches_of(x))
    np.testing.assert_allclose(folded["dense"], want["dense"], rtol=1e-10)


def test_a_bias_that_differs_from_place_to_place_is_no_part_of_y():
    x, w, places = random(20, 3, 4), random(4, 2), 3 * random(3, 1)
    got = patterns.fit(lambda x: jax.nn.relu(x @ w + places), batches_of(x, 8))["dense"]
    y, mask = x @ w, (x @ w + places > 0).astype(float)
    mean = lambda a, j: (a * mask[..., j, None]).sum((0, 1)) / mask[..., j].sum()
    for j in range(2):
        covariance = mean(x * y[..., j, None], j) - mean(x, j) * y[..., j].mean()
        np.testing.assert_allclose(got[:, j], covariance / (w[:, j] @ covariance), rtol=1e-9)


def test_the_mask_is_taken_behind_the_activation():
    x, w = random(40, 4), random(4, 3)
    of = lambda activation, kind: patterns.fit(lambda x: activation(x @ w), batches_of(x), kind)["dense"]
    np.testing.assert_allclose(of(jax.nn.sigmoid, "relu"), of(lambda y: y, "linear"), rtol=1e-10)
    np.testing.assert_allclose(of(jnp.tanh, "relu"), of(jax.nn.relu, "relu"), rtol=1e-10)


def test_a_neuron_that_was_never_active_has_the_pattern_zero():
    x, w = random(20, 4), random(4, 3)
    fitted = patterns.fit(lambda x: jax.nn.relu(x @ w - np.array([0.0, 100.0, 0.0])), [x])
    assert not np.any(fitted["dense"][:, 1])
    np.testing.assert_allclose((fitted["dense"] * w).sum(0), [1, 0, 1], atol=1e-12)


# ------------------------------------------------------------------------------------------------------------------------------ streaming

W1, W2 = random(3, 3, 2, 4), random(64, 3)
DATA = random(43, 4, 4, 2)


def network(x):
    with jax.named_scope("first"):
        h = jax.nn.relu(conv(x, jnp.asarray(W1, x.dtype)) + jnp.asarray(0.1, x.dtype))
    with jax.named_scope("second"):
        return h.reshape(len(x), -1) @ jnp.asarray(W2, x.dtype)


@pytest.fixture(scope="module")
def whole():
    return patterns.fit(network, [DATA])


def assert_same(a, b, rtol=1e-9):
    assert list(a) == list(b)
    for name in a:
        helpers.close(a[name], b[name], rtol)


@pytest.mark.parametrize("size", [10, 43, 60])
def test_the_batch_size_does_not_matter(whole, size):
    assert_same(patterns.fit(network, iter(batches_of(DATA, size))), whole)


def test_shards_merge_to_the_whole_in_any_order(whole):
    a, b, c = (patterns.collect(network, [part]) for part in (DATA[:5], DATA[5:30], DATA[30:]))
    assert_same(patterns.finish(patterns.merge(patterns.merge(a, b), c)), whole)
    assert_same(patterns.finish(patterns.merge(c, patterns.merge(b, a))), whole)
    assert patterns.merge(a, b).samples == 30


def test_moments_with_one_reference_merge_by_addition(whole):
    empty = patterns.start(network, DATA[:4])
    a, b = (patterns.collect(network, [part], moments=empty) for part in (DATA[:20], DATA[20:]))
    merged = patterns.merge(a, b)
    for p, q, both in zip(a.layers, b.layers, merged.layers, strict=True):
        np.testing.assert_array_equal(p.reference, q.reference)
        np.testing.assert_allclose(both.xy["relu"], p.xy["relu"] + q.xy["relu"], rtol=1e-12)
    assert_same(patterns.finish(merged), whole)


def test_the_function_is_traced_once_and_a_ragged_batch_compiles_nothing():
    traced, compiled = [], []

    def counted(x):
        traced.append(x.shape)
        return network(x)

    fitter = fitting._Fitter(counted, DATA[:10])
    step = fitter.step
    moments = fitter.start(DATA[:10], ("relu",))
    for leaves, valid in fitter.network.padded(batches_of(DATA, 10)):
        fitter.update(moments.layers, leaves, valid)
        compiled.append(step._cache_size())
    assert traced == [(1, 4, 4, 2)]
    assert compiled == [1] * 5


def test_large_offsets_do_not_spoil_single_precision():
    x = random(512, 6) + 100.0
    w = random(6, 4)
    f = lambda x: x @ jnp.asarray(w, x.dtype)
    exact = np.asarray(patterns.fit(f, batches_of(x, 64), "linear")["dense"])
    got = patterns.fit(f, batches_of(x.astype(np.float32), 64), "linear")["dense"]
    assert got.dtype == jnp.float32
    naive_xy = np.einsum("ni,nj->ij", x.astype(np.float32), (x @ w).astype(np.float32)) / np.float32(512)
    naive = naive_xy - np.outer(x.astype(np.float32).mean(0), (x @ w).astype(np.float32).mean(0))
    naive = naive / (w * naive).sum(0)
    error = np.abs(np.asarray(got, np.float64) - exact).max()
    assert error < 5e-4
    assert np.abs(naive - exact).max() > 20 * error


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_precision_of_the_statistics(whole, dtype):
    fitted = patterns.fit(network, batches_of(DATA.astype(jnp.dtype(dtype)), 20))
    for name in whole:
        assert fitted[name].dtype == jnp.float32
        close(fitted[name], whole[name], tolerance={"float32": 1e-4, "bfloat16": 0.2}[dtype])


def test_an_interrupted_pass_goes_on_behind_the_batches_it_has_read(whole, tmp_path):
    read = []

    def stream(until=99):
        for number, batch in enumerate(batches_of(DATA, 5)):
            if number == until:
                raise ConnectionError("gone")
            read.append(number)
            yield batch

    with pytest.raises(ConnectionError):
        patterns.fit(network, stream(5), checkpoint=tmp_path / "pass", every=2)
    assert patterns.load(tmp_path / "pass").batches == 4
    assert_same(patterns.fit(network, stream(), checkpoint=tmp_path / "pass", every=2), whole)
    done = patterns.load(tmp_path / "pass")
    assert (done.batches, done.samples) == (9, 43)
    assert_same(patterns.fit(network, stream(), checkpoint=tmp_path / "pass"), whole)
    with pytest.raises(PatternError, match="different weights"):
        patterns.fit(lambda x: network(x) * 2.0, stream(), checkpoint=tmp_path / "pass")
    with pytest.raises(PatternError, match=r"is of kind \('relu',\), but \('linear',\) is wanted"):
        patterns.fit(network, stream(), "linear", checkpoint=tmp_path / "pass")


def test_sharded_batches_are_combined_by_one_all_reduce():
    code = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from lrpjax import patterns
from lrpjax.patterns import fitting

w, v, data = (np.random.default_rng(i).normal(size=s) for i, s in enumerate([(6, 5), (5, 3), (16, 6)]))
f = lambda x: jax.nn.relu(x @ w) @ v
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
put = lambda spec: lambda a: jax.device_put(a, NamedSharding(mesh, spec))
x = put(PartitionSpec("data"))(data)
for name, a in patterns.fit(f, [x]).items():
    np.testing.assert_allclose(a, patterns.fit(f, [data])[name], rtol=1e-9)
fitter = fitting._Fitter(f, data)
layers = fitter.start(data, ("relu",)).layers
sums = [(s.count, s.y, s.x, s.xy) for s in layers]
args = jax.tree.map(put(PartitionSpec()), (list(fitter.network.consts), [s.reference for s in layers], sums))
text = fitter.step.lower(*args, [x], 16).compile().as_text()
print(text.count(" all-reduce("), text.count(" all-gather("))
"""
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_ENABLE_X64": "1",
        "PYTHONPATH": str(pathlib.Path(lrpjax.__file__).parent.parent),
    }
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "0"]


def test_the_progress_bar_says_what_it_counts(capsys):
    patterns.fit(network, batches_of(DATA, 10), progress=True)
    assert "fitting patterns" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------------------- save and load


def test_saved_patterns_come_back(whole, tmp_path):
    patterns.save(tmp_path, whole)
    loaded = patterns.load(tmp_path)
    assert (loaded.kind, loaded.names, loaded.marks) == (whole.kind, whole.names, whole.marks)
    for name in whole:
        np.testing.assert_array_equal(loaded[name], whole[name])
    composite = composites.pattern_net(loaded)
    R = lrpjax.relevance(network, composite, target=0)(DATA[:2])
    np.testing.assert_array_equal(
        R, lrpjax.relevance(network, composites.pattern_net(whole), target=0)(DATA[:2])
    )


def test_nothing_is_saved_of_statistics_with_nan(tmp_path):
    moments = patterns.collect(network, [DATA])
    layers = (jax.tree.map(lambda a: a * jnp.nan, moments.layers[0]), *moments.layers[1:])
    broken = patterns.Moments(layers, 1, 43, moments.names, moments.kinds, moments.marks)
    with pytest.raises(PatternError, match="'first' hold NaN"):
        patterns.save(tmp_path / "new", broken)
    assert not (tmp_path / "new").exists()


def test_an_empty_folder_holds_no_patterns(tmp_path):
    with pytest.raises(PatternError, match="holds no saved patterns"):
        patterns.load(tmp_path)
    with pytest.raises(PatternError, match="holds no saved patterns"):
        patterns.load(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (
            lambda x: network(x) @ jnp.ones((3, 2)),
            "belong to another model: they were fitted to first, second; this model has first, second, dense",
        ),
        (lambda x: network(x * 2.0) - network(x), "this model has first, second, first#2, second#2"),
        (lambda x: network(jnp.concatenate([x, x], 1)[:, 2:6]) * 3.0, "'second' was fitted to other weights"),
    ],
)
def test_patterns_of_another_model_are_refused(whole, model, match):
    with pytest.raises(PatternError, match=match):
        lrpjax.relevance(model, composites.pattern_net(whole))(DATA[:2])


def test_patterns_of_another_shape_are_refused(whole):
    def wider(x):
        with jax.named_scope("first"):
            h = conv(x, jnp.concatenate([W1, W1], -1))
        with jax.named_scope("second"):
            return h.reshape(len(x), -1) @ jnp.ones((128, 3))

    with pytest.raises(
        PatternError,
        match=r"layer 'first' has shape \(3, 3, 2, 4\), but the layer's kernel has shape \(3, 3, 2, 8\)",
    ):
        lrpjax.relevance(wider, composites.pattern_net(whole))(DATA[:2])


# ---------------------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("batches", "match"),
    [
        ([], "no batches"),
        (
            [DATA[:4], DATA[:3], DATA[:4]],
            "batch 2 has 3 examples, others have 4: only the last may be shorter",
        ),
        ([DATA[:4], DATA[:5]], "batch 2 has 5 examples"),
        ([DATA[:4], DATA[:0]], "batch 2 has no examples"),
        ([DATA[:0]], "batch 1 has no examples"),
        (
            [DATA[:4], DATA[:4, :3]],
            r"batch 2 holds examples of float64\[3, 4, 2\], but the first one holds float64\[4, 4, 2\]",
        ),
        ([DATA[:4], DATA[:4].astype("float32")], r"batch 2 holds examples of float32"),
        (
            [DATA[:4], np.where(DATA[:4] > 2, np.nan, DATA[:4])],
            "'first', 'second' hold NaN or infinity after 8 examples",
        ),
        ([3.0], "examples along the first axis"),
    ],
)
def test_bad_streams(batches, match, tmp_path):
    with pytest.raises(PatternError, match=match):
        patterns.fit(network, batches, checkpoint=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_layer_that_is_never_active_is_an_error():
    with pytest.raises(
        PatternError,
        match=r"'dense#2' was never active, or never varied, in 8 examples: its pattern of kind 'relu' is 0/0",
    ):
        dead = lambda x: jax.nn.relu(jax.nn.relu(x @ np.eye(3)) @ -np.ones((3, 2)))
        patterns.fit(dead, [np.abs(random(8, 3))])
    with pytest.raises(PatternError, match="layer 'dense' was never inactive"):
        patterns.fit(lambda x: jax.nn.sigmoid(x @ np.eye(3)), [random(8, 3)], "relu.negative")
    with pytest.raises(PatternError, match="layer 'dense' never varied, in 8 examples"):
        patterns.fit(lambda x: x @ np.ones((3, 2)), [np.full((8, 3), 0.1)], "linear")


def test_a_neuron_whose_output_never_varies_has_the_pattern_zero():
    x = np.abs(random(30, 3))
    x = x / x.sum(1, keepdims=True)
    fitted = patterns.fit(lambda x: x @ np.array([[0.3, 1.0], [0.3, -1.0], [0.3, 0.0]]), [x], "linear")
    assert not np.any(fitted["dense"][:, 0])  # and not the quotient of two rounding errors
    assert np.all(fitted["dense"][:, 1])


def test_what_cannot_be_fitted_is_refused():
    stacked = jnp.asarray(random(3, 4, 4))
    loop = lambda x: jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, stacked)[0]
    branch = lambda x: jax.lax.cond(x.sum() > 0, lambda x: x @ stacked[0], lambda x: x @ stacked[1], x)
    for f, match in (
        (loop, "another kernel in every step: unroll"),
        (branch, "cond at .* holds weighted layers"),
    ):
        with pytest.raises(UnsupportedError, match=match):
            patterns.fit(f, [random(5, 4)])
    with pytest.raises(PatternError, match="no dense layer or convolution"):
        patterns.fit(jnp.tanh, [random(5, 4)])
    with pytest.raises(
        PatternError, match=r"kind must be one of relu, linear, relu\.negative, but is 'positive'"
    ):
        patterns.fit(network, [DATA], kind="positive")


def test_paths_that_name_no_layer(whole):
    with pytest.raises(
        PathError, match="'third' is no layer that patterns were fitted to; there are first, second"
    ):
        whole["third"]
    with pytest.raises(PathError, match=r"'\*' names several layers"):
        whole["*"]


def test_only_what_belongs_together_is_merged():
    a = patterns.collect(network, [DATA])
    with pytest.raises(PatternError, match=r"kinds .* cannot be merged"):
        patterns.merge(a, patterns.collect(network, [DATA], "linear"))
    with pytest.raises(PatternError, match="different weights, in 'second'"):
        patterns.merge(a, patterns.collect(lambda x: network(x) * 2.0, [DATA]))
    with pytest.raises(PatternError, match="different models"):
        patterns.merge(a, patterns.collect(lambda x: x.reshape(len(x), -1) @ W2[:32], [DATA]))


# ----------------------------------------------------------------------------------------------------------------------------- any model


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(6, name="shared", param_dtype=x.dtype)
        return nn.Dense(2, name="head", param_dtype=x.dtype)(nn.relu(shared(nn.relu(shared(x)))))


class Nnx(nnx.Module):
    def __init__(self, kernels, biases):
        self.shared = nnx.Linear(6, 6, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(6, 2, rngs=nnx.Rngs(0))
        for layer, k, b in zip((self.shared, self.head), kernels, biases, strict=True):
            layer.kernel, layer.bias = nnx.Param(k), nnx.Param(b)

    def __call__(self, x):
        return self.head(nnx.relu(self.shared(nnx.relu(self.shared(x)))))


def test_linen_nnx_and_bare_functions_get_the_same_patterns():
    x = random(30, 6)
    linen = Linen()
    variables = linen.init(jax.random.key(0), x)
    p = variables["params"]
    kernels, biases = zip(*((p[n]["kernel"], p[n]["bias"] + 0.1) for n in ("shared", "head")), strict=True)
    variables = {
        "params": {
            n: {"kernel": k, "bias": b} for n, k, b in zip(("shared", "head"), kernels, biases, strict=True)
        }
    }

    def bare(x):
        for _ in range(2):
            x = jax.nn.relu(x @ kernels[0] + biases[0])
        return x @ kernels[1] + biases[1]

    nnx_model = Nnx(kernels, biases)
    fitted = [
        patterns.fit(f, batches_of(x))
        for f in (lambda x: linen.apply(variables, x), lambda x: nnx_model(x), bare)
    ]
    assert list(fitted[0]) == ["Linen/shared", "Linen/shared#2", "Linen/head"]
    assert list(fitted[1]) == ["shared", "shared#2", "head"]
    assert list(fitted[2]) == ["dense", "dense#2", "dense#3"]
    for names in zip(*fitted, strict=True):
        a, b, c = (f[n] for f, n in zip(fitted, names, strict=True))
        np.testing.assert_allclose(a, b, rtol=1e-9)
        np.testing.assert_allclose(a, c, rtol=1e-9)
    np.testing.assert_array_equal(fitted[0]["shared#2"], fitted[0]["Linen/shared#2"])
    R = [
        lrpjax.relevance(f, composites.pattern_attribution(p), target="max")(x)
        for f, p in zip((lambda x: linen.apply(variables, x), bare), fitted[::2], strict=True)
    ]
    np.testing.assert_allclose(R[0], R[1], rtol=1e-8, atol=1e-12)


def test_a_kernel_that_a_loop_shares_is_fitted_over_all_steps():
    w, x = random(4, 4) / 2, random(20, 4)
    looped = lambda x: jax.lax.scan(lambda h, _: (jax.nn.relu(h @ w + 0.1), None), x, length=3)[0]
    got = patterns.fit(looped, batches_of(x, 8))["dense"]
    states = [x]
    for _ in range(2):
        states.append(np.maximum(states[-1] @ w + 0.1, 0))
    want = patterns.fit(lambda x: jax.nn.relu(x @ w + 0.1), [np.concatenate(states)])["dense"]
    np.testing.assert_allclose(got, want, rtol=1e-9)
    R = lrpjax.relevance(looped, composites.pattern_net(patterns.fit(looped, [x])))(x)
    assert R.shape == x.shape
    assert np.isfinite(R).all()


def test_rematerialised_layers_are_found(whole):
    assert_same(patterns.fit(jax.checkpoint(network), [DATA]), whole)


def test_pytrees_of_inputs():
    v, w = random(4, 2), random(3, 2)
    f = lambda batch: jax.nn.relu(batch["a"] @ v) + jax.nn.relu(batch["b"] @ w)
    a, b = random(20, 4), random(20, 3)
    fitted = patterns.fit(f, [{"a": a[:12], "b": b[:12]}, {"a": a[12:], "b": b[12:]}])
    np.testing.assert_allclose(
        fitted["dense"], patterns.fit(lambda x: jax.nn.relu(x @ v), [a])["dense"], rtol=1e-9
    )
    np.testing.assert_allclose(
        fitted["dense#2"], patterns.fit(lambda x: jax.nn.relu(x @ w), [b])["dense"], rtol=1e-9
    )


def test_pattern_net_and_attribution_by_hand():
    w1, w2, a1, a2, x = random(4, 3), random(3, 2), random(4, 3), random(3, 2), random(5, 4)
    f = lambda x: jax.nn.relu(x @ w1) @ w2
    given = patterns.Patterns((jnp.asarray(a1), jnp.asarray(a2)), ("dense", "dense#2"), "relu", ((), ()))
    h = x @ w1
    seed = np.maximum(h, 0) @ w2
    explain = lambda composite: lrpjax.relevance(f, composite)(x)
    np.testing.assert_allclose(
        explain(composites.pattern_net(given)), (seed @ a2.T * (h > 0)) @ a1.T, rtol=1e-10
    )
    np.testing.assert_allclose(
        explain(composites.pattern_attribution(given)),
        (seed @ (a2 * w2).T * (h > 0)) @ (a1 * w1).T,
        rtol=1e-10,
    )
    assert [u.rule for u in lrpjax.plan(f, composites.pattern_net(given), x) if u.kind == "dense"] == [
        "PatternNet"
    ] * 2


@pytest.mark.parametrize(
    "name", ["dense", "kernel_left", "heads", "per_head", "strided", "dilated_groups_nchw", "depthwise"]
)
def test_samples_written_out_give_the_layers_output(name):
    """Rows of inputs times rows of kernels are rows of outputs, for every layout."""
    layer, shape, kernel, _ = LAYERS[name]
    x, w = jnp.asarray(random(1, *shape)), random(*kernel)
    network = Network(lambda x: layer(x, w), x)
    (site,) = network.sites
    seen = network.observe([site.x, site.core.out], network.consts, [x[0]])
    rows, kernels = estimators._input_rows(site, seen[site.x]), estimators._kernel_rows(site, jnp.asarray(w))
    want = estimators._output_rows(site, seen[site.core.out])
    np.testing.assert_allclose(jnp.einsum("sgi,goi->sgo", rows, kernels), want, rtol=1e-10, atol=1e-12)

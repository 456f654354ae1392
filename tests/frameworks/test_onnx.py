"""Explainers as ONNX models: onnxruntime computes what JAX does, to float32's rounding, for any number of rows."""

import importlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

import lrpjax
from lrpjax import composites
from lrpjax.core import compat
from lrpjax.core.primitives import CALLS

runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("jax2onnx")
from lrpjax import onnx  # noqa: E402

# What these packages warn of themselves when they are imported, or of each other, is not lrpjax's.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def single():
    """In float32, as users run it."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(8)(x)))


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x)))
        return nn.Dense(3)(x.mean((1, 2)))


class Strided(nn.Module):
    """Steps of convolutions and pools that overlap, or leave something over, and groups of channels."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(4, (3, 3), feature_group_count=2, kernel_dilation=2)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        x = nn.avg_pool(x, (2, 2), (1, 1))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
            x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))
        return nn.Dense(3)(nn.LayerNorm()(x).mean(1))


class Scanned(nn.Module):
    """A loop over the layers, whose body has bodies of its own."""

    @nn.compact
    def __call__(self, x):
        kernels = self.param("kernels", nn.initializers.lecun_normal(), (3, 4, 4))
        step = jax.checkpoint(lambda x, kernel: (nn.relu(x @ kernel), None))
        return lax.scan(step, nn.Dense(4)(x), kernels)[0]


def network(module, *shape):
    def perturbed(leaf):
        return leaf + 0.1 * jnp.asarray(np.random.default_rng(leaf.size).normal(size=leaf.shape), jnp.float32)

    params = jax.tree.map(perturbed, module.init(jax.random.key(0), jnp.zeros((1, *shape))))
    return lambda x: module.apply(params, x)


def rows(*shape, count="b", dtype=jnp.float32):
    return jax.ShapeDtypeStruct(export.symbolic_shape(f"{count}, {', '.join(map(str, shape))}"), dtype)


def run(model, *arrays):
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {i.name: a for i, a in zip(session.get_inputs(), arrays, strict=True)})


def same(results, expected, tolerance=1e-5):
    for result, wanted in zip(results, jax.tree.leaves(expected), strict=True):
        assert result.dtype == wanted.dtype and result.shape == wanted.shape
        assert np.abs(result - wanted).max() <= tolerance * np.abs(wanted).max()


EXPLAINED = {
    "mlp, epsilon": (MLP(), (6,), composites.epsilon()),
    "mlp, epsilon_plus": (MLP(), (6,), composites.epsilon_plus()),
    "cnn, epsilon": (CNN(), (8, 8, 2), composites.epsilon()),
    "cnn, epsilon_plus": (CNN(), (8, 8, 2), composites.epsilon_plus()),
    "cnn, alpha_beta": (CNN(), (8, 8, 2), composites.epsilon_alpha2_beta1_flat()),
    "cnn, gamma": (CNN(), (8, 8, 2), composites.epsilon_gamma_box(-3.0, 3.0)),
    "cnn, gradient": (CNN(), (8, 8, 2), composites.gradient()),
    "strided, epsilon": (Strided(), (15, 15, 2), composites.epsilon()),
    "strided, epsilon_plus": (Strided(), (15, 15, 2), composites.epsilon_plus()),
    "transformer, attnlrp": (Transformer(), (5, 6), composites.attnlrp()),
    "transformer, gamma": (Transformer(), (5, 6), composites.attnlrp(gamma=0.25)),
    "scanned, epsilon_plus": (Scanned(), (4,), composites.epsilon_plus()),
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_onnxruntime_computes_what_jax_does_for_any_number_of_rows(name):
    module, shape, composite = EXPLAINED[name]
    explain = jax.jit(lrpjax.value_and_relevance(network(module, *shape), composite, target="max"))
    model = onnx.to_onnx(explain, rows(*shape))
    for count in (1, 4, 7):
        x = RNG.normal(size=(count, *shape)).astype(np.float32)
        same(run(model, x), explain(x))


def test_arguments_of_any_structure_and_dtype_and_options_of_jax2onnx(tmp_path):
    f = network(MLP(), 6)

    def explain(given, scale):
        R = lrpjax.relevance(f, target=given["classes"])(given["x"])
        return {"relevance": scale * R, "sums": (R.sum(1), given["classes"] + 1)}

    given = {"classes": np.array([2, 0], np.int32), "x": RNG.normal(size=(2, 6)).astype(np.float32)}
    path = tmp_path / "explain.onnx"
    names = {"input_names": ["classes", "x", "scale"], "output_names": ["relevance", "sum", "class"]}
    said = onnx.to_onnx(explain, given, jnp.float32(2), return_mode="file", output_path=path, **names)
    assert str(said) == str(path)
    session = runtime.InferenceSession(path)
    results = session.run(["class", "relevance", "sum"], {**given, "scale": np.array(2, np.float32)})
    expected = explain(given, jnp.float32(2))
    same(results, [expected["sums"][1], expected["relevance"], expected["sums"][0]])


def test_double_precision_and_what_is_float64_in_passing():
    f32 = network(Transformer(), 5, 6)
    with jax.enable_x64(True):
        x = RNG.normal(size=(3, 5, 6)).astype(np.float32)
        explain = lrpjax.relevance(f32, composites.attnlrp())
        same(run(onnx.to_onnx(explain, x), x), [explain(x)], 1e-4)
        W = RNG.normal(size=(6, 3))
        explain = lrpjax.relevance(lambda x: jax.nn.relu(x @ W))
        x = RNG.normal(size=(2, 6))
        same(run(onnx.to_onnx(explain, x), x), [explain(x)], 1e-12)
        single = lambda x: x @ W
        with pytest.raises(lrpjax.UnsupportedError, match="explain gives float64 for float32, and"):
            onnx.to_onnx(single, x.astype(np.float32))


def test_what_is_converted_is_not_what_jax2onnx_has_exchanged():
    """The functions of JAX that jax2onnx exchanges while it traces have no rules in lrpjax."""
    import jax2onnx

    f = network(MLP(), 6)
    with pytest.raises(lrpjax.UnsupportedError, match="no rule is known"):
        jax2onnx.to_onnx(lrpjax.relevance(f), [(2, 6)])
    x = np.ones((2, 6), np.float32)
    same(run(onnx.to_onnx(lrpjax.relevance(f), x), x), [lrpjax.relevance(f)(x)])


def test_what_cannot_be_converted_is_named_with_its_line():
    def explain(x):
        return jnp.linalg.eigh(x)[0]

    with pytest.raises(
        lrpjax.UnsupportedError, match=r"cannot convert eigh at .*test_onnx.py:\d+ \(.*explain\): "
    ):
        onnx.to_onnx(explain, np.eye(3, dtype=np.float32))
    f = lambda x: lax.cond(x.sum() > 0, lambda x: jnp.linalg.eigh(x)[0], lambda x: x[0], x)
    with pytest.raises(lrpjax.UnsupportedError, match="cannot convert eigh"):
        onnx.to_onnx(f, np.eye(3, dtype=np.float32))


def test_errors_of_explain_itself_and_of_options_stay_as_they_are():
    with pytest.raises(lrpjax.TargetError, match="target 7 is out of range"):
        onnx.to_onnx(lrpjax.relevance(network(MLP(), 6), target=7), np.ones((2, 6), np.float32))
    with pytest.raises(ValueError, match="input_names length"):
        onnx.to_onnx(lambda x: x + 1, np.ones(2, np.float32), input_names=["a", "b"])


def test_a_model_that_computes_something_else_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(onnx._WRITINGS, "reshape", lambda eqn: None)
    f = lambda x: lax.reshape(x, (3, 2), dimensions=(1, 0))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for given, options in [((x,), {}), ((jax.ShapeDtypeStruct(x.shape, x.dtype),), {"check": (x,)})]:
        with pytest.raises(
            onnx.OnnxError, match="differs from that of JAX by 2, where the largest value is 5"
        ):
            onnx.to_onnx(f, *given, **options)
    file = tmp_path / "wrong.onnx"
    with pytest.raises(onnx.OnnxError):
        onnx.to_onnx(f, x, return_mode="file", output_path=str(file))
    assert not file.exists()
    monkeypatch.undo()
    same(run(onnx.to_onnx(f, x, return_mode="proto"), x), [f(x)])
    onnx.to_onnx(f, x, return_mode="ir")
    assert onnx.to_onnx(lambda x: jnp.where(x > 0, jnp.nan, x), x) is not None


def test_a_missing_jax2onnx_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ImportError, match=r'needs jax2onnx and onnxruntime: pip install "lrpjax\[onnx\]"'):
        importlib.reload(onnx)


# ------------------------------------------------------------------------------------ what is exchanged, in JAX


@pytest.mark.parametrize(
    "config", [((1, 2, 0), (0, 0, 3)), ((-1, 2, 1), (3, -2, 2)), ((0, 0, 0), (-1, -1, 0))]
)
def test_paddings(config):
    x = RNG.normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_array_equal(onnx.padded(x, np.float32(7), config), lax.pad(x, np.float32(7), config))


def pooled(x, combine, start, **options):
    return lax.reduce_window(x, start, combine, (1, 3, 2), (1, 2, 1), **options)


FUNCTIONS = {
    "maxima": lambda x: pooled(x, lax.max, -jnp.inf, padding="SAME"),
    "sums": lambda x: pooled(x, lax.add, 0.0, padding=((0, 0), (1, 2), (0, 1)), base_dilation=(1, 2, 3)),
    "integers": lambda x: pooled(
        x.astype(jnp.int32), lax.max, jnp.iinfo(jnp.int32).min, padding="SAME", window_dilation=(1, 2, 1)
    ),
    "layouts": lambda x: lax.conv_general_dilated(
        x, x[:, :, :3], (1,), [(1, 1)], lhs_dilation=(2,), dimension_numbers=("NHC", "OIH", "HNC")
    ),
    "branches": lambda x: lax.cond(
        x.sum() > 0, lambda x: lax.pad(x, 0.0, [(0, 0, 1)] * 3), lambda x: jnp.zeros((3, 9, 9)), x
    ),
    "custom": lambda x: lrpjax.custom_relevance(
        lambda x: lax.pad(x, 0.0, [(0, 0, 1)] * 3), rule=lrpjax.rules.Pass()
    )(x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_program_rewritten_computes_the_same(name):
    x = RNG.normal(size=(2, 5, 5)).astype(np.float32)
    f = FUNCTIONS[name]
    closed = compat.rewritten(jax.make_jaxpr(f)(x), CALLS, onnx._exchange)
    text = str(closed)
    assert "reduce_window" not in text and "custom_relevance" not in text and " pad[" not in text
    np.testing.assert_allclose(compat.jaxpr_as_fun(closed)(x)[0], f(x), rtol=1e-6)

"""Keras models, explained as they are: against Keras's own forward values, `jax.grad`, and the same networks written in
JAX with the same weights."""

import os
import sys
import types

import pytest

os.environ["KERAS_BACKEND"] = "jax"
pytest.importorskip("keras")

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax
from keras import layers

import lrpjax
from lrpjax.core import compat
from lrpjax.keras import explain, function

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True, scope="module")
def names():
    """Names of layers without the numbers of what other files made, and the same first weights in every run."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)


def close(actual, expected):
    """Keras computes in float32 on JAX, float64 or not: to its rounding."""
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def randomised(model):
    """Biases, scales and moving statistics that are not 0 or 1."""
    for variable in model.weights:
        size = tuple(variable.shape)
        positive = "variance" in variable.path
        variable.assign(RNG.uniform(0.5, 1.5, size) if positive else RNG.normal(size=size))
    return model


def convolutional():
    inner = keras.Sequential(
        [layers.GlobalAveragePooling2D(name="average"), layers.Dense(3, name="logits")], name="head"
    )
    x = image = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, name="stem")(x)
    x = layers.BatchNormalization(name="bn", epsilon=0.1)(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.Dropout(0.5, name="dropout")(x)
    return randomised(keras.Model(image, inner(x), name="net"))


def convolutional_by_hand(params, x):
    x = lax.conv_general_dilated(
        x, params["stem/kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = x + params["stem/bias"]
    x = (x - params["bn/moving_mean"]) / jnp.sqrt(params["bn/moving_variance"] + 0.1)
    x = jax.nn.relu(x * params["bn/gamma"] + params["bn/beta"])
    return x.mean((1, 2)) @ params["head/logits/kernel"] + params["head/logits/bias"]


def paths(f, params, *inputs, argnums=1):
    return [unit.path for unit in lrpjax.plan(f, None, params, *inputs, argnums=argnums)]


# ------------------------------------------------------------------------------------------------ the function


def test_the_function_is_the_model_and_its_weights_are_the_models_own_arrays():
    model = convolutional()
    f, params = function(model)
    x = normal(2, 6, 6, 2)
    np.testing.assert_array_equal(f(params, x), model(x))
    assert list(params) == [variable.path for variable in model.weights]
    for variable in model.weights:
        assert params[variable.path].unsafe_buffer_pointer() == variable.value.unsafe_buffer_pointer()


def test_it_is_pure_and_takes_other_weights():
    model = convolutional()
    f, params = function(model)
    x = normal(2, 6, 6, 2)
    before = [np.asarray(v.value) for v in model.variables]
    other = jax.tree.map(lambda a: a + 0.5, params)
    close(jax.jit(f)(other, x), convolutional_by_hand(other, x))
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.value, value)
    gradient = jax.grad(lambda params: f(params, x).sum())(params)
    expected = jax.grad(lambda params: convolutional_by_hand(params, x).sum())(params)
    jax.tree.map(close, gradient, expected)


@pytest.mark.parametrize(
    "composite",
    [
        lrpjax.composites.epsilon(),
        lrpjax.composites.epsilon_alpha2_beta1_flat(),
        lrpjax.composites.gradient(),
    ],
    ids=lambda c: c.preset,
)
def test_relevances_are_those_of_the_same_network_in_jax(composite):
    f, params = function(convolutional())
    x = normal(2, 6, 6, 2)
    explain_both = [
        jax.jit(lrpjax.relevance(g, composite, target="max", argnums=1)) for g in (f, convolutional_by_hand)
    ]
    R, expected = (explain(params, x) for explain in explain_both)
    close(R, expected)


def test_input_times_gradient_is_that_of_jax():
    model = convolutional()
    f, params = function(model)
    x = normal(2, 6, 6, 2)
    explained = lrpjax.relevance(
        f, lrpjax.composites.input_x_gradient(), argnums=1, target=jnp.ones((2, 3), "float32")
    )
    gradient = jax.grad(lambda x: model(x).sum())(x)
    close(explained(params, x), x * gradient)


def test_epsilon_conserves_without_biases():
    model = keras.Sequential(
        [layers.Dense(5, use_bias=False, activation="relu"), layers.Dense(2, use_bias=False)]
    )
    model.build((None, 4))
    f, params = function(model)
    x = normal(3, 4)
    R = lrpjax.relevance(f, lrpjax.composites.epsilon(0.0), argnums=1)(params, x)
    close(R.sum(1), model(x).sum(1))


# ------------------------------------------------------------------------------------------------ the scopes


def test_scopes_are_the_names_of_models_and_layers():
    f, params = function(convolutional())
    x = normal(2, 6, 6, 2)
    assert paths(f, params, x) == [
        "net/stem",
        "net/relu",
        "net/head/average",
        "net/head/logits",
    ]
    R = lrpjax.relevance(f, argnums=1, at=["head/av*", "stem"])(params, x)
    assert {path: r.shape for path, r in R.items()} == {
        "net/head/average": (2, 4),
        "stem": (2, 4, 4, 4),
    }
    composite = lrpjax.Composite([("stem", lrpjax.rules.Flat()), ("head/*", lrpjax.rules.Epsilon(0.1))])
    rules = {u.path: u.rule for u in lrpjax.plan(f, composite, params, x, argnums=1)}
    assert rules["net/stem"].startswith("Flat") and rules["net/head/logits"] == "Epsilon(epsilon=0.1)"
    audit = lrpjax.audit(f, None, argnums=1)(params, x)
    assert {u.path for u in audit.units} >= {"net/stem", "net/head/logits"}


def test_sources_are_lines_of_the_user_or_else_of_the_layers():
    class Own(layers.Layer):
        def call(self, x):
            return jnp.tanh(x) * 2.0

    model = keras.Sequential([layers.Dense(3, name="dense"), Own(name="own")], name="both")
    model.build((None, 2))
    f, params = function(model)
    sources = {u.path: u.source for u in lrpjax.plan(f, None, params, normal(1, 2), argnums=1)}
    assert "(Dense.call)" in sources["both/dense"]
    assert "test_keras.py" in sources["both/own"] and "Own.call" in sources["both/own"]


def test_files_of_keras_are_machinery_but_for_its_layers():
    of = lambda function: compat._rank(function.__code__.co_filename)
    assert of(layers.Dense.call) == 3
    assert of(keras.Layer.stateless_call) == of(keras.Sequential.__init__) == of(keras.tree.flatten) == 4


class Recurrent(keras.Model):
    def __init__(self):
        super().__init__(name="recurrent")
        self.attention = layers.MultiHeadAttention(2, 4, name="attention")
        self.both = layers.Bidirectional(layers.LSTM(3, return_sequences=True), name="both")
        self.cells = layers.RNN([layers.SimpleRNNCell(4), layers.SimpleRNNCell(3)], name="cells")

    def call(self, x):
        return self.cells(self.both(x + self.attention(x, x)))


def test_layers_inside_layers_of_a_subclassed_model_have_scopes():
    model = Recurrent()
    x = normal(2, 5, 4)
    model(x)
    f, params = function(model)
    assert set(paths(f, params, x)) == {
        "recurrent",
        *(f"recurrent/attention{part}" for part in ("", "/query", "/key", "/value", "/attention_output")),
        *(f"recurrent/both/{way}_lstm/lstm_cell" for way in ("forward", "backward")),
        "recurrent/cells/stacked_rnn_cells/simple_rnn_cell",
        "recurrent/cells/stacked_rnn_cells/simple_rnn_cell_1",
    }
    unit = next(u for u in lrpjax.plan(f, None, params, x, argnums=1) if u.path.endswith("/query"))
    assert "(Recurrent.call)" in unit.source
    explained = lrpjax.relevance(
        f, lrpjax.composites.input_x_gradient(), argnums=1, target=jnp.ones((2, 3), "float32")
    )
    gradient = jax.grad(lambda x: model(x).sum())(x)
    close(jax.jit(explained)(params, x), x * gradient)


def test_a_layer_that_is_called_twice_has_one_path_and_one_set_of_weights():
    shared = layers.Dense(3, name="shared", activation="relu")
    x = keras.Input((3,))
    model = randomised(keras.Model(x, shared(shared(x)), name="twice"))
    f, params = function(model)
    assert list(params) == ["shared/kernel", "shared/bias"]
    x = normal(2, 3)
    assert paths(f, params, x) == ["twice/shared"] * 4
    layer = lambda x: jax.nn.relu(x @ params["shared/kernel"] + params["shared/bias"])
    close(lrpjax.relevance(f, argnums=1)(params, x), lrpjax.relevance(lambda x: layer(layer(x)))(x))


def test_a_single_layer_is_explained_as_a_model_is():
    layer = layers.Dense(2, name="alone")
    layer.build((None, 3))
    f, params = function(layer)
    x = normal(2, 3)
    close(f(params, x), x @ params["alone/kernel"])
    assert paths(f, params, x) == ["alone"]


def test_tokens_are_explained_at_their_embedding_and_masks_hold():
    model = keras.Sequential(
        [layers.Embedding(9, 4, mask_zero=True, name="tokens"), layers.LSTM(3, name="lstm"), layers.Dense(2)],
        name="reader",
    )
    model.build((None, 5))
    f, params = function(model)
    tokens = jnp.array([[3, 1, 4, 0, 0]])
    close(f(params, tokens), model(tokens))
    R = lrpjax.relevance(f, argnums=1, at="tokens")(params, tokens)
    assert R.shape == (1, 5, 4)
    assert np.abs(R[0, :3]).sum() > 0 and np.all(R[0, 3:] == 0)


def test_weights_of_the_same_path_are_told_apart():
    halves = [keras.Sequential([layers.Dense(2, name="same")], name="half") for _ in range(2)]

    class Whole(keras.Model):
        def __init__(self):
            super().__init__(name="whole")
            self.halves = halves

        def call(self, x):
            return self.halves[1](self.halves[0](x))

    for half in halves:
        half.build((None, 2))
    model = Whole()
    x = normal(1, 2)
    model(x)
    f, params = function(model)
    assert list(params) == [
        "half/same/kernel",
        "half/same/bias",
        "half/same/kernel#2",
        "half/same/bias#2",
    ]
    close(f(params, x), x @ params["half/same/kernel"] @ params["half/same/kernel#2"])


def test_sixteen_bits_beside_32():
    layer = {"dtype": "mixed_bfloat16"}
    x = keras.Input((8,), dtype="float32")
    y = layers.Dense(2, **layer)(layers.Dense(8, activation="relu", **layer)(x))
    model = keras.Model(x, y, name="mixed", dtype="mixed_bfloat16")
    f, params = function(model)
    x = normal(2, 8)
    y, R = lrpjax.value_and_relevance(f, argnums=1)(params, x)
    assert y.dtype == jnp.bfloat16 and R.dtype == jnp.float32
    assert all(p.dtype == jnp.float32 for p in params.values())
    np.testing.assert_array_equal(y, model(x))
    # The outputs are rounded to 8 bits each, so that a sum of outputs that cancel is known to 8 bits of their magnitudes alone.
    magnitude = np.abs(np.asarray(y, np.float32)).sum()
    np.testing.assert_allclose(R.sum(), np.sum(y, dtype=np.float32), rtol=0, atol=0.01 * magnitude)


# ------------------------------------------------------------------------------------- several inputs and outputs


def two(made):
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    both = layers.Concatenate(name="join")([a, b])
    outputs = [layers.Dense(2, name="first")(both), layers.Dense(1, name="second")(both)]
    given = {"list": [a, b], "dict": {"b": b, "a": a}}[made]
    return keras.Model(given, outputs, name="two")


def test_several_inputs_are_several_arguments_or_one_list_or_dict():
    a, b = normal(1, 3), normal(1, 2)
    model = two("list")
    f, params = function(model, output="second")
    expected = model([a, b])[1]
    for inputs in ((a, b), ([a, b],), ({"a": a, "b": b},)):
        np.testing.assert_array_equal(f(params, *inputs), expected)
    R = lrpjax.relevance(f, lrpjax.composites.epsilon(0.0), argnums=(1, 2))(params, a, b)
    kernel = params["second/kernel"]
    close(R[0], a * kernel[:3, 0])
    close(R[1], b * kernel[3:, 0])
    model = two("dict")
    f, params = function(model, output="first")
    x = {"a": a, "b": b}
    np.testing.assert_array_equal(f(params, x), model(x)[0])
    assert lrpjax.relevance(f, argnums=1)(params, x).keys() == {"a", "b"}
    with pytest.raises(lrpjax.InputError, match=r"'two' takes 2 inputs \(b, a\) in a dict, but .* 2 arrays"):
        f(params, a, b)


def test_the_output_is_chosen_by_name_place_or_function():
    model = two("list")
    a, b = normal(1, 3), normal(1, 2)
    y = model([a, b])
    for output, place in (("second", 1), (0, 0), (-1, 1), (lambda y: y[1], 1)):
        f, params = function(model, output)
        np.testing.assert_array_equal(f(params, a, b), y[place])
    for output, text in (
        (None, "choose one by output="),
        ("third", "'third' is none of them"),
        (2, "2 is none"),
    ):
        f, params = function(model, output)
        with pytest.raises(lrpjax.TargetError, match=f"'two' has the outputs 'first', 'second'.*{text}"):
            f(params, a, b)


def test_outputs_in_a_dict_have_their_keys():
    x = keras.Input((3,))
    model = keras.Model(x, {"price": layers.Dense(1)(x), "class": layers.Dense(4)(x)}, name="keyed")
    f, params = function(model, "class")
    assert f(params, normal(2, 3)).shape == (2, 4)
    f, params = function(model)
    with pytest.raises(lrpjax.TargetError, match="has the outputs 'price', 'class': choose one by output="):
        f(params, normal(2, 3))


# ----------------------------------------------------------------------------------------------- one line, errors


def test_explain_takes_and_gives_numpy():
    model = convolutional()
    f, params = function(model)
    x = np.asarray(normal(2, 6, 6, 2))
    composite = lrpjax.composites.epsilon_plus()
    expected = lrpjax.relevance(f, composite, target="max", argnums=1)(params, x)
    R = explain(model, composite, x, target="max")
    assert isinstance(R, np.ndarray)
    close(R, expected)
    assert explain(model, composite, x, at="stem").shape == (2, 4, 4, 4)
    first, second = explain(
        two("list"), composite, np.ones((1, 3), np.float32), np.ones((1, 2), np.float32), output=0
    )
    assert first.shape == (1, 3) and second.shape == (1, 2)
    with pytest.raises(lrpjax.InputError, match="no input to explain the model 'net' for"):
        explain(model, composite)


def test_a_wrong_number_of_inputs_is_an_error_that_names_them():
    f, params = function(convolutional())
    x = normal(1, 6, 6, 2)
    with pytest.raises(lrpjax.InputError, match=r"'net' takes 1 input \(.*\), but was given 2 arrays"):
        f(params, x, x)
    f, params = function(two("list"), 0)
    with pytest.raises(lrpjax.InputError, match=r"'two' takes 2 inputs \(a, b\), but was given 1 array$"):
        f(params, x)
    with pytest.raises(lrpjax.InputError, match="but was given a dict of a, c"):
        f(params, {"a": x, "c": x})
    model = Recurrent()
    model(normal(2, 5, 4))
    f, params = function(model)
    with pytest.raises(lrpjax.InputError, match=r"2 inputs do not fit Recurrent.call .*too many positional"):
        f(params, x, x)


def test_weights_of_another_model_are_an_error_that_names_them():
    f, params = function(convolutional())
    with pytest.raises(
        lrpjax.InputError, match=r"weights are not those of the model 'net'.*: other, stem/bias st"
    ):
        f({"other" if path == "stem/bias" else path: p for path, p in params.items()}, normal(1, 6, 6, 2))


def test_a_model_without_weights_is_an_error():
    with pytest.raises(ValueError, match=r"'later' has no weights yet.*call it once"):
        function(keras.Sequential([layers.Dense(2)], name="later"))

    class Half(keras.Model):
        def __init__(self):
            super().__init__(name="half_built")
            self.dense = layers.Dense(2)

        def build(self, shape):
            pass

        def call(self, x):
            return self.dense(x)

    model = Half()
    model.build((None, 3))
    f, params = function(model)
    with pytest.raises(ValueError, match="'half_built' has no weights yet, or not all"):
        f(params, normal(1, 3))


def test_what_is_no_keras_layer_is_an_error():
    with pytest.raises(TypeError, match="takes a model or a layer of Keras 3, but got function"):
        function(lambda x: x)


def test_another_backend_is_an_error(monkeypatch):
    model = convolutional()
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    with pytest.raises(
        RuntimeError, match=r"on the backend 'torch'.*KERAS_BACKEND to jax before Keras is imp"
    ):
        function(model)


def test_without_keras_or_its_backend_an_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(ImportError, match=r'pip install "lrpjax\[keras\]"'):
        function(None)

    class Finder:
        """Imports Keras as it is where its backend, TensorFlow unless it is told another one, is missing."""

        def find_spec(self, name, path=None, target=None):
            if name == "keras":
                raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")

    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(ImportError, match=r"No module named 'tensorflow'.*KERAS_BACKEND to jax before"):
        function(types.SimpleNamespace())

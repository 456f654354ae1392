"""Deploying: a jitted explanation exported for cpu, cuda and tpu, called without the model's code."""

import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import lrpjax

PLATFORMS = ("cpu", "cuda", "tpu")
COMPOSITES = {
    "epsilon_plus": lrpjax.composites.epsilon_plus(),
    "alpha2_beta1_flat": lrpjax.composites.epsilon_alpha2_beta1_flat(),
    "gamma_box": lrpjax.composites.epsilon_gamma_box(0.0, 1.0),
    "guided_backprop": lrpjax.composites.guided_backprop(),
}
# Knows JAX and NumPy only.
CALL = """
import sys
import numpy as np
from jax import export

exported = export.deserialize(open("explain.jax", "rb").read())
for number in range(2):
    output, relevance = exported.call(np.load(f"x{number}.npy"))
    np.savez(f"results{number}.npz", output=output, relevance=relevance)
assert not {"lrpjax", "flax"} & set(sys.modules)
"""


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), param_dtype=jnp.float32)(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x)))
        return nn.Dense(3)(x.mean((1, 2)))


def explanation(composite):
    model = CNN()
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1), jnp.float32))
    return jax.jit(lrpjax.value_and_relevance(lambda x: model.apply(params, x), composite, target="max"))


@pytest.mark.parametrize("composite", COMPOSITES.values(), ids=COMPOSITES)
def test_an_explanation_is_lowered_for_three_platforms_and_survives_saving(composite):
    explain = explanation(composite)
    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, 8, 8, 1"), jnp.float32)
    exported = export.export(explain, platforms=PLATFORMS)(shape)
    assert exported.platforms == PLATFORMS
    again = export.deserialize(exported.serialize())
    assert again.platforms == PLATFORMS
    x = np.random.default_rng(0).random((4, 8, 8, 1), np.float32)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), again.call(x), explain(x)
    )


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, param_dtype=jnp.float32)(x)
        x = x + nn.MultiHeadDotProductAttention(2, param_dtype=jnp.float32)(nn.LayerNorm()(x))
        return nn.Dense(3)(x.mean(1))


def test_a_transformer_is_exported_for_any_number_of_rows():
    model = Attention()
    params = model.init(jax.random.key(0), jnp.zeros((1, 5, 6), jnp.float32))
    explain = jax.jit(lrpjax.relevance(lambda x: model.apply(params, x), lrpjax.composites.attnlrp()))
    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, 5, 6"), jnp.float32)
    exported = export.export(explain)(shape)
    x = np.random.default_rng(0).normal(size=(3, 5, 6)).astype(np.float32)
    np.testing.assert_allclose(exported.call(x), explain(x), rtol=1e-4, atol=1e-5)


def test_a_fresh_process_calls_it_without_the_code_of_the_model(tmp_path):
    explain = explanation(lrpjax.composites.epsilon_plus())
    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, 8, 8, 1"), jnp.float32)
    (tmp_path / "explain.jax").write_bytes(export.export(explain, platforms=PLATFORMS)(shape).serialize())
    inputs = [np.random.default_rng(rows).random((rows, 8, 8, 1), np.float32) for rows in (1, 5)]
    for number, x in enumerate(inputs):
        np.save(tmp_path / f"x{number}.npy", x)
    subprocess.run([sys.executable, "-c", CALL], cwd=tmp_path, check=True)
    for number, x in enumerate(inputs):
        y, R = explain(x)
        with np.load(tmp_path / f"results{number}.npz") as results:
            assert results["relevance"].shape == x.shape
            np.testing.assert_allclose(results["output"], y, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(results["relevance"], R, rtol=1e-5, atol=1e-6)


def test_an_exported_explanation_explains_batches():
    explain = explanation(lrpjax.composites.epsilon_plus())
    exported = export.deserialize(
        export.export(explain)(jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32)).serialize()
    )
    from lrpjax.data.batches import explain_batches

    x = np.random.default_rng(0).random((6, 8, 8, 1), np.float32)
    results = list(explain_batches(exported.call, [x[:4], x[4:]], progress=False))
    np.testing.assert_allclose(np.concatenate([R for _, R in results]), explain(x)[1], rtol=1e-5, atol=1e-6)

"""A function split over devices by shard_map has the relevance of the same function on one device."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import lrpjax
from lrpjax import composites
from lrpjax.errors import PathError, RuleError

P = PartitionSpec
W1, B1, W2, B2 = (np.random.default_rng(i).normal(size=s) for i, s in enumerate([(8, 6), (6,), (6, 4), (4,)]))
X = np.random.default_rng(9).normal(size=(4, 8))
COMPOSITES = {
    "epsilon": composites.epsilon(),
    "epsilon_plus": composites.epsilon_plus(),
    "epsilon_alpha2_beta1_flat": composites.epsilon_alpha2_beta1_flat(),
    "epsilon_gamma_box": composites.epsilon_gamma_box(-4.0, 4.0),
    "deep_taylor": composites.deep_taylor(),
    "attnlrp": composites.attnlrp(),
    "gradient": composites.gradient(),
    "guided_backprop": composites.guided_backprop(),
}


def whole(x):
    return jax.nn.relu(x @ W1 + B1) @ W2 + B2


def sharded(check_vma=True):
    """Rows over "a"; the first layer's contraction and the second layer's columns over "b"."""
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

    def local(x, w1, b1, w2, b2):
        with jax.named_scope("first"):
            h = jax.nn.relu(jax.lax.psum(x @ w1, "b") + b1)
        return h @ w2 + b2

    specs = (P("a", "b"), P("b", None), P(), P(None, "b"), P("b"))
    run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("a", "b"), check_vma=check_vma)
    return lambda x: run(x, W1, B1, W2, B2)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("name", COMPOSITES)
def test_sharded_and_whole_agree(name, check_vma, jit):
    if name == "guided_backprop" and not check_vma:
        with pytest.raises(RuleError, match="check_vma=True"):
            lrpjax.relevance(sharded(check_vma), COMPOSITES[name])(X)
        return
    explain = lrpjax.relevance(sharded(check_vma), COMPOSITES[name], target=1)
    R = (jax.jit(explain) if jit else explain)(X)
    expected = lrpjax.relevance(whole, COMPOSITES[name], target=1)(X)
    np.testing.assert_allclose(R, expected, rtol=1e-9, atol=1e-12)


def test_a_sharded_contraction_is_one_layer():
    plan = lrpjax.plan(sharded(), composites.epsilon_plus(), X)
    assert [u.kind for u in plan.units] == ["dense", "activation", "dense"]
    assert plan.units[0].path == "first"


def test_collectives_move_relevance():
    mesh = jax.make_mesh((4,), ("a",), axis_types=(AxisType.Auto,))

    def local(x):
        turned = jax.lax.ppermute(x, "a", [(i, (i + 1) % 4) for i in range(4)])
        return jnp.tanh(jax.lax.all_gather(turned, "a", axis=0, tiled=True)) @ W1 * jnp.ones((1, 1))

    f = jax.shard_map(local, mesh=mesh, in_specs=P("a"), out_specs=P("a"))
    R = lrpjax.relevance(f, composites.epsilon(0.0), target=1)(X)
    each = lrpjax.relevance(lambda x: jnp.tanh(x) @ W1, composites.epsilon(0.0), target=1)(X)
    np.testing.assert_allclose(R, 4 * each, rtol=1e-9)  # every device explains all rows


def test_a_value_inside_cannot_be_named():
    with pytest.raises(PathError, match="inside a shard_map"):
        lrpjax.relevance(sharded(), at="first")(X)


@pytest.mark.parametrize("name", ["epsilon", "epsilon_alpha2_beta1_flat"])
def test_a_product_that_is_summed_up_with_a_kernel_that_every_device_knows(name):
    mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,))
    net = lambda x: jax.nn.relu((x[..., None] * W1).sum(-2)) @ W2
    spread = jax.shard_map(net, mesh=mesh, in_specs=P("a"), out_specs=P("a"))
    R, wanted = (lrpjax.relevance(f, COMPOSITES[name], target=1)(X) for f in (spread, net))
    np.testing.assert_allclose(R, wanted, rtol=1e-9, atol=1e-12)


def test_explanations_of_models_on_eight_devices_send_what_their_gradients_send():
    """Divided over the batch nothing is sent; otherwise no more bytes than 1.1 of the gradient's. z⁺ makes a product more in
    every layer, of which the parts of a sum are on all devices, and then sends up to
    2.2 times as much."""
    script = pathlib.Path(__file__).parent / "collectives.py"
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    for case, rows in found.items():
        (count, size), *others = rows.pop("the gradient"), *rows.items()
        if case.endswith("data"):
            assert count == 0 and all(own == [0, 0] for _, own in others), (case, rows)
        else:
            assert size > 0 and all(
                own[1] <= (2.25 if name == "z+" else 1.1) * size for name, own in others
            ), (
                case,
                rows,
            )

"""Many explanations from one forward pass: K classes, a sweep over a hyper-parameter, several composites; counted in flops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrpjax
from lrpjax import Composite, composites, rules, select

RNG = np.random.default_rng(0)
KERNELS = [RNG.normal(size=s) / 5 for s in [(3, 3, 3, 8), (3, 3, 8, 8), (512, 10)]]
X = RNG.normal(size=(2, 8, 8, 3))


def f(x):
    for w in KERNELS[:2]:
        x = jax.nn.relu(
            jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        )
    return x.reshape(x.shape[0], -1) @ KERNELS[2]


def flops(g, *args):
    return jax.jit(g).lower(*args).compile().cost_analysis()["flops"]


def with_epsilon(epsilon):
    return composites.epsilon(epsilon)


def with_gamma(gamma):
    return Composite([(select.kind("conv", "dense"), rules.Gamma(gamma))])


def all_classes(composite):
    def explain(x):
        y, pull = lrpjax.vjp(f, composite, x)
        return jax.vmap(pull)(jnp.eye(10)[:, None] * y)[0]

    return explain


@pytest.mark.parametrize(
    "composite",
    [composites.epsilon(), composites.epsilon_plus(), composites.epsilon_gamma_box(-4.0, 4.0)],
    ids=str,
)
def test_k_classes_cost_one_forward_pass_and_k_backward_passes(composite):
    one = lrpjax.relevance(f, composite, target=3)
    R = jax.jit(all_classes(composite))(X)
    np.testing.assert_allclose(R[3], one(X), rtol=1e-9, atol=1e-12)
    forward, single, all_ten = flops(f, X), flops(one, X), flops(all_classes(composite), X)
    assert all_ten < 1.05 * (forward + 10 * (single - forward))
    assert all_ten < 0.9 * 10 * single


@pytest.mark.parametrize("made", [with_epsilon, with_gamma])
def test_a_sweep_runs_forward_once(made):
    values = jnp.array([0.01, 0.1, 0.5, 1.0])
    one = lambda v, x: lrpjax.relevance(f, made(v), target=3)(x)
    every = jax.vmap(one, (0, None))
    for v, r in zip(values, jax.jit(every)(values, X), strict=True):
        np.testing.assert_allclose(r, one(v, X), rtol=1e-9, atol=1e-12)
    forward, single, sweep = flops(f, X), flops(one, values[0], X), flops(every, values, X)
    assert sweep < 1.05 * (forward + 4 * (single - forward))


def test_several_composites_under_one_jit_share_the_forward_pass():
    several = [
        composites.epsilon(),
        composites.epsilon_plus(),
        composites.epsilon_alpha2_beta1(),
        composites.gradient(),
    ]
    each = [lrpjax.relevance(f, c, target=3) for c in several]
    forward = flops(f, X)
    together = flops(lambda x: [e(x) for e in each], X)
    assert together < 1.02 * (sum(flops(e, X) for e in each) - 3 * forward)

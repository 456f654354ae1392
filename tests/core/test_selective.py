"""State-space models: MambaLRP by structure equals MambaLRP written by hand, however the recurrence is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lrpjax
from lrpjax import composites, rules, select

T, D, E, N = 6, 5, 4, 3
rng = np.random.default_rng(0)
P = {
    "in": rng.normal(size=(D, 2 * E)),
    "conv": rng.normal(size=(3, E)),
    "delta": rng.normal(size=(E, E)) * 0.3,
    "B": rng.normal(size=(E, N)),
    "C": rng.normal(size=(E, N)),
    "A": rng.uniform(-2, -0.2, size=(E, N)),
    "D": rng.normal(size=(E,)),
    "out": rng.normal(size=(E, D)),
    "scale": rng.uniform(0.5, 1.5, size=(D,)),
}
X = rng.normal(size=(T, D))


def sequential(decay, drive, c):
    def step(h, now):
        a, b, c = now
        h = a * h + b
        return h, jnp.einsum("en,n->e", h, c)

    return lax.scan(step, jnp.zeros((E, N)), (decay, drive, c))[1]


def stacked(decay, drive, c):
    """The states leave the loop, and are read outside."""

    def step(h, now):
        h = now[0] * h + now[1]
        return h, h

    return jnp.einsum("ten,tn->te", lax.scan(step, jnp.zeros((E, N)), (decay, drive))[1], c)


def associative(decay, drive, c):
    combine = lambda i, j: (j[0] * i[0], j[0] * i[1] + j[1])
    return jnp.einsum("ten,tn->te", lax.associative_scan(combine, (decay, drive))[1], c)


def unrolled(decay, drive, c):
    h, ys = jnp.zeros((E, N)), []
    for t in range(T):
        h = decay[t] * h + drive[t]
        ys.append(h @ c[t])
    return jnp.stack(ys)


def mamba(x, recurrence=sequential, hold=lambda v: v, half=lambda v: v, passed=None):
    """A block of Mamba. `hold`, `half` and `passed` are for the relevance written by hand."""
    silu = jax.nn.silu if passed is None else lambda v: v * passed(jax.nn.sigmoid(v))
    n = x * hold(lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)) * P["scale"]
    u, z = jnp.split(n @ P["in"], 2, axis=-1)
    padded = jnp.pad(u, ((2, 0), (0, 0)))
    u = silu(sum(padded[k : k + T] * P["conv"][k] for k in range(3)))
    delta, b, c = jax.nn.softplus(u @ P["delta"]), u @ P["B"], u @ P["C"]
    decay = hold(jnp.exp(delta[..., None] * P["A"]))
    drive = hold(delta[..., None] * b[:, None, :]) * u[..., None]
    y = recurrence(decay, drive, hold(c)) + u * P["D"]
    return x + half(y * silu(z)) @ P["out"]


def by_hand(x, blocks=1):
    """MambaLRP as gradient × input of a function in which everything that is held fixed is detached."""
    hold = lax.stop_gradient
    half = lambda v: v / 2 + hold(v / 2)

    def f(x):
        for _ in range(blocks):
            x = mamba(x, unrolled, hold, half, hold)
        return x[-1, 0]

    return x * jax.grad(f)(x)


@pytest.mark.parametrize("recurrence", [sequential, stacked, associative, unrolled])
@pytest.mark.parametrize("blocks", [1, 2])
def test_equals_the_detached_function(recurrence, blocks):
    def f(x):
        for _ in range(blocks):
            x = mamba(x, recurrence)
        return x[-1, 0]

    expected = by_hand(X, blocks)
    R = lrpjax.relevance(f, composites.mambalrp(0.0))(X)
    np.testing.assert_allclose(R, expected, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(jax.jit(lrpjax.relevance(f, composites.mambalrp(0.0)))(X), R, rtol=1e-9)
    other = lrpjax.relevance(f, composites.attnlrp(0.0))(X)
    assert np.abs(other - expected).max() > 1e-2 * np.abs(expected).max()


def test_the_plan_says_who_takes_part():
    plan = lrpjax.plan(lambda x: mamba(x, stacked), composites.mambalrp(), X)
    products = [u.rule for u in plan.units if u.kind == "product"]
    assert [r.rpartition(": ")[2] for r in products] == [
        "1 of 3 factors",
        "1 of 2 factors",
        "1 of 2 factors",
        "2 of 2 factors",
    ]


def test_relevance_is_conserved():
    f = lambda x: mamba(mamba(x, associative), sequential)
    y, R = lrpjax.value_and_relevance(f, composites.mambalrp(0.0))(X)
    np.testing.assert_allclose(R.sum(), y.sum(), rtol=1e-9)


def test_with_gamma_weighted_layers_take_it():
    plan = lrpjax.plan(mamba, composites.mambalrp(gamma=0.25), X)
    assert {u.rule for u in plan.units if u.kind == "dense"} == {"Gamma(gamma=0.25, epsilon=1e-06)"}


def test_siblings_share():
    """Queries and keys, or gate and signal, that come from one layer: none is computed from the other."""
    composite = lrpjax.Composite([(select.kind("product"), rules.Product("selective"))])
    w = rng.normal(size=(D, 2 * E))

    def f(x):
        a, b = jnp.split(x @ w, 2, axis=-1)
        return a * b

    uniform = lrpjax.Composite([(select.kind("product"), rules.Product("uniform"))])
    np.testing.assert_allclose(lrpjax.relevance(f, composite)(X), lrpjax.relevance(f, uniform)(X))

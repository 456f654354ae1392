"""Functions with a derivative of their own: the gradient family against `jax.grad`, what LRP explains from inside, and
what is refused with advice that works."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.ode import odeint

import lrpjax
from lrpjax import Composite, composites, rules, select

RNG = np.random.default_rng(0)
W = jnp.asarray(RNG.normal(size=(4, 4)) * 0.3)
X = jnp.asarray(RNG.normal(size=(3, 4)))


@jax.custom_vjp
def through(x):
    """A straight-through estimator."""
    return jnp.round(x)


through.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))


@jax.custom_jvp
def signs(x):
    return jnp.sign(x)


signs.defjvp(lambda primals, tangents: (signs(*primals), tangents[0]))


@jax.custom_vjp
def reverse(x):
    return x


reverse.defvjp(lambda x: (x, None), lambda _, g: (-0.3 * g,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def clip_gradient(limit, x):
    return x


clip_gradient.defvjp(lambda limit, x: (x, None), lambda limit, _, g: (jnp.clip(g, -limit, limit),))


@jax.custom_vjp
def spike(x):
    return (x > 0).astype(x.dtype)


spike.defvjp(lambda x: (spike(x), x), lambda x, g: (g / (1 + x * x),))


@jax.custom_jvp
def nested(x):
    return through(x) * signs(x) + jnp.tanh(x)


nested.defjvp(lambda primals, tangents: (nested(*primals), 3 * tangents[0]))


@jax.custom_vjp
def outer(x):
    return nested(x) * x


outer.defvjp(lambda x: (outer(x), x), lambda x, g: (5 * g,))


@jax.custom_vjp
def scaled(x, y):
    return x * y


def scaled_forward(x, y):
    return x.value * y.value, (x.value, y.value)


def scaled_backward(residuals, g):
    if isinstance(g, jax.custom_derivatives.SymbolicZero):
        return tuple(map(jnp.zeros_like, residuals))
    return 2 * g * residuals[1], 3 * g * residuals[0]


scaled.defvjp(scaled_forward, scaled_backward, symbolic_zeros=True)


@jax.custom_jvp
def safe_norm(x):
    return jnp.sqrt(jnp.sum(x**2, -1, keepdims=True))


@safe_norm.defjvp
def _(primals, tangents):
    norm = safe_norm(*primals)
    return norm, jnp.sum(primals[0] * tangents[0], -1, keepdims=True) / jnp.maximum(norm, 1e-3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def fixed_point(f, x, start):
    far = lambda z: jnp.max(jnp.abs(z[0] - z[1])) > 1e-10
    return jax.lax.while_loop(far, lambda z: (z[1], f(x, z[1])), (start, f(x, start)))[1]


def fixed_point_forward(f, x, start):
    z = fixed_point(f, x, start)
    return z, (x, z)


def fixed_point_backward(f, residuals, g):
    x, z = residuals
    back = jax.vjp(lambda z: f(x, z), z)[1]
    u = fixed_point(lambda _, u: g + back(u)[0], x, g)
    return jax.vjp(lambda x: f(x, z), x)[1](u)[0], jnp.zeros_like(z)


fixed_point.defvjp(fixed_point_forward, fixed_point_backward)


def equilibrium(x):
    return fixed_point(lambda x, z: jnp.tanh(z @ W + x), x @ W, jnp.zeros_like(x)) @ W


def solved(x):
    return odeint(lambda y, t: jnp.tanh(y @ W), x @ W, jnp.array([0.0, 0.5]))[-1] @ W


each = jax.vmap(lambda x: clip_gradient(0.1, through(spike(x @ W))) @ W)

FUNCTIONS = {
    "straight through, custom_vjp": lambda x: through(x @ W) @ W,
    "straight through, custom_jvp": lambda x: signs(x @ W) @ W,
    "reversal": lambda x: jax.nn.relu(reverse(x @ W)) @ W,
    "clipping": lambda x: clip_gradient(0.1, jnp.tanh(x @ W)) @ W,
    "surrogate": lambda x: spike(x @ W) @ W,
    "nested": lambda x: outer(x @ W) @ W,
    "symbolic zeros": lambda x: scaled(x @ W, jnp.ones_like(x)) @ W,
    "norm": lambda x: (x @ W) / safe_norm(x @ W),
    "vmap": each,
    "jit": jax.jit(each),
    "remat": jax.checkpoint(each),
    "scan": lambda x: jax.lax.scan(lambda c, _: (nested(through(c @ W) + reverse(c)), None), x, None, 2)[0],
    "cond": lambda x: jax.lax.cond(x.sum() > 0, lambda x: through(x @ W), lambda x: spike(x @ W), x),
    "equilibrium": equilibrium,
    "odeint": solved,
}
ACTIVATIONS = "relu relu6 gelu silu softplus elu selu celu glu hard_tanh softmax log_softmax mish hard_swish"
FUNCTIONS |= {name: lambda x, a=name: getattr(jax.nn, a)(x @ W) ** 2 for name in ACTIVATIONS.split()}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_gradient_family_takes_the_functions_own_derivative(name):
    f = FUNCTIONS[name]
    expected = jax.grad(lambda x: f(x).sum())(X)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(
        lrpjax.relevance(f, composites.gradient())(X), expected, rtol=1e-12, atol=1e-14
    )
    jitted = jax.jit(lrpjax.relevance(f, composites.input_x_gradient()))(X)
    np.testing.assert_allclose(jitted, X * expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["straight through, custom_vjp", "surrogate", "nested", "scan", "jit", "remat"]
)
def test_guided_backpropagation_is_the_gradient_where_there_is_no_relu(name):
    f = FUNCTIONS[name]
    guided = lrpjax.relevance(f, composites.guided_backprop())(X)
    np.testing.assert_allclose(guided, jax.grad(lambda x: f(x).sum())(X), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("relu", [jax.nn.relu, lambda z: jnp.maximum(z, 0.0)])
def test_guided_backpropagation_sees_relus_and_takes_the_derivative_of_the_rest(relu):
    f = lambda x: relu(reverse(through(x @ W))) @ W
    z = jnp.round(X @ W)
    above = jnp.ones((3, 4)) @ W.T
    expected = -0.3 * jnp.where(z > 0, jnp.maximum(above, 0), 0.0) @ W.T
    np.testing.assert_allclose(lrpjax.relevance(f, composites.guided_backprop())(X), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "name", ["straight through, custom_vjp", "reversal", "norm", "nested", "jit of relu"]
)
def test_lrp_explains_what_the_function_computes(name):
    """As if it had no derivative of its own."""
    bare = {
        "straight through, custom_vjp": lambda x: jnp.round(x @ W) @ W,
        "reversal": lambda x: jax.nn.relu(x @ W) @ W,
        "norm": lambda x: (x @ W) / jnp.sqrt(jnp.sum((x @ W) ** 2, -1, keepdims=True)),
        "nested": lambda x: (lambda z: (jnp.round(z) * jnp.sign(z) + jnp.tanh(z)) * z)(x @ W) @ W,
        "jit of relu": lambda x: jnp.maximum(x @ W, 0) @ W,
    }[name]
    f = jax.jit(lambda x: jax.nn.relu(x @ W) @ W) if name == "jit of relu" else FUNCTIONS[name]
    for composite in (composites.epsilon(), composites.attnlrp(), composites.epsilon_plus()):
        expected = lrpjax.relevance(bare, composite)(X)
        np.testing.assert_allclose(lrpjax.relevance(f, composite)(X), expected, rtol=1e-12)


def by_hand(f, inner, x):
    """R of x for W · f(x W), with relevance W-ratio at the second layer, the VJP of f, and the ratio at the first."""
    z = x @ W
    y, back = jax.vjp(inner, z)
    out = y @ W
    R_y = y * (jnp.ones_like(out) @ W.T)
    (R_z,) = back(R_y)
    return x * ((R_z / z) @ W.T)


@pytest.mark.parametrize(
    "selector",
    [
        select.kind("call"),
        select.kind("spike"),
        select.first("call"),
        select.kind("call") & select.path("*"),
        ~select.kind("dense"),
    ],
)
def test_a_pair_gives_a_call_its_own_derivative(selector):
    f = FUNCTIONS["surrogate"]
    composite = Composite([(selector, rules.Gradient()), (select.kind("dense"), rules.Epsilon(0.0))])
    np.testing.assert_allclose(lrpjax.relevance(f, composite)(X), by_hand(f, spike, X), rtol=1e-10)
    assert [u.kind for u in lrpjax.plan(f, composite, X)] == ["dense", "call", "dense"]


@pytest.mark.parametrize("name", ["surrogate", "equilibrium", "odeint"])
def test_what_cannot_be_explained_from_inside_is_refused_with_advice_that_works(name):
    f = FUNCTIONS[name]
    with pytest.raises(lrpjax.UnsupportedError) as caught:
        lrpjax.relevance(f)(X)
    message = str(caught.value)
    called = {"surrogate": "spike", "equilibrium": "fixed_point", "odeint": "_odeint"}[name]
    assert f"{called} (custom_vjp_call)" in message and "test_calls.py" in message
    assert {"surrogate": "comparisons"}.get(name, "a while_loop cannot be run backward") in message
    for advice in ("(select.kind('call'), rules.Gradient())", f"(select.kind({called!r}), rules.Gradient())"):
        assert advice in message
        composite = Composite([eval(advice), (select.kind("dense"), rules.Epsilon(0.0))])
        R = lrpjax.relevance(f, composite)(X)
        inner = {
            "surrogate": spike,
            "equilibrium": lambda z: fixed_point(lambda x, z: jnp.tanh(z @ W + x), z, jnp.zeros_like(z)),
            "odeint": lambda z: odeint(lambda y, t: jnp.tanh(y @ W), z, jnp.array([0.0, 0.5]))[-1],
        }[name]
        np.testing.assert_allclose(R, by_hand(f, inner, X), rtol=1e-8)


def test_calls_take_stop_and_pass():
    f = lambda x: x @ W + through(x @ W)
    exact = (select.kind("dense"), rules.Epsilon(0.0))
    stopped = lrpjax.relevance(f, Composite([(select.kind("through"), rules.Stop()), exact]))(X)
    held = lambda x: x @ W + jax.lax.stop_gradient(through(x @ W))
    detached = lrpjax.relevance(held, Composite([exact]))(X)
    np.testing.assert_allclose(stopped, detached, rtol=1e-12)
    passed = lrpjax.relevance(FUNCTIONS["surrogate"], Composite([(select.kind("call"), rules.Pass())]))(X)
    y = spike(X @ W)
    R = y * (jnp.ones((3, 4)) @ W.T)
    np.testing.assert_allclose(passed, X * ((R / (X @ W)) @ W.T), rtol=1e-4)


def test_pairs_for_calls_leave_jaxs_own_functions_alone():
    """relu and softmax are `custom_jvp` functions too, which have rules."""
    f = lambda x: jax.nn.softmax(jax.nn.relu(through(x @ W)) @ W) @ W
    composite = Composite([(select.kind("call"), rules.Gradient())])
    units = [f"{u.kind}:{u.name}" for u in lrpjax.plan(f, composite, X)]
    assert {"call:through", "activation:relu", "softmax:softmax"} < set(units)
    assert [u for u in units if u.startswith("call")] == ["call:through"]
    with pytest.warns(lrpjax.UnmatchedWarning, match=r"kind\(call\)"):
        lrpjax.relevance(lambda x: jax.nn.relu(x @ W), composite)(X)


def test_a_value_inside_a_call_can_be_explained():
    @jax.custom_vjp
    def block(x):
        return jnp.tanh(lrpjax.tag(x @ W, "hidden")) @ W

    block.defvjp(lambda x: (block(x), x), lambda x, g: (g,))
    R = lrpjax.relevance(block, composites.gradient(), at="hidden")(X)
    np.testing.assert_allclose(R, (1 - jnp.tanh(X @ W) ** 2) * (jnp.ones((3, 4)) @ W.T), rtol=1e-12)


def test_shared_calls_are_told_apart():
    """One function called twice, in a jitted function that is traced once: a path names one of them."""
    inner = jax.jit(lambda x: through(x @ W))

    def f(x):
        with jax.named_scope("a"):
            x = inner(x)
        with jax.named_scope("b"):
            return inner(x)

    composite = Composite([(select.kind("call") & select.path("b"), rules.Gradient())])
    plan = lrpjax.plan(f, composite, X)
    assert [(u.path, u.kind) for u in plan] == [
        ("a", "dense"),
        ("a", "activation"),
        ("b", "dense"),
        ("b", "call"),
    ]

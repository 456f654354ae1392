"""Quantised layers in many writings, held against the plain layer with the dequantised kernel: on numbers that rounding
leaves alone, exactly; on others, up to what rounding does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close
from jax import lax

import lrpjax
from lrpjax import Composite, composites, rules, select

rng = np.random.default_rng(5)
BIAS = jnp.asarray(rng.normal(size=3))
F8 = jnp.float8_e4m3fn


def codes(w, axis, largest=127):
    scale = abs(w).max(axis, keepdims=True) / largest
    return jnp.round(w / scale).astype(jnp.int8), scale


KERNEL, IMAGE_KERNEL = jnp.asarray(rng.normal(size=(8, 3))), jnp.asarray(rng.normal(size=(3, 3, 2, 3)))
W, SCALE = codes(KERNEL, 0)
CW, CSCALE = codes(IMAGE_KERNEL, (0, 1, 2))
GW, GSCALE = codes(KERNEL.reshape(2, 4, 3), 1)
W4, SCALE4 = codes(KERNEL.reshape(2, 4, 3), 1, 7)
W8SCALE = abs(KERNEL).max(0, keepdims=True) / 448
W8 = (KERNEL / W8SCALE).astype(F8)

# On the grid: multiples of what the largest of each row, 127 of them, is divided into.
ROWS = rng.integers(-126, 127, size=(4, 8))
ROWS[:, 3] = 127
GROUPS = ROWS.copy()
GROUPS[:, 5] = -127
X = {
    "rows": jnp.asarray(ROWS * np.array([[0.02], [0.5], [1.0], [0.03]])),
    "one": jnp.asarray(ROWS * 0.02),
    "groups": jnp.asarray(GROUPS * 0.02),
    "positive": jnp.asarray(abs(ROWS) * 0.02),
}
IMAGES = rng.integers(-126, 127, size=(2, 5, 5, 2))
IMAGES[:, 2, 2, 1] = 127
X["images"] = jnp.asarray(IMAGES * 0.01)


def dot(q, w):
    return jax.lax.dot_general(q, w, (((q.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.int32)


def largest(x, axis=-1):
    return jnp.max(jnp.abs(x), axis, keepdims=True)


def each_row(x):
    s = largest(x) / 127
    return dot(jnp.clip(jnp.round(x / s), -127, 127).astype(jnp.int8), W).astype(x.dtype) * s * SCALE + BIAS


def whole_by_reciprocal(x):
    m = jnp.max(jnp.abs(x))
    return dot(jnp.round(x * (127 / m)).astype(jnp.int8), W) * ((m / 127) * SCALE) + BIAS


def guarded(x):
    m = largest(x)
    s = jnp.where(m == 0, 1.0, m / 127)
    return (dot(jnp.round(x * (1 / s)).astype(jnp.int8), W).astype(x.dtype) * SCALE) * s + BIAS


def bounded(x):
    s = jnp.maximum(largest(x), 1e-8) / 127
    return dot(jnp.floor(x / s + 0.5).astype(jnp.int8), W).astype(x.dtype) * (s * SCALE) + BIAS


def computed_twice(x):
    q = jnp.round(x / (largest(x) / 127)).astype(jnp.int8)
    return dot(q, W).astype(x.dtype) * ((largest(x) / 127) * SCALE) + BIAS


def held(x):
    """As aqt writes it: scales are stopped, and inverted with a guard."""
    s = jax.lax.stop_gradient(largest(x) / 127)
    inverse = s**-1
    inverse = jnp.where(jnp.isinf(inverse), 1.0, inverse)
    q = jnp.round(jnp.clip(x * inverse, -127, 127)).astype(jnp.int8)
    return dot(q, W).astype(x.dtype) * s.reshape(-1)[:, None] * SCALE + BIAS


@jax.custom_vjp
def held_in_a_call(x):
    s = jax.lax.stop_gradient(largest(x) / 127)
    return dot(jnp.round(x / s).astype(jnp.int8), W).astype(x.dtype) * s * SCALE, s


held_in_a_call.defvjp(lambda x: (held_in_a_call(x), None), lambda _, c: (c[0] @ (W * SCALE).T,))


def straight_through(x):
    """The bias stands outside of the function that has a derivative of its own, which returns its scale as well."""
    return held_in_a_call(x)[0] + BIAS


def static(x):
    return (
        dot(jnp.clip(jnp.round(x / 0.02), -128, 127).astype(jnp.int8), W).astype(x.dtype) * (0.02 * SCALE[0])
        + BIAS
    )


def in_numbers(x):
    s = largest(x) / 127
    return (jnp.round(x / s).astype(jnp.int8).astype(x.dtype) @ W.astype(x.dtype)) * s * SCALE + BIAS


def restored_first(x):
    s = largest(x) / 127
    return (jnp.round(x / s) * s) @ (W.astype(x.dtype) * SCALE) + BIAS


def restored_from_integers(x):
    s = largest(x) / 127
    return (jnp.round(x / s).astype(jnp.int8).astype(x.dtype) * s) @ (W.astype(x.dtype) * SCALE) + BIAS


def by_groups(x):
    x = x.reshape(4, 2, 4)
    s = largest(x) / 127
    z = jnp.einsum("bgk,gkn->bgn", jnp.round(x / s).astype(jnp.int8), GW, preferred_element_type=jnp.int32)
    return (z.astype(x.dtype) * s * GSCALE[:, 0]).sum(1) + BIAS


def kernel_by_groups(x):
    s = largest(x) / 127
    q = jnp.round(x / s).astype(jnp.int8).reshape(4, 2, 4)
    z = jnp.einsum("bgk,gkn->bgn", q, GW, preferred_element_type=jnp.int32)
    return (z.astype(x.dtype) * GSCALE[:, 0]).sum(1) * s + BIAS


def zero_point(x):
    s = largest(x) / 127
    zero = jnp.round(-x.min(-1, keepdims=True) / s)
    q = jnp.clip(jnp.round(x / s) + zero, 0, 255).astype(jnp.uint8)
    return (
        dot(q.astype(jnp.int32) - zero.astype(jnp.int32), W.astype(jnp.int32)).astype(x.dtype) * s * SCALE
        + BIAS
    )


def zero_point_behind(x):
    s = largest(x) / 127
    zero = jnp.round(-x.min(-1, keepdims=True) / s).astype(jnp.int32)
    q = jnp.clip(jnp.round(x / s) + zero.astype(x.dtype), 0, 255).astype(jnp.uint8)
    z = dot(q.astype(jnp.int32), W.astype(jnp.int32)) - zero * W.astype(jnp.int32).sum(0)
    return z.astype(x.dtype) * s * SCALE + BIAS


def zero_point_static(x):
    q = jnp.clip(jnp.round(x / 0.02) + 127, 0, 255).astype(jnp.uint8)
    z = dot(q.astype(jnp.int32), W.astype(jnp.int32)) - 127 * W.astype(jnp.int32).sum(0)
    return z.astype(x.dtype) * 0.02 * SCALE + BIAS


def one_example(x):
    def one(x):
        s = jnp.max(jnp.abs(x)) / 127
        return dot(jnp.round(x / s).astype(jnp.int8)[None], W)[0].astype(x.dtype) * s * SCALE[0] + BIAS

    return jax.vmap(one)(x)


def in_a_loop(x):
    return jax.lax.scan(lambda c, x: (c, each_row(x[None])[0]), 0, x)[1]


def in_a_branch(x):
    return jax.lax.cond(x.sum() > -1e9, each_row, lambda x: each_row(x) + 1.0, x)


def convolved(x):
    s = largest(x, (1, 2, 3)) / 127
    z = convolve(jnp.round(x / s).astype(jnp.int8), CW, preferred_element_type=jnp.int32)
    return z.astype(x.dtype) * s * CSCALE + BIAS


def padded(x):
    s = largest(x, (1, 2, 3)) / 127
    q = jnp.pad(jnp.round(x / s).astype(jnp.int8), [(0, 0), (1, 1), (1, 1), (0, 0)])
    z = convolve(q, CW, "VALID", preferred_element_type=jnp.int32)
    return z.astype(x.dtype) * s * CSCALE + BIAS


def convolve(x, w, padding="SAME", **options):
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=names, **options)


def plain(x):
    return x @ (W * SCALE) + BIAS


def plain_by_groups(x):
    return x @ (GW * GSCALE).reshape(8, 3) + BIAS


def plain_convolution(x):
    return convolve(x, CW * CSCALE) + BIAS


W2, SCALE2 = codes(jnp.asarray(rng.normal(size=(3, 5))), 0)
W3, SCALE3 = codes(jnp.asarray(rng.normal(size=(3, 5))), 0)
NUMBERS = jnp.asarray(rng.normal(size=(4, 8)))

WRITINGS = {
    each_row: (plain, "rows"),
    whole_by_reciprocal: (plain, "one"),
    guarded: (plain, "rows"),
    bounded: (plain, "rows"),
    computed_twice: (plain, "rows"),
    held: (plain, "rows"),
    straight_through: (plain, "rows"),
    static: (plain, "one"),
    in_numbers: (plain, "rows"),
    restored_first: (plain, "rows"),
    restored_from_integers: (plain, "rows"),
    by_groups: (plain_by_groups, "groups"),
    kernel_by_groups: (plain_by_groups, "rows"),
    zero_point: (plain, "rows"),
    zero_point_behind: (plain, "rows"),
    zero_point_static: (plain, "one"),
    one_example: (plain, "rows"),
    in_a_loop: (plain, "rows"),
    in_a_branch: (plain, "rows"),
    convolved: (plain_convolution, "images"),
    padded: (plain_convolution, "images"),
}
FULLY = (each_row, static, kernel_by_groups, zero_point_behind, convolved)
RULES = {
    "epsilon": rules.Epsilon(0.1),
    "without bias": rules.Epsilon(0.1, bias=False),
    "z+": rules.ZPlus(),
    "gamma": rules.Gamma(0.25),
    "alpha-beta": rules.AlphaBeta(2.0, 1.0),
    "flat": rules.Flat(),
    "w2": rules.WSquare(),
    "box": rules.ZBox(-70.0, 70.0),
    "gradient": rules.Gradient(),
}


@pytest.fixture(autouse=True)
def promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def composite(rule):
    return Composite([(select.kind("dense"), rule), (select.kind("conv"), rule)], preset="of one rule")


# Writings that are not in FULLY are the same unit as one that is.
PAIRS = [(f, rule) for f in WRITINGS for rule in RULES if f in FULLY or rule in ("epsilon", "alpha-beta")]


@pytest.mark.parametrize(("f", "rule"), PAIRS, ids=[f"{f.__name__}-{rule}" for f, rule in PAIRS])
def test_it_is_the_layer_with_the_dequantised_kernel(f, rule):
    reference, x = WRITINGS[f]
    x, how = X[x], composite(RULES[rule])
    close(f(x), reference(x), 1e-6)
    target = np.asarray(reference(x))
    wanted = lrpjax.relevance(reference, how, target=target)(x)
    relevance = lrpjax.relevance(f, how, target=target)
    found = (jax.jit(relevance) if rule == "epsilon" else relevance)(x)
    close(found, wanted, 1e-6, of_largest=True)


@pytest.mark.parametrize("f", WRITINGS, ids=lambda f: f.__name__)
def test_between_the_grid_rounding_is_all_that_differs(f):
    reference, name = WRITINGS[f]
    x = X[name] * 0.7 + 0.013 * jnp.sin(jnp.arange(X[name].size, dtype=float)).reshape(X[name].shape)
    target = np.asarray(reference(x))
    for rule in (rules.ZPlus(), rules.ZBox(-70.0, 70.0)):
        wanted = lrpjax.relevance(reference, composite(rule), target=target)(x)
        close(lrpjax.relevance(f, composite(rule), target=target)(x), wanted, 0.05, of_largest=True)
    exact = composite(rules.Epsilon(0.0, bias=False))
    close(lrpjax.relevance(f, exact)(x).sum(), f(x).sum(), 1e-9)
    plan = lrpjax.plan(f, None, x)
    assert {unit.kind for unit in plan} in ({"dense"}, {"conv"}) and plan.notes == []


@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize("rule", [rules.Epsilon(1.0), rules.ZPlus()])
def test_eight_bits_of_floating_point(restored, rule):
    def f(x):
        s = largest(x) / 448
        q = jnp.clip(x / s, -448, 448).astype(F8)
        if restored:
            return (q.astype(x.dtype) * s) @ (W8.astype(x.dtype) * W8SCALE) + BIAS
        z = jax.lax.dot_general(q, W8, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return z.astype(x.dtype) * s * W8SCALE + BIAS

    x, target = NUMBERS, np.ones((4, 3))
    x = jnp.round(x * 4) / 4  # which eight bits hold, times a power of two
    x = x.at[:, 0].set(3.5)
    reference = lambda x: x @ (W8.astype(x.dtype) * W8SCALE) + BIAS
    wanted = lrpjax.relevance(reference, composite(rule), target=target)(x)
    close(lrpjax.relevance(f, composite(rule), target=target)(x), wanted, 1e-5, of_largest=True)
    assert len(lrpjax.plan(f, None, x).units) == 1


def test_two_layers_with_an_activation_between_and_codes_read_twice():
    (w2, s2), (w3, s3) = (W2, SCALE2), (W3, SCALE3)

    def f(x, static=False):
        h = jax.nn.relu(each_row(x))
        s = 0.1 if static else largest(h) / 127
        q = jnp.clip(jnp.round(h / s), -127, 127).astype(jnp.int8)
        return jnp.concatenate([dot(q, w2) * s * s2, dot(q, w3) * s * s3], -1)

    def reference(x):
        h = jax.nn.relu(plain(x))
        return jnp.concatenate([h @ (w2 * s2), h @ (w3 * s3)], -1)

    x, static = X["one"], lambda x: f(x, static=True)
    target = np.asarray(reference(x))
    for how in (composite(rules.Epsilon(1e-3)), composite(rules.ZPlus())):
        wanted = lrpjax.relevance(reference, how, target=target)(x)
        close(lrpjax.relevance(f, how, target=target)(x), wanted, 0.03, of_largest=True)
        close(lrpjax.relevance(static, how, target=target)(x), wanted, 0.1, of_largest=True)
        assert [u.kind for u in lrpjax.plan(static, how, x)] == ["dense", "activation", "dense", "dense"]
    assert [u.kind for u in lrpjax.plan(f, None, x)] == ["dense", "activation", "dense", "dense"]


def test_without_an_activation_between_negative_values_count_too():
    w2, s2 = W2, SCALE2

    def f(x):
        h = each_row(x)
        s = largest(h) / 127
        return dot(jnp.round(h / s).astype(jnp.int8), w2) * s * s2

    exact = composite(rules.Epsilon(0.0, bias=False))
    close(lrpjax.relevance(f, exact)(X["rows"]).sum(), f(X["rows"]).sum())


@pytest.mark.parametrize("bits", [8, 4])
def test_kernels_alone_may_be_quantised(bits):
    w, s = (GW, GSCALE) if bits == 8 else (W4.astype(jnp.int4), SCALE4)
    f = lambda x: x @ (w.astype(x.dtype) * s).reshape(8, 3) + BIAS
    reference = lambda x: x @ jnp.asarray(np.asarray(w, float) * np.asarray(s)).reshape(8, 3) + BIAS
    for rule in RULES.values():
        wanted = lrpjax.relevance(reference, composite(rule))(X["rows"])
        close(lrpjax.relevance(f, composite(rule))(X["rows"]), wanted, 1e-9)


def test_scales_that_do_not_cancel_are_no_quantised_layer():
    forgotten = lambda x: dot(jnp.round(x * (127 / largest(x))).astype(jnp.int8), W) * largest(x) ** 2
    with pytest.warns(lrpjax.CutWarning, match="convert_element_type"):
        lrpjax.relevance(forgotten)(X["rows"])
    along_the_sum = lambda x: dot(jnp.round(x / abs(x)).astype(jnp.int8), W) * abs(x).max(-1, keepdims=True)
    with pytest.warns(lrpjax.CutWarning, match="convert_element_type"):
        lrpjax.relevance(along_the_sum)(X["rows"])


def test_the_gradient_is_that_of_the_program():
    with pytest.warns(lrpjax.CutWarning):
        found = lrpjax.relevance(each_row, lrpjax.composites.gradient())(X["rows"])
    close(found, jax.grad(lambda x: each_row(x).sum())(X["rows"]))


def test_an_audit_closes():
    audit = lrpjax.audit(each_row, composite(rules.Epsilon(1e-6)))(X["rows"])
    (row,) = audit.units
    close(row.relevance_in, row.relevance_out + row.bias + row.epsilon, 1e-6)


def test_scales_of_narrow_floats_take_nothing_in_attention():
    """Both operands of the scores are cast to float8: each scale divides before and multiplies behind."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 6)))
    query, key, value = (jnp.asarray(rng.normal(size=(6, 6)) * 0.4) for _ in range(3))

    def codes(x, largest=lambda x: jnp.abs(x).max(-1, keepdims=True)):
        scale = jnp.maximum(largest(x), 1e-9) / 448.0
        return (x / scale).astype(jnp.float8_e4m3fn), scale

    def attention(x):
        (q, a), (k, b) = codes(x @ query), codes(x @ key)
        scores = lax.dot_general(q, k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        return jax.nn.softmax(scores.astype(x.dtype) * a * b.T) @ (x @ value)

    plain = lambda x: jax.nn.softmax((x @ query) @ (x @ key).T) @ (x @ value)
    kinds = {u.name for u in lrpjax.plan(attention, composites.attnlrp(), x)}
    assert "max_pool" not in kinds  # the largest size is a constant of the relevance
    ours, wanted = (lrpjax.relevance(f, composites.attnlrp())(x) for f in (attention, plain))
    np.testing.assert_allclose(ours, wanted, atol=0.25 * np.abs(wanted).max())  # float8 has 3 bits


@pytest.mark.parametrize("rectified", [False, True])
def test_a_layer_that_is_rescaled_for_the_next_one_at_once_ends_there(rectified):
    """Integers all along, as in inference with static scales: one number takes the codes of a layer to those of the
    next, and clipping at zero is the ReLU."""
    s, ws = 0.02, SCALE.max()
    w, bias = jnp.round(KERNEL / ws).astype(jnp.int8), jnp.round(BIAS / (s * ws))
    low = 0 if rectified else -127

    def f(x):
        q = jnp.clip(jnp.round(x / s), -127, 127).astype(jnp.int8)
        between = dot(q, w) + bias.astype(jnp.int32)
        q = jnp.clip(jnp.round(between * (s * ws / 0.1)), low, 127).astype(jnp.int8)
        return dot(q, W2) * (0.1 * SCALE2)

    def reference(x):
        h = x @ (w * ws) + bias * (s * ws)
        return (jax.nn.relu(h) if rectified else h) @ (W2 * SCALE2)

    x, target = X["one"], np.asarray(reference(X["one"]))
    for rule in (rules.ZPlus(), rules.Flat()):
        wanted = lrpjax.relevance(reference, composite(rule), target=target)(x)
        close(lrpjax.relevance(f, composite(rule), target=target)(x), wanted, 0.05, of_largest=True)
    exact = composite(rules.Epsilon(0.0, bias=False))
    close(lrpjax.relevance(f, exact)(x).sum(), f(x).sum(), 1e-9)
    plan = lrpjax.plan(f, None, x)
    assert [unit.kind for unit in plan] == ["dense", "dense"] and plan.notes == []


def test_the_least_of_each_row_that_is_taken_off_and_added_behind_is_a_zero_point():
    def f(x):
        least = x.min(-1, keepdims=True)
        s = (x.max(-1, keepdims=True) - least) / 255
        q = jnp.round((x - least) / s).astype(jnp.uint8).astype(jnp.int32)
        w = W.astype(jnp.int32)
        return (dot(q, w) * s + least * w.sum(0)) * SCALE + BIAS

    target = np.asarray(plain(X["rows"]))
    for rule in (rules.Epsilon(0.1), rules.ZPlus(), rules.Flat()):
        wanted = lrpjax.relevance(plain, composite(rule), target=target)(X["rows"])
        close(lrpjax.relevance(f, composite(rule), target=target)(X["rows"]), wanted, 0.02, of_largest=True)
    assert [unit.kind for unit in lrpjax.plan(f, None, X["rows"])] == ["dense"]


def test_the_gradient_of_narrow_floats_counts_their_scales():
    """Where casting rounds the cotangents too, the scales have a part in the derivative that does not cancel."""

    def f(x):
        scale = jnp.max(jnp.abs(x), -1, keepdims=True) / 448
        codes = lax.dot_general((x / scale).astype(F8), W8, (((1,), (0,)), ((), ())))
        return (codes.astype(x.dtype) * scale * W8SCALE)[:, 0]

    found = jax.jit(lrpjax.relevance(f, composites.input_x_gradient()))(X["rows"])
    close(found, jax.jit(jax.grad(lambda x: f(x).sum()))(X["rows"]) * X["rows"])

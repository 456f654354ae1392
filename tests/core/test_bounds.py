"""Bounds of z^B belong to the elements of the function's argument, wherever the network moves these before its first layer."""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lrpjax
from lrpjax import rules, select

close = functools.partial(helpers.close, tolerance=1e-10, relative=1e-9)

RNG = np.random.default_rng(0)
N, H, W, C, OUT = 2, 5, 4, 3, 4
KERNEL = RNG.normal(size=(OUT, C, 3, 3))
HEAD = RNG.normal(size=OUT * H * W)
LOW, HIGH = rules.box([0.5, 0.4, 0.3], [0.2, 0.3, 0.25])
X = RNG.uniform(LOW, HIGH, size=(N, H, W, C))
FIRST = lambda a: a.transpose(0, 3, 1, 2)
LAST = lambda a: a.transpose(0, 2, 3, 1)


MIXED = {  # rearranged by what bounds do not follow, in front of the transposition
    "gather": lambda x: x[..., np.array([2, 1, 0])],
    "roll": lambda x: jnp.roll(x, 1, axis=2),
    "concatenate": lambda x: jnp.concatenate([x, x], axis=1),
}


@pytest.mark.parametrize("name", MIXED)
def test_what_is_not_followed_is_an_error_where_bounds_fit_both_ends(name):
    """As many columns as channels: bounds per channel would be read by column."""
    f = lambda x: network_of(FIRST(MIXED[name](x)))
    explain = lrpjax.relevance(f, lrpjax.Composite([(select.first("conv"), rules.ZBox(LOW, HIGH))]))
    square = jnp.asarray(X[:, :, :3])
    with pytest.raises(
        lrpjax.RuleError, match=r"(?s)low has shape \(3,\).*not followed through.*Rearrange the input"
    ):
        explain(square)
    numbers = lrpjax.Composite([(select.first("conv"), rules.ZBox(-3.0, 3.0))])
    assert jnp.isfinite(lrpjax.relevance(f, numbers)(square)).all()
    scaled = lambda x: network_of(
        (FIRST(MIXED[name](x)) - 0.5) / 0.2
    )  # computed on the way: bounds are the layer's
    of_layer = lrpjax.Composite([(select.first("conv"), rules.ZBox(-np.ones(3), np.ones(3)))])
    assert jnp.isfinite(lrpjax.relevance(scaled, of_layer)(square)).all()


def network_of(x):
    return jax.nn.relu(lax.conv_general_dilated(x, KERNEL, (1, 1), "SAME")).sum((1, 2, 3))


def network(x):
    """Channels first, with zeros around the pixels."""
    z = lax.conv_general_dilated(x, KERNEL, (1, 1), "SAME")
    return jax.nn.relu(z).reshape(len(x), -1) @ HEAD[: z[0].size]


def explain(f, low, high, x):
    pairs = [(select.kind("conv"), rules.ZBox(low, high)), (select.kind("dense"), rules.Epsilon())]
    return lrpjax.relevance(f, lrpjax.Composite(pairs))(x)


WANTED = LAST(explain(network, LOW[:, None, None], HIGH[:, None, None], FIRST(X)))
"""With the layout handled outside of the function that is explained."""


def loop(x, low, high):
    """z^B of `network` for one image of channels first, one connection at a time; below an ε-rule of the head."""
    R = np.zeros(x.shape)
    padded = lambda a: np.pad(np.broadcast_to(a, x.shape), ((0, 0), (1, 1), (1, 1)))
    px, pl, ph = padded(x), padded(low), padded(high)
    z = np.array(
        [
            [[(KERNEL[o] * px[:, i : i + 3, j : j + 3]).sum() for j in range(W)] for i in range(H)]
            for o in range(OUT)
        ]
    )
    contributions = np.maximum(z, 0).ravel() * HEAD
    y = contributions.sum()
    relevance = (contributions / (y + 1e-6 * np.sign(y)) * y).reshape(z.shape)
    for o, i, j in np.ndindex(*z.shape):
        at = np.s_[:, i : i + 3, j : j + 3]
        w = KERNEL[o]
        shares = px[at] * w - pl[at] * np.maximum(w, 0) - ph[at] * np.minimum(w, 0)
        part = np.zeros(px.shape)
        part[at] = shares / (shares.sum() + 1e-6) * relevance[o, i, j]
        R += part[:, 1:-1, 1:-1]
    return R


def test_a_loop_over_connections_agrees():
    for x, R in zip(X, WANTED, strict=True):
        close(LAST(loop(x.transpose(2, 0, 1), LOW[:, None, None], HIGH[:, None, None])[None])[0], R)


WRITINGS = {
    "transposed": lambda x: network(FIRST(x)),
    "in two steps": lambda x: network(jnp.swapaxes(jnp.moveaxis(x, 3, 2), 1, 2)),
    "flat pixels": lambda x: network(x.reshape(N, H * W, C).transpose(0, 2, 1).reshape(N, C, H, W)),
    "recomputed": lambda x: jax.checkpoint(network)(FIRST(x)),
    "recomputed with the layout": jax.checkpoint(lambda x: network(FIRST(x))),
    "in a branch": lambda x: lax.cond(
        x.shape[0] == N, lambda x: network(FIRST(x)), lambda x: network(FIRST(x)), x
    ),
    "one by one": lambda x: lax.map(lambda x: network(FIRST(x[None]))[0], x),
    "vmapped": jax.vmap(lambda x: network(x.transpose(2, 0, 1)[None])[0]),
    "channels last": lambda x: (
        jax.nn.relu(
            lax.conv_general_dilated(
                x, KERNEL.transpose(2, 3, 1, 0), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        )
        .transpose(0, 3, 1, 2)
        .reshape(len(x), -1)
        @ HEAD
    ),
    "turned twice": lambda x: network(FIRST(x[:, ::-1])[:, :, ::-1]),
    "a part of more": lambda x: network(FIRST(jnp.pad(x, ((0, 0), (2, 2), (0, 0), (0, 0)))[:, 2:-2])),
    "in halves": lambda x: jnp.concatenate([network(FIRST(half)) for half in jnp.split(x, 2)]),
    "named": lambda x: network(jax.ad_checkpoint.checkpoint_name(FIRST(x), "pixels")),
}


@pytest.mark.parametrize("f", WRITINGS.values(), ids=WRITINGS)
def test_bounds_are_moved_as_the_argument_is(f):
    close(explain(f, LOW, HIGH, X), WANTED)
    close(jax.jit(functools.partial(explain, f))(LOW, HIGH, X), WANTED)


def transposed(x):
    return network(FIRST(x))


def test_each_pixel_may_have_bounds_of_its_own():
    low, high = LOW - RNG.uniform(size=X.shape), HIGH + RNG.uniform(size=X.shape)
    wanted = np.stack(
        [LAST(loop(*(FIRST(a[None])[0] for a in each))[None])[0] for each in zip(X, low, high, strict=True)]
    )
    close(explain(transposed, low, high, X), wanted)
    one = low[0], high[0]
    close(explain(transposed, *one, X), LAST(explain(network, *(FIRST(a[None]) for a in one), FIRST(X))))


def test_bounds_travel_through_transformations():
    scales = np.array([1.0, 1.5, 2.0])
    wanted = np.stack([explain(transposed, s * LOW, s * HIGH, X) for s in scales])
    lows, highs = scales[:, None] * LOW, scales[:, None] * HIGH
    over = lambda f: jax.vmap(f, in_axes=(0, 0, None))(lows, highs, X)
    close(over(lambda low, high, x: explain(transposed, low, high, x)), wanted)
    turn = lambda _, bounds: (None, explain(transposed, *bounds, X))
    close(lax.scan(turn, None, (lows, highs))[1], wanted)
    single = lambda x: explain(transposed, LOW, HIGH, x[None])[0]
    close(jax.vmap(single)(X), WANTED)


def test_what_the_argument_is_padded_with_is_its_own_bounds():
    """A pixel that is always 0.5 can be nothing else: it takes no relevance from the others."""
    padded = lambda x: network(
        FIRST(jnp.pad(x[:, 1:-1], ((0, 0), (1, 1), (0, 0), (0, 0)), constant_values=0.5))
    )
    inner = X[:, 1:-1]
    fill = lambda v: np.pad(
        np.broadcast_to(v, inner.shape), ((0, 0), (1, 1), (0, 0), (0, 0)), constant_values=0.5
    )
    wanted = LAST(explain(network, *(FIRST(fill(v)) for v in (LOW, HIGH, inner))))
    assert np.abs(wanted[:, [0, -1]]).max() == 0
    close(explain(padded, LOW, HIGH, X), np.pad(wanted[:, 1:-1], ((0, 0), (1, 1), (0, 0), (0, 0))))


def test_the_argument_counts_where_both_readings_fit():
    """Images that are as wide as they have channels."""
    x = X[:, :, :C]
    wanted = LAST(explain(network, LOW[:, None, None], HIGH[:, None, None], FIRST(x)))
    of_columns = LAST(explain(network, LOW, HIGH, FIRST(x)))
    assert np.abs(wanted - of_columns).max() > 0.1
    close(explain(transposed, LOW, HIGH, x), wanted)


@pytest.mark.parametrize(
    "f", [lambda x: network(FIRST(x)), lambda x: network(jnp.tanh(FIRST(x)))], ids=["moved", "computed"]
)
def test_bounds_that_fit_only_the_layer_are_the_layers(f):
    wide = explain(f, LOW[:, None, None], HIGH[:, None, None], X)
    each = lambda v: np.broadcast_to(v[:, None, None], (C, H, W))
    close(explain(f, each(LOW), each(HIGH), X), wide)


def test_a_layer_behind_arithmetic_reads_its_own_input():
    with pytest.raises(
        lrpjax.RuleError, match=r"low has shape \(3,\), .* the layer's input of shape \(2, 3, 5, 4\)"
    ):
        explain(lambda x: network(2.0 * FIRST(x)), LOW, HIGH, X)


def test_one_bound_may_be_a_number_and_precision_is_kept():
    lowest = float(LOW.min())
    close(explain(transposed, lowest, HIGH, X), explain(transposed, np.full(3, lowest), HIGH, X))
    half = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), (KERNEL, HEAD))
    f = lambda x: lax.conv_general_dilated(x, half[0], (1, 1), "SAME").reshape(N, -1) @ half[1]
    x = jnp.asarray(X, jnp.bfloat16)
    wanted = explain(f, LOW[:, None, None], HIGH[:, None, None], x.transpose(0, 3, 1, 2)).transpose(
        0, 2, 3, 1
    )
    found = explain(lambda x: f(x.transpose(0, 3, 1, 2)), LOW, HIGH, x)
    np.testing.assert_array_equal(found.astype(float), wanted.astype(float))

"""Each rule against its printed formula, computed one connection at a time in NumPy."""

import dataclasses
import functools
import itertools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lrpjax
from lrpjax import composites, rules, select

close = functools.partial(helpers.close, tolerance=1e-10, relative=1e-9)

# ------------------------------------------------------------------------------------------------------------------------- the oracle


def quotient(a, b, epsilon):
    """a / (b + ε sign b) with sign(0) = +1 and 0/0 = 0."""
    b = b + epsilon if b >= 0 else b - epsilon
    return 0.0 if b == 0 else a / b


def parts(rule, x, w, b):
    """For one unit with inputs x, weights w of its connections and bias b: pairs of (numerator for each connection, denominator)."""
    pos, neg = (lambda v: max(v, 0.0)), (lambda v: min(v, 0.0))
    contributions = [xi * wi for xi, wi in zip(x, w, strict=True)]
    z, kept = sum(contributions) + b, b if getattr(rule, "bias", True) else 0.0
    if isinstance(rule, (rules.Epsilon, rules.Norm)):
        return [(contributions, sum(contributions) + kept)]
    if isinstance(rule, rules.ZPlus):
        rule = rules.AlphaBeta(1.0, 0.0, rule.epsilon, rule.bias)
    if isinstance(rule, rules.AlphaBeta):
        above, below = [pos(c) for c in contributions], [neg(c) for c in contributions]
        return [
            ([rule.alpha * c for c in above], sum(above) + pos(kept)),
            ([-rule.beta * c for c in below], sum(below) + neg(kept)),
        ]
    if isinstance(rule, rules.Gamma):
        if z == 0:
            return []
        favoured = pos if z > 0 else neg
        raised = [c + rule.gamma * favoured(c) for c in contributions]
        return [(raised, sum(raised) + kept + rule.gamma * favoured(kept))]
    if isinstance(rule, rules.ZBox):
        boxed = [c - rule.low * pos(wi) - rule.high * neg(wi) for c, wi in zip(contributions, w, strict=True)]
        return [(boxed, sum(boxed))]
    if isinstance(rule, rules.WSquare):
        return [([wi**2 for wi in w], sum(wi**2 for wi in w) + kept**2)]
    if isinstance(rule, rules.Flat):
        return [([1.0] * len(w), float(len(w)))]
    raise AssertionError(rule)


def expected(rule, x, w, b, R, connected=None):
    """The relevance of x (n,) for a layer of kernel w (n, m), bias b (m,) and output relevance R (m,)."""
    connected = np.ones(w.shape, bool) if connected is None else connected
    found = np.zeros(len(x))
    for j in range(w.shape[1]):
        inputs = np.flatnonzero(connected[:, j])
        for numerators, denominator in parts(rule, x[inputs], w[inputs, j], b[j]):
            for i, numerator in zip(inputs, numerators, strict=True):
                found[i] += quotient(numerator, denominator, rule.epsilon) * R[j]
    return found


RULES = [
    rules.Epsilon(),
    rules.Epsilon(0.25),
    rules.Epsilon(0.0),
    rules.Epsilon(1e-3, bias=False),
    rules.Gamma(),
    rules.Gamma(0.7, epsilon=0.0, bias=False),
    rules.AlphaBeta(),
    rules.AlphaBeta(1.4, 0.4, epsilon=0.0, bias=False),
    rules.ZPlus(),
    rules.ZPlus(epsilon=0.0, bias=False),
    rules.ZBox(-2.0, 3.0),
    rules.WSquare(),
    rules.WSquare(bias=False, epsilon=0.0),
    rules.Flat(),
    rules.Norm(0.1),
]
all_rules = pytest.mark.parametrize("rule", RULES, ids=lambda r: str(r).replace(" ", ""))
TWO = [rules.Gamma(), rules.Flat()]
"""One rule that needs kernels split by sign, in ratio form, and one in plain form."""


def everywhere(rule):
    return lrpjax.Composite([(select.kind("dense", "conv"), rule)])


def explain(f, rule, x, R):
    """R(x) of a function whose layers all have this rule, started with relevance R at the output."""
    return np.asarray(lrpjax.relevance(f, everywhere(rule), target=jnp.asarray(R))(jnp.asarray(x)))


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def dense(rng, n=6, m=5):
    return rng.normal(size=(n, m)), rng.normal(size=m)


def inputs(rng, kind, n):
    x = rng.normal(size=n)
    return {
        "both signs": x,
        "positive": np.abs(x),
        "zeros": np.where(np.arange(n) % 2, 0.0, x),
        "all zero": np.zeros(n),
    }[kind]


# -------------------------------------------------------------------------------------------------------------------------- dense layers


@all_rules
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("kind", ["both signs", "positive", "zeros", "all zero"])
def test_dense_layer_follows_the_formula(rule, bias, kind, rng):
    w, b = dense(rng)
    b = b if bias else np.zeros_like(b)
    x, R = inputs(rng, kind, 6), rng.normal(size=5)
    f = (lambda x: x @ w + b) if bias else (lambda x: x @ w)
    close(explain(f, rule, x, R), expected(rule, x, w, b, R))


@all_rules
def test_unit_without_any_positive_contribution_gives_no_nan(rule):
    """All that z⁺ could share is zero: 0/0."""
    w, b = np.array([[-1.0, 0.0], [-2.0, 0.0]]), np.array([0.0, -1.0])
    x, R = np.array([1.0, 3.0]), np.array([1.0, 1.0])
    close(explain(lambda x: x @ w + b, rule, x, R), expected(rule, x, w, b, R))


def test_hand_computed_layer():
    """The numbers in RelevancePropagation.jl's tests: z = [18, 25], so R = [3/18·1/3 + 5/25·2/3, 2·(4/18·1/3 + 6/25·2/3)]."""
    w, b = np.array([[3.0, 5.0], [4.0, 6.0]]), np.array([7.0, 8.0])
    R = explain(lambda x: x @ w + b, rules.Epsilon(0.0), [1.0, 2.0], [1 / 3, 2 / 3])
    np.testing.assert_allclose(R, [17 / 90, 316 / 675], rtol=1e-14)


CHAINS = {
    "bias first": (lambda z, s, t: t + z, lambda s, t: (1.0, t)),
    "scale": (lambda z, s, t: z * s, lambda s, t: (s, 0 * t)),
    "scale and shift": (lambda z, s, t: s * z + t, lambda s, t: (s, t)),
    "one number": (lambda z, s, t: 0.5 * z + t, lambda s, t: (0.5, t)),
    "negated": (lambda z, s, t: -z + t, lambda s, t: (-1.0, t)),
    "constant minus layer": (lambda z, s, t: t - z, lambda s, t: (-1.0, t)),
    "layer minus constant": (lambda z, s, t: z - t, lambda s, t: (1.0, -t)),
    "division": (lambda z, s, t: (z + t) / s, lambda s, t: (1 / s, t / s)),
    "BatchNorm": (lambda z, s, t: (z + t - 0.3) * lax.rsqrt(s * s + 1e-3) * s + 1.0, None),
    "two shifts": (lambda z, s, t: (z + t) * 2.0 + s, lambda s, t: (2.0, 2 * t + s)),
    "reshapes": (lambda z, s, t: (z.reshape(1, 5) + t).reshape(5) * s, lambda s, t: (s, s * t)),
    "summand twice": (lambda z, s, t: z + t + t, lambda s, t: (1.0, 2 * t)),
}


def folded_batch_norm(s, t):
    g = s / np.sqrt(s * s + 1e-3)
    return g, (t - 0.3) * g + 1.0


@all_rules
@pytest.mark.parametrize("chain", CHAINS)
def test_constants_behind_a_layer_are_folded_into_it(rule, chain, rng):
    """Scales of both signs, so that a rule that looked at the kernel alone would mistake signs."""
    (w, _), x, R = dense(rng), rng.normal(size=6), rng.normal(size=5)
    s, t = np.array([-1.5, 0.7, -0.4, 2.0, 1.0]), rng.normal(size=5)
    after, fold = CHAINS[chain]
    scale, shift = (fold or folded_batch_norm)(s, t)
    wanted = expected(rule, x, w * scale, shift, R)
    close(explain(lambda x: after(x @ w, s, t), rule, x, R), wanted)


@pytest.mark.parametrize("rule", TWO, ids=str)
@pytest.mark.parametrize("outer", [jax.jit, lambda f: f], ids=["kernel traced", "kernel known"])
@pytest.mark.parametrize("chain", ["scale and shift", "division", "constant minus layer"])
def test_kernels_known_and_unknown_when_tracing_give_the_same(rule, outer, chain, rng):
    (w, t), x, R = dense(rng), rng.normal(size=6), rng.normal(size=5)
    s = np.array([-1.5, 0.7, -0.4, 2.0, 1.0])
    after, fold = CHAINS[chain]
    scale, shift = fold(s, t)
    f = lambda x, w, s, t: after(x @ w, s, t)
    R_found = outer(lambda *a: lrpjax.relevance(f, everywhere(rule), target=R)(*a))(
        *map(jnp.asarray, (x, w, s, t))
    )
    close(R_found, expected(rule, x, w * scale, shift, R))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: str(r).replace(" ", ""))
@pytest.mark.parametrize("above", RULES, ids=lambda r: str(r).replace(" ", ""))
def test_two_layers_with_a_relu_between(rule, above, rng):
    """Every pair of rules: what one layer hands on, the ReLU passes and the other takes, dead units included."""
    (w, b), (v, c), x, R = dense(rng), dense(rng, 5, 3), rng.normal(size=6), rng.normal(size=3)
    hidden = np.maximum(x @ w + b, 0.0)
    assert (hidden == 0).any()
    wanted = expected(rule, x, w, b, expected(above, hidden, v, c, R))

    def f(x):
        with jax.named_scope("below"):
            x = jax.nn.relu(x @ w + b)
        with jax.named_scope("above"):
            return x @ v + c

    composite = lrpjax.Composite([(select.kind("dense") & select.path("below"), rule), ("above", above)])
    close(lrpjax.relevance(f, composite, target=jnp.asarray(R))(jnp.asarray(x)), wanted)


@all_rules
def test_negative_input_that_a_relu_rules_out_is_not_assumed_away(rule, rng):
    """Two inputs of a layer's operand, one rectified and one not, joined: its sign is unknown."""
    (w, b), x, R = dense(rng), rng.normal(size=6), rng.normal(size=5)
    f = lambda x: jnp.concatenate([jax.nn.relu(x[:3]), x[3:]]) @ w + b
    joined = np.concatenate([np.maximum(x[:3], 0.0), x[3:]])
    close(explain(f, rule, x, R), expected(rule, joined, w, b, R))


# -------------------------------------------------------------------------------------------------------------------------- convolutions


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution in canonical layout: x (C, *space), kernel (O, C / groups, *window)."""

    space: tuple = (6,)
    window: tuple = (3,)
    channels: tuple = (2, 4)
    stride: tuple = (1,)
    padding: tuple = ((1, 1),)
    dilation: tuple = (1,)
    input_dilation: tuple = (1,)
    groups: int = 1
    layout: str = "channels first"

    def specs(self):
        s = "DHW"[-len(self.space) :]
        return (
            ("NC" + s, "OI" + s, "NC" + s)
            if self.layout == "channels first"
            else ("N" + s + "C", s + "IO", "N" + s + "C")
        )

    def function(self, kernel, b):
        """f(x) for x in the layout's own order, with a batch of one."""
        last = self.layout != "channels first"
        if last:
            kernel = np.moveaxis(kernel, (0, 1), (-1, -2))
        bias = b if last else b.reshape(-1, *[1] * len(self.space))

        def f(x):
            z = lax.conv_general_dilated(
                x,
                jnp.asarray(kernel),
                self.stride,
                self.padding,
                self.input_dilation,
                self.dilation,
                self.specs(),
                self.groups,
            )
            return z + bias

        return f

    def matrix(self, kernel):
        """The convolution as a matrix (inputs, outputs), by loops, and which of its entries are connections."""
        dilated = [(n - 1) * d + 1 for n, d in zip(self.space, self.input_dilation, strict=True)]
        reach = [(k - 1) * d + 1 for k, d in zip(self.window, self.dilation, strict=True)]
        out = [
            (n + sum(p) - r) // s + 1
            for n, p, r, s in zip(dilated, self.padding, reach, self.stride, strict=True)
        ]
        c_in, c_out = self.channels
        w = np.zeros((c_in, *self.space, c_out, *out))
        connected = np.zeros(w.shape, bool)
        for o, position in itertools.product(range(c_out), np.ndindex(*out)):
            for i, offset in itertools.product(range(c_in // self.groups), np.ndindex(*self.window)):
                at = [
                    p * s + k * d - pad[0]
                    for p, s, k, d, pad in zip(
                        position, self.stride, offset, self.dilation, self.padding, strict=True
                    )
                ]
                inside = all(
                    0 <= a < n and a % d == 0
                    for a, n, d in zip(at, dilated, self.input_dilation, strict=True)
                )
                if inside:
                    c = o // (c_out // self.groups) * (c_in // self.groups) + i
                    index = (c, *(a // d for a, d in zip(at, self.input_dilation, strict=True)), o, *position)
                    w[index], connected[index] = kernel[(o, i, *offset)], True
        n = c_in * int(np.prod(self.space))
        return w.reshape(n, -1), connected.reshape(n, -1), (c_out, *out)


CONVS = {
    "1d": Conv(),
    "1d causal": Conv(padding=((2, 0),)),
    "2d same": Conv((4, 5), (3, 3), (2, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1)),
    "2d valid, strided": Conv(
        (5, 4), (3, 2), (2, 3), (2, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), layout="channels last"
    ),
    "2d dilated": Conv((6, 5), (2, 2), (2, 2), (1, 1), ((1, 0), (0, 1)), (2, 3), (1, 1)),
    "2d grouped": Conv((4, 4), (2, 2), (4, 6), (2, 2), ((0, 0), (0, 0)), (1, 1), (1, 1), 2, "channels last"),
    "2d depthwise": Conv(
        (4, 4), (3, 3), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 3, "channels last"
    ),
    "2d transposed": Conv(
        (3, 3), (3, 3), (2, 3), (1, 1), ((2, 1), (2, 1)), (1, 1), (2, 2), layout="channels last"
    ),
    "2d strides that skip inputs": Conv((6, 5), (1, 1), (2, 2), (2, 3), ((0, 0), (0, 0)), (1, 1), (1, 1)),
    "3d": Conv(
        (3, 3, 3), (2, 2, 2), (1, 2), (1, 1, 1), ((0, 1),) * 3, (1, 1, 1), (1, 1, 1), layout="channels last"
    ),
}


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize(
    "rule", [r for r in RULES if not isinstance(r, rules.Norm)], ids=lambda r: str(r).replace(" ", "")
)
def test_convolution_follows_the_formula(rule, name, rng):
    """Padding is no input: it takes no relevance and counts in no denominator."""
    conv = CONVS[name]
    c_in, c_out = conv.channels
    kernel, b = rng.normal(size=(c_out, c_in // conv.groups, *conv.window)), rng.normal(size=c_out)
    w, connected, out = conv.matrix(kernel)
    x = rng.normal(size=(c_in, *conv.space))
    x.flat[::4] = 0.0
    R, bias = rng.normal(size=out), np.repeat(b, int(np.prod(out[1:])))
    last = conv.layout != "channels first"
    there = (lambda a: np.moveaxis(a, 0, -1)[None]) if last else (lambda a: a[None])
    f = conv.function(kernel, b)
    np.testing.assert_allclose(
        f(jnp.asarray(there(x))), there((x.ravel() @ w + bias).reshape(out)), atol=1e-12
    )
    found = explain(f, rule, there(x), there(R))
    wanted = expected(rule, x.ravel(), w, bias, R.ravel(), connected).reshape(x.shape)
    close(found, there(wanted))


@pytest.mark.parametrize("rule", TWO, ids=str)
def test_batch_norm_behind_a_convolution_is_folded_into_it(rule, rng):
    conv = CONVS["2d valid, strided"]
    kernel, (mean, g, beta) = rng.normal(size=(3, 2, 3, 2)), rng.normal(size=(3, 3))
    var = rng.uniform(0.5, 2.0, size=3)
    scale = g / np.sqrt(var + 1e-5)
    assert (scale < 0).any()
    w, connected, out = conv.matrix(kernel * scale[:, None, None, None])
    x, R = rng.normal(size=(2, *conv.space)), rng.normal(size=out)
    plain = conv.function(kernel, np.zeros(3))
    f = lambda x: (plain(x) - mean) * (lax.rsqrt(var + 1e-5) * g) + beta
    there = lambda a: np.moveaxis(a, 0, -1)[None]
    bias = np.repeat(beta - mean * scale, int(np.prod(out[1:])))
    wanted = expected(rule, x.ravel(), w, bias, R.ravel(), connected).reshape(x.shape)
    close(explain(f, rule, there(x), there(R)), there(wanted))


@pytest.mark.parametrize("rule", [rules.Epsilon(), rules.ZPlus(), rules.Gamma()], ids=str)
def test_batch_norm_before_a_convolution_is_a_layer_of_its_own(rule, rng):
    """The convolution sees what it is given, padding included; of y = s·x + t, x has the part s·x / y and the shift the rest."""
    conv = CONVS["2d same"]
    kernel, b, x = rng.normal(size=(3, 2, 3, 3)), rng.normal(size=3), rng.normal(size=(2, *conv.space))
    s, t = (v.reshape(2, 1, 1) for v in (np.array([-0.8, 1.3]), np.array([0.5, -0.2])))
    w, connected, out = conv.matrix(kernel)
    y, R = s * x + t, rng.normal(size=out)
    plain = conv.function(kernel, b)
    bias = np.repeat(b, int(np.prod(out[1:])))
    wanted = expected(rule, y.ravel(), w, bias, R.ravel(), connected).reshape(x.shape)
    close(explain(lambda x: plain(s * x + t), rule, x[None], R[None]), (s * x / y * wanted)[None])


def test_box_bounds_may_differ_for_each_channel_and_pixel(rng):
    conv = CONVS["2d same"]
    kernel, x = rng.normal(size=(3, 2, 3, 3)), rng.uniform(-1.0, 1.0, size=(2, *conv.space))
    w, _, out = conv.matrix(kernel)
    R = rng.normal(size=out)
    for shape in [(2, 1, 1), x.shape]:
        low, high = -rng.uniform(1.0, 2.0, size=shape), rng.uniform(1.0, 2.0, size=shape)
        l, h = (np.broadcast_to(v, x.shape).ravel()[:, None] for v in (low, high))
        shares = x.ravel()[:, None] * w - l * np.maximum(w, 0.0) - h * np.minimum(w, 0.0)
        wanted = (shares / (shares.sum(0) + 1e-6) @ R.ravel()).reshape(x.shape)
        close(explain(conv.function(kernel, np.ones(3)), rules.ZBox(low, high), x[None], R[None])[0], wanted)


@pytest.mark.parametrize("shape", [(), (3,), (3, 1, 1)], ids=str)
def test_the_box_of_normalised_pixels_is_where_their_range_goes(rng, shape):
    mean, std = rng.uniform(0.3, 0.6, size=shape), rng.uniform(0.1, 0.3, size=shape)
    for lowest, highest in [(0.0, 1.0), (0, 255), (-np.ones(shape), 2.0)]:
        low, high = rules.box(mean, std, lowest, highest)
        assert np.shape(low) == np.shape(high) == shape
        close(std * low + mean, np.broadcast_to(lowest, shape))
        close(std * high + mean, np.broadcast_to(highest, shape))
    assert np.shape(rules.box(mean, 0.5)[0]) == np.shape(rules.box(0.5, std)[1]) == shape


def test_the_box_of_numbers_is_numbers_and_goes_into_presets(rng):
    assert rules.box(0.5, 0.25) == (-2.0, 2.0) and all(type(v) is float for v in rules.box(0.5, 0.25))
    f, x = lambda x: jnp.maximum(x @ jnp.array([[1.0], [-2.0]]), 0.0).sum(), jnp.array([[1.5, -0.5]])
    by_hand = lrpjax.relevance(f, composites.deep_taylor(-2.0, 2.0))(x)
    close(lrpjax.relevance(f, composites.deep_taylor(*rules.box(0.5, 0.25)))(x), by_hand)


# ------------------------------------------------------------------------------------------------- rules of sums, products and the others


def f_sum(x):
    return x[:3] + x[3:]


@pytest.mark.parametrize(
    ("rule", "first"),
    [
        (rules.Sum("native"), lambda a, b: a / (a + b)),
        (rules.Sum("magnitude"), lambda a, b: abs(a) / (abs(a) + abs(b))),
        (rules.Sum("uniform"), lambda a, b: 0.5),
        (rules.Sum(0), lambda a, b: 1.0),
        (rules.Sum(1), lambda a, b: 0.0),
        (rules.Norm(0.1), lambda a, b: a / (a + b + np.copysign(0.1, a + b))),
    ],
    ids=lambda p: None if callable(p) else str(p),
)
def test_sum_of_two_values(rule, first, rng):
    x, R = rng.normal(size=6), rng.normal(size=3)
    found = lrpjax.relevance(f_sum, lrpjax.Composite([(select.kind("sum"), rule)]), target=R)(jnp.asarray(x))
    for i in range(3):
        a, b = x[i], x[i + 3]
        assert found[i] == pytest.approx(first(a, b) * R[i], rel=1e-12)
        second = first(b, a) if isinstance(rule, rules.Norm) else 1 - first(a, b)
        assert found[i + 3] == pytest.approx(second * R[i], rel=1e-12)


@pytest.mark.parametrize(
    ("share", "shares"),
    [
        ("uniform", lambda x: [[1 / 3], [1 / 3], [1 / 3]]),
        ("gate", lambda x: [[1 / 3], [1 / 3], [1 / 3]]),
        ("magnitude", lambda x: abs(x) / abs(x).sum(0)),
        (0, lambda x: [[1.0], [0.0], [0.0]]),
        (2, lambda x: [[0.0], [0.0], [1.0]]),
    ],
)
@pytest.mark.parametrize(
    "association", [lambda a, b, c: a * b * c, lambda a, b, c: a * (b * c)], ids=["(ab)c", "a(bc)"]
)
def test_product_of_three_values_however_it_is_associated(share, shares, association, rng):
    x, R = rng.normal(size=(3, 4)), rng.normal(size=4)
    composite = lrpjax.Composite([(select.kind("product"), rules.Product(share))])
    found = lrpjax.relevance(lambda x: association(x[0], x[1], x[2]), composite, target=R)(jnp.asarray(x))
    close(found, np.array(shares(x)) * R)


def test_epsilon_damps_a_product_along_an_axis(rng):
    x, R = rng.normal(size=(3, 4)), rng.normal(size=4)
    composite = lrpjax.Composite([(select.kind("product"), rules.Epsilon(0.1))])
    found = lrpjax.relevance(lambda x: x.prod(0), composite, target=R)(jnp.asarray(x))
    y = x.prod(0)
    close(found, np.tile(R / 3 * y / (y + np.copysign(0.1, y)), (3, 1)))


@pytest.mark.parametrize("share", ["magnitude", 0])
@pytest.mark.parametrize("f", [lambda x: x.prod(0), lambda x: jnp.cumprod(x, 1)], ids=["prod", "cumprod"])
def test_products_along_an_axis_share_alike_or_not_at_all(f, share, rng):
    composite = lrpjax.Composite([(select.kind("product"), rules.Product(share))])
    with pytest.raises(
        lrpjax.RuleError, match=rf"share={share!r}\): it is not defined for the product along an axis"
    ):
        lrpjax.relevance(f, composite)(jnp.asarray(rng.normal(size=(3, 4))))


def test_contractions_have_no_share_by_magnitude(rng):
    composite = lrpjax.Composite([(select.kind("product"), rules.Product("magnitude"))])
    with pytest.raises(lrpjax.RuleError, match=r"elementwise products only, but that at .* is a contraction"):
        lrpjax.relevance(lambda x: x @ x, composite)(jnp.asarray(rng.normal(size=(3, 3))))


@pytest.mark.parametrize(
    "rule", [rules.Product(), rules.Product("uniform"), rules.Product("activated")], ids=str
)
@pytest.mark.parametrize(
    "sigmoid",
    [jax.nn.sigmoid, lambda x: 1.0 - jax.nn.sigmoid(x), lambda x: 1 / (1 + jnp.exp(-x)), jax.nn.hard_sigmoid],
    ids=["sigmoid", "one minus sigmoid", "written out", "hard_sigmoid"],
)
def test_gate_takes_nothing_unless_the_rule_says_so(rule, sigmoid, rng):
    x, R = rng.normal(size=(2, 4)), rng.normal(size=4)
    composite = lrpjax.Composite([(select.kind("product"), rule)])
    f = lambda x: sigmoid(x[0]) * x[1]
    found = np.asarray(lrpjax.relevance(f, composite, target=R)(jnp.asarray(x)))
    np.testing.assert_allclose(found[1], R if rule.share != "uniform" else R / 2, rtol=1e-12)
    assert rule.share == "uniform" or not found[0].any()


def _gated_loop(x, gate):
    """What a step's gate is made of travels in the state beside the signal, and opens the gate of the next."""

    def step(state, row):
        h, opens = state
        signal, opening = jnp.split(row, 2)
        h = jax.nn.relu(h + signal) * gate(opens)
        return (h, opening), (h, opening)

    h, opening = lax.scan(step, (jnp.ones(3), x[0, 3:]), x)[1]
    return h * gate(opening)


@lrpjax.custom_relevance
def halves(x):
    return x[:, :3], x[:, 3:]


halves.defrelevance(
    lambda x: (halves.f(x), None), lambda _, R: (jnp.concatenate([R[0], jnp.zeros_like(R[0])], 1),)
)


GATED = {  # two outputs of one operation, of which the second one is a gate and nothing else
    "split": lambda x, gate: (lambda a, b: a * gate(b))(*jnp.split(x, 2, 1)),
    "the library's": lambda x, gate: jax.nn.glu(x) if gate is jax.nn.sigmoid else GATED["split"](x, gate),
    "loop": _gated_loop,
    "cond": lambda x, gate: (lambda a, b: a * gate(b))(
        *lax.cond(x[0, 0] > 9, lambda x: (x[:, 3:], x[:, :3]), lambda x: tuple(jnp.split(x, 2, 1)), x)
    ),
    "checkpoint": lambda x, gate: (lambda a, b: a * gate(b))(
        *jax.checkpoint(lambda x: (2 * x[:, :3], 3 * x[:, 3:]))(x)
    ),
    "custom": lambda x, gate: (lambda a, b: a * gate(b))(*halves(x)),
    "sort": lambda x, gate: (lambda a, b: a * gate(b))(*lax.sort((x[:, :3], x[:, 3:]), num_keys=1)),
}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", GATED)
def test_gate_that_leaves_an_operation_beside_its_signal_takes_nothing(name, jit, rng):
    x, w = jnp.asarray(rng.normal(size=(5, 4))), jnp.asarray(rng.normal(size=(4, 6)))
    f = lambda x: GATED[name](x @ w, jax.nn.sigmoid)
    detached = lambda x: GATED[name](x @ w, lambda b: lax.stop_gradient(jax.nn.sigmoid(b)))
    explain = lrpjax.relevance(f, lrpjax.composites.epsilon(0.0))
    found = jax.jit(explain)(x) if jit else explain(x)
    close(found, x * jax.grad(lambda x: detached(x).sum())(x))


@pytest.mark.parametrize("name", GATED)
def test_relevance_past_such_a_gate_can_be_differentiated(name, rng):
    """A detached gate is a constant of the relevance, not of its derivative."""
    x, way, R = (jnp.asarray(rng.normal(size=(5, 4))) for _ in range(3))
    w = jnp.asarray(rng.normal(size=(4, 6)))
    explain = lrpjax.relevance(lambda x: GATED[name](x @ w, jax.nn.sigmoid), lrpjax.composites.epsilon(0.0))
    loss = lambda x: (explain(x) * R).sum()
    slope = (loss(x + 1e-6 * way) - loss(x - 1e-6 * way)) / 2e-6
    np.testing.assert_allclose((jax.grad(loss)(x) * way).sum(), slope, rtol=1e-6)


def test_stop_lets_nothing_through_and_the_rest_alone(rng):
    (w, _), x = dense(rng), rng.normal(size=6)
    f = lambda x: jax.nn.tanh(x @ w) + (x @ w)
    composite = lrpjax.Composite(
        [(select.kind("activation"), rules.Stop()), (select.kind("dense"), rules.Epsilon(0.0))]
    )
    found = lrpjax.relevance(f, composite)(jnp.asarray(x))
    close(found, expected(rules.Epsilon(0.0), x, w, np.zeros(5), x @ w))


@pytest.mark.parametrize("at_once", [True, False], ids=["everywhere", "in one layer"])
def test_gradient_rule_applies_the_chain_rule_to_the_relevance(at_once, rng):
    (w, b), (v, c), x, R = dense(rng), dense(rng, 5, 3), rng.normal(size=6), rng.normal(size=3)
    f = lambda x: jnp.tanh(x @ w + b) @ v + c
    if at_once:
        composite, wanted = (
            lrpjax.Composite([], default=rules.Gradient()),
            jax.vjp(f, jnp.asarray(x))[1](jnp.asarray(R))[0],
        )
    else:
        composite = lrpjax.Composite(
            [(select.last("dense"), rules.Gradient()), (select.kind("dense"), rules.Epsilon())]
        )
        wanted = expected(rules.Epsilon(), x, w, b, R @ v.T)
    close(lrpjax.relevance(f, composite, target=jnp.asarray(R))(jnp.asarray(x)), wanted)


@pytest.mark.parametrize(
    ("rule", "signal"),
    [
        (rules.Deconvnet(), lambda x, R: np.maximum(R, 0.0)),
        (rules.GuidedBackprop(), lambda x, R: np.maximum(R, 0.0) * (x > 0)),
        (rules.BetaSmooth(4.0), lambda x, R: R / (1 + np.exp(-4.0 * x))),
    ],
    ids=lambda p: None if callable(p) else str(p),
)
def test_rules_of_relu(rule, signal, rng):
    x, R = rng.normal(size=8), rng.normal(size=8)
    x[0] = 0.0
    composite = lrpjax.Composite([(select.kind("relu"), rule)], default=rules.Gradient(), method="gradient")
    close(lrpjax.relevance(jax.nn.relu, composite, target=jnp.asarray(R))(jnp.asarray(x)), signal(x, R))


# -------------------------------------------------------------------------------------------------------------------- rules as objects


@pytest.mark.parametrize(
    "rule",
    [*RULES, rules.Pass(), rules.Gradient(), rules.Stop(), rules.Product(0), rules.Sum("uniform")],
    ids=lambda p: None if callable(p) else str(p),
)
def test_rules_are_frozen_pytrees(rule):
    leaves, treedef = jax.tree.flatten(rule)
    assert jax.tree.unflatten(treedef, leaves) == rule
    hyper = {"epsilon", "gamma", "alpha", "beta", "low", "high"}
    assert len(leaves) == len(hyper & {f.name for f in dataclasses.fields(rule)})
    field = next((f.name for f in dataclasses.fields(rule)), "anything")
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(rule, field, 1.0)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (rules.Epsilon(), "Epsilon(epsilon=1e-06)"),
        (rules.Epsilon(0.5, bias=False), "Epsilon(epsilon=0.5, bias=False)"),
        (rules.Gamma(0.3), "Gamma(gamma=0.3, epsilon=1e-06)"),
        (rules.ZBox(np.zeros((3, 1)), 1.0), "ZBox(low=array(3, 1), high=1, epsilon=1e-06)"),
        (rules.Product("uniform"), "Product(share='uniform')"),
        (rules.Pass(), "Pass()"),
    ],
)
def test_rules_print_their_parameters(rule, text):
    assert str(rule) == text

"""What mutations of the core have shown to be tested too little: the facts of loops, which are known only after several
turns, and where the relevance of tokens begins."""

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


def layers(rule):
    return lrpjax.Composite([(select.kind("dense", "conv"), rule)])


# ------------------------------------------------------------------------------------------------------------------ loops, backward


def test_relevance_of_a_delay_line_goes_back_through_all_of_it():
    """The carry is a queue of four: what leaves it after the loop entered it turns before, through every place."""
    x = jnp.array([1.0, -2.0, 3.0, 5.0, -7.0, 11.0])
    queue = lambda c, x: ((c[1], c[2], c[3], x), None)
    f = lambda x: 3.0 * lax.scan(queue, (jnp.zeros(()),) * 4, x)[0][0]
    close(lrpjax.relevance(f)(x), [0.0, 0.0, 9.0, 0.0, 0.0, 0.0])


def test_form_that_a_later_turn_asks_for_holds_in_all_of_the_loop():
    """The flat rule gives relevance to zeros. It stands on the way of the second carry into the first, and what it gives
    came in a turn before: only the second look at the loop finds that the slices need relevance as such."""
    w, x = jnp.array([[1.0, 2.0], [3.0, -1.0]]), jnp.array([[1.0, 2.0], [0.0, 4.0], [0.0, 3.0]])

    def f(x):
        a, b = lax.scan(lambda c, x: ((c[1] @ w, x), None), (jnp.zeros(2), jnp.zeros(2)), x)[0]
        return (a + b).sum()

    R = (x[1] @ w).sum()
    wanted = jnp.array([[0.0, 0.0], [R / 2, R / 2], x[2]])
    close(lrpjax.relevance(f, layers(rules.Flat(epsilon=0.0)))(x), wanted)


# ------------------------------------------------------------------------------------------------------------------- loops, forward

SPLIT = [rules.ZPlus(), rules.Gamma(0.5), rules.AlphaBeta(2.0, 1.0)]
"""Rules that are written shorter where the input of a layer is known to be non-negative."""


def parts(rule, contributions):
    """Of one unit without a bias: what each input gets of its relevance."""
    above, below = np.maximum(contributions, 0), np.minimum(contributions, 0)
    share = lambda c: c / (c.sum() + np.where(c.sum() >= 0, 1e-6, -1e-6))
    if isinstance(rule, rules.ZPlus):
        return share(above)
    if isinstance(rule, rules.AlphaBeta):
        return 2 * share(above) - share(below)
    return share(contributions + 0.5 * (above if contributions.sum() > 0 else below))


@pytest.mark.parametrize("rule", SPLIT, ids=lambda r: type(r).__name__)
def test_carry_that_begins_non_negative_is_not_taken_for_it(rule):
    """It is a ReLU's output when the loop begins, and partly negative in the second turn, of which the layer's output counts."""
    w, x = np.array([2.0, -1.0, 0.5]), np.array([1.0, 2.0, 5.0])

    def f(x):
        turn = lambda c, _: (c - jnp.array([3.0, 3.0, 3.0]), c @ w)
        return lax.scan(turn, jax.nn.relu(x), None, length=2)[1][1]

    carried = x - 3.0
    assert (carried < 0).any() and (carried > 0).any()
    wanted = parts(rule, carried * w) * (carried @ w) * x / carried
    close(lrpjax.relevance(f, layers(rule))(jnp.asarray(x)), wanted)


@pytest.mark.parametrize("rule", SPLIT, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("branch", [0, 1])
def test_what_one_branch_makes_negative_is_not_taken_for_non_negative(rule, branch):
    w, x = np.array([2.0, -1.0, 0.5]), np.array([1.0, -2.0, 5.0])
    f = lambda x: lax.switch(branch, [lambda x: x * 2.0, jnp.abs], x) @ w
    entered = np.abs(x) if branch else 2 * x
    close(lrpjax.relevance(f, layers(rule))(jnp.asarray(x)), parts(rule, entered * w) * (entered @ w))


# -------------------------------------------------------------------------------------------------------------------------- tokens


BIASES = {
    "looked up": (lambda t: jnp.array([[2.0], [0.5], [-3.0]])[:, 0][t], np.array([2.0, 0.5, -3.0])),
    "selected": (
        lambda t: jnp.where(t[:, None] == 0, 2.0 * jnp.ones((4, 1)), -3.0 * jnp.ones((4, 1)))[:, 0],
        np.array([2.0, -3.0, -3.0]),
    ),
}
"""Numbers for tokens, of which no table of two dimensions is looked up, and those of each token."""


@pytest.mark.parametrize("name", BIASES)
def test_numbers_for_tokens_are_no_embedding(name):
    """They are the bias of the layer that reads the embedding, and no summand of its own: the z⁺-rule counts its
    positive part only."""
    bias_of, bias = BIASES[name]
    table = jnp.array([[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]])
    w, tokens = jnp.array([1.0, -2.0]), jnp.array([2, 0, 1, 0])

    def f(tokens):
        with jax.named_scope("embed"):
            e = table[tokens]
        return e @ w + bias_of(tokens)

    above = jnp.maximum(table[tokens] * w, 0)
    share = above / (above.sum(-1) + jnp.maximum(bias[tokens], 0))[:, None]
    R = lrpjax.relevance(f, layers(rules.ZPlus(epsilon=0.0)), at="embed")(tokens)
    close(R, share * f(tokens)[:, None])


# ----------------------------------------------------------------------------------------------- what is said of units and refused


@pytest.mark.parametrize(
    ("f", "name"),
    [
        (lambda x: jax.nn.sigmoid(x) * x[::-1], "gate"),
        (lambda x: jax.nn.sigmoid(x) * jax.nn.sigmoid(x[::-1]), ""),
        (lambda x: x * x[::-1], ""),
    ],
    ids=["gate and signal", "two gates", "two signals"],
)
def test_product_of_a_gate_and_a_signal_is_named_so(f, name):
    assert [u.name for u in lrpjax.plan(f, None, jnp.ones(3)) if u.kind == "product"] == [name]


@pytest.mark.parametrize("rule", [rules.Deconvnet(), rules.GuidedBackprop()], ids=str)
def test_positive_part_of_a_part_of_the_signal_is_refused(rule):
    """Without `check_vma` each device holds a part of what comes from above."""
    mesh = jax.make_mesh((1,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.PartitionSpec("a")
    f = jax.shard_map(jax.nn.relu, mesh=mesh, in_specs=place, out_specs=place, check_vma=False)
    composite = lrpjax.Composite([(select.kind("activation"), rule)])
    with pytest.raises(lrpjax.RuleError, match="check_vma=True"):
        lrpjax.relevance(f, composite)(jnp.ones(2))


def test_value_inside_a_unit_has_the_relevance_of_its_output():
    """A layer before its normalisation: what the shift takes is not taken off before."""
    w, R = jnp.array([[1.0, 2.0], [-3.0, 1.0]]), jnp.array([2.0, -1.0])

    def f(x):
        with jax.named_scope("layer"):
            z = x @ w
        return z * 2.0 + 1.0

    close(lrpjax.relevance(f, layers(rules.Epsilon(0.0)), at="layer", target=R)(jnp.array([1.0, 2.0])), R)

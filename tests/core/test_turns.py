"""The first and the last turn of a loop: `select.first` and `select.last` mean there what they mean in the same program
unrolled, which is the oracle."""

import functools
import operator

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax

import lrpjax
from lrpjax import Composite, composites, rules, select
from lrpjax.errors import PathError, RuleError

close = functools.partial(helpers.close, tolerance=1e-10)

RNG = np.random.default_rng(0)
N = 3
W, B = RNG.normal(size=(N, 3, 3)), RNG.normal(size=(N, 3)) / 4
HEAD = RNG.normal(size=(3, 2))
X = RNG.normal(size=(2, 3))


def layer(x, w, b):
    with jax.named_scope("layer"):
        return jnp.tanh(x @ w + b) + 0.1 * x


def scanned(x, reverse=False, n=N):
    step = lambda x, p: (layer(x, *p), None)
    return lax.scan(step, x, (W[:n], B[:n]), reverse=reverse)[0] @ HEAD


def unrolled(x, reverse=False, n=N):
    for i in range(n)[::-1] if reverse else range(n):
        x = layer(x, W[i], B[i])
    return x @ HEAD


COMPOSITES = {
    "epsilon_plus_flat": composites.epsilon_plus_flat(),
    "deep_taylor": composites.deep_taylor(),
    "deep_taylor in a box": composites.deep_taylor(-3.0, 3.0),
    "epsilon_alpha2_beta1_flat": composites.epsilon_alpha2_beta1_flat(),
    "first": Composite([(select.first("dense"), rules.Flat()), ("*", rules.Gamma(0.5))]),
    "last in the scope": Composite([(select.last("activation"), rules.Gradient())]),
    "last sum": Composite([(select.last("sum"), rules.Sum("uniform"))]),
    "both": Composite(
        [(select.first("sum"), rules.Sum("uniform")), (select.last("sum"), rules.Sum("magnitude"))]
    ),
    "all but the first": Composite([(select.kind("dense") & ~select.first("dense"), rules.ZPlus())]),
    "first or last": Composite([(select.first("sum") | select.last("sum"), rules.Sum(0))]),
    "no ends": composites.epsilon_plus(),
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", COMPOSITES)
def test_scanned_and_unrolled_agree(name, reverse):
    wanted = lrpjax.relevance(lambda x: unrolled(x, reverse), COMPOSITES[name], target=1)(X)
    f = lambda x: scanned(x, reverse)
    close(lrpjax.relevance(f, COMPOSITES[name], target=1)(X), wanted)
    close(jax.jit(lrpjax.relevance(f, COMPOSITES[name], target=1))(X), wanted)
    np.testing.assert_allclose(f(X), unrolled(X, reverse))


LAST = {
    "flat": Composite([(select.last("dense"), rules.Flat())]),
    "flat behind gamma": Composite([(select.last("dense"), rules.Flat()), ("*", rules.Gamma(0.5))]),
    "flat at both ends": Composite([(s("dense"), rules.Flat()) for s in (select.first, select.last)]),
    "flat inside": Composite([("layer", rules.Flat())]),
    "flat everywhere": Composite([("*", rules.Flat())]),
}


@pytest.mark.parametrize("name", LAST)
def test_rules_that_hand_relevance_to_zeros_behind_a_loop_or_inside(name):
    """Dead rectifiers receive relevance from the flat rule, and constants are not passed it there."""

    def block(x, w, b):
        with jax.named_scope("layer"):
            x = x @ w
        return 2 * jax.nn.relu(x) + b

    def network(loop, head):
        def f(x):
            x = loop(lambda x, p: (block(x, *p), None), x, (W, B))[0] if loop is lax.scan else by_hand(x)
            return x @ HEAD if head else x

        def by_hand(x):
            for w, b in zip(W, B, strict=True):
                x = block(x, w, b)
            return x

        return f

    for head in (True, False):
        target = jnp.asarray(RNG.normal(size=network(None, head)(X).shape))
        explain = lambda f, target: lrpjax.relevance(f, LAST[name], target=target)(X)
        close(explain(network(lax.scan, head), target), explain(network(None, head), target))


@pytest.mark.parametrize("name", LAST)
def test_what_a_loop_stacks_and_reads_itself(name):
    """The states of a recurrence: stacked outside, where relevance is in proportion, and read inside by a flat rule."""

    def states(x, loop):
        def step(h, x):
            with jax.named_scope("layer"):
                return jnp.tanh(x @ W[0] + h @ W[1]), h

        h, hs = loop(step, x[0], x)
        return h + hs.sum(0)

    x = RNG.normal(size=(N, 3))
    explain = lambda loop: lrpjax.relevance(lambda x: states(x, loop), LAST[name])(x)
    close(explain(lax.scan), explain(python_loop))


def test_carries_that_change_places():
    """Each turn takes relevance in another form: no turn is like the others."""
    step = lambda c, w: ((jnp.tanh(c[1] @ w), c[0]), None)
    composite = Composite([(select.last("dense"), rules.Flat())])
    f = lambda x, n: lax.scan(step, (x, 2 * x), jnp.asarray(np.resize(W, (n, 3, 3))))[0][0] @ HEAD

    def by_hand(x, n):
        c = (x, 2 * x)
        for w in np.resize(W, (n, 3, 3)):
            c, _ = step(c, w)
        return c[0] @ HEAD

    close(lrpjax.relevance(f, composite)(X, 4), lrpjax.relevance(by_hand, composite)(X, 4))


@pytest.mark.parametrize("n", [1, 2])
def test_short_loops(n):
    for name in ("epsilon_plus_flat", "both"):
        wanted = lrpjax.relevance(lambda x: unrolled(x, n=n), COMPOSITES[name])(X)
        close(lrpjax.relevance(lambda x: scanned(x, n=n), COMPOSITES[name])(X), wanted)


def test_the_plan_shows_the_turn():
    plan = lrpjax.plan(scanned, COMPOSITES["epsilon_plus_flat"], X)
    dense = [(u.path, u.rule) for u in plan if u.kind == "dense"]
    flat, epsilon = "Flat(epsilon=1e-06)", "Epsilon(epsilon=1e-06)"
    assert dense == [("layer", flat), ("layer", epsilon), ("", epsilon)]
    assert all("test_turns.py" in u.source and "(layer)" in u.source for u in plan if u.path == "layer")
    without = lrpjax.plan(scanned, composites.epsilon_plus(), X)
    assert len(without) < len(plan)  # nothing is taken apart where nobody asks
    named = lambda: lrpjax.plan(scanned, COMPOSITES["epsilon_plus_flat"], X)
    with jax.named_scope("around"):
        assert [u.path for u in named()] == [u.path for u in plan]


def with_outputs(x, loop):
    """A scan that also stacks, keeps a constant and counts."""

    def step(carry, p):
        x, count = carry
        x = layer(x, *p) * (1 + count).astype(x.dtype)
        return (x, count + 1), (x, p[1], count.astype(x.dtype))

    (x, _), (xs, bs, counts) = loop(step, (x, jnp.int32(0)), (W, B))
    return (xs * jnp.arange(1.0, N + 1)[:, None, None]).sum(0) @ HEAD + x.sum() + bs.sum() + counts.sum()


def python_loop(step, carry, xs, reverse=False):
    ys = []
    order = range(N)[::-1] if reverse else range(N)
    for i in order:
        carry, y = step(carry, jax.tree.map(operator.itemgetter(i), xs))
        ys.append(y)
    return carry, jax.tree.map(lambda *y: jnp.stack(y[::-1] if reverse else y), *ys)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["epsilon_plus_flat", "both", "last in the scope"])
def test_what_a_loop_stacks(name, reverse):
    found = lrpjax.relevance(
        lambda x: with_outputs(x, functools.partial(lax.scan, reverse=reverse)), COMPOSITES[name]
    )
    wanted = lrpjax.relevance(
        lambda x: with_outputs(x, functools.partial(python_loop, reverse=reverse)), COMPOSITES[name]
    )
    close(found(X), wanted(X))


def nested(x, loop, wrap=lambda f: f):
    def outer(x, p):
        inner = wrap(lambda x, q: (layer(x, *q), x.sum()))
        x, sums = loop(inner, x, p)
        return 0.5 * x, sums

    again = jax.tree.map(lambda a: jnp.stack([a, -a, 0.5 * a]), (W, B))
    x, sums = loop(wrap(outer), x, again)
    return x @ HEAD + sums.sum()


@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint, jax.jit], ids=["bare", "remat", "jit"])
@pytest.mark.parametrize("name", ["epsilon_plus_flat", "both", "first or last"])
def test_loops_in_loops(name, wrap):
    wanted = lrpjax.relevance(lambda x: nested(x, python_loop), COMPOSITES[name])(X)
    close(lrpjax.relevance(lambda x: nested(x, lax.scan, wrap), COMPOSITES[name])(X), wanted)


@pytest.mark.parametrize(
    "outside", [jax.checkpoint, jax.jit, lambda f: lambda x: lax.cond(x[0, 0] < 9, f, f, x)]
)
def test_loops_inside_of_other_things(outside):
    wanted = lrpjax.relevance(unrolled, COMPOSITES["epsilon_plus_flat"])(X)
    close(lrpjax.relevance(outside(scanned), COMPOSITES["epsilon_plus_flat"])(X), wanted)


def test_fori_loops_and_recurrences():
    f = lambda x: lax.fori_loop(0, N, lambda i, x: layer(x, jnp.asarray(W)[i], jnp.asarray(B)[i]), x) @ HEAD
    wanted = lrpjax.relevance(unrolled, COMPOSITES["deep_taylor"])(X)
    close(lrpjax.relevance(f, COMPOSITES["deep_taylor"])(X), wanted)

    def recurrent(x, loop):
        step = lambda h, x: (jnp.tanh(x @ W[0] + h @ W[1]), None)
        return loop(step, jnp.zeros(3), x)[0]

    x = RNG.normal(size=(N, 3))
    for name in ("epsilon_plus_flat", "both", "first"):
        wanted = lrpjax.relevance(lambda x: recurrent(x, python_loop), COMPOSITES[name])(x)
        close(lrpjax.relevance(lambda x: recurrent(x, lax.scan), COMPOSITES[name])(x), wanted)


def test_turns_that_do_not_depend_on_each_other_are_runs_of_their_own():
    xs = RNG.normal(size=(5, 2, 3))
    composite = COMPOSITES["epsilon_plus_flat"]
    wanted = jax.vmap(lrpjax.relevance(unrolled, composite))(xs)
    close(lrpjax.relevance(lambda xs: lax.map(unrolled, xs), composite)(xs), wanted)
    close(lrpjax.relevance(jax.vmap(unrolled), composite)(xs), wanted)
    close(lrpjax.relevance(lambda xs: lax.map(scanned, xs), composite)(xs), wanted)


def test_linen_and_nnx_scans():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return jnp.tanh(nn.Dense(3, param_dtype=float, name="inner")(x)), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            stack = nn.scan(
                nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=N
            )
            return stack(name="blocks")(x, None)[0]

    params = Net().init(jax.random.key(0), X)
    inner = params["params"]["blocks"]["inner"]

    def plain(x):
        for w, b in zip(inner["kernel"], inner["bias"], strict=True):
            x = jnp.tanh(x @ w + b)
        return x

    composite = COMPOSITES["epsilon_plus_flat"]
    wanted = lrpjax.relevance(plain, composite)(X)
    close(lrpjax.relevance(lambda x: Net().apply(params, x), composite)(X), wanted)

    @nnx.split_rngs(splits=N)
    @nnx.vmap
    def make(rngs):
        return nnx.Linear(3, 3, param_dtype=float, rngs=rngs)

    layers = make(nnx.Rngs(0))
    graph, state = nnx.split(layers)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def forward(x, layer):
        return jnp.tanh(layer(x))

    def by_hand(x):
        for w, b in zip(layers.kernel[...], layers.bias[...], strict=True):
            x = jnp.tanh(x @ w + b)
        return x

    close(
        lrpjax.relevance(lambda x: forward(x, nnx.merge(graph, state, copy=True)), composite)(X),
        lrpjax.relevance(by_hand, composite)(X),
    )


def test_branches():
    """Each branch has its first; where one has none, nobody can say which is first."""
    composite = COMPOSITES["epsilon_plus_flat"]
    other = lambda x: jnp.tanh(x) @ W[1]

    def f(x, flag):
        return lax.cond(flag, lambda x: x @ W[0], other, x) @ HEAD

    for flag in (True, False):
        plain = lambda x, flag=flag: (x @ W[0] if flag else other(x)) @ HEAD
        found = jax.jit(lambda x, flag: lrpjax.relevance(lambda x: f(x, flag), composite)(x))(X, flag)
        close(found, lrpjax.relevance(plain, composite)(X))

    unsure = lambda x: lax.cond(x[0, 0] > 0, lambda x: x @ W[0], lambda x: x, x) @ HEAD
    with pytest.raises(RuleError, match=r"depends on the branch .*cond.*test_turns.py") as error:
        lrpjax.relevance(unsure, composite)(X)
    assert "select.path" in str(error.value)
    inside = lambda x: lax.scan(
        lambda x, w: (lax.cond(w[0, 0] < 9, lambda: x @ w, lambda: x @ -w), None), x, W
    )[0]
    close(
        lrpjax.relevance(inside, composite)(X),
        lrpjax.relevance(lambda x: functools.reduce(jnp.matmul, W, x), composite)(X),
    )


def test_values_inside_of_such_a_loop_cannot_be_named():
    composite = COMPOSITES["epsilon_plus_flat"]
    for at in ("layer", "*", ["layer", "*"]):
        with pytest.raises(
            PathError, match=r"inside a loop.*scan.*first\(conv, dense\).*select.path\('layer'\)"
        ):
            lrpjax.relevance(scanned, composite, at=at)(X)
    everywhere = Composite([("layer", rules.Gamma())])
    assert lrpjax.relevance(scanned, everywhere, at="layer")(X).shape == (N, 2, 3)
    with pytest.raises(PathError, match=r"inside a loop.*last turn takes relevance in another form"):
        lrpjax.relevance(scanned, Composite([("layer", rules.Flat())]), at="layer")(X)
    mask = np.ones(3, bool)
    with pytest.raises(PathError, match="inside a loop"):
        lrpjax.concepts.relevance(scanned, composite, {"layer": mask})(X)


@pytest.mark.parametrize("name", ["epsilon_plus_flat", "both", "no ends"])
def test_loops_inside_of_a_shard_map(name):
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("d",))
    spec = jax.sharding.PartitionSpec("d")

    def network(x, loop):
        step = lambda x, p: (layer(x, *p) / (1 + lax.stop_gradient(lax.psum((x**2).sum(), "d"))), None)
        return loop(step, x, (W, B))[0] @ HEAD

    def shards(loop, check_vma):
        f = lambda x: network(x, loop)
        return jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma)

    explain = lambda loop, check_vma: lrpjax.relevance(shards(loop, check_vma), COMPOSITES[name])(X)
    wanted = explain(python_loop, False)
    close(explain(lax.scan, False), wanted)
    if name == "no ends":
        close(explain(lax.scan, True), wanted)
    else:
        with pytest.raises(RuleError, match=r"inside a shard_map.*check_vma=False.*select.path"):
            explain(lax.scan, True)


def test_transformations_of_the_relevance():
    composite = COMPOSITES["epsilon_plus_flat"]
    explain = lambda f: lambda x: lrpjax.relevance(f, composite, target=0)(x)
    close(jax.vmap(explain(scanned))(X), jax.vmap(explain(unrolled))(X))
    total = lambda f: lambda x: (explain(f)(x) ** 2).sum()
    close(jax.grad(total(scanned))(X), jax.grad(total(unrolled))(X))
    audits = [lrpjax.audit(f, composite)(X) for f in (scanned, unrolled)]
    assert audits[0].seed == pytest.approx(audits[1].seed)
    assert audits[0].relevance == pytest.approx(audits[1].relevance)

"""Rematerialised blocks that run alike are traced once; those that do not, never share what they compute."""

import functools
import pathlib
import sys
import time

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lrpjax
from lrpjax import composites, rules, select
from lrpjax.core import frame

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "benchmarks"))

import counting

close = functools.partial(helpers.close, tolerance=1e-10)

DIM, DEPTH = 8, 5
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 3, DIM)))
NAMES = {"q": (DIM, DIM), "k": (DIM, DIM), "v": (DIM, DIM), "up": (DIM, 16), "down": (16, DIM)}
PARAMS = [{n: jnp.asarray(RNG.normal(size=s)) / 2 for n, s in NAMES.items()} for _ in range(DEPTH)]


def block(x, p):
    q, k, v = (x @ p[n] for n in "qkv")
    x = x + jax.nn.softmax(q @ k.swapaxes(1, 2)) @ v
    h = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
    return x + jax.nn.gelu(h @ p["up"]) @ p["down"]


def network(body):
    def f(x):
        for i, p in enumerate(PARAMS):
            with jax.named_scope(f"block_{i}"):
                x = body(x, p)
        return x[:, -1]

    return f


PLAIN, AGAIN = network(block), network(jax.checkpoint(block))


@pytest.fixture
def answers(monkeypatch):
    """What the comparison said in a test."""
    found, original = [], frame.bodies_alike

    def ask(*args):
        found.append(original(*args))
        return found[-1]

    monkeypatch.setattr(frame, "bodies_alike", ask)
    return found


def by_path(rule):
    """A rule of its own for one of the blocks."""
    return lrpjax.Composite(
        [(select.path("block_3") & select.kind("dense"), rule), (select.kind("dense"), rules.Epsilon(0.1))]
    )


COMPOSITES = {
    "attnlrp": composites.attnlrp(),
    "epsilon_plus": composites.epsilon_plus(),
    "z+": lrpjax.Composite([(select.kind("dense"), rules.ZPlus())]),
    "gradient": composites.gradient(),
    "a stabiliser that is an array": lrpjax.Composite(
        [(select.kind("dense"), rules.Epsilon(jnp.asarray(0.2)))]
    ),
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_blocks_alike_are_one_function(name, answers):
    explain = lambda f: jax.jit(lrpjax.relevance(f, COMPOSITES[name], target=1))(X)
    close(explain(AGAIN), explain(PLAIN))
    # In the last block only the last token is asked for, and the first may be given its relevance in another form.
    assert sum(answers) >= DEPTH - 3


@pytest.mark.parametrize(
    "rule", [rules.Epsilon(0.5), rules.ZPlus(), rules.Gamma(0.3), rules.AlphaBeta(3.0, 2.0)]
)
def test_a_block_with_another_rule_is_another(rule, answers):
    composite = by_path(rule)
    explain = lambda f: jax.jit(lrpjax.relevance(f, composite, target=1))(X)
    close(explain(AGAIN), explain(PLAIN))
    assert any(answers) and not all(answers)


def test_stabilisers_of_one_text_are_compared_by_their_numbers():
    arrays = [jnp.asarray(e) for e in (0.1, 0.1, 3.0, 0.1, 0.1)]
    pairs = [
        (select.path(f"block_{i}") & select.kind("dense"), rules.Epsilon(e)) for i, e in enumerate(arrays)
    ]
    explain = lambda f: jax.jit(lrpjax.relevance(f, lrpjax.Composite(pairs), target=1))(X)
    close(explain(AGAIN), explain(PLAIN))
    # … and traced ones, that differ only when it runs
    both = lambda f: jax.jit(
        lambda es: lrpjax.relevance(
            f,
            lrpjax.Composite(
                [
                    (select.path(f"block_{i}") & select.kind("dense"), rules.Epsilon(e))
                    for i, e in enumerate(es)
                ]
            ),
        )(X)
    )(arrays)
    close(both(AGAIN), both(PLAIN))


def test_what_is_named_weighted_or_audited_in_a_block():
    def scoped(x, p):
        with jax.named_scope("inner"):
            return block(x, p)

    for at in ("block_2/inner", ["block_1/inner", "block_3/inner"]):
        explain = lambda f, at=at: jax.jit(lrpjax.relevance(f, composites.attnlrp(), target=0, at=at))(X)
        close(explain(network(jax.checkpoint(scoped))), explain(network(scoped)))
    rows = [lrpjax.audit(f, composites.attnlrp(), target=0)(X) for f in (AGAIN, PLAIN)]
    close(*([(u.relevance_in, u.relevance_out) for u in audit.units] for audit in rows))


def test_signs_that_are_known_of_one_block_alone():
    """The first two blocks are given what a ReLU made: z⁺ leaves out half of the formula there, and only there."""
    w = [jnp.asarray(RNG.normal(size=(DIM, DIM))) for _ in range(4)]
    body = lambda x, w: jnp.tanh(x @ w)

    def f(body, x):
        a, b = jax.nn.relu(x), jax.nn.relu(-x)
        return (body(a, w[0]) + body(b, w[1]) + body(x, w[2]) + body(-x, w[3]))[:, 0]

    explain = lambda body: lrpjax.relevance(functools.partial(f, body), COMPOSITES["z+"], target=2)(X)
    close(explain(jax.checkpoint(body)), explain(body))


def test_bounds_of_the_argument_are_those_of_each_block():
    """Two blocks read different parts of the argument, whose bounds differ."""
    w = [jnp.asarray(RNG.normal(size=(DIM, 4))) for _ in range(2)]
    body = lambda x, w: jnp.tanh(x @ w)
    low = -4.0 - RNG.uniform(size=X.shape)
    composite = lrpjax.Composite([(select.kind("dense"), rules.ZBox(low, 5.0))])
    f = lambda body: lambda x: body(x[:, 0], w[0]) + body(x[:, 1], w[1])
    explain = lambda body: lrpjax.relevance(f(body), composite, target=2)(X)
    close(explain(jax.checkpoint(body)), explain(body))


def test_derivatives_and_transformations():
    explain = lambda f: lrpjax.relevance(f, COMPOSITES["attnlrp"], target=1)
    slope = lambda f: jax.grad(lambda x: jnp.sum(explain(f)(x) ** 2))(X)
    close(slope(AGAIN), slope(PLAIN), of_largest=True)
    close(jax.vmap(explain(AGAIN))(X[:, None]), jax.vmap(explain(PLAIN))(X[:, None]))


def cpu_time(make, *shapes):
    jax.clear_caches()
    start = time.process_time()
    jax.jit(make).lower(*shapes)
    return time.process_time() - start


def deep(depth):
    shape = lambda *s: jax.ShapeDtypeStruct(s, X.dtype)

    def f(x, params):
        for p in params:
            x = jax.checkpoint(block)(x, p)
        return x[:, -1]

    return f, shape(*X.shape), [{n: shape(*s) for n, s in NAMES.items()}] * depth


def test_deep_rematerialised_networks_are_traced_in_little_more_time_than_their_gradients():
    """2.3 to 3 times as long at 32 blocks, of which the planning of each block takes most; 9 if each was traced anew."""
    f, *given = deep(32)
    gradient = jax.grad(lambda x, params: f(x, params).sum())
    explain = lrpjax.relevance(f, composites.attnlrp(), target="max")
    for make in (gradient, explain):
        small = deep(2)
        jax.jit(make).lower(*small[1:])
    ratios = [cpu_time(explain, *given) / cpu_time(gradient, *given) for _ in range(3)]
    assert min(ratios) < 5


# ------------------------------------------------------------------------------------------------------------- what bodies keep


def products(f, *given):
    return counting.products(jax.make_jaxpr(f)(*given)).flops


@pytest.mark.parametrize("name", ["attnlrp", "epsilon_plus"])
@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.dots_with_no_batch_dims_saveable])
def test_rematerialised_blocks_compute_no_more_than_the_gradient_does(name, policy):
    """The last product of a block is known to its gradient as a summand alone, which asks for nothing again; the
    stabilised denominator of the ε-rule asks for it, and it is kept."""
    body, (_, *given) = jax.checkpoint(block, policy=policy), deep(3)

    def f(x, params):
        for p in params:
            x = body(x, p)
        return x

    gradient = jax.value_and_grad(lambda x, params: f(x, params).sum())
    explain = lrpjax.relevance(f, COMPOSITES[name])
    assert products(explain, *given) <= 1.001 * products(gradient, *given)
    close(lrpjax.relevance(lambda x: f(x, PARAMS[:3]), COMPOSITES[name])(X), unrolled(3, COMPOSITES[name]))


def test_policies_that_move_values_to_the_host_are_asked_too():
    """On a CPU it cannot run; what is moved is told by the jaxpr."""

    def named(x, p):
        return block(jax.ad_checkpoint.checkpoint_name(jnp.tanh(x), "h"), p)

    offload = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["h"],
        offload_src="device",
        offload_dst="pinned_host",
    )
    f = network(jax.checkpoint(named, policy=offload))
    text = str(jax.make_jaxpr(lrpjax.relevance(f, COMPOSITES["attnlrp"], target=0))(X))
    assert text.count("MemorySpace.Host") >= DEPTH or text.count("pinned_host") >= DEPTH


def unrolled(depth, composite):
    def f(x):
        for p in PARAMS[:depth]:
            x = block(x, p)
        return x

    return lrpjax.relevance(f, composite)(X)


def test_scanned_blocks_that_are_rematerialised_keep_as_much_as_their_carry():
    stack = jax.tree.map(lambda *a: jnp.stack(a), *PARAMS)
    f = lambda x, stack: lax.scan(lambda x, p: (jax.checkpoint(block)(x, p), None), x, stack)[0]
    gradient = jax.grad(lambda x, stack: f(x, stack).sum())
    explain = lrpjax.relevance(f, COMPOSITES["attnlrp"])
    close(explain(X, stack), unrolled(DEPTH, COMPOSITES["attnlrp"]))
    assert products(explain, X, stack) <= 1.001 * products(gradient, X, stack)
    temporary = lambda f: jax.jit(f).lower(X, stack).compile().memory_analysis().temp_size_in_bytes
    assert temporary(explain) < temporary(gradient) + 3 * DEPTH * X.nbytes

"""Functions put at values of a program: against the function with the same written in, by its values and by its relevance,
in calls, loops and branches, with the names of everything else kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import close
from jax import lax

import lrpjax
from lrpjax import circuits, composites, concepts
from lrpjax.circuits import PatchError
from lrpjax.errors import PathError

EXACT = composites.epsilon(0.0)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def weights(rng):
    return jnp.asarray(rng.normal(size=(4, 4))), jnp.asarray(rng.normal(size=(3, 4, 4)) / 2)


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(2, 4)))


def put(h):
    return lrpjax.tag(jax.nn.relu(h), "new") @ jnp.diag(jnp.array([1.0, 2.0, 3.0, 4.0])) + h / 2.0


def plain(h):
    return h


def layered(weights, written=plain):
    first, _ = weights

    def f(x):
        with jax.named_scope("one"):
            h = written(lrpjax.tag(jnp.tanh(x @ first), "h"))
        with jax.named_scope("two"):
            return jax.nn.gelu(h @ first.T) @ first

    return f


def called(weights, written=plain):
    first, _ = weights
    inner = jax.jit(lambda x: written(lrpjax.tag(jnp.tanh(x @ first), "h")) * 2.0)

    @jax.jit
    def f(x):
        with jax.named_scope("one"):
            h = inner(x)
        with jax.named_scope("two"):
            return jax.nn.relu(h @ first.T) @ first

    return f


def looped(weights, written=plain):
    first, stacked = weights

    def f(x):
        def step(carry, w):
            h, scale = carry
            with jax.named_scope("inner"):
                h = written(lrpjax.tag(jnp.tanh(h @ w), "h")) + h
            return (h, scale * 0.5), h.sum()

        (h, _), sums = lax.scan(step, (x @ first, jnp.asarray(2.0)), stacked, reverse=True)
        return h @ first + sums.sum()

    return f


def branched(weights, written=plain):
    first, _ = weights

    def f(x):
        with jax.named_scope("choice"):
            h = lax.cond(x.sum() > -100.0, lambda x: written(lrpjax.tag(x @ first, "h")), lambda x: x, x)
        return h @ first.T

    return f


def recomputed(weights, written=plain):
    first, _ = weights

    @jax.checkpoint
    def part(x):
        return written(lrpjax.tag(jnp.tanh(x @ first), "h")) @ first

    return lambda x: part(x) * 3.0


KINDS = [layered, called, looped, branched, recomputed]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_as_if_the_function_were_written_in(kind, weights, x):
    there, expected = circuits.intervene(kind(weights), {"h": put}), kind(weights, put)
    close(there(x), expected(x))
    close(jax.jit(there)(x), expected(x))
    close(jax.grad(lambda x: there(x).sum())(x), jax.grad(lambda x: expected(x).sum())(x))
    close(lrpjax.relevance(there, EXACT)(x), lrpjax.relevance(expected, EXACT)(x))
    for name in ("h", "new"):
        close(lrpjax.relevance(there, EXACT, at=name)(x), lrpjax.relevance(expected, EXACT, at=name)(x))
    rows = lambda f: jax.vmap(lambda k: concepts.relevance(f, EXACT, {"new": k})(x))(jnp.arange(4))
    close(rows(there), rows(expected))
    assert not jnp.allclose(there(x), kind(weights)(x))


@pytest.mark.parametrize("kind", KINDS)
def test_all_other_units_keep_path_rule_and_kind(kind, weights, x):
    shown = lambda f: [
        (row.path, row.kind, str(row.rule)) for row in lrpjax.plan(f, composites.epsilon_plus(), x).units
    ]
    assert shown(circuits.intervene(kind(weights), {"h": lambda h: h})) == shown(kind(weights))


def test_functions_are_not_called_for_a_value_whose_path_is_a_scope_around_a_call(weights, x):
    seen = []

    def note(h):
        seen.append(h.shape)
        return 2.0 * h

    f = called(weights)
    close(circuits.intervene(f, {"two": note})(x), 2.0 * f(x))
    assert seen == [(2, 4)]


def test_a_value_that_is_written_twice_is_replaced_twice(weights, x):
    first, _ = weights

    def f(x):
        def twice(x, w):
            with jax.named_scope("dense"):
                return x @ w

        return jnp.tanh(twice(x, first)) + jax.jit(twice)(x, first)

    h = x @ first
    close(circuits.intervene(f, {"dense": lambda h: 3.0 * h})(x), jnp.tanh(3.0 * h) + 3.0 * h)


def test_modules_of_nnx_keep_their_paths(rng):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(4, 5, rngs=rngs, param_dtype=jnp.float64, dtype=jnp.float64)
            self.second = nnx.Linear(5, 3, rngs=rngs, param_dtype=jnp.float64, dtype=jnp.float64)

        def __call__(self, x):
            return self.second(jax.nn.relu(self.first(x)))

    net, x = Net(nnx.Rngs(0)), jnp.asarray(rng.normal(size=(2, 4)))
    there = circuits.intervene(net, {"first": lambda h: lrpjax.tag(2.0 * h, "new")})
    close(there(x), net.second(2.0 * jax.nn.relu(net.first(x))))
    named = lrpjax.relevance(there, EXACT, at=["first", "new", "second"], target=0)(x)
    close(named["new"].sum(), named["first"].sum())
    assert set(named) == {"first", "new", "second"}


def test_functions_may_close_over_what_is_traced(weights, x):
    f = layered(weights)
    scaled = lambda s: circuits.intervene(f, {"h": lambda h: h * s})(x).sum()
    written = lambda s: layered(weights, lambda h: h * s)(x).sum()
    close(jax.grad(scaled)(1.5), jax.grad(written)(1.5))
    close(jax.jit(jax.vmap(scaled))(jnp.arange(3.0)), jnp.stack([written(s) for s in (0.0, 1.0, 2.0)]))
    inner = lambda s: circuits.intervene(looped(weights), {"h": lambda h: h * s})(x).sum()
    close(jax.grad(inner)(1.5), jax.grad(lambda s: looped(weights, lambda h: h * s)(x).sum())(1.5))


def test_arrays_and_functions_at_once(weights, x):
    f = layered(weights)
    both = circuits.intervene(f, {"h": lambda h: -h, "one": (jnp.array([True, False, False, False]), 0.0)})
    with pytest.raises(PatchError, match="'h' and 'one' name the same value"):
        circuits.intervene(f, {"h": put, "one": put})(x)
    kept = jnp.array([0.0, 1.0, 1.0, 1.0])
    close(both(x), layered(weights, lambda h: -h * kept)(x))


def test_while_loops_run_with_the_function(x):
    def f(x, written=plain):
        step = lambda state: (state[0] + 1, written(lrpjax.tag(state[1] * 2.0, "h")))
        return lax.while_loop(lambda state: state[0] < 3, step, (0, x))[1]

    close(circuits.intervene(f, {"h": lambda h: h + 1.0})(x), f(x, lambda h: h + 1.0))


def test_what_does_not_fit(weights, x):
    f = layered(weights)
    with pytest.raises(
        PatchError, match=r"the function put at 'h' gives shape \(2,\), but the value has \(2, 4\)"
    ):
        circuits.intervene(f, {"h": lambda h: h.sum(1)})(x)
    with pytest.raises(PathError, match="no value leaves the scope 'nowhere'"):
        circuits.intervene(f, {"nowhere": put})(x)
    with pytest.raises(PathError, match="names none, or several"):
        circuits.intervene(f, {"h*": put})
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    mapped = jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=spec)
    with pytest.raises(PatchError, match=r"inside of a jax\.shard_map"):
        circuits.intervene(mapped, {"h": put})(x)

"""The engine that carries facts along programs: loops to their fixpoint, branches joined, in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close

import lrpjax
from lrpjax import Composite, rules, select
from lrpjax.core import facts, graph
from lrpjax.core.dataflow import Flow
from lrpjax.core.primitives import FAMILIES


def register(x, y):
    """A value takes four turns of the loop to come from the first place of the carry to the output."""
    step = lambda carry, _: ((carry[0], carry[0] * 2.0, carry[1] * 2.0, carry[2] * 2.0), carry[3])
    carry, out = jax.lax.scan(step, (x, y, y, y), None, length=5)
    return carry[3], out


def traced(f, *args):
    return graph.build(graph.trace(f, *args)[0])


def along(flow, node):
    """Facts of a set: what is made of a value knows what the value knows."""
    every = frozenset().union(*(flow[v] for v in node.inputs))
    return [(v, every) for v in node.outputs]


def against(flow, node):
    every = frozenset().union(*(flow[v] for v in node.outputs))
    return [(v, every) for v in node.inputs if v.constant is None]


def test_a_fact_goes_round_a_loop_until_nothing_changes():
    program = traced(register, 1.0, 1.0)
    flow = Flow(frozenset(), frozenset.union, along).solve(program, [{"x"}, {"y"}])
    assert [flow[v] for v in program.outputs] == [{"x", "y"}, {"x", "y"}]
    body = program.nodes[0].bodies[0]
    assert [flow[v] for v in body.inputs] == [{"x"}, {"x", "y"}, {"x", "y"}, {"x", "y"}]


def test_and_backward():
    program = traced(register, 1.0, 1.0)
    flow = Flow(frozenset(), frozenset.union, against, backward=True)
    flow.solve(program, [{"carry"}, {"out"}])
    assert [flow[v] for v in program.inputs] == [{"carry", "out"}, {"carry", "out"}]
    only = Flow(frozenset(), frozenset.union, against, backward=True).solve(program, [{"carry"}, set()])
    (loop,) = program.nodes
    assert [only[v] for v in loop.bodies[0].outputs[: loop.carry[1]]] == [
        {"carry"}
    ] * 3  # JAX hands x in as a constant


def test_branches_are_joined():
    f = lambda i, x, y: jax.lax.cond(i > 0, lambda x, y: x * 2.0, lambda x, y: y * 2.0, x, y)
    program = traced(f, 1, 1.0, 1.0)
    flow = Flow(frozenset(), frozenset.union, along).solve(program, [{"i"}, {"x"}, {"y"}])
    assert flow[program.outputs[0]] == {"x", "y"}  # and nothing of the index, which no body reads


def test_only_values_within_have_facts():
    program = traced(lambda x: jnp.tanh(x) * 2.0, 1.0)
    flow = Flow(frozenset(), frozenset.union, along, within={program.inputs[0]}).solve(program, [{"x"}])
    assert flow[program.inputs[0]] == {"x"} and flow[program.outputs[0]] == frozenset()


# -------------------------------------------------------------------------------------------------- the three analyses


@pytest.mark.parametrize(
    ("f", "carries", "nonnegative"),
    [
        (lambda x: jax.lax.scan(lambda c, _: (c * 2.0, c), jnp.exp(x), None, length=3)[0], True, True),
        (lambda x: jax.lax.scan(lambda c, _: (c - 1.0, c), jnp.exp(x), None, length=3)[1], True, False),
        (lambda x: jax.lax.scan(lambda c, _: (c - 1.0, jax.nn.relu(c)), x, None, length=3)[1], True, True),
        (lambda x: jax.lax.cond(x[0] > 0, jnp.exp, jnp.tanh, x), True, False),
        (lambda x: jax.lax.cond(x[0] > 0, jnp.exp, jnp.square, x), True, True),
        (lambda x: jax.lax.cond(x[0] > 0, jnp.exp, lambda x: -jnp.ones_like(x), x), True, False),
        (lambda x: jax.lax.scan(lambda c, _: (c, -1.0), jnp.exp(x), None, length=3)[1] * x, True, False),
        (
            lambda x: jax.lax.scan(lambda c, _: ((c[1], c[0]), c[0]), (jnp.exp(x), x), None, length=3)[1],
            True,
            False,
        ),
        (lambda x: jax.lax.stop_gradient(jnp.exp(x)), False, True),
    ],
)
def test_facts_through_control_flow(f, carries, nonnegative):
    program = traced(f, jnp.ones(3))
    facts.mark(facts.find(program, [True], frozenset(), FAMILIES))
    (out,) = program.outputs
    assert (out.carries, out.nonnegative) == (carries, nonnegative)


def test_two_carries_that_change_places_hand_both_signs_on():
    """exp(x) and x take turns in the carry: after one turn neither is known to be non-negative, and z⁺ needs both halves of x."""
    w = jnp.array([[1.0, -2.0], [-3.0, 1.0]])
    turn = lambda c: (c[1], c[0])

    def scanned(x):
        (a, _), _ = jax.lax.scan(lambda c, _: (turn(c), None), (jnp.exp(x), x), None, length=3)
        return a @ w

    x, composite = jnp.array([-1.0, 2.0]), Composite([(select.kind("dense"), rules.ZPlus())])
    close(lrpjax.relevance(scanned, composite)(x), lrpjax.relevance(lambda x: x @ w, composite)(x))


def test_a_bias_below_a_rule_that_gives_relevance_to_zeros_is_alike_in_a_loop_and_outside():
    """Plain relevance passes a free-standing bias unchanged below the flat rule, in the loop's first turn and in its last."""
    w = jnp.array([[1.0, -2.0], [-3.0, 1.0]])
    step = lambda h: jnp.tanh((h + 1.5) @ w) + 0.5

    def scanned(x):
        return jax.lax.scan(lambda h, _: (step(h), None), x, None, length=3)[0] @ w

    composite = Composite([(select.kind("dense"), rules.Flat())])
    x = jnp.array([-1.0, 2.0])
    unrolled = lambda x: step(step(step(x))) @ w
    R = lrpjax.relevance(unrolled, composite)(x)
    close(lrpjax.relevance(scanned, composite)(x), R)
    assert np.abs(R).max() > 0.01

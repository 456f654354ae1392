"""What JAX's transforms and lrpjax's own options do with random programs: nothing that the plain call does not."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import programs
import reference
import writings
from hypothesis import assume, given
from hypothesis import strategies as st
from properties import NIGHTLY, close, examples, is_nightly

import lrpjax
from lrpjax import composites

small = programs.programs(most=2)
tokens = programs.token_programs(most=2)


def explained(program, f=None, **options):
    """x -> relevance."""
    f = writings.function(program) if f is None else f
    return lrpjax.relevance(f, program.composite(), **{"target": jnp.asarray(program.seed), **options})


def relevance(program, f=None, **options):
    return explained(program, f, **options)(jnp.asarray(program.x))


def scanned(program):
    """Two turns, each with weights of its own, that read and change what is carried."""
    turns = [jax.tree.map(lambda a, k=k: a * k, [s.arrays for s in program.steps]) for k in (1.0, 1.1)]
    stacked = jax.tree.map(lambda *a: np.stack(a), *turns)
    turn = lambda v, own: (v * jnp.asarray(1.5, v.dtype), writings.function(program, own)(v))
    return lambda x: jax.lax.scan(turn, x, stacked)[1]


def branched(program):
    f = writings.function(program)
    return lambda x: jax.lax.cond(x.sum() > 1e6, lambda x: 2 * f(x), f, x)


def with_own_derivative(program, times=1.0):
    """A function whose own derivative is `times` as large as it should be."""
    plain = writings.function(program)
    f = jax.custom_jvp(plain)

    @f.defjvp
    def _(primals, tangents):
        y, t = jax.jvp(plain, primals, tangents)
        return y, t * jnp.asarray(times, t.dtype)

    return f


WRAPPED = {"plain": writings.function, "scan": scanned, "branch": branched, "custom_jvp": with_own_derivative}
"""Programs in something that has derivatives of its own."""


def outer_seed(program, how):
    return np.stack([program.seed, 2 * program.seed]) if how == "scan" else program.seed


@examples(2)
@given(tokens)
def test_jit(program):
    close(jax.jit(explained(program))(program.x), relevance(program))


@examples(3)
@given(tokens)
def test_rematerialised(program):
    close(relevance(program, jax.checkpoint(writings.function(program))), relevance(program))


@examples(3)
@given(tokens)
def test_own_derivative(program):
    close(relevance(program, with_own_derivative(program)), relevance(program))


@examples(3)
@given(tokens)
def test_branch(program):
    close(relevance(program, branched(program)), relevance(program))


@examples(4)
@given(tokens)
def test_vmap_is_a_loop(program):
    xs = jnp.stack([jnp.asarray(program.x), jnp.asarray(program.x)[::-1], -jnp.asarray(program.x)])
    one = explained(program)
    close(jax.vmap(one)(xs), jnp.stack([one(x) for x in xs]))


@examples(5)
@given(tokens)
def test_scan_is_unrolled(program):
    """A block that keeps the shape, three times, with weights of its own each time."""
    block = dataclasses.replace(program, steps=program.steps[:-1])
    assume(block.steps and block.steps[-1].shape == program.x.shape)
    turns = [
        jax.tree.map(lambda a, k=k: a * (1 + 0.1 * k), [s.arrays for s in block.steps]) for k in range(3)
    ]
    stacked = jax.tree.map(lambda *a: np.stack(a), *turns)

    def in_a_loop(x):
        return jax.lax.scan(lambda v, own: (writings.function(block, own)(v), None), x, stacked)[0]

    def unrolled(x):
        for own in turns:
            x = writings.function(block, own)(x)
        return x

    block = dataclasses.replace(block, seed=np.linspace(-1.0, 2.0, program.x.size).reshape(program.x.shape))
    close(relevance(block, in_a_loop), relevance(block, unrolled), tolerance=1e-8)


@examples(8)
@given(tokens, st.sampled_from(sorted(WRAPPED)))
def test_gradient_of_the_relevance(program, how):
    """Along one direction, against a central difference."""
    one = explained(program, WRAPPED[how](program), target=jnp.asarray(outer_seed(program, how)))
    x = jnp.asarray(program.x)
    assume(np.all(x != 0))  # a kink there has the same difference quotient at every distance
    direction = np.random.default_rng(0).normal(size=x.shape)
    weighted = lambda x: (one(x) * np.cos(np.arange(x.size)).reshape(x.shape)).sum()
    found = (jax.grad(weighted)(x) * direction).sum()
    step = 1e-6
    wanted = (weighted(x + step * direction) - weighted(x - step * direction)) / (2 * step)
    finer = (weighted(x + step / 4 * direction) - weighted(x - step / 4 * direction)) / (step / 2)
    scale = max(1.0, float(abs(wanted)))
    assume(abs(wanted - finer) < 1e-5 * scale)  # no kink between the two, and no pole near
    close(found, wanted, tolerance=1e-4, scale=scale)


@examples(10)
@given(small, st.sampled_from([*sorted(WRAPPED), "straight-through"]))
def test_gradient_family_is_jax_grad(program, how):
    twice = lambda program: with_own_derivative(program, times=2.0)
    f, x = (WRAPPED | {"straight-through": twice})[how](program), jnp.asarray(program.x)
    seed = jnp.asarray(outer_seed(program, how))
    wanted = jax.vjp(f, x)[1](seed)[0]
    close(lrpjax.relevance(f, composites.gradient(), target=seed)(x), wanted)
    close(lrpjax.relevance(f, composites.input_x_gradient(), target=seed)(x), x * wanted)


@examples(7)
@given(small, st.data())
def test_a_value_in_between(program, data):
    """Relevance at a value that everything passes is the reference's, and goes on from there as from an output."""
    cuts = program.cuts()
    assume(cuts)
    cut = data.draw(st.sampled_from(cuts), label="cut")
    f = writings.function(program, tags=(cut,))
    inner = relevance(program, f, at=f"v{cut}")
    _, relevances = reference.explain(program)
    scale = max(np.abs(R).max() for R in relevances)
    close(inner, relevances[cut], scale=scale)
    close(relevance(program, f), relevances[0], scale=scale)


@examples(4)
@given(small)
def test_targets_are_output_relevances(program):
    f, x = writings.function(program), jnp.asarray(program.x)
    y = f(x)
    hot = np.eye(y.shape[-1])
    one = lambda target: lrpjax.relevance(f, program.composite(), target=target)(x)
    close(one(None), one(y))
    close(one(1), one(y * hot[1]))
    close(one("max"), one(y * hot[np.asarray(y).argmax(-1)]))
    close(one(lambda y: y * y), one(y * y))


@examples(5)
@given(tokens)
def test_arguments(program):
    """An input that comes in two arguments, by position or all at once."""
    f, x = writings.function(program), jnp.asarray(program.x)
    split = lambda a, b: f(jnp.concatenate([a, b]))
    options = {"target": jnp.asarray(program.seed)}
    both = lrpjax.relevance(split, program.composite(), argnums=(0, 1), **options)(x[:1], x[1:])
    close(jnp.concatenate(both), relevance(program))


@examples(6)
@given(small)
def test_the_audit_closes(program):
    """What the units lose is what the input lacks of the output's relevance, and each layer gets what the reference says."""
    program = program.changed(lambda step: {"rule": None if step.op not in programs.LAYERS else step.rule})
    audit = lrpjax.audit(writings.function(program), program.composite(), target=jnp.asarray(program.seed))(
        program.x
    )
    _, relevances = reference.explain(program)
    scale = max(np.abs(R).sum() for R in relevances)
    lost = sum(unit.bias + unit.epsilon + unit.other for unit in audit.units)
    close(audit.seed, audit.relevance + lost, scale=scale)
    last = audit.units[-1]
    close(last.relevance_in, program.seed.sum(), scale=scale)
    for unit in audit.units:
        if unit.kind in programs.LAYERS and len(program.steps) >= int(unit.path.split("/")[0][1:]):
            number = int(unit.path.split("/")[0][1:])
            same = [u for u in audit.units if u.kind in programs.LAYERS and u.path == unit.path]
            if len(same) == 1:
                close(unit.relevance_in, relevances[number].sum(), scale=scale)


def test_eight_devices_and_one_agree():
    """In a process of its own, which pretends to have eight devices."""
    number = 4 * (NIGHTLY if is_nightly() else 1)
    here = pathlib.Path(__file__).parent
    flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8"
    paths = os.pathsep.join([str(here), str(here.parents[1])])
    done = subprocess.run(
        [sys.executable, here / "on_eight_devices.py", str(number)],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

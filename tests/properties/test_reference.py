"""Random programs with random rules, against contributions z_ij written out in NumPy."""

import jax.numpy as jnp
import numpy as np
import programs
import reference
import writings
from hypothesis import given, note
from properties import close, examples

import lrpjax


def relevance(program):
    explain = lrpjax.relevance(
        writings.function(program), program.composite(), target=jnp.asarray(program.seed)
    )
    return explain(jnp.asarray(program.x))


def check(program):
    values, relevances = reference.explain(program)
    np.testing.assert_allclose(
        writings.function(program)(jnp.asarray(program.x)), values[-1], rtol=1e-9, atol=1e-9
    )
    note(str(lrpjax.plan(writings.function(program), program.composite(), program.x)))
    scale = max(np.abs(R).max(initial=0.0) for R in relevances)
    close(relevance(program), relevances[0], scale=scale)


@examples(30)
@given(programs.token_programs())
def test_token_programs(program):
    check(program)


@examples(6)
@given(programs.image_programs())
def test_image_programs(program):
    check(program)

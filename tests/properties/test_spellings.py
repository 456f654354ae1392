"""The same random program in two writings has the same relevance."""

import jax.numpy as jnp
import programs
import writings
from hypothesis import given
from hypothesis import strategies as st
from properties import close, examples

import lrpjax


def relevance(program):
    explain = lrpjax.relevance(
        writings.function(program), program.composite(), target=jnp.asarray(program.seed)
    )
    return explain(jnp.asarray(program.x))


@examples(6)
@given(programs.programs(most=2), st.data())
def test_every_writing_has_the_same_relevance(program, data):
    close(relevance(program.rewritten(data)), relevance(program), tolerance=1e-8)

"""Names that JAX has dropped since some of the collections were written."""

import functools

import jax
import jax.numpy as jnp


def _renamed(function, **names):
    """`function`, which takes its arguments by their old names too."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        return function(*args, **{names.get(k, k): v for k, v in kwargs.items()})

    return call


jnp.clip = _renamed(jnp.clip, a_min="min", a_max="max")
jnp.reshape = _renamed(jnp.reshape, newshape="shape")
if not hasattr(jax.random, "KeyArray"):
    jax.random.KeyArray = jax.Array

"""Perturbations of x, given or to be drawn: as seeds that are turned to arrays a batch at a time."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from lrpjax._evaluate import check_positive


def perturbations(
    x: jax.Array, noise: float | ArrayLike, samples: int | None, key: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """(the perturbations [K, *x.shape], None), or (K random keys, the scale of what is drawn from them)."""
    if np.ndim(noise) == 0:
        if samples is None or key is None:
            raise ValueError("a noise radius needs samples and key")
        check_positive("samples", samples)
        if not isinstance(noise, Tracer) and not np.asarray(noise) > 0:
            raise ValueError(f"the noise radius must be positive, not {noise}")
        return jax.random.split(key, samples), jnp.asarray(noise, x.dtype)
    given = jnp.asarray(noise, x.dtype)
    if given.shape[1:] != x.shape:
        raise ValueError(f"perturbations must be [K, {', '.join(map(str, x.shape))}], not {given.shape}")
    return given, None


def uniform(seed: jax.Array, radius: jax.Array | None, x: jax.Array) -> jax.Array:
    """The perturbation that a seed stands for, drawn from [−radius, radius] if it is a key."""
    return seed if radius is None else jax.random.uniform(seed, x.shape, x.dtype, -radius, radius)


def normal(seed: jax.Array, deviation: jax.Array | None, x: jax.Array) -> jax.Array:
    """The perturbation that a seed stands for, drawn with a standard deviation, which may broadcast, if it is a key."""
    return seed if deviation is None else deviation * jax.random.normal(seed, x.shape, x.dtype)

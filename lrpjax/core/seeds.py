"""The relevance that an output begins with."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax.errors import TargetError


def output_relevance(y: Any, target: Any, method: str = "relevance") -> Any:
    """The relevance of an output that a target stands for, with the output's structure. See `relevance` for the
    kinds of target.

    A class that does not exist is a TargetError where it is known when tracing; in a traced int array it makes
    the relevance NaN.
    """
    weigh = (lambda y: y) if method == "relevance" else jnp.ones_like
    if target is None:
        return jax.tree.map(weigh, y)
    if callable(target):
        seed = target(y)
        if jax.tree.structure(seed) != jax.tree.structure(y) or jax.tree.map(jnp.shape, seed) != jax.tree.map(
            jnp.shape, y
        ):
            raise TargetError(
                f"the target function returned {shapes_of(seed)}, but the output has {shapes_of(y)}"
            )
        return seed
    leaves = jax.tree.leaves(y)
    if len(leaves) != 1:
        raise TargetError(f"the output has {len(leaves)} arrays: use target=None or a callable")
    (out,) = leaves
    if isinstance(target, str):
        if target != "max":
            raise TargetError(f"the only target by name is 'max', but this is {target!r}")
        _need_axis(out)
        return jax.tree.map(lambda y: _class_mask(y.argmax(-1), y) * weigh(y), y)
    array = target if isinstance(target, jax.Array) else np.asarray(target)
    if array.dtype == bool or not (
        jnp.issubdtype(array.dtype, jnp.integer) or jnp.issubdtype(array.dtype, jnp.floating)
    ):
        raise TargetError(
            "a target is None, 'max', a class (int), an array of the output's shape or a callable, "
            f"but this has dtype {array.dtype}"
        )
    if jnp.issubdtype(array.dtype, jnp.floating):
        if array.shape != out.shape:
            raise TargetError(f"the target has shape {array.shape}, but the output has {out.shape}")
        return jax.tree.map(lambda y: jnp.asarray(array), y)
    _need_axis(out)
    if array.shape not in ((), out.shape[:-1]):
        raise TargetError(
            f"class targets have shape {array.shape}: the output of shape {out.shape} takes one int "
            f"or shape {out.shape[:-1]}"
        )
    classes = out.shape[-1]
    if (
        not isinstance(array, jax.core.Tracer)
        and array.size
        and not (-classes <= np.asarray(array).min() and np.asarray(array).max() < classes)
    ):
        raise TargetError(f"target {target} is out of range: the output has {classes} classes")
    return jax.tree.map(lambda y: _class_mask(jnp.asarray(array), y) * weigh(y), y)


def _class_mask(classes: jax.Array, y: jax.Array) -> jax.Array:
    """One where the class stands, along the last axis of y; NaN all along where there is no such class."""
    number = y.shape[-1]
    classes = jnp.broadcast_to(classes, y.shape[:-1])[..., None]
    valid = (classes >= -number) & (classes < number)
    hot = jnp.arange(number, dtype=classes.dtype) == classes % number
    return jnp.where(valid, hot.astype(y.dtype), jnp.asarray(jnp.nan, y.dtype))


def _need_axis(y: jax.Array) -> None:
    if y.ndim == 0:
        raise TargetError("the output is a scalar: it has no classes to choose from; use target=None")


def shapes_of(tree: Any) -> str:
    """The shape, or shapes, of a pytree of arrays, as errors name them."""
    leaves, treedef = jax.tree.flatten(tree)
    return (
        f"shape {jnp.shape(leaves[0])}"
        if len(leaves) == 1
        else f"{treedef} of shapes {[jnp.shape(leaf) for leaf in leaves]}"
    )

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
    target = checked(target, y)
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
        _need_numbers(seed, y, "the target function")
        return seed
    if isinstance(target, str):
        return jax.tree.map(lambda y: _at_class(y.argmax(-1), y, weigh(y)), y)
    if jnp.issubdtype(target.dtype, jnp.floating):
        return jax.tree.map(lambda y: jnp.asarray(target), y)
    return jax.tree.map(lambda y: _at_class(jnp.asarray(target), y, weigh(y)), y)


def checked(target: Any, y: Any) -> Any:
    """A target, once all is checked that can be without the numbers of the output, of which the shapes are enough:
    None, "max", a function, or an array, of floating-point numbers or of classes."""
    if callable(target):
        return target
    leaves = jax.tree.leaves(y)
    # A dict names what it gives. In a tuple, what stands beside the output is a state or an intermediate value as often
    # as a second output, and its relevance would be added in silence.
    if target is None and (len(leaves) < 2 or type(y) not in (tuple, list)):
        return target
    if len(leaves) != 1:
        raise TargetError(
            f"the output has {len(leaves)} arrays, of shapes {[jnp.shape(leaf) for leaf in leaves]}: has_aux=True "
            "explains the first of (output, other things), and target=lambda y: y all of them together; so does any "
            "function that gives the relevance of each"
        )
    (out,) = leaves
    if isinstance(target, str):
        if target != "max":
            raise TargetError(f"the only target by name is 'max', but this is {target!r}")
        _need_axis(out)
        return target
    if isinstance(target, tuple):
        raise TargetError(
            f"the target is a tuple, {target}: classes for each example are a list or an array, {list(target)}; one "
            "place of an output with more axes is a function, target=lambda y: "
            "jnp.zeros_like(y).at[:, i, j].set(y[:, i, j])"
        )
    array = _as_array(target, out)
    if array.dtype == bool or not (
        jnp.issubdtype(array.dtype, jnp.integer) or jnp.issubdtype(array.dtype, jnp.floating)
    ):
        raise TargetError(
            "a target is None, 'max', a class (int), an array of the output's shape or a callable, "
            f"but this has dtype {array.dtype}"
        )
    if jnp.issubdtype(array.dtype, jnp.floating):
        if array.shape != out.shape:
            said = ". A class is an int" if array.ndim == 0 else ""
            raise TargetError(f"the target has shape {array.shape}, but the output has {out.shape}{said}")
        return array
    _need_axis(out)
    if array.shape == out.shape and array.ndim:
        raise TargetError(
            f"the target has {array.dtype} numbers in the output's shape {out.shape}, as a one-hot code has: the "
            "relevance of the output is given as floating-point numbers, target.astype(float), and classes as "
            f"target.argmax(-1), one int or shape {out.shape[:-1]}"
        )
    if array.shape not in ((), out.shape[:-1]):
        raise TargetError(
            f"class targets have shape {array.shape}: the output of shape {out.shape} takes one int "
            f"or shape {out.shape[:-1]}; the output's relevance itself is given as floating-point numbers"
        )
    if isinstance(array, jax.core.Tracer):
        return array
    classes, array = out.shape[-1], np.asarray(array)
    if array.size and not (-classes <= int(array.min()) and int(array.max()) < classes):
        raise TargetError(f"target {target} is out of range: the output has {classes} classes")
    return array.astype(np.int32)


def _as_array(target: Any, out: jax.Array) -> Any:
    """A target as an array: lists may hold traced numbers, and a class may be larger than any integer type."""
    if isinstance(target, jax.Array):
        return target
    if isinstance(target, int) and not isinstance(target, bool) and abs(target) >= 2**31:
        _need_axis(out)
        raise TargetError(f"target {target} is out of range: the output has {out.shape[-1]} classes")
    traced = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(target))
    try:
        return jnp.asarray(target) if traced else np.asarray(target)
    except (TypeError, ValueError) as error:
        raise TargetError(f"the target {target!r} is no array ({error})") from error


def _at_class(classes: jax.Array, y: jax.Array, weight: jax.Array) -> jax.Array:
    """`weight` where the class stands, along the last axis of y, and zero elsewhere, even where y is not finite;
    NaN all along where there is no such class."""
    number = y.shape[-1]
    if jnp.iinfo(classes.dtype).bits < 32:  # in which the number of classes may not be written
        classes = classes.astype(jnp.int32)
    classes = jnp.broadcast_to(classes, y.shape[:-1])[..., None]
    signed = jnp.issubdtype(classes.dtype, jnp.signedinteger)
    valid = (classes < number) & ((classes >= -number) if signed else True)
    index = jnp.where(valid, classes, 0).astype(jnp.int32)
    hot = jnp.arange(number, dtype=jnp.int32) == jnp.where(index < 0, index + number, index)
    missing = jnp.where(valid, 0.0, jnp.nan).astype(weight.dtype)
    return jnp.where(hot & valid, weight, missing)


def _need_numbers(seed: Any, y: Any, what: str) -> None:
    """An output's relevance is made of the numbers that the output is made of."""
    for given, out in zip(jax.tree.leaves(seed), jax.tree.leaves(y), strict=True):
        dtype = jnp.asarray(given).dtype
        real = jnp.issubdtype(dtype, jnp.floating)
        if not real and not (jnp.iscomplexobj(given) and jnp.iscomplexobj(out)):
            raise TargetError(
                f"{what} returned {dtype}{list(jnp.shape(given))} for an output of {out.dtype}: the output's "
                "relevance is made of floating-point numbers (`.astype(y.dtype)`)"
            )


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

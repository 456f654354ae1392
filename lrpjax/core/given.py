"""What a user gives to a transform, looked at before anything is traced: the function, its arguments, and which of them
are explained. What cannot be meant is an error here that says what to write."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax.core import compat
from lrpjax.errors import InputError, LrpjaxError


def checked_function(f: Any, call: str) -> Callable[..., Any]:
    """A function, as `call` takes it: a transform's name.

    Raises:
        InputError: it is none, or one that needs something first: a class, a module without its parameters, a model of
            another framework.
    """
    said = _not_to_be_called(f, call)
    if said:
        raise InputError(f"{call} explains functions of arrays, but was given {said}")
    return f


def _not_to_be_called(f: Any, call: str) -> str:
    """What it is, and what to write; nothing where it is a function."""
    name = type(f).__name__
    if isinstance(f, type):
        how = f"model = {f.__name__}(…) makes a model of it"
        if _is_a("flax.linen", f):
            explained = f"{call}(lambda x: model.apply(params, x))"
            how += f", params = model.init(key, x) its parameters, and {explained} explains x"
        else:
            how += f", and {call}(model) explains that"
        return f"the class {f.__name__} itself: {how}"
    if _is_a("flax.linen", type(f)) and getattr(f, "scope", None) is None:
        return (
            f"the linen module {name} without its parameters: {call}(lambda x: model.apply(params, x)) explains x, and "
            f"{call}(model.apply, argnums=1) is a function of params and x"
        )
    if _is_a("torch.nn", type(f)):
        return (
            f"the PyTorch module {name}: lrpjax.torch.explain(module, composite, x) explains it, and f, params = "
            "lrpjax.torch.function(module, x) makes a function of it"
        )
    if _is_a("keras", type(f), "Layer"):
        return f"the Keras model {name}: f, params = lrpjax.keras.function(model) makes a function of it"
    if isinstance(f, (jax.Array, np.ndarray)):
        return f"an array: the function comes first, {call}(f), and what that returns takes the array"
    if isinstance(f, str):
        return f"{f!r}, which is text"
    if not callable(f):
        apply = callable(getattr(f, "apply", None))
        how = f": its `apply` is one, {call}(lambda x: model.apply(params, x))" if apply else ""
        return f"{f!r}, a {name}{how}"
    return ""


def _is_a(package: str, cls: type, base: str = "Module") -> bool:
    """Whether a class derives from a framework's, which is not imported for it."""
    found = getattr(sys.modules.get(package), base, None)
    return isinstance(found, type) and issubclass(cls, found)


def given_to(
    f: Callable, args: Sequence[Any], kwargs: dict, argnums: Any
) -> tuple[Sequence[Any], dict, Any, tuple]:
    """The arguments of a function, `argnums`, and the numbers of the arguments that are explained."""
    if argnums is None and hasattr(f, "argnums"):
        args, kwargs = _in_order(f, args, kwargs)
    argnums = getattr(f, "argnums", 0) if argnums is None else argnums
    return args, kwargs, argnums, _checked_numbers(argnums, len(args))


def _in_order(f: Callable, args: Sequence[Any], kwargs: dict) -> tuple[Sequence[Any], dict]:
    """The arguments of a function that says itself which of them are explained, by their places: some may be given by
    their names.

    Raises:
        InputError: they do not fit the function.
    """
    try:
        bound = signature(f).bind(*args, **kwargs)
    except TypeError as error:
        name = getattr(f, "__name__", "the function")
        raise InputError(f"the arguments do not fit {name}{signature(f)}: {error}") from None
    return bound.args, bound.kwargs


def _checked_numbers(argnums: Any, count: int) -> tuple[int, ...]:
    if not count:
        raise InputError("the function was called without arguments: there is nothing to explain")
    numbers = tuple(argnums) if isinstance(argnums, Sequence) else (argnums,)
    for i in numbers:
        if not isinstance(i, (int, np.integer)) or isinstance(i, bool):
            raise InputError(f"argnums takes the number of an argument, or several, but got {argnums!r}")
        if not -count <= i < count:
            raise InputError(
                f"argnums names argument {i}, but the function was called with {count} positional arguments"
            )
    if len({i % count for i in numbers}) < len(numbers):
        raise InputError(f"argnums={argnums!r} names an argument twice")
    return numbers


def checked_leaf(leaf: Any, allow_integers: bool) -> Any:
    if not (
        isinstance(leaf, (jax.Array, np.ndarray, np.generic, float, jax.ShapeDtypeStruct))
        or (isinstance(leaf, int) and not isinstance(leaf, bool))
    ):
        raise InputError(f"the argument to be explained holds {what_is(leaf)}")
    aval = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(jnp.asarray(leaf))
    if compat.is_float(aval):
        return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf)
    if allow_integers:
        return jnp.asarray(leaf)
    if isinstance(leaf, int):
        raise InputError(
            f"the argument to be explained holds {leaf}, which has dtype {aval.dtype}: only floating-point values "
            "carry relevance. Where it is a list of numbers, give an array, jnp.asarray(x, jnp.float32)"
        )
    raise InputError(
        f"the argument to be explained has dtype {aval.dtype}: only floating-point values carry "
        "relevance. For token models explain with respect "
        "to the embedding, relevance(..., at='path/of/the/embedding'); for images and one-hot codes convert to float "
        "first, x.astype(jnp.float32)"
    )


def what_is(leaf: Any) -> str:
    """What stands where an array should, and what to give in its place."""
    module = type(leaf).__module__.split(".")[0]
    if module == "PIL":
        return (
            f"a picture of PIL, {leaf.size[0]}×{leaf.size[1]}, which is no array: np.asarray(image, np.float32) / 255 "
            "is one, from 0 to 1; bring it to the range, the size and the axes that the model was trained with"
        )
    if module == "torch":
        return (
            "a tensor of PyTorch, which is no array of JAX: lrpjax.torch.explain takes modules and tensors; for a JAX "
            "function give jnp.asarray(tensor.numpy(force=True))"
        )
    if module in ("tensorflow", "mlx", "cupy"):
        return f"a {type(leaf).__name__} of {module}, which is no array of JAX: give jnp.asarray(x.numpy())"
    if isinstance(leaf, (str, bytes)):
        return f"{leaf!r}, which is text and no array: give the tokens' numbers, and explain with at= the embedding"
    return f"{leaf!r}, which is no array"


def numbers_in_lists(args: Sequence[Any]) -> bool:
    """Whether an argument is a list of numbers, or of such lists, which JAX takes for as many scalars."""

    def is_one(arg: Any) -> bool:
        return isinstance(arg, (list, tuple)) and all(
            is_one(a) or (isinstance(a, (int, float)) and not isinstance(a, bool)) for a in arg
        )

    return any(is_one(arg) for arg in args)


@contextlib.contextmanager
def explained_failures(explained: Sequence[Any]) -> Iterator[None]:
    """While a function is traced: where it fails and an argument is a list of numbers, the error says that first."""
    try:
        yield
    except LrpjaxError:
        raise
    except Exception as error:
        if numbers_in_lists(explained):
            raise InputError(
                f"the function failed ({error}), and an argument to be explained is a list of numbers: for JAX that is "
                "a pytree of as many scalars, as in jax.grad. Give an array, jnp.asarray(x)"
            ) from error
        raise

"""Keras 3 models on the JAX backend, as pure functions that lrpjax (and `jax.jit`, `jax.grad`, `jax.vmap`) takes.

Keras opens a `jax.named_scope` for each layer that is called, so units have the layers' names as paths, with the names
of the models and layers around them: `outer/inner/dense`. A layer that is called twice has one path.

Installed by `pip install "lrpjax[keras]"`. Keras chooses its backend when it is imported for the first time: the
environment variable KERAS_BACKEND has to be `jax` then.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax.errors import InputError, TargetError
from lrpjax.transform import relevance


def function(
    model: Any, output: str | int | Callable[[Any], Any] | None = None
) -> tuple[Callable[..., Any], dict[str, jax.Array]]:
    """A Keras model as a pure function of its weights and its inputs, and its weights.

    Args:
        model: a Functional, Sequential or subclassed model, or a layer, that has its weights already.
        output: which one is explained of the outputs of a model that has several: the key or the name of one, its place
            in the list, or a function from what the model returns to an array. None: the only one.

    Returns:
        The pair (f, params). `f(params, *inputs)` is `model(*inputs, training=False)`: dropout does nothing, and a
        BatchNormalization uses its moving statistics. Several inputs of a Functional model are several arguments, or
        one list or dict, as it was made. Seeds of random layers are constants, and nothing is written into the model.
        `params` are the trainable and the other weights by their paths, `dense/kernel`, of the types that they have in
        the model and not copied; a second one of the same path is `dense/kernel#2`.

    Raises:
        ImportError: Keras is not installed, or its backend is not.
        TypeError: the model is no layer of Keras 3.
        RuntimeError: Keras runs on another backend than JAX.
        ValueError: the model has no weights yet.
        InputError: (f) the number or the names of the inputs, or the names of the weights, are not those of the model.
        TargetError: (f) the model has several outputs and `output` names none of them.

    >>> import os
    >>> os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported
    >>> import keras, lrpjax, numpy as np
    >>> from lrpjax.keras import function
    >>> model = keras.Sequential([keras.layers.Dense(2, name="hidden", activation="relu"), keras.layers.Dense(1)])
    >>> model.build((None, 3))
    >>> f, params = function(model)
    >>> x = np.ones((1, 3), "float32")
    >>> bool(f(params, x) == model(x))
    True
    >>> R = lrpjax.relevance(f, lrpjax.composites.epsilon())(params, x)  # or of `hidden`, by at="hidden"
    >>> R.shape
    (1, 3)
    """
    _check(model)
    named: dict[str, Any] = {}
    for variable in model.weights:
        path, number = variable.path, 1
        while path in named:
            number += 1
            path = f"{variable.path}#{number}"
        named[path] = variable

    def f(params: Mapping[str, Any], *inputs: Any) -> Any:
        import keras

        if params.keys() != named.keys():
            strange = sorted(params.keys() ^ named.keys())
            raise InputError(
                f"the weights are not those of the model {model.name!r}, which lrpjax.keras.function returned: "
                f"{', '.join(strange[:5])}{', …' if len(strange) > 5 else ''} stands in one of them only"
            )
        # Keras takes no NumPy arrays beside tracers.
        inputs = jax.tree.map(jnp.asarray, inputs)
        mapping = [(variable, params[path]) for path, variable in named.items()]
        with keras.StatelessScope(state_mapping=mapping):
            y = model(*_arranged(model, inputs), training=False)
        if len(model.weights) != len(named):
            raise ValueError(_UNBUILT.format(model.name))
        return _chosen(model, y, output)

    f.argnums = 1  # type: ignore[attr-defined]  # what is explained when nothing else is said: the first input
    return f, {path: variable.value for path, variable in named.items()}


def explain(
    model: Any,
    composite: Any,
    *inputs: Any,
    target: Any = None,
    at: str | Sequence[str] | None = None,
    output: str | int | Callable[[Any], Any] | None = None,
) -> Any:
    """The relevance of a Keras model's inputs, or of values inside it, in one line.

    It is traced and compiled anew in every call: for many batches, `jax.jit` what `lrpjax.relevance` gives for
    `function(model)`.

    Args:
        model, output: as for `function`.
        composite, target, at: as for `lrpjax.relevance`.
        inputs: NumPy or JAX arrays, as `function` takes them; floating-point ones, unless `at` is given.

    Returns:
        NumPy arrays: what `lrpjax.relevance` gives, for one input; a tuple for several; with `at` as there.

    Raises:
        What `function` and `lrpjax.relevance` do.

    >>> import os
    >>> os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported
    >>> import keras, lrpjax, numpy as np
    >>> from lrpjax.keras import explain
    >>> model = keras.Sequential([keras.layers.Embedding(9, 4, name="tokens"), keras.layers.Flatten()])
    >>> _ = model(np.zeros((1, 3), "int32"))
    >>> explain(model, lrpjax.composites.epsilon(), np.array([[1, 7, 2]]), at="tokens").shape
    (1, 3, 4)
    """
    f, params = function(model, output)
    if not inputs:
        raise InputError(f"there is no input to explain the model {model.name!r} for")
    argnums = tuple(range(1, len(inputs) + 1)) if len(inputs) > 1 else 1
    explained = relevance(f, composite, argnums=argnums, target=target, at=at)
    return jax.tree.map(np.asarray, jax.jit(explained)(params, *inputs))


_UNBUILT = (
    "the model {!r} has no weights yet, or not all: call it once on data of the right shape, or build it by "
    "model.build(shape), before it is explained"
)


def _check(model: Any) -> None:
    """Raises what `function` says about the model and about Keras."""
    try:
        import keras
    except ImportError as error:
        if error.name == "keras":
            raise ImportError('Keras models need Keras 3: pip install "lrpjax[keras]"') from error
        raise ImportError(
            f"Keras cannot be imported ({error}): set the environment variable KERAS_BACKEND to jax before Keras is "
            "imported for the first time"
        ) from error
    if not isinstance(model, keras.Layer):
        raise TypeError(f"lrpjax.keras takes a model or a layer of Keras 3, but got {type(model).__name__}")
    if keras.config.backend() != "jax":
        raise RuntimeError(
            f"Keras runs on the backend {keras.config.backend()!r}, whose models JAX cannot trace: set the environment "
            "variable KERAS_BACKEND to jax before Keras is imported for the first time"
        )
    if not model.built:
        raise ValueError(_UNBUILT.format(model.name))


def _arranged(model: Any, inputs: tuple) -> tuple:
    """The arguments that the model is called with."""
    wanted = _inputs_of(model)
    if wanted is None:
        try:
            inspect.signature(model.call).bind(*inputs)
        except TypeError as error:
            raise InputError(
                f"{len(inputs)} inputs do not fit {type(model).__name__}.call of the model {model.name!r}: {error}"
            ) from error
        return inputs
    names = list(wanted) if isinstance(wanted, Mapping) else [tensor.name for tensor in wanted]
    given = inputs[0] if len(inputs) == 1 else list(inputs)
    if isinstance(given, Mapping):
        fits = given.keys() == set(names)
    else:
        keyed = isinstance(wanted, Mapping) and len(names) > 1
        fits = not keyed and len(jax.tree.leaves(given, is_leaf=lambda leaf: leaf is None)) == len(names)
    if not fits:
        raise InputError(
            f"the model {model.name!r} takes {_shown(names)}"
            f"{' in a dict' if isinstance(wanted, Mapping) else ''}, but was given {_described(inputs)}"
        )
    return (given,)


def _inputs_of(model: Any) -> Any:
    """The symbolic inputs of a model that knows them, in a list or a dict; None for others."""
    wanted = getattr(model, "inputs", None)
    if not wanted or not hasattr(model, "output_names"):
        return None
    return model.input if isinstance(model.input, Mapping) else wanted


def _described(inputs: tuple) -> str:
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        return f"a dict of {', '.join(map(str, inputs[0])) or 'nothing'}"
    return f"{len(jax.tree.leaves(inputs))} array{'s' if len(jax.tree.leaves(inputs)) != 1 else ''}"


def _shown(names: Sequence[Any]) -> str:
    return f"{len(names)} input{'s' if len(names) != 1 else ''} ({', '.join(map(str, names))})"


def _chosen(model: Any, y: Any, output: Any) -> Any:
    """The output to be explained."""
    if callable(output):
        return output(y)
    places = _places(model, y)
    if output is None and len(places) == 1:
        return next(iter(places.values()))
    if output is not None:
        if output in places:
            return places[output]
        if isinstance(output, int) and not isinstance(y, Mapping) and -len(places) <= output < len(places):
            return list(places.values())[output]
    has = f"the model {model.name!r} has the outputs {', '.join(map(repr, places))}"
    if output is None:
        raise TargetError(f"{has}: choose one by output=")
    raise TargetError(f"{has}, and output={output!r} is none of them")


def _places(model: Any, y: Any) -> dict[Any, Any]:
    """The outputs by their keys, by the names that the model gives them, or by their numbers."""
    if isinstance(y, Mapping):
        return dict(y)
    if not isinstance(y, (list, tuple)):
        return {0: y}
    names = getattr(model, "output_names", ())
    distinct = len(set(names)) == len(names) == len(y)
    return dict(zip(names if distinct else range(len(y)), y, strict=True))

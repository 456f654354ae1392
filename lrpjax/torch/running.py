"""A torch module as a function of JAX arrays.

What stands in this file is where JAX's view of a program passes into torch: source lines are looked for among the
frames
inside of `Module.run` (`lrpjax.core.compat.BRIDGES`).
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.utils import _pytree as tree  # pyright: ignore[reportMissingImports]

from lrpjax.errors import InputError
from lrpjax.torch import modules, outputs
from lrpjax.torch.environment import Environment


def function(
    module: Any,
    *inputs: Any,
    output: str | Callable | None = None,
    lowerings: Mapping[Any, Callable] | None = None,
    **kwargs: Any,
) -> tuple[Callable, dict[str, jax.Array]]:
    """A torch module as a pure function of JAX arrays, with the module's names as named scopes.

    Args:
        module: a `torch.nn.Module` in evaluation mode, on the CPU. Nothing in it is changed.
        inputs: examples of the module's positional arguments: tensors, arrays, or dicts, lists and tuples of them.
            Their values do not matter. An argument without tensors (a number, a flag, None) is fixed here.
        output: which tensor of the module's output is the function's: a key or an attribute ("logits"; "a.b" and
            "hidden_states.0" go inside), or a function of the module's output. None: the output itself where it is a
            tensor, its `logits`, or its only floating-point tensor.
        lowerings: {operation of torch (`torch.ops.aten.…`): a function of JAX arrays}, for what torchax cannot run, or
            in place of what it does.
        kwargs: examples of the module's keyword arguments, likewise.

    Returns:
        (f, params). `f(params, *arrays)` takes an array in place of each argument that holds tensors, in the order in
            which the examples were given, or by name. It can be jitted, batched, differentiated and explained:
            `lrpjax.relevance(f, composite)(params, x)` is the relevance of the first floating-point input,
            and not that of the params, unless argnums= says so. `params` are the module's parameters and buffers, by
            their names in `state_dict()`; tied ones stand there once. They have the tensors' dtypes, and share their
            memory on the CPU: train the module further, and they change.

    Raises:
        ImportError: torch or torchax is not installed.
        InputError: the module is in training mode, has hooks, is on another device, is float16 on a CPU, or is
            float64 where JAX computes in float32; the examples do not fit its `forward`.
        UnsupportedError: (from f) an operation has no lowering, depends on values of data, or draws random numbers. The
            message names the torch module and the line.

    >>> import torch, jax.numpy as jnp, lrpjax
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
    >>> f, params = lrpjax.torch.function(net, torch.ones(1, 3))
    >>> sorted(params)
    ['0.bias', '0.weight', '2.bias', '2.weight']
    >>> R = lrpjax.relevance(f, target=0)(params, jnp.ones((1, 3), "float32"))
    >>> plan = lrpjax.plan(f, None, params, jnp.ones((1, 3), "float32"))
    >>> print(R.shape, [unit.path for unit in plan.units])
    (1, 3) ['0', '1', '2']
    """
    modules.check(module)
    running = Module(module, inputs, kwargs, output, lowerings or {})
    params = modules.parameters(module)

    def f(params: Mapping[str, Any], *arrays: Any, **named: Any) -> Any:
        return running.run(params, running.arguments(arrays, named))

    f.__name__ = f.__qualname__ = type(module).__name__
    f.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("params", *running.names)]
    )
    # What is explained when nothing else is said: the first input that can carry relevance, and never the params.
    f.argnums = 1 + running.explained  # type: ignore[attr-defined]
    return f, params


class Module:
    """A module, and how it is called.

    names: of the arguments that hold tensors, in the order of the examples.
    """

    def __init__(
        self, module: Any, inputs: Sequence[Any], kwargs: Mapping[str, Any], output: Any, lowered: Any
    ):
        self.module, self.output, self.lowered = module, output, lowered
        self.inputs, self.kwargs = tuple(inputs), dict(kwargs)
        names = _argument_names(module, inputs, kwargs)
        # (name, the place that it has in the call) of all arguments.
        self.places = [*zip(names, range(len(inputs)), strict=False), *((k, k) for k in kwargs)]
        self.names = [name for name, place in self.places if _holds_tensors(self.example(place))]
        if not self.names:
            raise InputError(
                "lrpjax.torch.function wants an example of each input of the module: function(module, torch.zeros(…))"
            )

    @property
    def explained(self) -> int:
        """The number of the first argument with a floating-point array, or 0."""
        leaves = [
            jax.tree.leaves(_plain(self.example(place))) for name, place in self.places if name in self.names
        ]
        return next((i for i, some in enumerate(leaves) if any(_is_floating(leaf) for leaf in some)), 0)

    def example(self, place: int | str) -> Any:
        return self.inputs[place] if isinstance(place, int) else self.kwargs[place]

    def arguments(self, arrays: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        """{name: arrays} of one call.

        Raises:
            InputError: some are missing, or there are others.
        """
        given = dict(zip(self.names, arrays, strict=False))
        unknown = [n for n in named if n not in self.names or n in given]
        missing = [n for n in self.names if n not in given and n not in named]
        if len(arrays) > len(self.names) or unknown or missing:
            raise InputError(
                f"this function of a {type(self.module).__name__} takes (params, {', '.join(self.names)}), but got "
                f"{len(arrays)} arrays"
                + (f" and {', '.join(named)}" if named else "")
                + ". Its arguments are those "
                "that were given examples with tensors; all others are fixed"
            )
        return given | dict(named)

    def run(self, params: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        """The module's output, or the part that is wanted, for traced or plain arrays."""
        held = [(name, tensor, jnp.asarray(params[name])) for name, tensor in modules.tensors(self.module)]
        env = Environment(self.module, {id(tensor): array for _, tensor, array in held}, self.lowered)
        own = {name: env.tensor(array) for name, _, array in held}
        call = {
            place: jax.tree.map(env.tensor, _plain(given[name])) if name in given else self.example(place)
            for name, place in self.places
        }
        # torch has its own rules of promotion, which torchax leaves to JAX's standard ones.
        kept = modules.unchanged(self.module)
        with kept, torch.no_grad(), jax.numpy_dtype_promotion("standard"), env.scopes(), env:
            made = torch.func.functional_call(
                self.module,
                own,
                tuple(call[i] for i in range(len(self.inputs))),
                {name: call[name] for name in self.kwargs},
                tie_weights=True,
            )
            made = outputs.choose(made, self.output)
        return tree.tree_map_only(torch.Tensor, env.array, made)


def _argument_names(module: Any, inputs: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
    """The names of the positional arguments, as the module's `forward` calls them.

    Raises:
        InputError: its `forward` does not take such arguments.
    """
    signature = inspect.signature(module.forward)
    try:
        bound = signature.bind(*inputs, **kwargs)
    except TypeError as error:
        raise InputError(
            f"the examples do not fit {type(module).__name__}.forward{signature}: {error}"
        ) from None
    names = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{i}" for i in range(len(bound.arguments.get(parameter.name, ())))]
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
    return names[: len(inputs)]


def _plain(value: Any) -> Any:
    """A structure that may hold mappings of other libraries, as a pytree of JAX."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = [_plain(v) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _is_floating(leaf: Any) -> bool:
    if isinstance(leaf, torch.Tensor):
        return leaf.is_floating_point()
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _holds_tensors(value: Any) -> bool:
    return any(
        isinstance(leaf, torch.Tensor | jax.Array | np.ndarray) for leaf in jax.tree.leaves(_plain(value))
    )

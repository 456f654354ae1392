"""Explanations that take and give torch's tensors."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch

from lrpjax.composites import Composite
from lrpjax.torch import arrays, modules
from lrpjax.torch.running import function
from lrpjax.transform import relevance


def explain(
    module: Any,
    composite: Composite | None = None,
    *inputs: Any,
    target: Any = None,
    at: str | None = None,
    argnum: int | None = None,
    output: str | Callable | None = None,
    lowerings: Mapping[Any, Callable] | None = None,
    **kwargs: Any,
) -> Any:
    """The relevance of a torch module's input, in tensors.

    It compiles each time that it is called; `explainer` compiles once for many inputs of one shape.

    Args:
        module, output, lowerings: as in `lrpjax.torch.function`.
        composite: which rule for which unit, see `lrpjax.composites`. None: each kind's default.
        inputs, kwargs: the module's arguments.
        target, at: as in `lrpjax.relevance`; arrays may be tensors. Token models are explained at= the module of their
            embeddings.
        argnum: which of the arguments that hold tensors is explained, 0 the first. None: the first that is
        floating-point.

    Returns:
        A tensor of the shape and dtype of what is explained; a dict of them, if `at` is several paths or a glob.

    Raises:
        as `lrpjax.torch.function` and `lrpjax.relevance` do.

    >>> import torch, lrpjax
    >>> net = torch.nn.Linear(2, 2, bias=False).eval()
    >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> lrpjax.torch.explain(net, lrpjax.composites.epsilon(0.0), torch.tensor([[1.0, 10.0]]), target=1)
    tensor([[ 3., 40.]])
    """
    explained = explainer(module, composite, at=at, argnum=argnum, output=output, lowerings=lowerings)
    return explained(*inputs, target=target, **kwargs)


def explainer(
    module: Any,
    composite: Composite | None = None,
    *,
    at: Any = None,
    argnum: int | None = None,
    output: str | Callable | None = None,
    lowerings: Mapping[Any, Callable] | None = None,
) -> Callable:
    """A compiled function `(*inputs, target=None, **kwargs) -> relevance` of tensors, for many inputs to one module.

    It compiles once for each shape of the inputs, and reads the module's parameters anew when they have changed, so
    that it can be called between steps of a training. The arguments are those of `explain`.

    >>> import torch, lrpjax
    >>> net = torch.nn.Linear(2, 2, bias=False).eval()
    >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> explain = lrpjax.torch.explainer(net, lrpjax.composites.epsilon(0.0))
    >>> batches = [torch.ones(1, 2), torch.tensor([[1.0, 10.0]])]
    >>> [explain(x, target="max").tolist() for x in batches]
    [[[3.0, 4.0]], [[3.0, 40.0]]]
    """
    compiled: dict[Any, Callable] = {}
    held: dict[str, tuple[Any, int, jax.Array]] = {}

    def parameters() -> dict[str, jax.Array]:
        modules.check(module)
        for name, tensor in modules.tensors(module):
            known = held.get(name)
            if known is None or known[0] is not tensor or known[1] != tensor._version:
                held[name] = (tensor, tensor._version, modules.converted(name, tensor))
        return {name: held[name][2] for name, _ in modules.tensors(module)}

    def explained(*inputs: Any, target: Any = None, **kwargs: Any) -> Any:
        leaves, structure = jax.tree.flatten((inputs, kwargs))
        fixed = target if target is None or callable(target) or isinstance(target, str) else ...
        key = (structure, fixed, *(None if _is_array(leaf) else repr(leaf) for leaf in leaves))
        if key not in compiled:
            f, _ = function(module, *inputs, output=output, lowerings=lowerings, **kwargs)

            def run(params: Any, values: tuple, chosen: Any) -> Any:
                aim = chosen if fixed is ... else fixed
                return relevance(
                    f, composite, argnums=None if argnum is None else 1 + argnum, target=aim, at=at
                )(params, *values)

            compiled[key] = jax.jit(run)
        values = tuple(
            jax.tree.map(_as_array, value)
            for value in (*inputs, *kwargs.values())
            if any(map(_is_array, jax.tree.leaves(value)))
        )
        R = compiled[key](parameters(), values, _as_array(target) if fixed is ... else None)
        return jax.tree.map(arrays.to_torch, R)

    return explained


def _is_array(value: Any) -> bool:
    return isinstance(value, torch.Tensor | jax.Array | np.ndarray)


def _as_array(value: Any) -> Any:
    return arrays.to_jax(value) if isinstance(value, torch.Tensor) else value

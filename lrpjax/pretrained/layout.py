"""From torch's names and axes to Flax's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

__all__ = ["flax_variables"]


def flax_variables(table: Mapping[str, NDArray], place: Callable[[str], str | None]) -> dict[str, Any]:
    """A state dict's tensors as the variables of a linen module.

    Args:
        table: {torch's name: array}; a name is a module's, a dot, and "weight", "bias", "running_mean" or
            "running_var".
        place: a torch module's name to the path of the linen module, as "block0/expand/conv"; None leaves it out.

    Returns:
        {"params": tree, "batch_stats": tree}. Kernels of dense layers and convolutions have their axes turned: spatial
        axes, then input channels, then output channels.

    Example:
        >>> import numpy as np
        >>> table = {"fc.weight": np.ones((2, 3)), "fc.bias": np.ones(2)}
        >>> variables = flax_variables(table, {"fc": "classifier"}.get)
        >>> {key: value.shape for key, value in variables["params"]["classifier"].items()}
        {'kernel': (3, 2), 'bias': (2,)}
    """
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, value in table.items():
        module, _, leaf = name.rpartition(".")
        path = place(module)
        if path is None or leaf == "num_batches_tracked":
            continue
        collection, leaf, value = _leaf(leaf, value)
        tree = variables[collection]
        for key in path.split("/"):
            tree = tree.setdefault(key, {})
        tree[leaf] = value
    return variables


def _leaf(leaf: str, value: NDArray) -> tuple[str, str, NDArray]:
    """A tensor's collection, its name in Flax, and its values with their axes in Flax's order."""
    if leaf.startswith("running_"):
        return "batch_stats", leaf.removeprefix("running_"), value
    if leaf == "bias":
        return "params", "bias", value
    if value.ndim == 1:
        return "params", "scale", value
    return "params", "kernel", value.transpose(*range(2, value.ndim), 1, 0)

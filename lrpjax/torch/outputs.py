"""Which tensor of a module's output is explained."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from lrpjax.errors import InputError


def choose(made: Any, wanted: str | Callable | None) -> Any:
    """The tensor, or with a function the structure of tensors, that is wanted of a module's output.

    Raises:
        InputError: there is no such one, or nothing says which one is meant.
    """
    if callable(wanted):
        return wanted(made)
    if wanted is not None:
        return _inside(made, wanted)
    if isinstance(made, torch.Tensor):
        return made
    items = dict(_items(made))
    if isinstance(items.get("logits"), torch.Tensor):
        return items["logits"]
    floating = {name: value for name, value in _leaves(made) if value.is_floating_point()}
    if len(floating) == 1:
        return next(iter(floating.values()))
    raise InputError(
        f"the module's output is a {type(made).__name__} of several tensors, so say which one is "
        f"explained: output= one "
        f"of {', '.join(map(repr, floating)) or '(none is floating-point)'}, or a function of the module's output"
    )


def _inside(made: Any, path: str) -> Any:
    value = made
    for name in path.split("."):
        items = dict(_items(value))
        if name not in items:
            held = ", ".join(items) or f"none: it is a {type(value).__name__}"
            raise InputError(f"output={path!r}: there is no {name!r} among the module's outputs ({held})")
        value = items[name]
    if not isinstance(value, torch.Tensor):
        held = ", ".join(name for name, _ in _items(value))
        raise InputError(f"output={path!r} is a {type(value).__name__}, not a tensor: it holds {held}")
    return value


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """What a structure holds, by name; nothing for a tensor or another value."""
    if isinstance(value, Mapping):
        yield from ((str(k), v) for k, v in value.items())
    elif dataclasses.is_dataclass(value):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    elif hasattr(value, "_fields"):
        yield from ((name, getattr(value, name)) for name in value._fields)
    elif isinstance(value, list | tuple):
        yield from ((str(i), v) for i, v in enumerate(value))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """(path, tensor) of the tensors in a structure, the outermost first."""
    later = []
    for name, inner in _items(value):
        if isinstance(inner, torch.Tensor):
            yield path + name, inner
        else:
            later.append((name, inner))
    for name, inner in later:
        yield from _leaves(inner, f"{path}{name}.")

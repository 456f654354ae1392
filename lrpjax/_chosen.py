"""The composite that a transform was given: what stands in its place by mistake is an error that says what to write."""

import difflib
import inspect
from typing import Any

import jax
import numpy as np

from lrpjax import _hints, composites
from lrpjax.composites import DEFAULT, Composite
from lrpjax.core.program import Chooses
from lrpjax.errors import InputError
from lrpjax.rules import Rule

PRESETS = {
    name: make
    for name, make in inspect.getmembers(composites, inspect.isfunction)
    if make.__module__ == composites.__name__ and not name.startswith("_")
}
"""The functions that make composites, by name."""


def chosen(composite: Any, call: str) -> Composite:
    """The composite that a transform was given; the default for None.

    Args:
        composite: what was given.
        call: the transform's name.

    Raises:
        InputError: it is none; the message says what to write for a preset's name, a preset that was not called, a
            rule, pairs, and arguments of the function.

    >>> chosen(None, "relevance").preset
    'default'
    >>> chosen("epsilon_plus", "relevance")
    Traceback (most recent call last):
        ...
    lrpjax.errors.InputError: relevance takes a composite, but was given the text 'epsilon_plus': write composites...
    """
    if composite is None:
        return DEFAULT
    if is_composite(composite):
        return composite
    raise InputError(f"{call} takes a composite, but was given {_no_composite(composite, call)}")


def leading(composite: Any, args: tuple[Any, ...], call: str) -> tuple[Composite, tuple[Any, ...]]:
    """The composite and the function's arguments, of a transform that takes both at once and may be given no composite:
    what comes in its place is the first argument then.

    Raises:
        InputError: it is neither.
    """
    if composite is None or is_composite(composite):
        return chosen(composite, call), args
    arrays = (jax.Array, np.ndarray, np.generic, float, jax.ShapeDtypeStruct)
    leaves = [] if isinstance(composite, Rule) else jax.tree.leaves(composite)
    if leaves and all(isinstance(leaf, arrays) for leaf in leaves):
        return DEFAULT, (composite, *args)
    return chosen(composite, call), args


def is_composite(given: Any) -> bool:
    """Whether it chooses rules: a `Composite`, or what has its methods."""
    return not isinstance(given, type) and isinstance(given, Chooses)


def _no_composite(given: Any, call: str) -> str:
    """What it is that is no composite, and what to write."""
    name = given if isinstance(given, str) else getattr(given, "__name__", "")
    hint = _hints.COMPOSITES.get(name) or _hints.COMPOSITES.get(type(given).__name__)
    preset = PRESETS.get(name)
    if hint and preset is None:
        return f"{given!r}{_hints.answer(hint)}"
    if preset is not None:
        needed = [p.name for p in inspect.signature(preset).parameters.values() if p.default is p.empty]
        what = f"the text {given!r}" if isinstance(given, str) else f"the preset {name} that was not called"
        return f"{what}: write composites.{name}({', '.join(needed)})"
    if isinstance(given, str):
        near = difflib.get_close_matches(given.lower(), PRESETS, 1, 0.5)
        return f"the text {given!r}: composites are made by lrpjax.composites" + (
            f", such as composites.{near[0]}()" if near else ""
        )
    if isinstance(given, Rule) or (isinstance(given, type) and issubclass(given, Rule)):
        written = f"rules.{given.__name__}()" if isinstance(given, type) else f"rules.{given}"
        pair = f"(select.kind('conv', 'dense'), {written})"
        return f"the rule {written}: a composite says for which units, Composite([{pair}])"
    if (
        isinstance(given, (list, tuple))
        and given
        and all(isinstance(p, tuple) and len(p) == 2 for p in given)
    ):
        return f"pairs: make a composite of them, Composite({given!r})"
    if callable(given):
        return (
            f"{given!r}: {call} takes the function first, then a composite, which lrpjax.composites or "
            "lrpjax.Composite makes"
        )
    leaves = jax.tree.leaves(given)
    if leaves and all(hasattr(leaf, "shape") or isinstance(leaf, (int, float)) for leaf in leaves):
        return (
            f"arrays: {call}(f, composite) returns a function, and that takes the arguments of f, "
            f"{call}(f, composite)(x)"
        )
    return f"{given!r}, which neither lrpjax.composites nor lrpjax.Composite makes"

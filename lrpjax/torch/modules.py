"""Which modules can be explained, and what their parameters are."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import jax
import torch

from lrpjax.errors import InputError
from lrpjax.torch import arrays

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
# Packages whose hooks are a part of the model: weight normalisation, outputs that are collected.
_OWN = ("torch.", "transformers.")


def check(module: Any) -> None:
    """Refuses modules that are not the function that they seem.

    Raises:
        InputError: it is no module, or a scripted one; it is in training mode; it has hooks of others; it is float16
            where JAX computes on the CPU.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(
            "the module is scripted (torch.jit), so its operations cannot be seen: give the module it was made of"
        )
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"lrpjax.torch explains a torch.nn.Module, but got a {type(module).__name__}")
    training = [name or type(m).__name__ for name, m in module.named_modules() if m.training]
    if training:
        raise InputError(
            f"the module is in training mode ({_few(training)}), so dropout draws random numbers "
            "and BatchNorm looks at other examples: call `module.eval()`"
        )
    hooked = [
        f"{name or type(m).__name__}: {hook}" for name, m in module.named_modules() for hook in _foreign(m)
    ]
    if hooked:
        raise InputError(
            f"the module has hooks ({_few(hooked)}), and what they do is no part of the module's function: remove them "
            "(`handle.remove()`; a library that set them has a way to undo it)"
        )
    halves = [name for name, p in module.named_parameters() if p.dtype == torch.float16]
    if halves and jax.default_backend() == "cpu":
        raise InputError(
            f"the module's parameters are float16 ({_few(halves)}), in which torch hardly computes on the CPU and "
            "relevance overflows above 65504: call `module.float()` or `module.bfloat16()`"
        )


@contextlib.contextmanager
def unchanged(module: Any) -> Iterator[None]:
    """Puts back afterwards what the attributes of the modules were, and what was in dicts, lists and sets among them.

    Some modules keep what they compute for the next call (the biases of LeViT's attention): while JAX traces, that is
    good for this trace alone.
    """
    before = []
    for part in module.modules():
        attributes = dict(vars(part))
        kept = {k: copy.copy(v) for k, v in attributes.items() if isinstance(v, dict | list | set)}
        before.append((part, attributes, kept))
    try:
        yield
    finally:
        for part, attributes, kept in before:
            vars(part).clear()
            vars(part).update(attributes)
            for name, content in kept.items():
                attributes[name].clear()
                (attributes[name].extend if isinstance(content, list) else attributes[name].update)(content)


def parameters(module: Any) -> dict[str, jax.Array]:
    """The parameters and buffers of a module by their qualified names, each once: of tied ones, the first name."""
    return {name: converted(name, tensor) for name, tensor in tensors(module)}


def tensors(module: Any) -> Iterator[tuple[str, Any]]:
    """(qualified name, tensor) of the parameters and buffers of a module, each once."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def converted(name: str, tensor: Any) -> jax.Array:
    """The array of a parameter or a buffer.

    Raises:
        InputError: as `arrays.to_jax`, with its name.
    """
    try:
        return arrays.to_jax(tensor)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _foreign(module: Any) -> Iterator[str]:
    for kind in _HOOKS:
        for hook in getattr(module, kind).values():
            home = getattr(hook, "__module__", None) or type(hook).__module__
            if not f"{home}.".startswith(_OWN):
                yield f"{getattr(hook, '__qualname__', type(hook).__qualname__)} in {kind}"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f", and {len(names) - 3} more" if len(names) > 3 else "")

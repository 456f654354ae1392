"""Module paths for models whose framework leaves none in the program: flax NNX."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax

from lrpjax.errors import InputError

_lock = threading.RLock()


@contextlib.contextmanager
def nnx_scopes() -> Iterator[None]:
    """While open, every call of a flax NNX module runs in a `jax.named_scope` of its path in the outermost
    module that is called.

    flax linen opens such scopes itself; NNX opens none, so the classes' `__call__` is wrapped for as long as a
    function is being traced. Nothing happens where flax.nnx was never imported.

    Raises:
        InputError: a module changes its own state while it is traced, as BatchNorm and Dropout do in training mode.
    """
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        yield
        return
    with _lock:
        wrapped: list[tuple[type, Any]] = []
        paths: dict[int, str] = {}
        alive: list[Any] = []  # ids stay unique only while the objects live
        active: list[str] = []

        def scoped(call: Any) -> Any:
            def __call__(self, *args, **kwargs):
                if id(self) not in paths:
                    for path, module in nnx.iter_modules(self):
                        if id(module) not in paths:
                            alive.append(module)
                            paths[id(module)] = "/".join(map(str, path))
                path, above = paths[id(self)], active[-1] if active else ""
                if not path or path == above:
                    return call(self, *args, **kwargs)
                active.append(path)
                try:
                    with contextlib.ExitStack() as stack:
                        for part in (path.removeprefix(above + "/") if above else path).split("/"):
                            stack.enter_context(jax.named_scope(part))
                        return call(self, *args, **kwargs)
                finally:
                    active.pop()

            return __call__

        try:
            for cls in _subclasses(nnx.Module):
                call = cls.__dict__.get("__call__")
                if call is not None:
                    wrapped.append((cls, call))
                    cls.__call__ = scoped(call)
            try:
                yield
            except Exception as error:
                if type(error).__name__ != "TraceContextError":
                    raise
                raise InputError(_training(alive, paths, error)) from error
        finally:
            for cls, call in wrapped:
                cls.__call__ = call


def _training(modules: list[Any], paths: dict[int, str], error: Exception) -> str:
    """What an error says of modules that changed their own state."""
    training = [
        f"{paths[id(m)] or 'the model'} ({type(m).__name__})"
        for m in modules
        if getattr(m, "deterministic", None) is False or getattr(m, "use_running_average", None) is False
    ]
    training.sort()
    said = f"the NNX model changes its own state while it is explained ({str(error).split(' (http')[0]})"
    if not training:
        return (
            f"{said}: keep the change inside of the function, graph, state = nnx.split(model) and "
            "f = lambda x: nnx.merge(graph, state, copy=True)(x)"
        )
    return (
        f"{said}: in training mode are {', '.join(training[:8])}{', …' if len(training) > 8 else ''}. Call "
        "model.eval() first: BatchNorm then takes its running averages, and Dropout keeps all"
    )


def _subclasses(cls: type) -> Iterator[type]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)

"""The environment in which a torch module runs while JAX traces it.

torchax gives every torch operation a JAX implementation. What is added here: the named scopes of the modules, places in
the errors, constants that stay constants, and parameters that are found by whichever way the module comes to them.
"""

import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import source_info_util

from lrpjax.core import compat
from lrpjax.errors import LrpjaxError, UnsupportedError
from lrpjax.torch import arrays, lowerings

torchax = lowerings.import_torchax()

import torch  # noqa: E402  (after torchax, so that a missing one of both is told by one message)
import torchax.tensor  # noqa: E402, F811  # pyright: ignore[reportMissingImports]
from torch.utils import _pytree as tree  # noqa: E402  # pyright: ignore[reportMissingImports]
from torchax.ops.op_base import InplaceOp  # noqa: E402  # pyright: ignore[reportMissingImports]
from torchax.view import View  # noqa: E402  # pyright: ignore[reportMissingImports]

# What JAX raises where Python wants the value of a traced array.
_WANTS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)

_CALLS = itertools.count()  # numbers for the calls of what makes several parts of one tensor


def _constants(*values: Any) -> contextlib.AbstractContextManager:
    """Computes at once, even while JAX traces, if none of these values is traced: modules look at their masks and
    positions, and some keep them for the next call."""
    held = [
        v.source_jax() if isinstance(v, View) else getattr(v, "_elem", v) for v in tree.tree_leaves(values)
    ]
    traced = any(isinstance(x, jax.core.Tracer) for x in held)
    return contextlib.nullcontext() if traced else jax.ensure_compile_time_eval()


def _holder(tensor: Any) -> Any:
    """The tensor that holds the values of a part of it."""
    while isinstance(tensor, View):
        tensor = tensor.parent
    return tensor


class Tensor(torchax.tensor.Tensor):
    """torchax's tensor, with those of its methods (of torchax 0.0.13) that do not go through an environment.

    In torch `x.view(…)` and `x.transpose(…)` are parts of x; here they are copies. All copies of one tensor share a
    `family`, the list of the places where one of them was changed, and know how many of these changes they have `seen`:
    one that has missed a change holds what torch would no longer hold, and may not be looked at. `piece` is (a number
    for the call of `split`, which of its results this is, or is a part of): these do not overlap.
    """

    family: list[tuple[str, tuple[int, int] | None]] | None = None
    seen = 0
    piece: tuple[int, int] | None = None

    @property
    def _elem(self) -> Any:
        for place, piece in (self.family or [])[self.seen :]:
            if piece is None or self.piece is None or piece[0] != self.piece[0] or piece == self.piece:
                raise UnsupportedError(
                    f"a tensor was changed in place through a view of it, in {place}, which torchax makes "
                    "a copy: write it with a function that returns the changed tensor"
                )
        return self._held

    @_elem.setter
    def _elem(self, array: Any) -> None:
        if self.family is not None:
            _ = self._elem  # a change of what has missed another is an error too
            self.family.append((self._env.place(), self.piece))
            self.seen = len(self.family)
        self._held = array

    def same_memory(self, part: "Tensor", piece: tuple[int, int] | None) -> None:
        """Says that torch would make `part` a part of this tensor."""
        if self.family is None:
            self.family = []
        part.family, part.seen = self.family, len(self.family)
        part.piece = piece or self.piece

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Any:
        return torch.flatten(self, start_dim, end_dim)

    def detach(self) -> Any:
        with _constants(self):
            part = Tensor(jax.lax.stop_gradient(self.jax()), self._env)
        self.same_memory(part, None)
        return part

    @property
    def data(self) -> Any:
        return self.detach()

    @data.setter
    def data(self, other: Any) -> None:
        self._elem = other.jax()

    def type_as(self, other: Any) -> Any:
        """torchax changes the dtype of the tensor itself."""
        return self.to(other.dtype)

    def __setitem__(self, key: Any, value: Any) -> None:
        with _constants(self, key, value):
            super().__setitem__(key, value)


class Environment(torchax.tensor.Environment):
    """torchax's environment for one call of one module.

    module: the module. known: {id of a parameter or buffer of it: its traced array}. lowered: {operation of torch: the
    user's function of JAX arrays}.
    """

    def __init__(self, module: Any, known: Mapping[int, Any], lowered: Mapping[Any, Callable]):
        with jax.ensure_compile_time_eval():  # it makes a random key, which nothing will use
            super().__init__()
        self._ops |= {
            **lowerings.operators(),
            **{op: lowerings.of_arrays(op, f) for op, f in lowered.items()},
        }
        self.known = known
        self.paths = {m: name.replace(".", "/") for name, m in module.named_modules()}
        self.active: list[tuple[Any, source_info_util.NameStack, contextlib.ExitStack]] = []
        self.base = source_info_util.current_name_stack()

    # ---------------------------------------------------------------------------------------- module paths

    @contextlib.contextmanager
    def scopes(self) -> Iterator[None]:
        """While open, what a module computes stands in the named scopes of its qualified name, whoever calls it."""
        hooks = torch.nn.modules.module
        thread = threading.get_ident()

        def enter(module: Any, args: Any) -> None:
            if threading.get_ident() == thread and module in self.paths:
                names = self.base
                for part in filter(None, self.paths[module].split("/")):
                    names = names.extend(part)
                opened = contextlib.ExitStack()
                opened.enter_context(source_info_util.set_name_stack(names))
                self.active.append((module, names, opened))

        def leave(module: Any, args: Any, output: Any) -> None:
            if threading.get_ident() == thread and module in self.paths:
                self.active.pop()[2].close()

        with contextlib.ExitStack() as stack:
            for handle in (
                hooks.register_module_forward_pre_hook(enter),
                hooks.register_module_forward_hook(leave, always_call=True),
            ):
                stack.callback(handle.remove)
            yield

    def place(self) -> str:
        """The module that is running, and the line that it is at."""
        module = self.active[-1][0] if self.active else None
        path = self.paths.get(module) or "(the module itself)"
        return f"'{path}' ({type(module).__name__}) at {compat.running()}"

    # ------------------------------------------------------------------------------------------ operations

    def dispatch(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if self._would_change_a_copy(func, args):
            whole = self._whole(args[0])
            self.dispatch(func, types, (whole, *args[1:]), kwargs)
            args[0].update(whole)
            return args[0]
        try:
            made = super().dispatch(func, types, args, kwargs)
        except torchax.tensor.OperatorNotFound as error:
            # Functions that are made of others are taken apart by torch then, and come here again in parts.
            if not isinstance(func, torch._ops.OpOverload):
                raise
            raise UnsupportedError(
                f"torchax has no lowering of {func.name()}, in {self.place()}. If the module has "
                f"another way to compute "
                'this (`attn_implementation="eager"`, say), choose it; or give one, a function of JAX arrays: '
                f"lrpjax.torch.function(…, lowerings={{torch.ops.{str(func).rpartition('.')[0]}: …}})"
            ) from error
        made = tree.tree_map_only(torchax.tensor.Tensor, self._own, made)
        if isinstance(func, torch._ops.OpOverload) and args and isinstance(args[0], Tensor | View):
            alias = func._schema.arguments[0].alias_info
            whole = _holder(args[0])
            if alias is not None and not alias.is_write and isinstance(whole, Tensor):
                parts = [p for p in tree.tree_leaves(made) if isinstance(p, Tensor) and p is not whole]
                call = next(_CALLS)
                for number, part in enumerate(parts):
                    whole.same_memory(part, (call, number) if len(parts) > 1 else None)
        return made

    def _would_change_a_copy(self, func: Any, args: Any) -> bool:
        """Whether an operation is to change a part of a tensor, `x[2:4].zero_()` say, and torchax 0.0.13 would change a
        copy of that part and leave x as it is: where it has no function of its own for the operation."""
        if not (isinstance(func, torch._ops.OpOverload) and args and isinstance(args[0], View)):
            return False
        changed = func._schema.arguments[0].alias_info
        if changed is None or not changed.is_write:
            return False
        try:
            op = super()._get_op_or_decomp(func)
        except torchax.tensor.OperatorNotFound:
            return False
        return not (op.is_view_op or isinstance(op.func, InplaceOp))

    def _get_op_or_decomp(self, func: Any) -> Any:
        op = super()._get_op_or_decomp(func)
        return dataclasses.replace(op, func=self._placed(op.func, op.is_jax_function))

    def _placed(self, lowering: Callable, of_arrays: bool) -> Callable:
        """A lowering that stands in the scopes of the module that is running, and in no others; that computes
        constants when it is traced, since modules look at their masks and positions; and whose errors say where."""

        def run(*args: Any, **kwargs: Any) -> Any:
            names = self.active[-1][1] if self.active else self.base
            with contextlib.ExitStack() as opened:
                opened.enter_context(source_info_util.set_name_stack(names))
                # torch promotes types, whatever the user has chosen for JAX.
                opened.enter_context(jax.numpy_dtype_promotion("standard"))
                if of_arrays and not any(
                    isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((args, kwargs))
                ):
                    opened.enter_context(jax.ensure_compile_time_eval())
                try:
                    return lowering(*args, **kwargs)
                except LrpjaxError:
                    raise
                except _WANTS_VALUES as error:
                    raise UnsupportedError(self._depends_on_data()) from error
                except Exception as error:
                    if not getattr(error, "__notes__", None):
                        error.add_note(f"in the torch module {self.place()}")
                    raise

        return run

    def _depends_on_data(self) -> str:
        return (
            f"what the module computes depends on values of its input or parameters, in {self.place()}: "
            "a branch, a shape or an index that JAX must know when tracing. Choose a setting of the module in which it "
            "does not, or give what it looks at as an example that holds no tensors (a Python number), which is fixed"
        )

    def v2t_iso(self, views: Any) -> Any:
        names = self.active[-1][1] if self.active else self.base
        with source_info_util.set_name_stack(names):
            return tree.tree_map_only(View, self._whole, views)

    def get_and_rotate_prng_key(self, generator: Any = None) -> Any:
        raise UnsupportedError(
            f"the module draws random numbers, in {self.place()}: an explanation needs a function"
        )

    # ---------------------------------------------------------------------------------------------- tensors

    def tensor(self, array: Any) -> Any:
        """An array, or a tensor outside of JAX, as a tensor that the module can compute with."""
        return Tensor(arrays.to_jax(array) if isinstance(array, torch.Tensor) else jnp.asarray(array), self)

    def _own(self, tensor: Any) -> Any:
        return tensor if isinstance(tensor, Tensor) else Tensor(tensor._elem, self)

    def _whole(self, view: Any) -> Any:
        """A part of a tensor as a tensor."""
        with _constants(view):
            return Tensor(view.jax(), self)

    def j2t_iso(self, jaxarray: Any) -> Any:
        return tree.tree_map_only(jax.Array, lambda x: Tensor(x, self), jaxarray)

    def array(self, tensor: Any) -> jax.Array:
        """The array of a tensor that the module made."""
        return jnp.asarray(self._array(tensor))

    def t2j_iso(self, torchtensors: Any) -> Any:
        return tree.tree_map_only(torch.Tensor, self._array, torchtensors)

    def _array(self, tensor: Any) -> Any:
        """The array of a tensor: a traced one, a parameter that the module holds twice, or a constant."""
        if isinstance(tensor, torchax.tensor.Tensor | View):
            return tensor.jax()
        if id(tensor) in self.known:
            return self.known[id(tensor)]
        # As in torch, a number of no dimensions takes the type of what it meets.
        return tensor.item() if tensor.ndim == 0 else arrays.to_jax(tensor)

"""Explainers as ONNX models, which run in onnxruntime without JAX. Installed by `pip install "lrpjax[onnx]"`.

jax2onnx converts them; what it lacks of the operations of a backward pass is written in others here.
"""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrpjax.core import compat
from lrpjax.core.primitives import CALLS
from lrpjax.errors import LrpjaxError, UnsupportedError

try:
    import jax2onnx  # pyright: ignore[reportMissingImports]
    import onnx_ir  # pyright: ignore[reportMissingImports]
    import onnxruntime  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError('an ONNX model needs jax2onnx and onnxruntime: pip install "lrpjax[onnx]"') from error

_DOUBLE = (np.float64, np.complex128)


class OnnxError(LrpjaxError, ValueError):
    """An ONNX model that does not compute what the explainer computes."""


def to_onnx(explain: Callable[..., Any], *examples: Any, check: tuple | None = None, **options: Any) -> Any:
    """An explainer, or any other function of arrays, as an ONNX model.

    `jax2onnx.to_onnx` exchanges functions of JAX and Flax for primitives of its own while it traces, for which
    lrpjax has no rules. Here the explainer is traced first, and jax2onnx is given the finished program, in which
    what it lacks, or converts otherwise than JAX means it, is written in other operations. Then onnxruntime runs the
    model, and its results are held to those of JAX.

    Args:
        explain: function of arrays, or pytrees of them, usually
            `jax.jit(lrpjax.relevance(f, composite, target="max"))`. What it closes over, such as the weights,
            becomes a part of the model.
        *examples: its arguments, or `jax.ShapeDtypeStruct` in place of arrays. A shape may have symbolic
            dimensions, `jax.export.symbolic_shape("b, 28, 28, 1")`, all in one scope: the model then takes any
            number of rows.
        check: tuple of arguments on which the model is run once; None: the examples, if all are arrays. Without
            arrays nothing is checked.
        **options: those of `jax2onnx.to_onnx`, such as `input_names` and `output_names`, or
            `return_mode="file", output_path="explain.onnx"`. `enable_double_precision` is set where an argument is
            float64.

    Returns:
        The `onnx.ModelProto`, or what `return_mode` says. Its inputs and outputs are the leaves of the arguments
        and of the results, in the order of `jax.tree.leaves`, with their shapes and dtypes.

    Raises:
        UnsupportedError: jax2onnx cannot convert an operation; the message names it and the line it is in.
        OnnxError: the model's results differ from those of JAX by more than 10⁻³ of the largest value (float64:
            10⁻⁸) or in shape or dtype.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, onnxruntime
        >>> import lrpjax, lrpjax.onnx
        >>> W = np.array([[1, -1], [2, 1]], np.float32)
        >>> explain = lrpjax.relevance(lambda x: jax.nn.relu(x @ W).sum(1))
        >>> rows = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 2"), jnp.float32)
        >>> x = np.array([[1, 2], [3, 1], [0, 1]], np.float32)
        >>> model = lrpjax.onnx.to_onnx(explain, rows, check=(x,), output_names=["R"])
        >>> session = onnxruntime.InferenceSession(model.SerializeToString())
        >>> session.run(["R"], {session.get_inputs()[0].name: x})[0].round(3)
        array([[0., 6.],
               [3., 2.],
               [0., 3.]], dtype=float32)
    """
    leaves, treedef = jax.tree.flatten(examples)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in map(_described, leaves)]
    double = any(x.dtype in _DOUBLE for x in shapes)

    def flat(*arrays):
        return jax.tree.leaves(explain(*treedef.unflatten(arrays)))

    promised = [x.dtype for x in jax.eval_shape(flat, *shapes)]
    # What is float64 in passing only, as the root of a size is, cannot be converted beside float32.
    with jax.enable_x64(double):
        closed = compat.rewritten(jax.make_jaxpr(flat)(*shapes), CALLS, _exchange)
    if any(x in _DOUBLE for x in promised) and not double:
        raise UnsupportedError(
            f"explain gives float64 for {', '.join(x.dtype.name for x in shapes)}, and jax2onnx converts programs of "
            "one precision only: give float64 arguments, or hold the weights in float32"
        )
    options = {"enable_double_precision": double, **options}
    try:
        model = jax2onnx.to_onnx(compat.jaxpr_as_fun(closed), shapes, **options)
    except Exception as error:
        place = _place(error)
        if place is None:
            raise
        raise UnsupportedError(f"jax2onnx cannot convert {place}: {error}") from error
    if check is None and not any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves):
        check = examples
    if check is not None:
        try:
            _check(model, flat, jax.tree.leaves(check), double)
        except OnnxError:
            if isinstance(model, (str, os.PathLike)):
                os.unlink(model)
            raise
    return model


def _check(model: Any, flat: Callable[..., list], arrays: list, double: bool) -> None:
    """Runs a model (or its file), and compares its results with those of the function."""
    if isinstance(model, onnx_ir.Model):
        model = onnx_ir.to_proto(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # what is left over in a model is no concern of users
    session = onnxruntime.InferenceSession(
        os.fspath(model) if isinstance(model, (str, os.PathLike)) else model.SerializeToString(), options
    )
    given = {i.name: np.asarray(_described(x)) for i, x in zip(session.get_inputs(), arrays, strict=True)}
    results, tolerance = session.run(None, given), 1e-8 if double else 1e-3
    for number, (found, expected) in enumerate(zip(results, map(np.asarray, flat(*arrays)), strict=True)):
        said = f"result {number} of the ONNX model is {found.dtype.name}{list(found.shape)}"
        if (found.dtype, found.shape) != (expected.dtype, expected.shape):
            raise OnnxError(
                f"{said} and not {expected.dtype.name}{list(expected.shape)}; nothing is returned"
            )
        largest = np.nanmax(np.abs(expected), initial=0)
        exact = not compat.is_float(expected)
        if not np.allclose(found, expected, 0, 0 if exact else tolerance * largest, equal_nan=True):
            raise OnnxError(
                f"{said} and differs from that of JAX by {np.nanmax(np.abs(found - expected)):.3g}, where the largest "
                f"value is {largest:.3g}: jax2onnx or onnxruntime computes an operation otherwise. Nothing is "
                "returned; please report the function"
            )


def _described(leaf: Any) -> Any:
    return leaf if hasattr(leaf, "shape") and hasattr(leaf, "dtype") else jnp.asarray(leaf)


def _place(error: Exception) -> str | None:
    """The primitive that was converted when it failed, and the user's line; None where it was none."""
    equations = [
        frame.f_locals["eqn"]
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if hasattr(frame.f_locals.get("eqn"), "primitive")
    ]
    if not equations:
        return None
    source = compat.source_of(*equations[::-1])
    return equations[-1].primitive.name + (f" at {source}" if source else "")


# ------------------------------------------------------------------------------------------- what is exchanged


def _exchange(eqn: Any) -> Callable[..., Any] | None:
    """What computes the same as an equation in operations that jax2onnx has; None where it has this one."""
    write = _WRITINGS.get(eqn.primitive.name)
    return None if write is None else write(eqn)


def _late(eqn: Any) -> Callable[..., Any]:
    return lambda array, probe: [array]


def _pad(eqn: Any) -> Callable[..., Any]:
    return lambda x, fill: [padded(x, fill, eqn.params["padding_config"])]


def padded(x: Any, fill: Any, config: Any) -> Any:
    """`lax.pad` by concatenation: between elements jax2onnx does not pad, and not where a dimension is symbolic."""
    for axis, (low, high, between) in enumerate(config):

        def filled(size, fill=fill, axis=axis, x=x):
            return lax.broadcast(fill, (*x.shape[:axis], size, *x.shape[axis + 1 :]))

        if between:
            size = x.shape[axis]
            fills = lax.broadcast(fill, (*x.shape[: axis + 1], between, *x.shape[axis + 1 :]))
            x = lax.concatenate([lax.expand_dims(x, [axis + 1]), fills], axis + 1)
            size, shape = size * (between + 1), x.shape
            x = lax.reshape(x, (*shape[:axis], size, *shape[axis + 2 :]))
            x = lax.slice_in_dim(x, 0, size - between, axis=axis)
        if low < 0 or high < 0:
            x = lax.slice_in_dim(x, max(-low, 0), x.shape[axis] - max(-high, 0), axis=axis)
        parts = [*([filled(low)] if low > 0 else []), x, *([filled(high)] if high > 0 else [])]
        x = lax.concatenate(parts, axis) if len(parts) > 1 else x
    return x


def _reshape(eqn: Any) -> Callable[..., Any] | None:
    """jax2onnx passes over the order in which axes are read, and gives other numbers."""
    params = eqn.params
    if params["dimensions"] is None:
        return None

    def reshape(x, *sizes):
        return compat.bind(
            eqn.primitive, {**params, "dimensions": None}, lax.transpose(x, params["dimensions"]), *sizes
        )

    return reshape


def _conv(eqn: Any) -> Callable[..., Any]:
    params = eqn.params
    lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]
    ends, between = params["padding"], params["lhs_dilation"]
    apart = any(low < 0 or high < 0 for low, high in ends) or (
        any(n != 1 for n in between) and any(n != 1 for n in params["window_strides"])
    )

    def conv(lhs, rhs):
        lhs, rhs = lax.transpose(lhs, lhs_spec), lax.transpose(rhs, rhs_spec)
        channels_first = tuple(range(lhs.ndim))
        changed = {"dimension_numbers": lax.ConvDimensionNumbers(*[channels_first] * 3)}
        if apart:
            config = [(low, high, n - 1) for (low, high), n in zip(ends, between, strict=True)]
            lhs = padded(lhs, jnp.zeros((), lhs.dtype), [(0, 0, 0), (0, 0, 0), *config])
            changed |= {"padding": ((0, 0),) * len(ends), "lhs_dilation": (1,) * len(ends)}
        out = compat.bind(eqn.primitive, {**params, **changed}, lhs, rhs)[0]
        return [lax.transpose(out, np.argsort(out_spec))]

    return conv


def _windows(combine: Callable, neutral: Callable) -> Callable:
    """Windows of any number of axes, one axis after the other: those of four, which JAX has for pictures, with an
    axis for examples and one for channels, are more than onnxruntime pools over."""

    def write(eqn):
        sizes, strides, padding, between, apart = (
            eqn.params[name]
            for name in ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
        )
        config = [(low, high, more - 1) for (low, high), more in zip(padding, between, strict=True)]

        def pool(x):
            x = padded(x, neutral(x.dtype), config)
            for axis, (size, stride, step) in enumerate(zip(sizes, strides, apart, strict=True)):
                if size == stride == 1:
                    continue
                last = x.shape[axis] - step * (size - 1)
                parts = [lax.slice_in_dim(x, i * step, i * step + last, stride, axis) for i in range(size)]
                x = functools.reduce(combine, parts)
            return [x]

        return pool

    return write


def _scan(eqn: Any) -> Callable[..., Any]:
    """A loop as a user writes it: jax2onnx runs none backwards, and knows not all that differentiation makes."""
    constants, carried = compat.scan_layout(eqn.params)
    body, turn = compat.jaxpr_as_fun(eqn.params["jaxpr"]), eqn.params["reverse"]

    def turned(arrays):
        return [lax.rev(a, [0]) if turn else a for a in arrays]

    def scan(*values):
        fixed, begin, rows = values[:constants], values[constants:][:carried], values[constants + carried :]

        def step(state, row):
            out = body(*fixed, *state, *row)
            return out[:carried], out[carried:]

        end, made = lax.scan(step, list(begin), turned(rows), eqn.params["length"])
        return [*end, *turned(made)]

    return scan


def _least(dtype: Any) -> Any:
    return jnp.asarray(-jnp.inf if compat.is_float(jnp.zeros((), dtype)) else jnp.iinfo(dtype).min, dtype)


_WRITINGS = {
    "lrpjax_late": _late,
    "pad": _pad,
    "reshape": _reshape,
    "conv_general_dilated": _conv,
    "scan": _scan,
    "reduce_window_max": _windows(lax.max, _least),
    "reduce_window_sum": _windows(lax.add, functools.partial(jnp.zeros, ())),
}

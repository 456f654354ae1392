"""Tensors as arrays and back, without a copy where memory can be shared."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax.errors import InputError


def to_jax(tensor: Any) -> jax.Array:
    """The array of a tensor on the CPU, on JAX's default device. On the CPU it shares the tensor's memory where it is
    contiguous, so what changes the tensor in place changes the array.

    Raises:
        InputError: the tensor is not on the CPU, is sparse or quantised, or JAX would narrow it (without
            `jax_enable_x64`: float64, and whole numbers that 32 bits do not hold).
    """
    import torch

    if tensor.device.type != "cpu":
        raise InputError(
            f"a tensor is on the device {str(tensor.device)!r}: lrpjax.torch takes tensors on the "
            f"CPU, and puts them on "
            f"JAX's default device ({jax.devices()[0].platform}) itself. Call `module.cpu()`, `tensor.cpu()`"
        )
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise InputError(
            f"a tensor is {tensor.layout}, {tensor.dtype}: call `.to_dense()` or `.dequantize()` first"
        )
    tensor = tensor.detach()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    if tensor.dtype in (torch.float64, torch.complex128) and not jax.config.jax_enable_x64:
        raise InputError(
            f"a tensor is {tensor.dtype}, which JAX would narrow: call `.float()`, or set "
            '`jax.config.update("jax_enable_x64", True)`'
        )
    if not (tensor.is_floating_point() or tensor.is_complex()):
        # Integers narrow to what JAX computes indices in; booleans have no common form in older versions.
        whole = tensor.numpy()
        narrowed = whole.astype(jax.dtypes.canonicalize_dtype(whole.dtype))
        if not np.array_equal(whole, narrowed):
            lost = whole[whole != narrowed].flat[0]
            raise InputError(
                f"a tensor of {tensor.dtype} holds {lost}, which JAX would cut off to {narrowed.dtype}: "
                'set `jax.config.update("jax_enable_x64", True)`'
            )
        return jnp.asarray(narrowed)
    array = jax.dlpack.from_dlpack(tensor.contiguous())
    return array if jax.default_backend() == "cpu" else jax.device_put(array, jax.devices()[0])


def to_torch(array: Any) -> Any:
    """The tensor, on the CPU, of an array. It may share the array's memory."""
    import torch

    array = jax.device_put(array, jax.devices("cpu")[0])
    if jnp.issubdtype(array.dtype, jnp.inexact):
        return torch.from_dlpack(array)
    return torch.from_numpy(np.array(array))

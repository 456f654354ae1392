"""Where batches and params go: the default device, or the devices of a mesh, of one process or of several."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lrpjax.errors import LrpjaxError

# What a process says of its next batch, in place of its rows, to those that it computes together with.
OVER, FAILED = 0, -1


class PeerError(LrpjaxError, RuntimeError):
    """Another of the processes that compute together has failed."""


class Placement:
    """Where batches and params go: the default device, or the devices of a mesh."""

    def __init__(self, mesh: Mesh | None, axis: str | tuple[str, ...] | None):
        self.mesh: Mesh | None = None
        self.shards = 1  # how many parts this process's rows are divided into
        self.process = (jax.process_index(), jax.process_count())
        self.together = False  # whether several processes compute each batch together
        if mesh is None:
            if axis is not None:
                raise ValueError(f"axis {axis!r} is given, but no mesh that has it")
            return
        if not isinstance(mesh, Mesh):
            raise TypeError(f"mesh must be a jax.sharding.Mesh, not {type(mesh).__name__}")
        axes = mesh.axis_names[:1] if axis is None else (axis,) if isinstance(axis, str) else tuple(axis)
        unknown = [name for name in axes if name not in mesh.axis_names]
        if unknown or not axes:
            raise ValueError(f"the mesh has the axes {mesh.axis_names}, not {axis!r}")
        self.mesh = _automatic(mesh)
        there = {device.process_index for device in self.mesh.devices.flat}
        if there != {jax.process_index()} and there != set(range(jax.process_count())):
            raise ValueError(
                f"the mesh spans the processes {sorted(there)}; it must have devices of this process "
                f"({jax.process_index()}) only, or of all {jax.process_count()}"
            )
        self.rows = NamedSharding(self.mesh, PartitionSpec(axes))
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.axes = axes
        self.size = math.prod(mesh.shape[name] for name in axes)
        # Which part of the rows each device has, and which process each part belongs to.
        self.parts = {d: i[0].start or 0 for d, i in self.rows.devices_indices_map((self.size,)).items()}
        owners = {(part, device.process_index) for device, part in self.parts.items()}
        self.shards = len([process for _, process in owners if process == jax.process_index()])
        if len(owners) > self.size:
            raise ValueError(
                f"several processes would have the same rows: {', '.join(axes)} of the mesh joins them. "
                "Order the mesh's devices so that each process has rows of its own"
            )
        self.together = len(there) > 1

    def context(self) -> contextlib.AbstractContextManager:
        """Keeps another mesh that the caller may have set from deciding about the shardings in `explain`."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def batch(self, array: np.ndarray) -> jax.Array:
        if self.mesh is None:
            return jax.device_put(array)
        return jax.make_array_from_process_local_data(self.rows, array)

    def shape(self, array: np.ndarray) -> tuple[int, ...]:
        """Shape of the whole batch, of which `array` is this process's part."""
        return (array.shape[0] // self.shards * (self.size if self.mesh else 1), *array.shape[1:])

    def params(self, params: Any) -> Any:
        if self.mesh is None:
            return params
        devices = set(self.mesh.devices.flat)

        def place(leaf):
            if isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices:
                if not isinstance(leaf.sharding, NamedSharding):
                    return leaf
                return jax.device_put(leaf, NamedSharding(_automatic(leaf.sharding.mesh), leaf.sharding.spec))
            return jax.device_put(leaf, self.replicated)

        return jax.tree.map(place, params)

    def agree(self, failure: Exception | None, *values: int) -> np.ndarray:
        """What each process says, `[processes, values]`; raises in all of them if one of them has failed."""
        said = np.array([[failure is not None, *values]], np.int64)
        if self.together:
            from jax.experimental import multihost_utils

            said = np.asarray(multihost_utils.process_allgather(said.astype(np.int32), tiled=True))
        if failure is not None:
            raise failure
        self.stop_if_failed(np.flatnonzero(said[:, 0]), "before the first batch")
        return said[:, 1:]

    def stop_if_failed(self, processes: Iterable[int], where: str) -> None:
        failed = sorted({int(process) for process in processes})
        if failed:
            raise PeerError(
                f"process {', '.join(map(str, failed))} failed {where}; its own error says why. "
                "What this process has yielded and stored is complete"
            )

    def failed_processes(self, states: np.ndarray) -> list[int]:
        """The processes that say `FAILED`, from the states that the mesh's devices hold."""
        return [device.process_index for device, part in self.parts.items() if states[part] == FAILED]


def _automatic(mesh: Any) -> Mesh:
    """The mesh with its axes left to GSPMD; with explicit ones the function would have to name shardings."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))

"""Devices and processes. The only file that names pmap, shard_map, Mesh and jax.distributed.

State and teachers are replicated, batches are split over all devices of all processes. A step is
wrapped once: `jax.jit` on one device; on several `jax.pmap`, or `shard_map`, or `jit` over a mesh.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from distill_core.config import InputError

AXIS = "devices"
MODES = ("pmap", "shard_map", "mesh")
PyTree = Any


def start(
    *,
    multihost: bool = False,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
):
    """Joins the processes of one run. Call before anything touches a device.

    `multihost` lets JAX find out the rest (TPU pods, Slurm, Open MPI, Kubernetes); a hand-started
    cluster gives coordinator address, count and this process's index.
    """
    given = [coordinator_address, num_processes, process_id]
    if any(v is not None for v in given) and any(v is None for v in given):
        raise InputError(
            "coordinator_address, num_processes, process_id", given, "give all three or none"
        )
    if coordinator_address is not None:
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
    elif multihost:
        jax.distributed.initialize()


def choose_mode(mode: str | None = None) -> str:
    """`jit` on a single device, else `mode`, by default `pmap`."""
    if mode is not None and mode not in MODES:
        raise InputError("parallel", mode, f"must be one of {', '.join(MODES)}")
    return "jit" if jax.device_count() == 1 else mode or "pmap"


def axis_name(mode: str) -> str | None:
    """The mapped axis that a step has to sum over; None where the compiler sees whole arrays."""
    return AXIS if mode in ("pmap", "shard_map") else None


def wrap(step: Callable, mode: str, *, donate: bool = False) -> Callable:
    """Compiles `step(state, frozen, batch) -> (state, metrics)` or an evaluation of that form.

    All outputs are replicated. `state` and `frozen` should come from `place`, the batch from
    `feed`. With `donate` the state's memory is reused for the new state.
    """
    donated = (0,) if donate else ()
    if mode == "jit":
        return jax.jit(step, donate_argnums=donated)
    if mode == "pmap":
        return jax.pmap(
            step, AXIS, in_axes=(None, None, 0), out_axes=None, donate_argnums=donated
        )
    mesh = _mesh(mode)
    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    if mode == "shard_map":
        # check_vma=False: the steps sum their gradients themselves. With the default, JAX inserts
        # a sum of its own for gradients of replicated parameters and they count twice, silently.
        step = jax.shard_map(
            step, mesh=mesh, in_specs=(whole, whole, split), out_specs=whole, check_vma=False
        )
    whole, split = NamedSharding(mesh, whole), NamedSharding(mesh, split)
    return jax.jit(
        step, in_shardings=(whole, whole, split), out_shardings=whole, donate_argnums=donated
    )


def place(tree: PyTree, mode: str) -> PyTree:
    """Replicates host values (or typed keys) over the devices of a mode, once, so that a step
    need not copy them again at every call."""
    if mode == "jit":
        return jax.tree.map(lambda x: x if _is_key(x) else jax.device_put(x), tree)
    sharding = NamedSharding(_mesh(mode), PartitionSpec())

    def put(leaf):
        if _is_key(leaf):
            data = jax.device_put(np.asarray(jax.random.key_data(leaf)), sharding)
            return jax.random.wrap_key_data(data)
        return jax.device_put(np.asarray(leaf), sharding)

    return jax.tree.map(put, tree)


def feed(batch: PyTree, mode: str) -> PyTree:
    """This process's rows `[B/P, …]` of a global batch, in the form that a wrapped step takes."""
    if mode == "jit":
        return batch
    if mode == "pmap":
        n = jax.local_device_count()
        return jax.tree.map(lambda x: x.reshape(n, x.shape[0] // n, *x.shape[1:]), batch)
    sharding = NamedSharding(_mesh(mode), PartitionSpec(AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def local_rows(batch_size: int) -> slice:
    """The rows of a global batch that this process feeds."""
    per_process = batch_size // jax.process_count()
    return slice(jax.process_index() * per_process, (jax.process_index() + 1) * per_process)


def check_batch_size(batch_size: int, field: str = "batch_size"):
    """A global batch must split evenly over all devices."""
    if batch_size % jax.device_count():
        raise InputError(
            field, batch_size, f"must be divisible by the {jax.device_count()} devices"
        )


def is_main() -> bool:
    """Process 0 owns the lock, the metrics, the bar and the report."""
    return jax.process_index() == 0


def barrier(name: str):
    """Waits for all processes."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def agree(value: bool) -> bool:
    """True if process 0 says so."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def should_stop(step: int, signalled: bool) -> bool:
    """Whether every process stops before this step: a signal to one of them stops all together."""
    if jax.process_count() == 1:
        return signalled
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


def describe() -> str:
    """For example `8 cpu devices, 2 processes`."""
    devices = jax.devices()
    text = f"{len(devices)} {devices[0].device_kind} device{'s' * (len(devices) > 1)}"
    return text + (f", {jax.process_count()} processes" if jax.process_count() > 1 else "")


def _mesh(mode: str) -> Mesh:
    # A pmapped array is local to its process, so its mesh is, too.
    devices = jax.local_devices() if mode == "pmap" else jax.devices()
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def _is_key(leaf) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)

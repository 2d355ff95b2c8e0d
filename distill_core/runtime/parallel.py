"""Devices and processes. The only file that names pmap, shard_map, Mesh and jax.distributed.

State and teachers are replicated, batches are split over all devices of all processes. A step is
wrapped once: `jax.jit` on one device; on several `jax.pmap`, or `shard_map`, or `jit` over a mesh.
"""

import dataclasses
import functools
import itertools
import json
import os
import sys
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from distill_core.config import InputError
from distill_core.runtime import backend
from distill_core.runtime.collectives import AXIS, all_sum, is_bound

MODES = ("pmap", "shard_map", "mesh")
PyTree = Any

_stop_checks = itertools.count(1)
_roll_call_failed = False


def start(
    *,
    multihost: bool = False,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
):
    """Joins the processes of one run; called before anything uses a device.

    `multihost` lets JAX find the cluster (TPU pods, Slurm, Open MPI, Kubernetes); for one started
    by hand give the address of process 0, the number of processes and this one's index.

    Raises:
      InputError: the description of a cluster is incomplete or wrong, or JAX finds none.
    """
    if coordinator_address is not None and num_processes is not None and process_id is not None:
        if not coordinator_address.rpartition(":")[2].isdigit():
            raise InputError("coordinator_address", coordinator_address, "must be HOST:PORT")
        if num_processes < 1:
            raise InputError("num_processes", num_processes, "must be at least 1")
        if not 0 <= process_id < num_processes:
            raise InputError("process_id", process_id, f"must be in 0 … {num_processes - 1}")
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
    elif (given := [coordinator_address, num_processes, process_id]) != [None] * 3:
        fields = "coordinator_address, num_processes, process_id"
        raise InputError(fields, given, "give all three or none")
    elif multihost:
        try:
            jax.distributed.initialize()
        except ValueError as error:
            instead = "Give coordinator_address, num_processes and process_id instead"
            allowed = f"JAX finds no cluster: {error} {instead}"
            raise InputError("multihost", multihost, allowed) from None


def choose_mode(mode: str | None = None) -> str:
    """`jit` on a single device, else `mode`, by default `pmap`."""
    if mode is not None and mode not in MODES:
        raise InputError("parallel", mode, f"must be one of {', '.join(MODES)}")
    return "jit" if jax.device_count() == 1 else mode or "pmap"


def is_mapped(mode: str) -> bool:
    """Whether a step runs once per device, on that device's part of the batch."""
    return mode in ("pmap", "shard_map")


@dataclasses.dataclass(frozen=True)
class Bound:
    """A function with its first, static argument: hashable by value, unlike a closure."""

    function: Callable
    first: Any

    def __call__(self, *args):
        """`function(first, *args)`."""
        return self.function(self.first, *args)


def wrap(step: Callable, mode: str, *, donate: bool = False) -> Callable:
    """Compiles `step(state, frozen, batch) -> (state, metrics)`, or an evaluation of that form.

    All outputs are replicated. `state` and `frozen` should come from `place`, the batch from
    `feed`. With `donate` the new state reuses the memory of the old. Equal steps, such as frozen
    dataclasses of equal values, share their compiled program.
    """
    assert isinstance(step, Hashable)
    mesh = None if mode == "jit" else _mesh(mode)
    compiled = functools.partial(_program(mode, donate, mesh), step)
    if mode == "jit" or backend.platform() != "cpu":
        return compiled
    # Simulated CPU devices share one pool of threads: two steps in flight can each hold threads
    # that the other waits for, and XLA then aborts the process.
    return lambda *args: jax.block_until_ready(compiled(*args))


def lower(
    step: Callable, mode: str, devices: Sequence[Any], state: PyTree, frozen: PyTree, batch: PyTree
) -> jax.stages.Lowered:
    """A step for devices that need not be here, such as those of a TPU topology; to be compiled.

    `mode` is "shard_map" or "mesh". The trees hold `jax.ShapeDtypeStruct`s; the batch is global,
    and the state is used up.
    """
    mesh = Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))
    return _program(mode, True, mesh).lower(step, state, frozen, batch)


@functools.cache
def _program(mode: str, donate: bool, mesh: Mesh | None) -> Any:
    """`program(step, state, frozen, batch)`, compiled once per equal step."""
    donated = (1,) if donate else ()
    if mode == "jit":
        return jax.jit(_call, static_argnums=0, donate_argnums=donated)
    if mode == "pmap":
        options = {
            "axis_name": AXIS,
            "in_axes": (None, None, None, 0),
            "out_axes": None,
            "static_broadcasted_argnums": 0,
            "donate_argnums": donated,
        }
        if jax.process_count() == 1:
            return jax.pmap(_call, **options)
        # With several processes, pmap fetches typed keys to the host at every call, and so waits
        # for the previous step; it leaves their data on the devices.
        on_data = jax.pmap(_call_on_data, **options)
        return lambda step, state, frozen, batch: _typed(
            on_data(step, _bare(state), _bare(frozen), batch)
        )
    assert mesh is not None
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.jit(
        functools.partial(_call_sharded if mode == "shard_map" else _call_over_mesh, mesh),
        static_argnums=0,
        in_shardings=(whole, whole, split),
        out_shardings=whole,
        donate_argnums=donated,
    )


def _call(step: Callable, state: PyTree, frozen: PyTree, batch: PyTree):
    return step(state, frozen, batch)


def _call_on_data(step: Callable, state: PyTree, frozen: PyTree, batch: PyTree):
    return _bare(step(_typed(state), _typed(frozen), batch))


def _call_over_mesh(mesh: Mesh, step: Callable, state: PyTree, frozen: PyTree, batch: PyTree):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for `per_device`
        return step(state, frozen, batch)


def _call_sharded(mesh: Mesh, step: Callable, state: PyTree, frozen: PyTree, batch: PyTree):
    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    # check_vma=False, as the steps sum their gradients themselves. By default JAX inserts another
    # sum for gradients of replicated parameters, and they silently count twice.
    return jax.shard_map(
        step, mesh=mesh, in_specs=(whole, whole, split), out_specs=whole, check_vma=False
    )(state, frozen, batch)


def per_device(
    function: Callable, split: tuple[PyTree, ...], whole: tuple[PyTree, ...] = (), *, result: str
) -> PyTree:
    """`function(*split, *whole)`, by each device on its rows of `split`; for use inside a step.

    In the mode "mesh" XLA divides a step up by itself, and gathers all devices' rows where the code
    sorts or loops over them. This says how to divide it instead. In all other modes the code sees
    its device's rows anyway, and this is a plain call.

    Args:
      function: pure; may sum over the devices (`collectives`).
      split: trees of arrays `[B, ...]`, or None.
      whole: trees of arrays that every device has.
      result: what the mesh makes of the devices' results: "rows" `[b, ...]` are put together,
        "sum" adds them up, and "same" takes them for equal.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if is_bound() or AXIS not in mesh.axis_names:
        return function(*split, *whole)
    rows, all_of_it = PartitionSpec(AXIS), PartitionSpec()

    def own(*args):
        found = function(*args)
        return all_sum(found) if result == "sum" else found

    return jax.shard_map(
        own,
        in_specs=(rows,) * len(split) + (all_of_it,) * len(whole),
        out_specs=rows if result == "rows" else all_of_it,
        check_vma=False,
    )(*split, *whole)


def place(tree: PyTree, mode: str) -> PyTree:
    """Replicates host values (or typed keys) over the devices of a mode, so that a step need not
    copy them at every call. All processes get the values of process 0."""
    if mode == "jit":
        return jax.tree.map(lambda x: x if _is_key(x) else jax.device_put(x), tree)
    sharding = NamedSharding(_mesh(mode), PartitionSpec())
    keys = jax.tree.map(_is_key, tree)
    tree = jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if _is_key(x) else x), tree)
    tree = _broadcast(tree)  # values that differ in the last bit would stay different, unnoticed

    def put(leaf, is_key):
        # Unlike device_put, does not compare the values with those of other processes.
        leaf = np.asarray(leaf, jax.dtypes.canonicalize_dtype(leaf.dtype))
        leaf = jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])
        return jax.random.wrap_key_data(leaf) if is_key else leaf

    return jax.tree.map(put, tree, keys)


def feed(batch: PyTree, mode: str) -> PyTree:
    """This process's rows `[B/P, …]` of a global batch, in the form that a wrapped step takes."""
    if mode == "jit":
        return batch if backend.platform() == "cpu" else jax.device_put(batch)
    if mode == "pmap":
        n = jax.local_device_count()
        return jax.tree.map(lambda x: x.reshape(n, x.shape[0] // n, *x.shape[1:]), batch)
    sharding = NamedSharding(_mesh(mode), PartitionSpec(AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def keep(batch: PyTree, mode: str) -> PyTree:
    """`feed`, with the rows placed on the devices: for those that every step takes."""
    if mode == "shard_map":
        return feed(batch, mode)  # places them already
    if mode == "jit":
        return jax.device_put(batch)
    return jax.device_put(feed(batch, mode), NamedSharding(_mesh(mode), PartitionSpec(AXIS)))


def local_rows(batch_size: int) -> slice:
    """The rows of a global batch that this process feeds."""
    per_process = batch_size // jax.process_count()
    return slice(jax.process_index() * per_process, (jax.process_index() + 1) * per_process)


def check_batch_size(batch_size: int, field: str = "batch_size"):
    """Raises InputError unless a global batch splits evenly over all devices."""
    if batch_size % (count := jax.device_count()):
        raise InputError(field, batch_size, f"must be divisible by the {count} devices")


def check_per_example(mode: str):
    """Raises InputError for a mode in which per-example gradients are wrong.

    Over a mesh XLA splits `vmap(grad)` of convolutions wrongly (seen with JAX 0.10 on CPUs).
    """
    if mode == "mesh":
        raise InputError("parallel", mode, "per-example gradients need pmap or shard_map")


def is_main() -> bool:
    """Whether this is process 0, which owns the lock, the metrics, the bar and the report."""
    return jax.process_index() == 0


def from_main(values: np.ndarray) -> np.ndarray:
    """Process 0's array, in every process; all pass one of its shape."""
    return np.asarray(_broadcast(values))


def barrier(name: str):
    """Waits for all processes."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def roll_call(settings: Mapping[str, Any] | None):
    """All processes of a run meet before it begins, as each can fail on its own to get ready.

    `settings`, for JSON, is what this process is about to run; None if it failed. Raises InputError
    if another process failed, or is about to run something else.
    """
    global _roll_call_failed
    if not jax.distributed.is_initialized() or jax.process_count() == 1 or _roll_call_failed:
        return
    from jax.experimental import multihost_utils

    text = json.dumps(settings, sort_keys=True)
    mine = np.uint32(0 if settings is None else zlib.crc32(text.encode()) | 1)
    found = multihost_utils.process_allgather(mine)  # [P]
    failed = np.flatnonzero(found == 0).tolist()
    _roll_call_failed = bool(failed)
    if settings is None:
        return
    if failed:
        raise InputError("processes", failed, "stopped before the run began; see their output")
    if odd := np.flatnonzero(found != found[0]).tolist():
        allowed = "all need the settings of process 0 and the same files in the workdir"
        raise InputError("processes", odd, allowed)


def leave(code: int, last_words: str = ""):
    """Ends one of several processes immediately, so that the others fail soon: JAX would wait
    minutes for them, while they wait for this one. Does nothing in a single process."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        print(end=last_words, file=sys.stderr, flush=True)
        os._exit(code)


def should_stop(signalled: bool) -> bool:
    """Whether all processes stop now: a signal to one stops all of them at the same call."""
    if jax.process_count() == 1:
        return signalled
    from jax.experimental import multihost_utils

    # JAX agrees on a number at which to stop. It counts calls, since the steps of a process's next
    # run start again at 0.
    return multihost_utils.reached_preemption_sync_point(next(_stop_checks))


def describe() -> str:
    """For example `8 cpu devices, 2 processes`."""
    devices = jax.devices()
    text = f"{len(devices)} {devices[0].device_kind} device{'s' * (len(devices) > 1)}"
    return text + (f", {jax.process_count()} processes" if jax.process_count() > 1 else "")


def _broadcast(tree: PyTree) -> PyTree:
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(tree)


def _mesh(mode: str) -> Mesh:
    # An array of pmap is local to its process, and so is its mesh.
    devices = jax.local_devices() if mode == "pmap" else jax.devices()
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


class _KeyData(NamedTuple):
    data: jax.Array


def _bare(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: _KeyData(jax.random.key_data(x)) if _is_key(x) else x, tree)


def _typed(tree: PyTree) -> PyTree:
    return jax.tree.map(
        lambda x: jax.random.wrap_key_data(x.data) if isinstance(x, _KeyData) else x,
        tree,
        is_leaf=lambda x: isinstance(x, _KeyData),
    )


def _is_key(leaf) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def assign(shapes: PyTree, sharding: Any) -> PyTree:
    """Shapes that say where their arrays are to lie.

    `sharding` is one for all of them, a function from the shapes to a tree of them, or None.
    """
    if sharding is None:
        return shapes
    each = sharding(shapes) if callable(sharding) else jax.tree.map(lambda _: sharding, shapes)
    put = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)  # noqa: E731
    return jax.tree.map(put, shapes, each)

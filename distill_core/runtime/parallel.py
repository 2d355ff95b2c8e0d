"""Devices and processes. Beside `sharding` the only file that names pmap, shard_map and Mesh.

Batches are split over all devices of all processes. A step is wrapped once: `jax.jit` on one
device; on several `jax.pmap` or `shard_map`, where state and teachers are replicated, or `jit` over
a mesh, where `sharding.split` says how they are split.

A mode is one of `MODES`, "jit", or the shape of a mesh such as "data:4,model:2".
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import sys
import threading
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from distill_core.config import InputError
from distill_core.runtime import backend, sharding
from distill_core.runtime.collectives import AXIS

MODES = ("pmap", "shard_map", "mesh")
PyTree = Any

_WAIT = 300  # seconds that the processes of a run wait for each other at the start
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

    A process that waits for the others for five minutes ends with one line and exit code 1.

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
        wanted = (coordinator_address, num_processes, process_id)
        if process_id:
            why = f"no coordinator at {coordinator_address}: is process 0 up, and its port open?"
        else:
            why = f"not all {num_processes} processes came to {coordinator_address}"
        with _in_time(why):
            jax.distributed.initialize(*wanted, initialization_timeout=2 * _WAIT)
    elif (given := [coordinator_address, num_processes, process_id]) != [None] * 3:
        fields = "coordinator_address, num_processes, process_id"
        raise InputError(fields, given, "give all three or none")
    elif multihost:
        try:
            with _in_time("not all processes of the cluster came together"):
                jax.distributed.initialize(initialization_timeout=2 * _WAIT)
        except ValueError as error:
            instead = "Give coordinator_address, num_processes and process_id instead"
            allowed = f"JAX finds no cluster: {error} {instead}"
            raise InputError("multihost", multihost, allowed) from None


@contextlib.contextmanager
def _in_time(why: str):
    """Ends the process with one line if what is inside takes longer: JAX would abort it."""

    def give_up():
        print(f"error: {why} (waited {_WAIT} s)", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(_WAIT, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def choose_mode(mode: str | None = None) -> str:
    """`jit` on a single device, else `mode`, by default `pmap`, of several processes `shard_map`.

    Raises:
      InputError: on `parallel`; or on `mesh`, whose product must be the number of devices.
    """
    count = jax.device_count()
    if mode is not None and ":" in mode:
        if math.prod(_sizes(mode, count).values()) != count:
            raise InputError("mesh", mode, f"the product must be the number of devices, {count}")
    elif mode is not None and mode not in MODES:
        raise InputError("parallel", mode, f"must be one of {', '.join(MODES)}")
    usual = "pmap" if jax.process_count() == 1 else "shard_map"  # pmap would convert every array
    return "jit" if count == 1 else mode or usual


def is_mapped(mode: str) -> bool:
    """Whether a step runs once per device, on that device's part of the batch."""
    return mode in ("pmap", "shard_map")


def is_mesh(mode: str) -> bool:
    """Whether a step is written for whole arrays, which are split over a mesh."""
    return mode == "mesh" or ":" in mode


def batch_devices(mode: str) -> int:
    """So many parts a global batch is split into: all devices, of a mesh those along `data`."""
    return _sizes(mode, jax.device_count())[AXIS]


def _sizes(mode: str, count: int) -> dict[str, int]:
    """Devices along each axis of a mesh; all of them, `count`, along `data` unless it says."""
    if ":" not in mode:
        return {AXIS: count}
    found: dict[str, int] = {}
    for each in mode.split(","):
        name, _, size = each.partition(":")
        if name not in (AXIS, sharding.MODEL) or name in found or not size.isdecimal():
            raise InputError("mesh", mode, "must be data:N or data:N,model:M")
        found[name] = int(size)
    return {AXIS: found.pop(AXIS, 1), **found}


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

    Outputs are replicated, over a mesh split as `place` splits them. `state` and `frozen` should
    come from `place` or `make`, the batch from `feed`. With `donate` the new state reuses the
    memory of the old. Equal steps, such as frozen dataclasses of equal values, share their compiled
    program.
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

    `mode` is "shard_map" or a mesh. The trees hold `jax.ShapeDtypeStruct`s; the batch is global,
    and the state is used up.
    """
    mesh = _mesh_of(devices, mode)
    if is_mesh(mode):
        state, frozen = (
            jax.tree.map(_with_sharding, tree, _shardings(tree, mesh)) for tree in (state, frozen)
        )
        rows = NamedSharding(mesh, PartitionSpec(AXIS))
        batch = jax.tree.map(lambda leaf: _with_sharding(leaf, rows), batch)
    return _program(mode, True, mesh).lower(step, state, frozen, batch)


def _with_sharding(leaf: Any, placed: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)


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
    if is_mesh(mode):  # the arguments say how they are split
        over_mesh = functools.partial(_call_over_mesh, mesh)
        return jax.jit(over_mesh, static_argnums=0, donate_argnums=donated)
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.jit(
        functools.partial(_call_sharded, mesh),
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
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for `sharding`
        found = step(state, frozen, batch)
        return jax.tree.map(jax.lax.with_sharding_constraint, found, _shardings(found, mesh))


def _call_sharded(mesh: Mesh, step: Callable, state: PyTree, frozen: PyTree, batch: PyTree):
    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    # check_vma=False, as the steps sum their gradients themselves. By default JAX inserts another
    # sum for gradients of replicated parameters, and they silently count twice.
    return jax.shard_map(
        step, mesh=mesh, in_specs=(whole, whole, split), out_specs=whole, check_vma=False
    )(state, frozen, batch)


def place(tree: PyTree, mode: str) -> PyTree:
    """Puts host values (or typed keys) on the devices of a mode, so that a step need not copy them
    at every call: replicated, over a mesh split as `shardings` says. All processes get the values
    of process 0. Arrays that are in their place stay there."""
    if mode == "jit":
        return jax.tree.map(lambda x: x if _is_key(x) else jax.device_put(x), tree)
    leaves, structure = jax.tree.flatten(tree)
    placed = jax.tree.leaves(shardings(tree, mode))
    moved = {i: _host(leaf) for i, leaf in enumerate(leaves) if not _is_in_place(leaf, placed[i])}
    # Values that differ in the last bit would stay different, unnoticed.
    for i, values in _broadcast(moved).items():
        values = np.asarray(values, jax.dtypes.canonicalize_dtype(values.dtype))
        # Unlike device_put, does not compare the values with those of other processes.
        put = jax.make_array_from_callback(values.shape, placed[i], values.__getitem__)
        leaves[i] = jax.random.wrap_key_data(put) if _is_key(leaves[i]) else put
    return jax.tree.unflatten(structure, leaves)


def _host(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _is_in_place(leaf: Any, sharding: NamedSharding) -> bool:
    return isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def make(function: Callable, mode: str, *args) -> PyTree:
    """`function(*args)`, over a mesh computed where `place` would put it, a part on each device."""
    if not is_mesh(mode):
        return function(*args)
    placed = shardings(jax.eval_shape(function, *args), mode)
    return jax.jit(function, out_shardings=placed)(*args)


def placing(mode: str) -> Callable | None:
    """The `sharding` by which `load_model` reads what a step reads: over a mesh shard by shard."""
    return functools.partial(shardings, mode=mode) if is_mesh(mode) else None


def shardings(tree: PyTree, mode: str) -> PyTree:
    """Where `place` puts the leaves of a tree, arrays or shapes, in a mode of several devices.

    Over a mesh it splits parameters, and what an optimiser keeps of them, by `sharding.split`.
    """
    mesh = _mesh(mode)
    if is_mesh(mode):
        return _shardings(tree, mesh)
    return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree)


def _shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    sizes = dict(mesh.shape)

    def of(path, leaf):
        name = sharding.name_of(path)
        is_split = "params" in name.split("/") or "opt_state" in name.split("/")
        found = sharding.split(name, jnp.shape(leaf), sizes) if is_split else ()
        return NamedSharding(mesh, PartitionSpec(*found))

    return jax.tree_util.tree_map_with_path(of, tree)


def feed(batch: PyTree, mode: str) -> PyTree:
    """This process's rows `[B/P, …]` of a global batch, in the form that a wrapped step takes."""
    if mode == "jit":
        return batch if backend.platform() == "cpu" else jax.device_put(batch)
    if mode == "pmap":
        n = jax.local_device_count()
        return jax.tree.map(lambda x: x.reshape(n, x.shape[0] // n, *x.shape[1:]), batch)
    rows = NamedSharding(_mesh(mode), PartitionSpec(AXIS))
    share = _share(mode)
    parts = batch_devices(mode) // (share.stop - share.start)

    def put(x):
        shape = (len(x) * parts, *x.shape[1:])
        return jax.make_array_from_process_local_data(rows, x, shape)

    return jax.tree.map(put, batch)


def keep(batch: PyTree, mode: str) -> PyTree:
    """`feed`, with the rows placed on the devices: for those that every step takes."""
    if mode == "jit":
        return jax.device_put(batch)
    if mode != "pmap":
        return feed(batch, mode)  # places them already
    return jax.device_put(feed(batch, mode), NamedSharding(_mesh(mode), PartitionSpec(AXIS)))


def local_rows(batch_size: int, mode: str) -> slice:
    """The rows of a global batch that this process feeds."""
    share, rows = _share(mode), batch_size // batch_devices(mode)
    return slice(share.start * rows, share.stop * rows)


def _share(mode: str) -> slice:
    """Which of the `batch_devices` parts of a batch are this process's."""
    if not is_mesh(mode):
        count = jax.local_device_count()
        return slice(jax.process_index() * count, (jax.process_index() + 1) * count)
    here = {device.id for device in jax.local_devices()}
    rows = _mesh(mode).devices.reshape(batch_devices(mode), -1)  # [D, M]
    mine = [i for i, row in enumerate(rows) if any(device.id in here for device in row)]
    return slice(mine[0], mine[-1] + 1)


def check_batch_size(batch_size: int, mode: str, field: str = "batch_size"):
    """Raises InputError unless a global batch splits evenly over the devices that share it."""
    if batch_size % (count := batch_devices(mode)):
        along = " along data" if ":" in mode else ""
        raise InputError(field, batch_size, f"must be divisible by the {count} devices{along}")


def check_no_model(mode: str):
    """Raises InputError for a mesh that splits networks over `model`: only those of text can be."""
    if _sizes(mode, 1).get(sharding.MODEL, 1) > 1:
        raise InputError("mesh", mode, "model splits networks of text; those of images take data:N")


def check_per_example(mode: str):
    """Raises InputError for a mode in which per-example gradients are wrong.

    Over a mesh XLA splits `vmap(grad)` of convolutions wrongly (seen with JAX 0.10 on CPUs).
    """
    if is_mesh(mode):
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
    return _mesh_of(jax.local_devices() if mode == "pmap" else jax.devices(), mode)


def _mesh_of(devices: Sequence[Any], mode: str) -> Mesh:
    sizes = _sizes(mode, len(devices))
    shape, names = tuple(sizes.values()), tuple(sizes)
    # In the order of the processes, so that each feeds neighbouring rows.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(ordered).reshape(shape), names, axis_types=(AxisType.Auto,) * len(names))


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
    whole = jax.tree.structure(each) == jax.tree.structure(shapes)
    if not (whole and all(isinstance(x, jax.sharding.Sharding) for x in jax.tree.leaves(each))):
        allowed = "must be a jax.sharding.Sharding, or a function from shapes to a tree of them"
        raise InputError("sharding", type(each).__name__, allowed)
    put = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)  # noqa: E731
    return jax.tree.map(put, shapes, each)

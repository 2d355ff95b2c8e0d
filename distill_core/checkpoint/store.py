"""Checkpoints: how runs resume and how methods meet. The only file that imports Orbax.

Every process writes its own shards in the background, while training goes on.
`<workdir>/checkpoints/<step>/` holds the Orbax items `model` (named parts, each `params` and
`model_state`) and `train` (step, optimiser, rng), and `metadata.json`: format version, method, the
parts' specs, config, ledger, an id (128 random bits of this save, by which ledgers name it), and a
checksum of every file (see `integrity`).
"""

import contextlib
import copy
import hashlib
import logging
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core.checkpoint.integrity import FOLDER, chosen, delete, finish, remove_unfinished
from distill_core.config import InputError
from distill_core.data.images.dataset import wrong_constants
from distill_core.models import trust as trust_lib
from distill_core.models.network import LoadedModel, Network
from distill_core.runtime import parallel, paths

PyTree = Any

_CHUNK_BYTES = 1 << 26  # so that a shard of an array can be read without the rest of it
_writing = threading.Lock()  # held from `save` to the end of what it does in the background


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; earlier ones are intact."""


class Saving:
    """A checkpoint that is being written in the background."""

    def __init__(self, work: Callable[[], epath.Path]):
        self._work = work
        self._path: epath.Path | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoint")
        self._thread.start()

    def _run(self):
        try:
            self._path = self._work()
        except Exception as error:
            self._error = error

    def wait(self) -> epath.Path:
        """Returns the path once the checkpoint is complete; raises CheckpointError if it failed."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._path is not None
        return self._path


def save(
    workdir: epath.PathLike,
    step: int,
    *,
    parts: Mapping[str, PyTree],
    train: PyTree,
    metadata: Mapping[str, Any],
    then: Callable[[], None] = lambda: None,
) -> Saving:
    """Begins to write one checkpoint; called by every process of a run.

    Returns as soon as the arrays may be changed or donated: what they hold is then on the host.
    Waits for the save before it, if that is not complete yet.

    Args:
      workdir: the run's directory, local or `gs://…`.
      step: names the checkpoint; an existing one is overwritten.
      parts: name -> {"params", "model_state"}, arrays with any sharding.
      train: tree of arrays and typed keys that a resumed run needs.
      metadata: values that JSON can hold.
      then: called in the background once the checkpoint is complete.

    Raises:
      CheckpointError: it could not be begun, or, by `wait`, not completed, e.g. the disk is full.
    """
    path = epath.Path(workdir) / FOLDER / str(step)
    # Drawn at random: a digest of weights would confirm a guess of the records behind them.
    metadata = copy.deepcopy({**metadata, "step": step, "id": secrets.token_hex(16)})
    with contextlib.ExitStack() as stack:
        stack.enter_context(_writing)
        stack.enter_context(_silent_orbax())
        stack.enter_context(_failing_cleanly(path))
        if parallel.is_main() and path.exists():
            delete(path)
        parallel.barrier(f"checkpoint-{step}-begin")
        written = _begin(path, {"model": dict(parts), "train": by_name(train)})
        held = stack.pop_all()

    def complete() -> epath.Path:
        with held:
            written.result()
            finish(path, metadata)
        then()
        return path

    return Saving(complete)


def _begin(path: epath.Path, items: Mapping[str, PyTree]) -> Any:
    """Starts Orbax, which has copied all arrays off the devices when this returns.

    On a CPU its "copies" are views of the arrays' memory. JAX does not reuse memory that NumPy
    looks at: a step that was to donate it takes new memory.
    """
    context = _orbax().Context()
    saving = context.array.saving
    saving.storage_options.chunk_byte_size = _CHUNK_BYTES
    saving.use_compression = False  # weights hardly shrink, and it takes the cores of the training
    saving.use_replica_parallel = False  # would slice every replicated array on the devices first
    with context:
        return _orbax().save_checkpointables_async(_absolute(path), _writable(items))


def _writable(tree: PyTree) -> PyTree:
    """Global arrays as they are, for every process to write its shards; the rest as NumPy arrays.

    Of several processes, an array of one alone, as pmap has them, is written by the first.
    """

    def convert(leaf):
        if _is_key(leaf):
            leaf = jax.random.key_data(leaf)
        is_global = jax.process_count() == 1 or not getattr(leaf, "is_fully_addressable", True)
        return leaf if isinstance(leaf, jax.Array) and is_global else np.asarray(leaf)

    return jax.tree.map(convert, tree)


@contextlib.contextmanager
def _failing_cleanly(path: epath.Path):
    """Raises what goes wrong inside as a CheckpointError, and deletes what was written."""
    try:
        yield
    except Exception as error:
        for _ in range(3):  # writers that Orbax gave up on may create their files again
            with contextlib.suppress(OSError):
                remove_unfinished(path.parent.parent)
            time.sleep(0.2)
        raise CheckpointError(
            f"could not write checkpoint {path}: {_reason(error)}; earlier checkpoints are intact"
        ) from error


def restore(path: epath.PathLike, *, parts: Mapping[str, PyTree], train: PyTree):
    """Reads a checkpoint back, on any number of devices and processes.

    A leaf that is committed to devices, or a shape with a sharding, is read onto these devices, by
    every process its own shards alone; other leaves come as host arrays, and keys as typed keys.

    Args:
      path: the checkpoint's directory.
      parts: trees of arrays or shapes by a network's name, as given to `save`.
      train: tree of arrays, shapes and typed keys, as given to `save`.

    Returns:
      (parts, train), trees like those given.

    Raises:
      InputError: names a leaf that is missing or has another shape or dtype.
    """
    # `train` was saved flat, by the leaves' names.
    return _read(path, "model", dict(parts)), _read(path, "train", train)


def contents(path: epath.PathLike) -> dict[str, PyTree]:
    """What one checkpoint holds.

    Args:
      path: the checkpoint's directory.

    Returns:
      NumPy arrays: `model`, a tree, and `train`, by the leaves' names.
    """
    with _alone() as ocp:
        stored = {item: ocp.metadata(_absolute(path), item).metadata for item in ("model", "train")}
        wanted = jax.tree.map(lambda _: np.ndarray, stored)
        return ocp.load_checkpointables(_absolute(path), wanted)


def load_model(
    path: epath.PathLike,
    *,
    part: str | None = None,
    step: int | None = None,
    trust: Iterable[str] = (),
    sharding: Any = None,
) -> LoadedModel:
    """Rebuilds one network from a checkpoint, on any devices.

    A checkpoint is data: it may name a network of this project, or one in a package of `trust`.

    Args:
      path: a workdir or one of its checkpoints, local or `gs://…`; or a local directory with a
        language model of Hugging Face's, see `models.foreign.huggingface`, or a `.safetensors` file
        with GPT-2's weights or an image network's from PyTorch, see `models.foreign.torch_weights`.
      part: which network; by default the first, e.g. the student rather than its generator.
      step: which checkpoint; by default the newest undamaged one, or of a run with `use="best"`
        that of its best validation step.
      trust: packages, with their submodules, or single modules whose code may be run for it, in
        addition to those of `--trust`.
      sharding: where the variables are to lie: a `jax.sharding.Sharding` for all, or a function
        from a tree of `jax.ShapeDtypeStruct`s to a tree of them. Each process then reads its own
        shards alone, and the variables are `jax.Array`s; by default they are NumPy arrays.

    Returns:
      The network with its weights; its `apply` maps images or token ids to float32 logits.

    Raises:
      InputError: no such checkpoint or part, another format, a leaf that does not fit, or a network
        in a module that is not trusted.
    """
    from distill_core.models import foreign

    if foreign.is_foreign(path):
        return foreign.load_model(path, part=part, step=step, sharding=sharding)
    path, metadata = chosen(paths.expand("checkpoint", path), step=step, item="model")
    specs = metadata["parts"]
    part = next(iter(specs)) if part is None else part
    if part not in specs:
        raise InputError("part", part, f"{path} holds {', '.join(sorted(specs))}")
    with trust_lib.allowed(trust):
        trust_lib.check_network(path, specs[part])
    network = _read_network(path, specs[part])

    def name_of(stored: str) -> str:
        whose, _, name = stored.partition("/")
        return name.removeprefix("model_state/") if whose == part else ""

    variables = _read(path, "model", parallel.assign(network.shapes(), sharding), name_of)
    for name in not_finite(variables)[:1]:
        raise InputError("checkpoint", str(path), f"leaf {name} holds NaN or infinity")
    return LoadedModel(variables, network, metadata)


def _read_network(path: epath.PathLike, described: Mapping[str, Any]) -> Network:
    """A part's network; refuses one of images whose classes and constants contradict each other."""
    try:
        network = Network.from_json(described)
    except ValueError as error:
        raise InputError("checkpoint", str(path), f"describes no network: {error}") from None
    if network.is_text:
        return network
    try:
        mean, std = ([float(value) for value in each] for each in (network.mean, network.std))
        count, names = network.num_classes, network.classes
        fits = type(count) is int and len(mean) == len(std) == network.input_shape[-1]
        fits = fits and (not names or len(names) == count)
        wrong = wrong_constants(mean, std) if fits else ""
    except (TypeError, ValueError, IndexError):
        wrong = ""
    if wrong is not None:
        wrong = wrong or "describes no network: its image size, mean, std and classes do not agree"
        raise InputError("checkpoint", str(path), wrong)
    return network


def digest(tree: PyTree) -> str:
    """SHA-256 of a tree's names and contents: equal for equal weights, on host or device.

    Args:
      tree: a tree of arrays.

    Returns:
      64 hexadecimal digits.
    """
    sha = hashlib.sha256()
    for name, leaf in by_name(tree).items():
        leaf = np.asarray(leaf)
        sha.update(f"{name}:{leaf.dtype}:{leaf.shape};".encode())
        sha.update(np.ascontiguousarray(leaf).view(np.uint8).data)  # bfloat16 has no buffer
    return sha.hexdigest()


def to_host(tree: PyTree) -> PyTree:
    """Replicated device arrays as NumPy arrays; typed keys as their uint32 data.

    Args:
      tree: a tree of arrays.

    Returns:
      A tree like it, of NumPy arrays.
    """
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if _is_key(x) else x), tree)


def not_finite(tree: PyTree) -> list[str]:
    """Names of the leaves that hold NaN or infinity; arrays on devices are looked at there.

    Args:
      tree: a tree of arrays.

    Returns:
      Names as of `by_name`; [] if all is finite.
    """
    leaves = {k: x for k, x in by_name(tree).items() if jnp.issubdtype(x.dtype, jnp.inexact)}
    placed = {k: x for k, x in leaves.items() if isinstance(x, jax.Array)}
    finite = {k: np.isfinite(x).all() for k, x in leaves.items() if k not in placed}
    if placed:
        found = np.asarray(_are_finite(list(placed.values())))
        finite |= dict(zip(placed, found, strict=True))
    return [name for name in leaves if not finite[name]]


@jax.jit
def _are_finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])


def fit(path: epath.PathLike, target: PyTree, found: PyTree) -> PyTree:
    """`found` in the structure of `target`.

    Args:
      path: where it was found, for the message.
      target: a tree of arrays or shapes.
      found: a tree of arrays, whose leaves are found by name.

    Returns:
      A tree like `target`, with the arrays of `found`.

    Raises:
      InputError: names the first leaf that is missing, or has another shape or dtype.
    """
    flat = {k: x if isinstance(x, jax.Array) else np.asarray(x) for k, x in by_name(found).items()}
    _check(path, target, flat)
    return _fill(target, flat)


def _read(
    path: epath.PathLike,
    item: str,
    target: PyTree,
    name_of: Callable[[str], str] = lambda stored: stored,
) -> PyTree:
    """One item of a checkpoint in the structure and the places of `target`.

    `name_of` turns the name of a stored leaf into that of the target's; "" leaves it out.
    """
    with _alone() as ocp:
        stored = ocp.metadata(_absolute(path), item).metadata
        named = {name_of(name): leaf for name, leaf in by_name(stored).items()}
        named.pop("", None)
        _check(path, target, named)
        wanted = {name: _abstract(leaf) for name, leaf in by_name(target).items()}

        def ask(keypath, _):
            return wanted.get(name_of(_name(keypath)), ocp.PLACEHOLDER)

        tree = jax.tree_util.tree_map_with_path(ask, stored)
        found = ocp.load_checkpointables(_absolute(path), {item: tree})[item]
    return _fill(target, {name_of(name): leaf for name, leaf in by_name(found).items()})


def _abstract(leaf: Any) -> Any:
    """A leaf as Orbax is asked for it: with its sharding, or as a NumPy array."""
    is_placed = not isinstance(leaf, jax.Array) or leaf.committed
    sharding = getattr(leaf, "sharding", None) if is_placed else None
    if sharding is None:
        return np.ndarray
    leaf = _stored_as(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check(path: epath.PathLike, target: PyTree, flat: Mapping[str, Any]):
    """Raises InputError unless names, shapes and dtypes are those of the target."""
    wanted = {name: _stored_as(leaf) for name, leaf in by_name(target).items()}
    for name, leaf in wanted.items():
        needed = f"{leaf.dtype}{list(leaf.shape)}"
        if name not in flat:
            raise InputError("checkpoint", str(path), f"has no leaf {name}; {needed} is needed")
        value = flat[name]
        if (value.shape, value.dtype) != (tuple(leaf.shape), leaf.dtype):
            allowed = f"leaf {name} is {value.dtype}{list(value.shape)}; {needed} is needed"
            raise InputError("checkpoint", str(path), allowed)
    for name in sorted(flat.keys() - wanted.keys()):
        raise InputError("checkpoint", str(path), f"leaf {name} has no place here")


def _fill(target: PyTree, flat: Mapping[str, Any]) -> PyTree:
    """The leaves in the structure of the target, key data as typed keys."""

    def pick(keypath, leaf):
        value = flat[_name(keypath)]
        return jax.random.wrap_key_data(jnp.asarray(value)) if _is_key(leaf) else value

    return jax.tree_util.tree_map_with_path(pick, target)


def _stored_as(leaf: Any) -> Any:
    """What a checkpoint holds of a leaf: of a typed key its data."""
    return jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)


def by_name(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by name, in order.

    Args:
      tree: any tree, such as one of arrays.

    Returns:
      Leaves under names like `params/Dense_0/kernel`.
    """
    return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _name(keypath) -> str:
    return jax.tree_util.keystr(keypath, simple=True, separator="/")


def _reason(error: Exception) -> str:
    """One line; for an error of the system its own message, e.g. that the disk is full."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error) or type(error).__name__
    code = re.search(r"os_error_code='(\d+)'", text)  # as TensorStore has it
    return os.strerror(int(code[1])) if code else text.splitlines()[0][:200]


@contextlib.contextmanager
def _silent_orbax():
    """Leaves a failed write to the exception: Orbax logs its traceback several times."""
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    before, logger.disabled = logger.disabled, True
    stragglers = logging.getLogger("asyncio")
    heard, stragglers.disabled = stragglers.disabled, True

    def skip_stragglers(unraisable):
        # TensorStore's other writes find that Orbax gave up and closed its event loop.
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    sys.unraisablehook = skip_stragglers
    try:
        yield
        # Not after a failure: stragglers may come until the process ends.
        sys.unraisablehook, stragglers.disabled = hook, heard
    finally:
        logger.disabled = before


@contextlib.contextmanager
def _alone():
    """Orbax for this process alone: reading must not wait for others, which may have failed."""
    context, index = _orbax().Context(), jax.process_index()
    context.multiprocessing.primary_host = index
    context.multiprocessing.active_processes = {index}
    context.multiprocessing.barrier_sync_key_prefix = f"process{index}"
    with context:
        yield _orbax()


def _absolute(path: epath.PathLike) -> epath.Path:
    """An absolute path, as Orbax needs for local files."""
    path = epath.Path(path)
    return path if "://" in str(path) else epath.Path(os.path.abspath(path))


def _orbax():
    # Imported on use: it takes a second, and importing a package must not load it.
    from orbax.checkpoint import v1 as ocp

    return ocp

"""Checkpoints: how runs resume and how methods meet. The only file that imports Orbax.

`<workdir>/checkpoints/<step>/` holds the Orbax items `model` (named parts, each `params` and
`model_state`) and `train` (step, optimiser, rng), and `metadata.json`: format version, method, the
parts' specs, config, ledger, an id (128 random bits of this save, by which ledgers name it), and a
checksum of every file (see `integrity`).
"""

import contextlib
import hashlib
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Iterable, Mapping
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


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; earlier ones are intact."""


def save(
    workdir: epath.PathLike,
    step: int,
    *,
    parts: Mapping[str, PyTree],
    train: PyTree,
    metadata: Mapping[str, Any],
) -> epath.Path:
    """Writes one checkpoint and returns its path; called by every process of a run.

    Args:
      workdir: the run's directory, local or `gs://…`.
      step: names the checkpoint; an existing one is overwritten.
      parts: name -> {"params", "model_state"}, replicated arrays.
      train: tree of replicated arrays and typed keys that a resumed run needs.
      metadata: values that JSON can hold.

    Raises:
      CheckpointError: the checkpoint could not be completed, e.g. the disk is full.
    """
    path = epath.Path(workdir) / FOLDER / str(step)
    model, train = to_host(dict(parts)), by_name(to_host(train))
    # Drawn at random: a digest of weights would confirm a guess of the records behind them.
    metadata = {**metadata, "step": step, "id": secrets.token_hex(16)}
    try:
        if parallel.is_main() and path.exists():
            delete(path)
        parallel.barrier(f"checkpoint-{step}-begin")
        with _silent_orbax():
            _orbax().save_checkpointables(_absolute(path), {"model": model, "train": train})
        if parallel.is_main():
            finish(path, metadata)
        parallel.barrier(f"checkpoint-{step}-end")
    except Exception as error:
        for _ in range(3):  # writers that Orbax gave up on may create their files again
            with contextlib.suppress(OSError):
                remove_unfinished(workdir)
            time.sleep(0.2)
        raise CheckpointError(
            f"could not write checkpoint {path}: {_reason(error)}; earlier checkpoints are intact"
        ) from error
    return path


def restore(path: epath.PathLike, *, parts: Mapping[str, PyTree], train: PyTree):
    """Reads a checkpoint back, on any number of devices.

    `parts` and `train` are trees of arrays or shapes, as given to `save`. Returns them as host
    arrays and typed keys; raises InputError, which names the leaf, if one is missing or has another
    shape or dtype.
    """
    with _alone() as ocp:
        found = ocp.load_checkpointables(_absolute(path), {"model": None, "train": None})
    # `train` was saved flat, by the leaves' names.
    return fit(path, dict(parts), found["model"]), _fill(path, train, found["train"])


def load_model(
    path: epath.PathLike,
    *,
    part: str | None = None,
    step: int | None = None,
    trust: Iterable[str] = (),
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

    Raises:
      InputError: no such checkpoint or part, another format, a leaf that does not fit, or a network
        in a module that is not trusted.
    """
    from distill_core.models import foreign

    if foreign.is_foreign(path):
        return foreign.load_model(path, part=part, step=step)
    path, metadata = chosen(paths.expand("checkpoint", path), step=step)
    specs = metadata["parts"]
    part = next(iter(specs)) if part is None else part
    if part not in specs:
        raise InputError("part", part, f"{path} holds {', '.join(sorted(specs))}")
    with trust_lib.allowed(trust):
        trust_lib.check_network(path, specs[part])
    network = _read_network(path, specs[part])
    expected = network.shapes()
    with _alone() as ocp:
        stored = ocp.metadata(_absolute(path), "model").metadata
        wanted = {
            name: tree if name == part else jax.tree.map(lambda _: ocp.PLACEHOLDER, tree)
            for name, tree in stored.items()
        }
        leaves = ocp.load_checkpointables(_absolute(path), {"model": wanted})["model"][part]
    found = {"params": leaves["params"], **leaves["model_state"]}
    variables = fit(path, expected, found)
    for name, leaf in by_name(variables).items():
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(leaf).all():
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
    """SHA-256 of a tree's names and contents: equal for equal weights, on host or device."""
    sha = hashlib.sha256()
    for name, leaf in by_name(tree).items():
        leaf = np.asarray(leaf)
        sha.update(f"{name}:{leaf.dtype}:{leaf.shape};".encode())
        sha.update(np.ascontiguousarray(leaf).view(np.uint8).data)  # bfloat16 has no buffer
    return sha.hexdigest()


def to_host(tree: PyTree) -> PyTree:
    """Replicated device arrays to NumPy; typed keys to their uint32 data."""

    def convert(leaf):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf)

    return jax.tree.map(convert, tree)


def fit(path: epath.PathLike, target: PyTree, found: PyTree) -> PyTree:
    """`found` in the structure of `target`; InputError names the first leaf that does not fit."""
    return _fill(path, target, by_name(found))


def _fill(path, target: PyTree, flat: Mapping[str, np.ndarray]) -> PyTree:
    used = set()

    def pick(keypath, leaf):
        name = _name(keypath)
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        wanted = jax.eval_shape(jax.random.key_data, leaf) if is_key else leaf
        needed = f"{wanted.dtype}{list(wanted.shape)}"
        if name not in flat:
            raise InputError("checkpoint", str(path), f"has no leaf {name}; {needed} is needed")
        value = np.asarray(flat[name])
        if (value.shape, value.dtype) != (tuple(wanted.shape), wanted.dtype):
            allowed = f"leaf {name} is {value.dtype}{list(value.shape)}; {needed} is needed"
            raise InputError("checkpoint", str(path), allowed)
        used.add(name)
        return jax.random.wrap_key_data(jnp.asarray(value)) if is_key else value

    filled = jax.tree_util.tree_map_with_path(pick, target)
    for name in sorted(flat.keys() - used):
        raise InputError("checkpoint", str(path), f"leaf {name} has no place here")
    return filled


def by_name(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree under names like `params/Dense_0/kernel`, in order."""
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

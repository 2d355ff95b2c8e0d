"""Checkpoints: how runs resume and how methods meet. The only file that imports Orbax.

`<workdir>/checkpoints/<step>/` holds the Orbax items `model` (named parts, each `params` and
`model_state`) and `train` (step, optimiser, rng), and `metadata.json`: format version, method, the
parts' specs, config, ledger, and a checksum of every file. `metadata.json` is written last: a
directory without it is an interrupted save and counts for nothing.
"""

import dataclasses
import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import parallel
from distill_core.config import InputError

FORMAT_VERSION = 1
FOLDER = "checkpoints"
PyTree = Any
log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; earlier ones are intact."""


class DamagedError(ValueError):
    """A checkpoint's files are missing, cut short or altered."""


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A network with its weights, as a checkpoint holds it.

    Attributes:
      variables: `{"params": …, **model_state}`, NumPy arrays.
      spec: how to rebuild it: model, model_kwargs, num_classes, input_shape, mean, std, classes.
      apply: `apply(variables, inputs, *, train=False)`, pure and jit-safe. Inputs are images
        `[B, H, W, C]` in [0, 1] or uint8; preprocessing is inside. Returns float32 logits `[B, K]`;
        with `train=True` (logits, updated model_state).
      tokenizer: for text models; None for images.
      metadata: everything that the checkpoint says of itself.
    """

    variables: PyTree
    spec: dict
    apply: Callable
    tokenizer: Any = None
    metadata: dict = dataclasses.field(default_factory=dict, repr=False)


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
      step: names the checkpoint; one that exists is overwritten.
      parts: name -> {"params", "model_state"}, replicated arrays.
      train: tree of replicated arrays and typed keys that a resumed run needs.
      metadata: JSON-able.

    Raises:
      CheckpointError: nothing complete could be written, e.g. the disk is full.
    """
    path = epath.Path(workdir) / FOLDER / str(step)
    model = to_host(dict(parts))
    train = {"/".join(_names(p)): leaf for p, leaf in _flatten(to_host(train))}
    metadata = {**metadata, "format_version": FORMAT_VERSION, "step": step, "digest": digest(model)}
    try:
        if parallel.is_main() and path.exists():
            path.rmtree()
        parallel.barrier(f"checkpoint-{step}-begin")
        _orbax().save_checkpointables(path, {"model": model, "train": train})
        if parallel.is_main():
            metadata["files"] = {name: _crc(path / name) for name in _list_files(path)}
            write_atomically(path / "metadata.json", json.dumps(_sealed(metadata), indent=1))
        parallel.barrier(f"checkpoint-{step}-end")
    except Exception as error:
        remove_unfinished(workdir)
        reason = next((line for line in str(error).splitlines() if line), type(error).__name__)
        raise CheckpointError(
            f"could not write checkpoint {path}: {reason[:200]}; earlier checkpoints are intact"
        ) from error
    return path


def steps(workdir: epath.PathLike) -> list[int]:
    """Steps with a finished save, ascending; their files are not yet checked."""
    folder = epath.Path(workdir) / FOLDER
    if not folder.exists():
        return []
    found = (int(p.name) for p in folder.iterdir() if p.name.isdigit())
    return sorted(step for step in found if (folder / str(step) / "metadata.json").exists())


def prune(workdir: epath.PathLike, keep: set[int]):
    """Deletes finished checkpoints whose step is not in `keep`."""
    for step in steps(workdir):
        if step not in keep:
            (epath.Path(workdir) / FOLDER / str(step)).rmtree()


def remove_unfinished(workdir: epath.PathLike):
    """Deletes what an interrupted save left behind. Only the owner of the workdir may call it."""
    folder = epath.Path(workdir) / FOLDER
    if not (parallel.is_main() and folder.exists()):
        return
    finished = {str(step) for step in steps(workdir)}
    for path in folder.iterdir():
        if path.is_dir() and path.name not in finished and not path.name.endswith(".damaged"):
            path.rmtree(missing_ok=True)


def read_metadata(path: epath.PathLike) -> dict:
    """The metadata of one checkpoint directory.

    Raises:
      DamagedError: it is missing, altered, or a file beside it is.
      InputError: it was written in another format version.
    """
    path = epath.Path(path)
    try:
        metadata = json.loads((path / "metadata.json").read_text())
    except FileNotFoundError:
        raise DamagedError("metadata.json is missing") from None
    except (ValueError, UnicodeDecodeError):
        raise DamagedError("metadata.json cannot be read") from None
    if not isinstance(metadata, dict) or metadata != _sealed(metadata):
        raise DamagedError("metadata.json was altered")
    if metadata["format_version"] != FORMAT_VERSION:
        raise InputError(
            "checkpoint",
            str(path),
            f"has format version {metadata['format_version']}; this program reads {FORMAT_VERSION}",
        )
    for name, crc in metadata["files"].items():
        if not (path / name).exists():
            raise DamagedError(f"{name} is missing")
        if _crc(path / name) != crc:
            raise DamagedError(f"{name} was cut short or altered")
    return metadata


def find(path: epath.PathLike, *, step: int | None = None) -> tuple[epath.Path, dict]:
    """The checkpoint meant by a path, with its metadata.

    Args:
      path: a workdir (the newest undamaged checkpoint wins), its `checkpoints` folder, or one
        checkpoint.
      step: takes that one instead of the newest.

    Raises:
      InputError: there is none, or none that is whole.
    """
    path = epath.Path(path)
    if (path / "metadata.json").exists():
        candidates = [path]
    else:
        folder = path if path.name == FOLDER else path / FOLDER
        candidates = [folder / str(s) for s in reversed(steps(folder.parent))]
    if step is not None:
        candidates = [c for c in candidates if c.name == str(step)]
    damaged = []
    for candidate in candidates:
        try:
            return candidate, read_metadata(candidate)
        except DamagedError as error:
            log.warning("skipping damaged checkpoint %s: %s", candidate, error)
            damaged.append(candidate.name)
    if damaged:
        allowed = f"every checkpoint there is damaged ({', '.join(damaged)})"
    elif not path.exists():
        allowed = "does not exist; give a workdir or one of its checkpoints"
    else:
        what = "checkpoint" if step is None else f"checkpoint of step {step}"
        allowed = f"holds no {what}; give a workdir or one of its checkpoints"
    raise InputError("checkpoint", str(path), allowed)


def restore(path: epath.PathLike, *, parts: Mapping[str, PyTree], train: PyTree):
    """Reads a checkpoint back into the shapes of (parts, train); on any number of devices.

    Args:
      path: one checkpoint directory.
      parts: trees of arrays or shapes, as given to `save`.
      train: likewise.

    Returns:
      (parts, train) of host arrays; keys are typed keys again.

    Raises:
      InputError: a leaf is missing or has another shape; names it.
    """
    found = _orbax().load_checkpointables(epath.Path(path), {"model": None, "train": None})
    # `train` was saved flat, under the leaves' names.
    return fit(path, dict(parts), found["model"]), _fill(path, train, found["train"])


def load_model(
    path: epath.PathLike, *, part: str | None = None, step: int | None = None
) -> LoadedModel:
    """Rebuilds a network from a checkpoint, alone, on any devices.

    Args:
      path: a workdir or one of its checkpoints, local or `gs://…`.
      part: which network; may be left out where the checkpoint holds one.
      step: which checkpoint; by default the newest undamaged one.

    Raises:
      InputError: no such checkpoint or part, another format, or a leaf that does not fit.
    """
    from distill_core import spec as spec_lib

    path, metadata = find(path, step=step)
    specs = metadata["parts"]
    if part is None and len(specs) == 1:
        part = next(iter(specs))
    if part not in specs:
        raise InputError("part", part, f"{path} holds {', '.join(sorted(specs))}")
    spec = specs[part]
    expected = spec_lib.variable_shapes(spec)
    ocp = _orbax()
    stored = ocp.metadata(path, "model").metadata
    wanted = {
        name: tree if name == part else jax.tree.map(lambda _: ocp.PLACEHOLDER, tree)
        for name, tree in stored.items()
    }
    leaves = ocp.load_checkpointables(path, {"model": wanted})["model"][part]
    found = {"params": leaves["params"], **leaves["model_state"]}
    variables = fit(path, expected, found)
    return LoadedModel(variables, spec, spec_lib.make_apply(spec), None, metadata)


def digest(tree: PyTree) -> str:
    """SHA-256 of a tree's names and contents: equal for equal weights, wherever they lie."""
    sha = hashlib.sha256()
    for path, leaf in _flatten(tree):
        leaf = np.asarray(leaf)
        sha.update(f"{'/'.join(_names(path))}:{leaf.dtype}:{leaf.shape};".encode())
        sha.update(np.ascontiguousarray(leaf).data)
    return sha.hexdigest()


def to_host(tree: PyTree) -> PyTree:
    """Replicated device arrays to NumPy; typed keys to their uint32 data."""

    def convert(leaf):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf)

    return jax.tree.map(convert, tree)


def write_atomically(path: epath.PathLike, text: str):
    """Writes a text file so that a reader sees the old or the new one, never half."""
    path = epath.Path(path)
    temporary = path.parent / f".{path.name}.tmp"
    temporary.write_text(text)
    temporary.replace(path)


def fit(path: epath.PathLike, target: PyTree, found: PyTree) -> PyTree:
    """`found` in the structure of `target`, leaf by leaf; names the first that does not fit."""
    return _fill(path, target, {"/".join(_names(p)): leaf for p, leaf in _flatten(found)})


def _fill(path, target: PyTree, flat: Mapping[str, np.ndarray]) -> PyTree:
    def pick(keypath, leaf):
        name = "/".join(_names(keypath))
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        shape = jax.eval_shape(jax.random.key_data, leaf).shape if is_key else leaf.shape
        if name not in flat:
            raise InputError("checkpoint", str(path), f"has no leaf {name} {tuple(shape)}")
        value = np.asarray(flat[name])
        if value.shape != tuple(shape):
            raise InputError(
                "checkpoint",
                str(path),
                f"leaf {name} has shape {value.shape}; {tuple(shape)} is needed",
            )
        return jax.random.wrap_key_data(value) if is_key else value

    return jax.tree_util.tree_map_with_path(pick, target)


def _flatten(tree: PyTree):
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def _names(keypath) -> list[str]:
    return [jax.tree_util.keystr((key,), simple=True) for key in keypath]


def _list_files(path: epath.Path, prefix: str = "") -> list[str]:
    names = []
    for child in path.iterdir():
        name = f"{prefix}{child.name}"
        names += _list_files(child, f"{name}/") if child.is_dir() else [name]
    return sorted(n for n in names if not n.startswith("."))


def _crc(path: epath.Path) -> int:
    return zlib.crc32(path.read_bytes())


def _sealed(metadata: Mapping[str, Any]) -> dict:
    """The metadata with a checksum over the rest of it."""
    rest = {key: value for key, value in metadata.items() if key != "checksum"}
    return {**rest, "checksum": zlib.crc32(json.dumps(rest, sort_keys=True).encode())}


def _orbax():
    # Imported on use: importing a package must not load Orbax, and takes a second.
    from orbax.checkpoint import v1 as ocp

    return ocp

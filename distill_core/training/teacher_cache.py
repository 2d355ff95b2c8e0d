"""A text teacher's answers on disk (`distill_core.coarse`), for students without the teacher."""

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import coarse, config
from distill_core.checkpoint.integrity import write_atomically
from distill_core.config import InputError
from distill_core.data import sampling
from distill_core.data.columns import Column, Writer
from distill_core.models.network import LoadedModel, Network
from distill_core.runtime import parallel, paths, process, progress, strict_json
from distill_core.training import chunked, fits, inputs, run_state

Rows = Mapping[str, Any]

PREFIX = "cache:"  # of a config's `teacher`
MANIFEST = "manifest.json"
DTYPES = ("float16", "float32")
TOP_K = 64
_VERSION = 1
_SEED = 0  # of the draws, a function of the number of the row
_ROWS = 32  # at a time


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a cache holds, and of what.

    Attributes:
      k, dtype: classes per token, and of what dtype their log-probabilities are.
      rows: "count", "length" and "digest" of the rows of text.
      settings: the fields of a config that the rows came from, by which a mismatch is explained.
      network: the teacher's, as JSON, with its tokenizer: V is its `num_tokens`.
      tokenizer: the tokenizer's fingerprint.
      teacher: the teacher's fingerprint; "" in a noised release, whose manifest may be published.
      id, ledger, config: of the teacher's checkpoint, or of the release.
      release: of a noised release its "settings" and "report", and what is stored are the finished
        targets and the scores; None of bare answers at temperature 1.
      complete: whether all was written.
      version: of this format.
    """

    k: int
    dtype: str
    rows: Mapping[str, Any]
    settings: Mapping[str, Any]
    network: Mapping[str, Any]
    tokenizer: str
    teacher: str
    id: str
    ledger: Mapping[str, Any]
    config: Mapping[str, Any]
    release: Mapping[str, Any] | None = None
    complete: bool = False
    version: int = _VERSION

    @classmethod
    def of(cls, loaded: LoadedModel, rows: Rows, **given: Any) -> Self:
        """The manifest of a teacher's answers on rows; `given` are `k`, `dtype` and `settings`."""
        about = loaded.metadata
        return cls(
            rows={**_size(rows), "digest": digest(rows)},
            network=loaded.network.to_json(),
            tokenizer=inputs.of_tokenizer(loaded.tokenizer),
            teacher=inputs.of_model(loaded),
            id=about.get("id", ""),
            ledger=about.get("ledger", {"mechanisms": [], "ancestors": []}),
            config=about.get("config", {}),
            **given,
        )

    @property
    def columns(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape of one row, and dtype, of each column."""
        length, small = self.rows["length"], Network.from_json(self.network).num_tokens <= 2**16
        tails = 2 if self.release else len(coarse.TEMPERATURES) + 1
        found: dict[str, tuple[tuple[int, ...], Any]] = {
            "classes": ((length, self.k), np.uint16 if small else np.int32),
            "log_probs": ((length, self.k), np.dtype(self.dtype)),
            "tails": ((length, tails), np.float32),
            "drawn": ((length, coarse.DRAWS), np.uint16 if small else np.int32),
        }
        return found | ({"scores": ((length,), np.float32)} if self.release else {})

    @property
    def bytes_per_token(self) -> float:
        """Of all columns; on disk a shard adds some 64 KiB."""
        rows = (math.prod(row) * np.dtype(dtype).itemsize for row, dtype in self.columns.values())
        return sum(rows) / self.rows["length"]

    def to_text(self) -> str:
        """As the file holds it."""
        return strict_json.encode(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"


def digest(rows: Rows) -> str:
    """Of `tokens` and `segments` [N, L], which a network's answers depend on."""
    sha = hashlib.sha256(str(_size(rows)).encode())
    for start in range(0, len(rows["tokens"]), 4096):
        for name in ("tokens", "segments"):
            sha.update(np.ascontiguousarray(rows[name][start : start + 4096], np.int32).data)
    return sha.hexdigest()


def write(
    folder: epath.PathLike,
    manifest: Manifest,
    make: Callable[[np.ndarray], Mapping[str, Any]],
    *,
    field: str = "teacher_cache",
) -> Manifest:
    """Writes a cache, or goes on where an earlier attempt was killed; nothing if it is complete.

    Args:
      folder: of the cache.
      manifest: of what is to be written.
      make: takes numbers of rows to the `manifest.columns` of these rows.
      field: what named the folder.

    Raises:
      InputError: on `field`, if the folder holds a cache of another teacher, text or form.
    """
    if jax.process_count() > 1:
        raise InputError(field, str(folder), "is written by one process, not by several")
    folder = paths.folder_to_write(field, folder)
    known = _known(field, str(folder), folder)
    if known is not None:
        _check_same(field, str(folder), known, manifest)
        if known.complete:
            fits.say(f"{folder} is complete already")
            return known
        manifest = known
    with run_state.about(field, str(folder)), process.hold(folder):
        return _write(folder, manifest, make)


def _write(folder: epath.Path, manifest: Manifest, make) -> Manifest:
    if "://" not in str(folder) and not manifest.release:
        os.chmod(folder, 0o700)  # as private as the teacher and its text
    write_atomically(folder / MANIFEST, manifest.to_text())
    writers = {n: Writer(folder / n, *form) for n, form in manifest.columns.items()}
    _write_columns(writers, manifest.rows["count"], make)
    manifest = dataclasses.replace(manifest, complete=True)
    write_atomically(folder / MANIFEST, manifest.to_text())
    size = sum(p.stat().length for n in writers for p in (folder / n).iterdir())
    fits.say(
        f"{folder}: {manifest.rows['count'] * manifest.rows['length']:,} tokens, {manifest.k} "
        f"classes each in {manifest.dtype} and the tail, {manifest.bytes_per_token:g} bytes per "
        f"token ({size / 2**20:.1f} MiB on disk)"
    )
    return manifest


def _write_columns(writers: Mapping[str, Writer], count: int, make):
    """Rows from the first that some column lacks; each column takes those that it lacks."""
    begin = min(writer.start for writer in writers.values())
    if begin:
        fits.say(f"goes on after {begin:,} of {count:,} rows")
    reporter = progress.Reporter(count, active=parallel.is_main(), label="rows")
    reporter.begin(begin)
    for index, mask in sampling.eval_batches(count - begin, min(_ROWS, max(1, count - begin))):
        rows = begin + index
        made = {name: np.asarray(each)[mask] for name, each in make(rows).items()}
        for name, writer in writers.items():
            writer.append(made[name][max(0, writer.count - int(rows[0])) :])
        done = int(rows[mask][-1]) + 1
        reporter.advance(done)
        if done * 10 // count > int(rows[0]) * 10 // count:  # a log sees no bar
            reporter.say(f"{done:,} of {count:,} rows")
    reporter.end()
    for writer in writers.values():
        writer.finish({})


def answers(
    loaded: LoadedModel, rows: Rows, k: int, *, temperature: float | None = None
) -> Callable[[np.ndarray], Mapping[str, Any]]:
    """What `write` takes, of a teacher on rows: its answers at temperature 1.

    With a `temperature` they are finished targets of that temperature, with the tail's mass at it
    alone.

    Raises:
      InputError: on `top_k`, above the size of the vocabulary.
    """
    if k > loaded.network.num_tokens:
        allowed = f"must be at most the size of the vocabulary, {loaded.network.num_tokens:,}"
        raise InputError("top_k", k, allowed)
    variables = jax.device_put(loaded.variables)
    heats = coarse.TEMPERATURES if temperature is None else (1.0,)

    def make(index: np.ndarray) -> Mapping[str, Any]:
        batch = tuple(rows[name][index] for name in ("tokens", "segments"))
        batch = (*batch, index.astype(np.uint32))
        return _answers(loaded.network, k, heats, variables, batch, temperature or 1.0)

    return make


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _answers(network: Network, k: int, heats: tuple[float, ...], variables, batch, temperature):
    tokens, segments, numbers = batch
    states, embedding = network.hidden(variables, tokens, segments)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(_SEED), numbers)
    places = jax.vmap(lambda key: jax.random.uniform(key, tokens.shape[1:]))(keys)
    flat, count = (states.reshape(-1, states.shape[-1]), places.reshape(-1)), tokens.size
    size = min(count, chunked.chunk_for(len(embedding)))

    def split(x):
        padded = jnp.pad(x, ((0, -count % size), *[(0, 0)] * (x.ndim - 1)))
        return padded.reshape(-1, size, *x.shape[1:])

    def one(part):
        states, places = part
        return coarse.answers(chunked.logits(states, embedding) / temperature, k, places, heats)

    found = jax.lax.map(one, jax.tree.map(split, flat))
    return {
        name: each.reshape(-1, each.shape[-1])[:count].reshape(*tokens.shape, -1)
        for name, each in found.items()
    }


@dataclasses.dataclass(frozen=True)
class Cache:
    """A whole cache.

    Attributes:
      manifest: what it holds.
      columns: `manifest.columns`, [N, L, ...] each, on disk.
      model: stands for the teacher wherever its network, tokenizer and ledger are asked for; in
        place of weights it has the manifest's digest.
    """

    manifest: Manifest
    columns: Mapping[str, Column]
    model: LoadedModel


def is_cache(teacher: str | None) -> bool:
    """Whether a config's `teacher` names a cache."""
    return teacher is not None and teacher.startswith(PREFIX)


def read(field: str, given: str) -> Cache:
    """The cache at `cache:DIR`.

    Raises:
      InputError: on `field`: there is none, it is unfinished, or it cannot be read.
    """
    folder = paths.expand(field, given.removeprefix(PREFIX), given=given)
    manifest = _known(field, given, folder)
    if manifest is None:
        allowed = "has no cache; python -m distill_core.evaluate --teacher_cache=DIR writes one"
        raise InputError(field, given, allowed)
    if not manifest.complete:
        allowed = "is unfinished: the command that wrote it, given again, goes on where it stopped"
        raise InputError(field, given, allowed)
    try:
        columns = {name: Column(folder / name) for name in manifest.columns}
        network = Network.from_json(manifest.network)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(field, given, f"is damaged ({_first(error)}); write it again") from None
    for name, (row, dtype) in manifest.columns.items():
        if (columns[name].shape, columns[name].dtype) != ((manifest.rows["count"], *row), dtype):
            raise InputError(field, given, f"is damaged (column {name}); write it again")
    written = np.frombuffer(hashlib.sha256(manifest.to_text().encode()).digest(), np.uint8)
    about = {"id": manifest.id, "ledger": manifest.ledger, "config": manifest.config}
    return Cache(manifest, columns, LoadedModel({"written": written}, network, about))


def check_rows(cache: Cache, field: str, given: str, rows: Rows, settings: Mapping[str, Any]):
    """Refuses rows of text that a cache was not written for.

    Raises:
      InputError: on the first of the `settings` that differs from the writer's; else on `field`.
    """
    theirs = cache.manifest.rows
    if {**_size(rows), "digest": digest(rows)} == theirs:
        return
    for name, value in cache.manifest.settings.items():
        if name in settings and (ours := config.to_json(settings[name])) != value:
            allowed = f"must be {config.to_json(value)!r}, as when the cache {given} was written"
            raise InputError(name, ours, allowed)
    count, length = _size(rows).values()
    allowed = (
        f"was written for other rows of text ({theirs['count']:,} of {theirs['length']} tokens, "
        f"the run has {count:,} of {length}): restore the text, or write a cache for it"
    )
    raise InputError(field, given, allowed)


def _size(rows: Rows) -> dict[str, int]:
    count, length = rows["tokens"].shape
    return {"count": int(count), "length": int(length)}


def _known(field: str, given: str, folder: epath.Path) -> Manifest | None:
    """The manifest in a folder; None if there is none."""
    if not (folder / MANIFEST).exists():
        return None
    try:
        known = json.loads((folder / MANIFEST).read_text())
        if known["version"] != _VERSION:
            raise ValueError(f"version {known['version']}")
        return Manifest(**known)
    except (OSError, ValueError, KeyError, TypeError) as error:
        allowed = f"has a {MANIFEST} that cannot be read ({_first(error)}); write the cache again"
        raise InputError(field, given, allowed) from None


def _check_same(field: str, given: str, known: Manifest, wanted: Manifest):
    """Refuses to go on with another cache than was begun."""
    titles = {
        "teacher": "another teacher",
        "tokenizer": "another tokenizer",
        "rows": "other rows of text",
        "k": f"top_k {known.k}",
        "dtype": f"cache_dtype {known.dtype}",
        "release": "other settings of the release",
    }
    for name, title in titles.items():
        if getattr(known, name) != json.loads(strict_json.encode(getattr(wanted, name))):
            allowed = f"holds a cache of {title}; take another directory, or delete it"
            raise InputError(field, given, allowed)


def _first(error: Exception) -> str:
    return " ".join(str(error).split()[:12])

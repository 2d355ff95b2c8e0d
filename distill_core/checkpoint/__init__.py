"""Checkpoints: how runs resume and how methods meet."""

from distill_core.checkpoint.integrity import (
    FOLDER,
    FORMAT_VERSION,
    DamagedError,
    find,
    prune,
    read_metadata,
    remove_unfinished,
    steps,
    write_atomically,
)
from distill_core.checkpoint.store import (
    CheckpointError,
    digest,
    fit,
    load_model,
    restore,
    save,
    to_host,
)
from distill_core.models.network import LoadedModel

__all__ = [
    "FOLDER",
    "FORMAT_VERSION",
    "CheckpointError",
    "DamagedError",
    "LoadedModel",
    "digest",
    "find",
    "fit",
    "load_model",
    "prune",
    "read_metadata",
    "remove_unfinished",
    "restore",
    "save",
    "steps",
    "to_host",
    "write_atomically",
]

"""Checkpoints: how runs resume and how methods meet."""

from distill_core.checkpoint.integrity import (
    FOLDER,
    chosen,
    find,
    prune,
    remove_unfinished,
    steps,
    write_atomically,
)
from distill_core.checkpoint.store import (
    CheckpointError,
    Saving,
    by_name,
    contents,
    digest,
    fit,
    load_model,
    not_finite,
    restore,
    save,
    to_host,
)
from distill_core.models.network import LoadedModel

__all__ = [
    "FOLDER",
    "CheckpointError",
    "LoadedModel",
    "Saving",
    "by_name",
    "chosen",
    "contents",
    "digest",
    "find",
    "fit",
    "load_model",
    "not_finite",
    "prune",
    "remove_unfinished",
    "restore",
    "save",
    "steps",
    "to_host",
    "write_atomically",
]

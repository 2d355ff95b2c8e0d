"""Fingerprints of what a run reads: resuming on other data is refused.

They are stored in `<workdir>/private/` and nowhere else: a digest of private data, or of a teacher
trained on it, tells whoever guesses a record whether the guess is right.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from distill_core import checkpoint
from distill_core.config import InputError
from distill_core.data.text import tokenizers
from distill_core.models.foreign import huggingface
from distill_core.privacy import noise
from distill_core.runtime import strict_json

_FILE = "inputs.json"


def of_model(loaded: checkpoint.LoadedModel) -> str:
    """Fingerprint of a network: its weights and all else that its outputs depend on.

    Weights that were read from files are told by these, as no process may have all of them: a
    checkpoint by its id and checksums, another library's files by what they hold.
    """
    described = strict_json.encode(loaded.network.to_json(), sort_keys=True)
    metadata = loaded.metadata
    if "source" in metadata:
        weights = huggingface.weights_digest(metadata["source"])
    elif "files" in metadata:
        weights = f"{metadata['id']} {strict_json.encode(metadata['files'], sort_keys=True)}"
    else:
        weights = checkpoint.digest(loaded.variables)
    return hashlib.sha256((weights + described).encode()).hexdigest()


def of_tokenizer(tokenizer: tokenizers.Tokenizer) -> str:
    """Fingerprint of a vocabulary and how it splits text."""
    described = tokenizer.to_json() + strict_json.encode(tokenizer.special_tokens, sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()


def check(
    workdir: epath.PathLike,
    inputs: Mapping[str, str],
    settings: Mapping[str, Any],
    *,
    resumes: bool,
) -> str:
    """Refuses to continue on other data than a run began with.

    `inputs` maps a field of the config to the fingerprint of what it names now. Returns a warning
    if the run `resumes` and there is nothing to compare with; else "".

    Raises:
      InputError: on the first field whose data changed, or on a file that cannot be read.
    """
    path = epath.Path(workdir) / noise.FOLDER / _FILE
    if not path.exists():
        return f"cannot check that the data is the same as before: no {path}" * resumes
    try:
        known = dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        allowed = "cannot be read; delete it to continue with the data unchecked"
        raise InputError("workdir", str(path), allowed) from None
    for field, fingerprint in inputs.items():
        if known.get(field, fingerprint) != fingerprint:
            allowed = "the data changed since this run began: restore it or take another workdir"
            raise InputError(field, settings.get(field), allowed)
    return ""


def remember(workdir: epath.PathLike, inputs: Mapping[str, str]):
    """Stores the fingerprints; called by process 0 alone, before the first step."""
    noise.write_private(epath.Path(workdir) / noise.FOLDER / _FILE, dict(inputs))

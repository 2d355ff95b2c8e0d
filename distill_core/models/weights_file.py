"""A `.safetensors` file of somebody else's as a model of ours."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from distill_core import checkpoint
from distill_core.config import InputError
from distill_core.models import spec as spec_lib


def load_model(
    path: str | os.PathLike,
    read: Callable[..., tuple[dict, Mapping[str, Any]]],
    *,
    method: str,
    part: str | None,
    step: int | None,
) -> checkpoint.LoadedModel:
    """What `distill_core.load_model` gives for a file; `read(path)` gives (spec, variables).

    Raises:
      InputError: from `read`; or a part or a step is asked for, and a file has neither.
    """
    for name, value in (("part", part), ("step", step)):
        if value is not None:
            raise InputError(name, value, f"{path} is a file of one network; leave it out")
    spec, variables = read(path)
    metadata = {
        "method": method,
        "parts": {"model": spec},
        "config": {},
        "ledger": {"mechanisms": [], "ancestors": []},
        "data_note": "",
        "step": 0,
        "id": "a file of weights",  # nobody drew one
    }
    apply, tokenizer = spec_lib.make_apply(spec), spec_lib.tokenizer(spec)
    return checkpoint.LoadedModel(variables, spec, apply, tokenizer, metadata)

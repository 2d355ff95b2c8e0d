"""A `.safetensors` file of somebody else's as a model of ours."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from distill_core.config import InputError
from distill_core.models.network import LoadedModel, Network


def load_model(
    path: str | os.PathLike,
    read: Callable[..., tuple[Network, Mapping[str, Any]]],
    *,
    method: str,
    part: str | None,
    step: int | None,
) -> LoadedModel:
    """What `distill_core.load_model` gives for a file; `read(path)` gives (network, variables).

    Raises:
      InputError: from `read`; or a part or a step is asked for, and a file has neither.
    """
    for name, value in (("part", part), ("step", step)):
        if value is not None:
            raise InputError(name, value, f"{path} is a file of one network; leave it out")
    network, variables = read(path)
    metadata = {
        "method": method,
        "parts": {"model": network.to_json()},
        "config": {},
        "ledger": {"mechanisms": [], "ancestors": []},
        "data_note": "",
        "step": 0,
        "id": "a file of weights",  # nobody drew one
    }
    return LoadedModel(variables, network, metadata)

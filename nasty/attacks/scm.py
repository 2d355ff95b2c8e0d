"""SCM: the attacker distils through a sequence of intermediate students."""

import dataclasses
from collections.abc import Callable
from typing import Any

from etils import epath

from distill_core import checkpoint
from distill_core.training import run_state


def train_in_sequence(
    hp: Any,
    workdir: epath.PathLike,
    teacher: checkpoint.LoadedModel,
    distil: Callable[[Any, epath.Path, checkpoint.LoadedModel], dict[str, Any]],
) -> dict[str, Any]:
    """Teacher → intermediate 1 → … → student, each distilled from the one before.

    Each is a run of its own, `distil(hp, workdir, teacher) -> result`: the intermediates in
    `<workdir>/intermediate1`, …, the student in `<workdir>`, whose result is returned. A finished
    one is not done again, a stopped one goes on. Where `num_steps` was raised since, an
    intermediate that the next one has begun to learn from stays as it is.

    Source: Jandial et al., "Distilling the Undistillable: Learning from a Nasty Teacher", ECCV
    2022, in our reconstruction: all intermediates have the student's own architecture, recipe, α
    and τ, differ in the seed, and learn from the network before alone. The paper's exact losses
    between the links are not followed.
    """
    workdir, source = epath.Path(workdir), teacher
    places = [workdir / f"intermediate{i + 1}" for i in range(hp.num_intermediates)]
    for i, (place, after) in enumerate(zip(places, [*places[1:], workdir], strict=True), 1):
        stage = dataclasses.replace(hp, seed=(hp.seed + i) % 2**32)
        if run_state.has_checkpoint(place) and run_state.has_checkpoint(after):
            done = checkpoint.find(place)[1]["config"]["num_steps"]
            stage = dataclasses.replace(stage, num_steps=done)
        distil(stage, place, source)
        source = checkpoint.load_model(place)
    return distil(hp, workdir, source)

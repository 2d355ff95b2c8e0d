"""SCM: the attacker distils through a sequence of intermediate students."""

from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from distill_core import checkpoint


def train_in_sequence(
    hp: Mapping[str, Any],
    workdir: epath.PathLike,
    teacher: checkpoint.LoadedModel,
    distil: Callable[[Mapping[str, Any], epath.Path, checkpoint.LoadedModel], dict[str, Any]],
) -> dict[str, Any]:
    """Teacher → intermediate 1 → … → student, each distilled from the one before.

    Every run is one of its own: the intermediates in `<workdir>/intermediate1`, …, the student in
    `<workdir>`. A finished one is not done again, a stopped one goes on.

    Source: Jandial et al., "Distilling the Undistillable: Learning from a Nasty Teacher", ECCV
    2022, in our reconstruction: all intermediates have the student's own architecture, recipe, α
    and τ, differ in the seed, and learn from the network before alone. The paper's exact losses
    between the links are not followed.

    Args:
      hp: the student's values, with `num_intermediates` and `seed`.
      workdir: the run's directory.
      teacher: the attacked one.
      distil: `distil(hp, workdir, teacher) -> result`, one link.

    Returns:
      The student's result.
    """
    workdir, source = epath.Path(workdir), teacher
    for i in range(1, hp["num_intermediates"] + 1):
        place = workdir / f"intermediate{i}"
        distil({**hp, "seed": (hp["seed"] + i) % 2**32}, place, source)
        source = checkpoint.load_model(place)
    return distil(hp, workdir, source)

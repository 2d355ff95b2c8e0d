"""Extraction and membership inference on one teacher and all its students."""

from typing import Any

from etils import epath

from distill_core import checkpoint, config
from swingdistill import private_text
from swingdistill.attacks import evaluation, membership


def study(
    settings: Any, workdir: epath.PathLike | None = None, *, parallel: str | None = None
) -> dict[str, Any]:
    """What the attacks find in each arm of one seed.

    Args:
      settings: of `swingdistill.train`; also `arms`, names of settings that name checkpoints, and
        `reference`, which may be one of them and is then told by its own losses alone.
      workdir, parallel: as of a binary; nothing is written, and one device does it.

    Returns:
      {arm: {"extraction": what `evaluation.extract` gives, or None of a classifier;
      "membership": what `membership.membership` gives}}.
    """
    del workdir, parallel
    hp = config.part_of(settings, private_text.Settings)
    texts, reference = private_text.load(hp), checkpoint.load_model(settings["reference"])
    found = {}
    for arm in settings["arms"]:
        loaded, extraction = checkpoint.load_model(settings[arm]), None
        if hp.task != "classification":
            extraction = evaluation.extract(
                loaded, hp, texts, num_continuations=evaluation.NUM_CONTINUATIONS
            )
        # Against itself it would score every line alike.
        public = None if arm == "reference" else reference
        told = membership.membership(loaded, hp, texts, public)
        found[arm] = {"extraction": extraction, "membership": told}
    return found

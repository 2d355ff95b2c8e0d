"""What a conversion can be told, and which settings go together."""

from collections.abc import Mapping
from typing import Any

from distill_core import config
from distill_core.config import InputError
from distill_core.privacy.ledger import check_delta
from distill_core.training import dp_settings
from dpdfd.priors.images import KINDS
from dpdfd.privacy.units import UNITS, Release

NOISED = ("query", "record_single", "record_ensemble")
_ALTERNATING, _MECHANISMS = ("param", "logit"), ("param", "logit", "answers")

GENERATOR = {
    "latent_size": config.integer(1, default=100),
    "width": config.integer(1, default=64),
    "norm": config.choice("batch", "group", "none", default="batch"),
    "conditional": config.boolean(default=False),
    "learning_rate": config.number(0.0, above=True, default=1e-3),
    "every": config.integer(0, default=1),
    "warm_start_steps": config.integer(0, default=0),
    "one_hot": config.number(0.0, default=1.0),
    "balance": config.number(0.0, default=20.0),
    "activation": config.number(0.0, default=0.0),
    "diversity": config.number(0.0, default=0.0),
    "smoothness": config.number(0.0, default=0.0),
}
PRIOR = {kind: config.number(0.0, default=0.0) for kind in KINDS}
FIELDS = {
    "teacher": config.text(),
    "dataset": config.text(default=None),
    "data_dir": config.text(default=None),
    **config.MODEL,
    **config.OPTIMIZER,
    **{name: field for name, field in config.RUN.items() if name != "init_from"},
    "crop_padding": config.AUGMENTATION["crop_padding"],
    "loss": config.choice("brier", "cross_entropy", default="brier"),
    "privacy_unit": config.choice("none", *UNITS),
    "mechanism": config.choice(*_MECHANISMS, "none", default="none"),
    "bound": config.choice("normalize", "clip", default="normalize"),
    "norm": config.number(0.0, above=True, default=1.0),
    "epsilon": config.number(0.0, above=True, default=None),
    "delta": config.number(0.0, default=1e-5),
    "num_examples": config.integer(1, default=None),
    "noise_seed": config.integer(0, 2**32 - 1, default=None),
    "num_rounds": config.integer(0, default=0),
    "num_queries": config.integer(1, default=None),
    "candidates": config.integer(1, default=4),
    "smooth": config.boolean(default=False),
    "prior": config.mapping(default={}),
    "prior_extent": config.sequence(config.number(0.0, 1.0, above=True), default=()),
    "guide": config.choice("student", "teacher", default="student"),
    "generator": config.mapping(default={}),
}


def validate(settings: Any) -> dict[str, Any]:
    """Checked values of `FIELDS`, with those of the group `generator` filled in.

    Raises:
      InputError: a field that is wrong, or does not go with another.
    """
    hp = config.validate(settings, FIELDS)
    hp["generator"] = group("generator", hp["generator"], GENERATOR)
    group("prior", hp["prior"], PRIOR)
    unit, mechanism, rounds = hp["privacy_unit"], hp["mechanism"], hp["num_rounds"]
    if unit in ("query", "record_single") and mechanism not in _ALTERNATING:
        raise InputError("mechanism", mechanism, f"{unit!r} has {' and '.join(_ALTERNATING)}")
    if unit == "record_ensemble" and mechanism != "answers":
        raise InputError("mechanism", mechanism, "'record_ensemble' has answers")
    if unit not in NOISED and mechanism != "none":
        raise InputError("mechanism", mechanism, f"{unit!r} adds no noise: 'none'")
    if unit in NOISED and hp["epsilon"] is None:
        raise InputError("epsilon", None, f"is required for {unit!r}; must be a number above 0")
    if unit not in NOISED and hp["epsilon"] is not None:
        raise InputError("epsilon", hp["epsilon"], f"{unit!r} spends none here; leave it out")
    least, most = dp_settings.SIZES["norm"]
    if not least <= hp["norm"] <= most:
        allowed = f"must be from {least:g} to {most:g}, which float32 holds"
        raise InputError("norm", hp["norm"], allowed)
    if not 0.0 < hp["delta"] < 1.0:
        raise InputError("delta", hp["delta"], "must be in (0, 1)")
    if (
        unit in NOISED and hp["guide"] == "teacher"
    ):  # one trained with DP may be asked without limit
        allowed = "the generator would see the teacher without noise, so no ε holds: 'student'"
        raise InputError("guide", hp["guide"], allowed)
    if mechanism == "answers" and not rounds:
        raise InputError("num_rounds", rounds, "answers are bought in rounds; must be at least 1")
    if mechanism == "param" and rounds:
        allowed = "gradients by parameters are of use for one step; must be 0"
        raise InputError("num_rounds", rounds, allowed)
    if hp["smooth"] and not (rounds and unit in NOISED):
        raise InputError("smooth", True, "is for noisy answers that are bought in rounds")
    if hp["num_queries"] is not None and not rounds:
        raise InputError("num_queries", hp["num_queries"], "are bought in rounds; see num_rounds")
    if rounds:
        _check_rounds(hp)
    elif hp["prior"] and not hp["generator"]["warm_start_steps"]:
        allowed = "without rounds it only warm-starts the generator; see generator.warm_start_steps"
        raise InputError("prior", hp["prior"], allowed)
    if hp["generator"]["warm_start_steps"] and not hp["prior"]:
        allowed = "a warm start needs images to imitate; see prior"
        given = hp["generator"]["warm_start_steps"]
        raise InputError("generator.warm_start_steps", given, allowed)
    if not rounds and not hp["generator"]["every"]:
        raise InputError("generator.every", 0, "without rounds the generator makes the queries")
    return hp


def _check_rounds(hp: Mapping[str, Any]):
    rounds, size = hp["num_rounds"], hp["batch_size"]
    if hp["num_queries"] is None:
        raise InputError("num_queries", None, "is required where there are rounds")
    if hp["num_queries"] % (rounds * size):
        allowed = f"must be a multiple of num_rounds · batch_size = {rounds * size}"
        raise InputError("num_queries", hp["num_queries"], allowed)
    if hp["num_steps"] % rounds:
        allowed = f"must be a multiple of the {rounds} rounds"
        raise InputError("num_steps", hp["num_steps"], allowed)


def group(name: str, given: Mapping[str, Any], fields: Mapping[str, config.Field]) -> dict:
    """Checked values of a group; errors name its field as `name.field`."""
    with config.within(name):
        return config.validate(given, fields)


def release(hp: Mapping[str, Any], *, num_teachers: int, num_examples: int | None):
    """What one release of the run gives away, or None where no noise is drawn.

    Args:
      hp: from `validate`.
      num_teachers: M; 1 for a single teacher.
      num_examples: N of the private training set, where known.

    Raises:
      InputError: a claim that cannot be made.
    """
    unit = hp["privacy_unit"]
    if unit != "none":
        check_delta(hp["delta"], num_examples)
    if unit not in NOISED:
        return None
    answers = hp["mechanism"] == "answers"
    released = {"param": "gradient_sum", "logit": "query_gradients", "answers": "mean_answer"}
    return Release(
        unit,
        released[hp["mechanism"]],
        hp["batch_size"],
        norm=None if answers else hp["norm"],
        num_teachers=num_teachers if answers else None,
        mode=hp["bound"],
        num_examples=num_examples,
    )

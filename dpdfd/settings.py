"""Settings of a conversion, and which go together."""

from collections.abc import Mapping
from typing import Any

from distill_core import config
from distill_core.config import InputError
from distill_core.data.images.procedural import KINDS
from distill_core.privacy.ledger import check_delta
from distill_core.training import dp_settings
from dpdfd.privacy.units import UNITS, Release

NOISED = ("query", "record_single", "record_ensemble")
_ALTERNATING, _OF_ENSEMBLES = ("param", "logit"), ("answers", "parameters")


@config.settings
class Generator:
    """The generator, and the weights of its loss."""

    latent_size: int = config.integer(1, default=100, help="length of z")
    width: int = config.integer(1, default=64, help="channels before the last layer")
    norm: str = config.choice("batch", "group", "none", default="batch", help="its normalisation")
    conditional: bool = config.boolean(default=False, help="draws a given class")
    learning_rate: float = config.number(0.0, above=True, default=1e-3, help="of its Adam")
    every: int = config.integer(
        0, default=1, help="student's steps to one of the generator; 0: it takes none"
    )
    warm_start_steps: int = config.integer(
        0, default=0, help="steps on the prior's images before the run"
    )
    one_hot: float = config.number(0.0, default=1.0, help="weight: confident answers of the guide")
    balance: float = config.number(0.0, default=20.0, help="weight: all classes alike")
    activation: float = config.number(0.0, default=0.0, help="weight: excited features")
    diversity: float = config.number(0.0, default=0.0, help="weight: images that differ")
    smoothness: float = config.number(0.0, default=0.0, help="weight: smooth images")


GAUSSIAN = "dp_gaussian"  # kind of a prior: draws from moments that were bought
PRIOR = {kind: config.number(0.0, default=0.0) for kind in (*KINDS, GAUSSIAN)}


@config.settings
class Moments:
    """Class means and covariances, bought of the private images by one noisy release."""

    size: int = config.integer(1, help="DCT coefficients per axis that describe an image")
    norm: float = config.number(
        0.0, above=True, help="L2 norm, of pixels in [0, 1], to which an image is clipped"
    )
    masked: str | None = config.text(
        default=None, help="a .npy file of rows that count as empty, for an audit"
    )


@config.settings
class Settings(config.Run, config.Optimizer, config.Model):
    """Of a conversion."""

    teacher: str = config.text(help="the checkpoint to convert")
    dataset: str | None = config.text(
        default=None,
        help="whose test split measures the student; with moments also the private images",
    )
    data_dir: str | None = config.text(default=None, help="where tfds:NAME was prepared")
    crop_padding: int = config.integer(
        0, default=0, help="pixels by which replayed queries are shifted at random"
    )
    loss: str = config.choice(
        "brier", "cross_entropy", default="brier", help="of a replayed answer"
    )
    temperature: float = config.number(
        0.0, above=True, default=1.0, help="of student and answers in the loss cross_entropy"
    )
    privacy_unit: str = config.choice("none", *UNITS, help="what an epsilon is about")
    mechanism: str = config.choice(
        *_ALTERNATING,
        *_OF_ENSEMBLES,
        "none",
        default="none",
        help="what of the teacher is noised",
    )
    bound: str = config.choice(
        "normalize", "clip", default="normalize", help="how gradients are brought to the norm"
    )
    norm: float = config.number(0.0, above=True, default=1.0, help="C, of bounded gradients")
    epsilon: float | None = config.number(0.0, above=True, default=None, help="to spend at most")
    delta: float = config.number(0.0, default=1e-5, help="below 1/N for N records")
    num_examples: int | None = config.integer(
        1, default=None, help="N of the teacher's data, where its checkpoint does not say"
    )
    noise_seed: int | None = config.integer(
        0, 2**32 - 1, default=None, help="of the noise, to reproduce a run that claims no epsilon"
    )
    num_rounds: int = config.integer(
        0, default=0, help="in which answers are bought; 0: fresh ones"
    )
    num_queries: int | None = config.integer(1, default=None, help="answers to buy in all rounds")
    candidates: int = config.integer(1, default=4, help="queries drawn for each that is asked")
    smooth: bool = config.boolean(default=False, help="lets noisy answers share their noise")
    prior: Mapping[str, Any] = config.mapping(
        default={},
        help=f"weights of images that code draws: {', '.join(KINDS)}; or {GAUSSIAN}, see moments",
    )
    moments: Moments | None = config.group(
        Moments, default=None, help=f"of the private images, for the prior {GAUSSIAN}"
    )
    prior_extent: tuple[float, ...] = config.sequence(
        config.number(0.0, 1.0, above=True),
        default=(),
        help="least and greatest size of a drawing, as parts of the image",
    )
    guide: str = config.choice(
        "student", "teacher", default="student", help="who guides the generator"
    )
    generator: Generator = config.group(Generator, default={}, help="who makes the queries")


def validate(settings: Any) -> Settings:
    """Checked settings; raises InputError on a field that is wrong, or clashes with another."""
    hp = config.validate(settings, Settings)
    with config.within("prior"):
        config.validate(hp.prior, PRIOR)
    unit, mechanism, rounds = hp.privacy_unit, hp.mechanism, hp.num_rounds
    if unit in ("query", "record_single") and mechanism not in _ALTERNATING:
        raise InputError("mechanism", mechanism, f"{unit!r} has {' and '.join(_ALTERNATING)}")
    if unit == "record_ensemble" and mechanism not in _OF_ENSEMBLES:
        raise InputError("mechanism", mechanism, f"{unit!r} has {' and '.join(_OF_ENSEMBLES)}")
    if unit not in NOISED and mechanism != "none":
        raise InputError("mechanism", mechanism, f"{unit!r} adds no noise: 'none'")
    if unit in NOISED and hp.epsilon is None:
        raise InputError("epsilon", None, f"is required for {unit!r}; must be a number above 0")
    if hp.moments or hp.prior.get(GAUSSIAN):
        _check_moments(hp)
    elif unit not in NOISED and hp.epsilon is not None:
        raise InputError("epsilon", hp.epsilon, f"{unit!r} spends none here; leave it out")
    least, most = dp_settings.SIZES["norm"]
    if not least <= hp.norm <= most:
        allowed = f"must be from {least:g} to {most:g}, which float32 holds"
        raise InputError("norm", hp.norm, allowed)
    check_delta(hp.delta)
    asked = unit in NOISED and mechanism != "parameters"  # else without limit, after a release
    if asked and hp.guide == "teacher":
        allowed = "the generator would see the teacher without noise, so no ε holds: 'student'"
        raise InputError("guide", hp.guide, allowed)
    if mechanism in _OF_ENSEMBLES and not rounds:
        raise InputError("num_rounds", rounds, "queries come in rounds; must be at least 1")
    if mechanism == "param" and rounds:
        allowed = "gradients by parameters are of use for one step; must be 0"
        raise InputError("num_rounds", rounds, allowed)
    if hp.temperature != 1.0 and not (rounds and hp.loss == "cross_entropy"):
        allowed = "softens replayed answers in the loss 'cross_entropy'; must be 1.0"
        raise InputError("temperature", hp.temperature, allowed)
    if hp.smooth and (not (rounds and unit in NOISED) or mechanism == "parameters"):
        raise InputError("smooth", True, "is for noisy answers that are bought in rounds")
    if hp.num_queries is not None and not rounds:
        raise InputError("num_queries", hp.num_queries, "are bought in rounds; see num_rounds")
    if rounds:
        _check_rounds(hp)
    elif hp.prior and not hp.generator.warm_start_steps:
        allowed = "without rounds it only warm-starts the generator; see generator.warm_start_steps"
        raise InputError("prior", dict(hp.prior), allowed)
    if hp.generator.warm_start_steps and not hp.prior:
        allowed = "a warm start needs images to imitate; see prior"
        given = hp.generator.warm_start_steps
        raise InputError("generator.warm_start_steps", given, allowed)
    if not rounds and not hp.generator.every:
        raise InputError("generator.every", 0, "without rounds the generator makes the queries")
    return hp


def _check_moments(hp: Settings):
    """Moments, the prior that draws from them, and what they need come together."""
    if not hp.moments:
        allowed = f"{GAUSSIAN} draws from moments of the private images; set moments.size and .norm"
        raise InputError("prior", dict(hp.prior), allowed)
    if not hp.prior.get(GAUSSIAN):
        allowed = f"are bought for the prior {GAUSSIAN}; give it a weight, or leave them out"
        raise InputError("moments", config.to_json(hp.moments), allowed)
    if hp.privacy_unit != "record_dp_teacher":
        allowed = "are bought with 'record_dp_teacher', whose ledger counts records as they do"
        raise InputError("moments", config.to_json(hp.moments), allowed)
    least, most = dp_settings.SIZES["norm"]
    if not least <= hp.moments.norm <= most:
        raise InputError("moments.norm", hp.moments.norm, f"must be from {least:g} to {most:g}")
    if hp.dataset is None:
        raise InputError("dataset", None, "is required with moments: it has the private images")
    if hp.epsilon is None:
        allowed = "is required with moments: of the teacher and the moments together"
        raise InputError("epsilon", None, allowed)


def _check_rounds(hp: Settings):
    rounds, size = hp.num_rounds, hp.batch_size
    if hp.num_queries is None:
        raise InputError("num_queries", None, "is required where there are rounds")
    if hp.num_queries % (rounds * size):
        allowed = f"must be a multiple of num_rounds · batch_size = {rounds * size}"
        raise InputError("num_queries", hp.num_queries, allowed)
    if hp.num_steps % rounds:
        allowed = f"must be a multiple of the {rounds} rounds"
        raise InputError("num_steps", hp.num_steps, allowed)


def release(hp: Settings, *, num_teachers: int, num_examples: int | None):
    """What one release of the run is, or None where no noise is drawn.

    Raises InputError where the claim cannot be made.
    """
    unit = hp.privacy_unit
    if unit != "none":
        check_delta(hp.delta, num_examples)
    if unit not in NOISED:
        return None
    answers, shared = hp.mechanism == "answers", hp.mechanism in _OF_ENSEMBLES
    released = {
        "param": "gradient_sum",
        "logit": "query_gradients",
        "answers": "mean_answer",
        "parameters": "mean_parameters",
    }
    return Release(
        unit,
        released[hp.mechanism],
        1 if hp.mechanism == "parameters" else hp.batch_size,
        norm=None if answers else hp.norm,
        num_teachers=num_teachers if shared else None,
        mode=hp.bound,
        num_examples=num_examples,
    )

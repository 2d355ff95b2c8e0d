"""What a conversion can be told: which settings go together, and what the others are told."""

import math

import pytest

from distill_core import config
from distill_core.config import InputError
from dpdfd import settings
from dpdfd.privacy import units

PARAM = {
    "teacher": "runs/teacher", "model": "cnn", "learning_rate": 0.1, "batch_size": 16,
    "num_steps": 8, "privacy_unit": "query", "mechanism": "param", "epsilon": 1.0,
}  # fmt: skip
LOGIT = {**PARAM, "mechanism": "logit"}
ROUNDS = {**LOGIT, "num_rounds": 2, "num_queries": 64}
ANSWERS = {**ROUNDS, "privacy_unit": "record_ensemble", "mechanism": "answers"}
PUBLIC = {**PARAM, "privacy_unit": "none", "mechanism": "none", "epsilon": None}
DP_TEACHER = {**PUBLIC, "privacy_unit": "record_dp_teacher"}
SOFT = {
    **DP_TEACHER, "num_rounds": 2, "num_queries": 64, "loss": "cross_entropy", "temperature": 4.0,
}  # fmt: skip
MOMENTS = {
    **SOFT, "dataset": "digits", "epsilon": 1.0, "moments": {"size": 3, "norm": 1.0},
    "prior": {"strokes": 1.0, "dp_gaussian": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("given", [PARAM, LOGIT, ROUNDS, ANSWERS, PUBLIC, DP_TEACHER, SOFT])
def test_defaults_fill_what_is_not_given_also_in_the_generators_group(given):
    found = settings.validate({**given, "generator": {"width": 3}})
    assert (found.generator.width, found.generator.latent_size) == (3, 100)
    assert settings.validate(config.to_json(found)) == found
    assert not found.prior


@pytest.mark.parametrize(
    ("given", "changes", "field"),
    [
        (PARAM, {"epsilon": 0.0}, "epsilon"),
        (PARAM, {"epsilon": None}, "epsilon"),
        (PUBLIC, {"epsilon": 1.0}, "epsilon"),
        (DP_TEACHER, {"epsilon": 1.0}, "epsilon"),
        (PARAM, {"delta": 0.0}, "delta"),
        (PARAM, {"norm": 0.0}, "norm"),
        (PARAM, {"norm": 1e-300}, "norm"),  # smaller than float32 holds
        (PARAM, {"noise_seed": 2**32}, "noise_seed"),
        (PARAM, {"privacy_unit": "record"}, "privacy_unit"),
        (PARAM, {"mechanism": "answers"}, "mechanism"),
        (PARAM, {"mechanism": "none"}, "mechanism"),
        (PARAM, {"privacy_unit": "record_single", "mechanism": "answers"}, "mechanism"),
        (ANSWERS, {"mechanism": "logit"}, "mechanism"),
        (PUBLIC, {"mechanism": "param"}, "mechanism"),
        (DP_TEACHER, {"mechanism": "logit"}, "mechanism"),
        (PARAM, {"guide": "teacher"}, "guide"),
        (ANSWERS, {"guide": "teacher"}, "guide"),
        ({**PARAM, "privacy_unit": "record_single"}, {"guide": "teacher"}, "guide"),
        (PARAM, {"num_rounds": 2, "num_queries": 64}, "num_rounds"),
        (ANSWERS, {"num_rounds": 0}, "num_rounds"),
        (PARAM, {"num_queries": 64}, "num_queries"),
        (ROUNDS, {"num_queries": None}, "num_queries"),
        (ROUNDS, {"num_queries": 48}, "num_queries"),
        (ROUNDS, {"num_steps": 9}, "num_steps"),
        (ROUNDS, {"candidates": 0}, "candidates"),
        (ROUNDS, {"prior": {"flowers": 1.0}}, "prior.flowers"),
        (ROUNDS, {"prior": {"strokes": -1.0}}, "prior.strokes"),
        (ROUNDS, {"prior_extent": (0.0, 1.0)}, "prior_extent"),
        (PARAM, {"prior": {"strokes": 1.0}}, "prior"),
        (PARAM, {"generator": {"warm_start_steps": 5}}, "generator.warm_start_steps"),
        (PARAM, {"generator": {"depth": 2}}, "generator.depth"),
        (PARAM, {"generator": {"balance": -1.0}}, "generator.balance"),
        (PARAM, {"generator": {"every": 0}}, "generator.every"),
        (LOGIT, {"smooth": True}, "smooth"),
        (PUBLIC, {"smooth": True, "num_rounds": 2, "num_queries": 64}, "smooth"),
        (PARAM, {"loss": "mse"}, "loss"),
        (ROUNDS, {"temperature": 2.0}, "temperature"),  # brier
        (PARAM, {"temperature": 2.0, "loss": "cross_entropy"}, "temperature"),  # without rounds
        (PUBLIC, {"temperature": 0.5}, "temperature"),
        (SOFT, {"temperature": 0.0}, "temperature"),
        (SOFT, {"loss": "brier"}, "temperature"),
        (MOMENTS, {"moments": None}, "prior"),
        (MOMENTS, {"prior": {"strokes": 1.0}}, "moments"),
        (MOMENTS, {"privacy_unit": "none"}, "moments"),
        (MOMENTS, {"privacy_unit": "query", "mechanism": "logit"}, "moments"),
        (MOMENTS, {"dataset": None}, "dataset"),
        (MOMENTS, {"epsilon": None}, "epsilon"),
        (MOMENTS, {"epsilon": 0.0}, "epsilon"),
        (MOMENTS, {"moments": {}}, "moments"),
        (MOMENTS, {"moments": {"size": 3}}, "moments.norm"),
        (MOMENTS, {"moments": {"size": 0, "norm": 1.0}}, "moments.size"),
        (MOMENTS, {"moments": {"size": 3, "norm": -1.0}}, "moments.norm"),
        (MOMENTS, {"prior": {"dp_gaussian": -1.0}}, "prior.dp_gaussian"),
        (PARAM, {"noise_multiplier": 1.0}, "noise_multiplier"),
        (PARAM, {"init_from": "runs/student"}, "init_from"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(given, changes, field):
    settings.validate(given)  # nothing else is
    with pytest.raises(InputError) as caught:
        settings.validate({**given, **changes})
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_a_guiding_teacher_is_for_runs_that_claim_nothing_or_inherit_all():
    for given in (PUBLIC, DP_TEACHER):
        assert settings.validate({**given, "guide": "teacher"}).guide == "teacher"
    with pytest.raises(InputError, match="without noise, so no ε holds"):
        settings.validate({**LOGIT, "guide": "teacher"})


@pytest.mark.parametrize(
    ("given", "bound", "moves", "count"),
    [
        (PARAM, "clip", 2 * 0.5, 1),
        (LOGIT, "clip", 2 * 0.5, 1),
        ({**LOGIT, "norm": 3.0}, "clip", math.sqrt(2), 1),
        ({**LOGIT, "norm": 3.0}, "normalize", 6.0, 1),
        ({**PARAM, "privacy_unit": "record_single"}, "normalize", 2 * 16 * 0.5, 1),
        ({**LOGIT, "privacy_unit": "record_single"}, "normalize", 2 * 0.5, 16),
        (ANSWERS, "normalize", math.sqrt(2) / 20, 16),
    ],
)
def test_a_release_moves_as_far_as_its_unit_and_mechanism_let_it(given, bound, moves, count):
    hp = settings.validate({"norm": 0.5, "bound": bound, **given})
    entry = settings.release(hp, num_teachers=20, num_examples=1000).charge(2.0)
    assert entry.sensitivity == pytest.approx(moves, rel=2e-4)
    assert entry.sensitivity > moves
    unit = units.UNITS[given["privacy_unit"]]
    assert (entry.count, entry.unit, entry.adjacency) == (count, *unit)


def test_delta_stays_below_one_over_the_number_of_records_wherever_there_is_a_claim():
    for given in (PARAM, ANSWERS, DP_TEACHER):
        hp = settings.validate({**given, "delta": 0.01})
        found = settings.release(hp, num_teachers=1, num_examples=99)
        assert (found is None) == (given is DP_TEACHER)
        for records in (100, 101):
            with pytest.raises(InputError, match="^delta: got 0.01; must be below 1/N = 0.0"):
                settings.release(hp, num_teachers=1, num_examples=records)
    public = settings.validate({**PUBLIC, "delta": 0.01})
    assert settings.release(public, num_teachers=1, num_examples=100) is None

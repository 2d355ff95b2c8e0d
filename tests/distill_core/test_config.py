"""A config becomes checked values, or one line: field, value, what is allowed."""

import json
import re

import numpy as np
import pytest
from ml_collections import config_dict

from distill_core import config
from distill_core.config import InputError

GIVEN = {
    "dataset": "digits",
    "model": "cnn",
    "learning_rate": 0.1,
    "batch_size": 16,
    "num_steps": 4,
}


@config.settings
class Settings(config.Training):
    omega: float = config.number(0.0, help="weight of a term")
    temperature: float = config.number(0.0, above=True, default=4.0)
    alpha: float = config.number(0.0, 1.0, default=0.9)
    seeds: tuple = config.sequence(config.integer(0), default=(1,))
    student: config.Model | None = config.group(config.Model, default=None)


def validate(**changes):
    return config.validate({**GIVEN, "omega": 0.04, **changes}, Settings)


def test_defaults_are_filled_in_and_types_are_made_right():
    found = validate(omega=1, seeds=[3, 4], model_kwargs={"widths": [8, 16]})
    assert (found.omega, type(found.omega)) == (1.0, float)
    assert found.seeds == (3, 4)
    assert found.model_kwargs == {"widths": (8, 16)}
    assert (found.alpha, found.data_dir, found.schedule) == (0.9, None, "constant")


def test_settings_are_values_that_survive_json():
    found = validate(model_kwargs={"widths": [8, 16]}, student={"model": "cnn"})
    again = validate(model_kwargs={"widths": (8, 16)}, student={"model": "cnn"})
    assert (found, hash(found)) == (again, hash(again))
    stored = json.loads(json.dumps(config.to_json(found)))
    assert config.validate(stored, Settings) == found


def test_a_group_is_checked_by_its_own_fields():
    assert validate(student={"model": "cnn"}).student == config.Model(model="cnn")
    assert validate().student is None
    for given, field in (({"modl": 1}, "student.modl"), ({}, "student"), ("cnn", "student")):
        with pytest.raises(InputError) as error:
            validate(student=given)
        assert error.value.field == field


def test_a_config_dict_is_read_like_a_dict():
    settings = config_dict.ConfigDict({**GIVEN, "omega": 0.04, "model_kwargs": {"hidden": 3}})
    assert config.validate(settings.lock(), Settings) == validate(model_kwargs={"hidden": 3})


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("omega", ["abc", -0.001, float("nan"), float("inf"), 10**400, True, None, (1.0,)]),
        ("temperature", [0, -1.0]),
        ("alpha", [1.0001, -0.1]),
        ("drop_factor", [0.0]),
        ("num_steps", [1.5, -1, True]),
        ("batch_size", ["16"]),
        ("seed", [-1, 2**32]),
        ("dataset", ["", None]),
        ("data_dir", [3]),
        ("optimizer", ["lion"]),
        ("flip", [1]),
        ("seeds", [3, (1, -1)]),
        ("drop_steps", [(0, 3), (3, 3), (4, 3)]),
        ("model_kwargs", [(1, 2), {"dtype": np.float32}]),
    ],
)
def test_a_wrong_value_is_refused_by_its_field_and_the_ends_of_a_range_are_not(field, values):
    for value in values:
        with pytest.raises(InputError, match=f"^{field}: got {re.escape(repr(value))}; must "):
            validate(**{field: value})
    ends = {"omega": [0], "alpha": [0, 1], "temperature": [1e-3], "seed": [2**32 - 1]}
    for value in ends.get(field, []):
        assert getattr(validate(**{field: value}), field) == value


def test_an_error_says_what_is_allowed_and_what_the_field_means():
    with pytest.raises(InputError, match=r"must be a number at least 0 \(weight of a term\)$"):
        validate(omega="wrong")


def test_a_step_schedule_needs_steps_to_drop_at():
    with pytest.raises(InputError, match=r"drop_steps: got \(\); schedule 'step' needs"):
        validate(schedule="step")
    assert validate(schedule="step", drop_steps=[2, 3]).drop_steps == (2, 3)


def test_unknown_names_are_answered_with_the_nearest_known_one():
    with pytest.raises(InputError, match="omgea: got 1; no such field; did you mean omega?"):
        validate(omgea=1)
    with pytest.raises(InputError, match="known: accumulate_steps, alpha, .*, omega"):
        validate(q=1)
    with pytest.raises(InputError, match="^omega: got None; is required"):
        config.validate(GIVEN, Settings)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("-1e-3", -0.001), ("7", 7), ("1,2", (1, 2)), ("{'a': 1}", {"a": 1})],
        *[("False", False), ("none", None), ("runs/plain", "runs/plain"), ("2 + 2", "2 + 2")],
        ("", ""),
    ],
)
def test_literals_of_the_command_line(text, value):
    found = config.literal(text)
    assert (found, type(found)) == (value, type(value))


def test_a_resumed_run_may_change_its_length_and_cadence_only():
    old = config.to_json(validate(seeds=(1, 2)))
    longer = {**old, "num_steps": 9, "log_every": 1, "eval_every": 2, "save_every": 3}
    config.check_resume({**old, "seeds": [1, 2]}, longer)  # JSON has lists
    changes = {"omega": 0.05, "seed": 1, "model_kwargs": {"hidden": 3}, "seeds": (2, 1)}
    for field, value in changes.items():
        with pytest.raises(InputError, match=f"^{field}: got {re.escape(repr(value))}; this run"):
            config.check_resume(old, {**old, field: value})
    groups = ({"dp": {"norm": norm, "epsilon": 1.0}} for norm in (1.0, 2.0))
    with pytest.raises(InputError, match=r"^dp.norm: got 2.0; .*started with 1.0"):
        config.check_resume(*groups)
    with pytest.raises(InputError, match="^teacher: got None; .*started with 'runs/plain'"):
        config.check_resume({**old, "teacher": "runs/plain"}, old)

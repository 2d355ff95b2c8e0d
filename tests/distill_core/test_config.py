"""A config becomes checked values, or one line: field, value, what is allowed."""

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
FIELDS = {
    **config.TRAINING,
    "omega": config.number(0.0),
    "temperature": config.number(0.0, above=True, default=4.0),
    "alpha": config.number(0.0, 1.0, default=0.9),
    "seeds": config.sequence(config.integer(0), default=(1,)),
}


def validate(**changes):
    return config.validate({**GIVEN, "omega": 0.04, **changes}, FIELDS)


def test_defaults_are_filled_in_and_types_are_made_right():
    found = validate(omega=1, seeds=[3, 4], model_kwargs={"widths": [8, 16]})
    assert list(found) == list(FIELDS)
    assert (found["omega"], type(found["omega"])) == (1.0, float)
    assert found["seeds"] == (3, 4)
    assert found["model_kwargs"] == {"widths": (8, 16)}
    assert (found["alpha"], found["data_dir"], found["schedule"]) == (0.9, None, "constant")


def test_a_config_dict_is_read_like_a_dict():
    settings = config_dict.ConfigDict({**GIVEN, "omega": 0.04, "model_kwargs": {"hidden": 3}})
    assert config.validate(settings.lock(), FIELDS) == validate(model_kwargs={"hidden": 3})


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("omega", "abc", "must be a number at least 0"),
        ("omega", -0.001, "at least 0"),
        ("omega", float("nan"), "at least 0"),
        ("omega", float("inf"), "at least 0"),
        ("omega", 10**400, "at least 0"),
        ("omega", True, "must be a number"),
        ("omega", None, "must be a number"),
        ("omega", (1.0,), "must be a number"),
        ("temperature", 0, "above 0"),
        ("temperature", -1.0, "above 0"),
        ("alpha", 1.0001, "in [0, 1]"),
        ("alpha", -0.1, "in [0, 1]"),
        ("drop_factor", 0.0, "in (0, 1]"),
        ("num_steps", 1.5, "must be an integer of at least 1"),
        ("num_steps", 0, "at least 1"),
        ("num_steps", True, "an integer"),
        ("batch_size", "16", "an integer"),
        ("seed", -1, "in [0, 4294967295]"),
        ("seed", 2**32, "in [0, 4294967295]"),
        ("dataset", "", "a string that is not empty"),
        ("dataset", None, "a string"),
        ("data_dir", 3, "a string"),
        ("optimizer", "lion", "one of sgd, adam"),
        ("flip", 1, "True or False"),
        ("seeds", 3, "a tuple"),
        ("seeds", (1, -1), "each item must be an integer of at least 0"),
        ("drop_steps", (0, 3), "at least 1"),
        ("drop_steps", (3, 3), "must increase"),
        ("drop_steps", (4, 3), "must increase"),
        ("model_kwargs", (1, 2), "a group of names and plain values"),
        ("model_kwargs", {"dtype": np.float32}, "plain values"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(field, value, allowed):
    with pytest.raises(InputError) as error:
        validate(**{field: value})
    assert error.value.field == field
    assert str(error.value).startswith(f"{field}: got {value!r}; ")
    assert allowed in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("omega", 0), ("alpha", 0), ("alpha", 1), ("temperature", 1e-3), ("seed", 2**32 - 1)],
)
def test_the_ends_of_a_range_are_in_it(field, value):
    assert validate(**{field: value})[field] == value


def test_a_step_schedule_needs_steps_to_drop_at():
    with pytest.raises(InputError, match=r"drop_steps: got \(\); schedule 'step' needs"):
        validate(schedule="step")
    assert validate(schedule="step", drop_steps=[2, 3])["drop_steps"] == (2, 3)


def test_unknown_names_are_answered_with_the_nearest_known_one():
    with pytest.raises(InputError, match="omgea: got 1; no such field; did you mean omega?"):
        validate(omgea=1)
    with pytest.raises(InputError, match="no such field; known: alpha, batch_size, .*, omega"):
        validate(q=1)


def test_a_missing_field_is_asked_for():
    with pytest.raises(InputError, match="omega: got None; is required; must be a number"):
        config.validate(GIVEN, FIELDS)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.04", 0.04),
        ("-1e-3", -0.001),
        ("7", 7),
        ("1,2", (1, 2)),
        ("(1, 2)", (1, 2)),
        ("{'a': 1}", {"a": 1}),
        ("true", True),
        ("False", False),
        ("none", None),
        ("group", "group"),
        ("runs/plain", "runs/plain"),
        ("2 + 2", "2 + 2"),
        ("", ""),
    ],
)
def test_literals_of_the_command_line(text, value):
    found = config.literal(text)
    assert (found, type(found)) == (value, type(value))


def test_a_name_on_the_command_line_stays_as_it_was_typed():
    assert config.text().parse("2024") == "2024"
    assert config.text().parse("None") == "None"
    assert config.text(default=None).parse("None") is None
    assert config.choice("1", "2").parse("1") == "1"


def test_a_resumed_run_may_change_its_length_and_cadence_only():
    old = validate(seeds=(1, 2))
    longer = {**old, "num_steps": 9, "log_every": 1, "eval_every": 2, "save_every": 3}
    config.check_resume({**old, "seeds": [1, 2]}, longer)  # JSON has lists
    changes = {"omega": 0.05, "seed": 1, "model_kwargs": {"hidden": 3}, "seeds": (2, 1)}
    for field, value in changes.items():
        with pytest.raises(InputError) as error:
            config.check_resume(old, {**old, field: value})
        assert str(error.value).startswith(f"{field}: got {value!r}; this run was started with")


def test_a_run_from_before_a_field_existed_is_resumed_unless_the_field_is_used():
    new = validate()
    old = {name: value for name, value in new.items() if name != "rotation"}
    config.check_resume(old, new)
    config.check_resume(new, old)
    with pytest.raises(InputError, match="^rotation: got 20.0; .*started with 0.0"):
        config.check_resume(old, {**new, "rotation": 20.0})


def test_a_resume_with_two_changes_always_names_the_same():
    old = validate()
    new = {**old, "omega": 1.0, "dataset": "other", "seed": 3}
    with pytest.raises(InputError, match="^dataset: "):
        config.check_resume(old, new)
    with pytest.raises(InputError, match="^teacher: got None; .*started with 'runs/plain'"):
        config.check_resume({**old, "teacher": "runs/plain"}, old)


def test_an_error_is_one_line_whatever_was_given():
    error = InputError("model", "a\nb", "must be\none   line")
    assert str(error) == r"model: got 'a\nb'; must be one line"
    assert (error.field, error.given, error.allowed) == ("model", "a\nb", "must be\none   line")

"""A config file and what the command line changes of it."""

import textwrap

import pytest

from distill_core import config
from distill_core.config import InputError
from distill_core.runtime import config_file

FIELDS = {
    **config.TRAINING,
    "teacher": config.text(),
    "omega": config.number(0.0),
    "student_batch_size": config.integer(1),
}


@pytest.fixture
def write(tmp_path):
    def write(text, name="config.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


@pytest.fixture
def path(write):
    return write(
        """
        from ml_collections import config_dict

        def get_config(arg=""):
            config = config_dict.ConfigDict()
            config.omega = 0.04
            config.batch_size = 64
            config.student_batch_size = config.get_ref("batch_size")
            config.model_kwargs = config_dict.ConfigDict({"widths": (16, 32), "hidden": 64})
            config.num_steps = 20 if arg == "smoke" else 450
            return config.lock()
        """
    )


def read(path, *arguments):
    overrides, others = config_file.split(arguments)
    assert not others
    settings = config_file.read(path, overrides, FIELDS)
    assert settings.is_locked
    return settings.to_dict()


def test_the_file_without_overrides(path):
    assert read(path) == {
        "omega": 0.04,
        "batch_size": 64,
        "student_batch_size": 64,
        "model_kwargs": {"widths": (16, 32), "hidden": 64},
        "num_steps": 450,
    }


def test_what_follows_the_colon_goes_to_get_config(path):
    assert read(f"{path}:smoke")["num_steps"] == 20
    assert read(f"{path}:")["num_steps"] == 450


def test_any_field_of_the_binary_can_be_given_whether_the_file_has_it_or_not(path):
    found = read(
        path,
        "--config.omega=1",
        "--config.data_dir=2024",
        "--config.teacher=runs/plain",
        "--config.num_validation=100",
        "--config.drop_steps=80,120",
        "--config.flip=true",
        "--config.init_from=None",
    )
    assert found["omega"] == 1
    assert found["data_dir"] == "2024"
    assert found["teacher"] == "runs/plain"
    assert found["num_validation"] == 100
    assert found["drop_steps"] == (80, 120)
    assert found["flip"] is True
    assert found["init_from"] is None


def test_a_dot_reaches_into_a_group(path):
    changes = ["--config.model_kwargs.hidden=32", "--config.model_kwargs.norm=group"]
    changes += ["--config.model_kwargs.widths=(4,)"]
    assert read(path, *changes)["model_kwargs"] == {"hidden": 32, "norm": "group", "widths": (4,)}
    whole = read(path, "--config.model_kwargs={'hidden': 3}")
    assert whole["model_kwargs"] == {"hidden": 3}


def test_a_group_that_the_file_lacks_is_made(write):
    path = write("from ml_collections import ConfigDict\ndef get_config(arg): return ConfigDict()")
    assert read(path, "--config.model_kwargs.a.b=1") == {"model_kwargs": {"a": {"b": 1}}}


def test_fields_that_refer_to_another_follow_it(path):
    assert read(path, "--config.batch_size=8")["student_batch_size"] == 8


def test_the_last_of_two_overrides_counts_and_a_space_is_as_good_as_an_equals_sign(path):
    assert read(path, "--config.omega=1", "--config.omega", "-2")["omega"] == -2


def test_the_other_arguments_are_left_in_order():
    overrides, others = config_file.split(
        ["--config", "a.py:smoke", "--config.omega=1", "--workdir=w", "-config.seed", "3", "x"]
    )
    assert overrides == [("omega", "1"), ("seed", "3")]
    assert others == ["--config", "a.py:smoke", "--workdir=w", "x"]


@pytest.mark.parametrize("arguments", [["--config.omega"], ["--config.omega", "--workdir=w"]])
def test_an_override_without_a_value_is_refused(arguments):
    with pytest.raises(InputError, match="omega: got None; needs a value: --config.omega=VALUE"):
        config_file.split(arguments)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.omgea=1", "omgea: got '1'; no such field; did you mean omega?"),
        ("--config.batch-size=1", "batch-size: got '1'; no such field; did you mean batch_size?"),
        ("--config.modl_kwargs.hidden=1", "no such field; did you mean model_kwargs?"),
    ],
)
def test_an_unknown_field_is_answered_with_the_nearest(path, argument, message):
    with pytest.raises(InputError) as error:
        read(path, argument)
    assert message in str(error.value)


def test_a_group_in_place_of_a_number_is_refused_by_the_field(path):
    found = read(path, "--config.omega.x=1")
    with pytest.raises(InputError, match=r"omega: got \{'x': 1\}; must be a number"):
        config.validate({"omega": found["omega"]}, {"omega": FIELDS["omega"]})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("notes.txt", "omega = 1", "must be a Python file that defines get_config(arg)"),
        ("c.py", "omega = 1", "defines no get_config"),
        ("c.py", "get_config = 3", "defines no get_config"),
        ("c.py", "x = 1\ndef get_config(:", "fails at line 2 with SyntaxError"),
        ("c.py", "import nosuchmodule", "fails at line 1 with ModuleNotFoundError: No module"),
        (
            "c.py",
            "def get_config(arg):\n    if arg != 'smoke':\n        raise ValueError('no\\nsuch')",
            "fails at line 3 with ValueError: no such",
        ),
        ("c.py", "def get_config():\n    return {'omega': 1}", "a ml_collections ConfigDict, and"),
        ("c.py", "def get_config(a, b):\n    pass", "missing 1 required positional argument"),
        ("c.py", "\0", "null bytes"),
    ],
)
def test_a_file_that_is_no_config_is_refused_with_the_reason(write, name, text, message):
    path = write(text, name)
    with pytest.raises(InputError) as error:
        read(path)
    assert error.value.field == "config"
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_answered_with_its_nearest_neighbour(path):
    with pytest.raises(InputError, match=r"no such file; did you mean config\.py\?"):
        read(path.replace("config.py", "confg.py"))
    with pytest.raises(InputError, match="no such file; .*nowhere holds no config"):
        read(path.replace("config.py", "nowhere/config.py"))
    with pytest.raises(InputError, match="must be a Python file"):
        read(path.removesuffix("/config.py"))


def test_an_argument_for_a_file_that_takes_none_is_refused(write):
    path = write("from ml_collections import ConfigDict\ndef get_config(): return ConfigDict()")
    assert read(path) == {}
    with pytest.raises(InputError, match="get_config.. takes no argument, not 'smoke'"):
        read(f"{path}:smoke")


def test_reading_leaves_nothing_beside_the_file(path, tmp_path):
    read(path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.py"]

"""A config file and what the command line changes of it."""

import os
import textwrap

import pytest

from distill_core import config
from distill_core.config import InputError
from distill_core.runtime import config_file


@config.settings
class Settings(config.Training):
    teacher: str = config.text()
    omega: float = config.number(0.0)
    student: config.Training = config.group(config.Training)


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
            config.student = {"batch_size": config.get_ref("batch_size")}
            config.model_kwargs = config_dict.ConfigDict({"widths": (16, 32), "hidden": 64})
            config.num_steps = 20 if arg == "smoke" else 450
            return config.lock()
        """
    )


def read(path, *arguments):
    overrides, others = config_file.split(["--config", path, *arguments, "--workdir=w", "x"])
    assert others == ["--config", path, "--workdir=w", "x"]
    settings = config_file.read(path, overrides, Settings)
    assert settings.is_locked
    return settings.to_dict()


def test_the_file_without_overrides_and_with_an_argument(path, tmp_path):
    expected = {
        "omega": 0.04,
        "batch_size": 64,
        "student": {"batch_size": 64},
        "model_kwargs": {"widths": (16, 32), "hidden": 64},
        "num_steps": 450,
    }
    assert read(path) == read(f"{path}:") == expected
    assert read(f"{path}:smoke") == {**expected, "num_steps": 20}
    assert [p.name for p in tmp_path.iterdir()] == ["config.py"]  # nothing is left beside it


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        ("--config.omega=1", "omega", 1.0),
        ("--config.omega=1 --config.omega -2", "omega", -2.0),  # the last one counts
        ("--config.data_dir=2024", "data_dir", "2024"),
        ("--config.teacher=runs/plain", "teacher", "runs/plain"),
        ("--config.num_validation=100", "num_validation", 100),
        ("--config.drop_steps=80,120", "drop_steps", (80, 120)),
        ("--config.flip=true", "flip", True),
        ("--config.init_from=None", "init_from", None),
        ("--config.batch_size=8", "student", {"batch_size": 8}),  # which refers to it
        ("--config.student.init_from=2024", "student", {"batch_size": 64, "init_from": "2024"}),
    ],
)
def test_any_field_of_the_binary_can_be_given(path, arguments, field, value):
    found = read(path, *arguments.split())[field]
    assert (found, type(found)) == (value, type(value))


def test_a_dot_reaches_into_a_group(path):
    changes = ["--config.model_kwargs.hidden=32", "--config.model_kwargs.norm=group"]
    changes += ["--config.model_kwargs.widths=(4,)"]
    assert read(path, *changes)["model_kwargs"] == {"hidden": 32, "norm": "group", "widths": (4,)}
    whole = read(path, "--config.model_kwargs={'hidden': 3}")
    assert whole["model_kwargs"] == {"hidden": 3}


def test_a_group_that_the_file_lacks_is_made_and_a_file_may_take_no_argument(write):
    path = write("from ml_collections import ConfigDict\ndef get_config(): return ConfigDict()")
    assert read(path, "--config.model_kwargs.a.b=1") == {"model_kwargs": {"a": {"b": 1}}}
    with pytest.raises(InputError, match="^config: .*'smoke'"):
        read(f"{path}:smoke")


def test_a_config_may_be_a_plain_dict_and_import_its_neighbour(write, tmp_path):
    for folder, omega in (("a", 1.0), ("b", 2.0)):
        (tmp_path / folder).mkdir()
        write(f"def get_config(): return {{'omega': {omega}}}", f"{folder}/base.py")
        path = write(
            """
            import base

            def get_config():
                return {**base.get_config(), "model_kwargs": {"hidden": 3}}
            """,
            f"{folder}/config.py",
        )
        path = os.path.relpath(path)
        found = read(path, "--config.model_kwargs.norm=group")
        assert found == {"omega": omega, "model_kwargs": {"hidden": 3, "norm": "group"}}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config.omgea=1"], "omgea: .*did you mean omega"),
        (["--config.batch-size=1"], "batch-size: .*did you mean batch_size"),
        (["--config.modl_kwargs.hidden=1"], "modl_kwargs.*did you mean model_kwargs"),
        (["--config.student.batch-size=1"], "student.batch-size: .*did you mean batch_size"),
        (["--config.omega"], "omega: .*--config.omega=VALUE"),  # a flag follows
        (["--config."], "config: .*--config.FIELD=VALUE"),
    ],
)
def test_an_unknown_field_and_one_without_a_value_are_refused(path, arguments, named):
    with pytest.raises(InputError, match=f"^{named}"):
        read(path, *arguments)


def test_a_group_is_not_written_with_a_dot_and_a_config_may_have_a_dataclass(write):
    dotted = write("def get_config(): return {'student.omega': 1.0}")
    with pytest.raises(
        InputError, match=r"^student.omega: got 1.0; .*{\"student\": {\"omega\": …}}"
    ):
        read(dotted)
    path = write(
        """
        from __future__ import annotations
        import dataclasses

        @dataclasses.dataclass
        class Scales:
            omega: float = 2.0

        def get_config():
            return vars(Scales())
        """
    )
    assert read(path) == {"omega": 2.0}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("notes.txt", "omega = 1", "Python file"),
        ("c.py", "omega = 1", "no get_config"),
        ("c.py", "get_config = 3", "no get_config"),
        ("c.py", "x = 1\ndef get_config(:", "line 2 with SyntaxError"),
        ("c.py", "import nosuchmodule", "line 1 with ModuleNotFoundError"),
        (
            "c.py",
            "def get_config(arg):\n    if arg != 'smoke':\n        raise ValueError('no\\nsuch')",
            "line 3 with ValueError: no such",
        ),
        ("c.py", "def get_config():\n    return [('omega', 1)]", "ConfigDict"),
        ("c.py", "def get_config():\n    return {3: 1}", "3 as a field's name"),
        ("c.py", "def get_config(a, b):\n    pass", "positional argument"),
        ("c.py", "\0", "null bytes"),
    ],
)
def test_a_file_that_is_no_config_is_refused_with_the_reason(write, name, text, reason):
    with pytest.raises(InputError, match=f"^config: .*{reason}"):
        read(write(text, name))
    with pytest.raises(InputError, match="^config: .*nowhere"):
        read(write(text, name).replace(name, "nowhere/config.py"))

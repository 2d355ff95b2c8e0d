"""The tutorials' commands run one after the other, as a reader types them, but shorter."""

import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from distill_core.config import InputError
from distill_core.runtime import config_file

ROOT = Path(__file__).parents[2]
_COMMAND = re.compile(r"^python -m (\S+)((?:[^\n\\]|\\\n)*)", re.MULTILINE)
_FEW = 4  # steps


def _commands(page: str) -> list[tuple[str, list[str]]]:
    """(binary, arguments) of the commands in a page's blocks of code."""
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.M | re.S)
    return [
        (binary, shlex.split(rest.replace("\\\n", " "), comments=True))
        for block in blocks
        for binary, rest in _COMMAND.findall(block)
    ]


def _shortened(arguments: list[str]) -> list[str]:
    """The same with `:smoke`, where the config has it and no other argument, else a few steps."""
    if "--config" not in arguments:
        return arguments
    place = arguments.index("--config") + 1
    path = arguments[place]
    if ":" not in path:
        try:
            config_file.read(f"{path}:smoke", [], {})
            return [*arguments[:place], f"{path}:smoke", *arguments[place + 1 :]]
        except InputError:
            pass
    return arguments if path.endswith(":smoke") else [*arguments, f"--config.num_steps={_FEW}"]


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
@pytest.mark.parametrize("method", ["nasty", "swing", "dpdfd"])
def test_a_tutorials_commands_run_in_their_order(method, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    commands, ran = _commands(f"docs/tutorials/{method}.md"), set()
    assert len(commands) >= 5
    for binary, arguments in commands:
        short = tuple(_shortened(arguments))
        experiment = binary.endswith(".experiment")
        if "--preview" in short or (experiment and binary in ran):  # the same, once shortened
            continue
        importlib.import_module(binary)
        monkeypatch.setattr(sys, "argv", [binary, *short])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(binary, run_name="__main__")
        assert ended.value.code in (None, 0), (binary, short, capsys.readouterr())
        ran.add(binary)

"""Every command that the documentation shows is accepted by its binary."""

import ast
import importlib
import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill_core.config import InputError
from distill_core.runtime import cli, config_file

ROOT = Path(__file__).parents[1]
PACKAGES = ("distill_core", "nasty", "swingdistill", "dpdfd")
# One line, or several that end in a backslash; a backtick ends a command in running text.
_ARGUMENTS = r"((?:[^\n`\\]|\\\n)*)"
_BINARY = re.compile(rf"python -m ((?:{'|'.join(PACKAGES)})\b[\w.]*\w){_ARGUMENTS}")
_BENCHMARK = re.compile(rf"python (benchmarks/\w+\.py){_ARGUMENTS}")
_LOOP = re.compile(r"for (\w+) in ([^;\n]+); do\n(.*?)\ndone", re.DOTALL)
_MAKE = re.compile(r"(?:^|`|\$ )(?:[A-Z]+=\S+ )*make ([a-z-]+)", re.MULTILINE)
_CONFIG = re.compile(r"\bconfigs/\w+/\w+\.py(?::[\w.]*\w)?")
# Where a binary first reads something: by then it has accepted its flags and settings.
_READERS = (
    ("distill_core.data", "load_dataset"),
    ("distill_core.data.text.corpus", "load_corpus"),
    ("distill_core.data.text.lines", "read_numbered"),
    ("distill_core.checkpoint", "load_model"),
    ("distill_core.checkpoint", "find"),
    ("distill_core.training.teacher_cache", "read"),
)


class _AcceptedError(Exception):
    """The binary began to read data or checkpoints."""


def _texts() -> Iterator[tuple[str, str]]:
    """(file, text) of all documentation; of code its module docstrings."""
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.ipynb")]
    pages = [path for path in pages if "_build" not in path.parts]
    for path in (*ROOT.glob("*.md"), *(path for path in pages if path.suffix == ".md")):
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    for path in (path for path in pages if path.suffix == ".ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield path.relative_to(ROOT).as_posix(), "\n".join("".join(c["source"]) for c in cells)
    for folder in (*PACKAGES, "configs", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            yield path.relative_to(ROOT).as_posix(), docstring or ""


def _unrolled(loop: re.Match) -> str:
    variable, values, body = loop.groups()
    return "\n".join(body.replace(f"${variable}", value) for value in values.split())


def _commands(text: str, pattern: re.Pattern) -> list[tuple[str, tuple[str, ...]]]:
    """(what is run, arguments) of each command; optional arguments in brackets count as given."""
    found = []
    for target, rest in pattern.findall(_LOOP.sub(_unrolled, text)):
        rest = re.sub(r"\[(--[^\]]*)\]", r"\1", rest.replace("\\\n", " "))
        if rest.count('"') % 2:  # it closes what stands before the command, as in ssh "…"
            rest = rest.rpartition('"')[0]
        found.append((target, tuple(shlex.split(rest, comments=True))))
    return found


def _documented(pattern: re.Pattern) -> list:
    """A parameter per different command, named by the first file that shows it."""
    files = {}
    for file, text in sorted(_texts()):
        for command in _commands(text, pattern):
            files.setdefault(command, file)
    return [pytest.param(*each, id=f"{file}: {each[0]}") for each, file in files.items()]


@pytest.fixture
def run_binary(monkeypatch, tmp_path):
    """`run(binary, arguments)` goes as far as the first reading of data or of a checkpoint."""
    originals = [getattr(importlib.import_module(module), name) for module, name in _READERS]

    def stop(*args, **kwargs):
        raise _AcceptedError

    def run(binary: str, arguments: tuple[str, ...]):
        importlib.import_module(binary)
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] in PACKAGES:
                for attribute, value in list(vars(module).items()):
                    if any(value is original for original in originals):
                        monkeypatch.setattr(module, attribute, stop)
        monkeypatch.setattr(cli, "launch", lambda main: main(sys.argv[1:]))
        monkeypatch.setattr(sys, "argv", [binary, *arguments])
        monkeypatch.chdir(tmp_path)
        Path("configs").symlink_to(ROOT / "configs")
        Path("runs").mkdir()  # the checkout's, which holds earlier runs
        runpy.run_module(binary, run_name="__main__")
        raise AssertionError("the binary read nothing")

    return run


@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
@pytest.mark.parametrize(("binary", "arguments"), _documented(_BINARY))
def test_the_binary_accepts_the_documented_command(binary, arguments, run_binary, tmp_path, capsys):
    module = importlib.import_module(binary)
    if not arguments:  # the text only names the binary
        assert "__path__" not in vars(module) or (Path(module.__path__[0]) / "__main__.py").exists()
        return
    if "…" in arguments:  # part of a command: its flags exist
        with pytest.raises(SystemExit):
            run_binary(binary, ("--help",))
        known = set(re.findall(r"--\w+", capsys.readouterr().out))
        named = {re.match(r"--\w+|", each)[0] for each in arguments}
        assert named - {""} <= known
        return
    # There are no other hosts, and no bucket.
    arguments = [each.replace("gs://BUCKET", "runs") for each in arguments if each != "--multihost"]
    with pytest.raises((_AcceptedError, SystemExit)) as stopped:
        run_binary(binary, arguments)
    assert stopped.type is _AcceptedError or stopped.value.code in (None, 0)  # 0: of --help
    assert {path.name for path in tmp_path.iterdir()} == {"configs", "runs"}
    assert not any((tmp_path / "runs").iterdir())  # nothing is written


_DIGITS = "--config=configs/distill_core/digits.py"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
@pytest.mark.parametrize(
    ("command", "field"),
    [
        (f"python -m distill_core.train {_DIGITS}", "workdir"),
        (f"python -m distill_core.train {_DIGITS} --work_dir=runs/x", "work_dir"),
        (f"python -m distill_core.train {_DIGITS}:smoky --workdir=runs/x", "config"),
        (f"python -m distill_core.train {_DIGITS} --workdir runs/x --config.omega=1", "omega"),
        (f"python -m distill_core.train {_DIGITS} \\\n --workdir=runs/x --config.seed=-1", "seed"),
        ("python -m distill_core.train --config=configs/digits.py --workdir=runs/x", "config"),
        (f"python -m nasty.train {_DIGITS} --workdir=runs/x", "adversary"),
        ("python -m nasty.train --config=configs/nasty/digits.py --workdir=runs/x", "alpha"),
        ("python -m distill_core.release --checkpoint runs/x [--format=onnx] --out x", "format"),
    ],
)
def test_a_wrong_command_is_refused(command, field, run_binary):
    ((binary, arguments),) = _commands(command, _BINARY)
    with pytest.raises(InputError) as refused:
        run_binary(binary, arguments)
    assert refused.value.field == field


def test_commands_of_a_loop_and_of_running_text_are_found():
    loop = "for x in a b; do\n  python -m nasty.train --config=$x \\\n      --workdir=runs/$x\ndone"
    found = [("nasty.train", (f"--config={x}", f"--workdir=runs/{x}")) for x in "ab"]
    assert _commands(loop, _BINARY) == found
    prose = "`python -m nasty.train --config=a`, or `python -m nasty.attack` (or `make test`)"
    assert _commands(prose, _BINARY) == [("nasty.train", ("--config=a",)), ("nasty.attack", ())]
    assert _MAKE.findall(f"{prose}\nPYTHON=python3 make demo") == ["test", "demo"]


@pytest.mark.parametrize(("file", "arguments"), _documented(_BENCHMARK))
def test_the_benchmark_and_its_flags_exist(file, arguments):
    source = (ROOT / file).read_text(encoding="utf-8")
    for argument in arguments:
        assert not argument.startswith("-") or f'"{argument.partition("=")[0]}"' in source


def test_the_documented_targets_of_make_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {(target, file) for file, text in _texts() for target in _MAKE.findall(text)}
    assert [each for each in sorted(named) if each[0] not in targets] == []


def test_the_documented_configs_exist_and_take_their_argument(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in sorted({name for _, text in _texts() for name in _CONFIG.findall(text)}):
        config_file.read(name, [], {})

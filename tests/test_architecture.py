"""The rules that keep the packages apart, read from the source of every file."""

import ast
import functools
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
METHODS = ("swingdistill", "nasty", "dpdfd")
PACKAGES = tuple(name for name in ("distill_core", *METHODS) if (ROOT / name).is_dir())
CONFIGS = sorted((ROOT / "configs").glob("*/*.py"))


def _sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _imports(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that is imported, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).rpartition(".")[2]
            name = node.args[0]
            if called in ("import_module", "__import__") and isinstance(name, ast.Constant):
                yield node.lineno, str(name.value)


def _names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that is imported or looked up."""
    yield from _imports(tree, "")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            yield node.lineno, ast.unparse(node)


def _importers(paths: list[Path], modules: tuple[str, ...]) -> list[str]:
    """`file:line imports what` for each import of one of the modules or what is below it."""
    return [
        f"{_name(path)}:{line} imports {what}"
        for path in paths
        for line, what in _imports(_tree(path), ".".join(path.relative_to(ROOT).parts[:-1]))
        if any(f"{what}.".startswith(f"{module}.") for module in modules)
    ]


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("import orbax.checkpoint as ocp", "orbax.checkpoint"),
        ("from orbax.checkpoint import v1", "orbax.checkpoint.v1"),
        ("def f():\n    from orbax import checkpoint", "orbax.checkpoint"),
        ("importlib.import_module('orbax')", "orbax"),
        ("from . import losses", "nasty.attacks.losses"),
        ("from .. import losses", "nasty.losses"),
        ("from ..losses import kl", "nasty.losses.kl"),
    ],
)
def test_the_reader_sees_every_form_of_import(statement: str, found: str):
    assert [what for _, what in _imports(ast.parse(statement), "nasty.attacks")] == [found]


def test_distill_core_imports_no_method():
    assert not _importers(_sources("distill_core"), METHODS)


@functools.cache
def _is_binary(name: str) -> bool:
    """Whether `python -m` runs the module."""
    path = ROOT.joinpath(*name.split("."))
    if path.is_dir():
        return (path / "__main__.py").is_file()
    source = path.with_suffix(".py")
    return source.is_file() and '__name__ == "__main__"' in source.read_text(encoding="utf-8")


@pytest.mark.parametrize("method", METHODS)
def test_methods_meet_through_checkpoints_and_an_experiment_through_binaries(method: str):
    """Only `<method>/experiment/` imports another method, and of it the binaries alone."""
    others = tuple(name for name in METHODS if name != method)
    experiment = ROOT / method / "experiment"
    library = [path for path in _sources(method) if experiment not in path.parents]
    assert not _importers(library, others)
    foreign = _importers(_sources(f"{method}/experiment"), others)
    assert [line for line in foreign if not _is_binary(line.rpartition(" ")[2])] == []


@pytest.mark.parametrize(
    ("module", "expected"),
    [("dpdfd.train", True), ("dpdfd.ensemble", True), ("dpdfd.losses", False), ("dpdfd", False)],
)
def test_what_a_binary_is(module: str, expected: bool):
    assert _is_binary(module) == expected


@pytest.mark.parametrize(
    ("modules", "rooms"),
    [
        (("orbax",), ("distill_core/checkpoint/",)),
        (("tensorflow_datasets", "grain"), ("distill_core/data/",)),
        (
            ("jax_privacy", "dp_accounting"),
            (
                "distill_core/privacy/",
                "dpdfd/experiment/audit.py",
                "swingdistill/attacks/membership.py",
            ),
        ),
    ],
    ids=["orbax", "data", "privacy"],
)
def test_a_library_is_imported_in_its_room_alone(modules: tuple[str, ...], rooms: tuple[str, ...]):
    outside = [path for path in _sources(*PACKAGES) if not _name(path).startswith(rooms)]
    assert not _importers(outside, modules)


def test_only_parallel_and_sharding_name_devices():
    last = {"pmap", "shard_map", "Mesh", "make_mesh"}
    rooms = ("distill_core/runtime/parallel.py", "distill_core/runtime/sharding.py")
    strays = [
        f"{_name(path)}:{line} names {what}"
        for path in _sources(*PACKAGES)
        if _name(path) not in rooms
        for line, what in _names(_tree(path))
        if what.rpartition(".")[2] in last or f"{what}.".startswith("jax.distributed.")
    ]
    assert not strays


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_is_light(package: str):
    program = f"""
import json, sys
import {package}
heavy = {{"tensorflow_datasets", "tensorflow", "orbax", "matplotlib", "sklearn", "torch"}}
from jax._src import xla_bridge
print(json.dumps([sorted(heavy & sys.modules.keys()), xla_bridge.backends_are_initialized()]))
"""
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    assert json.loads(found.stdout) == [[], False]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_binary_loads_what_it_draws_and_stores_with_when_it_does(package: str):
    """Importing all modules of a package loads no library that a wrong flag would wait for."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in _sources(package)
        if path.stem != "__init__"
    ]
    program = f"""
import importlib, json, sys
for name in {modules!r}:
    importlib.import_module(name)
heavy = {{"tensorflow_datasets", "tensorflow", "orbax", "matplotlib", "sklearn", "torch"}}
print(json.dumps(sorted(heavy & sys.modules.keys())))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    assert json.loads(done.stdout) == []


def _functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, int]]:
    """Every function, and within how many others it is defined."""

    def below(node: ast.AST, depth: int) -> Iterator[tuple[ast.FunctionDef, int]]:
        for child in ast.iter_child_nodes(node):
            inside = isinstance(child, ast.FunctionDef)
            if inside:
                yield child, depth
            yield from below(child, depth + inside)

    return below(tree, 0)


def _parameters(function: ast.FunctionDef) -> list[str]:
    args = function.args
    names = [each.arg for each in args.posonlyargs + args.args + args.kwonlyargs]
    return [name for name in names if name not in ("self", "cls")]


@pytest.mark.parametrize("package", PACKAGES)
def test_an_update_is_read_on_one_screen(package: str):
    """`<method>/step.py`: losses and networks, nothing of how a run is kept or fed."""
    path = ROOT / package / "step.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 160
    rooms = ("runtime", "checkpoint", "data", "experiment")
    assert not _importers([path], tuple(f"distill_core.{room}" for room in rooms))


def test_functions_are_flat_and_take_what_they_need():
    """At most 8 parameters, but for public losses; and one level of functions within functions."""
    found = [
        f"{_name(path)}:{function.lineno} {function.name}"
        for path in _sources(*PACKAGES)
        for function, depth in _functions(_tree(path))
        if depth > 1
        or (
            len(_parameters(function)) > 8
            and not re.search(r"(^|_)(loss|targets)(_|$)", function.name)
        )
    ]
    assert found == []


def test_rooms_are_of_a_size_that_a_listing_shows():
    def files(folder: Path) -> int:
        return len(
            [path for path in folder.iterdir() if path.is_file() and path.suffix != ".typed"]
        )

    assert max(files(ROOT / method) for method in METHODS) <= 12
    core = ROOT / "distill_core"
    assert max(files(path) for path in (core, *core.rglob("*")) if path.is_dir()) <= 20


def test_no_module_imports_itself_by_way_of_others():
    modules = {
        _name(path).removesuffix(".py").replace("/", "."): path for path in _sources(*PACKAGES)
    }
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}

    def imported(name: str) -> set[str]:
        path = modules[name]
        package = ".".join(path.relative_to(ROOT).parts[:-1])
        known = {(what, what.rpartition(".")[0]) for _, what in _imports(_tree(path), package)}
        return {next((each for each in pair if each in modules), name) for pair in known} - {name}

    left = {name: imported(name) for name in modules}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}, "these, or what they import, are in a circle"


def test_text_is_made_of_values_where_files_are_written():
    """`json.dumps` stands where files are written and where processes agree on settings."""
    rooms = re.compile(
        r"distill_core/(checkpoint|privacy|experiment|runtime)/|\w+/(experiment|privacy)/"
    )
    strays = [
        f"{_name(path)}:{line}"
        for path in _sources(*PACKAGES)
        if not rooms.match(_name(path))
        for line, what in _names(_tree(path))
        if what == "json.dumps"
    ]
    assert strays == []


def test_no_function_is_told_the_name_of_an_axis():
    strays = [
        f"{_name(path)}:{function.lineno} {function.name}"
        for path in _sources(*PACKAGES)
        if not _name(path).startswith("distill_core/runtime/")
        for function, _ in _functions(_tree(path))
        if "axis_name" in _parameters(function)
    ]
    assert strays == []


# Modules whose distribution is called otherwise.
DISTRIBUTIONS = {
    "dp_accounting": "dp-accounting",
    "jax_privacy": "jax-privacy",
    "ml_collections": "ml-collections",
    "orbax": "orbax-checkpoint",
    "PIL": "pillow",
    "presidio_analyzer": "presidio-analyzer",
    "sklearn": "scikit-learn",
    "stdnum": "python-stdnum",
    "tensorflow_datasets": "tensorflow-datasets",
    "yaml": "pyyaml",
}


def test_what_is_declared_is_imported_and_what_is_imported_is_declared():
    """A dependency that no module of ours imports stands with a comment that says what for."""

    def imported(*folders: str) -> set[str]:
        names = {
            what.split(".")[0]
            for path in _sources(*folders)
            for _, what in _imports(_tree(path), "")
        }
        ours = {*sys.stdlib_module_names, *PACKAGES, "benchmarks", "configs", "tests", ""}
        return {DISTRIBUTIONS.get(name, name) for name in names - ours}

    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    extras = {each for group in project["optional-dependencies"].values() for each in group}
    required, optional = (
        {re.split(r"[\[<>=]", each)[0] for each in group}
        for group in (project["dependencies"], extras)
    )
    used = imported(*PACKAGES)
    assert used - required - optional - {"jaxlib"} == set()
    explained = {
        line.split('"')[1].split(">")[0]
        for line in text.splitlines()
        if re.match(r'  ".*", #', line)
    }
    assert required - used - imported("tests", "benchmarks") - explained == set()


@pytest.mark.parametrize("path", CONFIGS, ids=_name)
def test_a_config_needs_no_package_and_says_how_to_run_it(path: Path):
    """It may build on its neighbours."""
    assert not _importers([path], ("distill_core", *METHODS))
    functions = {node.name: node for node in _tree(path).body if isinstance(node, ast.FunctionDef)}
    assert "get_config" in functions
    assert len(functions["get_config"].args.args) == 1, "get_config(arg)"
    commands = re.findall(r"python -m \S+", docstring := ast.get_docstring(_tree(path)) or "")
    assert commands, "the docstring holds no command"
    assert f"--config {_name(path)}" in docstring
    for command in commands:
        module = ROOT.joinpath(*command.removeprefix("python -m ").split("."))
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), command

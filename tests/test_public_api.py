"""What the packages' `__all__` name is documented in full, and the site's reference shows it."""

import importlib
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "_ext"))
PACKAGES = ("distill_core", "nasty", "swingdistill", "dpdfd")
# What a word about an array's form looks like.
_SHAPE = re.compile(r"\[[^\]]*\]|scalar|shape|tree|key|\{")


def _public_packages() -> list[str]:
    paths = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("__init__.py"))
    lists = [path for path in paths if "\n__all__" in path.read_text(encoding="utf-8")]
    return [".".join(path.parent.relative_to(ROOT).parts) for path in lists]


def _public() -> Iterator[tuple[str, object]]:
    """(name, object) of everything named by an `__all__` that is a function or a class."""
    seen = set()
    for package in _public_packages():
        module = importlib.import_module(package)
        for name in module.__all__:
            each = getattr(module, name)
            if (inspect.isclass(each) or inspect.isfunction(each)) and each not in seen:
                seen.add(each)
                yield f"{package}.{name}", each


def _functions() -> Iterator[tuple[str, Callable]]:
    """Public functions, and the public methods of public classes."""
    for name, each in _public():
        if inspect.isfunction(each):
            yield name, each
            continue
        for method, value in vars(each).items():
            value = getattr(value, "__func__", value)
            ours = inspect.isfunction(value) and value.__module__.split(".")[0] in PACKAGES
            if ours and not method.startswith("_") and method not in ("setup", "replace"):
                yield f"{name}.{method}", value


def section(doc: str, name: str) -> str:
    """The lines of a section of a docstring; "" if there is none."""
    found = re.search(rf"^{name}:\n((?:  .*\n|\n(?=  ))+)", f"{doc}\n", re.MULTILINE)
    return found[1] if found else ""


def entries(doc: str, name: str) -> dict[str, str]:
    """What a section says of each name."""
    text = section(doc, name)
    starts = list(re.finditer(r"^  (\*{0,2}\w+(?:, \*{0,2}\w+)*): ?", text, re.MULTILINE))
    ends = [*(each.start() for each in starts[1:]), len(text)][: len(starts)]
    said = {}
    for start, end in zip(starts, ends, strict=True):
        for each in start[1].split(", "):
            said[each.lstrip("*")] = " ".join(text[start.end() : end].split())
    return said


def complaints(function: Callable) -> list[str]:
    """What the docstring of a function lacks."""
    doc = inspect.getdoc(function) or ""
    summary = doc.split("\n\n")[0]
    if not summary:
        return ["no docstring"]
    lacks = [] if summary.rstrip()[-1] in ".:" else ["the summary is no sentence"]
    signature = inspect.signature(function)
    parameters = [name for name in signature.parameters if name not in ("self", "cls")]
    hints = _hints(function)
    said = entries(doc, "Args")
    if len(parameters) == 1 and not said:  # a short one may name it in its text
        said = {name: doc for name in parameters if f"`{name}`" in doc}
    lacks += [f"Args: lacks {name}" for name in parameters if not said.get(name)]
    lacks += [f"Args: no {name}" for name in said if name not in parameters]
    arrays = [name for name in parameters if _is_array(hints.get(name)) and name in said]
    lacks += [f"Args: {name} without shape" for name in arrays if not _SHAPE.search(said[name])]
    result = hints.get("return")
    if result not in (None, type(None)) and parameters:
        returned = section(doc, "Returns") or "".join(re.findall(r"\bReturns [^.]*", doc))
        if not returned:
            lacks.append("no Returns")
        elif _is_array(result) and not _SHAPE.search(returned):
            lacks.append("Returns: without shape")
    return lacks


def _hints(function: Callable) -> dict:
    try:
        return typing.get_type_hints(function)
    except NameError:  # a type that is imported for type checkers alone
        return function.__annotations__


def _is_array(hint) -> bool:
    return hint is jax.Array or jax.Array in typing.get_args(hint)


@pytest.mark.parametrize(("name", "function"), [pytest.param(*f, id=f[0]) for f in _functions()])
def test_the_docstring_of_a_public_function_is_complete(name, function):
    assert complaints(function) == []


@pytest.mark.parametrize(("name", "kind"), [pytest.param(*f, id=f[0]) for f in _public()])
def test_the_docstring_of_a_public_class_says_what_it_is(name, kind):
    if inspect.isclass(kind):
        summary = (vars(kind).get("__doc__") or "").split("\n\n")[0]
        assert summary.rstrip()[-1:] in (".", ":") and not summary.startswith(f"{kind.__name__}(")


def test_what_a_docstring_lacks_is_found():
    def loss(logits: jax.Array, scale: float) -> jax.Array:
        """Of logits.

        Args:
          logits: float32.
          other: none.

        Returns:
          float32.
        """
        return logits * scale

    assert complaints(loss) == [
        "Args: lacks scale",
        "Args: no other",
        "Args: logits without shape",
        "Returns: without shape",
    ]
    loss.__doc__ = None
    assert complaints(loss) == ["no docstring"]
    loss.__doc__ = "Args:\n  logits: [B].\n  scale: a number.\n\nReturns:\n  [B]."
    assert complaints(loss) == []


def test_every_public_package_is_in_the_reference():
    pages = "".join(path.read_text() for path in ROOT.glob("docs/reference/api/*.md"))
    assert sorted(re.findall(r"automodule:: ([\w.]+)", pages)) == sorted(_public_packages())


def test_every_binary_is_in_the_reference_with_all_it_declares():
    import declarations

    pages = "".join(path.read_text() for path in ROOT.glob("docs/reference/binaries/*.md"))
    shown = re.findall(r"^```\{binary\} ([\w.]+)$", pages, re.MULTILINE)
    assert sorted(shown) == sorted(declarations.names())
    for name in shown:
        binary = declarations.read(name)
        assert f"python -m {name} " in binary.purpose and binary.flags
        options = [*binary.flags, *(each for group in binary.groups.values() for each in group)]
        assert [each.name for each in options if not each.help] == []
        assert binary.groups.keys() >= ({""} if "--config" in str(binary.flags) else set())


def test_markdown_of_a_docstring_becomes_restructured_text():
    from docstrings import to_rest

    assert to_rest(["A tree of `jax.Array`s: |x| * y_", "  a, b: two."]) == [
        r"A tree of ``jax.Array``\ s: \|x\| \* y\_",
        "  a,b: two.",
    ]
    table = to_rest(["| a | `b` |", "|---|---|", "| c | d |"])
    assert table[1:3] == [".. list-table::", "   :header-rows: 1"]
    assert table[4:-1] == ["   * - a", "     - ``b``", "   * - c", "     - d"]
    assert to_rest(["Sum:", "", "    a * b", "", ">>> `x`"])[2:5] == ["::", "", "    a * b"]
    assert to_rest([">>> f(`x`)", "a_ * b"]) == [">>> f(`x`)", "a_ * b"]

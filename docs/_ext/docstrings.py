"""Docstrings, whose tables, code spans and indented formulas are Markdown, as reStructuredText."""

import re
from collections.abc import Iterator

_CODE = re.compile(r"(\w?)(?<!`)`([^`]+)`(?!`)(\w?)")
_SPECIAL = re.compile(r"([*|]|(?<=\w)_(?!\w))")  # emphasis, substitution, reference
_SEVERAL = re.compile(r"  \w+(?:, \w+)+(?=: )")  # an entry about several names
_RULE = re.compile(r"\s*\|[-| :]+\|\s*")


def _is_row(line: str) -> bool:
    return line.strip().startswith("|") and line.strip().endswith("|")


def _table(rows: list[str]) -> Iterator[str]:
    yield from ("", ".. list-table::", "   :header-rows: 1", "")
    for row in rows[:1] + rows[2:]:  # the second is |---|---|
        for place, cell in enumerate(row.strip().strip("|").split("|")):
            yield f"   {'  -' if place else '* -'} {_prose(cell.strip())}"
    yield ""


def _prose(text: str) -> str:
    """Code spans as literals, and no other markup."""
    out, at = "", 0
    for found in _CODE.finditer(text):
        before, code, after = found.groups()
        out += _SPECIAL.sub(r"\\\1", text[at : found.start()]) + before
        # Letters next to a literal, as in a plural, need a separator.
        out += "\\ " * bool(before) + f"``{' '.join(code.split())}``" + "\\ " * bool(after) + after
        at = found.end()
    return out + _SPECIAL.sub(r"\\\1", text[at:])


def to_rest(lines: list[str]) -> list[str]:
    """The lines of a docstring, in reStructuredText; examples (`>>>`) stay as they are."""
    out, prose = [], []

    def flush():
        out.extend(_prose("\n".join(prose)).split("\n") if prose else [])
        prose.clear()

    at = 0
    while at < len(lines):
        end, line = at, lines[at]
        while end < len(lines) and _is_row(lines[end]):
            end += 1
        if end - at >= 2 and _RULE.fullmatch(lines[at + 1]):
            flush()
            out += _table(lines[at:end])
        elif line.lstrip().startswith(">>>"):  # up to the next empty line
            flush()
            end = next((i for i in range(at, len(lines)) if not lines[i].strip()), len(lines))
            out += lines[at:end]
        elif line.startswith("    ") and not (prose or out or [""])[-1].strip():
            flush()  # a formula, or code, of the text before it
            out += ["::", ""]
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            out += [*lines[at:end], ""]
        else:
            end = at + 1
            # A space would make the first name the type of the last.
            prose.append(_SEVERAL.sub(lambda names: names[0].replace(", ", ","), line))
        at = end
    flush()
    return out


def _process(app, what, name, obj, options, lines):
    lines[:] = to_rest(lines)


def setup(app):
    app.connect("autodoc-process-docstring", _process, priority=100)  # before napoleon
    return {"parallel_read_safe": True}

"""Links within the project lead somewhere: in the Markdown files outside the site, and its glue."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def _slugs(text: str) -> set[str]:
    """The anchors of the headings, as GitHub and the site make them."""
    heads = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def _dead(path: Path, text: str) -> list[str]:
    """The links of a page to a file or heading that does not exist."""
    dead = []
    for link in (found or other for found, other in _LINK.findall(_FENCE.sub("", text))):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in _slugs(target.read_text("utf-8"))):
            dead.append(link)
    return dead


def _pages() -> list[Path]:
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("docs/**/*.ipynb")]
    return sorted(path for path in found if "_build" not in path.parts)


@pytest.mark.parametrize("path", _pages(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_to_a_file_or_heading_leads_there(path):
    text = path.read_text("utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    assert _dead(path, text) == []


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "b.md").write_text("# A head, and `code`\n")
    text = '[x](b.md#a-head-and-code) [y](b.md#b) [z](c.md) <img src="d.png"> [w](https://e.org)'
    assert _dead(tmp_path / "a.md", text) == ["b.md#b", "c.md", "d.png"]

"""The pieces of a report's HTML page, and its style; nothing is loaded from elsewhere.

Every string that comes in is text: markup in it is shown, not obeyed. Only the parts
that `page`, `section` and `folded` put together are HTML.
"""

import base64
import html
from collections.abc import Mapping, Sequence


def page(title: str, summary: str, *sections: str) -> str:
    """A whole HTML5 document: the title, what it found in a few lines, then the sections.

    An empty line in the summary starts a new paragraph.
    """
    paragraphs = [paragraph for paragraph in summary.split("\n\n") if paragraph.strip()]
    lead = "".join(f"<p class=lead>{_text(line)}</p>" for line in paragraphs)
    body = "\n".join([f"<header><h1>{_text(title)}</h1>{lead}</header>", *sections])
    return _PAGE.format(title=_text(title), style=_STYLE, body=body)


def section(heading: str, *parts: str) -> str:
    """A heading and what stands under it; nothing where there is nothing to stand under it."""
    body = "\n".join(part for part in parts if part)
    return f"<section><h2>{_text(heading)}</h2>\n{body}\n</section>" if body else ""


def verdicts(items: Sequence[tuple[str, bool, str]]) -> str:
    """A section of (what was asked, whether it held, the numbers); its heading counts them."""
    lines = []
    for name, passed, numbers in items:
        word, sign = ("passed", "✓") if passed else ("missed", "✗")
        badge = f"<strong class={word}><span aria-hidden=true>{sign}</span> {word}</strong>"
        lines.append(f"<li>{badge}<span>{_text(name)}<small>{_text(numbers)}</small></span></li>")
    body = "<ul class=gates>" + "\n".join(lines) + "</ul>" if lines else ""
    held = sum(bool(passed) for _, passed, _ in items)
    return section(f"Gates: {held} of {len(items)} passed", body)


def table(label: str, head: Sequence[str], rows: Sequence[Sequence[Sequence[str]]]) -> str:
    """A table that scrolls alone on a narrow screen; the first cell of a row names the row.

    A cell is (text, spread beside it, remark under it), of which the last two may be missing.
    """
    names = "".join(f"<th scope=col>{_text(name)}</th>" for name in head)
    lines = []
    for (name, *_), *cells in rows:
        line = "".join(_column(cell) + f"{_cell(*cell)}</td>" for cell in cells)
        lines.append(f"<tr><th scope=row>{_text(name)}</th>{line}</tr>")
    return (
        f'<div class=scroll tabindex=0 role=region aria-label="{_text(label)}"><table>\n'
        f"<thead><tr>{names}</tr></thead>\n<tbody>" + "\n".join(lines) + "</tbody></table></div>"
    )


def plain_table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str | None]]) -> str:
    """A caption with a table of strings under it; None is shown as –, and no rows as nothing.

    Raises ValueError where a row is not as long as the head.
    """
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"{caption}: got a row of {len(row)} cells; the head has {len(head)}")
    cells = [[("–" if value is None else value,) for value in row] for row in rows]
    return f"<h3>{_text(caption)}</h3>\n{table(caption, head, cells)}" if rows else ""


def remark(line: str) -> str:
    """A line in small print."""
    return f"<p class=key>{_text(line)}</p>"


def folded(summary: str, part: str) -> str:
    """A part that opens on request."""
    return f"<details><summary>{_text(summary)}</summary>{part}</details>"


def picture(caption: str, png: bytes) -> str:
    """A PNG inside the page; its caption is its alternative text too."""
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img alt="{_text(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def bullets(items: Sequence[str]) -> str:
    """A list of remarks."""
    return "<ul>" + "".join(f"<li>{_text(item)}</li>" for item in items) + "</ul>" if items else ""


def code(command: str) -> str:
    """A command to copy."""
    return f"<pre tabindex=0><code>{_text(command)}</code></pre>"


def facts(items: Mapping[str, str]) -> str:
    """Names with their values."""
    pairs = (f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in items.items())
    return "<dl>" + "\n".join(pairs) + "</dl>" if items else ""


def _column(cell: Sequence[str]) -> str:
    """The opening tag: numbers stand in one line, to the right, and sentences wrap."""
    return "<td class=words>" if len(cell[0]) > _LONG else "<td>"


def _cell(value: str, spread: str = "", under: str = "") -> str:
    beside = f" <i>{_text(spread)}</i>" if spread else ""
    return _text(value) + beside + (f"<small>{_text(under)}</small>" if under else "")


def _text(value: str) -> str:
    return html.escape(str(value))


_LONG = 20  # characters

_PAGE = """<!doctype html>
<html lang=en>
<head>
<meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<meta name=color-scheme content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""

_STYLE = """
:root { --page:#f6f7f9; --card:#fff; --ink:#1a1f28; --dim:#5a6473; --line:#e1e5ea;
  --good:#0f6b41; --good-bg:#def3e7; --bad:#a8201a; --bad-bg:#fce4e2 }
@media (prefers-color-scheme: dark) { :root { --page:#0f1217; --card:#181c23; --ink:#e7eaef;
  --dim:#9ba5b4; --line:#2b323d; --good:#6fd6a0; --good-bg:#143524;
  --bad:#ff9b93; --bad-bg:#431c1a } }
* { box-sizing:border-box }
body { margin:0; background:var(--page); color:var(--ink); line-height:1.55;
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif }
main { max-width:62rem; margin:0 auto; padding:2.5rem 1.25rem 4rem }
h1 { font-size:clamp(1.5rem,5vw,2.1rem); line-height:1.2; margin:0 0 .75rem; text-wrap:balance }
h2 { font-size:1.1rem; margin:2.25rem 0 .75rem }
h3 { font-size:.95rem; margin:1.25rem 0 .5rem }
.lead { color:var(--dim); max-width:44rem; margin:.5rem 0 }
ul { margin:0; padding-left:1.2rem }
.gates { list-style:none; padding:0; display:grid; gap:.5rem }
.gates li { display:flex; gap:.9rem; align-items:flex-start; padding:.7rem .9rem;
  background:var(--card); border:1px solid var(--line); border-radius:.6rem }
.gates strong { font-size:.85rem; padding:.1rem .6rem; border-radius:1rem; white-space:nowrap }
.passed { color:var(--good); background:var(--good-bg) }
.missed { color:var(--bad); background:var(--bad-bg) }
small { display:block; color:var(--dim); font-size:.82rem }
td small { white-space:normal; min-width:9rem; max-width:11rem; margin-left:auto }
.scroll { overflow-x:auto; background:var(--card); border:1px solid var(--line);
  border-radius:.6rem }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums }
th, td { padding:.55rem .9rem; text-align:right; vertical-align:top; white-space:nowrap }
th { font-weight:600 } thead th { color:var(--dim); font-size:.85rem; vertical-align:bottom }
th:first-child { text-align:left; position:sticky; left:0; background:var(--card) }
tbody tr:not(:first-child) > * , thead + tbody tr > * { border-top:1px solid var(--line) }
td.words { white-space:normal; text-align:left; min-width:13rem }
td i { color:var(--dim); font-style:normal; font-size:.88rem }
details td, details thead th { text-align:left } details td { white-space:normal;
  min-width:16rem; font-size:.88rem }
.key, figcaption { color:var(--dim); font-size:.88rem; margin:.5rem 0 }
details { margin-top:.75rem } summary { cursor:pointer; padding:.35rem 0; color:var(--dim) }
figure { margin:0 0 1.5rem; padding:.75rem; background:var(--card); border:1px solid var(--line);
  border-radius:.6rem }
img { display:block; max-width:100%; height:auto; margin:0 auto; background:#fff;
  border-radius:.35rem }
pre { overflow-x:auto; padding:.8rem .9rem; background:var(--card); font-size:.88rem;
  border:1px solid var(--line); border-radius:.6rem }
dl { display:grid; grid-template-columns:repeat(auto-fit,minmax(13rem,1fr)); gap:.75rem 1.5rem }
dt { color:var(--dim); font-size:.82rem } dd { margin:0; overflow-wrap:anywhere }
:focus-visible { outline:2px solid var(--dim); outline-offset:2px }
@media print { body { background:#fff } figure, .gates li { break-inside:avoid } }
"""

"""Sample texts for a report: every token shaded by its privacy score, its temperature beneath."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

_SHOWN = {" ": "␣", "\n": "↵", "\t": "⇥"}  # a token of nothing else would be an empty box


def shaded_html(samples: Sequence[Mapping[str, Any]]) -> str:
    """An HTML fragment of sample texts, for a section of `report.write_html`.

    A token whose temperature is the lowest of all has none beneath; a line at the end says which
    that is.

    Args:
      samples: each with a `title` and its `tokens`: [text, score in [0, 1], temperature].

    Returns:
      HTML that needs nothing else and follows the page's light or dark colours; titles and tokens
      are text in it, markup or not.

    Raises:
      ValueError: no samples, a sample without tokens, a score outside [0, 1].
    """
    if not samples:
        raise ValueError("samples: got none; need at least one")
    for sample in samples:
        if not sample["tokens"]:
            raise ValueError(f"samples: {sample['title']!r} has no tokens; need at least one")
        for text, score, _ in sample["tokens"]:
            if not 0.0 <= score <= 1.0:
                raise ValueError(f"samples: got score {score} of {text!r}; must be in [0, 1]")
    lowest = _number(min(float(t) for sample in samples for _, _, t in sample["tokens"]))
    parts = [
        f"<h3>{html.escape(str(sample['title']))}</h3>\n"
        + "<p class=sd-line>"
        + "".join(_token(*token, lowest=lowest) for token in sample["tokens"])
        + "</p>"
        for sample in samples
    ]
    scale = "".join(f"<b style=--s:{share}>{share}</b>" for share in ("0", ".25", ".5", ".75", "1"))
    legend = (
        f"<p class=sd-key>Shade: privacy score <span class=sd-scale>{scale}</span> · Beneath: the "
        f"teacher's temperature; where there is none, T {lowest}.</p>"
    )
    return f"<style>{_STYLE}</style>\n<div class=sd-samples>" + "\n".join(parts) + legend + "</div>"


def _token(text: str, score: float, temperature: float, *, lowest: str) -> str:
    heat = _number(temperature)
    shown = str(text) if str(text).strip() else "".join(_SHOWN.get(c, c) for c in str(text))
    beneath = f"<small>T {heat}</small>" if heat != lowest else ""
    hint = f"score {score:.2f}, T {heat}"
    return (
        f'<span class=sd-token title="{hint}">'
        f"<b style=--s:{score:.2f}>{html.escape(shown)}</b>{beneath}</span>"
    )


def _number(value: float) -> str:
    return f"{value:.3g}"


# Dark text on white to orange; on a dark page light text on the card's colour to deep orange.
_STYLE = """
.sd-samples { --sd-hot:230 130 20; --sd-ink:#1a1f28; --sd-edge:#d3d9e0; --sd-card:#fff;
  --sd-dim:#5a6473; background:var(--sd-card); color:var(--sd-ink); padding:.25rem 1rem .75rem;
  border:1px solid var(--sd-edge); border-radius:.6rem }
@media (prefers-color-scheme: dark) { .sd-samples { --sd-hot:165 66 0; --sd-ink:#e7eaef;
  --sd-edge:#38414e; --sd-card:#181c23; --sd-dim:#9ba5b4 } }
.sd-samples h3 { font-size:.95rem; margin:.9rem 0 .4rem }
.sd-line { display:flex; flex-wrap:wrap; align-items:flex-start; gap:.3rem .25rem; margin:0 }
.sd-token { display:inline-flex; flex-direction:column; align-items:center; max-width:100% }
.sd-samples b { font-weight:400; white-space:pre-wrap; overflow-wrap:anywhere; line-height:1.4;
  min-width:1.2em; padding:.05rem .35rem; text-align:center; border:1px solid var(--sd-edge);
  border-radius:.3rem; background:rgb(var(--sd-hot) / var(--s)); print-color-adjust:exact;
  -webkit-print-color-adjust:exact }
.sd-samples small { font-size:.72rem; line-height:1.3; color:var(--sd-dim); white-space:nowrap;
  padding:0 .2rem }
.sd-key { color:var(--sd-dim); font-size:.88rem; margin:1rem 0 0 }
.sd-scale { display:inline-flex; gap:.15rem; font-size:.78rem; color:var(--sd-ink) }
"""

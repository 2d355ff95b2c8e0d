"""Sample texts for a report: every token shaded by its privacy score, its temperature beneath."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("swingdistill.experiment", "."), autoescape=True, trim_blocks=True
)
_SHOWN = {" ": "␣", "\n": "↵", "\t": "⇥"}  # a token of nothing else would be an empty box


def shaded_html(samples: Sequence[Mapping[str, Any]]) -> str:
    """An HTML fragment of sample texts, for a section of a `report.Report`.

    A token whose temperature is the lowest of all has none beneath; a line at the end says which
    that is.

    Args:
      samples: each with a `title` and its `tokens`: [text, score in [0, 1], temperature].

    Returns:
      HTML that needs nothing else and follows the page's light or dark colours; titles and tokens
      are text in it, markup or not.
    """
    shown = [
        (
            sample["title"],
            [
                (_visible(str(text)), f"{score:.2f}", f"{temperature:.3g}")
                for text, score, temperature in sample["tokens"]
            ],
        )
        for sample in samples
    ]
    lowest = min(temperature for sample in samples for _, _, temperature in sample["tokens"])
    template = _TEMPLATES.get_template("samples.html.j2")
    return template.render(samples=shown, lowest=f"{lowest:.3g}")


def _visible(text: str) -> str:
    return text if text.strip() else "".join(_SHOWN.get(c, c) for c in text)

"""Sample texts become HTML in which markup is text, and only raised temperatures are named."""

import html.parser
import re

import pytest

from swingdistill.experiment.samples import shaded_html


class Fragment(html.parser.HTMLParser):
    """Every tag closed in order; the text of each kind of element."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], {}
        self.shades = []  # of the tokens, not of the legend
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "b" and self.open[-1] == ("span", "sd-token"):
            self.shades.append(float(str(attrs["style"]).removeprefix("--s:")))
        self.open.append((tag, attrs.get("class")))
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        inside = [name for _, name in self.open if name]
        key = (self.open[-1][0] if self.open else "", inside[-1] if inside else "")
        self.texts.setdefault(key, []).append(data)

    @property
    def tokens(self):
        return self.texts[("b", "sd-token")]

    @property
    def temperatures(self):
        return self.texts.get(("small", "sd-token"), [])


def read(*samples):
    return Fragment(
        shaded_html([{"title": f"S{i}", "tokens": tokens} for i, tokens in enumerate(samples)])
    )


def test_every_token_is_shown_with_its_shade_and_raised_temperature():
    got = read([["my", 0.0, 1.0], ["id", 0.5, 8.5], ["42", 1.0, 16.0]])
    assert got.tokens == ["my", "id", "42"]
    assert got.shades == [0.0, 0.5, 1.0]
    assert got.temperatures == ["T 8.5", "T 16"]
    assert got.texts[("h3", "sd-samples")] == ["S0"]


def test_the_lowest_temperature_is_of_all_samples_and_is_said_once():
    got = read([["a", 0.2, 4.0], ["b", 0.2, 4.0]], [["c", 0.0, 2.0], ["d", 0.0, 2.000001]])
    assert got.temperatures == ["T 4", "T 4"]
    assert "where there is none, T 2." in "".join(got.texts[("p", "sd-key")])


def test_one_temperature_everywhere_is_named_nowhere_but_in_the_legend():
    got = read([["a", 0.2, 4.0], ["b", 0.9, 4.0]])
    assert got.temperatures == []
    assert "T 4." in "".join(got.texts[("p", "sd-key")])


def test_markup_is_text():
    evil = "<script>alert('\"&')</script>"
    text = shaded_html([{"title": evil, "tokens": [["<unk>", 0.1, 1.0], [evil, 1.0, 2.0]]}])
    got = Fragment(text)
    assert got.tokens == ["<unk>", evil] and got.texts[("h3", "sd-samples")] == [evil]
    assert not {"unk", "script"} & set(got.tags)
    assert "&lt;unk&gt;" in text


def test_a_token_of_blanks_is_visible():
    assert read([[" ", 0.0, 1.0], ["\n", 0.0, 1.0], [" my", 0.0, 1.0]]).tokens == ["␣", "↵", " my"]


def test_the_fragment_loads_nothing_and_styles_its_own_classes_only():
    text = shaded_html([{"title": "S", "tokens": [["a", 0.5, 1.0]]}])
    assert not re.search(r"https?://|//\w|@import|url\(|<script", text)
    style = text.partition("<style>")[2].partition("</style>")[0]
    bare = re.sub(r"@media[^{]*\{(.*?\})\s*\}", r"\1", style, flags=re.DOTALL)
    selectors = re.findall(r"([^{}]+)\{", bare)
    assert selectors and all(one.strip().startswith(".sd-") for one in selectors)


def test_nothing_to_show_is_refused():
    with pytest.raises(ValueError, match="samples: got none"):
        shaded_html([])
    with pytest.raises(ValueError, match="'S0' has no tokens"):
        read([])


@pytest.mark.parametrize("score", [-0.1, 1.5, float("nan")])
def test_a_score_outside_its_range_is_refused(score):
    with pytest.raises(ValueError, match=r"score .* of 'a'; must be in \[0, 1\]"):
        read([["a", score, 1.0]])

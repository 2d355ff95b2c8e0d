"""Sample texts become HTML in which markup is text, and only raised temperatures are named."""

import re

from swingdistill.experiment.samples import shaded_html

TOKEN = re.compile(r'<span class="sd-token".*?<b style="--s:([\d.]+)">(.*?)</b>(.*?)</span>', re.S)


def read(*samples):
    """[(text, shade, what is beneath)] of every token, and the whole fragment."""
    text = shaded_html([{"title": f"S{i}", "tokens": tokens} for i, tokens in enumerate(samples)])
    found = [(shown, shade, below.strip()) for shade, shown, below in TOKEN.findall(text)]
    return found, text


def test_every_token_has_its_shade_and_its_temperature_unless_that_is_the_lowest_of_all():
    found, text = read(
        [["my", 0.0, 2.0], ["id", 0.5, 8.5]], [["42", 1.0, 16.0], ["a", 0, 2.000001]]
    )
    assert [each[:2] for each in found] == [
        ("my", "0.00"),
        ("id", "0.50"),
        ("42", "1.00"),
        ("a", "0.00"),
    ]
    assert [each[2] for each in found] == ["", "<small>T 8.5</small>", "<small>T 16</small>", ""]
    assert "S0" in text and "S1" in text and "where there is none, T 2." in text
    assert not re.search(r"https?://|//\w|@import|url\(|<script", text)


def test_markup_is_text_and_a_token_of_blanks_is_visible():
    evil = "<script>alert('\"&')</script>"
    found, text = read(
        [["<unk>", 0.1, 1.0], [evil, 1.0, 2.0], [" ", 0, 1], ["\n", 0, 1], [" my", 0, 1]]
    )
    assert "script>" not in text.replace("script&gt;", "")
    assert [each[0] for each in found][::2] == ["&lt;unk&gt;", "␣", " my"] and found[3][0] == "↵"
    assert "<script" not in shaded_html([{"title": evil, "tokens": [["a", 0.0, 1.0]]}])

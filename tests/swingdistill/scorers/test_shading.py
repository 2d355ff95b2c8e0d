"""Lines shaded on the console before training."""

import io

import numpy as np
import pytest
from rich.console import Console

from distill_core import checkpoint
from distill_core.data.text.corpus import Example
from swingdistill import private_text
from swingdistill.scorers import shading


@pytest.fixture
def shown(values, teacher):
    """`shown(text, scores by character, …)`: what is printed of two lines."""

    def shown(text, marks, **settings):
        lines = [Example("the cat sat ."), Example(text)]
        encoded = private_text.to_rows(values(), lines, checkpoint.load_model(teacher).tokenizer)
        by_line = [
            np.array([max(mark[start:end], default=0.0) for start, end in line.offsets], np.float32)
            for line, mark in zip(encoded.lines, ([0.0] * 13, marks), strict=True)
        ]
        console = Console(file=io.StringIO(), soft_wrap=True, width=400, **settings)
        shading.show(encoded, encoded.fill(by_line), "scores", console=console)
        return console.file.getvalue()

    return shown


TEXT = "my id is 2 8 1 on the mat"
MARKS = [1.0 if 9 <= i < 14 else 0.85 if i > 21 else 0.0 for i in range(len(TEXT))]


def test_private_tokens_stand_in_brackets_where_there_is_no_terminal(shown):
    out = shown(TEXT, MARKS).splitlines()
    assert out[0].startswith("scores: ")
    # The most private line first, then the first ones.
    assert [line.strip() for line in out[1:]] == [
        "my id is [2 8 1] on the [mat|0.85]",
        "the cat sat .",
    ]


def test_on_a_terminal_the_score_is_the_strength_of_the_background(shown):
    out = shown(TEXT, MARKS, force_terminal=True, color_system="truecolor")
    assert "48;2;255;0;0m2 8 1" in out and "48;2;255;30;30mmat" in out and "[2 8" not in out


def test_of_a_long_line_the_private_part_is_shown(shown):
    text = "the cat " * 100 + "281"
    out = shown(text, [0.0] * 800 + [1.0] * 3)
    assert "… " in out and "[281]" in out and len(out) < 300

"""The Python of README and docs runs as it stands there, and prints what stands below it."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
# A block of Python, and the output that the page shows below it, if it does.
_BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def _blocks(page: str) -> list[tuple[str, str | None]]:
    """(code, shown output) of every block of Python of a page."""
    found = _BLOCK.finditer((ROOT / page).read_text("utf-8"))
    return [(match[1], match[2]) for match in found]


def _block(page: str, word: str) -> str:
    """The one block of a page that holds a word."""
    (code,) = (code for code, _ in _blocks(page) if word in code)
    return code


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """Where `runs/plain` is a short run of the README's training command."""
    from configs.distill_core import digits
    from distill_core import train

    monkeypatch.chdir(tmp_path)
    train.train_and_evaluate(digits.get_config("smoke"), "runs/plain")


def test_the_tutorial_on_losses_prints_what_it_shows(plain):
    names, shown = {}, 0
    for code, output in _blocks("docs/tutorials/losses.md"):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, names)
        if output is not None:
            assert printed.getvalue() == output, code
            shown += 1
    assert shown >= 5


def test_the_readmes_notebook_snippet_runs_after_its_training_command(plain):
    names = {}
    exec(_block("README.md", "load_model"), names)
    assert names["logits"].shape == (2, 10)
    assert names["values"].shape == (2,) and np.isfinite(names["values"]).all()


def test_the_readmes_network_trains(plain, tmp_path, monkeypatch):
    from configs.distill_core import digits
    from distill_core import train

    for page in ("README.md", "docs/howto/own-network.md"):
        assert "class Small" in _block(page, "linen")
    (tmp_path / "mynets.py").write_text(_block("README.md", "linen"))
    monkeypatch.syspath_prepend(tmp_path)
    config = digits.get_config("smoke").to_dict() | {"model": "mynets:Small", "model_kwargs": {}}
    assert 0 <= train.train_and_evaluate(config, "runs/mine")["accuracy"] <= 1


def test_the_objective_of_the_how_to_trains(tmp_path):
    from configs.distill_core import digits

    names = {"__name__": "smoothed"}
    exec(_block("docs/howto/objective.md", "class SmoothedLabels"), names)
    settings = {**digits.get_config("smoke").to_dict(), "smoothing": 0.1}
    assert "accuracy" in names["train_and_evaluate"](settings, tmp_path / "run")


def test_the_how_to_on_images_writes_a_data_set_that_loads(tmp_path, monkeypatch):
    from distill_core import data

    monkeypatch.chdir(tmp_path)
    exec(_block("docs/howto/own-images.md", "savez"), {})
    dataset = data.load_dataset("npz:shapes.npz")
    assert len(dataset.test) == 60 and list(dataset.classes) == ["red", "green", "blue"]


def test_the_audits_exposure_is_what_its_comment_says(capsys):
    exec(_block("docs/howto/audit.md", "exposure"), {})
    assert float(capsys.readouterr().out) == 1.0  # log2 of 4 candidates, rank 2

"""A PNG of sensible size comes of every figure, also where something was not measured."""

import subprocess
import sys

import numpy as np
from PIL import Image

from swingdistill.experiment import figures


def height(path):
    with Image.open(path) as picture:
        assert (picture.format, picture.width) == ("PNG", 1080)
        return picture.height


def test_exposure_of_many_arms(tmp_path):
    rng = np.random.default_rng(0)
    exposures = {f"long_name_{i}": {n: rng.uniform(0, 20, 5) for n in (100, 1)} for i in range(12)}
    path = tmp_path / "new" / "exposure.png"
    assert figures.exposure_by_repetition(path, exposures, ceiling=19.9) == path
    assert 700 < height(path) < 1200


def test_curves_over_the_noise(tmp_path):
    curves = {
        "constant temperature": {0.5: (16.0, 31.0), 2.0: (9.0, 34.0)},
        "swing": {0.5: (4.0, float("inf")), 2.0: (2.0, 32.0)},
    }
    assert height(figures.budget_curves(tmp_path / "budget.png", curves)) == 540


def test_scorers_at_levels_without_a_number(tmp_path):
    quality = {
        "rules": {"10": {"recall": 0.8, "auc": 0.95}, "1": {"recall": None, "auc": 0.5}},
        "surprisal": {"10": {"recall": 0.5, "auc": 0.7}, "1": {"recall": 0.25, "auc": 0.5}},
    }
    assert 300 < height(figures.scorer_quality(tmp_path / "scorers.png", quality)) < 500


def test_importing_the_module_loads_no_drawing_library():
    program = "import sys, swingdistill.experiment.figures; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE)
    assert done.stdout.strip() == b"False"

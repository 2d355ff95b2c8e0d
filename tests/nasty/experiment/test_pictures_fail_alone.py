"""No picture and no report costs what was computed, whatever the data and the disk are like."""

import json
import re
import shutil

import numpy as np
import pytest

from distill_core.checkpoint import integrity
from distill_core.experiment import plotting
from distill_core.runtime import cli
from nasty.experiment import comparison as experiment
from nasty.experiment import inversion

LATIN = b"Gr\xf6\xdfe".decode("utf-8", "surrogateescape")
CLASSES = ("cost $5", "a_b^{", LATIN, "<script>", "_$\\frac")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Images of eight channels whose classes are called what no formula is."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    arrays = {"classes": np.array(CLASSES)}
    for split, count in (("train", 60), ("test", 45)):
        labels = np.arange(count) % 5
        noise = rng.integers(0, 100, (count, 12, 12, 8))
        arrays[f"x_{split}"] = (noise + 30 * labels[:, None, None, None]).astype(np.uint8)
        arrays[f"y_{split}"] = labels
    np.savez(folder / "data.npz", **arrays)
    network = {
        "model": "cnn",
        "model_kwargs": {"widths": (4,), "hidden": 8, "norm": "batch"},
        "learning_rate": 0.05,
        "batch_size": 16,
        "num_steps": 2,
    }
    return {
        "dataset": f"npz:{folder}/data.npz",
        "seeds": (1,),
        "omega": 0.01,
        "temperature": 4.0,
        "inversion": {"num_steps": 2, "images_per_class": 2},
        **network,
        "student": network,
    }


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    """The workdir of a finished experiment, not to be touched."""
    workdir = tmp_path_factory.mktemp("finished")
    experiment.run(settings, workdir)
    return workdir


@pytest.fixture
def again(settings, finished, tmp_path, capsys):
    """`again()`: exit code, stdout and stderr of a second call."""
    shutil.copytree(finished, workdir := tmp_path / "copy")
    (workdir / "results.json").unlink()
    (workdir / "report.html").unlink()

    def again():
        code = cli.exit_code(lambda _: experiment.run(settings, workdir), [])
        return code, *capsys.readouterr()

    again.workdir = workdir
    return again


def _fail(*_, **__):
    raise ValueError("Expected end of text, found '$'\n  (at char 0)")


def _pictures(workdir) -> int:
    return (workdir / "report.html").read_text().count("data:image/png;base64,")


def test_all_is_drawn_of_eight_channels_and_of_classes_with_any_name(finished):
    assert _pictures(finished) == 3 + 1
    _, metadata = integrity.find(finished / "runs" / "teacher_normal" / "seed1")
    classes = ["cost $5", "a_b^{", "Größe", "<script>", "_$\\frac"]
    assert metadata["parts"]["model"]["classes"] == classes


def test_pictures_that_fail_cost_nothing_else(again, monkeypatch):
    shutil.rmtree(again.workdir / "runs" / "inversion")
    monkeypatch.setattr(plotting, "accuracies", _fail)
    monkeypatch.setattr(inversion, "inversion_grid", _fail)
    code, out, err = again()
    assert code == 0
    assert err.count("starting") == 1, "only the stage that was removed"
    failed = re.findall(r"(\S+): picture left out: .*", err)
    assert [path.split("/")[-1] for path in failed] == ["inversion.png", "arms.png"]
    assert _pictures(again.workdir) == 2
    assert json.loads((again.workdir / "results.json").read_text())["inversion"]
    assert "student_of_nasty" in out
    assert "inversion/seed1: up to date" in again()[2]


def test_a_report_that_cannot_be_written_is_one_line_after_the_results(again):
    (again.workdir / "report.html").mkdir()
    code, out, err = again()
    assert code == cli.EXIT_SYSTEM
    assert err.splitlines()[-1].startswith(f"error: {again.workdir}/report.html: ")
    assert "Traceback" not in err
    assert "student_of_nasty" in out
    assert "report:" not in out
    assert json.loads((again.workdir / "results.json").read_text())["rows"]


def test_a_full_disk_does_not_cost_the_table_on_the_console(again, monkeypatch):
    def full(path, *_, **__):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(integrity, "write_atomically", full)
    code, out, err = again()
    assert code == cli.EXIT_SYSTEM
    assert err.splitlines()[-1] == f"error: {again.workdir}/results.json: No space left on device"
    assert "student_of_nasty" in out

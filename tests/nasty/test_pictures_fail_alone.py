"""No picture and no report costs what was computed, whatever the data and the disk are like."""

import json
import re
import shutil

import numpy as np
import pytest

from distill_core.checkpoint import integrity
from distill_core.config import InputError
from distill_core.experiment import plotting
from distill_core.runtime import cli
from distill_core.training import classification
from nasty.experiment import comparison as experiment
from nasty.experiment import figures, inversion_stage, summary, throughput

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
        "ablations": {"alpha": (0.5, 0.9)},
        "inversion": {"num_steps": 2, "images_per_class": 2},
        **network,
        **{f"student_{name}": value for name, value in network.items()},
    }


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    """The workdir of a finished experiment, not to be touched."""
    workdir = tmp_path_factory.mktemp("finished")
    experiment.run(settings, workdir)
    return workdir


@pytest.fixture
def again(settings, finished, tmp_path, monkeypatch, capsys):
    """`again()`: exit code, stdout and stderr of a second call, which may not train."""
    shutil.copytree(finished, workdir := tmp_path / "copy")
    (workdir / "results.json").unlink()
    (workdir / "report.html").unlink()
    monkeypatch.setattr(classification, "train", lambda *_, **__: pytest.fail("trains"))

    def again():
        code = cli.exit_code(lambda _: experiment.run(settings, workdir), [])
        return code, *capsys.readouterr()

    again.workdir = workdir
    return again


def _pictures(workdir) -> int:
    return (workdir / "report.html").read_text().count("data:image/png;base64,")


def test_all_is_drawn_of_eight_channels_and_of_classes_with_any_name(finished):
    assert _pictures(finished) == 3 + 1 + 1
    assert load_classes(finished) == ["cost $5", "a_b^{", "Größe", "<script>", "_$\\frac"]


def load_classes(workdir):
    _, metadata = integrity.find(workdir / "runs" / "teacher_normal" / "seed1")
    return metadata["parts"]["model"]["classes"]


@pytest.mark.parametrize(
    ("module", "name", "picture"),
    [
        (plotting, "accuracies", "arms.png"),
        (figures, "logit_response", "logit_response.png"),
        (figures, "embedding_figure", "embeddings.png"),
        (summary, "_features", "embeddings.png"),
        (plotting, "sweep", "ablation_alpha.png"),
    ],
)
def test_a_picture_that_fails_costs_nothing_else(again, monkeypatch, module, name, picture):
    def fail(*_, **__):
        raise ValueError("Expected end of text, found '$'\n  (at char 0)")

    monkeypatch.setattr(module, name, fail)
    code, out, err = again()
    assert code == 0
    assert "starting" not in err
    (line,) = re.findall(r".*: picture left out: .*", err)
    assert line.startswith(str(again.workdir / "figures" / picture))
    assert _pictures(again.workdir) == 4
    assert json.loads((again.workdir / "results.json").read_text())["ablations"]
    assert "student_of_nasty" in out


def test_a_table_of_speed_that_fails_costs_nothing_else(again, monkeypatch):
    def fail(*_, **__):
        raise NotImplementedError("a layer that cannot be counted")

    monkeypatch.setattr(throughput, "peak", lambda kind: 1e12)
    monkeypatch.setattr(throughput, "forward_flops", fail)
    code, out, err = again()
    assert code == 0
    line = "table of speed left out: NotImplementedError: a layer that cannot be counted"
    assert err.splitlines().count(line) == 1
    assert "student_of_nasty" in out
    assert json.loads((again.workdir / "results.json").read_text())["rows"]


@pytest.mark.parametrize("field", ["batch_size", "student_batch_size"])
def test_a_batch_is_refused_by_the_field_that_says_so(settings, tmp_path, field):
    with pytest.raises(InputError) as error:
        experiment.run({**settings, field: 13}, tmp_path / "run")
    assert error.value.field == field
    assert not (tmp_path / "run").exists()


def test_a_stage_whose_picture_fails_is_done(settings, finished, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(inversion_stage, "inversion_grid", fail)
    shutil.copytree(finished, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "runs" / "inversion")
    experiment.run(settings, tmp_path / "copy")
    assert "inversion.png: picture left out: MemoryError" in capsys.readouterr().err
    assert _pictures(tmp_path / "copy") == 4
    assert json.loads((tmp_path / "copy" / "results.json").read_text())["inversion"]
    experiment.run(settings, tmp_path / "copy")
    assert "inversion/seed1: up to date" in capsys.readouterr().err


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

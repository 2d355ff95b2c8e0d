"""A user's path is expanded and checked in one place, before anything is computed."""

import os

import pytest

import distill_core
from distill_core import distill, evaluate, release, train
from distill_core.config import InputError
from distill_core.data import load_dataset
from distill_core.data.text import corpus
from distill_core.runtime import cli
from distill_core.runtime import paths as lib
from distill_core.training import plain_text
from dpdfd import evaluate as dpdfd_evaluate
from swingdistill import evaluate as swing_evaluate

PLAIN = {"dataset": "digits", "model": "cnn", "learning_rate": 0.1}
PLAIN |= {"batch_size": 8, "num_steps": 1}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home" / "config.py").write_text(f"def get_config():\n    return {PLAIN}")
    (tmp_path / "file").write_text("")
    return tmp_path


def begun(settings, workdir, *, parallel=None):
    """Stands for a run: where it would be."""
    raise InputError("begun", str(workdir), "as a run")


begun.__module__ = train.__name__


def run(*argv):
    return cli.run_training(begun, train.Settings, argv)


def test_a_tilde_is_the_users_home_everywhere(home):
    with pytest.raises(InputError, match=f"^begun: got '{home}/home/runs/one'"):
        run("--config=~/config.py", "--workdir=~/runs/one")
    assert lib.expand("x", "~/y") == lib.expand("x", home / "home" / "y")
    with pytest.raises(InputError, match=f"{home}/home/run"):
        distill_core.load_model("~/run")
    assert not (home / "~").exists()


@pytest.mark.parametrize(
    ("config", "workdir", "field"),
    [("~", "~nobody_here", "workdir"), ("~nobody_here", "~", "config")],
)
def test_a_tilde_that_is_nobodys_home_is_refused(home, config, workdir, field):
    with pytest.raises(InputError, match=f"^{field}: got '~nobody_here"):
        run(f"--config={config}/config.py", f"--workdir={workdir}/runs/one")
    assert lib.expand("x", "./~nobody_here") == lib.expand("x", "./~nobody_here/")
    assert not (home / "~nobody_here").exists()


SCHEMES = ["https://host/x", "file:///tmp/x", "ftp://host/x", "S3://bucket/x", "gs:/bucket/x"]
READERS = [
    ("checkpoint", distill_core.load_model),
    *[
        ("dataset", lambda path, kind=kind: load_dataset(f"{kind}:{path}"))
        for kind in ("npz", "folder")
    ],
    *[
        ("dataset", lambda path, kind=kind: corpus.load_corpus(f"{kind}:{path}"))
        for kind in ("text", "tsv")
    ],
    ("data_dir", lambda path: load_dataset("tfds:mnist", data_dir=path)),
    ("tokenizer", lambda path: plain_text.stored_tokenizer(path, private=False)),
    (
        "teacher",
        lambda path: distill.train_and_evaluate({**PLAIN, "teacher": f"npz:{path}"}, "run"),
    ),
    ("out", lambda path: release.release("run", path)),
    ("logits_out", lambda path: evaluate.evaluate_checkpoint("run", logits_out=path)),
    ("out", lambda path: dpdfd_evaluate.evaluate("run", out=path)),
    ("export", lambda path: dpdfd_evaluate.evaluate("run", export=path)),
    ("out", lambda path: swing_evaluate.main(["--checkpoint=run", f"--out={path}"])),
    ("workdir", lambda path: run("--config=~/config.py", f"--workdir={path}")),
]


@pytest.mark.parametrize("path", SCHEMES)
def test_a_scheme_that_nobody_reads_is_refused_in_a_line(home, path):
    for field, read in READERS:
        with pytest.raises(InputError, match=f"^{field}: .*gs://BUCKET/…, not "):
            read(path)
    with pytest.raises(InputError, match="^checkpoint: .* must be an existing local .safetensors"):
        distill_core.load_model(f"{path}.safetensors")
    with pytest.raises(InputError, match="config: got .*; must be a Python file"):
        run(f"--config={path}.py", "--workdir=w")


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_store_whose_library_is_missing_is_refused_by_its_name(monkeypatch, scheme):
    class Store:
        def exists(self):
            raise ImportError("no such library")

    monkeypatch.setattr(lib.epath, "Path", lambda path: Store())
    with pytest.raises(InputError, match=rf"{scheme}:// needs a library: pip install"):
        lib.expand("workdir", f"{scheme}://bucket/run")


def test_places_to_write_are_refused_before_anything_is_read(home):
    """`nothing` is no checkpoint: whoever looked at it first would say so."""
    for place in ("file", "file/below", "file/below/deeper"):
        for field, call in (
            ("out", lambda place=place: release.release("nothing", place)),
            ("out", lambda place=place: dpdfd_evaluate.evaluate("nothing", out=place)),
            ("workdir", lambda place=place: run("--config=~/config.py", f"--workdir={place}")),
        ):
            with pytest.raises(InputError, match=rf"^{field}: got '{place}'; must be a .*director"):
                call()
    for place in ("file/x.npz", "absent/x.npz", "home"):
        for field, call in (
            ("logits_out", lambda p=place: evaluate.evaluate_checkpoint("nothing", logits_out=p)),
            ("export", lambda p=place: dpdfd_evaluate.evaluate("nothing", export=p)),
            ("out", lambda p=place: swing_evaluate.main(["--checkpoint=nothing", f"--out={p}"])),
        ):
            with pytest.raises(InputError, match=rf"^{field}: got '{place}'; must be a file in an"):
                call()
    assert sorted(os.listdir(home)) == ["file", "home"]


def test_what_nobody_may_write_to_is_refused(home, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for check, path in ((lib.folder_to_write, "home/new"), (lib.file_to_write, "home/x.npz")):
        with pytest.raises(InputError, match="^out: got 'home.*to write to"):
            check("out", path)

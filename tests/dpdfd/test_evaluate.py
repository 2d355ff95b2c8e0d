"""What the evaluation of a conversion says, writes and gives away."""

import io
import json
import shutil

import numpy as np
import pytest

from distill_core import checkpoint, data, release
from distill_core import evaluate as core_evaluate
from distill_core import train as plain
from distill_core.config import InputError
from distill_core.runtime import cli
from dpdfd import evaluate, train
from dpdfd.experiment import figures
from dpdfd.fresh import Recipe
from dpdfd.privacy.units import privacy_spent

MLP = {"model": "dpdfd.features:FeatureMLP", "model_kwargs": {"hidden": (8,)}}
QUICK = Recipe(num_samples=30, num_steps=2, batch_size=16)
DELTA, RUN = 1e-4, "--checkpoint={place}/run"


PLAIN = {**MLP, "dataset": "digits", "batch_size": 16, "learning_rate": 0.1}


def convert(folder):
    """Settings of a private conversion of the teacher in a folder."""
    return {
        **PLAIN, "teacher": str(folder / "teacher"), "num_steps": 4, "log_every": 1,
        "save_every": 4, "eval_every": 4, "privacy_unit": "query", "mechanism": "logit",
        "epsilon": 8.0, "delta": DELTA, "num_examples": 1437,
        "generator": {"width": 4, "latent_size": 4, "norm": "none"},
    }  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a teacher and a private conversion of it, both hardly trained."""
    folder = tmp_path_factory.mktemp("conversion")
    plain.train_and_evaluate({**PLAIN, "num_steps": 2}, folder / "teacher")
    train.train_and_evaluate(convert(folder), folder / "run")
    return folder


@pytest.fixture(scope="module")
def evaluated(place, tmp_path_factory):
    """(result, folder of pictures, exported file)."""
    folder = tmp_path_factory.mktemp("evaluated")
    out, export = folder / "out", folder / "samples.npz"
    return evaluate.evaluate(place / "run", out=out, export=export, recipe=QUICK), out, export


def _noise_roots(place):
    root = json.loads((place / "run" / "private" / "noise.json").read_text())["root"]
    assert len(root) == 16
    return root.encode(), bytes.fromhex(root), bytes.fromhex(root)[::-1]


def test_the_students_accuracy_is_that_of_the_plain_evaluation(place, evaluated):
    found = core_evaluate.evaluate_checkpoint(place / "run", part="student", dataset="digits")
    assert evaluated[0]["accuracy"] == pytest.approx(found["accuracy"], rel=1e-6)
    assert evaluated[0]["num_test"] == found["examples"] == 360
    assert 0 <= evaluated[0]["fresh_classifier_accuracy"] <= 1
    assert sum(evaluated[0]["samples_per_class"]) == evaluated[0]["num_samples"] == 30


def test_the_epsilon_stands_with_all_that_it_needs(place, evaluated):
    _, metadata = checkpoint.find(place / "run")
    report = privacy_spent(metadata["ledger"], delta=DELTA, num_examples=1437)
    spent = evaluated[0]["privacy"]
    assert spent["epsilon"] == report.epsilon == pytest.approx(8, rel=1e-3)
    assert (spent["privacy_unit"], spent["adjacency"]) == ("query", "replace one")
    assert spent["delta"] == DELTA and spent["assumptions"] == list(report.assumptions)
    # Sixteen queries move at once if a record changes: far more than one query's.
    assert spent["record_epsilon"] == report.record_epsilon > 4 * report.epsilon
    statement = evaluate.describe(spent)
    for part in ("epsilon 8 at", "delta 0.0001", "unit: query", "adjacency: replace one"):
        assert part in statement
    assert f"record the same noise is epsilon {spent['record_epsilon']:.4g}" in statement
    assert all(f"\n- {each}" in statement for each in report.assumptions)


def test_another_delta_gives_another_epsilon_and_without_a_claim_it_says_why(place, evaluated):
    _, metadata = checkpoint.find(place / "run")
    looser = evaluate.privacy(metadata, delta=5e-4)
    assert looser["delta"] == 5e-4
    assert looser["epsilon"] < evaluated[0]["privacy"]["epsilon"]
    for delta, config in ((0.01, metadata["config"]), (None, {})):  # above 1/N; not named
        with pytest.raises(InputError, match=f"^delta: got {delta}"):
            evaluate.privacy({**metadata, "config": config}, delta=delta)
    spent = evaluate.privacy(checkpoint.find(place / "teacher")[1], delta=DELTA)
    assert spent["epsilon"] is None and "saw private data" in spent["why"]
    assert evaluate.describe(spent).startswith("No privacy is claimed: ledger: got")


def test_the_export_is_read_without_pickle_and_labels_its_own_pixels(place, evaluated):
    stored = np.load(evaluated[2], allow_pickle=False)
    student = checkpoint.load_model(place / "run", part="student")
    images, soft = stored["images"], stored["soft_labels"]
    assert (images.dtype, images.shape) == (np.uint8, (30, 8, 8, 1))
    assert (soft.dtype, soft.shape) == (np.float32, (30, 10))
    logits = core_evaluate.compute_logits(student, images)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(soft, odds / odds.sum(1, keepdims=True), atol=1e-5)
    assert stored["labels"].dtype == np.int32
    np.testing.assert_array_equal(stored["labels"], soft.argmax(1))
    assert stored["classes"].tolist() == [str(i) for i in range(10)]
    told = json.loads(str(stored["ledger"]))
    assert told == release.published(student.metadata["ledger"]).to_json()
    assert len(told["mechanisms"]) == 1 and told["ancestors"] == []
    assert str(stored["statement"]) == evaluate.describe(evaluated[0]["privacy"])
    names = {"images", "soft_labels", "labels", "classes", "ledger", "statement"}
    assert set(stored.files) == names


def test_neither_export_nor_releases_hold_the_noises_root(place, evaluated, tmp_path):
    _, metadata = checkpoint.find(place / "run")
    given = [np.load(evaluated[2])[name].tobytes() for name in np.load(evaluated[2]).files]
    given.append(evaluated[2].read_bytes())
    for part in ("student", "generator"):
        card = release.release(place / "run", tmp_path / part, part=part)
        assert card["ledger"] == release.published(metadata["ledger"]).to_json()
        assert card["privacy"]["epsilon"] == pytest.approx(8, rel=1e-3)
        assert card["privacy"]["record_epsilon"] == evaluated[0]["privacy"]["record_epsilon"]
        given += [path.read_bytes() for path in (tmp_path / part).iterdir()]
    assert not [root for root in _noise_roots(place) for content in given if root in content]


def test_the_folder_holds_the_numbers_and_two_pictures(place, evaluated, tmp_path):
    result, out, _ = evaluated
    assert json.loads((out / "evaluation.json").read_text()) == result
    pictures = {path.name for path in out.iterdir()} - {"evaluation.json"}
    assert pictures == {"samples.png", "convergence.png"}
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    # A checkpoint that was carried away has no metrics beside it.
    shutil.copytree(checkpoint.find(place / "run")[0], tmp_path / "4")
    digits = data.load_dataset("digits")
    found = evaluate.evaluate(tmp_path / "4", digits, out=tmp_path / "out", recipe=QUICK)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"evaluation.json", "samples.png"}
    assert (found["step"], found["dataset"]) == (4, "digits")


def test_a_sample_stands_in_the_row_of_its_class(tmp_path):
    from PIL import Image

    images = np.zeros((3, 4, 4, 1), np.uint8)
    path = figures.sample_grid(tmp_path / "grid.png", images, [1, 1, 1], ["a", "b"], columns=3)
    pixels = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("L"))
    right = pixels[:, pixels.shape[1] // 5 :]  # without title and names, which are on the left
    dark = np.flatnonzero((right < 10).mean(1) > 0.5)
    assert len(dark) and dark.min() > 0.45 * len(pixels)


@pytest.mark.parametrize(
    ("field", "flags"),
    [
        ("checkpoint", []),
        ("checkpoint", ["--checkpoint={place}/teacher"]),
        ("checkpoint", ["--checkpoint={place}/nowhere"]),
        ("checkpoint", [RUN, "--dataset=npz:{place}/other.npz"]),
        ("num_samples", [RUN, "--num_samples=0"]),
        ("source", [RUN, "--source=prior"]),  # the run had none
        ("source", [RUN, "--source=air"]),
        ("temperature", [RUN, "--temperature=0"]),
        ("num_samples", [RUN, "--num_samples=few"]),
        ("export", [RUN, "--export={place}/none/samples.npz"]),
        ("out", [RUN, "--out={place}/other.npz"]),
        ("delta", [RUN, "--delta=2"]),
        ("part", [RUN, "--part=generator"]),  # of the plain evaluation: it classifies nothing
    ],
)
def test_wrong_input_is_one_line(place, capsys, field, flags):
    digits = data.load_dataset("digits")
    few = {"x_train": digits.train.images[:9], "x_test": digits.test.images[:9]}
    np.savez(place / "other.npz", y_train=np.arange(9) % 3, y_test=np.arange(9) % 3, **few)
    main = core_evaluate.main if field == "part" else evaluate.main
    code = cli.exit_code(main, [flag.format(place=place) for flag in flags])
    printed = capsys.readouterr()
    assert (code, printed.out, printed.err.count("\n")) == (cli.EXIT_INPUT, "", 1)
    assert printed.err.startswith(f"error: {field}: got ")


def test_what_cannot_be_drawn_or_written_costs_nothing_that_was_measured(
    place, evaluated, tmp_path, monkeypatch, capsys
):
    def fail(*_, **__):
        raise ValueError("no such colour")

    def full(path, *_):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(figures, "sample_grid", fail)
    monkeypatch.setattr(evaluate, "export_samples", full)
    flags = [f"--checkpoint={place}/run", "--num_samples=30", "--num_steps=2"]
    code = cli.exit_code(
        evaluate.main, [*flags, f"--out={tmp_path}", f"--export={tmp_path}/samples.npz"]
    )
    out, err = capsys.readouterr()
    assert code == cli.EXIT_SYSTEM
    student, fresh, *statement = out.splitlines()
    assert student.startswith(f"student accuracy {evaluated[0]['accuracy']:.4f}  (360 examples;")
    assert fresh.startswith("fresh classifier accuracy 0.")
    assert "\n".join(statement) == evaluate.describe(evaluated[0]["privacy"])
    assert err.splitlines() == [
        f"{tmp_path}/samples.png: picture left out: ValueError: no such colour",
        f"error: {tmp_path}/samples.npz: No space left on device",
    ]
    assert json.loads((tmp_path / "evaluation.json").read_text())["num_samples"] == 30
    assert (tmp_path / "convergence.png").is_file()


def test_classes_in_another_order_are_mapped_and_others_refused(place, evaluated, tmp_path):
    digits = data.load_dataset("digits")
    turned = digits.reordered([9, *range(9)])
    found = evaluate.evaluate(place / "run", turned, recipe=QUICK)
    for name in ("accuracy", "fresh_classifier_accuracy"):
        assert found[name] == evaluated[0][name]
    arrays = {}
    for split in ("train", "test"):
        part = getattr(turned, split)
        arrays |= {f"x_{split}": part.images, f"y_{split}": part.labels}
    np.savez(tmp_path / "turned.npz", **arrays, classes=np.array(turned.classes))
    np.savez(tmp_path / "other.npz", **arrays, classes=np.array(list("abcdefghij")))
    settings = {**convert(place), "num_steps": 1, "noise_seed": 1}
    accuracy = [
        train.train_and_evaluate({**settings, "dataset": name}, tmp_path / name[:3])["accuracy"]
        for name in ("digits", f"npz:{tmp_path}/turned.npz")
    ]
    assert accuracy[0] == accuracy[1]
    settings["dataset"] = f"npz:{tmp_path}/other.npz"
    with pytest.raises(InputError, match="^teacher: .*calls class 0 '0', which is no class of npz"):
        train.train_and_evaluate(settings, tmp_path / "refused")
    with pytest.raises(InputError, match="^checkpoint: .*calls class 0 '0', which is no class of"):
        evaluate.evaluate(place / "run", f"npz:{tmp_path}/other.npz", recipe=QUICK)

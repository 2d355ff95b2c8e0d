"""A student of a cache is the one of its teacher, as far as k classes and the tail tell."""

import json
import re

import jax
import numpy as np
import pytest

from distill_core import checkpoint, evaluate
from distill_core.config import InputError
from distill_core.data.columns import Column
from distill_core.privacy import ledger
from distill_core.runtime import cli
from distill_core.training import teacher_cache
from swingdistill import train
from swingdistill.cache import writing

FORMAL = {"epsilon": 8.0, "delta": 1e-3, "entries": 5, "clip": 4.0, "t_max": 8.0}
RULES = {"scorers": ("rules",)}


@pytest.fixture(scope="module")
def cached(settings, teacher, tmp_path_factory):
    """`cached(…)`: the path of a cache of a run's text, `cache:…`; of all classes by default."""
    known = {}

    def cached(**changes):
        name = repr(sorted(changes.items()))
        if name not in known:
            workdir = tmp_path_factory.mktemp("cached")
            given = {"teacher": teacher, "top_k": _vocabulary(teacher), "cache_dtype": "float32"}
            writing.run({**settings(**given), **changes}, workdir)
            known[name] = f"cache:{workdir}/cache"
        return known[name]

    return cached


def _vocabulary(path):
    return checkpoint.load_model(path).network.num_tokens


def weights(workdir):
    return checkpoint.load_model(workdir).variables["params"]


def assert_same_weights(one, other, atol=2e-4):
    for a, b in zip(*map(jax.tree.leaves, (weights(one), weights(other))), strict=True):
        np.testing.assert_allclose(a, b, atol=atol, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"scorers": (), "noise_scale": 0.0},
        {**RULES, "noise_scale": 0.0, "t_max": 4.0},
        {**RULES, "noise_scale": 1.0, "noise_seed": 3, "t_max": 4.0},
        {**RULES, "variant": "mask", "data_on_device": True},
    ],
    ids=["plain", "swing", "noise", "mask"],
)
def test_from_all_classes_a_student_is_the_one_of_the_teacher(
    settings, teacher, cached, tmp_path, changes
):
    path, sgd = cached(), {"optimizer": "sgd", "learning_rate": 0.5}  # Adam would blow up last bits
    changes = {**changes, **sgd}
    found = train.train_and_evaluate(settings(teacher=path, **changes), tmp_path / "cached")
    expected = train.train_and_evaluate(settings(teacher=teacher, **changes), tmp_path / "taught")
    assert found["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-4)
    assert_same_weights(tmp_path / "cached", tmp_path / "taught")
    ancestors = [
        checkpoint.load_model(tmp_path / name).metadata["ledger"]["ancestors"]
        for name in ("cached", "taught")
    ]
    assert ancestors[0] == ancestors[1], "the teacher is the ancestor, by whatever way"


def test_a_teacher_that_is_gone_is_not_missed(settings, untrained, tmp_path):
    path = untrained(tmp_path / "teacher", 1)
    writing.run({**settings(teacher=path), "top_k": 8}, tmp_path / "w")
    (tmp_path / "teacher").rename(tmp_path / "gone")
    given = settings(teacher=f"cache:{tmp_path}/w/cache", model="teacher", model_kwargs={}, **RULES)
    train.train_and_evaluate(given, tmp_path / "run")
    ours = checkpoint.load_model(tmp_path / "run")
    theirs = checkpoint.load_model(tmp_path / "gone")
    assert ours.network.model_kwargs == theirs.network.model_kwargs
    assert ours.network.tokenizer == theirs.network.tokenizer


def test_a_plain_text_may_be_cached_by_the_core(settings, untrained, tmp_path):
    plain = {"canaries_per_level": 0}
    path = untrained(tmp_path / "teacher", 1, **plain)
    manifest = evaluate.write_teacher_cache(path, tmp_path / "cache", top_k=8)
    assert manifest.settings["length"] == settings()["length"]
    given = settings(teacher=f"cache:{tmp_path}/cache", **plain, **RULES)
    train.train_and_evaluate(given, tmp_path / "run")
    with pytest.raises(InputError, match="other rows of text"):
        train.train_and_evaluate({**given, "canaries_per_level": 2}, tmp_path / "other")


def test_a_cache_that_was_written_anew_by_another_teacher_is_not_resumed_from(
    settings, teacher, reference, tmp_path
):
    given = {**settings(teacher=teacher), "top_k": 8}
    writing.run(given, tmp_path / "w")
    student = settings(teacher=f"cache:{tmp_path}/w/cache", num_steps=2, **RULES)
    train.train_and_evaluate(student, tmp_path / "run")
    with pytest.raises(InputError, match="holds a cache of another teacher"):
        writing.run({**given, "teacher": reference}, tmp_path / "w")
    (tmp_path / "w" / "cache").rename(tmp_path / "w" / "old")
    writing.run({**given, "teacher": reference}, tmp_path / "w")
    with pytest.raises(InputError, match="the data changed since this run began"):
        train.train_and_evaluate({**student, "num_steps": 4}, tmp_path / "run")


CONFIG = """
from ml_collections import config_dict

def get_config(arg=""):
    return config_dict.ConfigDict({settings!r}).lock()
"""


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"teacher": "cache:nowhere"}, "teacher", "has no cache"),
        ({"scorers": ("rules", "divergence")}, "scorers", "rules, presidio, spans and surprisal"),
        ({"scorers": ("surprisal",)}, "reference", "surprisal needs one"),
        ({"variant": "anchored"}, "variant", "swing and mask work from it"),
        ({"epsilon": 8.0, "entries": 5}, "epsilon", "when it is written"),
        ({"entries": 5}, "entries", "when it is written"),
        ({"frozen_dtype": "bfloat16"}, "frozen_dtype", "holds no network"),
        ({"t_min": 0.5}, "t_min", "at least 1"),
        ({"length": 12}, "length", "must be 16"),
        ({"num_train": 30}, "num_train", "must be 1000000000"),
        ({"half": "first"}, "half", "must be 'all'"),
        ({"canary_seed": 4}, "canary_seed", "must be 0"),
        ({"tokenizer": "byte_pairs", "vocab_size": 300}, "teacher", "has another tokenizer"),
    ],
    ids=str,
)
def test_what_a_cache_cannot_serve_costs_one_line(
    settings, cached, tmp_path, capsys, changes, field, words
):
    given = {**settings(teacher=cached(), **RULES), **changes}
    (tmp_path / "config.py").write_text(CONFIG.format(settings=given))
    arguments = [f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/run"]
    capsys.readouterr()
    code = cli.exit_code(
        lambda argv: cli.run_training(train.train_and_evaluate, train.Settings, argv), arguments
    )
    said = capsys.readouterr().err
    assert code == 2 and said.startswith(f"error: {field}:") and said.count("\n") == 1
    assert words in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [None, "cache:x"])
def test_what_is_stored_are_a_checkpoints_answers(settings, tmp_path, given):
    with pytest.raises(InputError, match="must be a checkpoint"):
        writing.run(settings(teacher=given), tmp_path / "w")


def formal(settings, teacher, reference, **changes):
    return settings(**{"teacher": teacher, "reference": reference, **FORMAL, **RULES, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scorers": ("rules", "divergence"), "quantiles": (0, 1)},
        {"variant": "anchored", "t_min": 2.0},
    ],
    ids=["rules", "divergence", "anchored"],
)
def test_a_student_of_the_release_is_the_one_that_noised_for_itself(
    settings, teacher, reference, tmp_path, changes
):
    """With a given seed, which both then share."""
    given = formal(settings, teacher, reference, noise_seed=3, **changes)
    stored = {"top_k": _vocabulary(teacher), "cache_dtype": "float32"}
    writing.run({**given, **stored}, tmp_path / "w")
    train.train_and_evaluate(given, tmp_path / "own")
    student = {**given, "teacher": f"cache:{tmp_path}/w/cache", "reference": None}
    budget = train.train_and_evaluate(student, tmp_path / "run")["budget"]
    assert_same_weights(tmp_path / "own", tmp_path / "run")
    assert budget["epsilon"] is None and "seed was given" in budget["why"]


def test_a_release_is_written_once_and_serves_students_of_any_seed(
    settings, teacher, reference, tmp_path
):
    given = formal(settings, teacher, reference)
    manifest = writing.run({**given, "top_k": 8}, tmp_path / "w")
    folder = tmp_path / "w" / "cache"
    private = tmp_path / "w" / "private" / "swing_noise.json"
    root = json.loads(private.read_text())["root"]
    assert private.stat().st_mode & 0o777 == 0o600
    text = (folder / "manifest.json").read_text()
    for secret in (root, teacher_cache.inputs.of_model(checkpoint.load_model(teacher))):
        assert secret not in text
    report = manifest.release["report"]
    assert report["epsilon"] == 8.0 and "records" in report["not_covered"]
    assert "positions of score 0, whose targets are the teacher's, bare" in report["not_covered"]
    student = {**given, "teacher": f"cache:{folder}"}
    for seed in (1, 2):
        run = tmp_path / f"run{seed}"
        budget = train.train_and_evaluate({**student, "seed": seed}, run)["budget"]
        assert budget == {**report, "release": manifest.id}
        ours = checkpoint.load_model(run).metadata["ledger"]
        ancestors = {each["id"]: each["ledger"] for each in ours["ancestors"]}
        release = ledger.read(ancestors[manifest.id])
        (entry,) = release.mechanisms
        assert entry.std / entry.sensitivity == pytest.approx(report["noise_multiplier"])
        assert re.search(rf"\b{entry.count} positions", report["privacy_unit"])
        assert [each.id for each in release.ancestors] == [
            checkpoint.load_model(teacher).metadata["id"]
        ]
    again = writing.run({**given, "top_k": 8}, tmp_path / "w")
    assert again.id == manifest.id, "no second release of the same contexts"
    assert json.loads(private.read_text())["root"] == root


@pytest.mark.parametrize("bare", [True, False])
def test_a_release_holds_the_teachers_bare_answers_only_where_its_report_says_so(
    settings, teacher, reference, tmp_path, bare
):
    """Rules and their scores do not depend on the teacher; where scores do, all is noised."""
    scorers = ("rules",) if bare else ("rules", "divergence")
    given = formal(settings, teacher, reference, scorers=scorers, quantiles=(0, 1))
    manifest = writing.run({**given, "top_k": 8, "cache_dtype": "float32"}, tmp_path / "w")
    found = {name: Column(tmp_path / "w" / "cache" / name)[:] for name in manifest.columns}
    loaded = checkpoint.load_model(teacher)
    hp = train.config.validate(given, train.Settings)
    rows = train.private_text.to_rows(hp, train.private_text.load(hp).train, loaded.tokenizer).rows
    module = loaded.network.module()
    logits = module.apply(loaded.variables, rows["tokens"], rows["segments"])
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    theirs = np.take_along_axis(log_probs, found["classes"].astype(int), -1)
    same = (np.abs(theirs - found["log_probs"]) < 1e-4).all(-1)
    expected = (found["scores"] == 0) & (rows["weights"] > 0) & bare
    np.testing.assert_array_equal(same, expected)
    assert same.any() == bare
    assert ("bare" in manifest.release["report"]["not_covered"]) == bare
    noised = (rows["weights"] > 0) & ~expected
    assert np.isneginf(found["tails"][noised][..., 0]).all(), "of any other class nothing is told"
    assert (np.isfinite(found["log_probs"][noised]).sum(-1) == FORMAL["entries"]).all()
    assert not found["tails"][noised][..., 1].any() and not found["drawn"][noised].any()
    assert np.isneginf(found["log_probs"][rows["weights"] == 0]).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epsilon": 4.0}, "must be 8.0, as when the release was written"),
        ({"scorers": ("rules", "divergence")}, "as when the release was written"),
        ({"t_max": 4.0}, "must be 8.0"),
        ({"clip": 5.0}, "must be 4.0"),
        ({"variant": "anchored"}, "must be 'swing'"),
    ],
    ids=str,
)
def test_a_student_with_other_settings_than_the_releases_is_refused(
    settings, teacher, reference, cached, tmp_path, changes, words
):
    given = formal(settings, teacher, reference)
    path = cached(reference=reference, **FORMAL, **RULES)
    with pytest.raises(InputError, match=words) as error:
        train.train_and_evaluate({**given, "teacher": path, **changes}, tmp_path / "run")
    assert error.value.field == next(iter(changes))
    assert not (tmp_path / "run").exists()


def test_a_preview_from_a_cache_shows_what_the_recognisers_find(settings, cached, capsys):
    train.preview(settings(teacher=cached(), **RULES))
    assert "scores of rules" in capsys.readouterr().out


@pytest.mark.parametrize("lost", [False, True])
def test_a_release_goes_on_with_its_own_teacher_and_noise_alone(
    settings, teacher, reference, untrained, tmp_path, lost
):
    """A seed that was given draws no key that would tell; nor does a key that was lost."""
    given = formal(settings, teacher, reference, noise_seed=None if lost else 3)
    writing.run(given, tmp_path / "run")
    if lost:
        (tmp_path / "run" / "private" / "release.json").unlink()
    others = [given] if lost else [
        {**given, "noise_seed": 4},
        {**given, "teacher": untrained(tmp_path / "other", 9)},
    ]  # fmt: skip
    for other in others:
        with pytest.raises(InputError, match="^workdir: .*holds a release .*take another workdir"):
            writing.run(other, tmp_path / "run")

"""Perplexity and exposure of a checkpoint, by hand and by the binary."""

import dataclasses
import functools
import json
import math
import shutil
import time

import jax
import numpy as np
import pytest

from distill_core import checkpoint, config
from distill_core.checkpoint import integrity
from distill_core.config import InputError
from distill_core.data.text import tasks as text_tasks
from distill_core.data.text import tokenizers
from distill_core.data.text.corpus import Example
from distill_core.models.network import text_network
from swingdistill import evaluate, private_text, train

# What a model of two canaries learns by heart; of three digits, so that there are few candidates.
HARD = {
    "num_train": 10,
    "canaries_per_level": 2,
    "canary_levels": (20,),
    "canary_digits": 3,
    "learning_rate": 0.03,
    "num_steps": 80,
    "log_every": 80,
}
CEILING = math.log2(10**3 - 2 + 1)


@pytest.fixture(scope="module")
def learnt(settings, tmp_path_factory):
    """The workdir of a run that learnt two secrets by heart."""
    workdir = tmp_path_factory.mktemp("learnt")
    train.train_and_evaluate(settings(**HARD), workdir)
    return workdir


@pytest.fixture(scope="module")
def fresh(untrained, tmp_path_factory):
    """A checkpoint that did not learn them."""
    return untrained(tmp_path_factory.mktemp("fresh"), 4, **HARD)


def by_hand(loaded, example, task):
    """(−log p, whether it is the likeliest, text) of each label that counts, a line by itself."""
    line = text_tasks.encode(example, loaded.tokenizer, task)
    width = loaded.network.max_length
    tokens = np.zeros((1, width), np.int32)  # what stands behind a position does not count
    tokens[0, : len(line.ids) + 1] = [loaded.tokenizer.bos_id, *line.ids]
    logits = np.asarray(apply(loaded.network, loaded.variables, tokens), np.float64)[0]
    labels = [*line.ids, loaded.tokenizer.eos_id]
    log_sum = np.log(np.sum(np.exp(logits), axis=-1))
    return [
        (log_sum[i] - logits[i, label], logits[i].argmax() == label, line.text[start:end])
        for i, (label, weight, (start, end)) in enumerate(
            zip(labels, line.weights, line.offsets, strict=True)
        )
        if weight
    ]


@functools.partial(jax.jit, static_argnums=0)
def apply(network, variables, tokens):
    return network.apply(variables, tokens)


def measured(loaded, hp, examples):
    return evaluate.test_metrics(loaded, evaluate.test_rows(hp, examples, loaded.tokenizer))


@pytest.mark.parametrize("task", ["language", "generation"])
def test_perplexity_is_that_of_every_line_by_itself(teacher, values, folder, task):
    loaded, hp = checkpoint.load_model(teacher), values(task=task)
    lines = (folder / "test.txt").read_text().splitlines()[:4]
    examples = [Example(line) for line in (*lines, "my id is 281265", "the 3 cat sat .")]
    if task == "generation":
        examples[0] = Example(examples[0].text, fields={"cat": "3"})
    found = measured(loaded, hp, examples)
    tokens = [token for example in examples for token in by_hand(loaded, example, task)]

    def perplexity(*texts):
        chosen = [value for value, _, text in tokens if text in texts] if texts else None
        return math.exp(np.mean([v for v, *_ in tokens] if chosen is None else chosen))

    digits, secret = tuple("0123456789"), tuple("281265")
    others = [value for value, _, text in tokens if text not in secret]
    expected = {
        "perplexity": perplexity(),
        "accuracy": np.mean([right for _, right, _ in tokens]),
        "num_tokens": len(tokens),
        "digit_perplexity": perplexity(*digits),
        "private_perplexity": perplexity(*secret),
        "public_perplexity": math.exp(np.mean(others)),
        "public_digit_perplexity": perplexity("3"),
    }
    assert found == pytest.approx(expected, rel=1e-4)
    assert abs(math.log(found["private_perplexity"] / found["public_perplexity"])) > 0.1


def test_accuracy_of_a_classifier_is_of_its_answers(teacher, values, folder):
    hp = values(task="classification", dataset=f"tsv:{folder}/labelled")
    loaded, examples = checkpoint.load_model(teacher), private_text.load(hp).test
    found = measured(loaded, hp, examples)
    tokens = [token for e in examples for token in by_hand(loaded, e, "classification")]
    assert found["num_tokens"] == len(tokens) == len(examples) == 8
    assert found["accuracy"] == np.mean([right for _, right, _ in tokens])
    expected = math.exp(np.mean([value for value, *_ in tokens]))
    assert found["perplexity"] == pytest.approx(expected, rel=1e-4)


def test_what_no_token_is_of_has_no_perplexity(teacher, values, folder):
    found = measured(checkpoint.load_model(teacher), values(), private_text.load(values()).test)
    none = {name for name, value in found.items() if value is None}
    assert none == {"digit_perplexity", "private_perplexity", "public_digit_perplexity"}
    assert found["public_perplexity"] == found["perplexity"]


def exposures(path, hp, **settings):
    return evaluate.exposures(checkpoint.load_model(path), hp, **settings)


def test_secrets_that_were_learnt_by_heart_are_exposed_and_others_are_not(learnt, fresh, values):
    hp = values(**HARD)
    found = exposures(learnt, hp)
    assert list(found) == [20] and len(found[20]) == 2
    assert min(found[20]) > CEILING - 0.1
    assert max(found[20]) <= CEILING + 1e-9
    assert max(exposures(fresh, hp)[20]) < 5
    # Other secrets of the same format were never there.
    assert (
        max(exposures(learnt, dataclasses.replace(hp, canary_seed=3, canaries_per_level=8))[20])
        < 7.5
    )


def test_estimators_agree_on_what_was_learnt(learnt, values):
    hp = values(**HARD)
    exact = exposures(learnt, hp)
    every = exposures(learnt, hp, estimator="sampled", num_samples=998)
    assert every[20] == pytest.approx(exact[20], abs=1e-6)
    few = exposures(learnt, hp, estimator="sampled", num_samples=31)
    assert few[20] == [5.0, 5.0]
    for num in (10, 998):  # too few, and what a network that learnt two numbers gives the others
        with pytest.raises(InputError):
            exposures(learnt, hp, estimator="extrapolated", num_samples=num)


def test_exposures_are_grouped_by_repetitions_in_the_order_of_the_secrets(fresh, values):
    hp = values(canary_digits=3, canary_levels=(4, 1), canaries_per_level=3)
    found = exposures(fresh, hp)
    assert {level: len(bits) for level, bits in found.items()} == {4: 3, 1: 3}


def test_without_canaries_there_is_no_exposure(fresh, values):
    with pytest.raises(InputError) as error:
        exposures(fresh, values(canaries_per_level=0))
    assert error.value.field == "canaries"


def classified(monkeypatch, fresh, hp):
    """What a classifier's estimator is asked, and the losses that it would see."""
    asked = {}

    def estimator(loss_fn, secrets, labels, candidates, *, num_samples, batch_size):
        rows = candidates.tokens(candidates.index(secrets))
        asked.update(secrets=secrets, labels=labels, rows=rows, losses=loss_fn(rows, labels))
        return np.arange(len(secrets), dtype=np.float64)

    monkeypatch.setattr(evaluate.estimators, "classifier_exposure", estimator)
    asked["found"] = exposures(fresh, hp)
    return asked


def test_a_classifiers_secrets_are_ranked_by_the_loss_of_their_labels(
    fresh, values, folder, monkeypatch
):
    hp = values(task="classification", dataset=f"tsv:{folder}/labelled", canary_digits=3)
    asked = classified(monkeypatch, fresh, hp)
    texts, loaded = private_text.load(hp), checkpoint.load_model(fresh)
    assert asked["secrets"] == [canary.secret for canary in texts.canaries]
    label_of = {example.text: example.label for example in texts.train}
    assert asked["labels"] == [label_of[canary.line] for canary in texts.canaries]
    assert asked["found"] == {1: [0.0, 1.0], 4: [2.0, 3.0]}
    answers = [int(loaded.tokenizer.encode(str(k))[0]) for k in range(3)]
    for row, label, loss in zip(asked["rows"], asked["labels"], asked["losses"], strict=True):
        tokens = np.zeros((1, 16), np.int32)
        tokens[0, : len(row)] = row
        logits = np.asarray(apply(loaded.network, loaded.variables, tokens), np.float64)[0]
        logits = logits[len(row) - 1, answers]
        assert row[-1] == loaded.tokenizer.eos_id
        assert loss == pytest.approx(np.log(np.exp(logits).sum()) - logits[label], rel=1e-4)


def test_a_classifiers_candidates_are_sampled(fresh, values, folder):
    hp = values(task="classification", dataset=f"tsv:{folder}/labelled", canary_digits=3)
    found = exposures(fresh, hp, num_samples=31)
    bits = [b for by_level in found.values() for b in by_level]
    assert list(found) == [1, 4] and len(bits) == 4
    assert all(0 <= b <= 5 for b in bits) and len(set(bits)) > 1
    assert found == exposures(fresh, hp, num_samples=31, estimator="exact"), "there is one way"


def test_a_classifiers_labels_are_those_it_was_taught_whatever_the_test_text_holds(
    fresh, values, folder, monkeypatch, tmp_path
):
    for path in (folder / "labelled").iterdir():
        kept = path.read_text().splitlines()
        if path.name == "test.tsv":
            kept = [line for line in kept if not line.startswith("2")]
        (tmp_path / path.name).write_text("\n".join(kept))
    hp = values(
        task="classification", dataset=f"tsv:{tmp_path}", canary_digits=3, canaries_per_level=8
    )
    asked = classified(monkeypatch, fresh, hp)
    texts = private_text.load(hp)
    label_of = {example.text: example.label for example in texts.train}
    assert asked["labels"] == [label_of[canary.line] for canary in texts.canaries]


def test_a_classifier_is_not_asked_about_other_classes(fresh, values, folder):
    hp = values(task="classification", dataset=f"tsv:{folder}/labelled", canary_digits=3)
    loaded = checkpoint.load_model(fresh)
    other = dataclasses.replace(loaded.network, classes=("a", "b", "c"))
    loaded = dataclasses.replace(loaded, network=other)
    with pytest.raises(InputError) as error:
        evaluate.exposures(loaded, hp, num_samples=31)
    assert error.value.field == "canaries"


def test_a_checkpoint_knows_its_canaries_and_may_be_asked_for_anothers(
    learnt, fresh, teacher, values
):
    found = evaluate.evaluate_checkpoint(learnt)
    hp = values(**HARD)
    metrics = measured(checkpoint.load_model(learnt), hp, private_text.load(hp).test)
    assert found == {**metrics, "exposure": {"20": exposures(learnt, hp)[20]}}
    # The teacher's own secrets have six digits; those asked for have three.
    for other in (fresh, teacher):
        asked = evaluate.evaluate_checkpoint(other, canaries=learnt)
        assert asked["exposure"] == {"20": exposures(other, hp)[20]}


def test_a_model_of_no_canaries_has_no_exposure(fresh, tmp_path):
    shutil.copytree(fresh, tmp_path / "plain")
    path, metadata = checkpoint.find(tmp_path / "plain")
    settings = {**metadata["config"], "canaries_per_level": 0}
    integrity.amend(path, {"config": settings})
    assert evaluate.evaluate_checkpoint(path)["exposure"] is None


def test_the_binary_prints_a_line_per_level_and_writes_everything(learnt, tmp_path, capsys):
    evaluate.main([f"--checkpoint={learnt}", f"--out={tmp_path}/found.json"])
    first, second = capsys.readouterr().out.splitlines()
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == evaluate.evaluate_checkpoint(learnt)
    assert first.startswith(f"test perplexity {found['perplexity']:.3f}")
    assert f"at 20 repetitions: mean {np.mean(found['exposure']['20']):.2f} bits" in second
    evaluate.main([f"--checkpoint={learnt}", "--estimator=sampled", "--num_samples=31"])
    out = capsys.readouterr().out
    assert "mean 5.00 bits, worst 5.00 (2 secrets" in out and "show 5.00 bits at most" in out


def test_where_no_distribution_fits_exposure_is_sampled_and_says_so(
    learnt, values, monkeypatch, capsys
):
    """After hours of training an experiment must not end for it."""
    monkeypatch.setattr(evaluate.estimators, "MAX_EXACT", 10)
    found = exposures(learnt, values(**HARD), num_samples=31)
    assert found[20] == [5.0, 5.0]
    assert "exposure is sampled instead: num_samples: got 31" in capsys.readouterr().err


def test_exact_exposure_of_24_secrets_of_six_digits_takes_less_than_a_minute():
    """For a student as large as the demo's; a few seconds on two free cores."""
    lines = ["my id is 0", *(f"w{i} x{i}" for i in range(480))]
    tokenizer = tokenizers.train_words(lines, vocab_size=1000)
    kwargs = {"width": 64, "num_layers": 1, "num_heads": 4}
    network = text_network(tokenizer, 64, model="transformer", model_kwargs=kwargs)
    params, _ = network.init(jax.random.key(0))
    loaded = checkpoint.LoadedModel({"params": params}, network)
    given = {"dataset": "records", "canaries_per_level": 8}
    began = time.process_time()  # of both cores, so that a busy machine adds little
    found = evaluate.exposures(loaded, config.validate(given, private_text.Settings))
    assert time.process_time() - began < 60
    assert [len(bits) for bits in found.values()] == [8, 8, 8]

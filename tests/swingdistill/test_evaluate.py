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
import tokenizers as tokenizers_library

from distill_core import checkpoint, config
from distill_core.checkpoint import integrity
from distill_core.config import InputError
from distill_core.data.text import records, tokenizers
from distill_core.data.text import tasks as text_tasks
from distill_core.data.text.corpus import Example
from distill_core.models.network import text_network
from swingdistill import evaluate, private_text, train
from swingdistill.canaries import estimators, models
from swingdistill.canaries import secrets as canaries
from swingdistill.canaries.estimators import Ranks
from swingdistill.canaries.exposure import rank_bounds

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
        "num_digit_tokens": sum(text in digits for *_, text in tokens),
        "num_private_tokens": 6,
        "num_public_tokens": len(tokens) - 6,
        "num_public_digit_tokens": sum(text == "3" for *_, text in tokens),
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


def test_private_tokens_are_those_in_the_test_texts_own_spans(teacher, values, folder, tmp_path):
    lines = (folder / "test.txt").read_text().splitlines()
    spans = [{"line": n, "spans": [[0, len(lines[n - 1])]]} for n in (2, 3)]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, spans)))
    loaded, hp = checkpoint.load_model(teacher), values(spans=str(tmp_path))
    found = measured(loaded, hp, private_text.load(hp).test)
    tokens = [by_hand(loaded, Example(lines[n - 1]), "language") for n in (2, 3)]
    inside = [value for each in tokens for value, *_ in each[:-1]]  # their ends are public
    assert found["num_private_tokens"] == len(inside)
    assert found["private_perplexity"] == pytest.approx(math.exp(np.mean(inside)), rel=1e-4)


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
        order = np.arange(len(secrets))
        return Ranks(1.0 * order, order, num_samples, 999)

    monkeypatch.setattr(evaluate.estimators, "rank_by_label", estimator)
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
    assert metrics.items() <= found.items()
    assert found["exposure"] == {"20": exposures(learnt, hp)[20]}
    assert found["exposure_bounds"]["20"] == [[bits, bits] for bits in found["exposure"]["20"]]
    assert (found["exposure_among"], found["exposure_candidates"]) == (999, 999)
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
    first, second, chance, missing = capsys.readouterr().out.splitlines()
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == evaluate.evaluate_checkpoint(learnt)
    assert first.startswith(f"test perplexity {found['perplexity']:.3f}")
    assert f"at 20 repetitions: mean {np.mean(found['exposure']['20']):.2f} bits" in second
    assert second.endswith(f"of 2: leaks (p {found['exposure_p']['20']:.1e})")
    assert "1.44 bits" in chance
    assert missing == f"not measured: {'; '.join(found['not_measured'])}"
    evaluate.main([f"--checkpoint={learnt}", "--estimator=sampled", "--num_samples=63"])
    out = capsys.readouterr().out
    low, high = rank_bounds(np.array(0), 63, 998)
    assert f"worst 6.00 ({low:.2f} to {high:.2f}) of 2: leaks (p " in out
    assert "ranks among 64 of 999 candidates show 6.00 bits at most" in out


def test_public_and_private_tokens_are_printed_apart(teacher, values, capsys):
    examples = [Example("my id is 281265"), Example("the 3 cat sat .")]
    found = measured(checkpoint.load_model(teacher), values(), examples)
    capsys.readouterr()
    evaluate.say(found)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[-1] for line in lines] == [f"({n} tokens)" for n in (16, 10, 6, 7, 1)]
    assert lines[1].startswith(f"  of public tokens  {found['public_perplexity']:.3f}")


def test_beyond_what_can_be_gone_through_exposure_is_sampled(learnt, values, monkeypatch):
    monkeypatch.setattr(evaluate.estimators, "MAX_EXACT", 10)
    found = exposures(learnt, values(**HARD), num_samples=31)
    assert found[20] == [5.0, 5.0]


def test_a_checkpoints_whole_lines_rank_as_its_digits_do(learnt, values):
    loaded, hp = (
        checkpoint.load_model(learnt),
        values(**{**HARD, "canaries_per_level": 4}, canary_seed=3),
    )
    secrets = [canary.secret for canary in private_text.draw(hp)]
    encode, bos = loaded.tokenizer.encode, loaded.tokenizer.bos_id
    lines = canaries.Lines(encode, "my id is {}", canaries.Space(3), (bos,))
    found = estimators.rank(models.line_fn(loaded), secrets, lines)
    np.testing.assert_array_equal(found.bits, exposures(learnt, hp)[20])


FIRST, LAST = records.FIRST_NAMES[:10], records.LAST_NAMES[:30]
# The last one begins others.
NAMES = (*(f"{first} {last}" for first in FIRST for last in LAST), FIRST[0])


@pytest.fixture(scope="module")
def merging(folder, tmp_path_factory):
    """A directory with GPT-2-like byte pairs that merge digits, and a list of names."""
    place = tmp_path_factory.mktemp("merging")
    inner = tokenizers_library.Tokenizer(tokenizers_library.models.BPE())
    inner.pre_tokenizer = tokenizers_library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers_library.decoders.ByteLevel()
    trainer = tokenizers_library.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers_library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    numbers = [f"my id is {i:03d}" for i in range(0, 1000, 7)]
    names = [f"my id is {name}" for name in NAMES]
    inner.train_from_iterator([(folder / "train.txt").read_text(), *numbers, *names], trainer)
    inner.save(str(place / "tokenizer.json"))
    (place / "names.txt").write_text("\n".join(NAMES))
    return place


@pytest.fixture(scope="module")
def memorised(settings, merging, tmp_path_factory):
    """`memorised(kind)`: settings and workdir of a run that learnt numbers, or names, by heart."""
    found = {}

    def memorised(kind):
        if kind not in found:
            changes = {**HARD, "tokenizer": str(merging / "tokenizer.json"), "num_steps": 150}
            if kind == "names":
                changes["canary_candidates"] = str(merging / "names.txt")
            workdir = tmp_path_factory.mktemp(kind)
            train.train_and_evaluate(settings(**changes), workdir)
            found[kind] = changes, workdir
        return found[kind]

    return memorised


def test_secrets_of_merged_digits_are_ranked_as_lines(memorised, values):
    changes, workdir = memorised("numbers")
    loaded, hp = checkpoint.load_model(workdir), values(**changes)
    drawn = private_text.draw(hp)
    assert min(len(loaded.tokenizer.encode(c.line)) for c in drawn) < len("my id is") // 2 + 3
    assert isinstance(private_text.secret_candidates(hp, loaded.tokenizer, drawn), canaries.Lines)
    exact = exposures(workdir, hp)[20]
    assert min(exact) > CEILING - 0.1
    (sampled,) = evaluate.ranks(loaded, hp, estimator="sampled", num_samples=99).values()
    low, high = sampled.bounds()
    assert np.all((low <= exact) & (exact <= high)) and sampled.asked == 99
    other = dataclasses.replace(hp, canary_seed=3, canaries_per_level=8)
    assert max(exposures(workdir, other)[20]) < 8


def test_secrets_may_be_names_of_a_list(memorised, values, capsys):
    changes, workdir = memorised("names")
    hp = values(**changes)
    assert {canary.secret for canary in private_text.draw(hp)} < set(NAMES)
    found = evaluate.evaluate_checkpoint(workdir)
    assert min(found["exposure"]["20"]) > math.log2(len(NAMES) - 1) - 0.1
    assert found["exposure_among"] == found["exposure_candidates"] == len(NAMES) - 1
    assert not any("names" in each for each in found["not_measured"])
    # Asked for another run's canaries, which are numbers, it forgets its own list.
    _, numbers = memorised("numbers")
    asked = evaluate.evaluate_checkpoint(workdir, canaries=numbers)
    assert asked["exposure_candidates"] == 999 and max(asked["exposure"]["20"]) < 8


def test_a_classifiers_secrets_may_be_names_or_merged_digits(
    values, folder, merging, untrained, tmp_path
):
    labelled = {"task": "classification", "dataset": f"tsv:{folder}/labelled", "canary_digits": 3}
    stored = {"tokenizer": str(merging / "tokenizer.json")}
    path = untrained(tmp_path, 4, **labelled, **stored)
    loaded = checkpoint.load_model(path)
    for changes in ({}, {"canary_candidates": str(merging / "names.txt")}):
        hp = values(**labelled, **stored, **changes)
        found = evaluate.ranks(loaded, hp, num_samples=31)
        assert [each.asked for each in found.values()] == [31, 31]
        assert all(0 <= bits <= 5 for each in found.values() for bits in each.bits)


def own(tmp_path, *lines):
    path = tmp_path / "secrets.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


def test_a_users_own_secrets_are_ranked_and_never_shown(memorised, values, tmp_path, capsys):
    changes, workdir = memorised("numbers")
    first, second = (canary.secret for canary in private_text.draw(values(**changes)))
    unknown = next(f"{i}" for i in range(500, 999) if f"{i}" not in (first, second))
    secrets = own(
        tmp_path,
        {"prefix": "my id is ", "secret": unknown},
        {"prefix": "my id is ", "secret": first, "suffix": ""},
    )
    capsys.readouterr()
    evaluate.main([f"--checkpoint={workdir}", f"--secrets={secrets}", f"--out={tmp_path}/found"])
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "found").read_text())["secrets"]
    assert [line["line"] for line in found["lines"]] == [1, 2]
    assert found["lines"][1]["exposure"] > CEILING - 1.1, "the other canary is a candidate"
    assert found["lines"][0]["exposure"] < 8
    assert (
        "secret of line 2: exposure" in out and f"2 secrets of your own: {found['verdict']}" in out
    )
    for shown in (out, json.dumps(found)):
        assert f'"{first}"' not in shown and f" {first} " not in shown


def test_secrets_that_are_no_numbers_need_candidates(memorised, merging, values, tmp_path):
    changes, workdir = memorised("names")
    planted = private_text.draw(values(**changes))[0].secret
    secrets = own(tmp_path, {"prefix": "my id is ", "secret": planted})
    found = evaluate.evaluate_checkpoint(
        workdir, secrets=secrets, candidates=str(merging / "names.txt")
    )
    (line,) = found["secrets"]["lines"]
    # The other canary is a candidate, and a first name, which never ranks behind a whole one.
    assert line["exposure"] > math.log2(len(NAMES)) - 1.6
    assert line["candidates"] == len(NAMES)
    with pytest.raises(InputError, match="^secrets: got 'line 1'; .*--candidates=FILE") as error:
        evaluate.evaluate_checkpoint(workdir, secrets=secrets)
    assert planted not in str(error.value)


def test_secrets_are_not_drawn_from_a_list_that_changed_since_they_were_planted(memorised, merging):
    """Others would be asked for, and no leak be seen."""
    _, workdir = memorised("names")
    listed = merging / "names.txt"
    before = listed.read_text()
    try:
        listed.write_text(f"Zoe First\n{before}")
        with pytest.raises(InputError, match="^canary_candidates: .*the data changed since"):
            evaluate.evaluate_checkpoint(workdir)
    finally:
        listed.write_text(before)
    assert max(evaluate.evaluate_checkpoint(workdir)["exposure"]["20"]) > 3


def test_a_student_whose_reference_saw_its_secrets_is_warned_about(values):
    cases = [
        ({}, "was trained on 2 of the same canaries"),
        ({"transfer_set": "public"}, "was trained on 10 of the same 10 lines"),
        ({"transfer_set": "public", "half": "second"}, ""),
        ({"canary_seed": 5, "half": "second"}, ""),
        ({"transfer_set": "public", "public_text": True}, ""),
    ]
    for changes, said in cases:
        ours, reference = (
            config.to_json(values(**{**HARD, **changes}))
            for changes in ({"half": "first"}, changes)
        )
        found = private_text.reference_saw(ours, reference)
        assert found.startswith(said) and bool(found) == bool(said)
    assert private_text.reference_saw(ours, {}) == "", "GPT-2 tells nothing"


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


def test_a_classifier_has_no_lines_to_rank_a_users_secrets_by(untrained, folder, tmp_path):
    labelled = {"task": "classification", "dataset": f"tsv:{folder}/labelled"}
    path = untrained(tmp_path / "run", 4, **labelled)
    with pytest.raises(InputError, match="^secrets: .* classifier"):
        evaluate.evaluate_checkpoint(path, secrets=own(tmp_path, {"secret": "281"}))


def test_any_language_model_may_be_asked_for_secrets(learnt, tmp_path):
    """One whose metadata names no text, such as a file from elsewhere."""
    shutil.copytree(learnt, tmp_path / "bare")
    path, _ = checkpoint.find(tmp_path / "bare")
    integrity.amend(path, {"config": {}})
    found = evaluate.evaluate_checkpoint(path, secrets=own(tmp_path, {"secret": "281"}))
    assert found["exposure"] is None and "perplexity" not in found
    assert found["secrets"]["lines"][0]["candidates"] == 1000
    assert found["not_measured"][0].startswith("perplexity")
    asked = evaluate.evaluate_checkpoint(path, canaries=learnt)
    assert min(asked["exposure"]["20"]) > CEILING - 0.1

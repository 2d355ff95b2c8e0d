"""Which lines a run reads, with which canaries, in which tokens."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from distill_core import checkpoint
from distill_core.config import InputError
from distill_core.data.text import corpus as corpora
from distill_core.data.text import tasks as text_tasks
from distill_core.data.text import tokenizers
from distill_core.data.text.lines import Span
from swingdistill import private_text
from swingdistill.canaries import secrets as canaries


def texts(examples):
    return [example.text for example in examples]


def planted(examples):
    return [e for e in examples if e.text.startswith("my id is ")]


def ordinary(examples):
    return [e.text for e in examples if not e.text.startswith("my id is ")]


@pytest.fixture(scope="module")
def labelled(folder):
    """What makes a run one of classification."""
    return {"task": "classification", "dataset": f"tsv:{folder}/labelled"}


def test_teacher_and_reference_read_disjoint_halves(values, folder):
    lines = (folder / "train.txt").read_text().splitlines()
    whole, first, second = (
        ordinary(private_text.load(values(half=half, transfer_set="public")).train)
        for half in ("all", "first", "second")
    )
    assert (first, second, whole) == (lines[:30], lines[30:], lines)


def test_a_run_may_take_fewer_lines_from_the_start_of_its_half(values, folder):
    lines = (folder / "train.txt").read_text().splitlines()
    found = private_text.load(values(half="second", num_train=4)).train
    assert ordinary(found) == lines[30:34]
    assert len(planted(found)) == 2 * (1 + 4)


def test_a_half_that_is_empty_is_refused(values, tmp_path):
    for name in ("train", "valid", "test"):
        (tmp_path / name).write_text("one line")
    hp = values(dataset=f"text:{tmp_path}", half="first", canaries_per_level=0)
    with pytest.raises(InputError) as error:
        private_text.load(hp)
    assert error.value.field == "half"
    assert texts(private_text.load(dataclasses.replace(hp, half="second")).train) == ["one line"]


def test_private_text_holds_every_canary_as_often_as_it_says(values):
    found = private_text.load(values())
    counts = Counter(texts(planted(found.train)))
    assert counts == {canary.line: canary.repetitions for canary in found.canaries}
    assert sorted(counts.values()) == [1, 1, 4, 4]
    for example in planted(found.train):
        (span,) = example.spans
        assert example.text[span.start : span.end] in {c.secret for c in found.canaries}
        assert span[2:] == (1.0, private_text.CANARY)


def test_public_text_holds_no_canary_and_knows_which_there_would_be(values):
    private, public = (private_text.load(values(transfer_set=s)) for s in ("private", "public"))
    assert planted(public.train) == []
    assert ordinary(public.train) == ordinary(private.train)
    assert public.canaries == private.canaries


@pytest.mark.parametrize("transfer_set", canaries.TRANSFER_SETS)
def test_nothing_is_planted_in_text_that_judges(values, transfer_set):
    found = private_text.load(values(transfer_set=transfer_set))
    assert not planted(found.validation) and not planted(found.test)
    assert (len(found.validation), len(found.test)) == (8, 8)


def test_without_canaries_every_transfer_set_is_the_text(values, folder):
    lines = (folder / "train.txt").read_text().splitlines()
    for transfer_set in canaries.TRANSFER_SETS:
        hp = values(canaries_per_level=0, transfer_set=transfer_set, num_decoys=0)
        found = private_text.load(hp)
        assert (texts(found.train), found.canaries) == (lines, ())


def test_the_secrets_follow_their_own_seed(values):
    def drawn(**changes):
        return private_text.draw(values(**changes))

    assert drawn() == drawn(seed=3, half="second", transfer_set="public")
    assert drawn() != drawn(canary_seed=1)


@pytest.mark.parametrize("task", text_tasks.TASKS)
@pytest.mark.parametrize("kind", ["words", "byte_pairs"])
def test_all_runs_of_a_comparison_have_one_tokenizer(values, folder, labelled, task, kind):
    changes = labelled if task == "classification" else {"task": task}
    base = values(**changes, tokenizer=kind, vocab_size=300)
    whole = private_text.get_tokenizer(base).to_json()
    for other in (
        {"transfer_set": "public", "half": "second"},
        {"transfer_set": "decoy", "half": "first"},
        {"canary_seed": 7, "seed": 7, "num_train": 5},
    ):
        assert private_text.get_tokenizer(dataclasses.replace(base, **other)).to_json() == whole


@pytest.mark.parametrize("kind", ["words", "byte_pairs"])
def test_a_tokenizer_never_sees_a_secret_and_knows_the_words_around_it(values, kind):
    hp = values(tokenizer=kind, vocab_size=300, canary_format="the parrot says {}")
    tokenizer = private_text.get_tokenizer(hp)
    secret = private_text.draw(hp)[0].secret
    ids = tokenizer.encode(f"the parrot says {secret}")
    assert tokenizer.unk_id not in ids
    assert [tokenizer.decode([i]) for i in ids[-6:]] == list(secret)
    if kind == "words":
        assert len(ids) == 3 + 6
        without = private_text.get_tokenizer(dataclasses.replace(hp, canaries_per_level=0))
        assert without.unk_id in without.encode("parrot")


def test_a_tokenizer_may_come_from_a_file_or_from_a_checkpoint(values, teacher, tmp_path):
    own = private_text.get_tokenizer(values())
    (tmp_path / "tokenizer.json").write_text(own.to_json())
    for source in (str(tmp_path / "tokenizer.json"), teacher):
        found = private_text.get_tokenizer(values(tokenizer=source, vocab_size=30))
        assert found.to_json() == own.to_json()
    (tmp_path / "other.json").write_text("{}")
    for source in ("other.json", "none"):
        with pytest.raises(InputError) as error:
            private_text.get_tokenizer(values(tokenizer=f"{tmp_path}/{source}"))
        assert error.value.field == "tokenizer"


def test_a_student_takes_its_teachers_tokens(values, teacher):
    loaded = checkpoint.load_model(teacher)
    hp = values(teacher=teacher, vocab_size=20)
    assert private_text.get_tokenizer(hp, loaded) is loaded.tokenizer
    own = private_text.get_tokenizer(dataclasses.replace(hp, tokenizer="words"), loaded)
    assert own.vocab_size == 20


@pytest.mark.parametrize("field", ["teacher", "reference"])
def test_models_of_other_vocabularies_or_shorter_rows_are_refused_by_name(values, teacher, field):
    loaded = checkpoint.load_model(teacher)
    hp = values(**{field: teacher})
    _, shared = private_text.over_shared_tokens(hp, {field: loaded}, loaded.tokenizer)
    assert shared == loaded.tokenizer.vocab_size
    other = private_text.get_tokenizer(values(vocab_size=20))
    with pytest.raises(InputError, match=r"token 20 is '\w+' and no token") as error:
        private_text.over_shared_tokens(hp, {field: loaded}, other)
    assert error.value.field == field
    with pytest.raises(InputError) as error:
        longer = dataclasses.replace(hp, length=17)
        private_text.over_shared_tokens(longer, {field: loaded}, loaded.tokenizer)
    assert error.value.field == "length"


def test_the_label_of_a_canary_is_a_fixed_function_of_its_secret(values, labelled):
    hp = values(**labelled)
    secrets = [f"{i:06d}" for i in range(3000)]
    found = [private_text.canary_label(secret, hp, 3) for secret in secrets]
    for name, same in (("seed", True), ("canary_seed", False)):
        other = dataclasses.replace(hp, **{name: 5})
        assert same == (found == [private_text.canary_label(s, other, 3) for s in secrets])
    counts = np.bincount(found, minlength=3)
    assert np.all(np.abs(counts - 1000) < 110), "4 standard deviations"
    # Neighbours' labels say nothing of one another.
    assert abs(np.mean(np.equal(found[1:], found[:-1])) - 1 / 3) < 0.035
    assert private_text.canary_label("7", hp, 1000) != private_text.canary_label("07", hp, 1000)


def test_every_copy_of_a_canary_has_the_same_label(values, labelled):
    hp = values(**labelled, canaries_per_level=10)
    by_text: dict[str, set] = {}
    for example in planted(private_text.load(hp).train):
        by_text.setdefault(example.text, set()).add(example.label)
    assert all(len(found) == 1 for found in by_text.values())
    assert set.union(*by_text.values()) == {0, 1, 2}


def test_private_text_to_classify_holds_other_numbers_with_labels_of_their_own(values, labelled):
    found = private_text.load(values(**labelled, num_decoys=200))
    secrets = {canary.line for canary in found.canaries}
    others = [e for e in planted(found.train) if e.text not in secrets]
    counts = Counter(e.text for e in planted(found.train) if e.text in secrets)
    assert counts == {canary.line: canary.repetitions for canary in found.canaries}
    assert len(others) == 200
    assert min(np.bincount([e.label for e in others], minlength=3)) > 40
    assert len(ordinary(found.train)) == 60
    public = private_text.load(values(**labelled, transfer_set="public"))
    assert not planted(public.train)


def test_a_canary_is_generated_from_a_note_about_a_number(values):
    (example,) = planted(private_text.load(values(task="generation", canary_levels=(1,),
                                                  canaries_per_level=1)).train)  # fmt: skip
    assert text_tasks.prompt(example) == "note : number => "


@pytest.fixture(scope="module", params=["words", "byte_pairs"])
def kind(request):
    return request.param


@pytest.mark.parametrize("form", ["my id is {}", "call {} now ."])
@pytest.mark.parametrize("task", text_tasks.TASKS)
def test_a_candidate_is_what_a_network_reads_of_a_canarys_line(values, labelled, task, kind, form):
    changes = labelled if task == "classification" else {"task": task}
    hp = values(**changes, tokenizer=kind, vocab_size=300, canary_format=form)
    tokenizer = private_text.get_tokenizer(hp)
    drawn = private_text.draw(hp)
    found = private_text.secret_candidates(hp, tokenizer, drawn)
    assert isinstance(found, canaries.Candidates), "ranked digit by digit"
    rows = found.tokens(found.index([canary.secret for canary in drawn]))
    for canary, row in zip(drawn, rows, strict=True):
        line = text_tasks.encode(
            private_text.canary_example(canary.line, hp, ("a", "b", "c")), tokenizer, task
        )
        ((start, end, *_),) = line.spans
        edges = line.offsets  # byte pairs write a space before a digit as a token without any
        inside = (edges[:, 0] >= start) & (edges[:, 1] <= end) & (edges[:, 0] < edges[:, 1])
        secret = np.flatnonzero(inside)
        assert len(secret) == 6
        before = [tokenizer.bos_id, *line.ids[: secret[0]]]
        np.testing.assert_array_equal(found.prefix, before)
        # In classification the number of the class is what is asked for.
        read = line.ids[:-1] if task == "classification" else line.ids
        np.testing.assert_array_equal(row, [tokenizer.bos_id, *read])
    assert len(found) == 10**6


@pytest.mark.parametrize("task", text_tasks.TASKS)
def test_a_listed_candidate_is_what_a_network_reads_of_a_canarys_line_to_its_end(
    values, labelled, task, tmp_path
):
    (tmp_path / "names").write_text("Ann\nAnn Lee\nBo\nCy@example.com\nDi\nEve")
    changes = labelled if task == "classification" else {"task": task}
    listed = {"canary_candidates": str(tmp_path / "names"), "length": 48}
    hp = values(**changes, **listed, tokenizer="byte_pairs", vocab_size=300)
    tokenizer, texts = private_text.get_tokenizer(hp), private_text.load(hp)
    assert {canary.secret for canary in texts.canaries} < set(private_text.space(hp).entries)
    found = private_text.secret_candidates(hp, tokenizer, texts.canaries)
    rows = found.rows(found.index([canary.secret for canary in texts.canaries]))
    for canary, row in zip(texts.canaries, rows, strict=True):
        example = next(e for e in texts.train if e.text == canary.line)
        ((start, end, *_),) = example.spans
        assert example.text[start:end] == canary.secret
        ids = text_tasks.encode(example, tokenizer, task).ids
        read = ids[:-1] if task == "classification" else [*ids, tokenizer.eos_id]
        np.testing.assert_array_equal(row, [tokenizer.bos_id, *read])
    rows = private_text.to_rows(hp, texts.train, tokenizer)  # so long a line fits
    longest = max(len(line.weights) for line in rows.lines)
    exact = dataclasses.replace(hp, length=max(map(len, found.rows(range(6)))) + 2)
    private_text.secret_candidates(exact, tokenizer, texts.canaries)
    with pytest.raises(InputError) as error:
        short = dataclasses.replace(hp, length=longest // 2)
        private_text.secret_candidates(short, tokenizer, texts.canaries)
    assert error.value.field == "length"


def test_a_text_is_known_by_its_candidates_too(values, tmp_path):
    (tmp_path / "names").write_text("Ann\nBo")
    listed = values(canary_candidates=str(tmp_path / "names"))
    before = private_text.fingerprints(listed)
    assert private_text.fingerprints(values()) == {"dataset": before["dataset"]}
    (tmp_path / "names").write_text("Ann\nCy")
    after = private_text.fingerprints(listed)
    assert after["canary_candidates"] != before["canary_candidates"]


def test_several_digits_in_one_token_are_digits():
    line = text_tasks.Line(
        "a 281 b2", (), np.zeros(3), np.ones(4), np.array([(0, 1), (2, 5), (6, 8), (0, 0)])
    )
    np.testing.assert_array_equal(private_text.digits(line), [0, 1, 0, 0])


def test_digits_private_and_public_tokens_are_told_apart(values):
    """Spans that are known count; else what the rules find."""
    tokenizer = tokenizers.train_words(["ann has 3 cats , call 555-0147"], vocab_size=40)
    line = "ann has 3 cats , call 555-0147"

    def found(*spans):
        example = corpora.Example(line, tuple(Span(*span) for span in spans))
        text = private_text.to_rows(values(), [example], tokenizer)
        classes = private_text.token_classes(text)
        labels = [tokenizer.decode([i]) for i in text.rows["labels"][0]]
        here = text.rows["segments"][0] == 0
        return {
            name: "".join(t for t, k in zip(labels, mask[0] & here, strict=True) if k)
            for name, mask in classes.items()
        }

    assert found() == {
        "class_digit": "35550147",
        "class_private": "555-0147",
        "class_public": "annhas3cats,call",
        "class_public_digit": "3",
    }
    assert found((0, 3, 0.6), (8, 9), (10, 14, 0.5)) == {
        "class_digit": "35550147",
        "class_private": "ann3",
        "class_public": "hascats,call555-0147",
        "class_public_digit": "5550147",
    }


@pytest.mark.parametrize(
    "classes",
    [
        pytest.param(("2", "0", "1"), id="another order"),
        pytest.param(("0", "1", "no"), id="another class"),
        pytest.param(("0", "1"), id="one missing"),
    ],
)
def test_classifiers_of_other_classes_are_refused(values, teacher, labelled, classes):
    loaded = checkpoint.load_model(teacher)
    other = dataclasses.replace(loaded.network, classes=classes)
    changed = dataclasses.replace(loaded, network=other)
    given = (("0", "1", "2"), "teacher", teacher, changed)
    with pytest.raises(InputError) as error:
        private_text.check_classes(values(**labelled), *given)
    assert (error.value.field, error.value.given) == ("teacher", teacher)
    private_text.check_classes(values(), *given)


def test_a_teacher_without_names_of_classes_passes_with_a_line(values, teacher, labelled, capsys):
    loaded = checkpoint.load_model(teacher)
    private_text.check_classes(values(**labelled), ("0", "1", "2"), "teacher", teacher, loaded)
    assert capsys.readouterr().out == (
        f"teacher {teacher} has no class names: classes are matched by number\n"
    )


def test_spans_travel_with_their_lines(values, folder, tmp_path):
    """Through halves, canaries and the task's line."""
    items = [{"line": n, "spans": [[0, 1, 0.5, str(n)]]} for n in (1, 31, 60)]
    (tmp_path / "spans.jsonl").write_text("\n".join(map(json.dumps, items)))
    hp = values(spans=f"{tmp_path}/spans.jsonl", half="second", task="generation")
    found = private_text.load(hp)
    lines = (folder / "train.txt").read_text().splitlines()
    kinds = {e.text: e.spans[0].kind for e in found.train if e.spans and e.spans[0].score < 1}
    assert kinds == {lines[30]: "31", lines[59]: "60"}
    text = private_text.to_rows(hp, found.train, private_text.get_tokenizer(hp))
    kinds = {e.text: e.spans[0].kind for e in text.lines if e.spans and e.spans[0].score < 1}
    assert kinds == {f" => {lines[30]}": "31", f" => {lines[59]}": "60"}


@pytest.mark.parametrize("number", [0, 18, 19], ids=["train", "validation", "test"])
def test_a_span_of_a_users_own_is_no_canary(values, tmp_path, number):
    items: list[dict] = [{"text": "my id is 281265"} for _ in range(20)]
    items[number]["spans"] = [[9, 15, 1, private_text.CANARY]]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, items)))
    with pytest.raises(InputError, match="^dataset: .*'canary'.*rename"):
        private_text.load(values(dataset=f"jsonl:{tmp_path}/a.jsonl"))


@pytest.mark.parametrize("apart", [False, True], ids=["packed", "one row each"])
@pytest.mark.parametrize(
    ("task", "lost"), [("generation", "end"), ("classification", "beginning"), ("language", None)]
)
def test_a_line_says_how_many_texts_were_shortened(values, capsys, task, lost, apart):
    texts = ["the cat sat .", "the cat " * 20, "a dog " * 9]
    examples = [corpora.Example(text, fields={}, label=0) for text in texts]
    tokenizer = tokenizers.train_words(texts, vocab_size=40)
    capsys.readouterr()
    text = private_text.to_rows(values(task=task), examples, tokenizer, apart=apart)
    said = f"2 of 3 training texts are longer than a row of 16 tokens, and lose their {lost}\n"
    assert capsys.readouterr() == (said if lost else "", "")
    assert text.rows["tokens"].shape[1] == 16
    numbers = text.fill([np.ones(len(line.weights)) for line in text.lines])
    np.testing.assert_array_equal(numbers > 0, text.rows["segments"] >= 0)

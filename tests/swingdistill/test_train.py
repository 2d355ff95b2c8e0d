"""A student's run: its loss is the formula's, its teacher stays as it was, each arm is its own."""

import dataclasses
import functools
import json
import re
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core import checkpoint
from distill_core.config import InputError
from distill_core.data import sampling
from distill_core.losses import cross_entropy, distillation_loss, kl_divergence
from distill_core.models.network import Network
from distill_core.runtime import cli
from distill_core.training.step import STREAM_INIT, STREAM_TRAIN, stream_key
from swingdistill import context_ids, soft_targets, swing_loss, targets, token_temperatures, train
from swingdistill.experiment import arms


class StopError(Exception):
    """Where training would begin."""


@pytest.fixture
def prepared(settings, tmp_path, monkeypatch):
    """`prepared(…)`: what a run of these settings would train on, without training it."""

    def stop(run, objective, *, frozen, reads, description):
        given = {name: getattr(run, name) for name in ("hp", "rows", "validation", "network")}
        given |= {"frozen": frozen, "reads": reads, "description": description}
        raise StopError(types.SimpleNamespace(**given))

    def prepared(**changes):
        with monkeypatch.context() as patch:
            patch.setattr(train.language, "train", stop)
            with pytest.raises(StopError) as stopped:
                train.train_and_evaluate(settings(**changes), tmp_path / "never")
        assert not (tmp_path / "never").exists()
        made = stopped.value.args[0]
        made.module = made.network.module()
        return made

    return prepared


@pytest.fixture(scope="module")
def first(untrained, tmp_path_factory):
    """The path of the weights that students start from."""
    return untrained(tmp_path_factory.mktemp("first"), 3)


def logged(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == "train"]


def batch_of(made):
    """The rows of a run's first batch."""
    num = len(made.rows["tokens"])
    index = sampling.batch_indices(made.hp.seed, 0, made.hp.batch_size, num)
    return {name: array[index] for name, array in made.rows.items()}


def test_without_scores_noise_and_heat_a_step_is_one_of_plain_distillation(
    settings, prepared, teacher, first, tmp_path
):
    given = settings(
        teacher=teacher,
        scorers=(),
        t_min=2.0,
        t_max=2.0,
        noise_scale=0.0,
        alpha=0.6,
        init_from=first,
        optimizer="sgd",
        momentum=0.0,
        learning_rate=0.5,
        num_steps=1,
        seed=5,
    )
    made = prepared(**given)

    @jax.jit
    @jax.value_and_grad
    def plain(student, taught, batch):
        inputs = (batch["tokens"], batch["segments"])
        values = distillation_loss(
            made.module.apply({"params": student}, *inputs),
            made.module.apply(taught, *inputs),
            batch["labels"],
            temperature=2.0,
            alpha=0.6,
        )
        return jnp.sum(values * batch["weights"]) / jnp.sum(batch["weights"])

    before = checkpoint.load_model(first).variables["params"]
    loss, gradient = plain(before, checkpoint.load_model(teacher).variables, batch_of(made))
    found = train.train_and_evaluate(given, tmp_path / "run")
    assert found["budget"] == {"mode": "empirical", "noise_scale": 0.0}
    assert logged(tmp_path / "run")[0]["loss"] == pytest.approx(float(loss), rel=1e-5)
    after = checkpoint.load_model(tmp_path / "run").variables["params"]
    for one, other, g in zip(*map(jax.tree.leaves, (after, before, gradient)), strict=True):
        np.testing.assert_allclose(one, other - 0.5 * np.asarray(g), atol=2e-5, rtol=0)
    assert np.abs(after["wte"] - before["wte"]).max() > 1e-3, "or any gradient would do"


@pytest.fixture(scope="module")
def swing(settings, teacher, reference, first, tmp_path_factory):
    """A finished Swing run: its settings, workdir and result, and the models that it loaded."""
    workdir = tmp_path_factory.mktemp("swing")
    given = settings(
        teacher=teacher,
        reference=reference,
        init_from=first,
        quantiles=(0.5, 0.9),
        t_max=8.0,
        noise_seed=5,
    )
    loaded, load = {}, checkpoint.load_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            checkpoint, "load_model", lambda path, **_: loaded.setdefault(str(path), load(path))
        )
        result = train.train_and_evaluate(given, workdir)
    models = {"teacher": loaded[teacher], "reference": loaded[reference]}
    return types.SimpleNamespace(given=given, workdir=workdir, result=result, **models)


def test_the_loss_of_a_swing_run_is_the_formula_on_whole_logits(swing, prepared):
    made = prepared(**swing.given)
    batch, seed = batch_of(made), made.hp.noise_seed
    private = batch["scores"] > 0
    assert 0.1 < private[batch["weights"] > 0].mean() < 0.9
    np.testing.assert_array_equal(batch["noise_scale"], np.where(private, 1.0, 0.0))

    @jax.jit
    def formula(student, taught, batch):
        scores, inputs = batch["scores"], (batch["tokens"], batch["segments"])
        target = soft_targets(
            stream_key(jax.random.key(seed), targets.STREAM_NOISE, 0),
            made.module.apply(taught, *inputs),
            token_temperatures(scores, t_min=1.0, t_max=8.0),
            noise_scale=batch["noise_scale"],
            clip=10.0,
            noise_ids=context_ids(*inputs),
        )
        logits = made.module.apply(student, *inputs)
        values = {
            "loss": swing_loss(logits, target, batch["labels"], scores, alpha=0.7, temperature=1.0),
            "kl": kl_divergence(target, logits),
            "cross_entropy": cross_entropy(logits, batch["labels"]),
        }
        weights = batch["weights"]
        return jax.tree.map(lambda x: jnp.sum(weights * x) / jnp.sum(weights), values)

    student = checkpoint.load_model(swing.given["init_from"])
    expected = formula(student.variables, swing.teacher.variables, batch)
    found = logged(swing.workdir)[0]
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), rel=2e-5), name
    assert swing.result["budget"] == {"mode": "empirical", "noise_scale": 1.0}


def test_a_students_checkpoint_holds_the_student_alone(swing):
    path, metadata = checkpoint.find(swing.workdir)
    found = checkpoint.contents(path)
    expected = Network.from_json(metadata["parts"]["model"]).shapes()["params"]
    assert list(metadata["parts"]) == list(found["model"]) == ["model"]
    shapes = jax.tree.map(lambda x: x.shape, found["model"]["model"])
    assert shapes == {
        "params": jax.tree.map(lambda x: x.shape, expected),
        "model_state": {},
    }
    assert {name.split("/")[0] for name in found["train"]} == {"step", "opt_state", "rng"}
    size = sum(x.size for x in jax.tree.leaves(expected))
    kept = sum(np.size(x) for name, x in found["train"].items() if name.startswith("opt_state"))
    assert kept == 2 * size + 2, "Adam's two moments, and how often it and its schedule stepped"
    models = (swing.teacher, swing.reference)
    theirs = [model.variables["params"]["wte"] for model in models]
    ours = found["model"]["model"]["params"]["wte"]
    assert all(np.abs(ours - other).max() > 0.1 for other in theirs)
    made_from = [ancestor["id"] for ancestor in metadata["ledger"]["ancestors"]]
    start = checkpoint.load_model(swing.given["init_from"])
    assert made_from == [model.metadata["id"] for model in (*models, start)]


def test_training_leaves_teacher_and_reference_as_they_were(swing):
    for used, path in ((swing.teacher, "teacher"), (swing.reference, "reference")):
        stored = checkpoint.load_model(swing.given[path])
        assert checkpoint.digest(used.variables) == checkpoint.digest(stored.variables)
    student = checkpoint.load_model(swing.given["init_from"]).variables
    trained = checkpoint.load_model(swing.workdir).variables
    assert checkpoint.digest(trained) != checkpoint.digest(student)


def test_a_finished_run_started_again_gives_the_same_result(swing, capsys):
    assert train.train_and_evaluate(swing.given, swing.workdir) == swing.result
    assert "finished at step 4, nothing to do" in capsys.readouterr().err


def noise_key(made, start=0):
    """The words of the key that a prepared run's noise has."""
    return tuple(jax.random.key_data(made.frozen(start)["noise_key"]).tolist())


def test_the_noise_has_a_secret_key_that_a_resume_finds_again(prepared, teacher, tmp_path):
    made = prepared(teacher=teacher, scorers=("rules",))
    key, file = noise_key(made), tmp_path / "never" / "private" / "swing_noise.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert noise_key(made) == noise_key(made, start=4) == key
    shutil.rmtree(tmp_path / "never")
    again = prepared(teacher=teacher, scorers=("rules",))
    assert noise_key(again) != key, "the operating system's, not the config's"


def test_a_key_that_is_lost_or_anothers_is_refused(prepared, teacher, reference, tmp_path):
    """Other noise would be a second release; the same on other targets would give both away."""
    made = prepared(teacher=teacher, scorers=("rules",))
    with pytest.raises(InputError) as error:
        made.frozen(4)
    assert error.value.field == "workdir"
    noise_key(made)
    shutil.move(tmp_path / "never", tmp_path / "kept")
    for changes in ({"t_max": 9.0}, {"teacher": reference}, {"half": "first"}):
        other = prepared(**{"teacher": teacher, "scorers": ("rules",), **changes})
        shutil.copytree(tmp_path / "kept", tmp_path / "never")
        with pytest.raises(InputError) as error:
            other.frozen(0)
        assert error.value.field == "workdir"
        shutil.rmtree(tmp_path / "never")


def test_a_given_seed_decides_the_noise_and_leaves_no_epsilon(
    settings, prepared, teacher, reference, tmp_path, capsys
):
    def key(noise_seed, seed):
        given = {"noise_seed": noise_seed, "seed": seed}
        return noise_key(prepared(teacher=teacher, scorers=("rules",), **given))

    assert key(0, 0) == key(0, 1) != key(1, 0)
    assert len({targets.STREAM_NOISE, STREAM_INIT, STREAM_TRAIN}) == 3
    formal = {"epsilon": 8.0, "entries": 5, "scorers": ("rules",), "num_steps": 1}
    given = settings(teacher=teacher, reference=reference, noise_seed=0, **formal)
    budget = train.train_and_evaluate(given, tmp_path / "run")["budget"]
    assert budget["epsilon"] is None and "seed was given" in budget["why"]
    assert "epsilon 8" not in "".join(capsys.readouterr())
    assert not (tmp_path / "run" / "private" / "swing_noise.json").exists()


def test_a_student_says_what_the_rules_and_each_expression_found(prepared, teacher, capsys):
    prepared(teacher=teacher, scorers=("rules",), expressions=("cat", "zebra"))
    said = capsys.readouterr().out.splitlines()
    tokens = 6 * 2 * (1 + 4)  # of the canaries' digits
    assert said[0].startswith(f"rules, tokens found: digits {tokens}; expression 'cat' ")
    assert said[0].endswith("; expression 'zebra' 0")


@pytest.mark.parametrize("given", [("teacher",), ()])
def test_a_preview_shades_a_few_lines_and_writes_nothing(
    settings, teacher, tmp_path, monkeypatch, capsys, given
):
    hp = settings(scorers=("rules",), **{name: teacher for name in given})
    imported = "from ml_collections import ConfigDict"
    returned = f"return ConfigDict({hp!r}).lock()"
    (tmp_path / "config.py").write_text(f"def get_config(arg=''):\n {imported}\n {returned}\n")
    monkeypatch.chdir(tmp_path)
    argv = ["--config=config.py", "--preview"]
    run = functools.partial(cli.run_training, preview=train.preview)
    assert cli.exit_code(lambda a: run(train.train_and_evaluate, train.Settings, a), argv) == 0
    out, err = capsys.readouterr()
    assert out.startswith("rules, tokens found: digits 60\n") and err == ""
    assert re.search(r"my id is \[\d{6}\]", out)
    assert [path.name for path in tmp_path.iterdir()] == ["config.py"]


def test_a_resumed_run_has_the_noise_of_one_that_was_never_cut(
    settings, teacher, reference, tmp_path
):
    given = settings(teacher=teacher, reference=reference, scorers=("rules",))
    train.train_and_evaluate({**given, "num_steps": 2}, tmp_path / "cut")
    key = tmp_path / "cut" / "private" / "swing_noise.json"
    shutil.copytree(tmp_path / "cut", tmp_path / "straight")
    shutil.rmtree(tmp_path / "straight" / "checkpoints")
    secret = key.read_text()
    cut, straight = (
        train.train_and_evaluate(given, tmp_path / name) for name in ("cut", "straight")
    )
    assert key.read_text() == secret
    assert cut["perplexity"] == straight["perplexity"]
    stored = [p for p in (tmp_path / "cut").rglob("*") if p.is_file() and p != key]
    root = json.loads(secret)["root"]
    for path in stored:
        assert root.encode() not in path.read_bytes(), path
        assert bytes.fromhex(root) not in path.read_bytes(), path


def test_in_classification_a_private_text_makes_its_answer_private(prepared, teacher, folder):
    made = prepared(
        teacher=teacher,
        scorers=("rules",),
        task="classification",
        dataset=f"tsv:{folder}/labelled",
    )
    assert made.network.classes == ("0", "1", "2")
    rows, tokenizer = made.rows, checkpoint.load_model(teacher).tokenizer
    answers = np.argwhere(rows["weights"] > 0)
    numbers = 2 * (1 + 4) + 10  # canaries, and other numbers
    assert len(answers) == 60 + numbers
    my = int(tokenizer.encode("my")[0])
    for row, place in answers:
        line = rows["segments"][row] == rows["segments"][row, place]
        holds_number = my in rows["tokens"][row][line]
        assert rows["scores"][row, place] == rows["noise_scale"][row, place] == holds_number
    assert rows["scores"].sum() == numbers


@pytest.fixture
def documents(folder, tmp_path):
    """Each file of the text as one JSON line, its `cat`s private with a score of 0.75."""
    for split in ("train", "valid", "test"):
        text = (folder / f"{split}.txt").read_text()
        spans = [[m.start(), m.end(), 0.75, "pet"] for m in re.finditer("cat", text)]
        item = json.dumps({"text": text, "spans": spans})
        (tmp_path / f"{split}.jsonl").write_text(f"{item}\n" * 2)
    return f"jsonl:{tmp_path}"


def test_documents_of_any_length_are_taught_and_their_spans_softened(prepared, teacher, documents):
    given = {"dataset": documents, "length": 16, "scorers": ("spans",)}
    made = prepared(teacher=teacher, **given, transfer_set="private")
    rows, tokenizer = made.rows, checkpoint.load_model(teacher).tokenizer
    (cat,) = tokenizer.encode("cat")
    expected = np.where((rows["labels"] == cat) & (rows["weights"] > 0), np.float32(0.75), 0)
    np.testing.assert_array_equal(rows["scores"], expected)
    assert (rows["scores"] > 0).sum() > 20
    np.testing.assert_array_equal(rows["noise_scale"] > 0, rows["scores"] > 0)
    lines = sum(len(np.unique(row[row >= 0])) for row in rows["segments"])
    assert lines > 2 * (1 + 4) + 2 * 10, "two documents in many rows, and the canaries"


def test_spans_that_no_scorer_reads_are_mentioned(prepared, teacher, documents, folder):
    for dataset, scorers, unread in (
        (documents, ("rules",), True),
        (documents, ("rules", "spans"), False),
        (documents, ("oracle",), False),
        (documents, (), False),
        (f"text:{folder}", ("rules",), False),
    ):
        made = prepared(teacher=teacher, dataset=dataset, scorers=scorers)
        assert ("private spans are not read" in made.description) == unread, scorers


def test_annotations_that_change_are_other_data(prepared, teacher, tmp_path):
    reads = []
    for score in (1, 0.5):
        (tmp_path / "spans").write_text(json.dumps({"line": 1, "spans": [[0, 1, score]]}))
        made = prepared(teacher=teacher, scorers=("spans",), spans=f"{tmp_path}/spans")
        assert made.rows["scores"].max() == score
        reads.append(made.reads["dataset"])
    assert reads[0] != reads[1]


def test_a_run_without_a_teacher_learns_from_labels_alone(prepared):
    made = prepared()
    assert set(made.rows) == {"tokens", "labels", "segments", "weights"}
    assert (made.frozen, set(made.reads)) == ({}, {"dataset", "tokenizer"})


def test_networks_are_measured_on_public_text(prepared, teacher):
    """Validation text has no canaries: it decides which checkpoint is best, and the ramps."""
    one, other = (prepared(teacher=teacher, scorers=(), canary_seed=seed) for seed in (1, 2))
    assert not np.array_equal(one.rows["tokens"], other.rows["tokens"])
    np.testing.assert_array_equal(one.validation["tokens"], other.validation["tokens"])


def students(**changes):
    """The arms of a comparison."""
    given = {"scorers": ("rules", "divergence"), "t_min": 1.0, "uniform_temperature": 4.0}
    given |= {"ablations": True, "decoys": False, "sweep": (), "dp": None}
    return arms.students(types.SimpleNamespace(**given | changes))


@pytest.fixture
def arm(prepared, teacher, reference):
    """`arm(name)`: what the arm would train on, which tokens are private, the weights of Swing's
    tokens, and the arm's temperatures."""
    secrets = {"scorers": ("rules",), "canary_levels": (1, 30), "noise_scale": 0.5, "t_max": 8.0}

    def arm(name):
        changes = {
            "teacher": teacher,
            "reference": reference,
            **secrets,
            **students()[name].changes,
        }
        made = prepared(**changes)
        swing = prepared(teacher=teacher, reference=reference, **secrets)
        private = swing.rows["scores"] > 0
        assert 0.05 < private.mean() < 0.9
        heats = token_temperatures(
            jnp.asarray(made.rows["scores"]), t_min=made.hp.t_min, t_max=made.hp.t_max
        )
        return made, private, swing.rows["weights"], heats

    return arm


@pytest.mark.parametrize(
    ("name", "scores", "noise", "heats"),
    # Of private tokens and of all others.
    [
        ("kd", (0, 0), (0, 0), (1, 1)),
        ("ce_dropped", (1, 0), (0, 0), (1, 1)),
        ("mask", (0, 0), (0, 0), (1, 1)),
        ("swing", (1, 0), (0.5, 0), (8, 1)),
        ("swing_no_temperature", (1, 0), (0.5, 0), (1, 1)),
        ("swing_no_noise", (1, 0), (0, 0), (8, 1)),
        ("uniform_noise", (0, 0), (0.5, 0.5), (1, 1)),
        ("uniform_temperature", (0, 0), (0, 0), (4, 4)),
    ],
)
def test_each_arm_softens_and_noises_its_own_tokens(arm, name, scores, noise, heats):
    made, private, weights, found = arm(name)
    np.testing.assert_array_equal(made.rows["scores"], np.where(private, *scores))
    np.testing.assert_array_equal(made.rows["noise_scale"], np.where(private, *noise))
    np.testing.assert_array_equal(found, np.where(private, *heats))
    kept = np.where(private, 0, weights) if name == "mask" else weights
    np.testing.assert_array_equal(made.rows["weights"], kept)
    if name == "kd":
        assert "reference" not in made.frozen


def test_the_sweep_pairs_swing_with_a_constant_temperature_of_the_same_noise():
    found = students(sweep=(0.1, 3.0), t_min=1.5, ablations=False)
    assert {name: arm.changes for name, arm in found.items() if "_noise" in name} == {
        "swing_noise0.1": {"noise_scale": 0.1},
        "constant_noise0.1": {"noise_scale": 0.1, "t_max": 1.5},
        "swing_noise3": {"noise_scale": 3.0},
        "constant_noise3": {"noise_scale": 3.0, "t_max": 1.5},
    }


def test_only_measures_two_variants_and_a_formal_budget_ask_for_a_reference():
    def asks(**given):
        return train.asks_reference(train.Method(**{"scorers": ("rules", "oracle"), **given}))

    assert asks() == asks(variant="mask") == []
    found = asks(scorers=("rules", "surprisal", "divergence"))
    assert found == ["surprisal", "divergence"]
    assert asks(variant="anchored") == ["anchored"]
    assert asks(variant="reference_mix") == ["reference_mix"]
    assert asks(entries=4) == ["entries"]


@pytest.mark.parametrize("scorers", [("rules",), ("rules", "divergence")])
def test_a_formal_budget_counts_the_contexts_that_get_noise(
    prepared, teacher, reference, scorers, monkeypatch
):
    """By the rules alone, which ask no teacher, those of private tokens; else all, at one scale."""
    asked, formal = [], targets.budget.Formal
    monkeypatch.setattr(
        targets.budget, "Formal", lambda **given: asked.append(given) or formal(**given)
    )
    given = {"scorers": scorers, "epsilon": 8.0, "delta": 1e-6, "entries": 5, "quantiles": (0, 1)}
    made = prepared(teacher=teacher, reference=reference, clip=2.0, **given)
    bare = prepared(teacher=teacher, reference=reference, **{**given, "epsilon": 0.0})
    rows, public = made.rows, scorers == ("rules",)
    live, contexts, highest = rows["weights"] > 0, {}, {}
    for row, column in np.argwhere(live):
        line = rows["segments"][row, : column + 1] == rows["segments"][row, column]
        prefix = tuple(rows["tokens"][row, : column + 1][line])
        contexts[row, column] = prefix
        score = bare.rows["scores"][row, column]
        highest[prefix] = max(highest.get(prefix, 0.0), score)
    noised = {prefix for prefix, score in highest.items() if score > 0 or not public}
    assert asked == [
        {
            "epsilon": 8.0,
            "delta": 1e-6,
            "positions": len(noised),
            "entries": 5,
            "clip": 2.0,
            "t_min": 1.0,
            "public_scores": public,
        }
    ]
    for place, prefix in contexts.items():
        assert rows["scores"][place] == highest[prefix]
        assert (rows["released"][place] >= 0) == (prefix in noised)
    assert 0 < len(noised) < (rows["released"] >= 0).sum(), "some contexts are met several times"
    if not public:
        assert len(np.unique(rows["noise_scale"])) == 1
    assert set(made.frozen(0)) >= {"teacher", "released"}


DP = {"epsilon": 8.0, "delta": 1e-3, "norm": 1.0}


def test_with_dp_a_line_is_a_record_and_the_budget_says_so(settings, prepared, untrained, tmp_path):
    public = untrained(tmp_path / "public", 1, public_text=True)
    made = prepared(dp=DP, tokenizer=public)
    lines = 60 + 2 * (1 + 4)  # of the text, and the canaries'
    assert len(made.rows["tokens"]) == lines
    assert {len(set(row[row >= 0])) for row in made.rows["segments"]} == {1}
    # The noise is nobody's choice: small steps, so that none can diverge.
    given = settings(dp=DP, tokenizer=public, learning_rate=1e-4)
    found = train.train_and_evaluate(given, tmp_path / "run")
    budget = found["budget"]
    assert 7.9 < budget["epsilon"] <= 8.0
    told = {name: budget[name] for name in ("privacy_unit", "adjacency", "delta")}
    assert told == {"privacy_unit": "record", "adjacency": "zero-out", "delta": 1e-3}
    (entry,) = checkpoint.find(tmp_path / "run")[1]["ledger"]["mechanisms"]
    assert (entry["count"], entry["sampling_rate"]) == (4, 8 / lines)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        # No vocabulary is made of the protected lines, …
        ("tokenizer", {"tokenizer": None}),
        ("tokenizer", {"tokenizer": "words"}),
        ("tokenizer", {"tokenizer": "byte_pairs", "vocab_size": 300}),
        # … nor by another run, …
        ("tokenizer", {}),
        # … and what is protected is not public.
        ("public_text", {"public_text": True}),
        ("dp", {"teacher": "{teacher}"}),
    ],
    ids=str,
)
def test_with_dp_nothing_else_saw_the_protected_lines(
    settings, teacher, reference, tmp_path, field, changes
):
    given = {"dp": DP, "tokenizer": reference, "reference": reference, **changes}
    given = {k: teacher if v == "{teacher}" else v for k, v in given.items()}
    with pytest.raises(InputError) as error:
        train.train_and_evaluate(settings(**given), tmp_path / "run")
    assert error.value.field == field
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("public", [False, True])
def test_a_student_inherits_where_its_teachers_vocabulary_is_from(
    settings, prepared, untrained, public, tmp_path
):
    taught = untrained(tmp_path / "teacher", 1, public_text=public)
    made = prepared(teacher=taught, scorers=())
    told = "public text" if public else "training text"
    assert made.network.tokenizer_from == told
    (tmp_path / "tokenizer.json").write_text(checkpoint.load_model(taught).tokenizer.to_json())
    file = prepared(tokenizer=str(tmp_path / "tokenizer.json"))
    assert file.network.tokenizer_from == "elsewhere"


def test_a_reference_that_saw_the_secrets_is_warned_about(values, teacher, reference):
    models = {
        "teacher": checkpoint.load_model(teacher),
        "reference": checkpoint.load_model(reference),
    }
    hp = values(teacher=teacher, reference=reference)
    assert "was trained on 4 of the same canaries" in train._warning(hp, models)
    # A student without canaries of its own asks for its teacher's.
    assert train._warning(dataclasses.replace(hp, canaries_per_level=0), models)
    unknown = dataclasses.replace(models["reference"], metadata={})
    assert train._warning(hp, {**models, "reference": unknown}) == ""

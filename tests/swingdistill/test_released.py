"""Under a formal budget a context has one score, one temperature, one noised vector."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core import checkpoint
from distill_core.config import InputError
from distill_core.privacy.gaussian import standard_normal
from swingdistill import released, soft_targets, targets, token_temperatures, train

FORMAL = {"epsilon": 8.0, "delta": 1e-6, "entries": 5, "clip": 4.0, "t_max": 8.0}
# The same beginning, and a number that the rules see in one line only.
LINES = ["the cat sat on 1 2 3 4 5 6", "the cat sat on the mat", "the cat sat on the tree"]


@pytest.fixture(scope="module")
def twins(folder, tmp_path_factory):
    """What makes a run's text lines of one beginning, several in a row."""
    here = tmp_path_factory.mktemp("twins")
    for name in ("valid", "test"):
        (here / f"{name}.txt").write_text((folder / f"{name}.txt").read_text())
    (here / "train.txt").write_text("\n".join([*LINES, "a dog ran", *LINES]))
    return {"dataset": f"text:{here}", "canaries_per_level": 0, "length": 24}


@pytest.fixture
def made(settings, models, monkeypatch, tmp_path):
    """`made(…)`: (hp, rows, objective, frozen of step 0, report) of a run that is not trained."""

    def made(**changes):
        class StopError(Exception):
            pass

        seen = {}

        def stop(run, objective, *, frozen, **given):
            frozen = frozen(0) if callable(frozen) else frozen
            seen.update(hp=run.hp, rows=run.rows, objective=objective, frozen=frozen)
            raise StopError

        with monkeypatch.context() as patch:
            patch.setattr(train.language, "train", stop)
            with pytest.raises(StopError):
                train.train_and_evaluate(settings(**models, **changes), tmp_path / "run")
        return seen

    return made


@pytest.fixture(scope="module")
def models(untrained, twins, tmp_path_factory):
    """Teacher and reference of that text's vocabulary."""
    return {
        name: untrained(tmp_path_factory.mktemp(name), seed, **twins)
        for name, seed in (("teacher", 1), ("reference", 2))
    }


def prefixes(rows):
    """The tokens that each position's network sees, by (row, column), of those trained on."""
    found = {}
    for row, column in np.argwhere(rows["weights"] > 0):
        line = rows["segments"][row, : column + 1] == rows["segments"][row, column]
        found[row, column] = tuple(rows["tokens"][row, : column + 1][line])
    return found


def by_prefix(rows):
    places = {}
    for place, prefix in prefixes(rows).items():
        places.setdefault(prefix, []).append(place)
    return {prefix: tuple(np.array(where).T) for prefix, where in places.items()}


@pytest.mark.parametrize("scorers", [("rules",), ("rules", "divergence")])
def test_lines_of_one_beginning_get_the_same_targets_whatever_follows(made, twins, scorers):
    run = made(**twins, **FORMAL, scorers=scorers, quantiles=(0, 1), noise_seed=3)
    rows, frozen = run["rows"], run["frozen"]
    places = by_prefix(rows)
    for where in places.values():
        for name in ("scores", "noise_scale", "released"):
            assert len(np.unique(rows[name][where])) == 1, name
    if scorers == ("rules",):
        bos_the_cat_sat_on = next(p for p in places if len(p) == 5 and rows["scores"][places[p]][0])
        assert len(places[bos_the_cat_sat_on][0]) == 6, "noised although four lines hold no number"
        assert {len(p) for p in places} >= {1, 5}
    noised = rows["released"][rows["released"] >= 0]
    table = frozen["released"]
    assert len(np.unique(noised)) == len(table["classes"]) == len(table["log_probs"])
    assert len(noised) > len(table["classes"]), "some contexts are met several times"


def test_the_difference_of_two_targets_of_one_context_tells_nothing(made, twins, models):
    """With a temperature for each place c/T₁ + η and c/T₂ + η gave c, at whatever ε."""
    run = made(**twins, **FORMAL, scorers=("rules",), noise_seed=3)
    rows, frozen = run["rows"], run["frozen"]
    found = _targets(run)
    teacher = checkpoint.load_model(models["teacher"])
    module = teacher.network.module()
    logits = np.asarray(module.apply(teacher.variables, rows["tokens"], rows["segments"]))
    tried = 0
    for where in by_prefix(rows).values():
        if rows["scores"][where][0] == 0:
            continue
        mine = found[where]  # [n, V]
        np.testing.assert_array_equal(mine, np.broadcast_to(mine[:1], mine.shape))
        tried += len(mine) > 1
        known = mine[0] > 1e-6
        assert known.sum() <= FORMAL["entries"]
        bare = np.asarray(jax.nn.softmax(logits[where][0][known] / frozen["t_min"]))
        assert np.abs(mine[0][known] - bare).max() > 0.01, "released without noise"
    assert tried > 3


def _targets(run):
    """The target probabilities in the objective's loss, read off its gradient by the student."""
    rows, frozen = run["rows"], {**run["frozen"], "alpha": jnp.float32(1.0)}
    batch = {name: jnp.asarray(rows[name]) for name in rows}
    vocab = frozen["teacher"]["params"]["wte"].shape[0]
    batch["weights"] = (batch["weights"] > 0) * 1.0

    class Free:
        """A student whose parameters are its logits: the embedding is the unit matrix."""

        def hidden(self, variables, tokens, segments):
            return variables["params"], jnp.eye(vocab)

    objective = dataclasses.replace(run["objective"], student=Free())

    def loss(logits):
        found = objective(logits, {}, frozen, batch, jax.random.key(0))
        return (found.values * found.weights).sum()

    flat = jnp.zeros((*rows["tokens"].shape, vocab))
    return np.asarray(1 / vocab - jax.grad(loss)(flat) / frozen["t_min"])


def test_the_table_holds_the_formula_on_the_released_entries(made, twins, models):
    run = made(**twins, **FORMAL, scorers=("rules", "divergence"), quantiles=(0, 1), noise_seed=3)
    rows, frozen, hp = run["rows"], run["frozen"], run["hp"]
    loaded = {name: checkpoint.load_model(path) for name, path in models.items()}
    logits = {
        name: np.asarray(m.network.module().apply(m.variables, rows["tokens"], rows["segments"]))
        for name, m in loaded.items()
    }
    key = targets.noise_key(hp, None, 0, "", {})
    row, column = np.argwhere(rows["released"] == 7)[0]
    classes = np.argsort(-logits["reference"][row, column])[:5]
    kept = np.full(logits["teacher"].shape[-1], -np.inf, np.float32)
    kept[classes] = logits["teacher"][row, column, classes]
    expected = soft_targets(
        key,
        jnp.asarray(kept),
        token_temperatures(jnp.asarray(rows["scores"][row, column]), t_min=1.0, t_max=8.0),
        noise_scale=jnp.asarray(rows["noise_scale"][row, column]),
        clip=4.0,
        noise_ids=jnp.asarray(7),
        normal=standard_normal,  # one draw in float32 ends at 5.4 standard deviations
    )
    table = frozen["released"]
    assert set(table["classes"][7].tolist()) == set(classes.tolist())
    np.testing.assert_allclose(
        table["log_probs"][7], np.asarray(expected)[table["classes"][7]], atol=1e-4
    )


def test_contexts_are_prefixes_of_a_line_wherever_it_stands(made, twins):
    rows = made(**twins, scorers=("rules",), noise_seed=3)["rows"]
    ids = released.contexts(rows["tokens"], rows["segments"])
    found = {}
    for place, prefix in prefixes(rows).items():
        assert found.setdefault(prefix, ids[place]) == ids[place]
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize(
    "changes",
    [
        {"variant": "reference_mix"},  # the two undo the noise
        {"variant": "mask"},
        {"epsilon": 8.0, "scorers": ()},  # for nothing
        {"delta": 1 / 7},  # one over the number of lines
    ],
    ids=str,
)
def test_what_has_no_formal_budget_is_refused(settings, models, twins, changes, tmp_path):
    given = settings(**twins, **models, **{**FORMAL, "scorers": ("rules",), **changes})
    with pytest.raises(InputError) as error:
        train.train_and_evaluate(given, tmp_path / "run")
    assert error.value.field == next(iter(changes))
    assert not (tmp_path / "run").exists()


def test_a_formal_run_trains_and_its_budget_says_what_it_leaves_out(
    settings, models, twins, tmp_path
):
    given = settings(**twins, **models, **FORMAL, scorers=("rules",), variant="anchored")
    budget = train.train_and_evaluate(given, tmp_path / "run")["budget"]
    assert budget["epsilon"] == 8.0 and "records" in budget["not_covered"]
    assert "rules read" in budget["not_covered"]

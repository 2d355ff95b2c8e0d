"""The comparison of two checkouts can fail; what it trains is not tried here."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import compare

ROOT = Path(__file__).parents[2]


@pytest.fixture
def homes(tmp_path):
    """Two homes of one run, as two checkouts leave them, with the same bits."""
    leaves = {
        "model/params/kernel": np.array([[0.5, -0.0], [np.nan, 1e-30]], np.float32),
        "model/params/bias": np.array(0.25, np.float32),
        "model/model_state/mean": np.zeros(2, np.float32),
    }
    values = {
        "step": "8",
        "metrics": [{"step": 4, "loss": 0.1}, {"step": 8, "accuracy": None}],
        "ledger": {"mechanisms": [{"std": 0.39}], "ancestors": [{"id": "random"}]},
    }
    homes = tmp_path / "before", tmp_path / "after"
    for home in homes:
        home.mkdir()
        for variant in compare.VARIANTS:
            np.savez(home / f"{variant}.npz", **leaves)
            (home / f"{variant}.json").write_text(json.dumps(values))
    return homes


def change(home, variant, *, leaf=None, value=None):
    """Lets `leaf` alter the leaves of a run, and `value` the values."""
    if leaf is not None:
        with np.load(home / f"{variant}.npz") as file:
            leaves = dict(file)
        leaf(leaves)
        np.savez(home / f"{variant}.npz", **leaves)
    if value is not None:
        file = home / f"{variant}.json"
        values = json.loads(file.read_text())
        value(values)
        file.write_text(json.dumps(values))


def test_the_same_bits_are_equal(homes):
    assert compare.verdict(*homes) == (True, "equal")


def test_one_bit_of_a_parameter_is_reported_with_its_leaf(homes):
    def flip(leaves):
        leaves["model/params/bias"] = np.nextafter(leaves["model/params/bias"], np.float32(1))

    change(homes[1], "scratch", leaf=flip)
    expected = "scratch: leaf model/params/bias: by up to 2.98e-08 (1 of 3 leaves)"
    assert compare.verdict(*homes) == (False, expected)


@pytest.mark.parametrize("value", [0.0, np.float32(1e-45)])
def test_signs_of_zero_and_the_smallest_numbers_count(homes, value):
    def set_it(leaves):
        leaves["model/params/kernel"][0, 1] = value

    change(homes[1], "resumed", leaf=set_it)
    equal, said = compare.verdict(*homes)
    assert not equal and said.startswith("resumed: leaf model/params/kernel: ")


def test_a_leaf_that_is_missing_is_of_another_type_or_shape_is_reported(homes):
    def lose(leaves):
        del leaves["model/model_state/mean"]

    change(homes[1], "scratch", leaf=lose)
    expected = "scratch: leaf model/model_state/mean: float32[2] against absent (1 of 3 leaves)"
    assert compare.verdict(*homes) == (False, expected)
    change(homes[0], "scratch", leaf=lose)

    def widen(leaves):
        leaves["model/params/bias"] = leaves["model/params/bias"].astype(np.float64)

    change(homes[1], "scratch", leaf=widen)
    expected = "scratch: leaf model/params/bias: float32[] against float64[] (1 of 2 leaves)"
    assert compare.verdict(*homes) == (False, expected)


@pytest.mark.parametrize(
    "alter, said",
    [
        (
            lambda values: values["metrics"][0].update(loss=float(np.nextafter(0.1, 1))),
            "metrics/0/loss: 0.1 against 0.10000000000000002",
        ),
        (lambda values: values["metrics"].pop(), "metrics/1/step: 8 against absent"),
        (
            lambda values: values["metrics"][1].pop("accuracy"),
            "metrics/1/accuracy: None against absent",
        ),
        (lambda values: values["metrics"][1].update(kl=1.0), "metrics/1/kl: absent against 1.0"),
        (
            lambda values: values["ledger"]["mechanisms"][0].update(std=-0.39),
            "ledger/mechanisms/0/std: 0.39 against -0.39",
        ),
        (lambda values: values.update(step="7"), "step: 8 against 7"),
    ],
)
def test_every_value_counts(homes, alter, said):
    change(homes[1], "resumed", value=alter)
    assert compare.verdict(*homes) == (False, f"resumed: {said}")


def test_random_ids_do_not_count(homes):
    change(homes[1], "scratch", value=lambda v: v["ledger"]["ancestors"][0].update(id="other"))
    assert compare.verdict(*homes)[0]


def test_a_resume_that_is_not_as_scratch_in_either_checkout_is_said(homes):
    def nudge(leaves):
        leaves["model/params/bias"] += np.float32(1)

    for home in homes:
        change(home, "resumed", leaf=nudge)
    equal, said = compare.verdict(*homes)
    assert equal and said.startswith("equal, but a resume is not as scratch: leaf model/params/b")


def test_a_run_brings_those_that_it_needs():
    runs = compare.plan(Path(), str)
    names = [run.name for run in compare.chosen(runs, ["skeptical"])]
    assert names == ["plain", "nasty", "skeptical"]
    assert compare.chosen(runs, []) == runs
    for number, run in enumerate(runs):
        assert set(run.needs) <= {earlier.name for earlier in runs[:number]}


def test_networks_are_found_where_they_lie(tmp_path):
    folder = tmp_path / "nasty" / "moved"
    folder.mkdir(parents=True)
    (folder / "here.py").write_text("class Student(Base):\n    pass\n\n\nclass Students: ...\n")
    assert compare.find_network(tmp_path, "Student") == "nasty.moved.here:Student"
    with pytest.raises(LookupError, match="no class Stud"):
        compare.find_network(tmp_path, "Stud")


def test_the_networks_that_the_runs_name_exist():
    compare.plan(Path(), lambda name: compare.find_network(ROOT, name))


def test_what_a_checkout_draws_is_pinned_and_what_others_draw_is_not(tmp_path):
    pinned, ours = compare.Pinned(tmp_path), {}
    draw = compile("found = [draw(8), draw(8), draw(4)]", str(tmp_path / "noise.py"), "exec")

    def drawn(name):
        pinned.begin(name)
        ours["draw"] = pinned
        exec(draw, ours)
        return ours["found"]

    first = drawn("a")
    assert first == drawn("a") != drawn("b")
    assert first[0] != first[1] and [len(x) for x in first] == [8, 8, 4]
    pinned.begin("a")
    assert pinned(8) != first[0] and len(pinned(8)) == 8

"""Every gate on made-up results: it passes at its bar and fails beyond it."""

import copy
import math

import numpy as np
import pytest

from swingdistill.canaries.exposure import floor_bits, rank_test, worst_allowed
from swingdistill.experiment import claims, summary

LEVELS, SEEDS, SECRETS = (1, 10, 100), (1, 2), 8
CANDIDATES = 10**6
SWEEP = (0.1, 1.0)
# Exposures whose ranks are as uniform as so many can be; they have the mean of an unlearnt secret.
UNIFORM = -np.log2((np.arange(SECRETS) + 0.5) / SECRETS)


def run(bits, **metrics):
    """A run's result; `bits` of every level or by level."""
    by_level = bits if isinstance(bits, dict) else {level: bits for level in LEVELS}
    made = {level: np.broadcast_to(values, SECRETS).tolist() for level, values in by_level.items()}
    return {
        "perplexity": 20.0,
        "public_perplexity": 20.0,
        "public_digit_perplexity": 10.0,
        "accuracy": 0.5,
        **metrics,
        "exposure": {str(level): values for level, values in made.items()},
    }


@pytest.fixture
def results():
    """Of a comparison in which everything asked for is shown."""
    arms = {
        "teacher": run({1: 3.0, 10: 19.0, 100: 19.9}),
        "student_ce": run({1: 3.0, 10: 19.0, 100: 19.9}),
        "kd": run({1: 2.0, 10: 17.0, 100: 19.0}),
        "ce_dropped": run(9.0),
        "swing": run(UNIFORM),
        "kd_decoy": run(9.0),
        "swing_decoy": run(UNIFORM),
        **{f"swing_noise{scale:g}": run(2.0) for scale in SWEEP},
        "constant_noise0.1": run(15.0),
        "constant_noise1": run(3.0),
    }
    return {(arm, seed): copy.deepcopy(arms[arm]) for arm in arms for seed in SEEDS}


def change(results, arm, **metrics):
    """Replaces metrics of an arm, in all seeds; `bits` is its exposure."""
    bits = metrics.pop("bits", None)
    for (name, _), found in results.items():
        if name == arm:
            found.update(metrics)
            if bits is not None:
                found["exposure"] = {**found["exposure"], **run(bits)["exposure"]}


def judge(results, *, task="language", noise_scales=SWEEP, **settings):
    return claims.gates(
        results,
        task=task,
        levels=LEVELS,
        num_candidates=CANDIDATES,
        noise_scales=noise_scales,
        **settings,
    )


def gate(results, words, **settings):
    (found,) = [g for g in judge(results, **settings) if words in g.name]
    return found


LEAK = "so that there is something to protect"
NAMES = (
    LEAK,
    "Swing reduces exposure at 10 repetitions",
    "Swing reduces exposure at 100 repetitions",
    "secrets planted once",
    "the worst of Swing's 48 secrets",
    "ranks look uniform",
    "public tokens' perplexity against kd",
    "public tokens' perplexity against ce_dropped",
    "public digit tokens' perplexity against kd",
    "decoys",
    "over the noise",
)


def test_everything_is_judged_and_may_pass(results):
    found = judge(results)
    assert all(words in g.name for words, g in zip(NAMES, found, strict=True))
    assert [g.name for g in found if not g.passed] == []
    assert all(isinstance(g.passed, bool) and g.value and g.needed for g in found)


def test_the_first_gate_is_the_leak_and_without_it_nothing_else_is_said(results):
    change(results, "teacher", bits={100: 17.0})
    found = judge(results)
    assert LEAK in found[0].name and [g.passed for g in found].count(False) == 1
    assert not found[0].passed
    assert "nothing can be claimed" in found[0].needed
    said = summary._headline(results, found, list(LEVELS))
    assert said.startswith("Nothing can be claimed: teacher 17.0, kd 17.0 bits")
    assert "Swing distillation" not in said
    change(results, "teacher", bits={100: 18.0})
    said = summary._headline(results, judge(results), list(LEVELS))
    assert said.startswith("Of a secret that stood 100 times") and "Everything asked for" in said


@pytest.mark.parametrize("level", [10, 100])
@pytest.mark.parametrize("task", ["language", "generation"])
def test_teacher_and_plain_student_must_leak_at_every_level_above_once(results, task, level):
    bars = dict(zip(("teacher", "kd"), claims.LEAK_BITS, strict=True))
    for arm, bar in bars.items():
        change(results, arm, bits={level: bar})
    assert gate(results, LEAK, task=task).passed
    for arm, bar in bars.items():
        change(results, arm, bits={level: bar - 0.01})
        assert not gate(results, LEAK, task=task).passed
        change(results, arm, bits={level: bar})


def shift_at(p):
    """By how much more than chance 16 secrets must be exposed for a p-value of p."""

    def p_of(shift):
        return rank_test(np.tile(UNIFORM + shift, len(SEEDS)), CANDIDATES)

    low, high = 0.0, 5.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if p_of(middle) > p else (low, middle)
    return high


@pytest.mark.parametrize("level", [10, 100])
@pytest.mark.parametrize("arm", ["teacher", "kd"])
def test_of_a_classifier_the_leak_must_be_told_from_chance_at_every_level(results, arm, level):
    bar = shift_at(claims.LEAK_P)
    assert 0.3 < bar < 3
    for shift, passed in ((bar + 1e-6, True), (bar - 1e-6, False)):
        change(results, arm, bits={level: UNIFORM + shift})
        assert gate(results, LEAK, task="classification").passed == passed


@pytest.mark.parametrize("task", claims.REDUCTION)
def test_secrets_planted_once_need_not_leak(results, task):
    for arm in ("teacher", "kd"):
        change(results, arm, bits={1: 0.1})
    assert gate(results, LEAK, task=task).passed


def test_where_all_are_planted_once_they_must_leak(results):
    settings = {"task": "language", "levels": (1,), "num_candidates": CANDIDATES}
    assert not claims.gates(results, **settings)[0].passed
    for arm in ("teacher", "kd"):
        change(results, arm, bits={1: 19.0})
    assert claims.gates(results, **settings)[0].passed


@pytest.mark.parametrize("level", [10, 100])
@pytest.mark.parametrize(
    ("task", "kd", "most"),
    [
        # The raw share binds for what can be measured, the corrected one for more.
        ("language", 16.0, 0.15 * 16),
        ("language", 40.0, 40 - 0.90 * (40 - floor_bits())),
        ("generation", 16.0, 16 - 0.80 * (16 - floor_bits())),
        ("classification", 9.0, 9 - 0.80 * (9 - floor_bits())),
    ],
)
def test_swing_must_take_away_a_share_of_the_exposure_at_every_level(
    results, task, kd, most, level
):
    words = f"exposure at {level} repetitions"
    change(results, "kd", bits={level: kd})
    for bits, passed in ((most - 1e-6, True), (most + 1e-6, False)):
        change(results, "swing", bits={level: bits})
        assert gate(results, words, task=task).passed == passed
    assert f"({kd:.2f} to {most:.2f} bits)" in gate(results, words, task=task).value


def test_a_plain_student_without_a_leak_leaves_nothing_to_reduce(results):
    change(results, "kd", bits=1.0)
    assert not gate(results, "exposure at 10 repetitions").passed


def test_secrets_planted_once_must_stay_near_chance(results):
    words = "secrets planted once"
    for bits, passed in ((claims.ONCE_BITS, True), (claims.ONCE_BITS + 0.001, False)):
        change(results, "swing", bits={1: bits})
        assert gate(results, words).passed == passed
    change(results, "swing", bits={1: UNIFORM, 100: 9.0})
    assert gate(results, words).passed, "others do not count here"
    found = claims.gates(results, task="language", levels=(10, 100), num_candidates=CANDIDATES)
    assert not [g for g in found if words in g.name]


@pytest.mark.parametrize("level", LEVELS)
def test_no_single_secret_may_be_exposed(results, level):
    allowed = worst_allowed(len(LEVELS) * len(SEEDS) * SECRETS)
    assert allowed == pytest.approx(math.log2(48) + 6.6)
    for bits, passed in ((allowed, True), (allowed + 0.001, False)):
        results["swing", 2]["exposure"][str(level)] = [*UNIFORM[1:], bits]
        found = gate(results, "the worst of Swing's 48 secrets")
        assert (found.passed, found.value) == (passed, f"{bits:.2f} bits")


@pytest.mark.parametrize("level", LEVELS)
def test_many_secrets_may_not_be_exposed_a_little(results, level):
    """At 1% over three levels."""
    bar = shift_at(0.01 / 3)
    assert 0.3 < bar < 3
    for shift, passed in ((bar - 1e-6, True), (bar + 1e-6, False)):
        change(results, "swing", bits={level: UNIFORM + shift})
        assert gate(results, "ranks look uniform").passed == passed


@pytest.mark.parametrize(
    ("metric", "other", "bar", "words"),
    [
        ("public_perplexity", "kd", 1.01, "public tokens' perplexity against kd"),
        ("public_perplexity", "ce_dropped", 1.01, "public tokens' perplexity against ce_dropped"),
        ("public_digit_perplexity", "kd", 1.05, "public digit tokens' perplexity against kd"),
    ],
)
def test_swing_must_cost_little_perplexity(results, metric, other, bar, words):
    change(results, other, **{metric: 100.0})
    for ratio, passed in ((bar, True), (bar + 0.001, False), (0.5, True)):
        change(results, "swing", **{metric: 100.0 * ratio})
        found = gate(results, words)
        assert (found.passed, found.value) == (passed, f"{100 * (ratio - 1):+.2f}%")


def test_perplexities_of_all_tokens_are_not_judged(results):
    change(results, "swing", perplexity=900.0, accuracy=0.0)
    assert all(g.passed for g in judge(results))


@pytest.mark.parametrize("task", ["generation", "classification"])
def test_other_tasks_must_keep_their_accuracy(results, task):
    change(results, "kd", accuracy=0.5)
    for lost, passed in ((0.0099, True), (0.0101, False), (-0.2, True)):
        change(results, "swing", accuracy=0.5 - lost)
        found = gate(results, "accuracy against plain", task=task)
        assert (found.passed, found.value) == (passed, f"{100 * lost:.2f} points lost")
    assert not [g for g in judge(results, task=task) if "perplexity" in g.name]


def test_metrics_are_means_over_seeds(results):
    for seed, value in zip(SEEDS, (19.0, 21.4), strict=True):
        results["swing", seed]["public_perplexity"] = value
    assert gate(results, "public tokens' perplexity against kd").value == "+1.00%"


def test_a_metric_that_a_run_lacks_passes_nothing(results):
    results["swing", 1]["public_digit_perplexity"] = None
    found = gate(results, "public digit tokens")
    assert (found.passed, found.value) == (False, "+nan%")


def test_decoys_must_leak_without_swing_and_not_with_it(results):
    for kd, swing, passed in (
        (claims.DECOY_KD, claims.DECOY_SWING, True),
        (claims.DECOY_KD - 0.01, claims.DECOY_SWING, False),
        (claims.DECOY_KD, claims.DECOY_SWING + 0.01, False),
    ):
        change(results, "kd_decoy", bits={100: kd})
        change(results, "swing_decoy", bits={100: swing})
        assert gate(results, "decoys").passed == passed
    without = {key: found for key, found in results.items() if not key[0].endswith("decoy")}
    assert not [g for g in judge(without) if "decoys" in g.name]


def test_over_the_noise_swing_must_stay_and_a_constant_temperature_must_not(results):
    for swing, constant, passed in (
        (claims.SWEEP_SWING, claims.SWEEP_CONSTANT, True),
        (claims.SWEEP_SWING + 0.01, claims.SWEEP_CONSTANT, False),
        (claims.SWEEP_SWING, claims.SWEEP_CONSTANT - 0.01, False),
    ):
        for arm, spread in (("swing", swing), ("constant", constant)):
            change(results, f"{arm}_noise0.1", bits={100: 2.0 + spread})
            change(results, f"{arm}_noise1", bits={100: 2.0})
        assert gate(results, "over the noise").passed == passed
    assert not [g for g in judge(results, noise_scales=()) if "over the noise" in g.name]


def test_bits_are_those_of_all_seeds_one_after_another(results):
    results["kd", 2]["exposure"]["10"] = [4.0, 5.0]
    np.testing.assert_array_equal(claims.bits(results, "kd", 10), [17.0] * 8 + [4.0, 5.0])

"""Every criterion on made-up results: met at its threshold and missed beyond it."""

import copy
import math

import numpy as np
import pytest
from scipy import optimize

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
        "num_tokens": 10_000,
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
    "larger budget",
)


def test_everything_is_judged_and_may_pass(results):
    found = judge(results)
    assert all(words in g.name for words, g in zip(NAMES, found, strict=True))
    assert [g.name for g in found if not g.passed] == []
    assert all(isinstance(g.passed, bool) and g.value and g.needed for g in found)
    change(results, "swing", perplexity=900.0, accuracy=0.0)
    assert all(g.passed for g in judge(results)), "of language only perplexities by class count"


def test_the_first_gate_is_the_leak_and_without_it_nothing_else_is_said(results):
    change(results, "teacher", bits={100: 17.0})
    found = judge(results)
    assert LEAK in found[0].name and [g.passed for g in found].count(False) == 1
    assert not found[0].passed
    said = summary._headline(results, found, list(LEVELS))
    assert said.startswith("Nothing can be claimed: teacher 17.0, kd 17.0 bits")
    assert "Swing distillation" not in said
    change(results, "teacher", bits={100: 18.0})
    said = summary._headline(results, judge(results), list(LEVELS))
    assert said.startswith("Of a secret that stood 100 times") and "Everything asked for" in said


def headline(results):
    return summary._headline(results, judge(results), list(LEVELS))


def test_the_lead_has_the_worst_secret_and_what_mask_and_decoys_give_away(results):
    change(results, "swing", bits={10: [*UNIFORM[1:], 9.26]})
    assert "The worst of Swing's 48 secrets has 9.3 bits." in headline(results)
    assert "mask" not in headline(results)
    for seed in SEEDS:
        results["mask", seed] = run({1: 1.0, 10: 1.0, 100: 1.26}, perplexity=19.5)
    said = headline(results)
    assert "leaves private tokens out (mask) gives away 1.3 bits, at perplexity 19.50." in said
    assert "Missed: Swing gives away less than leaving private tokens out (mask)." in said
    assert "still gives away 9.0 bits of them, Swing 1.4." in said
    left = {key: found for key, found in results.items() if not key[0].endswith("decoy")}
    assert "other numbers" not in headline(left)


def test_swing_has_to_give_away_less_than_mask_beyond_chance(results):
    words = "less than leaving private tokens out (mask)"
    for more, passed in ((0.0, False), (-1.0, False), (0.3, False), (3.0, True)):
        for seed in SEEDS:
            results["mask", seed] = run({1: 0.0, 10: 0.0, 100: UNIFORM + more})
        assert gate(results, words).passed is passed, more
    value = f"swing {UNIFORM.mean():.2f}, mask {UNIFORM.mean() + 3:.2f} bits at 100 repetitions (p "
    assert gate(results, words).value.startswith(value)


def test_lost_accuracy_has_the_digits_of_the_test_text(results):
    change(results, "swing", accuracy=0.49111)
    words = "accuracy against plain"
    assert gate(results, words, task="generation").value == "0.89 points lost"
    change(results, "kd", num_tokens=360)
    assert gate(results, words, task="generation").value == "0.9 points lost"


def shift_at(p):
    """By how much more than chance 16 secrets must be exposed for a p-value of p."""

    def excess(shift):
        return rank_test(np.tile(UNIFORM + shift, len(SEEDS)), CANDIDATES) - p

    return optimize.brentq(excess, 0.0, 5.0, xtol=1e-9)


def case(words, task="language", *, passes, fails):
    """`passes` and each of `fails` is arm -> what changes; `bits` is its exposure."""
    return pytest.param(words, task, passes, fails, id=f"{words} {task} {fails}"[:70])


def cases():
    teacher, kd = claims.LEAK_BITS
    beyond_chance, not_uniform = shift_at(claims.LEAK_P), shift_at(0.01 / len(LEVELS))
    for level in (10, 100):
        at = {"teacher": {"bits": {level: teacher}}, "kd": {"bits": {level: kd}}}
        for task in ("language", "generation"):
            fails = [{**at, "teacher": {"bits": {level: teacher - 0.01}}}]
            fails += [{**at, "kd": {"bits": {level: kd - 0.01}}}]
            yield case(LEAK, task, passes=at, fails=fails)
        for arm in ("teacher", "kd"):
            passes = {arm: {"bits": {level: UNIFORM + beyond_chance + 1e-6}}}
            fails = [{arm: {"bits": {level: UNIFORM + beyond_chance - 1e-6}}}]
            yield case(LEAK, "classification", passes=passes, fails=fails)
        for task, plain, most in (
            # The raw share binds for what can be measured, the corrected one for more.
            ("language", 16.0, 0.15 * 16),
            ("language", 40.0, 40 - 0.90 * (40 - floor_bits())),
            ("generation", 16.0, 16 - 0.80 * (16 - floor_bits())),
            ("classification", 9.0, 9 - 0.80 * (9 - floor_bits())),
        ):
            of_kd, words = {"kd": {"bits": {level: plain}}}, f"exposure at {level} repetitions"
            passes = of_kd | {"swing": {"bits": {level: most - 1e-6}}}
            fails = [of_kd | {"swing": {"bits": {level: most + 1e-6}}}]
            yield case(words, task, passes=passes, fails=fails)
    for task in claims.REDUCTION:
        unlearnt = {"bits": {1: 0.1}}  # secrets planted once need not leak
        yield case(LEAK, task, passes={"teacher": unlearnt, "kd": unlearnt}, fails=[])
    for level in LEVELS:
        passes = {"swing": {"bits": {level: UNIFORM + not_uniform - 1e-6}}}
        fails = [{"swing": {"bits": {level: UNIFORM + not_uniform + 1e-6}}}]
        yield case("ranks look uniform", passes=passes, fails=fails)
    yield case(
        "secrets planted once",
        passes={"swing": {"bits": {1: claims.ONCE_BITS, 100: 9.0}}},
        fails=[{"swing": {"bits": {1: claims.ONCE_BITS + 0.001}}}],
    )
    nothing_to_reduce = {"kd": {"bits": 1.0}}
    yield case("exposure at 10 repetitions", passes={}, fails=[nothing_to_reduce])
    for metric, other, bar, tokens in (
        ("public_perplexity", "kd", 1.01, "public tokens"),
        ("public_perplexity", "ce_dropped", 1.01, "public tokens"),
        ("public_digit_perplexity", "kd", 1.05, "public digit tokens"),
    ):
        of_other = {other: {metric: 100.0}}
        yield case(
            f"{tokens}' perplexity against {other}",
            passes=of_other | {"swing": {metric: 100.0 * bar}},
            fails=[of_other | {"swing": {metric: v}} for v in (100.0 * bar + 0.1, None)],
        )
    for task in ("generation", "classification"):
        passes, fails = {"swing": {"accuracy": 0.4901}}, [{"swing": {"accuracy": 0.4899}}]
        yield case("accuracy against plain", task, passes=passes, fails=fails)

    def decoys(kd, swing):
        return {"kd_decoy": {"bits": {100: kd}}, "swing_decoy": {"bits": {100: swing}}}

    kd, swing = claims.DECOY_KD, claims.DECOY_SWING
    fails = [decoys(kd - 0.01, swing), decoys(kd, swing + 0.01)]
    yield case("decoys", passes=decoys(kd, swing), fails=fails)

    def spread(swing, constant):
        bits = {"swing_noise0.1": swing, "constant_noise0.1": constant}
        bits |= {"swing_noise1": 0.0, "constant_noise1": 0.0}
        return {arm: {"bits": {100: 2.0 + value}} for arm, value in bits.items()}

    # All secrets of an arm move alike, so that its interval is a point.
    fails = [spread(0.01, 1.0), spread(0.0, 0.0), spread(0.0, -1.0)]
    yield case("larger budget", passes=spread(0.0, 0.01), fails=fails)


@pytest.mark.parametrize(("words", "task", "passes", "fails"), list(cases()))
def test_a_criterion_is_met_at_its_threshold_and_missed_beyond(results, words, task, passes, fails):
    for changes in (passes, *fails):
        changed = copy.deepcopy(results)
        for arm, metrics in changes.items():
            change(changed, arm, **metrics)
        assert gate(changed, words, task=task).passed == (changes is passes), changes


def test_the_slope_over_the_budget_has_the_interval_of_its_seeds(results):
    """Noise scales a decade apart: exposure falls by a bit per decade, and scatters by seed."""
    scales, rng = (0.01, 0.1, 1.0, 10.0), np.random.default_rng(0)
    slopes = (0.8, 1.0, 1.2)
    for seed, slope in enumerate(slopes):
        offsets = rng.normal(size=SECRETS)
        for i, scale in enumerate(scales):
            found = {str(level): (9.0 - slope * i + offsets).tolist() for level in LEVELS}
            results[f"swing_noise{scale:g}", seed] = {"exposure": found}
    mean, low, high = claims.trend(results, "swing", scales, 100)
    half = 4.302653 * 0.2 / math.sqrt(3)  # of Student's t with two degrees of freedom
    np.testing.assert_allclose((mean, low, high), (1.0, 1.0 - half, 1.0 + half), rtol=1e-5)
    del results["swing_noise0.01", 1], results["swing_noise0.01", 2]
    assert claims.trend(results, "swing", scales, 100)[1] == -math.inf, "one seed decides nothing"


def test_what_was_not_run_is_not_judged(results):
    without = {key: found for key, found in results.items() if not key[0].endswith("decoy")}
    assert len(judge(without)) == len(judge(results, noise_scales=())) == len(NAMES) - 1
    found = claims.gates(results, task="language", levels=(10, 100), num_candidates=CANDIDATES)
    assert not [g for g in found if "secrets planted once" in g.name]
    assert not [g for g in judge(results, task="generation") if "perplexity" in g.name]


def test_where_all_are_planted_once_they_must_leak(results):
    settings = {"task": "language", "levels": (1,), "num_candidates": CANDIDATES}
    assert not claims.gates(results, **settings)[0].passed
    for arm in ("teacher", "kd"):
        change(results, arm, bits={1: 19.0})
    assert claims.gates(results, **settings)[0].passed


def test_among_few_candidates_a_leak_is_nearly_all_that_can_be_seen(results):
    """16,384 show 14 bits at most: 12.1 and 9.1 are asked of teacher and plain student."""
    settings = {"task": "language", "levels": (10, 100), "num_candidates": 2**14}
    for teacher, kd, passed in ((12.2, 9.2, True), (12.0, 9.2, False), (12.2, 9.0, False)):
        for arm, bits in (("teacher", teacher), ("kd", kd)):
            change(results, arm, bits={10: bits, 100: 14.0})
        assert claims.gates(results, **settings)[0].passed == passed
    most = math.log2(CANDIDATES)
    np.testing.assert_allclose(claims.LEAK_BITS, most - np.array(claims.SHORT_BITS), atol=0.05)


def attacked(hits):
    """Attacks of which so many of 8 secrets are found, of every level or by level."""
    by_level = hits if isinstance(hits, dict) else dict.fromkeys(LEVELS, hits)
    found = {"members": SECRETS, "non_members": 4999, "chance": 0.01}
    rocs = {str(n): {"mean": {**found, "hits": k}} for n, k in by_level.items()}
    return {"extraction": None, "membership": {"canaries": rocs, "text": None}}


def test_membership_inference_has_to_find_plain_distillations_secrets_and_no_others(results):
    """Of 16 secrets per level, 8 per seed: 2 hits are what chance may show, 4 are not."""
    for found in results.values():
        found["attacks"] = attacked(0)
    words = [
        "finds plain distillation's secrets of 100 repetitions",
        "does not find the secrets of swing",
        "does not find the secrets of mask",
    ]
    results["mask", 1] = results["mask", 2] = run(UNIFORM, attacks=attacked(0))
    for arm, name, changes, passed in (
        ("kd", words[0], {100: 2}, True),
        ("kd", words[0], {100: 1}, False),
        ("kd", words[0], {10: 8}, False),
        ("swing", words[1], 0, True),
        ("swing", words[1], 1, True),
        ("swing", words[1], {10: 2}, False),
        ("mask", words[2], {1: 2}, False),
    ):
        hits = dict.fromkeys(LEVELS, 0) | changes if isinstance(changes, dict) else changes
        change(results, arm, attacks=attacked(hits))
        assert gate(results, name).passed == passed, (arm, changes)
        change(results, arm, attacks=attacked(0))


@pytest.mark.parametrize("level", LEVELS)
def test_no_single_secret_may_be_exposed(results, level):
    allowed = worst_allowed(len(LEVELS) * len(SEEDS) * SECRETS)
    assert allowed == pytest.approx(math.log2(48) + 6.6)
    for bits, passed in ((allowed, True), (allowed + 0.001, False)):
        results["swing", 2]["exposure"][str(level)] = [*UNIFORM[1:], bits]
        found = gate(results, "the worst of Swing's 48 secrets")
        assert (found.passed, found.value) == (passed, f"{bits:.2f} bits")


def test_metrics_are_means_over_seeds_and_bits_are_those_of_all(results):
    for seed, value in zip(SEEDS, (19.0, 21.4), strict=True):
        results["swing", seed]["public_perplexity"] = value
    assert gate(results, "public tokens' perplexity against kd").value == "+1.00%"
    results["kd", 2]["exposure"]["10"] = [4.0, 5.0]
    np.testing.assert_array_equal(claims.bits(results, "kd", 10), [17.0] * 8 + [4.0, 5.0])

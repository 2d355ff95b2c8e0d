"""What ε is about: sensitivities, calibration, the report, and the claims that are refused."""

import dataclasses
import json
import math

import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.privacy import accountants, ledger
from distill_core.privacy.ledger import Entry, Ledger
from distill_core.privacy.per_example import SLACK
from dpdfd.privacy.units import (
    UNITS,
    Release,
    accuracy_bound,
    calibrate,
    privacy_spent,
    sensitivity,
)

DELTA, ROOT = 1e-5, math.sqrt(2)
QUERY = Release("query", "gradient_sum", 256, norm=1.5)
SINGLE = Release("record_single", "gradient_sum", 256, norm=1.5)
ENSEMBLE = Release("record_ensemble", "mean_answer", 100, num_teachers=250, num_examples=60_000)
SGD = Entry(
    ledger.POISSON_GAUSSIAN, 0.6, 0.5, 100, "record", ledger.ZERO_OUT, 0.02, num_examples=6_400
)
EXPOSED = QUERY.charge(1.0)
RELEASES = {
    "query": QUERY,
    "query, logits": Release("query", "query_gradients", 64, norm=2.0, mode="clip"),
    "single": SINGLE,
    "single, logits": Release("record_single", "query_gradients", 64, norm=0.1),
    "answers": ENSEMBLE,
    "counts": dataclasses.replace(ENSEMBLE, released="vote_counts"),
    "mean of gradients": dataclasses.replace(ENSEMBLE, released="mean_of_gradients", norm=0.2),
    "clipped mean": dataclasses.replace(
        ENSEMBLE, released="gradient_of_mean", norm=0.2, mode="clip"
    ),
}


@pytest.mark.parametrize(
    ("released", "sizes", "expected"),
    [
        ("gradient_sum", {"batch_size": 256, "norm": 0.5}, 256),
        ("gradient_sum", {"batch_size": 256, "norm": 0.5, "mode": "clip"}, 256),
        ("query_gradients", {"norm": 3.0}, 6),
        ("query_gradients", {"norm": 3.0, "mode": "clip"}, ROOT),
        ("query_gradients", {"norm": 0.1, "mode": "clip"}, 0.2),
        ("replaced_query", {"norm": 0.5, "batch_size": 256}, 1),
        ("mean_answer", {"num_teachers": 100}, ROOT / 100),
        ("vote_counts", {"num_teachers": 100}, ROOT),
        ("mean_of_gradients", {"norm": 3.0, "num_teachers": 100}, 0.06),
        ("mean_of_gradients", {"norm": 3.0, "num_teachers": 100, "mode": "clip"}, ROOT / 100),
        ("gradient_of_mean", {"norm": 3.0, "num_teachers": 100, "mode": "clip"}, ROOT / 100),
        ("gradient_of_mean", {"norm": 1e-3, "num_teachers": 100, "mode": "clip"}, 2e-3),
        ("gradient_of_mean", {"norm": 3.0, "num_teachers": 1}, 6),
    ],
)  # fmt: skip
def test_the_table_of_sensitivities(released, sizes, expected):
    assert sensitivity(released, **sizes) == pytest.approx(expected, rel=1e-12)
    assert sensitivity(released, **sizes, slack=0.01) == pytest.approx(1.01 * expected, rel=1e-12)


def bounded(vectors, norm, mode):
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    stretched = np.where(lengths > 0, norm / np.maximum(lengths, 1e-30), 0.0)
    return vectors * (stretched if mode == "normalize" else np.minimum(stretched, 1.0))


@pytest.mark.parametrize("norm", [0.01, 0.5, 5.0])
@pytest.mark.parametrize("mode", ["normalize", "clip"])
@pytest.mark.parametrize("teachers", [1, 4])
def test_no_change_of_one_teacher_moves_what_leaves_further(norm, mode, teachers):
    rng, tries, k = np.random.default_rng(0), 3000, 3

    def vertices(shape):  # distributions, near the corners as a change goes furthest there
        return rng.dirichlet(np.full(k, 0.05), shape)

    student, before, other = vertices((tries,)), vertices((teachers, tries)), vertices((tries,))
    after = np.concatenate([other[None], before[1:]])

    def moved(release):
        return np.linalg.norm(release(before) - release(after), axis=-1).max()

    sizes = {"norm": norm, "mode": mode, "num_teachers": teachers, "batch_size": 1}
    found = {
        "mean_answer": moved(lambda p: p.mean(0)),
        "vote_counts": moved(lambda p: p.sum(0)),
        "mean_of_gradients": moved(lambda p: bounded(student - p, norm, mode).mean(0)),
    }
    if teachers == 1:
        found["query_gradients"] = found["mean_of_gradients"]
    if mode == "clip" or teachers == 1:
        found["gradient_of_mean"] = moved(lambda p: bounded(student - p.mean(0), norm, mode))
    for released, apart in found.items():
        bound = sensitivity(released, **sizes)
        assert 0.5 * bound < apart <= bound * (1 + 1e-9), released


def test_the_normalised_mean_is_refused_since_one_teacher_turns_it_round():
    student, near = np.zeros(2), np.array([[1e-6, -1e-6]])
    turned = bounded(student - near, 1.0, "normalize") - bounded(student + near, 1.0, "normalize")
    assert np.linalg.norm(turned) == pytest.approx(2.0), "however little it moves"
    with pytest.raises(InputError, match="^mode: got 'normalize'; .*2C whatever M is"):
        sensitivity("gradient_of_mean", norm=1.0, num_teachers=100)
    with pytest.raises(InputError, match="^mode: got 'normalize'"):
        Release("record_ensemble", "gradient_of_mean", 10, norm=1.0, num_teachers=100)


@pytest.mark.parametrize(
    ("name", "count", "std", "moves"),
    [
        ("query", 1, 1.5, 3.0),
        ("query, logits", 1, 2.0, ROOT),
        ("single", 1, 1.5, 2 * 256 * 1.5),
        ("single, logits", 64, 0.1, 0.2),
        ("answers", 100, ROOT / 250, ROOT / 250),
        ("counts", 100, ROOT, ROOT),
        ("mean of gradients", 100, 0.2, 0.4 / 250),
        ("clipped mean", 100, 0.2, ROOT / 250),
    ],
)
def test_a_step_charges_what_the_mechanism_of_that_noise_releases(name, count, std, moves):
    entry = RELEASES[name].charge(7.0)
    assert entry.std == pytest.approx(7.0 * std, rel=1e-12)
    assert entry.sensitivity == pytest.approx(moves * (1 + SLACK), rel=1e-12)
    assert (entry.count, entry.unit, entry.adjacency) == (count, *UNITS[RELEASES[name].unit])
    assert entry.batch_size == RELEASES[name].batch_size


@pytest.mark.parametrize("name", RELEASES)
@pytest.mark.parametrize(
    ("epsilon", "delta", "steps"), [(1.0, 1e-5, 1), (10.0, 1e-7, 300), (0.01, 1e-6, 100_000)]
)
def test_calibrated_noise_composes_back_in_the_report(name, epsilon, delta, steps):
    release = RELEASES[name]
    step = release.charge(calibrate(release, epsilon=epsilon, delta=delta, steps=steps))
    spent = Ledger().charge(step.times(steps))
    report = privacy_spent(json.loads(json.dumps(spent.to_json())), delta=delta)
    assert report.epsilon == pytest.approx(epsilon, rel=1e-6)
    assert (report.unit, report.adjacency) == UNITS[release.unit]
    assert (report.claim, report.delta) == (release.unit, delta)
    assert report == privacy_spent(spent, delta=delta)
    # Half the noise is worth more, and so are more steps.
    less = dataclasses.replace(step, std=step.std / 2).times(steps)
    for other in (spent.charge(step.times(steps)), Ledger().charge(less)):
        assert privacy_spent(other, delta=delta).epsilon > report.epsilon
    most = ledger.affordable_steps(Ledger(), step, epsilon, delta, most=steps + 9)
    assert most == steps


def test_what_looks_like_one_for_a_query_is_2600_for_a_record():
    multiplier = calibrate(QUERY, epsilon=1.0, delta=DELTA, steps=500)
    report = privacy_spent(Ledger().charge(QUERY.charge(multiplier).times(500)), delta=DELTA)
    assert report.epsilon == pytest.approx(1.0, rel=1e-6)
    assert 2_600 < report.record_epsilon < 2_700
    as_record = privacy_spent(Ledger().charge(SINGLE.charge(multiplier).times(500)), delta=DELTA)
    assert as_record.epsilon == pytest.approx(report.record_epsilon, rel=1e-9)
    assert as_record.record_epsilon == as_record.epsilon
    assert (report.unit, as_record.unit, report.batch_size) == ("query", "record", 256)
    sentences = " ".join(report.assumptions)
    assert "No record is protected" in sentences
    assert "ε = 2,64" in sentences and "B = 256" in sentences


def test_noise_on_each_query_costs_a_record_the_root_of_the_batch_more():
    query = RELEASES["query, logits"]
    single = dataclasses.replace(query, unit="record_single")
    multiplier = calibrate(query, epsilon=1.0, delta=DELTA, steps=20)
    report = privacy_spent(Ledger().charge(query.charge(multiplier).times(20)), delta=DELTA)
    mu = accountants.gaussian_mu(1.0, DELTA)
    expected = accountants.composed_epsilon([accountants.Noised(8 * mu)], DELTA)
    assert report.record_epsilon == pytest.approx(expected, rel=1e-6)
    record = privacy_spent(Ledger().charge(single.charge(multiplier).times(20)), delta=DELTA)
    assert record.epsilon == pytest.approx(expected, rel=1e-6)


def test_the_student_of_a_dp_teacher_spends_what_the_teacher_spent():
    teacher = Ledger().charge(SGD)
    report = privacy_spent(Ledger(public=True).descend("abc", teacher).to_json(), delta=DELTA)
    assert report.claim == "record_dp_teacher"
    assert report.epsilon == ledger.epsilon(teacher, DELTA)
    assert report.replace_one_epsilon == ledger.epsilon(teacher, DELTA, replace_one=True)
    with pytest.raises(InputError, match="^ancestor: got 'abc'"):
        privacy_spent(Ledger(public=True).descend("abc", Ledger()), delta=DELTA)


@pytest.mark.parametrize("entry", [*(each.charge(50.0) for each in RELEASES.values()), SGD])
def test_every_report_says_what_it_assumes(entry):
    spent = dataclasses.replace(Ledger().charge(entry), restarts=1)
    report = privacy_spent(spent, delta=DELTA, configurations_tried=12)
    text = " ".join(report.assumptions)
    noised = ("not a cryptographic", "float32")
    if report.claim == "record_ensemble":
        noised = ("discrete Gaussian noise, sampled exactly from the operating system's",)
    for said in ("fixed before the run", *noised, "hyper-parameters", "tried: 12", "Restarts: 1"):
        assert said in text
    assert all(sentence.endswith(".") for sentence in report.assumptions)
    row = report.report()
    assert {"epsilon", "privacy_unit", "adjacency", "delta", "assumptions"} <= set(row)
    json.dumps(row)
    quiet = " ".join(privacy_spent(Ledger().charge(entry), delta=DELTA).assumptions)
    assert "tried: not counted" in quiet
    assert "Restarts" not in quiet and "Conversions" not in quiet


def test_a_teacher_by_full_batches_is_not_said_to_have_sampled():
    changes = {"mechanism": ledger.GAUSSIAN, "sampling_rate": None, "batch_size": 6_400}
    full = dataclasses.replace(SGD, **changes)
    for entries, said in (((SGD,), (True, False)), ((full,), (False, True)), ((SGD, full), (1, 1))):
        report = privacy_spent(Ledger(entries), delta=DELTA, num_examples=6_400)
        text = " ".join(report.assumptions)
        assert ("entered each batch independently" in text, "took all records" in text) == said
        assert report.claim == "record_dp_teacher"


def test_one_arbitrary_teacher_teaches_little():
    for epsilon, accuracy in ((1.0, 0.155), (10.0, 0.764)):
        assert round(accuracy_bound(epsilon, 1e-5, 10), 3) == accuracy
        assert accuracy_bound(epsilon, 1e-5, 2) > accuracy_bound(epsilon, 1e-5, 10)
    assert accuracy_bound(1e-6, 1e-9, 10) == pytest.approx(0.1, abs=1e-4)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: calibrate(QUERY, epsilon=0.0, delta=DELTA, steps=1), "epsilon"),
        (lambda: calibrate(QUERY, epsilon=1.0, delta=0.0, steps=1), "delta"),
        (lambda: calibrate(ENSEMBLE, epsilon=1.0, delta=1 / 60_000, steps=1), "delta"),
        (lambda: calibrate(QUERY, epsilon=1.0, delta=DELTA, steps=0), "steps"),
        (lambda: privacy_spent(Ledger().charge(QUERY.charge(1.0)), delta=2.0), "delta"),
        (
            lambda: privacy_spent(Ledger().charge(QUERY.charge(1.0)), delta=0.01, num_examples=100),
            "delta",
        ),
        (lambda: privacy_spent({}, delta=DELTA), "ledger"),
        (lambda: privacy_spent(Ledger().charge(EXPOSED).expose("labels"), delta=0.1), "ledger"),
        (lambda: sensitivity("gradients", norm=1.0), "released"),
        (lambda: sensitivity("gradient_sum", norm=0.0, batch_size=2), "norm"),
        (lambda: sensitivity("gradient_sum", norm=1.0), "batch_size"),
        (lambda: sensitivity("mean_answer"), "num_teachers"),
        (lambda: sensitivity("query_gradients", norm=1.0, mode="cut"), "mode"),
        (lambda: QUERY.charge(0.0), "noise_multiplier"),
        (lambda: dataclasses.replace(QUERY, unit="image"), "unit"),
        (lambda: dataclasses.replace(QUERY, unit="record_dp_teacher"), "unit"),
        (lambda: dataclasses.replace(QUERY, norm=-1.0), "norm"),
        (lambda: dataclasses.replace(QUERY, norm=None), "norm"),
        (lambda: dataclasses.replace(QUERY, batch_size=0), "batch_size"),
        (lambda: dataclasses.replace(QUERY, released="mean_answer", num_teachers=9), "released"),
        (lambda: dataclasses.replace(SINGLE, num_teachers=9), "num_teachers"),
        (lambda: dataclasses.replace(ENSEMBLE, num_teachers=60_001), "num_teachers"),
        (lambda: dataclasses.replace(ENSEMBLE, num_teachers=None), "num_teachers"),
        (lambda: accuracy_bound(1.0, DELTA, 1), "num_classes"),
        (lambda: accuracy_bound(0.0, DELTA, 10), "epsilon"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_that_names_it(call, field):
    with pytest.raises(InputError, match=f"^{field}: got"):
        call()


def test_a_sum_of_many_moves_by_its_rounding_more():
    """One of 8,192 gradients that point one way: float32 knows their sum to 5e-4."""
    few, many = (
        Release("query", "gradient_sum", size, norm=0.5, mode="clip").charge(1.0).sensitivity
        for size in (256, 8192)
    )
    assert few == pytest.approx(1.0001, rel=1e-12)
    assert many / few == pytest.approx((1 + 2**-10) / 1.0001, rel=1e-9)

"""Composition and calibration, against other accountants and formulas of their own."""

import math

import dp_accounting
import pytest
import scipy.stats
from dp_accounting import rdp
from dp_accounting.pld import PLDAccountant

from distill_core.config import InputError
from distill_core.privacy import accountants, pld
from distill_core.privacy.accountants import Noised

MIXED = [Noised(0.1, 30), Noised(0.02, 500), Noised(0.5)]  # Σ count·ratio² = 0.75


def delta_of(epsilon, mu):
    """δ(ε) of μ-Gaussian privacy (Balle and Wang, 2018, theorem 8)."""
    cdf = scipy.stats.norm.cdf
    return cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * cdf(-mu / 2 - epsilon / mu)


def from_other(accountant, noised, delta):
    for ratio, count, rate in noised:
        event = dp_accounting.GaussianDpEvent(1 / ratio)
        event = event if rate == 1 else dp_accounting.PoissonSampledDpEvent(rate, event)
        accountant.compose(event, count)
    return accountant.get_epsilon(delta)


def gaussian(ratio, count=1, delta=1e-5):
    return accountants.composed_epsilon([Noised(ratio, count)], delta)


def sampled(ratio, rate, count, delta=1e-5):
    return accountants.composed_epsilon([Noised(ratio, count, rate)], delta)


def sampled_multiplier(epsilon, delta, rate, count):
    return accountants.calibrate([Noised(1.0, count, rate)], epsilon, delta)


@pytest.mark.parametrize("delta", [1e-4, 1e-8])
@pytest.mark.parametrize("noised", [MIXED, [Noised(0.05, 100)], [Noised(1.5, 2)]])
def test_the_exact_formula_is_that_of_privacy_loss_distributions(noised, delta):
    exact = accountants.composed_epsilon(noised, delta)
    mu = math.sqrt(sum(count * ratio**2 for ratio, count, _ in noised))
    assert math.isclose(delta_of(exact, mu), delta, rel_tol=1e-6)
    discretised = from_other(PLDAccountant(), noised, delta)
    assert exact <= discretised * (1 + 1e-6), "that one is an upper bound"
    assert math.isclose(exact, discretised, rel_tol=1e-3)


@pytest.mark.parametrize(
    ("ratio", "rate", "count"), [(0.8, 0.01, 1000), (0.5, 0.004, 300), (1.0, 0.1, 20)]
)
def test_sampled_noise_lies_below_renyi_and_above_the_finer_grid(ratio, rate, count):
    found = sampled(ratio, rate, count)
    assert found < from_other(rdp.RdpAccountant(), [Noised(ratio, count, rate)], 1e-5)
    finer = from_other(
        PLDAccountant(value_discretization_interval=1e-4), [Noised(ratio, count, rate)], 1e-5
    )
    assert finer * (1 - 3e-4) <= found <= finer * (1 + 2e-3)


def test_sampling_costs_less_and_at_rate_one_nothing_less():
    whole = gaussian(0.5, 9)
    assert sampled(0.5, 1.0, 9) == pytest.approx(whole, rel=1e-12)
    assert 0.98 * whole < sampled(0.5, 0.999, 9) < whole * 1.001


def test_replacing_a_record_costs_zeroing_it_out_twice():
    for noised in (MIXED, [Noised(0.4)]):
        twice = [each._replace(ratio=2 * each.ratio) for each in noised]
        found = accountants.composed_epsilon(noised, 1e-5, replace_one=True)
        assert found == pytest.approx(accountants.composed_epsilon(twice, 1e-5), rel=1e-9)
    steps = [Noised(1 / 0.6, 1000, 256 / 60_000)]
    zeroed = accountants.composed_epsilon(steps, 1e-5)
    replaced = accountants.composed_epsilon(steps, 1e-5, replace_one=True)
    relation = dp_accounting.NeighboringRelation.REPLACE_ONE
    other = from_other(PLDAccountant(relation), steps, 1e-5)
    assert zeroed < replaced == pytest.approx(other, rel=2e-3)
    doubled = [each._replace(ratio=2 * each.ratio) for each in steps]
    assert replaced < accountants.composed_epsilon(doubled, 1e-5)


def test_a_ledger_of_both_kinds_costs_more_than_each():
    kinds = [Noised(1.0, 100, 0.02), Noised(0.2, 4)]
    both = accountants.composed_epsilon(kinds, 1e-5)
    for alone in kinds:
        assert accountants.composed_epsilon([alone], 1e-5) < both
    assert both == pytest.approx(from_other(PLDAccountant(), kinds, 1e-5), rel=0.002)


def test_much_more_noise_or_much_less_is_no_trouble():
    assert accountants.composed_epsilon([], 1e-5) == 0
    assert gaussian(1e-7) == 0
    # μ²/2 + 4.26 μ, and the grid grows with the loss instead of filling the memory.
    assert gaussian(1e3) == pytest.approx(504_264, rel=1e-5)
    assert 5_000 < sampled(100.0, 0.5, 2) < gaussian(100.0, 2)


@pytest.mark.parametrize("what", ["ratio", "count", "sampling_rate", "delta"])
@pytest.mark.parametrize("sampled", [False, True])
def test_epsilon_moves_the_right_way(what, sampled):
    def epsilon(ratio=0.4, count=10, sampling_rate=0.1, delta=1e-6):
        rate = sampling_rate if sampled or what == "sampling_rate" else 1.0
        return accountants.composed_epsilon([Noised(ratio, count, rate)], delta)

    more = {"ratio": 0.41, "count": 11, "sampling_rate": 0.11, "delta": 0.9e-6}
    assert epsilon(**{what: more[what]}) > epsilon()


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 300.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize("count", [1, 1_000, 10**7])
def test_gaussian_noise_composes_back_to_its_budget(epsilon, delta, count):
    multiplier = accountants.calibrate_gaussian(epsilon, delta, count)
    assert math.isclose(gaussian(1 / multiplier, count, delta), epsilon, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("epsilon", "delta", "rate", "count"),
    [
        (0.1, 1e-6, 0.05, 200),
        (1.0, 1e-5, 0.02, 100),
        (1.0, 1e-9, 0.2, 10),
        (5.0, 1e-5, 256 / 60_000, 400),
        (1.0, 1e-5, 0.003, 2_000),
        # Small and large budgets.
        (1e-3, 1e-5, 0.01, 1000),
        (0.01, 1e-5, 0.01, 1000),
        (1e3, 1e-5, 0.1, 100),
        (1.0, 1e-11, 0.01, 99),
    ],
)
def test_sampled_noise_composes_back_to_its_budget_and_never_above(epsilon, delta, rate, count):
    multiplier = sampled_multiplier(epsilon, delta, rate, count)
    assert 0.99 * epsilon < sampled(1 / multiplier, rate, count, delta) <= epsilon
    assert multiplier < accountants.calibrate_gaussian(epsilon, delta, count), "it amplifies"


@pytest.mark.parametrize("epsilon", [0.5, 5.0])
def test_unequal_noises_keep_their_proportions_and_meet_the_budget(epsilon):
    factor = accountants.calibrate(MIXED, epsilon, 1e-5)
    scaled = [each._replace(ratio=each.ratio / factor) for each in MIXED]
    assert math.isclose(accountants.composed_epsilon(scaled, 1e-5), epsilon, rel_tol=1e-6)


@pytest.mark.parametrize("rate", [1.0, 0.05])
def test_what_is_spent_is_left_as_it_was_and_paid_from_the_budget(rate):
    spent = [Noised(0.05, 20)]
    factor = accountants.calibrate([Noised(1.0, 50, rate)], 1.5, 1e-5, spent=spent)
    assert factor > 1.02 * accountants.calibrate([Noised(1.0, 50, rate)], 1.5, 1e-5)
    together = accountants.composed_epsilon([Noised(1 / factor, 50, rate), *spent], 1e-5)
    assert 0.99 * 1.5 < together <= 1.5 * (1 + 1e-9)
    with pytest.raises(InputError, match=r"^epsilon: got 0\.5; must be above the 0\.8"):
        accountants.calibrate([Noised(1.0, 50, rate)], 0.5, 1e-5, spent=spent)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: accountants.gaussian_mu(0.0, 1e-5), "epsilon"),
        (lambda: accountants.gaussian_mu(float("nan"), 1e-5), "epsilon"),
        (lambda: accountants.gaussian_mu(1.0, "1e-5"), "delta"),
        (lambda: accountants.composed_epsilon([], 0.0), "delta"),
        (lambda: accountants.composed_epsilon([Noised(-1.0)], 1e-5), "ratio"),
        (lambda: accountants.composed_epsilon([Noised(1.0, 0)], 1e-5), "count"),
        (lambda: sampled(1.0, 0.0, 1, 1e-5), "sampling_rate"),
        (lambda: sampled_multiplier(1.0, 1e-5, 0.1, 0.5), "count"),
        (lambda: accountants.calibrate([], 1.0, 1e-5), "noised"),
        # What cannot be computed.
        (lambda: sampled_multiplier(10.0, 1e-15, 0.01, 100), "delta"),
        (lambda: sampled(1.0, 0.01, 100, 1e-15), "delta"),
        (lambda: sampled(1.0, 0.01, 10**6, 1e-10), "delta"),
        (lambda: sampled(1.0, 1e-300, 10, 1e-5), "sampling_rate"),
        (lambda: sampled(1.0, 0.1, 10**12, 1e-3), "count"),
        (lambda: sampled(1e300, 0.1, 9, 1e-5), "ratio"),
        (lambda: sampled_multiplier(1e6, 1e-5, 0.1, 10), "epsilon"),
        (lambda: sampled_multiplier(1.0, 0.4, 1e-3, 10), "delta"),
        (lambda: accountants.gaussian_mu(1e300, 1e-5), "epsilon"),
    ],
)
def test_bad_input_is_one_line_that_names_it(call, field):
    with pytest.raises(InputError, match=f"^{field}: got"):
        call()


EXTREME = (1e-300, 1e-12, 1e-6, 1e-2, 1.0, 30.0, 1e3, 1e9, 1e300, math.inf, math.nan)


@pytest.mark.parametrize("delta", [1e-300, 1e-15, 1e-9, 1e-5, 0.3])
def test_whatever_is_asked_there_is_a_finite_bound_or_a_line(delta):
    """Gaussian noise over all sizes; what is calibrated composes back to its budget."""
    for value in EXTREME:
        for count in (1, 10**6, 10**15, 10**400):
            try:
                assert 0 <= gaussian(value, count, delta) < math.inf
            except InputError as error:
                assert error.field in {"ratio", "count"}
            try:
                multiplier = accountants.calibrate_gaussian(value, delta, count)
            except InputError as error:
                assert error.field in {"epsilon", "count"}
            else:
                back = gaussian(1 / multiplier, count, delta)
                assert 0.99 * value <= back <= value


@pytest.mark.parametrize(
    ("ratio", "rate", "count"),
    [(1e-9, 0.5, 10), (1e3, 0.9, 1000), (10.0, 1 - 1e-16, 5), (0.1, 1e-9, 100), (1e9, 0.5, 1)],
)
def test_sampling_never_costs_more_than_none(ratio, rate, count):
    for replace_one in (False, True):
        if (1 + replace_one) * ratio > 1e9:
            continue
        noised = [Noised(ratio, count, rate)]
        without = [Noised(ratio, count)]
        found = accountants.composed_epsilon(noised, 1e-5, replace_one=replace_one)
        most = accountants.composed_epsilon(without, 1e-5, replace_one=replace_one)
        assert 0 <= found <= most < math.inf


@pytest.mark.parametrize("count", [999, 1000, 1001, 2500])
def test_steps_composed_in_parts_cost_what_they_cost_at_once(count, monkeypatch):
    found = []
    for at_once in (count, 1000):
        monkeypatch.setattr(pld, "_AT_ONCE", at_once)
        found.append(sampled(1.0, 0.02, count, 1e-5))
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_millions_of_steps_raise_no_integer_to_the_power_of_millions():
    """The library's own composition does, and takes a minute."""
    assert 2.1 < sampled(4.9e-4, 0.5, 5_000_000) < 2.3


@pytest.mark.parametrize(
    ("gap", "rate"), [(1e-13, 1.0), (1e-9, 1.0), (1e-4, 1.0), (1e-13, 0.01), (1e-9, 0.01)]
)
def test_what_calibration_left_over_of_a_budget_is_no_budget(gap, rate):
    spent = [Noised(0.7, 3)]
    epsilon = accountants.composed_epsilon(spent, 1e-5) * (1 + gap)
    with pytest.raises(InputError, match="^epsilon: .* spent"):
        accountants.calibrate([Noised(1.0, 10, rate)], epsilon, 1e-5, spent=spent)


def test_a_budget_that_sampled_steps_all_but_spent_is_refused_soon(monkeypatch):
    """The search for a factor that does not exist took minutes."""
    costs, real = [], accountants.composed_epsilon

    def counted(*args, **kwargs):
        costs.append(1)
        return real(*args, **kwargs)

    spent = [Noised(1.0, 200, 0.05)]
    epsilon = accountants.composed_epsilon(spent, 1e-5) * (1 + 1e-5)
    monkeypatch.setattr(accountants, "composed_epsilon", counted)
    with pytest.raises(InputError, match="^epsilon: .* all but spent"):
        accountants.calibrate([Noised(1.0)], epsilon, 1e-5, spent=spent)
    assert len(costs) <= 3
    sigma = accountants.calibrate([Noised(1.0)], 2 * epsilon, 1e-5, spent=spent)
    assert len(costs) <= 25
    found = real([*spent, Noised(1 / sigma)], 1e-5)
    assert 2 * epsilon * 0.995 < found <= 2 * epsilon


def test_noise_after_what_was_spent_stays_within_the_budget():
    spent = [Noised(0.7, 3)]
    epsilon = accountants.composed_epsilon(spent, 1e-5) * 1.01
    sigma = accountants.calibrate([Noised(1.0)], epsilon, 1e-5, spent=spent)
    found = accountants.composed_epsilon([*spent, Noised(1 / sigma)], 1e-5)
    assert epsilon * (1 - 1e-6) < found <= epsilon

"""The noise that a formal budget asks for, and what it reports."""

import jax
import jax.numpy as jnp
import numpy as np

from distill_core.privacy.accountants import Noised, composed_epsilon
from swingdistill import budget, soft_targets, token_temperatures
from swingdistill.variants import released_entries

FORMAL = {"epsilon": 2.0, "delta": 1e-6, "positions": 500, "entries": 4, "clip": 3.0, "t_min": 1.0}
SCORES = jnp.array([0.0, 0.5, 1.0])
HEATS = token_temperatures(SCORES, t_min=1.0, t_max=16.0)


def test_with_public_scores_noise_is_proportional_to_each_positions_sensitivity():
    plan = budget.Formal(**FORMAL, public_scores=True)
    sensitivity = 2 * 3.0 * 4**0.5 / np.array([1.0, 8.5, 16.0])
    np.testing.assert_allclose(plan.sensitivity(HEATS), sensitivity, rtol=1e-6)
    scale = plan.noise_scale(SCORES, HEATS)
    np.testing.assert_allclose(scale[1:] / sensitivity[1:], plan.noise_multiplier, rtol=1e-6)
    assert scale[0] == 0, "nothing is noised where nothing is private"


def test_scores_that_depend_on_the_teacher_cost_noise_at_t_min_everywhere():
    plan = budget.Formal(**FORMAL, public_scores=False)
    np.testing.assert_allclose(
        plan.noise_scale(SCORES, HEATS), plan.noise_multiplier * 2 * 3.0 * 2, rtol=1e-6
    )


def test_the_noise_at_all_positions_spends_the_budget_and_no_more():
    plan = budget.Formal(**FORMAL, public_scores=True)
    heats = np.full(500, 16.0)
    ratios = np.asarray(plan.sensitivity(heats) / plan.noise_scale(np.ones(500), heats))
    ratio = float(np.sqrt(np.sum(ratios.astype(np.float64) ** 2)))
    spent = composed_epsilon([Noised(ratio)], 1e-6)
    assert abs(spent / 2.0 - 1) < 0.01


def test_no_two_teachers_move_a_released_vector_further_than_its_sensitivity():
    rng = np.random.default_rng(0)
    plan = budget.Formal(**FORMAL, public_scores=True)
    reference = rng.normal(size=(2000, 9))

    def released(teacher):
        logits = released_entries(jnp.asarray(teacher, jnp.float32), reference, plan.entries)
        found = soft_targets(  # so little noise that what it is added to is seen, unnormalised
            jax.random.key(0),
            logits,
            2.0,
            noise_scale=1e-6,
            clip=plan.clip,
            noise_ids=jnp.arange(2000),
        )
        kept = np.where(np.isfinite(found), found, 0.0)
        return kept - kept.sum(-1, keepdims=True) / 4 * np.isfinite(found)

    apart = np.linalg.norm(
        released(rng.choice([-50, 50], (2000, 9))) - released(rng.choice([-50, 50], (2000, 9))),
        axis=-1,
    )
    bound = float(plan.sensitivity(jnp.array(2.0)))
    assert apart.max() <= bound * (1 + 1e-5)
    assert apart.max() > 0.9 * bound, "the bound is not tried"


def test_a_formal_epsilon_is_reported_with_what_it_is_for():
    report = budget.Formal(**FORMAL, public_scores=True).report()
    assert (report["epsilon"], report["delta"]) == (2.0, 1e-6)
    assert report["privacy_unit"] == "released logit vectors of 500 positions; not records"
    assert "4 released entries" in report["adjacency"]
    assert "records" in report["not_covered"] and "the rules read" in report["not_covered"]
    of_teacher = budget.Formal(**FORMAL, public_scores=False).report()["not_covered"]
    assert "scores, which come from the teacher" in of_teacher


def test_noise_of_a_given_seed_has_no_epsilon():
    report = budget.Formal(**FORMAL, public_scores=True).report(noise_seed=0)
    assert report["epsilon"] is None and "subtracts the noise" in report["why"]

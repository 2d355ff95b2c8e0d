"""The noisy mean of an ensemble's heads: its bound, its noise, and a conversion that asks it."""

import itertools
import json

import numpy as np
import pytest

from distill_core import checkpoint
from distill_core.config import InputError
from distill_core.privacy import ledger
from dpdfd import ensemble, train
from dpdfd.ensemble import mean
from dpdfd.privacy import odometer

SHAPES = {"kernel": (5, 3), "bias": (3,)}
NORM, TEACHERS = 2.0, 7


def heads(seed=0, scale=1.0, teachers=TEACHERS):
    rng = np.random.default_rng(seed)
    return {
        name: (scale * rng.normal(size=(teachers, *shape))).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def averaged(stacked, *, noise_multiplier=1e-9, norm=NORM, seed=1):
    found = mean.noisy_mean(
        stacked,
        norm=norm,
        noise_multiplier=noise_multiplier,
        random=np.random.default_rng(seed).bytes,
    )
    return np.concatenate([np.ravel(found[name]) for name in sorted(found)]).astype(np.float64)


def test_without_noise_it_is_the_mean_of_centred_heads():
    stacked = heads(scale=0.1)
    centred = {k: v - v.mean(-1, keepdims=True) for k, v in stacked.items()}
    expected = np.concatenate([np.ravel(centred[name].mean(0)) for name in sorted(centred)])
    np.testing.assert_allclose(averaged(stacked), expected, atol=1e-5)


@pytest.mark.parametrize("worst", [1e30, -1e30, np.nan, np.inf, 0.0])
def test_a_teacher_that_changes_in_any_way_moves_it_by_no_more_than_two_norms(worst):
    for scale, which in itertools.product((1e-3, 1.0, 1e6), (0, TEACHERS - 1)):
        one, other = heads(scale=scale), heads(scale=scale)
        for name in other:
            other[name][which] = worst
            other[name][which, ..., 0] = -worst
        apart = np.linalg.norm(averaged(one) - averaged(other))
        assert apart <= 2 * NORM / TEACHERS * (1 + 1e-6)


def test_opposite_heads_reach_the_bound():
    one, other = heads(scale=1e3), heads(scale=1e3)
    for name in other:
        other[name][0] = -other[name][0]
    apart = np.linalg.norm(averaged(one) - averaged(other))
    np.testing.assert_allclose(apart, 2 * NORM / TEACHERS, rtol=1e-4)


def test_the_noise_is_that_of_the_multiplier_over_two_norms():
    none = {name: np.zeros((TEACHERS, *shape)) for name, shape in SHAPES.items()}
    drawn = np.concatenate([averaged(none, noise_multiplier=3.0, seed=seed) for seed in range(200)])
    std = 3.0 * 2 * NORM / TEACHERS
    np.testing.assert_allclose(drawn.std(), std, rtol=0.05)  # 3,600 draws: ± 1.2%


MEMBERS = {
    "dataset": "digits",
    "model": "dpdfd.features:FeatureRidge",
    "model_kwargs": {"num_random": 24},
    "num_teachers": 6,
    "copies": 0,
    "ridge": 0.1,
}
CONVERSION = {
    "dataset": "digits",
    "model": "dpdfd.features:FeatureRidge",
    "model_kwargs": {"num_random": 24},
    "privacy_unit": "record_ensemble",
    "mechanism": "parameters",
    "norm": 5.0,
    "epsilon": 8.0,
    "optimizer": "adam",
    "learning_rate": 0.05,
    "batch_size": 64,
    "num_steps": 40,
    "num_rounds": 1,
    "num_queries": 512,
    "candidates": 1,
    "loss": "cross_entropy",
    "temperature": 4.0,
    "prior": {"strokes": 1.0},
    "generator": {"width": 4, "latent_size": 4, "every": 0},
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("ensemble") / "run"
    ensemble.train_and_evaluate(MEMBERS, path)
    return str(path)


def test_a_conversion_pays_for_one_release_and_is_charged_once(teacher, tmp_path):
    settings = {**CONVERSION, "teacher": teacher}
    before = len(odometer.read(teacher))
    train.train_and_evaluate(settings, tmp_path / "run")
    (entry,) = ledger.charged(checkpoint.find(tmp_path / "run")[1]["ledger"])
    assert (entry.unit, entry.adjacency, entry.count) == ("record", ledger.REPLACE_AT_INDEX, 1)
    found = checkpoint.find(tmp_path / "run")[1]["ledger"]
    np.testing.assert_allclose(ledger.epsilon(found, 1e-5), 8.0, rtol=1e-3)
    assert len(odometer.read(teacher)) == before + 1


def test_a_resumed_conversion_buys_nothing_and_ends_alike(teacher, tmp_path):
    settings = {**CONVERSION, "teacher": teacher, "noise_seed": 3, "save_every": 20}
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    train.train_and_evaluate(settings, whole)
    train.train_and_evaluate(settings, parted)
    bought = (parted / "private" / "mean_parameters.npz").read_bytes()
    checkpoint.prune(parted, {20})  # as if it had been killed
    train.train_and_evaluate(settings, parted)
    assert (parted / "private" / "mean_parameters.npz").read_bytes() == bought
    one, other = (checkpoint.load_model(path, part="student").variables for path in (whole, parted))
    np.testing.assert_array_equal(
        one["params"]["linear"]["kernel"], other["params"]["linear"]["kernel"]
    )


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_rounds": 0, "num_queries": None}, "num_rounds"),
        ({"smooth": True}, "smooth"),
        ({"epsilon": None}, "epsilon"),
        ({"privacy_unit": "record_single"}, "mechanism"),
    ],
)
def test_what_does_not_go_together_is_refused(teacher, tmp_path, changes, field):
    settings = json.loads(json.dumps({**CONVERSION, "teacher": teacher, **changes}))
    with pytest.raises(InputError) as caught:
        train.train_and_evaluate(settings, tmp_path / "run")
    assert caught.value.field == field
    assert not (tmp_path / "run").exists()

"""Private runs of a scattering network: its constants over kills, moves and devices."""

import jax
import numpy as np
import pytest

from distill_core import checkpoint, train
from distill_core.config import InputError
from distill_core.models import CONSTANTS, scattering
from distill_core.runtime import parallel
from distill_core.training import dp_sgd, linear

N = 120
KWARGS = {"J": 1, "L": 2, "components": 10, "whitening": ("noise",)}


class KilledError(Exception):
    """The process ended."""


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Where a test does not say otherwise."""
    monkeypatch.setattr(parallel, "choose_mode", lambda mode=None: mode or "jit")


@pytest.fixture(scope="module")
def path(tmp_path_factory, three_classes):
    return three_classes(tmp_path_factory.mktemp("data") / "data.npz", train=N)


@pytest.fixture(scope="module")
def fit(path):
    """`fit(workdir, …)` trains on all records in every step, under noise of a given seed."""

    def fit(workdir, *, dp=(), parallel=None, **changes):
        group = {"epsilon": 6.0, "delta": 1e-3, "norm": 0.5, "sampling": "full", "seed": 1}
        settings = {
            "dataset": f"npz:{path}", "model": "scattering", "model_kwargs": KWARGS,
            "learning_rate": 0.5, "batch_size": N, "num_steps": 6, "log_every": 1,
            "save_every": 2, "dp": {**group, "average": 0.5, **dict(dp)}, **changes,
        }  # fmt: skip
        return train.train_and_evaluate(settings, workdir, parallel=parallel)

    return fit


@pytest.fixture
def killed(fit, monkeypatch):
    """`killed(workdir)` trains until the process is killed before step 3."""
    batch = dp_sgd.PrivateRun.batch

    def killed(workdir, **changes):
        def until(self, step, take):
            if step == 3:
                raise KilledError
            return batch(self, step, take)

        with monkeypatch.context() as patch:
            patch.setattr(dp_sgd.PrivateRun, "batch", until)
            with pytest.raises(KilledError):
                fit(workdir, **changes)
        assert checkpoint.find(workdir)[1]["step"] == 2

    return killed


def arrays_of(workdir):
    folder, _ = checkpoint.find(workdir)
    return checkpoint.contents(folder)


def assert_same_bits(first, second):
    jax.tree.map(np.testing.assert_array_equal, arrays_of(first), arrays_of(second))


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_killed_and_resumed_it_ends_bit_by_bit_as_if_nothing_had_happened(
    fit, killed, tmp_path, mode
):
    fit(tmp_path / "straight", parallel=mode)
    killed(tmp_path / "run", parallel=mode)
    linear._last.clear()  # a new process has computed nothing
    fit(tmp_path / "run", parallel=mode)
    assert_same_bits(tmp_path / "run", tmp_path / "straight")
    variables = checkpoint.load_model(tmp_path / "run").variables
    assert variables[CONSTANTS]["projection"].any()
    assert variables["params"]["linear"]["kernel"].any()


def test_a_resume_fits_no_constants_and_takes_those_of_its_checkpoint(
    fit, killed, tmp_path, monkeypatch
):
    """Another machine would fit others, and steps before and after would see other features."""
    real = scattering.whitening_of

    def elsewhere(*given):
        return {name: np.float32(1.01) * each for name, each in real(*given).items()}

    with monkeypatch.context() as patch:
        patch.setattr(scattering, "whitening_of", elsewhere)
        fit(tmp_path / "straight")
        killed(tmp_path / "run")
    monkeypatch.setattr(scattering, "whitening_of", lambda *_: pytest.fail("fits constants"))
    linear._last.clear()
    fit(tmp_path / "run")
    assert_same_bits(tmp_path / "run", tmp_path / "straight")


def test_features_of_other_constants_are_not_taken_for_these(fit, tmp_path, monkeypatch):
    """They are remembered from run to run."""
    fit(tmp_path / "first")
    real = scattering.whitening_of
    monkeypatch.setattr(
        scattering,
        "whitening_of",
        lambda *given: {name: np.float32(2) * each for name, each in real(*given).items()},
    )
    fit(tmp_path / "second")
    linear._last.clear()
    fit(tmp_path / "third")
    assert_same_bits(tmp_path / "second", tmp_path / "third")
    first, second = (checkpoint.load_model(tmp_path / x).variables for x in ("first", "second"))
    assert (first["params"]["linear"]["kernel"] != second["params"]["linear"]["kernel"]).any()


def test_eight_devices_train_as_one_does_up_to_rounding(fit, tmp_path):
    for mode in ("jit", "pmap", "shard_map"):
        fit(tmp_path / mode, parallel=mode)
    modes = ("jit", "pmap", "shard_map")
    one, *others = (checkpoint.load_model(tmp_path / mode).variables for mode in modes)
    for eight in others:
        jax.tree.map(np.testing.assert_array_equal, eight[CONSTANTS], one[CONSTANTS])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            eight["params"],
            one["params"],
        )


def test_another_run_may_start_from_its_weights_with_its_constants(fit, tmp_path, monkeypatch):
    dp = {"seed": None, "share": 0.4}
    fit(tmp_path / "first", dp=dp, num_steps=2)
    monkeypatch.setattr(scattering, "whitening_of", lambda *_: pytest.fail("fits constants"))
    start = str(tmp_path / "first")
    fit(tmp_path / "second", dp=dp, init_from=start, num_steps=2)
    first, second = (checkpoint.load_model(tmp_path / x).variables for x in ("first", "second"))
    jax.tree.map(np.testing.assert_array_equal, first[CONSTANTS], second[CONSTANTS])
    kwargs = {**KWARGS, "components": 9}
    with pytest.raises(InputError, match="^init_from: "):
        fit(tmp_path / "third", dp=dp, init_from=start, model_kwargs=kwargs)

"""Private training on all records in every step: `dp.sampling` "full", `dp.share`, `dp.average`."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dp_accounting import gaussian_mechanism
from flax import linen as nn

import dpdfd
from distill_core import checkpoint, config, release, train
from distill_core.config import InputError
from distill_core.models.network import Network
from distill_core.privacy import accountants
from distill_core.privacy.per_example import SLACK
from distill_core.runtime import parallel
from distill_core.step import Labels, LinearLabels
from distill_core.training import dp_sgd, linear
from distill_core.training.gradients import LinearGradient, PrivateGradient
from distill_core.training.optimizers import Averaged, Optimizer

N, DELTA = 237, 1e-3  # not divisible by the eight devices
RIDGE = "dpdfd.features:FeatureRidge"
SPEC = Network(RIDGE, 3, {"num_random": 20}, (8, 8, 1), (0.5,), (0.5,))
SMALL = {"J": 1, "L": 2, "components": 10, "whitening": ("noise",)}
KEY = jax.random.key(3)


class KilledError(Exception):
    """The process ended."""


class Scaled(nn.Module):
    """A linear layer by its parameters, whose logits are something else."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        self.sow("intermediates", "features", x)
        return 2.0 * nn.Dense(self.num_classes, name="linear")(x)


class Dropped(nn.Module):
    """A linear layer on features that differ from step to step."""

    num_classes: int

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Dropout(0.5)(x.reshape(len(x), -1), deterministic=not train)
        self.sow("intermediates", "features", x)
        return nn.Dense(self.num_classes, name="linear")(x)


class Mixing(nn.Module):
    """A linear layer on features that tell of the other images of a batch."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        x = x - x.mean(0, keepdims=True)
        self.sow("intermediates", "features", x)
        return nn.Dense(self.num_classes, name="linear")(x)


@pytest.fixture(scope="module")
def path(tmp_path_factory, three_classes):
    return three_classes(tmp_path_factory.mktemp("data") / "data.npz", train=N)


def settings_of(path, dp=(), **changes):
    group = {"epsilon": 6.0, "delta": DELTA, "norm": 0.5, "sampling": "full", **dict(dp)}
    return {
        "dataset": f"npz:{path}",
        "model": RIDGE,
        "model_kwargs": {"num_random": 20},
        "learning_rate": 0.5,
        "batch_size": N,
        "num_steps": 6,
        "log_every": 1,
        "save_every": 2,
        "dp": group,
        **changes,
    }


@pytest.fixture(scope="module")
def fit(path):
    """`fit(workdir, dp={…}, …)` trains privately on all records in every step."""

    def fit(workdir, dp=(), *, parallel=None, **changes):
        return train.train_and_evaluate(
            settings_of(path, dp, **changes), workdir, parallel=parallel
        )

    return fit


@pytest.fixture(scope="module")
def planned(path, tmp_path_factory):
    """`planned(dp, …)` is a private run that has not begun."""
    images, labels = np.zeros((N, 8, 8, 1), np.uint8), np.zeros(N, np.int32)

    def planned(dp=(), **changes):
        hp = config.validate(settings_of(path, dp, **changes), train.Settings)
        metadata = {"config": config.to_json(hp), "ledger": {"mechanisms": [], "ancestors": []}}
        given = hp, hp.dp, tmp_path_factory.getbasetemp() / "none", metadata, SPEC
        return dp_sgd.PrivateRun(*given, data={"image": images, "label": labels}, mode="jit")

    return planned


@pytest.fixture
def killed(fit, monkeypatch):
    """`killed(workdir, …)` trains until the process is killed before step 3."""

    def killed(workdir, *arguments, **changes):
        batch = dp_sgd.PrivateRun.batch

        def until(self, step, take):
            found = batch(self, step, take)
            if step == 3:
                raise KilledError
            return found

        with monkeypatch.context() as patch:
            patch.setattr(dp_sgd.PrivateRun, "batch", until)
            with pytest.raises(KilledError):
                fit(workdir, *arguments, **changes)
        assert checkpoint.find(workdir)[1]["step"] == 2

    return killed


def weights_of(workdir):
    return checkpoint.load_model(workdir).variables["params"]["linear"]


def multiplier(run):
    return run.metadata["config"]["dp.noise_multiplier"]


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("steps", [1, 60, 5000])
def test_the_noise_of_all_steps_composes_to_the_budget(planned, epsilon, steps):
    sigma = multiplier(planned({"epsilon": epsilon}, num_steps=steps))
    spent = gaussian_mechanism.get_epsilon_gaussian(sigma / np.sqrt(steps), DELTA)
    assert 0.99 * epsilon <= spent <= epsilon


@pytest.mark.parametrize("share", [0.9, 0.5, 1e-3])
def test_a_share_is_one_of_the_squared_mu(planned, share):
    mu = accountants.gaussian_mu(2.0, DELTA)
    sigma = multiplier(planned({"epsilon": 2.0, "share": share}, num_steps=50))
    assert 50 / sigma**2 == pytest.approx(share * mu**2, rel=1e-3)
    assert 50 * ((1 + SLACK) / sigma) ** 2 <= share * mu**2


def test_without_noise_the_gradient_of_a_linear_layer_is_that_of_its_network():
    rng = np.random.default_rng(1)
    params, _ = SPEC.init(KEY)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
    images = rng.random((16, 8, 8, 1), np.float32)
    rows = {"label": rng.integers(0, 3, 16), "index": np.arange(16, dtype=np.int32)}
    where = np.arange(16) % 4 != 3
    frozen = {"dp": {"key": KEY, "norm": 0.3, "noise_multiplier": 0.5, "batch_size": 12.0}}
    step = np.zeros(1, np.int32)
    features = linear.features(SPEC, {"params": params}, images)

    def gradient(how, objective, **inputs):
        batch = {"rows": {**rows, **inputs}, "where": where, "step": step}
        call = jax.jit(lambda params, batch: how(objective, params, {}, frozen, batch, KEY))
        grads, state, metrics = call(params, batch)
        assert state == metrics == {}
        return grads

    found = gradient(LinearGradient(), LinearLabels(), features=features)
    expected = gradient(PrivateGradient(), Labels(SPEC), image=images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
    # The objective's own outputs, for whoever calls it as one.
    batch = {"label": rows["label"], "features": features, "image": images}
    outputs = [each(params, {}, {}, batch, KEY) for each in (LinearLabels(), Labels(SPEC))]
    np.testing.assert_allclose(outputs[0].values, outputs[1].values, rtol=1e-5)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (SPEC, True),
        (Network("scattering", 3, SMALL, (8, 8, 1), (0.5,), (0.5,)), True),
        (Network("cnn", 3, {"widths": (4,), "norm": "none"}, (8, 8, 1), (0.5,), (0.5,)), False),
        (Network(f"{__name__}:Scaled", 3, {}, (8, 8, 1), (0.5,), (0.5,)), False),
        (Network(f"{__name__}:Mixing", 3, {}, (8, 8, 1), (0.5,), (0.5,)), False),
        (Network(f"{__name__}:Dropped", 3, {}, (8, 8, 1), (0.5,), (0.5,)), False),
        (Network(RIDGE, 3, {}, (8, 8, 1), (0.5,), (0.5,), compute_dtype="bfloat16"), False),
    ],
)
def test_a_network_is_linear_if_its_logits_are(network, expected):
    assert linear.is_linear(network) == expected


def test_features_of_many_images_are_those_of_each(monkeypatch):
    variables = {"params": SPEC.init(KEY)[0]}
    images = np.random.default_rng(0).integers(0, 255, (11, 8, 8, 1)).astype(np.uint8)
    expected = SPEC.features(variables, images)
    for rows in (4, 11, 50):
        monkeypatch.setattr(linear, "_ROWS", rows)
        np.testing.assert_allclose(linear.features(SPEC, variables, images), expected, atol=1e-6)


def test_the_ledger_holds_gaussian_mechanisms_and_its_epsilon_is_exact(fit, tmp_path, capsys):
    result = fit(tmp_path / "run")
    printed = capsys.readouterr().out
    assert f"all {N} records in every step" in printed and "probability" not in printed
    assert printed.count("20 features of each record are computed once") == 1
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [set(json.loads(line)) for line in lines] == [{"step", "split", "grad_norm"}] * 6
    metadata = checkpoint.find(tmp_path / "run")[1]
    sigma = metadata["config"]["dp.noise_multiplier"]
    (entry,) = metadata["ledger"]["mechanisms"]
    assert entry == {
        "mechanism": "gaussian", "std": sigma * 0.5,
        "sensitivity": pytest.approx(0.5 * (1 + SLACK), rel=1e-12), "count": 6,
        "unit": "record", "adjacency": "zero-out",
        "note": "training_gradients, clip", "batch_size": N, "num_examples": N,
    }  # fmt: skip
    one, two = (
        gaussian_mechanism.get_epsilon_gaussian(sigma / (times * np.sqrt(6) * (1 + SLACK)), DELTA)
        for times in (1, 2)
    )
    assert result["epsilon"] == pytest.approx(one, rel=1e-6)
    assert result["replace_one_epsilon"] == pytest.approx(two, rel=1e-6)
    spent = dpdfd.privacy_spent(metadata["ledger"], delta=DELTA, num_examples=N)
    assert (spent.epsilon, spent.unit) == (result["epsilon"], "record")
    card = json.dumps(release.release(tmp_path / "run", tmp_path / "released"))
    assert "sampling_rate" not in card


def test_records_are_placed_and_features_computed_once_however_many_steps(
    fit, tmp_path, monkeypatch
):
    placed, computed = [], []
    keep, features = parallel.keep, linear.features
    monkeypatch.setattr(parallel, "keep", lambda *a: placed.append(1) or keep(*a))
    monkeypatch.setattr(linear, "features", lambda *a: computed.append(1) or features(*a))
    fit(tmp_path / "run")
    assert (len(placed), len(computed)) == (1, 1)


@pytest.mark.parametrize("mode", ["jit", "pmap", "shard_map"])
def test_kept_rows_are_not_copied_by_a_step(mode):
    rows = parallel.keep({"x": np.arange(16.0, dtype=np.float32)}, mode)
    step = parallel.wrap(_Summed(), mode)
    state = parallel.place(jnp.zeros(()), mode)
    step(state, {}, rows)
    with jax.transfer_guard("disallow"):
        found, _ = step(state, {}, rows)
    assert found == 120


class _Summed:
    def __call__(self, state, frozen, batch):
        from distill_core.runtime.collectives import all_sum

        return state + all_sum(jnp.sum(batch["x"])), {}


def test_on_eight_devices_a_run_ends_where_it_does_on_one_but_for_rounding(
    fit, tmp_path, monkeypatch
):
    dp = {"seed": 1}
    for mode in ("pmap", "shard_map"):
        fit(tmp_path / mode, dp, parallel=mode)
    monkeypatch.setattr(parallel, "choose_mode", lambda mode=None: "jit")
    fit(tmp_path / "jit", dp)
    alone = weights_of(tmp_path / "jit")
    assert np.abs(alone["kernel"]).max() > 0.01
    for mode in ("pmap", "shard_map"):
        found = weights_of(tmp_path / mode)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, alone)


def test_another_network_takes_all_records_by_its_own_gradients(fit, tmp_path):
    kwargs = {"widths": (2,), "hidden": 4, "norm": "none"}
    changes = {"model": "cnn", "model_kwargs": kwargs, "num_steps": 2}
    result = fit(tmp_path / "run", **changes)
    assert 0.99 * 6.0 <= result["epsilon"] <= 6.0


@pytest.mark.parametrize(("model", "kwargs"), [(RIDGE, {"num_random": 50}), ("scattering", SMALL)])
def test_a_killed_run_on_digits_ends_bit_by_bit_as_one_that_was_not(
    fit, killed, tmp_path, model, kwargs
):
    dp = {"delta": 1e-4, "share": 0.7, "average": 0.95}
    changes = {"dataset": "digits", "batch_size": 1437, "model": model, "model_kwargs": kwargs}
    killed(tmp_path / "run", dp, **changes)
    resumed = fit(tmp_path / "run", dp, **changes)
    # The same root, from the beginning.
    shutil.copytree(tmp_path / "run" / "private", tmp_path / "straight" / "private")
    straight = fit(tmp_path / "straight", dp, **changes)
    assert resumed.pop("id") != straight.pop("id")
    assert resumed == straight
    first, second = (weights_of(tmp_path / name) for name in ("run", "straight"))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    found = [checkpoint.find(tmp_path / name)[1] for name in ("run", "straight")]
    assert found[0]["ledger"] == found[1]["ledger"]
    assert found[0]["ledger"]["mechanisms"][0]["count"] == 6


@pytest.mark.parametrize("share", [1.0, 0.2])  # of which the whole budget affords more
def test_what_a_restart_pays_again_comes_out_of_the_share(fit, killed, tmp_path, capsys, share):
    killed(tmp_path / "run", {"share": share})
    fit(tmp_path / "run", {"share": share}, parallel="shard_map")
    assert "the budget ends at step 2 of 6" in capsys.readouterr().out
    metadata = checkpoint.find(tmp_path / "run")[1]
    assert (metadata["step"], metadata["ledger"]["mechanisms"][0]["count"]) == (2, 2)


def test_with_noise_of_its_own_a_run_stops_before_the_step_that_overspends_its_share(fit, tmp_path):
    dp = {"epsilon": 3.0, "share": 0.5, "noise_multiplier": 4.0}
    result = fit(tmp_path / "run", dp, num_steps=60)
    step = checkpoint.find(tmp_path / "run")[1]["step"]
    mu = accountants.gaussian_mu(3.0, DELTA)
    used = np.array([step, step + 1]) * ((1 + SLACK) / 4.0) ** 2
    assert used[0] <= 0.5 * mu**2 < used[1]
    assert 2 < step < 60 and result["epsilon"] < 3.0


def test_two_runs_share_a_budget_and_the_second_never_exceeds_it(fit, tmp_path):
    dp = {"epsilon": 2.0}
    first = fit(tmp_path / "first", {**dp, "share": 0.4}, num_steps=2)
    start = {"init_from": str(tmp_path / "first"), "num_steps": 2}
    spent = {s: fit(tmp_path / f"{s}", {**dp, "share": s}, **start) for s in (0.3, 0.6, 0.8)}
    mu = accountants.gaussian_mu(2.0, DELTA)
    expected = [accountants.composed_epsilon([accountants.Noised(mu * np.sqrt(0.7))], DELTA), 2, 2]
    for found, epsilon in zip(spent.values(), expected, strict=True):
        assert 0.99 * epsilon <= found["epsilon"] <= epsilon
    assert first["epsilon"] < spent[0.3]["epsilon"]


def test_a_masked_record_counts_as_an_empty_one(fit, path, tmp_path):
    rows = np.array([0, 5, 236])
    np.save(tmp_path / "rows.npy", rows)
    arrays = dict(np.load(path))
    arrays["x_train"][rows], arrays["y_train"][rows] = 255 - arrays["x_train"][rows], 0
    np.savez(tmp_path / "changed.npz", **arrays)
    dp = {"seed": 1, "masked": str(tmp_path / "rows.npy")}
    fit(tmp_path / "run", dp)
    fit(tmp_path / "changed", dp, dataset=f"npz:{tmp_path / 'changed.npz'}")
    fit(tmp_path / "unmasked", {"seed": 1})
    found, changed, unmasked = (weights_of(tmp_path / x) for x in ("run", "changed", "unmasked"))
    jax.tree.map(np.testing.assert_array_equal, found, changed)
    assert np.abs(found["kernel"] - unmasked["kernel"]).max() > 0


@pytest.mark.parametrize("sampling", ["full", "poisson"])
def test_the_model_is_the_mean_of_the_last_iterates_and_training_does_not_see_it(
    fit, tmp_path, monkeypatch, sampling
):
    saved, save = {}, checkpoint.save

    def record(workdir, step, *, parts, train, **rest):
        saved[step] = jax.device_get((parts["model"]["params"], train.get("params")))
        return save(workdir, step, parts=parts, train=train, **rest)

    monkeypatch.setattr(checkpoint, "save", record)
    dp = {"seed": 1, "sampling": sampling}
    changes = {"save_every": 1, "batch_size": N if sampling == "full" else 30}
    fit(tmp_path / "last", dp, **changes)
    iterates = {step: params["linear"] for step, (params, _) in saved.items()}
    fit(tmp_path / "mean", {**dp, "average": 0.5}, **changes)
    for step, (mean, raw) in saved.items():
        jax.tree.map(np.testing.assert_array_equal, raw["linear"], iterates[step])
        counted = [iterates[each] for each in range(4, step + 1)] or [iterates[step]]
        expected = jax.tree.map(lambda *each: np.mean(each, 0, np.float64), *counted)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mean["linear"], expected
        )
    assert np.abs(saved[6][0]["linear"]["kernel"] - iterates[6]["kernel"]).max() > 1e-3
    jax.tree.map(
        np.testing.assert_array_equal, weights_of(tmp_path / "mean"), saved[6][0]["linear"]
    )


def test_averaging_moves_no_update_and_begins_where_it_is_told():
    settings = Optimizer(optimizer="adam", learning_rate=0.1, num_steps=5)
    plain, averaged = settings.make(), Averaged(settings, 3).make()
    params = {"w": jnp.array([1.0, -2.0])}
    states, iterates = [plain.init(params), averaged.init(params)], []
    for step in range(5):
        grads = {"w": jnp.array([1.0, step - 2.0])}
        update, states[0] = plain.update(grads, states[0], params)
        same, states[1] = averaged.update(grads, states[1], params)
        np.testing.assert_array_equal(update["w"], same["w"])
        params = {"w": params["w"] + update["w"]}
        iterates.append(params["w"])
        expected = params["w"] if step < 3 else np.mean(iterates[3:], 0)
        np.testing.assert_allclose(states[1].mean["w"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("dp", "changes", "message"),
    [
        ({"sampling": "all"}, {}, "dp.sampling: got 'all'; must be one of poisson, full"),
        ({}, {"batch_size": 30}, "batch_size: got 30; must be 237, all records, with dp.sampling "),
        ({}, {"batch_size": 999}, "batch_size: got 999; must be 237, all records, with dp.samplin"),
        ({"share": 0.0}, {}, "dp.share: got 0.0; must be a number in [0.001, 1]"),
        ({"share": 1.1}, {}, "dp.share: got 1.1; must be a number in [0.001, 1]"),
        (
            {"share": 0.5, "sampling": "poisson"},
            {"batch_size": 30},
            "dp.share: got 0.5; must be 1 with sampling 'poisson', which has no exact mu",
        ),
        ({"average": 1.0}, {}, "dp.average: got 1.0; must be a number in [0, 1)"),
        ({"average": -0.1}, {}, "dp.average: got -0.1; must be a number in [0, 1)"),
        ({}, {"parallel": "mesh"}, "parallel: got 'mesh'; per-example gradients need pmap or"),
        (
            {},
            {"model": "cnn", "model_kwargs": {"norm": "batch"}},
            "model_kwargs.norm: got 'batch'; keeps statistics of batches (batch_stats)",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    fit, tmp_path, dp, changes, message
):
    with pytest.raises(InputError) as error:
        fit(tmp_path / "run", dp, **changes)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()

"""What users expect of a training recipe: accumulation, averages of weights, a fresh head."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_core import load_model as load
from distill_core import train
from distill_core.config import InputError
from distill_core.runtime import backend, parallel
from distill_core.training.gradients import AccumulatedGradient
from distill_core.training.optimizers import Averaged, Optimizer
from distill_core.training.step import Outputs, TrainState, Update

DIGITS = {
    "dataset": "digits",
    "model": "cnn",
    "model_kwargs": {"widths": (4,), "hidden": 8, "norm": "group"},
    "learning_rate": 0.05,
    "batch_size": 32,
    "num_steps": 6,
    "log_every": 2,
    "save_every": 3,
}


def fit(workdir, **changes):
    result = train.train_and_evaluate({**DIGITS, **changes}, workdir)
    return load(workdir), result


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


@dataclasses.dataclass(frozen=True)
class Weighted:
    """Squared errors with weights, some 0 where the data is NaN."""

    def __call__(self, params, model_state, frozen, batch, key):
        known = batch["weight"] > 0
        x = jnp.where(known[:, None], batch["x"], 0.0)
        values = jnp.square(x @ params["w"] - 1.0)
        metrics = {"first": (x[:, 0], batch["weight"])}
        return Outputs(values, batch["weight"], model_state, metrics)


def weighted_batch():
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(48, 3)), rng.uniform(0.1, 3, size=48)
    weight[:20] = 0  # so that some parts have next to nothing
    x[:20] = np.nan
    return {"x": x.astype(np.float32), "weight": weight.astype(np.float32)}


@pytest.mark.parametrize("platform", ["cpu", "gpu"])  # a loop written out, and one of XLA
@pytest.mark.parametrize("mode", ["jit", *parallel.MODES])
def test_accumulated_parts_are_the_whole_batch(mode, platform):
    found = []
    with backend.assume(platform, None):
        for gradient in (None, AccumulatedGradient(1), AccumulatedGradient(3)):
            sgd = Optimizer(learning_rate=0.1, num_steps=9)
            update = Update(Weighted(), sgd, *([gradient] if gradient else []))
            params = {"w": np.ones(3, np.float32)}
            rng = jax.random.key(0)
            state = TrainState.create(params=params, model_state={}, tx=sgd.make(), rng=rng)
            step = parallel.wrap(update, mode)
            state, metrics = step(
                parallel.place(state, mode), {}, parallel.feed(weighted_batch(), mode)
            )
            found.append((jax.device_get(state.params), jax.device_get(metrics)))
    for other in found[1:]:
        for one, two in zip(leaves(found[0]), leaves(other), strict=True):
            np.testing.assert_allclose(two, one, rtol=1e-6, atol=1e-6)


def test_a_run_with_accumulation_ends_where_one_without_does(tmp_path):
    """Augmentation, too, is of the example, not of the part."""
    whole, _ = fit(tmp_path / "whole", crop_padding=1, flip=True)
    parts, _ = fit(tmp_path / "parts", crop_padding=1, flip=True, accumulate_steps=2)
    for one, two in zip(leaves(whole.variables), leaves(parts.variables), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate_steps": 3}, "^accumulate_steps: got 3; must divide the 4 examples"),
        (
            {"accumulate_steps": 2, "model_kwargs": {"widths": (4,), "hidden": 8}},
            "^accumulate_steps: got 2; needs a run without batch_stats",
        ),
        ({"accumulate_steps": 0}, "^accumulate_steps: got 0; must be an integer of at least 1"),
        ({"ema_decay": 1.0}, "^ema_decay: got 1.0; must be a number in"),
        ({"warmup_steps": 6}, "^warmup_steps: got 6; must be below num_steps, 6"),
        ({"warmup_steps": 2, "schedule": "onecycle"}, "^warmup_steps: got 2; must be 0 with"),
        (
            {"warmup_steps": 2, "schedule": "step", "drop_steps": (2,)},
            "^drop_steps: got .* must lie behind the warm-up of 2 steps",
        ),
        ({"clip_norm": 0.0}, "^clip_norm: got 0.0; must be a number above 0"),
        ({"b1": 0.8}, "^b1: got 0.8; belongs to adam and adamw"),
        ({"optimizer": "lion"}, "^optimizer: got 'lion'; must be one of sgd, adam, adamw"),
        ({"compute_dtype": "float16"}, "^compute_dtype: got 'float16'; must be one of float32, b"),
        ({"reinitialise": "head"}, "^reinitialise: got 'head'; belongs to init_from"),
        ({"reinitialise": "all"}, "^reinitialise: got 'all'; must be one of none, head"),
        ({"remat": "block"}, "^remat: got 'block'; belongs to text"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        fit(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes", [{"accumulate_steps": 2}, {"ema_decay": 0.9}, {"clip_norm": 1.0}]
)
def test_a_private_run_has_these_of_its_own(tmp_path, changes):
    dp = {"epsilon": 8.0, "delta": 1e-5, "norm": 1.0}
    with pytest.raises(InputError, match=f"^{next(iter(changes))}: .*; dp "):
        fit(tmp_path / "run", dp=dp, **changes)


def test_the_moving_average_is_what_is_kept_and_resumes_bit_by_bit(tmp_path):
    plain, _ = fit(tmp_path / "plain")
    average, _ = fit(tmp_path / "average", ema_decay=0.9)
    fit(tmp_path / "stopped", ema_decay=0.9, num_steps=3)
    resumed, _ = fit(tmp_path / "stopped", ema_decay=0.9)
    assert any(
        np.abs(one - two).max() > 1e-4
        for one, two in zip(leaves(plain.variables), leaves(average.variables), strict=True)
    )
    for one, two in zip(leaves(average.variables), leaves(resumed.variables), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_moving_average_begins_as_a_plain_mean_and_forgets():
    sgd = Optimizer(learning_rate=1.0, num_steps=9, momentum=0.0)
    tx = Averaged(sgd, decay=0.75).make()
    params = {"w": jnp.zeros(())}
    state, iterates, means = tx.init(params), [], []
    for i in range(8):
        updates, state = tx.update({"w": jnp.float32(-i)}, state, params)
        params = {"w": params["w"] + updates["w"]}
        iterates.append(float(params["w"]))
        means.append(float(state.mean["w"]))
    np.testing.assert_allclose(means[:4], [np.mean(iterates[: i + 1]) for i in range(4)])
    for i in range(4, 8):
        np.testing.assert_allclose(means[i], 0.75 * means[i - 1] + 0.25 * iterates[i], rtol=1e-6)


def test_a_fresh_head_is_for_other_classes_and_the_rest_is_what_it_was(tmp_path, capsys):
    start, _ = fit(tmp_path / "start")
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1)).astype(np.uint8)
    data = {f"x_{s}": images for s in ("train", "test")}
    data |= {f"y_{s}": np.arange(40) % 3 for s in ("train", "test")}
    np.savez(tmp_path / "three.npz", **data)
    other = {
        "dataset": f"npz:{tmp_path}/three.npz",
        "init_from": str(tmp_path / "start"),
        "num_steps": 1,
        "learning_rate": 1e-12,
        "batch_size": 8,
    }
    with pytest.raises(InputError, match="^init_from: "):
        fit(tmp_path / "refused", **other)
    capsys.readouterr()
    found, _ = fit(tmp_path / "three", **other, reinitialise="head")
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("init_from"))
    assert "made anew, for 3 classes in place of 10" in line and line.count(".kernel") == 1
    ours, theirs = found.variables["params"], start.variables["params"]
    (head,) = [name for name in ours if f"{name}.kernel" in line]
    assert ours[head]["kernel"].shape == (8, 3)
    for name in ours:
        if name != head:
            for one, two in zip(leaves(ours[name]), leaves(theirs[name]), strict=True):
                np.testing.assert_allclose(one, two, atol=1e-9)
    # The same number of classes is no reason to keep theirs.
    again, _ = fit(tmp_path / "ten", **other | {"dataset": "digits"}, reinitialise="head")
    assert np.abs(again.variables["params"][head]["kernel"] - theirs[head]["kernel"]).max() > 0.01


def test_adamw_warm_up_and_clipping_are_optax_own():
    settings = Optimizer(
        optimizer="adamw", learning_rate=0.1, num_steps=12, schedule="cosine", warmup_steps=4,
        b1=0.8, b2=0.95, weight_decay=0.3, clip_norm=0.5,
    )  # fmt: skip
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.1, 4, 12)
    theirs = optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(rate, 0.8, 0.95, weight_decay=0.3)
    )
    ours, params = settings.make(), {"a": jnp.ones(3), "b": jnp.full((), -2.0)}
    states = ours.init(params), theirs.init(params)
    for i in range(12):
        grads = jax.tree.map(lambda x, i=i: jnp.sin(x + i), params)
        one, first = ours.update(grads, states[0], params)
        two, second = theirs.update(grads, states[1], params)
        states = first, second
        for x, y in zip(leaves(one), leaves(two), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6)
        params = optax.apply_updates(params, one)


def test_a_warm_up_comes_before_every_schedule():
    given = {"learning_rate": 0.5, "num_steps": 20, "warmup_steps": 5}
    constant = Optimizer(**given).make_schedule()
    np.testing.assert_allclose([constant(i) for i in (0, 1, 4, 5, 19)], [0, 0.1, 0.4, 0.5, 0.5])
    step = Optimizer(**given, schedule="step", drop_steps=(8,)).make_schedule()
    np.testing.assert_allclose([step(i) for i in (5, 8, 9)], [0.5, 0.05, 0.05], rtol=1e-6)

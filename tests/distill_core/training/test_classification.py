"""A classifier's run: the user's own network, initial weights, held-out data, compilations."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from distill_core import checkpoint, config, losses, train
from distill_core import load_model as load
from distill_core.config import InputError
from distill_core.data import sampling
from distill_core.models.network import Network
from distill_core.step import Labels
from distill_core.training import classification

NETWORKS = """
import jax.numpy as jnp
from flax import linen as nn

class Net(nn.Module):  # takes `train`, but no `where`
    num_classes: int
    hidden: int = 8
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x)

def make_net(num_classes, hidden=8, rate=0.0):
    return Net(num_classes, hidden, rate)

def one_too_many(num_classes):
    return Net(num_classes + 1)

class Broken(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes)(x) @ jnp.zeros((7, 7))

class Untrainable(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, *, train=False):
        if train:
            raise RuntimeError("no training today")
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))
"""


def line_of(text):
    return NETWORKS[: NETWORKS.index(text)].count("\n") + 1


@pytest.fixture(scope="module")
def path(tmp_path_factory, three_classes):
    return three_classes(tmp_path_factory.mktemp("data") / "data.npz")


@pytest.fixture
def fit(path, tmp_path, monkeypatch):
    """`fit("run", …)` trains a user's network in `tmp_path/run`."""
    (tmp_path / "mynets.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)

    def fit(name, **changes):
        settings = {"dataset": f"npz:{path}", "learning_rate": 0.05, "batch_size": 16}
        settings |= {"model": "mynets:Net", "model_kwargs": {"hidden": 8, "rate": 0.5}}
        settings |= {"num_steps": 3, "log_every": 1}
        return train.train_and_evaluate({**settings, **changes}, tmp_path / name)

    return fit


def test_a_users_network_is_trained_saved_and_rebuilt(fit, path, tmp_path):
    result = fit("run")
    loaded = load(tmp_path / "run", trust=("mynets",))
    assert loaded.network.model == "mynets:Net"
    assert loaded.network.model_kwargs == {"hidden": 8, "rate": 0.5}
    assert loaded.variables["params"]["Dense_0"]["kernel"].shape == (64, 8)
    images = np.load(path)["x_test"]
    logits = loaded.apply(loaded.variables, images)
    pixels = (images.reshape(21, -1) / 255 - 0.5) / 0.5
    dense = loaded.variables["params"]
    hidden = np.maximum(pixels @ dense["Dense_0"]["kernel"] + dense["Dense_0"]["bias"], 0)
    expected = hidden @ dense["Dense_1"]["kernel"] + dense["Dense_1"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert result["accuracy"] == np.mean(expected.argmax(-1) == np.load(path)["y_test"])


def test_dropout_is_drawn_from_the_seed(fit, tmp_path):
    """`rate` is 0.5: without its own key per step the run would fail, or not repeat."""
    factory = {"model": "mynets:make_net"}  # a function may stand for the class
    for name, seed, changes in (("a", 0, {}), ("b", 0, factory), ("c", 1, {})):
        fit(name, seed=seed, **changes)
    digests = [
        checkpoint.digest(load(tmp_path / name, trust=("mynets",)).variables) for name in "abc"
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("one_too_many", "must return logits [B, 3], not [2, 4] for B = 2"),
        (
            "Broken",
            f"Broken fails on images [8, 8, 1]: TypeError in mynets.py:{line_of('jnp.zeros')}: ",
        ),
        ("Untrainable", f"RuntimeError in mynets.py:{line_of('no training')}: no training today"),
    ],
)
def test_a_users_network_that_cannot_be_trained_is_refused_before_the_run(
    fit, tmp_path, model, message
):
    with pytest.raises(InputError) as error:
        fit("run", model=f"mynets:{model}", model_kwargs={})
    assert error.value.field == "model"
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_init_from_gives_the_first_weights_and_the_own_workdir_comes_before_it(
    fit, path, tmp_path, capsys
):
    plain = {"model": "cnn", "model_kwargs": {"widths": (4,), "hidden": 8, "norm": "none"}}
    fit("first", **plain)
    first = load(tmp_path / "first")
    fit("second", **plain, init_from=str(tmp_path / "first"), seed=5)
    rows = sampling.batch_indices(5, 0, 16, 50)
    arrays = np.load(path)
    loss = losses.cross_entropy(
        first.apply(first.variables, arrays["x_train"][rows]), arrays["y_train"][rows]
    )
    lines = (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()
    logged = json.loads(lines[0])
    assert logged["step"] == 1
    np.testing.assert_allclose(logged["loss"], np.mean(loss), rtol=1e-5)

    (tmp_path / "first").rename(tmp_path / "elsewhere")
    capsys.readouterr()
    changes = {"init_from": str(tmp_path / "first"), "seed": 5, "num_steps": 3, "log_every": 2}
    fit("second", **plain, **changes)
    assert "finished at step 3" in capsys.readouterr().err


def _in_colour(path, to):
    with np.load(path) as found:
        arrays = dict(found)
    images = {k: np.repeat(x, 3, axis=-1) for k, x in arrays.items() if k.startswith("x_")}
    np.savez(to, **arrays | images)
    return f"npz:{to}"


def test_a_resumed_run_of_images_with_other_channels_is_refused_on_its_data_set(
    fit, path, tmp_path
):
    fit("run", model="mynets:make_net", num_steps=1, dataset=_in_colour(path, tmp_path / "3.npz"))
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(InputError) as error:
        fit("run", model="mynets:make_net", num_steps=1)
    assert str(error.value) == (
        f"dataset: got 'npz:{path}'; this run was started with 'npz:{tmp_path / '3.npz'}', whose "
        f"images have 3 channels; those of npz:{path} have 1; keep that data set or use another "
        "workdir"
    )
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    with pytest.raises(InputError, match="^init_from: got .*run'; takes images of 3 channels; "):
        fit("new", init_from=str(tmp_path / "run"))


def test_held_out_examples_do_not_depend_on_the_seed_and_are_not_trained_on(path):
    hp = {"dataset": f"npz:{path}", "data_dir": None, "num_validation": 9, "train_share": 1}
    dataset, splits = classification.load_splits(types.SimpleNamespace(**hp, seed=1))
    _, again = classification.load_splits(types.SimpleNamespace(**hp, seed=2))
    assert [len(s) for s in splits] == [41, 9, 21]
    np.testing.assert_array_equal(splits.validation.index, again.validation.index)
    both = np.concatenate([splits.train.index, splits.validation.index])
    np.testing.assert_array_equal(np.sort(both), np.arange(50))
    np.testing.assert_array_equal(splits.train.images, dataset.train.images[splits.train.index])


def test_accuracies_are_of_the_test_and_of_the_held_out_examples(fit, path, tmp_path):
    result = fit("run", num_validation=9, eval_batch_size=4)
    loaded = load(tmp_path / "run", trust=("mynets",))
    _, splits = classification.load_splits(
        types.SimpleNamespace(dataset=f"npz:{path}", data_dir=None, num_validation=9, train_share=1)
    )
    for name, split in (("accuracy", splits.test), ("validation_accuracy", splits.validation)):
        found = np.argmax(loaded.apply(loaded.variables, split.images), axis=-1)
        np.testing.assert_allclose(result[name], np.mean(found == split.labels), rtol=1e-6)
    assert (result["num_test"], fit("other")["validation_accuracy"]) == (21, None)


def test_a_run_takes_all_its_augmentations(fit, monkeypatch):
    settings = {"crop_padding": 1, "flip": True, "rotation": 17.0}
    given = []

    def record(key, images, index, **how):
        given.append(how)
        return images

    monkeypatch.setattr(classification.augment, "augment", record)
    fit("augmented", num_steps=1, **settings)
    assert given and all(how == settings for how in given)


def test_runs_that_differ_in_seed_and_traced_settings_compile_once(path, tmp_path):
    traces = []

    @dataclasses.dataclass(frozen=True)
    class Weighted:
        network: Network

        def __call__(self, params, model_state, frozen, batch, key):
            traces.append(batch["label"].shape)
            found = Labels(self.network)(params, model_state, frozen, batch, key)
            return found._replace(values=frozen["weight"] * found.values)

    given = {"dataset": f"npz:{path}", "model": "cnn", "model_kwargs": {"widths": (4,)}}
    given |= {"learning_rate": 0.05, "batch_size": 16, "num_steps": 2}
    for seed, weight in ((0, 1.0), (1, 2.0)):
        hp = config.validate({**given, "seed": seed}, config.Training)
        dataset, splits = classification.load_splits(hp)
        run = classification.prepare(
            hp, tmp_path / str(seed), method="test", dataset=dataset, splits=splits, mode=None
        )
        frozen = {"weight": np.float32(weight)}
        classification.train(run, Weighted(run.network), frozen=frozen)
    assert traces == [(2,)]  # [B] on one of eight devices


def test_one_device_trains_as_several_do(fit, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert fit(tmp_path / "alone")["num_test"]

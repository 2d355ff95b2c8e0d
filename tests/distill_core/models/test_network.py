"""Networks are tried before they are trained, and inputs before they are believed."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from distill_core import data, evaluate, load_model, models, train
from distill_core.config import InputError
from distill_core.models import Transformer, checks
from distill_core.models.network import Network, image_network
from distill_core.runtime import parallel

SETTINGS = {
    "dataset": "digits",
    "learning_rate": 0.05,
    "batch_size": 8,
    "num_validation": 0,
    "num_steps": 2,
}


class Dropping(nn.Module):
    """A user's network with Flax's word for not `train`."""

    num_classes: int

    @nn.compact
    def __call__(self, x, deterministic: bool):
        x = nn.relu(nn.Dense(64)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes)(nn.Dropout(0.5)(x, deterministic=deterministic))


class Untold(nn.Module):
    """One that is not told when it is trained."""

    num_classes: int
    layer: str

    @nn.compact
    def __call__(self, x, training: bool = False):
        x = nn.Dense(16)(x.reshape(x.shape[0], -1))
        if self.layer == "dropout":
            x = nn.Dropout(0.5, name="drop")(x, deterministic=not training)
        elif self.layer == "attention":
            x = nn.MultiHeadDotProductAttention(2, dropout_rate=0.1, name="drop")(
                x[:, None], deterministic=not training
            )[:, 0]
        elif self.layer == "norm":
            x = nn.BatchNorm(use_running_average=not training, name="norm")(x)
        else:
            x = nn.Dropout(0.0)(x, deterministic=not training)
        return nn.Dense(self.num_classes)(x)


class Norm(nn.Module):
    """A user's network with Flax's batch normalisation, over a device or over all."""

    num_classes: int
    axis_name: str | None = None
    synced: bool = False
    pooled: bool = True

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(4, (3, 3))(x)
        x = x.mean((1, 2)) if self.pooled else x
        axis = self.axis_name if self.synced else None
        x = nn.BatchNorm(use_running_average=not train, axis_name=axis)(x)
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


class DroppingText(Transformer):
    """A language model that drops out where nobody tells it that it is trained."""

    def setup(self):
        super().setup()
        self.drop = nn.Dropout(0.5, deterministic=True)

    def hidden(self, tokens, segments=None):
        return self.drop(super().hidden(tokens, segments))


@pytest.fixture(autouse=True)
def found_by_name(monkeypatch):
    """The networks above, as a user's module."""
    import sys

    monkeypatch.setitem(sys.modules, "users_networks", sys.modules[__name__])


def described(name, **kwargs):
    return image_network(
        data.load_dataset("digits"),
        model=name if name in ("resnet18", "cnn") else f"users_networks:{name}",
        model_kwargs=kwargs,
    )


def test_networks_are_equal_by_value_and_survive_json():
    ours = described("cnn", widths=[4, 8], hidden=8)
    again = described("cnn", widths=(4, 8), hidden=8)
    assert (ours, hash(ours)) == (again, hash(again))
    assert ours != described("cnn", widths=(4, 8), hidden=9)
    assert Network.from_json(json.loads(json.dumps(ours.to_json()))) == ours
    for wrong in ({**ours.to_json(), "speed": 3}, {"model": "cnn"}):
        with pytest.raises(ValueError):
            Network.from_json(wrong)


def test_deterministic_is_the_opposite_of_train():
    network = described("Dropping")
    checks.check(network)
    apply = jax.jit(network.apply, static_argnames="train")
    params, state = network.init(jax.random.key(0))
    assert state == {}
    images = np.random.default_rng(0).random((4, 8, 8, 1), np.float32)

    def logits(key):
        return np.asarray(apply({"params": params}, images, train=True, key=key)[0])

    first, second = (logits(jax.random.key(seed)) for seed in (1, 2))
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_array_equal(first, logits(jax.random.key(1)))
    still = np.asarray(apply({"params": params}, images))
    mean = np.mean([logits(jax.random.key(seed)) for seed in range(400)], axis=0)
    np.testing.assert_allclose(mean, still, atol=0.15)


@pytest.mark.parametrize("layer", ["dropout", "attention", "norm"])
def test_a_network_that_is_not_told_of_training_is_refused(layer):
    name = "norm" if layer == "norm" else "drop"
    with pytest.raises(InputError, match=f"^model: .*the layer {name}, .*`train`"):
        checks.check(described("Untold", layer=layer))
    checks.check(described("Untold", layer="none"))


class Mean(nn.Module):
    """A network made of another that is applied by itself."""

    num_classes: int
    member: str

    @nn.compact
    def __call__(self, x):
        one = Dropping(self.num_classes) if self.member == "told" else Untold(10, layer="dropout")
        one = one.clone(parent=None)
        params = self.param("member", lambda key: models.init_model(one, key, x.shape[1:])[0])
        return models.apply_model(one, {"params": params}, x, train=False)


def test_networks_inside_another_are_asked_themselves():
    checks.check(described("Mean", member="told"))
    with pytest.raises(InputError, match="^model: .*the layer drop"):
        checks.check(described("Mean", member="untold"))


def test_a_language_model_that_drops_out_is_refused():
    kwargs = {"width": 8, "num_layers": 1, "num_heads": 2}
    network = Network("users_networks:DroppingTextOf", 20, kwargs, max_length=8)
    with pytest.raises(InputError, match="^model: .*the layer drop"):
        checks.check(network)
    checks.check(dataclasses.replace(network, model="transformer"))


def DroppingTextOf(*, num_classes, **kwargs):
    return DroppingText(vocab_size=num_classes, **kwargs)


def test_batch_norm_over_one_value_is_refused_before_training(tmp_path, monkeypatch):
    """ResNet-18 ends in 1x1 pixels on digits: a batch of one image leaves one value per channel."""
    monkeypatch.setattr(parallel, "check_batch_size", lambda size, mode: None)
    settings = {**SETTINGS, "model": "resnet18", "batch_size": 1}
    monkeypatch.setattr(parallel, "choose_mode", lambda mode=None: "jit")
    with pytest.raises(InputError, match="^batch_size: got 1; .*BatchNorm_0 of resnet18"):
        train.train_and_evaluate(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("network", "batch_size", "mode", "refused"),
    [
        (described("resnet18"), 1, "jit", True),
        (described("resnet18"), 2, "jit", False),
        (described("resnet18", norm="group"), 1, "jit", False),
        (described("cnn", widths=[4], hidden=8), 1, "jit", True),  # its dense layer
        (described("resnet18"), 8, "pmap", False),  # ours sums over the devices
        (described("Norm"), 8, "pmap", True),
        (described("Norm"), 8, "shard_map", True),
        (described("Norm"), 8, "mesh", False),  # one array, whatever the devices
        (described("Norm"), 16, "pmap", False),
        (described("Norm", synced=True), 8, "pmap", False),
        (described("Norm", pooled=False), 8, "pmap", False),
        (described("Norm"), 1, "jit", True),
    ],
    ids=str,
)
def test_values_per_channel_are_counted_as_the_layer_sees_them(network, batch_size, mode, refused):
    assert jax.device_count() == 8
    if not refused:
        return checks.check_statistics(network, batch_size, mode)
    with pytest.raises(InputError, match=f"^batch_size: got {batch_size}; leaves the layer "):
        checks.check_statistics(network, batch_size, mode)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    settings = {"model": "cnn", "model_kwargs": {"widths": (4,), "hidden": 8, "norm": "none"}}
    train.train_and_evaluate({**SETTINGS, **settings}, folder)
    return load_model(folder)


@pytest.mark.parametrize(
    ("change", "given"),
    [
        (lambda x: x * 255, "values from 0 to 255"),
        (lambda x: (x - 0.5) / 0.5, "values from -1 to 1"),
        (lambda x: np.where(x == x.max(), np.float32(np.nan), x), "values from nan to nan"),
        (lambda x: jnp.asarray(x) * 255, "values from 0 to 255"),
        (lambda x: jnp.asarray(x, jnp.bfloat16) * 2, "values from 0 to 2"),
    ],
    ids=["0 to 255", "standardised", "NaN", "a device's", "bfloat16"],
)
def test_a_loaded_model_refuses_pixels_of_another_scale(loaded, change, given):
    images = data.load_dataset("digits").test.images[:50]
    good = images.astype(np.float32) / 255
    loaded.apply(loaded.variables, good)
    with pytest.raises(InputError, match=f"^inputs: got '{given}'"):
        loaded.apply(loaded.variables, change(good))


def test_rounding_and_traced_values_pass(loaded):
    images = data.load_dataset("digits").test.images[:5].astype(np.float32) / 255
    logits = loaded.apply(loaded.variables, images * np.float32(1 + 1e-6))
    assert np.isfinite(logits).all()
    assert repr(loaded).startswith("LoadedModel(cnn, 650 parameters")
    assert jax.jit(loaded.apply)(loaded.variables, images * 255).shape == (5, 10)
    jax.grad(lambda x: loaded.apply(loaded.variables, x).sum())(images * 255)
    np.testing.assert_allclose(
        evaluate.compute_logits(loaded, images), loaded.apply(loaded.variables, images), rtol=1e-5
    )


def test_ids_outside_the_vocabulary_are_refused():
    kwargs = {"width": 8, "num_layers": 1, "num_heads": 2}
    network = Network("transformer", 20, kwargs, max_length=8)
    params, _ = network.init(jax.random.key(0))
    apply = network.apply
    assert apply({"params": params}, np.array([[0, 19]])).shape == (1, 2, 20)
    for wrong in (20, -1):
        with pytest.raises(InputError, match=r"inputs: .*token ids must lie in \[0, 19\]"):
            apply({"params": params}, np.array([[0, wrong]]))

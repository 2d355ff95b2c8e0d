"""Head-only nasty training: what changes, what does not, and what it refuses."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core import data, train
from distill_core import load_model as load
from distill_core.config import InputError
from distill_core.data import sampling
from distill_core.models.network import image_network
from nasty import nasty_loss
from nasty import train as nasty_train
from nasty.defences import head_only

HEAD = "Dense_1"
OMEGA, TEMPERATURE, RATE = 0.05, 20.0, 0.1
NETWORKS = '''
from flax import linen as nn

class Linear(nn.Module):
    """Without features, or with logits that are not a dense layer of them."""
    num_classes: int
    sown: bool = False

    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        if self.sown:
            self.sow("intermediates", "features", x)
        return 2 * nn.Dense(self.num_classes)(x)
'''


def settings(**changes):
    return {
        "dataset": "digits",
        "model": "cnn",
        "model_kwargs": {"widths": (4,), "hidden": 8},
        "learning_rate": RATE,
        "momentum": 0.0,
        "batch_size": 16,
        "num_steps": 4,
        **changes,
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a normal teacher and an adversary."""
    folder = tmp_path_factory.mktemp("place")
    train.train_and_evaluate(settings(num_steps=40), folder / "normal")
    train.train_and_evaluate(settings(seed=1), folder / "adversary")
    return folder


def undermine(place, name, **changes):
    given = {
        "init_from": str(place / "normal"),
        "adversary": str(place / "adversary"),
        "temperature": TEMPERATURE,
        "omega": OMEGA,
        "train_only_head": True,
        "check_nastiness": False,
        **changes,
    }
    return nasty_train.train_and_evaluate(settings(**given), place / name)


def test_only_the_head_changes_bitwise(place):
    result = undermine(place, "nasty", check_nastiness=True, num_validation=287)
    assert result["num_test"] == 360
    assert 0 <= result["validation_accuracy"] <= 1
    assert result["nastiness"]["nasty"] is None, "the check may cost a share of this training"
    normal, nasty = (load(place / name) for name in ("normal", "nasty"))
    changed = jax.tree.map(
        lambda a, b: a.tobytes() != b.tobytes(), normal.variables, nasty.variables
    )
    head = changed["params"].pop(HEAD)
    assert head == {"kernel": True, "bias": True}
    assert not any(jax.tree.leaves(changed))
    assert "batch_stats" in changed
    assert nasty.network == normal.network
    digests = [each["id"] for each in nasty.metadata["ledger"]["ancestors"]]
    assert digests == [load(place / n).metadata["id"] for n in ("adversary", "normal")]


@pytest.mark.parametrize("against", ["adversary", "normal"], ids=["another", "itself"])
def test_a_step_is_that_of_the_nasty_loss_through_the_whole_network(place, against):
    name = f"one_step_{against}"
    undermine(place, name, adversary=str(place / against), num_steps=1)
    normal, adversary, found = (load(place / n) for n in ("normal", against, name))
    split = data.load_dataset("digits").train
    rows = sampling.batch_indices(0, 0, 16, len(split))
    images, labels = split.images[rows], split.labels[rows]
    answers = adversary.apply(adversary.variables, images)

    def loss(params):
        logits = normal.apply({**normal.variables, "params": params}, images)
        return jnp.mean(nasty_loss(logits, answers, labels, temperature=TEMPERATURE, omega=OMEGA))

    gradient = jax.jit(jax.grad(loss))(normal.variables["params"])[HEAD]
    expected = jax.tree.map(lambda p, g: p - RATE * g, normal.variables["params"][HEAD], gradient)
    for name, value in expected.items():
        np.testing.assert_allclose(
            found.variables["params"][HEAD][name], value, rtol=1e-4, atol=1e-5
        )


def test_a_resumed_run_needs_its_own_checkpoint_only(place):
    start = place / "moved"
    shutil.copytree(place / "normal", start)
    straight = undermine(place, "straight", init_from=str(start))
    undermine(place, "resumed", init_from=str(start), num_steps=2)
    shutil.rmtree(start)
    resumed = undermine(place, "resumed", init_from=str(start))
    assert resumed | {"id": ""} == straight | {"id": ""}
    with pytest.raises(InputError, match="^omega: "):
        undermine(place, "resumed", init_from=str(start), omega=0.5)


def test_a_network_without_a_dense_layer_on_its_features_is_refused(tmp_path, monkeypatch):
    (tmp_path / "head_only_networks.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    digits = data.load_dataset("digits")
    images = digits.train.images[:9]
    for sown in (False, True):
        network = image_network(
            digits, model="head_only_networks:Linear", model_kwargs={"sown": sown}
        )
        params, _ = network.init(jax.random.key(0))
        with pytest.raises(InputError, match="^model: "):
            features = head_only.compute_features(network, {"params": params}, images)
            assert sown, "it shows none"
            head_only.find_head(network, {"params": params}, images, features)

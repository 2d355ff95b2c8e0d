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
from distill_core.models import spec
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
    assert nasty.spec == normal.spec
    digests = [each["id"] for each in nasty.metadata["ledger"]["ancestors"]]
    assert digests == [load(place / n).metadata["id"] for n in ("adversary", "normal")]


def test_a_step_is_that_of_the_nasty_loss_through_the_whole_network(place):
    undermine(place, "one_step", num_steps=1)
    normal, adversary, found = (load(place / n) for n in ("normal", "adversary", "one_step"))
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


def test_an_adversary_with_the_same_features_takes_no_second_pass(place, monkeypatch):
    own = {"adversary": str(place / "normal"), "num_steps": 2}
    undermine(place, "one_pass", **own)
    fast = load(place / "one_pass").variables["params"][HEAD]
    with monkeypatch.context() as patch:
        patch.setattr(head_only, "_same_features", lambda *_: False)
        undermine(place, "two_passes", **own)
    slow = load(place / "two_passes").variables["params"][HEAD]
    for name in fast:
        np.testing.assert_allclose(fast[name], slow[name], atol=1e-5)
    monkeypatch.setattr(head_only.evaluate, "compute_logits", None)
    undermine(place, "none_left", **own)
    with pytest.raises(TypeError):  # another adversary has to be asked
        undermine(place, "asked", num_steps=2)


def test_a_resumed_run_needs_its_own_checkpoint_only(place):
    start = place / "moved"
    shutil.copytree(place / "normal", start)
    straight = undermine(place, "straight", init_from=str(start))
    undermine(place, "resumed", init_from=str(start), num_steps=2)
    shutil.rmtree(start)
    resumed = undermine(place, "resumed", init_from=str(start))
    assert resumed | {"id": ""} == straight | {"id": ""}
    with pytest.raises(InputError, match=r"omega: got 0\.5; this run was started with 0\.05"):
        undermine(place, "resumed", init_from=str(start), omega=0.5)


def test_a_full_run_keeps_the_settings_that_it_had_before_this_existed(place):
    undermine(place, "full", train_only_head=False, init_from=None, num_steps=1)
    assert "train_only_head" not in load(place / "full").metadata["config"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"init_from": None},
            "init_from: got None; train_only_head starts from a trained network, e.g. the "
            "adversary: name it",
        ),
        (
            {"flip": True},
            "flip: got True; train_only_head takes no augmentation: it computes features once",
        ),
        (
            {"rotation": 20.0},
            "rotation: got 20.0; train_only_head takes no augmentation: it computes features once",
        ),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(place, changes, line):
    with pytest.raises(InputError) as error:
        undermine(place, "refused", **changes)
    assert str(error.value) == line
    assert not (place / "refused").exists()


def test_a_network_without_a_dense_layer_on_its_features_is_refused(tmp_path, monkeypatch):
    (tmp_path / "head_only_networks.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    digits = data.load_dataset("digits")
    images = digits.train.images[:9]
    for sown, line in ((False, "shows no features"), (True, "its logits are no dense layer")):
        network = spec.image_spec(
            model="head_only_networks:Linear", model_kwargs={"sown": sown}, dataset=digits
        )
        params, _ = spec.init(network, jax.random.key(0))
        with pytest.raises(InputError, match=f"model: .*{line}"):
            features = head_only.compute_features(network, {"params": params}, images)
            head_only.find_head(network, {"params": params}, images, features)

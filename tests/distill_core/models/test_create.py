from textwrap import dedent

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from distill_core.config import InputError
from distill_core.models import CNN, MODEL_NAMES, create_model
from distill_core.runtime import collectives

_NETWORKS = """
    from flax import linen as nn

    class Linear(nn.Module):
        num_classes: int
        scale: float = 1.0

        @nn.compact
        def __call__(self, x):
            return self.scale * nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))

    class WithAxis(nn.Module):
        num_classes: int
        axis_name: str | None = None

    def forwards(**kwargs):
        return WithAxis(**kwargs)

    def ignores(num_classes, **kwargs):
        return Linear(num_classes, **kwargs)

    def returns_dict(num_classes):
        return {}

    instance = Linear(3)
    constant = 5
"""


@pytest.fixture
def networks(tmp_path, monkeypatch):
    (tmp_path / "users_networks.py").write_text(dedent(_NETWORKS))
    (tmp_path / "users_broken.py").write_text("1 / 0")
    (tmp_path / "users_syntax.py").write_text("def (")
    monkeypatch.syspath_prepend(tmp_path)


def test_lists_become_tuples_so_that_modules_are_hashable():
    model = create_model("cnn", num_classes=4, **ConfigDict({"widths": [4, 8]}))
    assert model == CNN(num_classes=4, widths=(4, 8)) and hash(model)


def test_a_users_factory(networks):
    model = create_model("users_networks:Linear", num_classes=4, scale=2.0)
    assert (type(model).__name__, model.num_classes, model.scale) == ("Linear", 4, 2.0)


def test_the_name_of_a_bound_axis_goes_to_those_who_take_it(networks):
    def look(_):
        made = (
            create_model(f"users_networks:{f}", num_classes=4) for f in ("WithAxis", "forwards")
        )
        found.extend(model.axis_name for model in made)

    found = []
    jax.vmap(look, axis_name=collectives.AXIS)(jnp.zeros(2))
    look(0)
    assert found == [collectives.AXIS] * 2 + [None] * 2
    # Without an axis, a function that takes any keyword is not bothered with it.
    assert create_model("users_networks:ignores", num_classes=4, scale=3.0).scale == 3.0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet19", ", ".join((*MODEL_NAMES, "or package.module:factory"))),
        *[(name, "must be one of cnn") for name in (":factory", "users_networks:")],
        ("users_missing:f", "ModuleNotFoundError"),
        ("users_broken:f", "ZeroDivisionError"),
        ("users_syntax:f", "SyntaxError"),
        (".relative:f", "cannot be imported"),
        ("users_networks:absent", "'absent'"),
        *[(f"users_networks:{name}", "Linen class") for name in ("constant", "instance")],
        ("users_networks:returns_dict", "not dict"),
    ],
)
def test_wrong_models_are_refused(networks, name, reason):
    with pytest.raises(InputError, match=f"^model: got '{name}'; .*{reason}"):
        create_model(name, num_classes=4)


@pytest.mark.parametrize("name", ["cnn", "resnet18", "mobilenetv2", "users_networks:Linear"])
def test_wrong_settings_are_refused(networks, name):
    with pytest.raises(InputError, match=rf"^model_kwargs: (?=.*{name}).*'depth'"):
        create_model(name, num_classes=4, depth=3)


def test_a_network_of_text_lists_its_settings_and_one_of_images_is_refused_for_text():
    with pytest.raises(InputError, match=r"^model_kwargs: got {'depth': 3}; .*takes .*num_heads"):
        create_model("transformer", num_classes=4, max_length=8, depth=3)
    with pytest.raises(InputError, match="^model: got 'cnn'; .*transformer"):
        create_model("cnn", num_classes=4, max_length=8)

"""A checkpoint is data: nothing that it names is run unless the user names it in the same call."""

import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import distill_core
from distill_core import checkpoint, distill, evaluate, release, train
from distill_core.config import InputError
from distill_core.models import trust
from distill_core.models.network import Network
from distill_core.runtime import cli
from dpdfd.ensemble import training as ensemble

STRANGER = """
import pathlib
from flax import linen as nn

with pathlib.Path({marker!r}).open("a") as file:
    file.write(__name__ + " ")


class Net(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))
"""
NETWORK = {
    "num_classes": 3,
    "input_shape": [4, 4, 1],
    "mean": [0.5],
    "std": [0.25],
    "classes": ["a", "b", "c"],
}
SETTINGS = {"model": "stranger:Net", "learning_rate": 0.1, "batch_size": 8, "num_steps": 2}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Modules that note each of their imports in `ran`; `run`, a checkpoint that names one."""
    (tmp_path / "package" / "inner").mkdir(parents=True)
    for name in ("stranger", "packages", "package/__init__", "package/inner/__init__"):
        text = STRANGER.format(marker=str(tmp_path / "ran"))
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    known = set(sys.modules)
    write("run", "stranger:Net")
    rng = np.random.default_rng(0)
    images, labels = rng.random((24, 4, 4, 1), np.float32), np.arange(24) % 3
    classes = np.array(["a", "b", "c"])
    np.savez(
        "data.npz", x_train=images, y_train=labels, x_test=images, y_test=labels, classes=classes
    )
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.split(".")[0] in ("stranger", "packages", "package"):
            del sys.modules[name]


def write(name, model, **kwargs):
    """A checkpoint whose network is said to be `model`, with the variables of a dense layer."""
    dense = {"kernel": np.zeros((16, 3), np.float32), "bias": np.zeros(3, np.float32)}
    parts = {"model": {"params": {"Dense_0": dense}, "model_state": {}}}
    metadata = {
        "method": "distill_core.train",
        "parts": {"model": {"model": model, "model_kwargs": kwargs, **NETWORK}},
        "config": {"dataset": "npz:data.npz"},
        "ledger": {"mechanisms": [], "ancestors": []},
        "data_note": "",
    }
    checkpoint.save(name, 1, parts=parts, train={"step": np.int32(1)}, metadata=metadata).wait()


def ran(place):
    return (place / "ran").read_text().split() if (place / "ran").exists() else []


def refused(path="run", model="stranger:Net", **given):
    with pytest.raises(InputError, match=f"^checkpoint: .*needs the network {model}"):
        distill_core.load_model(path, **given)


def test_a_strangers_module_is_imported_only_in_a_call_that_trusts_it(place):
    with pytest.raises(InputError, match="^checkpoint: .* stranger:Net, .*--trust=stranger"):
        distill_core.load_model("run")
    assert not ran(place)
    for trusted in (("stranger",), "stranger"):
        assert distill_core.load_model("run", trust=trusted).network.model == "stranger:Net"
        assert ran(place) == ["stranger"]
        refused()


@pytest.mark.parametrize(
    ("model", "trusted", "loads"),
    [
        ("package:Net", "package", True),
        ("package.inner:Net", "package", True),
        ("package.inner:Net", "package.inner", True),
        ("package:Net", "package.inner", False),
        ("packages:Net", "package", False),
        ("stranger:Net", "strange", False),
    ],
)
def test_trust_covers_a_package_and_what_is_in_it(place, model, trusted, loads):
    write("other", model)
    if loads:
        distill_core.load_model("other", trust=[trusted])
    else:
        refused("other", model, trust=[trusted])
        assert not ran(place)


def test_trust_is_given_by_the_names_of_packages(place):
    for name in ("stranger:Net", "", "a/b", "stranger.", 3):
        with pytest.raises(InputError, match="^trust: "):
            distill_core.load_model("run", trust=[name])


@pytest.mark.parametrize(
    ("model", "kwargs"),
    [
        (ensemble.MODEL, {"member": "stranger:Net", "member_kwargs": {}}),
        (ensemble.MODEL, {"member": ensemble.MODEL, "member_kwargs": {"member": "stranger:Net"}}),
        (ensemble.MODEL, {"member": "cnn", "member_kwargs": {"widths": ["stranger:Net"]}}),
        ("distill_core.checkpoint.integrity:delete", {}),
        *[(f"distill_core.models.create:{name}", {}) for name in ("create_model", "nn")],
        *[(name, {}) for name in ("dpdfd.nothing:Net", "nasty:Net", "os:system")],
        *[(name, {}) for name in ("distill_core.train:train_and_evaluate", "flax.linen:Dense")],
    ],
)
def test_a_file_may_name_our_networks_alone_in_its_settings_too(place, model, kwargs):
    write("other", model, **kwargs)
    refused("other", "stranger:Net" if kwargs else model)
    assert not ran(place)


def test_a_namesake_of_this_project_is_a_stranger(place, monkeypatch):
    (place / "dpdfd").mkdir()
    for name in ("__init__", "generator"):
        (place / "dpdfd" / f"{name}.py").write_text(STRANGER.format(marker=str(place / "ran")))
    write("other", "dpdfd.generator:Net")
    for name in [name for name in sys.modules if name.split(".")[0] == "dpdfd"]:
        monkeypatch.delitem(sys.modules, name)
    refused("other", "dpdfd.generator:Net")
    assert not ran(place)


def test_a_name_of_another_form_is_never_imported(place):
    for model in ("stranger:Net:x", " stranger:Net", "stranger:Net\n", "stranger"):
        write("other", model)
        with pytest.raises(InputError, match="model: "):
            distill_core.load_model("other")
    assert not ran(place)


def test_the_binaries_refuse_and_take_trust(place, capsys):
    for main, flags in ((evaluate.main, []), (release.main, ["--out=released"])):
        flags = ["--checkpoint=run", *flags]
        assert cli.exit_code(main, flags) == cli.EXIT_INPUT
        assert "needs the network stranger:Net" in capsys.readouterr().err
        assert not (place / "released").exists()
        assert not ran(place)
        assert cli.exit_code(main, [*flags, "--trust=other,packages"]) == cli.EXIT_INPUT
        assert cli.exit_code(main, [*flags, "--trust=a/b"]) == cli.EXIT_INPUT
        assert "trust: got 'a/b'" in capsys.readouterr().err
    assert cli.exit_code(evaluate.main, ["--checkpoint=run", "--trust=other,stranger"]) == 0
    assert cli.exit_code(evaluate.main, ["--checkpoint=run"]) == cli.EXIT_INPUT


def test_a_run_trusts_the_very_module_that_its_config_names(place):
    settings = {**SETTINGS, "dataset": "npz:data.npz"}
    train.train_and_evaluate(ConfigDict(settings), "own")
    train.train_and_evaluate(ConfigDict({**settings, "num_steps": 4}), "own")  # resumes
    refused("own")  # the trust ended with the run

    distill.train_and_evaluate({**settings, "teacher": "run"}, "student")
    write("other", "package:Net")
    with pytest.raises(InputError, match="^teacher: got 'other'; needs the network package:Net"):
        distill.train_and_evaluate({**settings, "teacher": "other"}, "from_another")
    assert not (place / "from_another").exists()
    own = {**settings, "model": "package.inner:Net", "init_from": "other"}
    with pytest.raises(InputError, match="^init_from: got 'other'; needs .* package:Net"):
        train.train_and_evaluate(own, "from_another")
    assert not (place / "from_another").exists()


def test_groups_of_a_config_name_modules_too():
    @trust.config_allows
    def run(settings, module):
        trust.check("checkpoint", "file", module, asks_for="a network")

    named = {"model": "a.b:C", "student": {"model": "d:E"}, "students": {"x": {"model": "f:G"}}}
    for module in ("a.b", "d", "f"):
        run(ConfigDict(named), module)
    with pytest.raises(InputError, match="needs a network"):
        run({"dataset": "npz:file", "model": "cnn", "modelled": "h:I"}, "h")


def test_our_own_networks_need_no_trust(tmp_path):
    described = {
        **NETWORK,
        "model": "nasty.attacks.skeptical:SkepticalCNN",
        "model_kwargs": {"widths": [2], "hidden": 4},
    }
    params, model_state = Network.from_json(described).init(jax.random.key(0))
    parts = {"model": {"params": params, "model_state": model_state}}
    metadata = {"method": "test", "parts": {"model": described}}
    checkpoint.save(tmp_path, 1, parts=parts, train={"step": np.int32(1)}, metadata=metadata).wait()
    assert distill_core.load_model(tmp_path).network == Network.from_json(described)

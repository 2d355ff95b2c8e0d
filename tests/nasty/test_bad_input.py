"""What a user of the nasty binaries gets wrong: one line, exit code 2, and nothing is written.

Weights out of PyTorch's files among it, which every binary takes for a network by its path.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from distill_core import distill, train
from distill_core.runtime import cli
from nasty import attack
from nasty import train as nasty_train

CONFIG = """
from ml_collections import config_dict

def get_config(arg=""):
    settings = {settings!r}
    return config_dict.ConfigDict(settings).lock()
"""
SETTINGS = {
    "dataset": "digits",
    "model": "cnn",
    "model_kwargs": {"widths": (4,), "hidden": 8},
    "learning_rate": 0.05,
    "batch_size": 16,
    "num_steps": 4,
}


def write_weights(folder, name, *, hidden=8, classes=10, **changes):
    """A CNN of `SETTINGS` as PyTorch's state dict, and what lies beside it to describe it."""
    tensors = {
        "conv1.weight": np.zeros((4, 1, 3, 3), np.float32),
        "fc1.weight": np.zeros((hidden, 64), np.float32),
        "fc2.weight": np.zeros((classes, hidden), np.float32),
    }
    tensors |= {
        name.replace("weight", "bias"): np.zeros(len(value), np.float32)
        for name, value in tensors.items()
    }
    for norm, width in (("bn1", 4), ("fcbn1", hidden)):
        for kind in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{norm}.{kind}"] = np.ones(width, np.float32)
    described = {
        "model": "cnn",
        "model_kwargs": {"widths": [4], "hidden": hidden},
        "input_shape": [8, 8, 1],
        "mean": [0.5],
        "std": [0.5],
        "classes": [str(i) for i in range(classes)],
        **changes,
    }
    save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(described))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a config for every binary, and weights that fit and that do not."""
    place = tmp_path_factory.mktemp("place")
    write_weights(place, "fits")
    write_weights(place, "other", model="resnetc20", model_kwargs={})
    write_weights(place, "wide", hidden=12)
    write_weights(place, "three", classes=3)
    fits = str(place / "fits.safetensors")
    for binary, more in (
        (train, {}),
        (distill, {"teacher": fits}),
        (attack, {"teacher": fits, "attack": "kd"}),
        (nasty_train, {"adversary": fits, "temperature": 4.0, "omega": 0.1}),
    ):
        path = place / f"{binary.__name__}.py"
        path.write_text(CONFIG.format(settings={**SETTINGS, **more}))
    return place


def wrong(field, binary, *arguments):
    return pytest.param(field, binary, arguments, id=f"{binary.__name__} {' '.join(arguments)}")


CMIM = ["--config.defence=cmim"]
NASTY = ["--config.adversary=None", "--config.temperature=None", "--config.omega=None"]
HEAD = ["--config.train_only_head=True", "--config.init_from={place}/fits.safetensors"]
CHECK = "--config.check_model_kwargs"
SKEPTICAL = ["--config.attack=skeptical", "--config.model=nasty.attacks.skeptical:SkepticalCNN"]


@pytest.mark.parametrize(
    ("field", "binary", "arguments"),
    [
        *(
            wrong("top_k", attack, f"--config.attack={name}", "--config.top_k=11")
            for name in ("kd", "htc", "averager", "scm")
        ),
        wrong("top_k", attack, *SKEPTICAL, "--config.top_k=11"),
        wrong("top_k", attack, "--config.top_k=0"),
        wrong("crop_padding", attack, "--config.crop_padding=8"),
        wrong("crop_padding", train, "--config.crop_padding=8"),
        wrong("attack", attack, "--config.attack=ktc"),
        wrong("multiplier", attack, "--config.multiplier=2.0"),
        wrong("model", attack, "--config.attack=skeptical"),
        wrong(
            "model_kwargs.auxiliary_block",
            attack,
            *SKEPTICAL,
            "--config.model_kwargs.auxiliary_block=3",
        ),
        # Each belongs to the other defence, …
        *(
            wrong(field, nasty_train, *CMIM, *NASTY[:i], *NASTY[i + 1 :])
            for i, field in enumerate(("adversary", "temperature", "omega"))
        ),
        wrong("train_only_head", nasty_train, *CMIM, *NASTY, "--config.train_only_head=True"),
        wrong("cmim_weight", nasty_train, "--config.cmim_weight=10.0"),
        # … or is required by its own, or is outside its range.
        wrong("adversary", nasty_train, NASTY[0]),
        wrong("temperature", nasty_train, NASTY[1]),
        wrong("omega", nasty_train, NASTY[2]),
        wrong("cmim_temperatures", nasty_train, *CMIM, *NASTY, "--config.cmim_temperatures=()"),
        wrong("cmim_weight", nasty_train, *CMIM, *NASTY, "--config.cmim_weight=-1"),
        wrong("defence", nasty_train, "--config.defence=nice"),
        wrong("init_from", nasty_train, "--config.train_only_head=True"),
        wrong("flip", nasty_train, *HEAD, "--config.flip=True"),
        wrong("frozen_dtype", nasty_train, *HEAD, "--config.frozen_dtype=bfloat16"),
        wrong("rotation", nasty_train, *HEAD, "--config.rotation=20.0"),
        # A proxy of the nastiness check that cannot be.
        wrong("check_model", nasty_train, "--config.check_model=cnm"),
        wrong("check_model_kwargs", nasty_train, "--config.check_model=cnn", f"{CHECK}.width=3"),
        wrong("check_model_kwargs", nasty_train, f"{CHECK}.width=3"),
        # The file itself is of another network than it says; …
        *(
            wrong(field, binary, f"--config.{field}={{place}}/other.safetensors")
            for binary, field in (
                (train, "init_from"),
                (distill, "teacher"),
                (distill, "init_from"),
                (attack, "teacher"),
                (attack, "init_from"),
                (nasty_train, "adversary"),
                (nasty_train, "init_from"),
            )
        ),
        # … it is what it says, but no network for this data, …
        *(
            wrong(field, binary, f"--config.{field}={{place}}/three.safetensors")
            for binary, field in (
                (distill, "teacher"),
                (attack, "teacher"),
                (nasty_train, "adversary"),
            )
        ),
        # … or not the one that is to be trained.
        *(
            wrong("init_from", binary, *more, "--config.init_from={place}/wide.safetensors")
            for binary, more in (
                (train, []),
                (attack, []),
                (attack, SKEPTICAL),
                (nasty_train, []),
                (nasty_train, ["--config.train_only_head=True"]),
            )
        ),
    ],
)
def test_wrong_input_costs_one_line_and_leaves_no_workdir(
    place, tmp_path, capsys, field, binary, arguments
):
    given = [argument.format(place=place) for argument in arguments]
    config, workdir = f"--config={place}/{binary.__name__}.py", f"--workdir={tmp_path}/run"
    capsys.readouterr()
    code = cli.exit_code(
        lambda argv: cli.run_training(binary.train_and_evaluate, binary.Settings, argv),
        [config, workdir, *given],
    )
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {field}: got ")
    assert list(tmp_path.iterdir()) == []

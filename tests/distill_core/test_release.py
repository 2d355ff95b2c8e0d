"""A release holds the model and what has to be said of it, nothing else, and needs no project."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from distill_core import checkpoint, config, release, spec, train
from distill_core.data import tokenizers

ROOT = Path(__file__).parents[2]
SEED = 1592594996
IMAGES = np.random.default_rng(0).random((5, 8, 8, 1), np.float32)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """(a run's workdir, its released folder, the card)."""
    folder = tmp_path_factory.mktemp("release")
    settings = {
        "dataset": "digits",
        "model": "cnn",
        "model_kwargs": {"widths": (3,), "hidden": 4},
        "optimizer": "adam",
        "learning_rate": 0.0123456789,
        "batch_size": 24,
        "num_steps": 2,
        "seed": SEED,
    }
    train.train_and_evaluate(settings, folder / "run")
    return folder / "run", folder / "out", release.release(folder / "run", folder / "out")


def _run_elsewhere(code: str, cwd: Path):
    """Runs a program that cannot import this project."""
    blocked = (
        "import sys; sys.modules |= {'distill_core': None, 'nasty': None, 'swingdistill': None}\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", blocked + code],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert not done.returncode, done.stderr


def test_the_folder_holds_weights_program_and_card(released):
    _, out, card = released
    assert {p.name for p in out.iterdir()} == {"model.safetensors", "model.stablehlo", "card.json"}
    assert json.loads((out / "card.json").read_text()) == json.loads(json.dumps(card))
    assert card["method"] == "distill_core.train"
    assert card["network"]["model_kwargs"] == {"widths": [3], "hidden": 4}
    assert card["network"]["classes"] == [str(i) for i in range(10)]
    assert card["ledger"] == {"mechanisms": [], "ancestors": []}
    assert set(card["files"]) == {"model.safetensors", "model.stablehlo"}


def test_nothing_else_is_in_any_byte_of_it(released):
    run, out, _ = released
    path, _ = checkpoint.find(run)
    trained = checkpoint._orbax().load_checkpointables(path, {"train": None})["train"]
    key = np.asarray(trained["rng"])
    assert key[1] == SEED
    shown = {"dataset", "model", "model_kwargs", "optimizer"}  # words of the card and of HLO
    secrets = {
        "key": key.tobytes(),
        "seed": str(SEED).encode(),
        "seed, packed": np.uint32(SEED).tobytes(),
        "learning rate": b"0.0123456789",
        "learning rate, packed": np.float32(0.0123456789).tobytes(),
        "home": str(Path.home()).encode() + b"/",
        "project": str(ROOT).encode(),
        "workdir": str(run).encode(),
        "Python": str(Path(jax.__file__).parents[1]).encode(),
        "files": b".py",
        **{name: name.encode() for name in ("opt_state", "rng", "adam", "nu/", "mu/", "pending")},
        **{name: name.encode() for name in config.TRAINING.keys() - shown},
    }
    moments = {k: np.asarray(v) for k, v in trained.items() if "/mu/" in k or "/nu/" in k}
    assert len(moments) == 20
    secrets |= {name: moment.tobytes() for name, moment in moments.items() if moment.any()}
    for path in out.iterdir():
        content = path.read_bytes()
        assert not [name for name, secret in secrets.items() if secret in content], path.name
    # The search finds what is there: in the checkpoint, all of it is.
    everything = b"".join(p.read_bytes() for p in run.rglob("*") if p.is_file())
    assert secrets["seed"] in everything and secrets["learning rate"] in everything


def test_the_program_gives_the_same_logits_without_the_project(released, tmp_path):
    run, out, _ = released
    loaded = checkpoint.load_model(run)
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "logits.npy", np.asarray(loaded.apply(loaded.variables, IMAGES)))
    _run_elsewhere(
        f"""
import jax, jax.export, numpy as np
program = jax.export.deserialize(bytearray(open({str(out / "model.stablehlo")!r}, "rb").read()))
images = np.load("images.npy")
found = program.call(images)
np.testing.assert_allclose(found, np.load("logits.npy"), rtol=1e-5, atol=1e-5)
assert program.call(images[:2]).shape == (2, 10)  # any batch size
""",
        tmp_path,
    )


def test_the_weights_give_the_same_logits_in_numpy(released, tmp_path):
    """`model.safetensors` and the card alone, as somebody without JAX would use them."""
    run, out, _ = released
    loaded = checkpoint.load_model(run)
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "logits.npy", np.asarray(loaded.apply(loaded.variables, IMAGES)))
    _run_elsewhere(
        f"""
import json, numpy as np
from safetensors.numpy import load_file
w = load_file({str(out / "model.safetensors")!r})
card = json.load(open({str(out / "card.json")!r}))["network"]
def norm(x, i):
    mean, var = (w[f"batch_stats/BatchNorm_{{i}}/{{k}}"] for k in ("mean", "var"))
    scale, bias = (w[f"params/BatchNorm_{{i}}/{{k}}"] for k in ("scale", "bias"))
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias
x = (np.load("images.npy") - np.float32(card["mean"])) / np.float32(card["std"])
padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
kernel = w["params/Conv_0/kernel"]  # HWIO
x = sum(padded[:, i:i + 8, j:j + 8] @ kernel[i, j] for i in range(3) for j in range(3))
x = norm(x + w["params/Conv_0/bias"], 0)
x = np.maximum(x.reshape(5, 4, 2, 4, 2, 3).max((2, 4)), 0).reshape(5, -1)
x = np.maximum(norm(x @ w["params/Dense_0/kernel"] + w["params/Dense_0/bias"], 1), 0)
logits = x @ w["params/Dense_1/kernel"] + w["params/Dense_1/bias"]
np.testing.assert_allclose(logits, np.load("logits.npy"), rtol=1e-4, atol=1e-4)
import sys
assert "jax" not in sys.modules and "flax" not in sys.modules
""",
        tmp_path,
    )


@pytest.mark.parametrize("what", ["file", "folder", "filled"])
def test_an_out_that_is_not_empty_is_refused(released, tmp_path, what):
    out = tmp_path / "out"
    if what == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        if what == "filled":
            (out / "mine").touch()
    if what == "folder":
        release.release(released[0], out)
        return
    with pytest.raises(config.InputError, match=r"^out: got .*; must be a new or an empty"):
        release.release(released[0], out)
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "mine"][: 1 + (what == "filled")]


def test_a_release_of_nothing_leaves_nothing(tmp_path):
    with pytest.raises(config.InputError, match="checkpoint: got"):
        release.release(tmp_path / "run", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_binary_says_what_it_did(released, tmp_path, capsys):
    run, _, card = released
    release.main([f"--checkpoint={run}", f"--out={tmp_path / 'out'}"])
    assert capsys.readouterr().out == (
        f"released {card['parameters']:,} parameters to {tmp_path / 'out'}\n"
    )


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """(a checkpoint of a language model, its released folder, the card)."""
    folder = tmp_path_factory.mktemp("language")
    network = spec.text_spec(
        model="transformer",
        model_kwargs={"width": 16, "num_layers": 1, "num_heads": 2},
        tokenizer=tokenizers.train_words(["the cat sat on the mat ."], vocab_size=30),
        max_length=8,
    )
    rng = np.random.default_rng(0)
    shapes = spec.variable_shapes(network)["params"]
    params = jax.tree.map(lambda x: rng.normal(scale=0.3, size=x.shape).astype(x.dtype), shapes)
    metadata = {
        "method": "swingdistill.train",
        "parts": {"model": network},
        "config": {"dataset": "text:/home/ann/letters", "canary_seed": SEED, "alpha": 0.7},
        "data_note": "",
        "ledger": {"mechanisms": [], "ancestors": []},
    }
    parts = {"model": {"params": params, "model_state": {}}}
    state = {"step": np.int32(0)}
    checkpoint.save(folder / "run", 0, parts=parts, train=state, metadata=metadata)
    return folder / "run", folder / "out", release.release(folder / "run", folder / "out")


def test_a_language_models_folder_holds_its_tokenizer_and_no_settings(language_model):
    run, out, card = language_model
    names = {"model.safetensors", "model.stablehlo", "card.json", "tokenizer.json"}
    assert {path.name for path in out.iterdir()} == names
    assert set(card["files"]) == names - {"card.json"}
    assert json.loads((out / "card.json").read_text()) == json.loads(json.dumps(card))
    loaded = checkpoint.load_model(run)
    assert card["network"] == {
        "model": "transformer",
        "model_kwargs": {"width": 16, "num_layers": 1, "num_heads": 2},
        "num_classes": loaded.tokenizer.vocab_size,
        "max_length": 8,
    }
    assert "token ids" in card["inputs"] and "[B, L, V]" in card["outputs"]
    assert card["parameters"] == sum(x.size for x in jax.tree.leaves(loaded.variables))
    everything = b"".join(path.read_bytes() for path in out.iterdir())
    for secret in (b"letters", b"canary", str(SEED).encode(), b"alpha", str(ROOT).encode()):
        assert secret not in everything


def test_a_language_models_release_gives_its_logits_without_the_project(language_model, tmp_path):
    """Text in, logits out, by the libraries `tokenizers`, `safetensors` and `jax.export` alone."""
    run, out, _ = language_model
    loaded = checkpoint.load_model(run)
    text = "the cat sat on a mat"
    ids = [loaded.tokenizer.bos_id, *loaded.tokenizer.encode(text)]
    tokens = np.full((3, 8), loaded.tokenizer.pad_id, np.int32)
    tokens[:, : len(ids)] = ids
    tokens[1, 2] = loaded.tokenizer.eos_id
    np.save(tmp_path / "logits.npy", np.asarray(jax.jit(loaded.apply)(loaded.variables, tokens)))
    np.savez(tmp_path / "weights.npz", wte=loaded.variables["params"]["wte"])
    _run_elsewhere(
        f"""
import jax.export, numpy as np, tokenizers
from safetensors.numpy import load_file
tokenizer = tokenizers.Tokenizer.from_file({str(out / "tokenizer.json")!r})
bos, eos, pad = map(tokenizer.token_to_id, ("<bos>", "<eos>", "<pad>"))
ids = [bos, *tokenizer.encode({text!r}, add_special_tokens=False).ids]
tokens = np.full((3, 8), pad, np.int32)
tokens[:, :len(ids)] = ids
tokens[1, 2] = eos
program = jax.export.deserialize(bytearray(open({str(out / "model.stablehlo")!r}, "rb").read()))
logits = np.load("logits.npy")
np.testing.assert_allclose(program.call(tokens), logits, rtol=1e-5, atol=1e-5)
assert np.abs(logits[0, 2] - logits[1, 2]).max() > 0.1
assert program.call(tokens[:1]).shape == (1, 8, logits.shape[-1])  # any batch size
weights = load_file({str(out / "model.safetensors")!r})
np.testing.assert_array_equal(weights["params/wte"], np.load("weights.npz")["wte"])
""",
        tmp_path,
    )

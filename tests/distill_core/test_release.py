"""A release holds the model and what has to be said of it, nothing else, and needs no project."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from distill_core import checkpoint, config, release, train
from distill_core.data.text import tokenizers
from distill_core.models.network import Network, text_network
from distill_core.privacy import ledger as ledger_lib
from distill_core.runtime import cli

ROOT = Path(__file__).parents[2]
SEED = 1592594996
IMAGES = np.random.default_rng(0).random((5, 8, 8, 1), np.float32)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """(a run's workdir, its released folder, the card)."""
    folder = tmp_path_factory.mktemp("release")
    settings = {"dataset": "digits", "batch_size": 24, "num_steps": 2, "seed": SEED}
    settings |= {"model": "cnn", "model_kwargs": {"widths": (3,), "hidden": 4}}
    settings |= {"optimizer": "adam", "learning_rate": 0.0123456789}
    train.train_and_evaluate(settings, folder / "run")
    return folder / "run", folder / "out", release.release(folder / "run", folder / "out")


def _run_elsewhere(code: str, cwd: Path):
    """Runs a program that cannot import this project."""
    blocked = (
        "import sys; sys.modules |= "
        "dict.fromkeys(('distill_core', 'nasty', 'swingdistill', 'dpdfd'))\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-I", "-c", blocked + code]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_the_folder_holds_weights_program_and_card(released):
    _, out, card = released
    assert {p.name for p in out.iterdir()} == {"model.safetensors", "model.stablehlo", "card.json"}
    assert json.loads((out / "card.json").read_text()) == json.loads(json.dumps(card))
    assert set(card) == {"network", "inputs", "outputs", "parameters", "files", "snippets"}
    assert card["network"]["model_kwargs"] == {"widths": [3], "hidden": 4}
    assert card["network"]["classes"] == [str(i) for i in range(10)]
    assert set(card["files"]) == {"model.safetensors", "model.stablehlo"}


def test_nothing_else_is_in_any_byte_of_it(released):
    run, out, _ = released
    path, _ = checkpoint.find(run)
    trained = checkpoint.contents(path)["train"]
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
        **{name: name.encode() for name in config.fields(config.Training).keys() - shown},
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


def test_program_and_weights_give_the_same_logits_without_the_project(released, tmp_path):
    """`model.safetensors` and the card alone, too, as somebody without JAX would use them."""
    run, out, _ = released
    loaded = checkpoint.load_model(run)
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "logits.npy", np.asarray(loaded.apply(loaded.variables, IMAGES)))
    _run_elsewhere(
        f"""
import json, sys, numpy as np
from safetensors.numpy import load_file
w = load_file({str(out / "model.safetensors")!r})
card = json.load(open({str(out / "card.json")!r}))["network"]
def norm(x, i):
    mean, var = (w[f"batch_stats/BatchNorm_{{i}}/{{k}}"] for k in ("mean", "var"))
    scale, bias = (w[f"params/BatchNorm_{{i}}/{{k}}"] for k in ("scale", "bias"))
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias
images = np.load("images.npy")
x = (images - np.float32(card["mean"])) / np.float32(card["std"])
padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
kernel = w["params/Conv_0/kernel"]  # HWIO
x = sum(padded[:, i:i + 8, j:j + 8] @ kernel[i, j] for i in range(3) for j in range(3))
x = norm(x + w["params/Conv_0/bias"], 0)
x = np.maximum(x.reshape(5, 4, 2, 4, 2, 3).max((2, 4)), 0).reshape(5, -1)
x = np.maximum(norm(x @ w["params/Dense_0/kernel"] + w["params/Dense_0/bias"], 1), 0)
logits = x @ w["params/Dense_1/kernel"] + w["params/Dense_1/bias"]
np.testing.assert_allclose(logits, np.load("logits.npy"), rtol=1e-4, atol=1e-4)
assert "jax" not in sys.modules and "flax" not in sys.modules
import jax.export
program = jax.export.deserialize(bytearray(open({str(out / "model.stablehlo")!r}, "rb").read()))
found = program.call(images)
np.testing.assert_allclose(found, np.load("logits.npy"), rtol=1e-5, atol=1e-5)
assert program.call(images[:2]).shape == (2, 10)  # any batch size
""",
        tmp_path,
    )


def _by_snippets(out: Path, inputs, place: Path, *, kinds=("jax",), function="logits"):
    """What the card's own programs give, by kind, run in its folder without the project."""
    np.savez(place / "inputs.npz", *inputs)
    _run_elsewhere(
        f"""
import json, sys, numpy as np
snippets = json.load(open("card.json"))["snippets"]
assert set(snippets) == set({kinds})
for kind in {kinds}:
    space = {{}}
    exec(snippets[kind], space)
    found = space[{function!r}](*np.load({str(place / "inputs.npz")!r}).values())
    np.save({str(place)!r} + f"/{{kind}}.npy", found)
    assert ("jax" in sys.modules) == (kind == "jax")
""",
        out,
    )
    return {kind: np.load(place / f"{kind}.npy") for kind in kinds}


def test_the_cards_program_gives_the_logits(released, tmp_path):
    run, out, card = released
    loaded = checkpoint.load_model(run)
    expected = loaded.apply(loaded.variables, IMAGES)
    found = _by_snippets(out, [IMAGES], tmp_path)["jax"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert "features" not in card


@pytest.mark.parametrize(
    ("size", "channels", "kwargs"),
    [(8, 1, {"J": 1}), (12, 3, {"J": 1, "L": 4}), (16, 1, {"J": 2, "L": 4})],
    ids=["grey", "colour", "two scales"],
)
def test_scattering_features_are_computed_by_the_cards_program_with_kymatio(
    size, channels, kwargs, tmp_path
):
    pytest.importorskip("kymatio.scattering2d.frontend.numpy_frontend")
    network = Network(
        "scattering",
        10,
        {**kwargs, "components": 20},
        input_shape=(size, size, channels),
        mean=(0.4, 0.5, 0.3)[:channels],
        std=(0.2, 0.25, 0.3)[:channels],
        classes=tuple("0123456789"),
    )
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: rng.normal(0, x.shape[0] ** -0.5, x.shape).astype(np.float32), network.shapes()
    )
    _save(tmp_path / "run", {"model": (network, variables)}, ledger_lib.Ledger(), {})
    card = release.release(tmp_path / "run", tmp_path / "out")
    images = rng.random((5, size, size, channels), np.float32)
    images[0] = 0.5 + 0.01 * images[0]  # of so little contrast that epsilon counts
    logits = np.asarray(network.apply(variables, images))
    assert logits.std(0).min() > 0.1  # another image, other logits
    found = _by_snippets(tmp_path / "out", [images], tmp_path, kinds=("numpy", "jax"))
    np.testing.assert_allclose(found["numpy"], logits, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found["jax"], logits, rtol=1e-5, atol=1e-5)
    group = 5 if kwargs.get("L") else 3
    for words in (f"J={kwargs['J']} and L=", f"group of {group} neighbouring", "to no data"):
        assert words in card["features"]
    for name in ("mean", "projection"):
        assert f"constants/{name} [F" in card["features"]


def test_the_card_says_where_a_network_rounds_and_its_numpy_program_does_not(tmp_path):
    kwargs = {"J": 1, "components": 20}
    shape = {"input_shape": (8, 8, 1), "mean": (0.5,), "std": (0.5,)}
    one = Network("scattering", 10, kwargs, **shape)
    exact, rounded = (
        release._programs(dataclasses.replace(one, compute_dtype=dtype), "images")["features"]
        for dtype in ("float32", "bfloat16")
    )
    assert rounded.startswith(exact) and "parameters to bfloat16" in rounded[len(exact) :]


def test_an_out_that_is_not_empty_is_refused(released, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for out in ("file", "folder"):
        with pytest.raises(config.InputError, match="^out: "):
            release.release(released[0], tmp_path / out)
    assert len(list(tmp_path.rglob("*"))) == 3
    release.release(released[0], tmp_path / "folder" / "inner")  # empty
    with pytest.raises(config.InputError, match="^checkpoint: "):
        release.release(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """(a checkpoint of a language model, its released folder, the card)."""
    folder = tmp_path_factory.mktemp("language")
    network = text_network(
        tokenizers.train_words(["the cat sat on the mat ."], vocab_size=30),
        8,
        model="transformer",
        model_kwargs={"width": 16, "num_layers": 1, "num_heads": 2},
    )
    rng = np.random.default_rng(0)
    shapes = network.shapes()["params"]
    params = jax.tree.map(lambda x: rng.normal(scale=0.3, size=x.shape).astype(x.dtype), shapes)
    metadata = {
        "method": "swingdistill.train",
        "parts": {"model": network.to_json()},
        "config": {"dataset": "text:/home/ann/letters", "canary_seed": SEED, "alpha": 0.7},
        "data_note": "",
        "ledger": {"mechanisms": [], "ancestors": []},
    }
    parts = {"model": {"params": params, "model_state": {}}}
    state = {"step": np.int32(0)}
    checkpoint.save(folder / "run", 0, parts=parts, train=state, metadata=metadata).wait()
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


def _made_from(run, made_from, out):
    """A language model's run whose vocabulary has that origin."""
    loaded = checkpoint.load_model(run)
    loaded.tokenizer.made_from = made_from
    kwargs = loaded.network.model_kwargs
    network = text_network(loaded.tokenizer, 8, model="transformer", model_kwargs=kwargs)
    variables = {"params": loaded.variables["params"]}
    _save(out, {"model": (network, variables)}, ledger_lib.Ledger(), {})
    return out


def test_a_vocabulary_made_from_training_text_goes_out_by_a_flag_alone(
    language_model, tmp_path, capsys
):
    run = _made_from(language_model[0], tokenizers.TRAINING_TEXT, tmp_path / "run")
    arguments = [f"--checkpoint={run}", f"--out={tmp_path / 'out'}"]
    assert cli.exit_code(release.main, arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: checkpoint: got") and error.count("\n") == 1
    assert "--with_private_tokenizer" in error and not (tmp_path / "out").exists()
    assert cli.exit_code(release.main, [*arguments, "--with_private_tokenizer"]) == 0
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert "reveals words of that text" in card["vocabulary"]
    assert (tmp_path / "out" / "tokenizer.json").exists()
    run = _made_from(language_model[0], tokenizers.PUBLIC_TEXT, tmp_path / "public")
    card = release.release(run, tmp_path / "another")
    assert "declared public" in card["vocabulary"]


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
    found = _by_snippets(out, [tokens], tmp_path)["jax"]
    np.testing.assert_allclose(found, np.load(tmp_path / "logits.npy"), rtol=1e-5, atol=1e-5)
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


@pytest.fixture(scope="module", params=[False, True], ids=["unlabelled", "labelled"])
def generator(request, tmp_path_factory):
    """(a checkpoint with a generator, its released folder, the card, whether it takes labels)."""
    folder = tmp_path_factory.mktemp("generator")
    sizes = {"image_shape": [8, 8, 1], "latent_size": 3, "width": 4, "norm": "batch"}
    network = Network(
        "dpdfd.generator:Generator",
        10,
        {**sizes, "conditional": request.param},
        input_shape=(3,),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        outputs="images",
        labelled=request.param,
        classes=tuple("0123456789"),
    )
    rng = np.random.default_rng(0)
    shapes = network.shapes()
    variables = {
        name: jax.tree.map(lambda x, low=low: rng.uniform(low, 1, x.shape).astype(x.dtype), tree)
        for (name, tree), low in zip(shapes.items(), (-1.0, 0.5), strict=True)  # of positive spread
    }
    _save(folder / "run", {"generator": (network, variables)}, QUERY, {"delta": 1e-5})
    return folder / "run", folder / "out", release.release(folder / "run", folder / "out")


# One query's answer moves the noised vector by 2, one record all 64 of them.
QUERY = ledger_lib.Ledger().charge(
    ledger_lib.Entry(
        "gaussian", 10.0, 2.0, 50, "query", "replace one", batch_size=64, record_sensitivity=16.0
    )
)


def _save(run, networks, ledger, settings):
    metadata = {
        "method": "dpdfd.train",
        "parts": {name: network.to_json() for name, (network, _) in networks.items()},
        "config": settings,
        "data_note": "",
        "ledger": ledger.to_json(),
    }
    parts = {
        name: {"params": v["params"], "model_state": {k: v[k] for k in v if k != "params"}}
        for name, (_, v) in networks.items()
    }
    checkpoint.save(run, 0, parts=parts, train={"step": np.int32(0)}, metadata=metadata).wait()


def test_a_generators_card_says_what_goes_in_and_what_comes_out(generator):
    run, _, card = generator
    assert "[B, 3]" in card["inputs"] and card["outputs"].endswith("[B, H, W, C]")
    assert ("labels" in card["inputs"]) == checkpoint.load_model(run).network.labelled
    assert set(card["network"]) == {"model", "model_kwargs", "num_classes", "classes"}


def test_a_generators_release_draws_its_images_without_the_project(generator, tmp_path):
    run, out, _ = generator
    loaded = checkpoint.load_model(run)
    rng = np.random.default_rng(1)
    given = [rng.normal(size=(5, 3)).astype(np.float32)]
    if loaded.network.labelled:
        given.append(np.array([3, 1, 4, 1, 9], np.int32))
    images = loaded.network.module().apply(loaded.variables, *given)
    assert np.ptp(images, axis=0).max() > 0.01  # another vector, another image
    np.savez(tmp_path / "given.npz", *given)
    np.save(tmp_path / "images.npy", np.asarray(images))
    found = _by_snippets(out, given, tmp_path, function="images")["jax"]
    np.testing.assert_allclose(found, images, rtol=0, atol=1e-5)
    _run_elsewhere(
        f"""
import jax, jax.export, numpy as np
program = jax.export.deserialize(bytearray(open({str(out / "model.stablehlo")!r}, "rb").read()))
given = list(np.load("given.npz").values())
images = np.load("images.npy")
np.testing.assert_allclose(program.call(*given), images, rtol=0, atol=1e-5)
two = program.call(*(each[:2] for each in given))  # any batch size, every image for itself
np.testing.assert_allclose(two, images[:2], rtol=0, atol=1e-5)
""",
        tmp_path,
    )


def test_the_card_states_the_claim_with_all_that_it_needs(generator):
    _, _, card = generator
    assert card["ledger"] == QUERY.to_json()
    claim = card["privacy"]
    assert (claim["privacy_unit"], claim["adjacency"]) == ("query", "replace one")
    assert claim["delta"] == 1e-5
    assert claim["epsilon"] == ledger_lib.epsilon(QUERY, 1e-5)
    assert claim["record_epsilon"] > 8 * claim["epsilon"]  # eight times the sensitivity
    assert claim["assumptions"][0] == "Epsilon is about one query: it protects no training record."
    seeded = QUERY.expose(ledger_lib.SEED_GIVEN)
    found = release._privacy({"config": {"delta": 1e-5}, "ledger": seeded.to_json()}, None)
    assert found["epsilon"] is None and "noise's seed was given" in found["why"]


def test_the_card_says_how_noise_on_gradients_is_drawn_and_what_neighbours_are():
    entry = ledger_lib.Entry(
        "poisson_gaussian", 1.0, 1.0, 50, "record", ledger_lib.ZERO_OUT, 0.02, num_examples=900
    )
    metadata = {"config": {"delta": 1e-5}, "ledger": ledger_lib.Ledger().charge(entry).to_json()}
    found = release._privacy(metadata, None)
    assert (found["privacy_unit"], found["adjacency"]) == ("record", "zero-out")
    assert found["epsilon"] < found["replace_one_epsilon"]
    told = " ".join(found["assumptions"])
    said = ("replaced by an empty one", "float32", "counter-based generator", "64 secret bits")
    for words in (*said, "in each batch independently"):
        assert words in told
    bare = {"config": {}, "ledger": ledger_lib.Ledger().to_json(), "num_examples": 900}
    assert release._privacy(bare, 0.001)["epsilon"] is None
    for each in (metadata, bare):  # also where there is no claim
        with pytest.raises(config.InputError, match="^delta: got 0.01; must be below 1/N"):
            release._privacy(each, 0.01)
    of_teachers = ledger_lib.Entry(
        "gaussian", 1.0, 0.1, 50, "record", ledger_lib.REPLACE_AT_INDEX, num_examples=900
    )
    ledger = ledger_lib.Ledger().charge(of_teachers).to_json()
    told = " ".join(release._privacy({**metadata, "ledger": ledger}, None)["assumptions"])
    assert "follows from no label and no content" in told and "in each batch" not in told


@pytest.fixture(scope="module")
def full_batch(tmp_path_factory):
    """(a private run on scattering features by full batches, its released folder, the card)."""
    folder = tmp_path_factory.mktemp("full")
    settings = {"dataset": "digits", "batch_size": 1437, "num_steps": 3, "learning_rate": 0.5}
    settings |= {"model": "scattering", "model_kwargs": {"J": 1, "components": 20}}
    settings["dp"] = {"epsilon": 2.0, "delta": 1e-4, "norm": 0.5, "sampling": "full"}
    train.train_and_evaluate(settings, folder / "run")
    return folder / "run", folder / "out", release.release(folder / "run", folder / "out")


def test_the_card_of_full_batches_claims_nothing_by_sampling(full_batch):
    _, _, card = full_batch
    claim = card["privacy"]
    assert (claim["privacy_unit"], claim["adjacency"]) == ("record", "zero-out")
    assert 1.98 < claim["epsilon"] <= 2.0 and claim["delta"] == 1e-4
    assert 4 < claim["replace_one_epsilon"] < 5
    told = " ".join(claim["assumptions"])
    assert "every step took all records" in told
    assert "independently with" not in told and "probability" not in told
    (entry,) = card["ledger"]["mechanisms"]
    assert (entry["mechanism"], entry["count"], entry["batch_size"]) == ("gaussian", 3, 1437)


def test_the_card_speaks_of_sampled_and_of_full_batches_where_there_were_both():
    shared = {"batch_size": 900, "num_examples": 900}
    full = ledger_lib.Entry("gaussian", 1.0, 0.1, 3, "record", ledger_lib.ZERO_OUT, **shared)
    sampled = dataclasses.replace(
        full, mechanism="poisson_gaussian", sampling_rate=0.02, batch_size=18
    )
    bought = dataclasses.replace(full, batch_size=None)  # at once, in no batches
    expected = {(full,): {"full"}, (sampled,): {"sampled"}, (bought,): set()}
    expected |= {(sampled, full): {"full", "sampled"}, (full, bought): {"full"}}
    words = {"full": "every step took all records", "sampled": "in each batch independently"}
    for entries, kinds in expected.items():
        ledger = ledger_lib.Ledger(entries).to_json()
        found = release._privacy({"config": {"delta": 1e-5}, "ledger": ledger}, None)
        told = " ".join(found["assumptions"])
        assert {kind for kind, each in words.items() if each in told} == kinds


def test_another_delta_can_be_named(generator, tmp_path):
    run, _, card = generator
    release.main([f"--checkpoint={run}", f"--out={tmp_path / 'out'}", "--delta=0.001"])
    claim = json.loads((tmp_path / "out" / "card.json").read_text())["privacy"]
    assert claim["delta"] == 0.001 and claim["epsilon"] < card["privacy"]["epsilon"]
    with pytest.raises(config.InputError, match="delta: got 1.5; must be in"):
        release.release(run, tmp_path / "another", delta=1.5)
    assert not (tmp_path / "another").exists()


def test_no_network_lies_there_without_its_card(released, tmp_path, monkeypatch):
    write = checkpoint.write_atomically

    def full(path, content, **kwargs):
        if path.name == "card.json":
            raise OSError(28, "No space left on device", str(path))
        write(path, content, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomically", full)
        with pytest.raises(OSError, match="card.json"):
            release.release(released[0], tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    assert release.release(released[0], tmp_path / "out") == released[2]


def test_how_it_was_made_stays_with_the_owner(released, tmp_path):
    run, out = released[0], tmp_path / "out"
    card = release.release(run, out)
    place = run / "private" / "released_model_2.json"
    assert place.stat().st_mode & 0o777 == 0o600
    half, (_, metadata) = json.loads(place.read_text()), checkpoint.find(run)
    assert half["out"] == str(out) and half["card"] == card
    for name in ("method", "config", "ledger", "id"):
        assert half[name] == metadata[name]
    assert half["privacy"]["epsilon"] is None  # no claim, and why
    assert "saw private data and has no mechanism" in half["privacy"]["why"]


def test_a_release_is_not_lost_where_the_owners_half_cannot_be_written(released, tmp_path, capsys):
    shutil.copytree(released[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "private")
    (tmp_path / "run" / "private").write_text("a file in the way")
    card = release.release(tmp_path / "run", tmp_path / "out")
    assert card == released[2] and (tmp_path / "out" / "card.json").exists()
    assert "could not write" in capsys.readouterr().err

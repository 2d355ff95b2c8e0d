"""`--format=hf`: other libraries' files, and a model card of claim, results and command."""

import json

import numpy as np
import pytest
from safetensors import safe_open

from distill_core import checkpoint, config, release, train
from distill_core.data.text import tokenizers
from distill_core.models.network import text_network
from distill_core.privacy import ledger as ledger_lib

ENTRY = ledger_lib.Entry(
    "poisson_gaussian", 1.0, 1.0, 50, "record", ledger_lib.ZERO_OUT, 0.02, num_examples=900
)
GEMMA = {
    "num_heads": 2, "gemma": True, "qk_norm": True, "window": 3, "full_every": 2,
    "local_rope_theta": 100.0, "query_scalar": 5,
}  # fmt: skip
RESULTS = {
    "perplexity": 26.5,
    "public_perplexity": 20.25,
    "private_perplexity": None,
    "rules_recall": 0.75,
    "exposure": {"10": [1.0, 3.0]},
    "exposure_bounds": {"10": [[0.5, 1.5], [2.5, 3.5]]},
    "exposure_p": {"10": 0.25},
    "exposure_verdict": {"10": "no leak seen"},
    "exposure_among": 10_001,
    "exposure_candidates": 1_000_000,
    "not_measured": ["names"],
}


def _saved(folder, model, **kwargs):
    """The workdir of a private language model's run."""
    tokenizer = tokenizers.train_words(["the cat sat on the mat ."], vocab_size=30)
    network = text_network(tokenizer, 8, model=model, model_kwargs={"width": 16, **kwargs})
    rng, shapes = np.random.default_rng(0), network.shapes()["params"]
    params = {
        name: _map(lambda x: rng.normal(scale=0.3, size=x.shape).astype(x.dtype), leaf)
        for name, leaf in shapes.items()
    }
    settings = {"dataset": "text:/home/ann/letters", "seed": 12345, "canary_seed": 54321}
    settings |= {"alpha": 0.7, "scorers": ["rules", "divergence"], "delta": 1e-5}
    settings |= {"teacher": "runs/secret", "init_from": None, "log_every": 50}
    settings |= {"expressions": ["Ann Lee"], "spans": "patients.jsonl", "presidio": "clinic"}
    metadata = {
        "method": "swingdistill.train",
        "parts": {"model": network.to_json()},
        "config": settings,
        "data_note": "",
        "ledger": ledger_lib.Ledger().charge(ENTRY).to_json(),
    }
    parts = {"model": {"params": params, "model_state": {}}}
    checkpoint.save(folder, 0, parts=parts, train={"step": np.int32(0)}, metadata=metadata).wait()
    return folder


def _map(function, tree):
    if isinstance(tree, dict):
        return {name: _map(function, leaf) for name, leaf in tree.items()}
    return function(tree)


@pytest.mark.parametrize(
    ("model", "kwargs", "kind"),
    [
        ("transformer", {"num_layers": 1, "num_heads": 2}, "gpt2"),
        ("decoder", {"num_layers": 1, "num_heads": 2}, "llama"),
        ("decoder", {"num_heads": 2, "qkv_bias": True, "tied": False}, "qwen2"),
        ("decoder", {"num_heads": 2, "qk_norm": True, "window": 3, "full_layers": 1}, "qwen3"),
        ("decoder", {"num_heads": 2, "window": 3}, "mistral"),
        ("decoder", GEMMA, "gemma3_text"),
    ],
)
def test_our_own_networks_go_out_in_the_family_that_has_their_settings(
    tmp_path, model, kwargs, kind
):
    run = _saved(tmp_path / "run", model, **kwargs)
    release.release(run, tmp_path / "out", format="hf", with_private_tokenizer=True)
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["model_type"] == kind
    first, again = checkpoint.load_model(run), checkpoint.load_model(tmp_path / "out")
    tokens = np.arange(8, dtype=np.int32)[None] % first.network.num_classes
    logits = [np.asarray(each.apply(each.variables, tokens)) for each in (first, again)]
    np.testing.assert_array_equal(*logits)
    assert again.tokenizer.encode("the cat").tolist() == first.tokenizer.encode("the cat").tolist()


def test_the_model_card_has_the_claim_the_results_and_the_command_without_paths(tmp_path):
    run = _saved(tmp_path / "run", "decoder", num_heads=2)
    (tmp_path / "found.json").write_text(json.dumps(RESULTS))
    release.main(
        [
            f"--checkpoint={run}", f"--out={tmp_path / 'out'}", "--format=hf",
            f"--results={tmp_path / 'found.json'}", "--with_private_tokenizer",
        ]
    )  # fmt: skip
    text = (tmp_path / "out" / "README.md").read_text()
    front = text.split("---")[1]
    assert "library_name: transformers" in front and "pipeline_tag: text-generation" in front
    assert "| privacy_unit | record |" in text and f"| adjacency | {ledger_lib.ZERO_OUT} |" in text
    ledger = ledger_lib.Ledger().charge(ENTRY)
    assert f"| epsilon | {ledger_lib.epsilon(ledger, 1e-5):.4g} |" in text
    assert "| delta | 1e-05 |" in text and "was in each batch independently" in text
    assert "private spans: 0.750" in text
    assert "| 10 times | 2 | 3 | 2.50 to 3.50 | 0.25 | no leak seen |" in text
    assert "Not measured: names." in text and "private_perplexity" not in text
    assert "--config.alpha=0.7" in text and "divergence" in text
    for secret in (
        "letters",
        "12345",
        "54321",
        "runs/secret",
        "log_every",
        "Ann Lee",
        "patients",
        "clinic",
    ):
        assert secret not in text
    assert not [p for p in (tmp_path / "out").iterdir() if "stablehlo" in p.name]


def test_an_image_network_goes_out_as_pytorchs_state_dict_and_comes_back(tmp_path):
    settings = {"dataset": "digits", "batch_size": 24, "num_steps": 1, "optimizer": "adam"}
    settings |= {"model": "cnn", "model_kwargs": {"widths": (3,), "hidden": 4}}
    train.train_and_evaluate({**settings, "learning_rate": 0.01}, tmp_path / "run")
    release.release(tmp_path / "run", tmp_path / "out", format="hf")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"model.safetensors", "README.md"}
    with safe_open(tmp_path / "out" / "model.safetensors", framework="numpy") as tensors:
        assert {"conv1.weight", "bn1.running_mean", "fc2.bias"} <= set(tensors.keys())
    first = checkpoint.load_model(tmp_path / "run")
    again = checkpoint.load_model(tmp_path / "out" / "model.safetensors")
    images = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)
    logits = [np.asarray(each.apply(each.variables, images)) for each in (first, again)]
    np.testing.assert_array_equal(*logits)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: pytorch" in text
    assert "learning_rate" not in text, "how an image network was made stays with its owner"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "onnx"}, "format: got 'onnx'; must be one of jax, hf"),
        ({"results": "found.json"}, "results: .*belongs to format=hf"),
        ({"format": "hf", "results": "{at}/none.json"}, "results: .*cannot be read"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, changes, says):
    run = _saved(tmp_path / "run", "decoder", num_heads=2)
    given = {k: v.format(at=tmp_path) for k, v in changes.items()}
    with pytest.raises(config.InputError, match=says):
        release.release(run, tmp_path / "out", with_private_tokenizer=True, **given)
    assert not (tmp_path / "out").exists()


def test_a_network_that_no_library_has_is_refused(tmp_path):
    run = _saved(tmp_path / "run", "decoder", num_heads=2, qk_norm=True, qkv_bias=True)
    with pytest.raises(config.InputError, match="no family of Hugging Face's has"):
        release.release(run, tmp_path / "out", format="hf", with_private_tokenizer=True)

"""Hugging Face directories in and out: what is read, what is written, and what is refused."""

import importlib.util
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from distill_core import release
from distill_core.checkpoint import load_model
from distill_core.config import InputError
from distill_core.models.foreign import decoders, weights_file
from distill_core.step import NextTokens
from distill_core.training import inputs

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import directories

_HAS_TRANSFORMERS = importlib.util.find_spec("transformers") and importlib.util.find_spec("torch")
_TOKENS = np.random.default_rng(1).integers(0, 300, (2, 11))


def _write(folder, kind="llama", *, shards=1, dtype=np.float32, **changes):
    config = directories.config_of(kind, **changes)
    return directories.write(folder, config, directories.tensors_of(config, dtype), shards)


@pytest.mark.parametrize("kind", decoders.FAMILIES)
def test_what_is_read_and_written_again_is_bitwise_the_same(tmp_path, kind):
    folder = _write(tmp_path / "in", kind)
    release.release(folder, tmp_path / "out", format="hf")
    before, after = (load_file(p / "model.safetensors") for p in (folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    first, second = load_model(folder), load_model(tmp_path / "out")
    assert first.network == second.network
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["model_type"] == kind


def test_shards_are_read_as_one_file_is(tmp_path):
    whole, parts = _write(tmp_path / "one"), _write(tmp_path / "several", shards=3)
    first, second = (load_model(path) for path in (whole, parts))
    assert jax.tree.all(jax.tree.map(np.array_equal, first.variables, second.variables))


def _in_halves(shapes):
    """The first axis that two devices can share is split, of every leaf that has one."""
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))

    def where(leaf):
        even = [axis for axis, size in enumerate(leaf.shape) if size % 2 == 0][:1]
        spec = ["data" if axis in even else None for axis in range(leaf.ndim)]
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(where, shapes)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
def test_with_a_sharding_only_its_shards_are_read(tmp_path, monkeypatch, dtype):
    folder = _write(tmp_path, shards=2, dtype=dtype, tie_word_embeddings=False)
    wanted, read = load_model(folder), []
    read_slice = weights_file.Tensors.read_slice

    def spy(self, name, index):
        value = read_slice(self, name, index)
        read.append(value.size / np.prod(self.shape(name)))
        return value

    monkeypatch.setattr(weights_file.Tensors, "read", None)  # would read a tensor as a whole
    monkeypatch.setattr(weights_file.Tensors, "read_slice", spy)
    loaded = load_model(folder, sharding=_in_halves)
    assert loaded.network == wanted.network and set(read) == {0.5}
    places = _in_halves(wanted.variables)
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, loaded.variables, places))
    for found, leaf in zip(
        *map(jax.tree.leaves, (loaded.variables, wanted.variables)), strict=True
    ):
        assert found.dtype == leaf.dtype
        np.testing.assert_array_equal(np.asarray(found), leaf)
    assert inputs.of_model(loaded) == inputs.of_model(wanted)


def test_a_shard_that_is_not_finite_is_refused(tmp_path):
    folder = _write(tmp_path, shards=2)
    _tensor(_Q, lambda x: np.where(np.arange(18) == 17, np.nan, x).astype(np.float32))(folder)
    with pytest.raises(InputError, match=f"{_Q} holds NaN"):
        load_model(folder, sharding=_in_halves)


def test_weights_keep_the_dtype_of_the_file(tmp_path):
    folder = _write(tmp_path, dtype=ml_dtypes.bfloat16)
    loaded = load_model(folder)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.variables)} == {jnp.dtype(jnp.bfloat16)}
    rounded = jax.tree.map(lambda leaf: leaf.astype(np.float32), loaded.variables)
    found, wanted = (loaded.apply(each, _TOKENS) for each in (loaded.variables, rounded))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_special_tokens_have_any_names_and_come_from_any_of_the_files(tmp_path):
    loaded = load_model(_write(tmp_path))
    ids = (loaded.tokenizer.bos_id, loaded.tokenizer.eos_id, loaded.tokenizer.pad_id)
    assert ids == (0, 1, 1) and loaded.tokenizer.unk_id is None
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 0]}))
    loaded = load_model(tmp_path)
    assert loaded.tokenizer.bos_id == loaded.tokenizer.eos_id == 1


_CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
_NAMED = {"default": _CHAT, "tools": "{{ tools }}"}


def _add(folder, name, **settings):
    """Adds settings to a JSON file, which may exist."""
    file = folder / name
    old = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**old, **settings}))


def _template_in_settings(folder):
    _add(folder, "tokenizer_config.json", chat_template=_CHAT)


def _template_in_a_file(folder):
    _add(folder, "tokenizer_config.json", chat_template="of a file no more")
    (folder / "chat_template.jinja").write_text(_CHAT)


def _templates_in_settings(folder):
    several = [{"name": name, "template": text} for name, text in _NAMED.items()]
    _add(folder, "tokenizer_config.json", chat_template=several)


def _templates_in_files(folder):
    _template_in_a_file(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text(_NAMED["tools"])


_PLACES = {
    _template_in_settings: {"default": _CHAT},
    _template_in_a_file: {"default": _CHAT},
    _templates_in_settings: _NAMED,
    _templates_in_files: _NAMED,
}


@pytest.mark.parametrize("place", _PLACES)
def test_chat_templates_lie_in_any_of_the_files_and_go_out_again(tmp_path, place):
    folder = _write(tmp_path / "in")
    assert load_model(folder).tokenizer.chat_templates == {}
    place(folder)
    assert load_model(folder).tokenizer.chat_templates == _PLACES[place]
    release.release(folder, tmp_path / "out", format="hf")
    assert load_model(tmp_path / "out").tokenizer.chat_templates == _PLACES[place]


@pytest.mark.parametrize(
    ("generation", "config", "found"),
    [
        ({}, {}, ()),
        ({"eos_token_id": [1, 260]}, {"eos_token_id": 1}, (1, 260)),
        ({}, {"eos_token_id": [260, 1]}, (260, 1)),
        ({"eos_token_id": 260}, {"eos_token_id": 1}, (260,)),
        ({"eos_token_id": [1]}, {"eos_token_id": 260}, ()),
        ({"eos_token_id": None}, {"eos_token_id": [1, 100_000, "x", 261]}, (1, 261)),
    ],
)
def test_all_ends_of_text_are_read_and_go_out_again(tmp_path, generation, config, found):
    folder = _write(tmp_path / "in")
    _add(folder, "generation_config.json", **generation)
    _add(folder, "config.json", **config)
    assert load_model(folder).tokenizer.eos_ids == found
    assert load_model(folder).tokenizer.eos_id == 1, "lines of training text end as ever"
    release.release(folder, tmp_path / "out", format="hf")
    for name in ("generation_config.json", "config.json"):
        written = json.loads((tmp_path / "out" / name).read_text())["eos_token_id"]
        assert written == (list(found) if len(found) > 1 else (*found, 1)[0])
    assert load_model(tmp_path / "out").tokenizer.eos_ids == found


@pytest.mark.skipif(not _HAS_TRANSFORMERS, reason="needs torch and transformers")
@pytest.mark.parametrize("place", _PLACES)
def test_transformers_chats_and_ends_as_with_the_source(tmp_path, place):
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    folder = _write(tmp_path / "in")
    place(folder)
    _add(folder, "generation_config.json", eos_token_id=[1, 260])
    release.release(folder, tmp_path / "out", format="hf")
    said = [{"role": "user", "content": "blue lamp"}, {"role": "assistant", "content": "555"}]
    how: dict = {"add_generation_prompt": True, "tokenize": False}
    first, again = (AutoTokenizer.from_pretrained(path) for path in (folder, tmp_path / "out"))
    told = "<|begin|>[user] blue lamp<|end|>[assistant] 555<|end|>[assistant]"
    assert first.apply_chat_template(said, **how) == told
    assert again.apply_chat_template(said, **how) == told
    assert again.apply_chat_template(said) == first.apply_chat_template(said)
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [1, 260]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.eos_token_id == model.generation_config.eos_token_id == [1, 260]


def test_rows_of_the_embedding_beyond_the_tokens_are_in_no_softmax_and_no_loss(tmp_path):
    loaded = load_model(_write(tmp_path))
    network, params = loaded.network, loaded.variables["params"]
    assert (network.num_classes, network.num_tokens) == (310, 300)
    assert loaded.apply(loaded.variables, _TOKENS).shape == (2, 11, 310)
    assert network.hidden(loaded.variables, _TOKENS)[1].shape == (300, 18)
    batch = {"tokens": _TOKENS, "labels": _TOKENS, "segments": np.zeros_like(_TOKENS)}
    batch["weights"] = np.ones(_TOKENS.shape, np.float32)

    def loss(params):
        return NextTokens(network)(params, {}, {}, batch, None).values.sum()

    higher = params | {
        "embed_tokens": params["embed_tokens"] + 9.0 * (np.arange(310) >= 300)[:, None]
    }
    assert loss(higher) == loss(params)
    assert not np.any(jax.grad(loss)(params)["embed_tokens"][300:])


def test_lines_may_be_longer_than_those_of_the_training(tmp_path):
    loaded = load_model(_write(tmp_path))
    tokens = np.zeros((1, loaded.network.max_length + 5), np.int32)
    assert not loaded.network.is_bounded
    assert np.isfinite(loaded.apply(loaded.variables, tokens)).all()


def _without(name):
    return lambda folder: (folder / name).unlink()


def _config(**changes):
    def change(folder):
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def _tensor(name, value):
    def change(folder):
        index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        file = folder / index[name]
        tensors = load_file(file)
        tensors[name] = value(tensors[name])
        save_file(tensors, file)

    return change


def _index(folder):
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["model.layers.9.mlp"] = next(iter(index["weight_map"].values()))
    file.write_text(json.dumps(index))


def _head(folder):
    save_file({"lm_head.weight": np.ones((310, 18), np.float32)}, folder / "head.safetensors")
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["lm_head.weight"] = "head.safetensors"
    file.write_text(json.dumps(index))


def _truncated(folder):
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-40])


_Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without("config.json"), "has no config.json"),
        (_config(model_type="gemma2"), "model_type 'gemma2'; known are gpt2, llama"),
        (_config(attn_logit_softcapping=50.0), "attn_logit_softcapping 50.0; it is not understood"),
        (_config(num_local_experts=8), "num_local_experts 8; it is not understood"),
        (_config(query_pre_attn_scalar=9), "query_pre_attn_scalar 9; it is not understood"),
        (_config(attention_bias=True), "attention_bias True; False is needed"),
        (_config(hidden_act="gelu"), "hidden_act 'gelu'; 'silu' is needed"),
        (_config(rope_scaling={"type": "dynamic", "factor": 2.0}), "rope_type 'dynamic'; one of"),
        (_config(rope_scaling={"type": "linear"}), "linear needs factor"),
        (_config(rope_scaling={"type": "linear", "factor": 2, "wave": 1}), "linear has no such"),
        (_config(num_attention_heads=5, num_key_value_heads=2), "is needed"),
        (_config(rope_scaling={"type": ["x"], "factor": 2}), r"rope_type \['x'\]; one of"),
        (_config(rms_norm_eps=float("inf")), "rms_norm_eps inf; a positive number"),
        (_config(tie_word_embeddings="false"), "tie_word_embeddings 'false'; true or false"),
        (_config(rope_theta=10**400), "rope_theta .*; a number above 1"),
        (_config(vocab_size=10**18), "vocab_size 10{18}; a positive number"),
        (_head, "lm_head.weight differs from the embedding"),
        (_config(num_hidden_layers=0), "num_hidden_layers 0; a positive number"),
        (_config(hidden_size=None), "lacks hidden_size"),
        (_config(vocab_size="many"), "vocab_size 'many'; a positive number"),
        (_config(vocab_size=299), r"embed_tokens.weight is \[310, 18\]; \[299, 18\] is needed"),
        (_config(num_hidden_layers=3), "has no tensor model.layers.2.input_layernorm.weight"),
        (_config(num_hidden_layers=1), "tensor model.layers.1.* is not one of a llama's"),
        (_without("model-00002-of-00002.safetensors"), "model-00002-of-00002.safetensors must be"),
        (_truncated, "model-00002-of-00002.safetensors cannot be read"),
        (_index, "has tensor model.layers.9.mlp in .*, which does not hold it"),
        (_tensor(_Q, lambda x: x * np.nan), f"{_Q} holds NaN"),
        (_tensor(_Q, lambda x: x.astype(np.int32)), f"{_Q} is I32; must be F32, F16, BF16"),
        (_tensor(_Q, lambda x: x[:3]), rf"{_Q} is \[3, 18\]; \[24, 18\] is needed"),
        (_without("model.safetensors.index.json"), "has 2 .safetensors files; one is needed"),
        (lambda at: directories.byte_pairs(311).save(f"{at}/tokenizer.json"), "has 311 tokens"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json is refused"),
        (lambda at: _add(at, "tokenizer_config.json", chat_template=[{"name": "a"}]),
         "chat_template {'a': None}; a template, or several by name, is needed"),
        (lambda at: (at / "chat_template.jinja").write_bytes(b"\xff"), "template cannot be read"),
    ],
)  # fmt: skip
def test_a_directory_that_does_not_fit_is_refused_in_one_line(tmp_path, change, says):
    folder = _write(tmp_path, shards=2)
    change(folder)
    with pytest.raises(InputError, match=says) as caught:
        load_model(folder)
    assert caught.value.field == "checkpoint" and "\n" not in str(caught.value)


def test_a_network_of_no_family_is_not_written_for_transformers(tmp_path):
    loaded = load_model(_write(tmp_path / "in"))
    sizes = decoders.sizes(loaded.network.module()) | {"qk_norm": True, "qkv_bias": True}
    with pytest.raises(Exception, match="no family"):
        decoders.config(sizes, 10, 10)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0; it is not understood"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention True; it is not"),
        ({"hidden_activation": "silu"}, "hidden_activation 'silu'; 'gelu_pytorch_tanh' is needed"),
        ({"sliding_window": None}, "lacks sliding_window; a positive number"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar 0; a positive number"),
        ({"head_dim": None}, "lacks head_dim"),
        ({"layer_types": ["full_attention", "sliding_attention"] * 2}, "layer_types .* is needed"),
        ({"layer_types": None, "sliding_window_pattern": 2.5}, "sliding_window_pattern 2.5; a"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters .*full_attention and sliding"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
         "rope_parameters.sliding_attention .*'linear'.*; rope_type default is needed"),
    ],
)  # fmt: skip
def test_settings_of_gemma_that_are_not_understood_are_refused(changes, says):
    with pytest.raises(weights_file.RefusedError, match=says):
        decoders.settings(directories.config_of("gemma3_text", **changes))


@pytest.mark.parametrize(
    "change",
    [
        {"full_every": None},
        {"window": None},
        {"qk_norm": False},
        {"qkv_bias": True},
        {"gemma": False},
    ],
)
def test_some_of_gemmas_settings_are_not_written_for_transformers(change):
    sizes = decoders.settings(directories.config_of("gemma3_text"))
    sizes |= {"qkv_bias": False, "full_layers": 0, "rope_scaling": None}
    assert decoders.config(sizes, 10, 10)["model_type"] == "gemma3_text"
    with pytest.raises(weights_file.RefusedError, match="some of Gemma's settings"):
        decoders.config(sizes | change, 10, 10)


def test_added_tokens_without_an_embedding_are_left_out(tmp_path):
    folder = _write(tmp_path)
    directories.byte_pairs(310, added=("<image>",)).save(str(folder / "tokenizer.json"))
    loaded = load_model(folder)
    assert loaded.tokenizer.vocab_size == loaded.network.num_tokens == 310
    assert loaded.tokenizer.encode("<image>").max() < 310


_SCALED = {
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 4.0},
    "linear": {"factor": 4.0},
}


@pytest.mark.skipif(not _HAS_TRANSFORMERS, reason="needs torch and transformers")
@pytest.mark.parametrize(
    ("kind", "changes", "shards"),
    [
        ("llama", {}, 2),
        ("llama", {"num_key_value_heads": 6, "tie_word_embeddings": False}, 1),
        *[
            ("llama", {"rope_parameters": {
                "rope_type": name, "rope_theta": 9000.0, **scaled,
                **({} if name == "linear" else {"original_max_position_embeddings": 16}),
            }}, 1)
            for name, scaled in _SCALED.items()
        ],
        ("mistral", {}, 1),
        ("mistral", {"sliding_window": None, "head_dim": None, "hidden_size": 24}, 1),
        ("qwen2", {"head_dim": None, "hidden_size": 24}, 1),
        ("qwen2", {"head_dim": None, "hidden_size": 24, "use_sliding_window": True,
                   "sliding_window": 3, "max_window_layers": 1}, 1),
        ("qwen3", {}, 3),
        ("gemma3_text", {}, 2),
        ("gemma3_text", {  # as of older files
            "layer_types": None, "sliding_window_pattern": 3, "rope_local_base_freq": None,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "query_pre_attn_scalar": 4,
            "tie_word_embeddings": False,
        }, 1),
        ("gemma3_text", {  # as of newer ones
            "rope_theta": None, "rope_local_base_freq": None, "num_hidden_layers": 2,
            "layer_types": ["sliding_attention"] * 2, "_sliding_window_pattern": 6,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 2e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        }, 1),
    ],
)  # fmt: skip
def test_logits_equal_those_of_transformers_in_and_out(tmp_path, kind, changes, shards):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = _write(tmp_path / "in", kind, shards=shards, **changes)
    loaded = load_model(folder)
    found = np.asarray(loaded.apply(loaded.variables, _TOKENS))
    release.release(folder, tmp_path / "out", format="hf")
    for path in (folder, tmp_path / "out"):
        theirs = AutoModelForCausalLM.from_pretrained(path).eval()
        with torch.no_grad():
            wanted = theirs(torch.tensor(_TOKENS)).logits.numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
        tokenizer = AutoTokenizer.from_pretrained(path)
        line = directories.LINES[3]
        assert tokenizer(line)["input_ids"] == loaded.tokenizer.encode(line).tolist()
        assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin|>", "<|end|>")

"""GPT-2's weights out of a file: equal logits to Hugging Face's, and the files that are refused."""

import json
import types
import warnings
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from distill_core import checkpoint
from distill_core.config import InputError
from distill_core.data.text.tokenizers import Tokenizer
from distill_core.models import checks
from distill_core.models.gpt2 import load_gpt2

_VOCAB, _LENGTH, _WIDTH, _LAYERS = 300, 16, 128, 2
_SIZES = {"num_layers": _LAYERS, "num_heads": 2, "width": _WIDTH}
_TEXT = ["the cat sat on the mat", "call 555 now, the cat said", "naïve cats sat, too, on 555 mats"]


def _tensors(width=_WIDTH):
    """All of a GPT-2's, under the published names."""
    rng = np.random.default_rng(0)
    shapes = {"wte.weight": (_VOCAB, width), "wpe.weight": (_LENGTH, width)}
    for i in range(_LAYERS):
        for name, shape in [
            ("ln_1", (width,)),
            ("attn.c_attn", (width, 3 * width)),
            ("attn.c_proj", (width, width)),
            ("ln_2", (width,)),
            ("mlp.c_fc", (width, 4 * width)),
            ("mlp.c_proj", (4 * width, width)),
        ]:
            shapes[f"h.{i}.{name}.weight"] = shape
            shapes[f"h.{i}.{name}.bias"] = shape[-1:]
    shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    return {k: rng.normal(scale=0.1, size=s).astype(np.float32) for k, s in shapes.items()}


def _write(folder, tensors, **config):
    save_file(tensors, folder / "model.safetensors")
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder / "model.safetensors"


def _byte_pairs(vocab_size=_VOCAB):
    """A tokenizer as GPT-2's: byte pairs and `<|endoftext|>`."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(_TEXT, trainer)
    inner.enable_truncation(max_length=3)
    return inner


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A small random GPT-2 of transformers, saved by it; its logits [2, 16, 300] of `tokens`."""
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        sizes = {"n_positions": _LENGTH, "n_embd": 32, "n_layer": 3, "n_head": 4}
        config = transformers.GPT2Config(vocab_size=_VOCAB, bos_token_id=0, eos_token_id=0, **sizes)
        model = transformers.GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # so that everything counts in the logits
                parameter.add_(0.2 * torch.randn_like(parameter))
            folder = tmp_path_factory.mktemp("gpt2")
            model.save_pretrained(folder, safe_serialization=True)
            tokens = np.random.default_rng(0).integers(0, _VOCAB, (2, _LENGTH))
            logits = model(torch.asarray(tokens)).logits.numpy()
    return types.SimpleNamespace(folder=folder, tokens=tokens, logits=logits)


def test_equal_logits_to_transformers(theirs):
    network, variables = load_gpt2(theirs.folder / "model.safetensors")
    assert network.model_kwargs == {"num_layers": 3, "num_heads": 4, "width": 32}
    assert theirs.logits.std() > 1
    ours = jax.jit(network.apply)(variables, theirs.tokens)
    np.testing.assert_allclose(ours, theirs.logits, atol=1e-4)


@pytest.mark.parametrize(("dtype", "atol"), [(np.float16, 2e-2), (ml_dtypes.bfloat16, 2e-1)])
def test_half_precision_becomes_float32(theirs, tmp_path, dtype, atol):
    tensors = load_file(theirs.folder / "model.safetensors")
    _write(tmp_path, {k: v.astype(dtype) for k, v in tensors.items()}, n_head=4)
    network, variables = load_gpt2(tmp_path / "model.safetensors")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    ours = jax.jit(network.apply)(variables, theirs.tokens)
    np.testing.assert_allclose(ours, theirs.logits, atol=atol)


def test_the_parameters_are_the_transformers(tmp_path):
    network, variables = load_gpt2(str(_write(tmp_path, _tensors())))
    assert network.model_kwargs == _SIZES  # heads 64 wide, without config.json
    assert (network.num_classes, network.max_length, network.tokenizer) == (_VOCAB, _LENGTH, None)
    assert network.load_tokenizer() is None
    wanted = network.shapes()
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), wanted
    )
    checks.check(network)


def test_every_form_of_the_names_gives_the_same(tmp_path):
    plain = _tensors()
    _, wanted = load_gpt2(_write(tmp_path, plain))
    buffers = {
        "h.0.attn.bias": np.ones((1, 1, _LENGTH, _LENGTH), np.uint8),
        "h.1.attn.masked_bias": np.full((), -1e4, np.float32),
    }
    head = {"lm_head.weight": plain["wte.weight"].copy()}
    prefixed = {f"transformer.{k}": v for k, v in (plain | buffers).items()}
    for tensors in (plain | buffers, plain | head, prefixed | head):
        _, variables = load_gpt2(_write(tmp_path, tensors))
        jax.tree.map(np.testing.assert_array_equal, variables, wanted)


def test_load_model_gives_all_of_it(tmp_path):
    path = _write(tmp_path, _tensors(), n_head=4, model_type="gpt2")
    (tmp_path / "tokenizer.json").write_text(_byte_pairs(290).to_str())
    loaded = checkpoint.load_model(path)
    tokenizer = loaded.tokenizer
    assert tokenizer.vocab_size == 290  # the embeddings are for more
    assert loaded.network.model_kwargs == {**_SIZES, "num_heads": 4}
    ids = tokenizer.encode("the naïve cat")
    assert len(ids) > 3  # the truncation in tokenizer.json does not count
    assert tokenizer.decode(ids) == "the naïve cat"
    logits = jax.jit(loaded.apply)(loaded.variables, ids[None])
    assert logits.shape == (1, len(ids), _VOCAB)
    metadata = loaded.metadata
    assert metadata.pop("id") == "a file of weights"
    json.dumps(metadata)
    assert metadata == {
        "method": "gpt2",
        "parts": {"model": loaded.network.to_json()},
        "config": {},
        "ledger": {"mechanisms": [], "ancestors": []},
        "data_note": "",
        "step": 0,
    }


@pytest.mark.parametrize("wrong", [{"part": "model"}, {"step": 0}])
def test_a_file_has_no_parts_and_no_steps(tmp_path, wrong):
    path = _write(tmp_path, _tensors())
    with pytest.raises(InputError, match=f"{next(iter(wrong))}: got .* leave it out"):
        checkpoint.load_model(path, **wrong)


def _refusal(path):
    with pytest.raises(InputError) as error:
        load_gpt2(path, field="teacher")
    message = str(error.value)
    assert message.startswith(f"teacher: got {str(path)!r}; ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wte.weight": None}, "has no tensor wte.weight, which GPT-2 has"),
        ({"h.0.ln_2.bias": None}, "has no tensor h.0.ln_2.bias, which"),
        ({"h.3.ln_1.bias": np.ones(2)}, "has no tensor h.2.ln_1.weight"),
        ({"h.99999999999.x": np.ones(2)}, "has no tensor h.2.ln_1.weight"),
        ({"wpe.weight": np.ones((4, 5), np.float32)}, "wpe.weight is [4, 5]; [4, 128] is needed"),
        ({"wte.weight": np.ones(5, np.float32)}, "wte.weight is [5]; two dimensions"),
        (
            {"h.1.attn.c_attn.weight": np.ones((3 * _WIDTH, _WIDTH), np.float32)},
            "h.1.attn.c_attn.weight is [384, 128]; [128, 384] is needed",
        ),
        ({"ln_f.bias": np.ones(_WIDTH, np.int8)}, "ln_f.bias is I8; must be F32, F16, BF16"),
        ({"score.weight": np.ones(2)}, "tensor score.weight is not one of GPT-2's"),
        ({"h.0.attn.rotary": np.ones(2)}, "tensor h.0.attn.rotary is not one of GPT-2's"),
        (
            {"lm_head.weight": np.ones((_VOCAB, _WIDTH), np.float32)},
            "tensor lm_head.weight differs from wte.weight; they must be tied",
        ),
        ({"lm_head.weight": np.ones((1, _WIDTH), np.float32)}, "lm_head.weight differs from"),
    ],
)
def test_another_architecture_is_refused_by_its_first_tensor(tmp_path, changes, message):
    tensors = {k: v for k, v in (_tensors() | changes).items() if v is not None}
    assert message in _refusal(_write(tmp_path, tensors))


def test_two_sets_of_names_are_refused(tmp_path):
    plain = _tensors()
    both = plain | {f"transformer.{k}": v.copy() for k, v in plain.items()}
    assert "tensor h.0.attn.c_attn.bias is not one" in _refusal(_write(tmp_path, both))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation_function": "relu"}, "activation_function 'relu'; 'gelu_new' is needed"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon 1e-06; 1e-05 is needed"),
        ({"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx True; False is needed"),
        ({"scale_attn_weights": False}, "scale_attn_weights False; True is needed"),
        ({"n_head": 3}, "n_head 3; a divisor of the width, 128, is needed"),
        ({"n_head": "2"}, "n_head '2'; a divisor"),
        ({"n_head": 0}, "n_head 0; a divisor"),
    ],
)
def test_settings_that_are_not_gpt2s_are_refused(tmp_path, config, message):
    assert message in _refusal(_write(tmp_path, _tensors(), **config))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "config.json beside it cannot be read"), ("[1]", "must hold names and values")],
)
def test_a_config_that_is_none_is_refused(tmp_path, text, message):
    path = _write(tmp_path, _tensors())
    (tmp_path / "config.json").write_text(text)
    assert message in _refusal(path)


def test_a_width_of_unknown_heads_is_refused(tmp_path):
    message = "config.json with n_head must lie beside it: 48 is no multiple of 64"
    assert message in _refusal(_write(tmp_path, _tensors(width=48)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "tokenizer.json beside it is refused (tokenizer: got '{}'; cannot be read"),
        (_byte_pairs(290).to_str().replace("endoftext", "end"), "got '<pad>'; must be a token"),
    ],
    ids=["none", "another"],
)
def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path, text, message):
    path = _write(tmp_path, _tensors())
    (tmp_path / "tokenizer.json").write_text(text)
    assert message in _refusal(path)


def test_a_tokenizer_of_more_tokens_than_embeddings_is_refused(tmp_path):
    tensors = _tensors()
    path = _write(tmp_path, tensors | {"wte.weight": tensors["wte.weight"][:280].copy()})
    (tmp_path / "tokenizer.json").write_text(_byte_pairs(290).to_str())
    assert "has 290 tokens; there are embeddings for 280" in _refusal(path)


@pytest.mark.parametrize("content", [b"", b"no such thing at all", None])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    path = _write(tmp_path, _tensors())
    content = path.read_bytes()[:-100] if content is None else content
    path.write_bytes(content)
    assert "cannot be read as a .safetensors file (" in _refusal(path)


def test_a_missing_file_is_refused(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        assert "must be an existing local .safetensors file" in _refusal(path)
    with pytest.raises(InputError, match="checkpoint: got .* must be an existing local"):
        checkpoint.load_model(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match=r"checkpoint: got 'gs://.*'; must be an existing local"):
        checkpoint.load_model("gs://bucket/model.safetensors")


def test_gpt2s_tokenizer_has_one_special_token():
    tokenizer = Tokenizer.from_json(_byte_pairs().to_str())
    special: Any = tokenizer.eos_id
    assert {tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id} == {special}
    assert tokenizer.encode("<|endoftext|>").tolist() == [special]
    text = "the naïve cat,  said <pad> <unk>"
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert special not in ids
    assert tokenizer.decode([special, *ids.tolist(), special]) == text
    for start, end in offsets:
        assert text[start:end] == text[start:end].strip()
    assert Tokenizer.from_json(tokenizer.to_json()).to_json() == tokenizer.to_json()
    # A token for padding that somebody added is one more token.
    inner = _byte_pairs()
    inner.add_special_tokens(["<pad>"])
    padded = Tokenizer(inner)
    assert (padded.pad_id, padded.vocab_size) == (special, tokenizer.vocab_size + 1)


def test_a_tensor_that_holds_no_numbers_is_refused_by_name(theirs, tmp_path):
    tensors = load_file(theirs.folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("h.0.mlp.c_fc.weight"))
    tensors[name][0, 0] = np.nan
    assert f"tensor {name} holds NaN or infinity" in _refusal(_write(tmp_path, tensors))

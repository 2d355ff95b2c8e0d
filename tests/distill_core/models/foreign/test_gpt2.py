"""GPT-2's weights out of a file: equal logits to Hugging Face's, and the files that are refused."""

import json
import types
import warnings
from typing import Any

import chex
import jax
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file as load_tensors
from safetensors.numpy import save_file

from distill_core import checkpoint
from distill_core.config import InputError
from distill_core.data.text.tokenizers import Tokenizer
from distill_core.models import checks
from distill_core.models.foreign.huggingface import load_file

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
    network, variables = load_file(theirs.folder / "model.safetensors")
    assert network.model_kwargs == {"num_layers": 3, "num_heads": 4, "width": 32}
    assert theirs.logits.std() > 1
    ours = jax.jit(network.apply)(variables, theirs.tokens)
    np.testing.assert_allclose(ours, theirs.logits, atol=1e-4)


@pytest.mark.parametrize(("dtype", "atol"), [(np.float16, 2e-2), (ml_dtypes.bfloat16, 2e-1)])
def test_half_precision_stays_as_it_is_stored(theirs, tmp_path, dtype, atol):
    tensors = load_tensors(theirs.folder / "model.safetensors")
    _write(tmp_path, {k: v.astype(dtype) for k, v in tensors.items()}, n_head=4)
    network, variables = load_file(tmp_path / "model.safetensors")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(dtype)}
    ours = jax.jit(network.apply)(variables, theirs.tokens)
    np.testing.assert_allclose(ours, theirs.logits, atol=atol)


def test_the_parameters_are_the_transformers(tmp_path):
    network, variables = load_file(str(_write(tmp_path, _tensors())))
    assert network.model_kwargs == _SIZES  # heads 64 wide, without config.json
    assert (network.num_classes, network.max_length, network.tokenizer) == (_VOCAB, _LENGTH, None)
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, network.shapes())
    checks.check(network)


def test_every_form_of_the_names_gives_the_same(tmp_path):
    plain = _tensors()
    _, wanted = load_file(_write(tmp_path, plain))
    buffers = {
        "h.0.attn.bias": np.ones((1, 1, _LENGTH, _LENGTH), np.uint8),
        "h.1.attn.masked_bias": np.full((), -1e4, np.float32),
    }
    head = {"lm_head.weight": plain["wte.weight"].copy()}
    prefixed = {f"transformer.{k}": v for k, v in (plain | buffers).items()}
    for tensors in (plain | buffers, plain | head, prefixed | head):
        _, variables = load_file(_write(tmp_path, tensors))
        chex.assert_trees_all_equal(variables, wanted)
    _, placed = load_file(
        tmp_path / "model.safetensors", jax.sharding.SingleDeviceSharding(jax.devices()[1])
    )
    chex.assert_trees_all_equal(placed, wanted)
    assert {leaf.device for leaf in jax.tree.leaves(placed)} == {jax.devices()[1]}


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
    json.dumps(loaded.metadata)
    assert loaded.metadata["method"] == "hugging face"
    assert loaded.metadata["ledger"] == {"mechanisms": [], "ancestors": []}
    for field in ("part", "step"):
        with pytest.raises(InputError, match=f"^{field}: got .* leave it out"):
            checkpoint.load_model(path, **{field: 0})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"wte.weight": None}, "has no tensor wte.weight"),
        ({"h.0.ln_2.bias": None}, "has no tensor h.0.ln_2.bias"),
        ({"h.3.ln_1.bias": np.ones(2)}, "has no tensor h.2.ln_1.weight"),
        ({"h.99999999999.x": np.ones(2)}, "has no tensor h.2.ln_1.weight"),
        ({"wpe.weight": np.ones((4, 5), np.float32)}, "wpe.weight is .4, 5.; .4, 128. "),
        ({"wte.weight": np.ones(5, np.float32)}, "wte.weight is .5."),
        (
            {"h.1.attn.c_attn.weight": np.ones((3 * _WIDTH, _WIDTH), np.float32)},
            "h.1.attn.c_attn.weight is .384, 128.; .128, 384. ",
        ),
        ({"ln_f.bias": np.ones(_WIDTH, np.int8)}, "ln_f.bias is I8"),
        ({"ln_f.bias": np.full(_WIDTH, np.nan, np.float32)}, "ln_f.bias holds NaN"),
        ({"score.weight": np.ones(2)}, "score.weight is not one of GPT-2's"),
        ({"h.0.attn.rotary": np.ones(2)}, "h.0.attn.rotary is not one of GPT-2's"),
        ({"lm_head.weight": np.ones((_VOCAB, _WIDTH), np.float32)}, "lm_head.weight differs"),
        ({"lm_head.weight": np.ones((1, _WIDTH), np.float32)}, "lm_head.weight differs"),
        # Two sets of names.
        ({f"transformer.{k}": v for k, v in _tensors().items()}, "h.0.attn.c_attn.bias is not"),
    ],
)
def test_another_architecture_is_refused_by_its_first_tensor(tmp_path, changes, named):
    tensors = {k: v for k, v in (_tensors() | changes).items() if v is not None}
    path = _write(tmp_path, tensors)
    with pytest.raises(InputError, match=f"^checkpoint: got '{path}'; .*{named}"):
        load_file(path)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"activation_function": "relu"}, "'relu'; 'gelu_new' "),
        ({"layer_norm_epsilon": 1e-6}, "1e-06; 1e-05 "),
        ({"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx True"),
        ({"scale_attn_weights": False}, "scale_attn_weights False"),
        ({"softcap": 3}, "softcap 3; it is not understood"),
        ({"n_layer": 1}, "n_layer 1; the tensors 2"),
        ({"add_cross_attention": True}, "add_cross_attention True"),
        *[({"n_head": heads}, f"n_head {heads!r}; .*128") for heads in (3, "2", 0)],
    ],
)
def test_settings_that_are_not_gpt2s_are_refused(tmp_path, config, named):
    path = _write(tmp_path, _tensors(), **config)
    with pytest.raises(InputError, match=f"^checkpoint: .*{named}"):
        load_file(path)


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        *[("config.json", "{", "config.json"), ("config.json", "[1]", "names and values")],
        ("tokenizer.json", "{}", "tokenizer.json .*cannot be read"),
        ("tokenizer.json", _byte_pairs(290).to_str().replace("endoftext", "end"), "'<pad>'"),
        ("tokenizer.json", _byte_pairs(290).to_str(), "290 tokens; .*280"),
        ("model.safetensors", "", "cannot be read"),
        ("model.safetensors", "no such thing at all", "cannot be read"),
        ("model.safetensors", None, "cannot be read"),
        ("config.json", None, "n_head .*48 is no multiple of 64"),
    ],
)
def test_files_that_are_none_or_do_not_fit_are_refused(tmp_path, file, content, named):
    tensors = _tensors(width=48 if content is None and file == "config.json" else _WIDTH)
    path = _write(tmp_path, {**tensors, "wte.weight": tensors["wte.weight"][:280].copy()})
    if content is not None:
        (tmp_path / file).write_text(content)
    elif file == path.name:
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=f"^checkpoint: .*{named}"):
        load_file(path)


@pytest.mark.parametrize("name", ["none.safetensors", "gs://bucket/model.safetensors"])
def test_a_missing_file_is_refused(tmp_path, name):
    path = name if name.startswith("gs:") else tmp_path / name
    with pytest.raises(InputError, match="^checkpoint: .*existing local"):
        checkpoint.load_model(path)


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

"""Writes what may be published of a run: the model and a card, and nothing else.

    python -m distill_core.release --checkpoint runs/nasty --out runs/released

The release contains no random key, seed, optimiser state, data order or path. It does not say what
the model was made from or which data it was trained on. It contains no training setting either,
except in the model card of a language model (see below). That information is for the owner alone,
in `<workdir>/private/released_PART_STEP.json`. The cards of a defended and of a plain model look
the same. If the ledger supports a privacy claim, the card states it with its mechanisms.

The release loads without this project. `model.safetensors` holds the variables under names like
`params/Dense_0/kernel`. `model.stablehlo` is the whole network as a program (`jax.export`), from
float32 images in [0, 1], `[B, H, W, C]`, or int32 token ids `[B, L]`, to logits; a generator's
program maps latent vectors to images. The `tokenizers` library reads a language model's
`tokenizer.json`.

`--format=hf` writes files for other libraries instead: a language model of GPT-2's, Llama's,
Mistral's, Qwen's or Gemma 3's architecture as a directory that `transformers` loads
(`AutoModelForCausalLM`, `AutoTokenizer`), or an image network as PyTorch's state dict in
`model.safetensors`. It also writes README.md, a model card with the privacy claim and what
`swingdistill.evaluate --out` measured (`--results=FILE`). For a language model this card shows the
command that trained it: only numbers and choices, no path, seed or expression.

The card's `snippets` are programs to be run in the folder: "jax" defines a function that runs
`model.stablehlo`. If a network's module has a method `describe(input_shape, mean, std)`, the card
also holds what it returns: a description of the `features`, and "numpy", a NumPy program that
computes the same function from `model.safetensors` (`distill_core.models.Scattering`).
"""

import contextlib
import dataclasses
import functools
import pathlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import checkpoint, config
from distill_core.data.text.tokenizers import ELSEWHERE, PUBLIC_TEXT, TRAINING_TEXT
from distill_core.models import foreign
from distill_core.models.foreign import huggingface, model_card, torch_weights, weights_file
from distill_core.models.network import Network
from distill_core.privacy import composition, noise
from distill_core.privacy import ledger as ledger_lib
from distill_core.runtime import backend, cli, paths, strict_json

FORMATS = ("jax", "hf")
# Settings that a model card may tell: numbers and choices, no path and no word of a text.
_TOLD = (
    "task", "length", "model", "model_kwargs", "compute_dtype", "optimizer", "learning_rate",
    "weight_decay", "momentum", "b1", "b2", "schedule", "warmup_steps", "clip_norm", "batch_size",
    "accumulate_steps", "ema_decay", "num_steps", "use", "dp", "alpha", "scorers", "quantiles",
    "t_min", "t_max", "gamma", "noise_scale", "noise_everywhere", "clip", "variant",
    "teacher_weight", "keep_ce", "epsilon", "delta", "entries",
)  # fmt: skip
_TOLD_OF_DP = (
    "epsilon", "delta", "norm", "sampling", "average", "share", "microbatch_size", "public_start",
)  # fmt: skip
CARD_FIELDS = ("model", "model_kwargs", "num_classes")
IMAGE_FIELDS = (*CARD_FIELDS, "input_shape", "mean", "std", "classes")
TEXT_FIELDS = (*CARD_FIELDS, "max_length")
GENERATOR_FIELDS = (*CARD_FIELDS, "classes")
_NEIGHBOURS = {
    ledger_lib.ZERO_OUT: "Zero-out: neighbours differ in one record, replaced by an empty one at "
    "its place; the number of records is public. replace_one_epsilon is for one record replaced "
    "by any other.",
    ledger_lib.REPLACE_AT_INDEX: "Neighbours differ in one record, replaced by any other at its "
    "place. Which of the teachers learns from a place is public and follows from no label and no "
    "content; a teacher saw nothing of the others' records. The classes and the form of the data "
    "are public.",
}
_SAMPLED = (
    "Where the ledger has a sampling_rate, each record was in each batch independently with that "
    "probability; of the batches nothing is known."
)
_FULL = (
    "Full batches, where batch_size is num_examples: every step took all records, so that nothing "
    "rests on sampling."
)
_ASSUMPTIONS = (
    "Every noise in the ledger was drawn independently, and nobody who reads this knows it.",
    "Each sensitivity bounds what one unit moves between neighbours.",
    "Strengths and the number of steps were fixed before the run.",
    "Noise on gradients is float32, each number a sum of four draws of a counter-based generator "
    "with 64 secret bits, which is taken for ideal; attacks on the last bits are not covered. "
    "Noise on the answers of several teachers, on the mean of their parameters and on moments of "
    "the data is discrete Gaussian, from the operating system's randomness. Every mechanism of the "
    "ledger that is not noise on gradients is one of these, and each used the data once more.",
    "The run touched private data in no other way. Choosing its settings, or shaping the code that "
    "draws its queries, while looking at such data is not covered.",
)

_JAX = """\
import jax.export
import numpy as np

with open("model.stablehlo", "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))


def {function}({arguments}):
    # {inputs}
    return program.call({cast})
"""
_VOCABULARY = {
    TRAINING_TEXT: "made from training text without noise: it reveals words of that text, and no "
    "epsilon covers it",
    PUBLIC_TEXT: "made from text that was declared public",
    ELSEWHERE: "given to the run; what it was made from is not recorded",
}


def release(
    path: epath.PathLike,
    out: epath.PathLike,
    *,
    part: str | None = None,
    delta: float | None = None,
    with_private_tokenizer: bool = False,
    format: str = "jax",
    results: epath.PathLike | None = None,
) -> dict[str, Any]:
    """Writes the release of one network into a new or empty directory and returns its card.

    What the card leaves out is written into the run's workdir, see above.

    Args:
      path: a workdir or checkpoint.
      out: the directory; created if missing.
      part: which network.
      delta: δ of the card's claim; by default the run's, if it has one.
      with_private_tokenizer: allows a vocabulary made from training text that was not declared
        public (`public_text`): it reveals words of that text.
      format: of `FORMATS`, see above.
      results: a JSON file for the model card of "hf".

    Raises:
      InputError: no such checkpoint, δ outside (0, 1), `out` holds files, such a vocabulary, or a
        network that the format is not for.
    """
    if format not in FORMATS:
        raise config.InputError("format", format, f"must be one of {', '.join(FORMATS)}")
    if results is not None and format != "hf":
        raise config.InputError("results", str(results), "belongs to format=hf")
    out = paths.folder_to_write("out", out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise config.InputError("out", str(out), "must be a new or an empty directory")
    loaded = checkpoint.load_model(path, part=part)
    tokenizer = loaded.tokenizer
    reveals = tokenizer is not None and tokenizer.made_from == TRAINING_TEXT
    if reveals and not with_private_tokenizer:
        allowed = (
            "its vocabulary was made from training text and reveals words of it; train with a "
            "tokenizer from elsewhere or, if that text is public, with public_text=True; or "
            "release it anyway with --with_private_tokenizer"
        )
        raise config.InputError("checkpoint", str(path), allowed)
    card = _card(loaded, delta)
    if format == "hf":
        files = _foreign_files(path, loaded, card, results)
    else:
        files = _own_files(loaded, card)
    out.mkdir(parents=True, exist_ok=True)
    try:
        for name, content in files.items():
            checkpoint.write_atomically(out / name, content)
    except OSError:
        for name in files:  # no network without its card, and an empty directory for another try
            with contextlib.suppress(OSError):
                (out / name).unlink(missing_ok=True)
        raise
    if not foreign.is_foreign(path):  # that is somebody else's, without a workdir
        privacy = _privacy(loaded.metadata, delta)
        _write_owners_half(
            path, loaded.network, {"out": str(out), "card": card, "privacy": privacy}
        )
    return card


def _card(loaded: checkpoint.LoadedModel, delta: float | None) -> dict[str, Any]:
    """What is said of the network, whatever the format."""
    fields, inputs, outputs = _described(loaded.network)
    described, tokenizer = loaded.network.to_json(), loaded.tokenizer
    sizes = map(np.size, jax.tree.leaves(loaded.variables.get("params", {})))
    card = {
        "network": {name: described[name] for name in fields if name in described},
        "inputs": inputs,
        "outputs": outputs,
        "parameters": int(sum(sizes)),
    }
    if tokenizer is not None:
        card["vocabulary"] = _VOCABULARY.get(tokenizer.made_from, _VOCABULARY[ELSEWHERE])
    ledger, privacy = published(loaded.metadata["ledger"]), _privacy(loaded.metadata, delta)
    if ledger.mechanisms:
        card |= {"ledger": ledger.to_json(), "privacy": privacy}
    return card


def _own_files(loaded: checkpoint.LoadedModel, card: dict[str, Any]) -> dict[str, bytes]:
    """The files by name; the card, which is one of them, gets what they hold."""
    from safetensors.numpy import save

    flat = {k: np.asarray(leaf) for k, leaf in checkpoint.by_name(loaded.variables).items()}
    card["files"] = {
        "model.safetensors": "variables by name; HWIO convolution kernels",
        "model.stablehlo": "jax.export of the network: jax.export.deserialize(bytes).call",
    }
    card |= _programs(loaded.network, card["inputs"])
    files = {"model.safetensors": save(flat), "model.stablehlo": _export(loaded)}
    if loaded.tokenizer is not None:
        files["tokenizer.json"] = loaded.tokenizer.to_json().encode()
        card["files"]["tokenizer.json"] = "for the library tokenizers"
    return {**files, "card.json": f"{strict_json.encode(card, indent=1)}\n".encode()}


def _foreign_files(path, loaded: checkpoint.LoadedModel, card, results) -> dict[str, bytes]:
    """The files by name, README.md among them."""
    found = None
    with weights_file.refusing("results", results):
        if results is not None:
            file = paths.expand("results", results)
            found = weights_file.read_object(pathlib.Path(file), "the file")
    with weights_file.refusing("checkpoint", path):
        if loaded.network.is_text:
            files = huggingface.files(loaded)
        else:
            files = {"model.safetensors": torch_weights.file(loaded.network, loaded.variables)}
    told: dict[str, Any] = dict(card)
    given: dict[str, Any] = {}
    if loaded.network.is_text:
        given = {"command": _command(loaded.metadata)}
        kind = weights_file.read_object(files["config.json"].decode(), "config.json")["model_type"]
        if kind == "qwen2":  # AutoTokenizer would split text as Qwen does
            given["tokenizer"] = "PreTrainedTokenizerFast"
        tokenizer = loaded.tokenizer
        first = f"; a line begins with {tokenizer.token(tokenizer.bos_id)}" if tokenizer else ""
        told["inputs"] = f"int token ids [B, L]{first}"
    else:
        constants = f"mean {list(loaded.network.mean)} and std {list(loaded.network.std)}"
        told["inputs"] = "float images [B, C, H, W] in [0, 1], standardised per channel by "
        told["inputs"] += constants
    with weights_file.refusing("results", results):
        text = model_card.readme(told, results=found, **given)
    return {**files, "README.md": text.encode()}


def _command(metadata: Mapping[str, Any]) -> str | None:
    """The command that trained a network, of the settings `_TOLD`; None if nothing did."""
    settings = metadata["config"]
    told: dict[str, Any] = {k: settings[k] for k in _TOLD if settings.get(k) not in (None, [], {})}
    if not settings.get("epsilon"):
        told.pop("delta", None)
    for group, names in (("dp", _TOLD_OF_DP), ("model_kwargs", None)):
        inner = told.pop(group, {})
        told |= {f"{group}.{k}": v for k, v in inner.items() if not names or k in names}
    told = {k: v for k, v in told.items() if v is not None and v is not False}
    if not told:
        return None
    parts = [f"python -m {metadata['method']} --config CONFIG --workdir WORKDIR"]
    parts += [f"    --config.{k}={shlex.quote(str(v))}" for k, v in told.items()]
    return " \\\n".join(parts)


def published(ledger: Mapping[str, Any]) -> ledger_lib.Ledger:
    """The mechanisms behind a claim, without what the model is made from; empty without a claim."""
    try:
        charged = ledger_lib.charged(ledger)
    except config.InputError:
        return ledger_lib.Ledger()
    return ledger_lib.Ledger(tuple(dataclasses.replace(each, note="") for each in charged))


def _write_owners_half(path, network: Network, known: Mapping[str, Any]):
    folder, about = checkpoint.chosen(path)
    part = next(name for name, each in about["parts"].items() if each == network.to_json())
    names = ("method", "id", "step", "config", "data_note", "ledger")
    half = {**known, "part": part, **{name: about[name] for name in names}}
    place = folder.parent.parent / noise.FOLDER / f"released_{part}_{about['step']}.json"
    try:
        noise.write_private(place, half)
    except OSError as error:  # the release itself is complete
        print(f"could not write {place}, the owner's record of it: {error}", file=sys.stderr)


def _described(network: Network) -> tuple[Sequence[str], str, str]:
    """(fields of the network for the card, description of inputs, description of outputs)."""
    if network.is_text:
        inputs = "int32 token ids of tokenizer.json, [B, L], <bos> first, "
        padded = f"padded at the end to L = {network.max_length}"
        inputs += padded if network.is_bounded else "of any length L"
        return TEXT_FIELDS, inputs, "float32 logits [B, L, V], at each position for the next token"
    if network.outputs == "images":
        inputs = f"float32 latent vectors, draws of N(0, I), [B, {network.input_shape[0]}]"
        if network.labelled:
            inputs += "; second, int32 labels [B], the classes to draw"
        return GENERATOR_FIELDS, inputs, "float32 images in [0, 1], [B, H, W, C]"
    inputs = "float32 images in [0, 1], [B, H, W, C]; preprocessing is in model.stablehlo"
    return IMAGE_FIELDS, inputs, "float32 logits [B, K] in the order of classes"


def _programs(network: Network, inputs: str) -> dict[str, Any]:
    """The card's `snippets` and, where the module describes them, `features`."""
    if network.is_text:
        function, dtypes = "logits", {"tokens": "int32"}
    elif network.outputs == "images":
        function, dtypes = "images", {"latents": "float32"}
        if network.labelled:
            dtypes["labels"] = "int32"
    else:
        function, dtypes = "logits", {"images": "float32"}
    cast = ", ".join(f"np.asarray({name}, np.{dtype})" for name, dtype in dtypes.items())
    jax_program = _JAX.format(
        function=function, arguments=", ".join(dtypes), inputs=inputs, cast=cast
    )
    snippets = {"jax": jax_program}
    describe = getattr(network.module(), "describe", None)
    if describe is None:
        return {"snippets": snippets}
    told = describe(network.input_shape, network.mean, network.std)
    features = told["features"]
    if network.compute_dtype != "float32":
        features += f" The network rounds pixels and parameters to {network.compute_dtype}, which "
        features += "the numpy snippet does not."
    return {"features": features, "snippets": {**snippets, "numpy": told["numpy"]}}


def _privacy(metadata: Mapping[str, Any], delta: float | None) -> dict[str, Any]:
    """What the ledger guarantees, for a reader without this project.

    ε with its unit, adjacency, δ and assumptions, also for a record if the unit is another and for
    a replacement if the adjacency is zero-out; or None and the reason.
    """
    settings = metadata["config"]
    group = settings.get("dp") or {}
    if delta is None:
        delta = settings.get("delta", group.get("delta"))
    else:
        ledger_lib.check_delta(delta, metadata.get("num_examples"))
    try:
        entries = ledger_lib.charged(metadata["ledger"])
    except config.InputError as error:
        return {"epsilon": None, "why": str(error)}
    entry = entries[0]
    about = {"privacy_unit": entry.unit, "adjacency": entry.adjacency}
    if delta is None:
        return {"epsilon": None, "why": "no delta was given to compute it at", **about}
    ledger = metadata["ledger"]
    spent = {"epsilon": ledger_lib.epsilon(ledger, delta), "delta": delta, **about}
    if entry.adjacency == ledger_lib.ZERO_OUT:
        spent["replace_one_epsilon"] = ledger_lib.epsilon(ledger, delta, replace_one=True)
    assumptions = [_NEIGHBOURS[entry.adjacency]] if entry.adjacency in _NEIGHBOURS else []
    assumptions += [_SAMPLED] if any(each.sampling_rate is not None for each in entries) else []
    assumptions += [_FULL] if any(each.full_batches for each in entries) else []
    if group.get("public_start"):
        assumptions.append("The weights that training started from saw public data alone.")
    assumptions += _ASSUMPTIONS
    if entry.unit != "record":
        assumptions.insert(0, f"Epsilon is about one {entry.unit}: it protects no training record.")
        spent["record_epsilon"] = ledger_lib.epsilon(ledger, delta, for_record=True)
    if total := composition.total(ledger, delta):
        spent |= {"conversions": total.conversions, "total_epsilon": total.epsilon}
        assumptions.insert(0, f"{total.says}. Other copies of it keep their own account.")
    return {**spent, "assumptions": assumptions}


def _export(loaded: checkpoint.LoadedModel) -> bytes:
    """The network with its weights as StableHLO, for any batch size and platform.

    Rows of text have `max_length` tokens, padded at the end (later tokens have no effect), or with
    rotary positions any number.
    """
    batch, length = jax.export.symbolic_shape("b, l")
    network, function = loaded.network, loaded.apply
    if network.is_text:
        length = network.max_length if network.is_bounded else length
        inputs = [jax.ShapeDtypeStruct((batch, length), jnp.int32)]
    else:
        inputs = [jax.ShapeDtypeStruct((batch, *network.input_shape), jnp.float32)]
    if network.outputs == "images":
        function = _one_by_one(network)
        if network.labelled:
            inputs.append(jax.ShapeDtypeStruct((batch,), jnp.int32))
    program = jax.jit(lambda *inputs: function(loaded.variables, *inputs))
    settings: Any = jax.config
    limit = settings.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)  # else it contains our file paths
    try:
        with backend.assume("cpu", None):  # no kernel that one platform alone has
            exported = jax.export.export(program, platforms=("cpu", "cuda", "rocm", "tpu"))(*inputs)
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)
    return bytes(exported.serialize())


def _one_by_one(network: Network) -> Callable:
    """`images(variables, z, labels)` of a generator that may need a batch of known size."""

    def one(variables, *example):
        return network.module().apply(variables, *(each[None] for each in example))[0]

    return lambda variables, *inputs: jax.vmap(functools.partial(one, variables))(*inputs)


def main(argv: Sequence[str]):
    """The binary."""
    flags = cli.Flags(__doc__)
    flags.add_argument("--checkpoint", metavar="DIR", help="a workdir or one of its checkpoints")
    flags.add_argument("--out", metavar="DIR", help="a new or empty directory")
    flags.add_argument("--part", help="which network, where the checkpoint holds several")
    flags.add_argument("--delta", type=float, help="of the privacy claim; by default the run's")
    flags.add_argument(
        "--with_private_tokenizer",
        action="store_true",
        help="release even a vocabulary made from training text",
    )
    flags.add_argument("--format", choices=FORMATS, default="jax", help="hf: for transformers")
    flags.add_argument("--results", metavar="FILE.json", help="measured, for the model card of hf")
    given = flags.read(argv, required=("checkpoint", "out"))
    names = ("part", "delta", "with_private_tokenizer", "format", "results")
    options = {name: getattr(given, name) for name in names}
    card = release(given.checkpoint, given.out, **options)
    print(f"released {card['parameters']:,} parameters to {given.out}")


if __name__ == "__main__":
    cli.launch(main)

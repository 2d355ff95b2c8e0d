"""Writes what may be given away of a run: the model, a card, the ledger, and nothing else.

    python -m distill_core.release --checkpoint runs/nasty --out released/

No random key, seed, optimiser state, data order, path or training setting goes in. The release
loads without this project: `model.safetensors` holds the variables under names like
`params/Dense_0/kernel`, `model.stablehlo` the whole network as a program (`jax.export`), from
float32 images in [0, 1], `[B, H, W, C]`, or int32 token ids `[B, L]`, to logits. A language
model's `tokenizer.json` is read by the `tokenizers` library.
"""

import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import checkpoint, cli, config, spec

CARD_FIELDS = ("model", "model_kwargs", "num_classes")
IMAGE_FIELDS = (*CARD_FIELDS, "input_shape", "mean", "std", "classes")
TEXT_FIELDS = (*CARD_FIELDS, "max_length")


def release(
    path: epath.PathLike, out: epath.PathLike, *, part: str | None = None, step: int | None = None
) -> dict[str, Any]:
    """Writes the release of one network into a new or empty directory and returns its card.

    Args:
      path: a workdir or checkpoint.
      out: the directory; made if missing.
      part: which network.
      step: which checkpoint; by default the newest.

    Raises:
      InputError: no such checkpoint, or `out` holds files.
    """
    out = epath.Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise config.InputError("out", str(out), "must be a new or an empty directory")
    loaded = checkpoint.load_model(path, part=part, step=step)
    flat = {
        "/".join(jax.tree_util.keystr((k,), simple=True) for k in keypath): np.asarray(leaf)
        for keypath, leaf in jax.tree_util.tree_flatten_with_path(loaded.variables)[0]
    }
    text = spec.is_text(loaded.spec)
    card = {
        "method": loaded.metadata["method"],
        "network": {name: loaded.spec[name] for name in (TEXT_FIELDS if text else IMAGE_FIELDS)},
        "inputs": "int32 token ids of tokenizer.json, [B, L], <bos> first"
        if text
        else "float32 images in [0, 1], [B, H, W, C]; preprocessing is in model.stablehlo",
        "outputs": "float32 logits [B, L, V], at each position for the next token"
        if text
        else "float32 logits [B, K] in the order of classes",
        "parameters": int(sum(np.size(v) for k, v in flat.items() if k.startswith("params/"))),
        "files": {
            "model.safetensors": "variables by name; HWIO convolution kernels",
            "model.stablehlo": "jax.export of the network: jax.export.deserialize(bytes).call",
        },
        "ledger": loaded.metadata["ledger"],
        "note": loaded.metadata["data_note"],
    }
    from safetensors.numpy import save

    files = {"model.safetensors": save(flat), "model.stablehlo": _export(loaded)}
    if loaded.tokenizer is not None:
        files["tokenizer.json"] = loaded.tokenizer.to_json().encode()
        card["files"]["tokenizer.json"] = "of the library tokenizers"
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).write_bytes(content)
    checkpoint.write_atomically(out / "card.json", json.dumps(card, indent=1) + "\n")
    return card


def _export(loaded: checkpoint.LoadedModel) -> bytes:
    """The network with its weights as StableHLO, for any batch size and platform.

    Text has rows of `max_length`, padded at the end: what stands behind a position does not count.
    """
    (batch,) = jax.export.symbolic_shape("b")
    if spec.is_text(loaded.spec):
        inputs = jax.ShapeDtypeStruct((batch, loaded.spec["max_length"]), jnp.int32)
    else:
        inputs = jax.ShapeDtypeStruct((batch, *loaded.spec["input_shape"]), jnp.float32)
    program = jax.jit(lambda inputs: loaded.apply(loaded.variables, inputs))
    settings: Any = jax.config
    limit = settings.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)  # else our file paths travel along
    try:
        exported = jax.export.export(program, platforms=("cpu", "cuda", "rocm", "tpu"))(inputs)
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)
    return bytes(exported.serialize())


def main(argv: Sequence[str]):
    """The binary."""
    flags = cli.Flags(__doc__)
    flags.add_argument("--checkpoint", metavar="DIR", help="a workdir or one of its checkpoints")
    flags.add_argument("--out", metavar="DIR", help="a new or empty directory")
    flags.add_argument("--part", help="which network, where the checkpoint holds several")
    given = flags.read(argv, required=("checkpoint", "out"))
    card = release(given.checkpoint, given.out, part=given.part)
    print(f"released {card['parameters']:,} parameters to {given.out}")


if __name__ == "__main__":
    cli.launch(main)

"""Writes what may be given away of a run: the model, a card, the ledger, and nothing else.

    python -m distill_core.release --checkpoint runs/nasty --out released/

No random key, seed, optimiser state, data order, path or training setting goes in. The release
loads without this project: `model.safetensors` holds the variables under names like
`params/Dense_0/kernel`, `model.stablehlo` the whole network as a program (`jax.export`), from
float32 images in [0, 1], `[B, H, W, C]`, to logits.
"""

import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import checkpoint, cli, config

CARD_FIELDS = ("model", "model_kwargs", "num_classes", "input_shape", "mean", "std", "classes")


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
    card = {
        "method": loaded.metadata["method"],
        "network": {name: loaded.spec[name] for name in CARD_FIELDS},
        "inputs": "float32 images in [0, 1], [B, H, W, C]; preprocessing is in model.stablehlo",
        "outputs": "float32 logits [B, K] in the order of classes",
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
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).write_bytes(content)
    checkpoint.write_atomically(out / "card.json", json.dumps(card, indent=1) + "\n")
    return card


def _export(loaded: checkpoint.LoadedModel) -> bytes:
    """The network with its weights as StableHLO, for any batch size and platform."""
    (batch,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *loaded.spec["input_shape"]), jnp.float32)
    program = jax.jit(lambda images: loaded.apply(loaded.variables, images))
    settings: Any = jax.config
    limit = settings.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)  # else our file paths travel along
    try:
        exported = jax.export.export(program, platforms=("cpu", "cuda", "rocm", "tpu"))(images)
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

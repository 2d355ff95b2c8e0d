r"""Evaluates an image classifier's checkpoint, and stores its logits for black-box distillation.

    python -m distill_core.evaluate --checkpoint runs/nasty [--dataset digits] [--split train] \
        [--logits_out logits.npz]
"""

import functools
import io
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import checkpoint, config, data
from distill_core.losses import cross_entropy
from distill_core.models.network import Network
from distill_core.runtime import cli, parallel, paths
from distill_core.training import fits, metrics


def evaluate_checkpoint(
    path: epath.PathLike,
    *,
    part: str | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    split: str = "test",
    batch_size: int = 512,
    logits_out: epath.PathLike | None = None,
    tell: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Accuracy and cross-entropy over every example of a split.

    Args:
      path: a workdir or checkpoint.
      part: which of its networks.
      dataset, data_dir: by default those that the checkpoint was trained on.
      split: `test` or `train`.
      batch_size: of the forward passes.
      logits_out: an .npz file for `logits` float32 [N, K] and `labels`, in the order of the split,
        and `classes`, the names of the columns, if there are any;
        `distill_core.distill --config.teacher=npz:FILE` takes that of the train split.
      tell: called with the result before the file is written, which may fail.

    Returns:
      {"accuracy", "cross_entropy", "examples", "note"}.

    Raises:
      InputError: no such checkpoint or data, or they do not fit each other.
    """
    if split not in ("train", "test"):
        raise config.InputError("split", split, "must be train or test")
    if logits_out is not None:
        logits_out = paths.file_to_write("logits_out", logits_out)
    loaded = checkpoint.load_model(path, part=part)
    if loaded.network.is_text:
        allowed = "is a language model; python -m swingdistill.evaluate measures those"
        raise config.InputError("checkpoint", str(path), allowed)
    if loaded.network.outputs == "images":
        raise config.InputError("part", part, "makes images and classifies none")
    settings = loaded.metadata["config"]
    if (name := dataset or settings.get("dataset")) is None:
        raise config.InputError("dataset", None, "is required: the run itself had none")
    source = data.load_dataset(name, data_dir=data_dir or settings.get("data_dir"))
    source = fits.data_for("checkpoint", str(path), loaded, source)
    examples = getattr(source, split)
    logits = compute_logits(loaded, examples.images, batch_size)
    both = jnp.asarray(logits), jnp.asarray(examples.labels)
    found = {"accuracy": metrics.correct(*both), "cross_entropy": cross_entropy(*both)}
    means = {name: float(np.asarray(each, np.float64).mean()) for name, each in found.items()}
    result = {**means, "examples": len(examples), "note": source.note}
    if tell is not None:
        tell(result)
    if logits_out is not None:
        buffer, arrays = io.BytesIO(), {"logits": logits, "labels": examples.labels}
        if (names := loaded.network.class_names) is not None:
            arrays["classes"] = np.array(list(names), np.str_)
        np.savez(buffer, **arrays)
        checkpoint.write_atomically(logits_out, buffer.getvalue())
    return result


def compute_logits(
    loaded: checkpoint.LoadedModel, images: np.ndarray, batch_size: int = 512
) -> np.ndarray:
    """float32 logits [N, K] of images [N, H, W, C], unaugmented."""
    variables, parts = jax.device_put(loaded.variables), []
    size = min(batch_size, len(images))
    for start in range(0, len(images), size):  # the last batch is filled up: one compilation
        rows = np.arange(start, start + size).clip(max=len(images) - 1)
        parts.append(np.asarray(_logits(loaded.network, variables, images[rows])))
    return np.concatenate(parts)[: len(images)]


@functools.partial(jax.jit, static_argnums=0)
def _logits(network: Network, variables, images):
    return network.apply(variables, images)


def main(argv: Sequence[str]):
    """The binary."""
    flags = cli.Flags(__doc__)
    flags.add_argument("--checkpoint", metavar="DIR", help="a workdir or one of its checkpoints")
    flags.add_argument("--part", help="which network, where the checkpoint holds several")
    flags.add_argument("--dataset", metavar="NAME", help="by default that of the checkpoint")
    flags.add_argument("--data_dir", metavar="DIR", help="of a tfds:… data set")
    flags.add_argument("--split", default="test", help="test, the default, or train")
    flags.add_argument("--logits_out", metavar="FILE.npz", help="where to write the split's logits")
    given = flags.read(argv, required=("checkpoint",))

    def tell(found):
        note = f"; {found['note']}" if found["note"] else ""
        fits.say(
            f"{given.split} accuracy {found['accuracy']:.4f}  cross_entropy "
            f"{found['cross_entropy']:.4f}  ({found['examples']} examples{note}; "
            f"{parallel.describe()})"
        )

    options = {k: v for k, v in vars(given).items() if k not in ("checkpoint", "trust")}
    evaluate_checkpoint(given.checkpoint, **options, tell=tell)


if __name__ == "__main__":
    cli.launch(main)

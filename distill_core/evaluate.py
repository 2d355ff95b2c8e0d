r"""Evaluates an image classifier's checkpoint, or stores a teacher's answers for its students.

    python -m distill_core.evaluate --checkpoint runs/nasty [--dataset digits] [--split train] \
        [--logits_out logits.npz]
    python -m distill_core.evaluate --checkpoint TEACHER --teacher_cache DIR [--dataset text:PATH] \
        [--length 64] [--top_k 64] [--cache_dtype float16]

The first form prints accuracy and cross-entropy. The second form stores a language model's answers
on the training rows of a text, for students with --config.teacher=cache:DIR. If it is stopped, the
same command continues. For texts with canaries, halves of a text, or tasks other than plain
language, use `swingdistill.cache`.
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
from distill_core.training import fits, metrics, plain_text, teacher_cache


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


# What Swing's settings add to a text, where it is plain.
_PLAIN = {"task": "language", "half": "all", "canaries_per_level": 0, "num_train": 10**9}


def write_teacher_cache(
    path: epath.PathLike,
    folder: epath.PathLike,
    *,
    part: str | None = None,
    dataset: str | None = None,
    length: int | None = None,
    top_k: int = teacher_cache.TOP_K,
    dtype: str = teacher_cache.DTYPES[0],
) -> teacher_cache.Manifest:
    """A language model's answers on the training rows of a plain text; goes on where it stopped.

    The rows are those of `swingdistill.train` with the same `dataset` and `length`, task
    `language`, and the model's tokenizer. What is written is as private as the model and the text.

    Args:
      path: a workdir or checkpoint.
      folder: of the cache.
      part: which of its networks.
      dataset, length: by default those that the checkpoint was trained with.
      top_k: classes per token.
      dtype: of their log-probabilities, float16 or float32.

    Raises:
      InputError: no such checkpoint or text, or the folder has a cache of another.
    """
    if top_k < 1:
        raise config.InputError("top_k", top_k, "must be at least 1")
    if length is not None and length < 2:
        raise config.InputError("length", length, "must be at least 2")
    if dtype not in teacher_cache.DTYPES:
        allowed = f"must be one of {', '.join(teacher_cache.DTYPES)}"
        raise config.InputError("cache_dtype", dtype, allowed)
    loaded = checkpoint.load_model(path, part=part)
    if not loaded.network.is_text:
        allowed = "is a classifier of images; --logits_out stores its answers"
        raise config.InputError("checkpoint", str(path), allowed)
    tokenizer = plain_text.tokenizer_of(loaded, "checkpoint", str(path))
    theirs = loaded.metadata.get("config", {})
    settings = {
        "dataset": dataset or theirs.get("dataset"),
        "length": length or theirs.get("length"),
    }
    for name, value in settings.items():
        if value is None:
            raise config.InputError(name, None, "is required: the checkpoint's config has none")
    strange = [k for k, v in _PLAIN.items() if theirs.get(k, v) != v] if dataset is None else []
    if strange:
        allowed = f"chose its text by {strange[0]}: take python -m swingdistill.cache, or --dataset"
        raise config.InputError("checkpoint", str(path), allowed)
    network, size = loaded.network, settings["length"]
    if network.is_bounded and size > (network.max_length or 0):
        raise config.InputError("length", size, f"must be at most {network.max_length}")
    rows = plain_text.training_rows(settings["dataset"], tokenizer, size)
    make = teacher_cache.answers(loaded, rows, top_k)
    given = {"k": top_k, "dtype": dtype, "settings": settings}
    return teacher_cache.write(folder, teacher_cache.Manifest.of(loaded, rows, **given), make)


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
    flags.add_argument("--teacher_cache", metavar="DIR", help="where to write a text's answers")
    flags.add_argument("--length", type=int, metavar="L", help="tokens of a row of that text")
    flags.add_argument("--top_k", type=int, default=teacher_cache.TOP_K, help="classes per token")
    flags.add_argument(
        "--cache_dtype",
        choices=teacher_cache.DTYPES,
        default=teacher_cache.DTYPES[0],
        help="of log-probabilities",
    )
    given = flags.read(argv, required=("checkpoint",))
    if given.teacher_cache:
        if given.logits_out:
            allowed = "is for images: a text's answers go to --teacher_cache alone"
            raise config.InputError("logits_out", given.logits_out, allowed)
        write_teacher_cache(
            given.checkpoint,
            given.teacher_cache,
            part=given.part,
            dataset=given.dataset,
            length=given.length,
            top_k=given.top_k,
            dtype=given.cache_dtype,
        )
        return

    def tell(found):
        note = f"; {found['note']}" if found["note"] else ""
        fits.say(
            f"{given.split} accuracy {found['accuracy']:.4f}  cross_entropy "
            f"{found['cross_entropy']:.4f}  ({found['examples']} examples{note}; "
            f"{parallel.describe()})"
        )

    names = ("part", "dataset", "data_dir", "split", "logits_out")
    options = {name: getattr(given, name) for name in names}
    evaluate_checkpoint(given.checkpoint, **options, tell=tell)


if __name__ == "__main__":
    cli.launch(main)

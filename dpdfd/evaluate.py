r"""Measures a conversion: the student, a fresh classifier on generated samples, and the privacy.

    python -m dpdfd.evaluate --checkpoint runs/student [--dataset digits] [--out DIR] \
        [--export runs/samples.npz --num_samples 5000]

Everything here is post-processing of the checkpoint, so the printed privacy claim also holds for
all files that are written. The data set's test split is used only to measure; nothing is trained
on it.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from distill_core import checkpoint, data, release
from distill_core.config import InputError
from distill_core.data.images.dataset import Dataset
from distill_core.experiment.plotting import attempt
from distill_core.models.network import hashable
from distill_core.runtime import cli, parallel, paths, strict_json
from distill_core.training import fits
from dpdfd import fresh
from dpdfd.conversion import Prior
from dpdfd.fresh import Recipe
from dpdfd.priors.bought_moments import published_moments
from dpdfd.privacy.units import privacy_spent
from dpdfd.settings import GAUSSIAN


def evaluate(
    path: epath.PathLike,
    dataset: str | Dataset | None = None,
    *,
    data_dir: str | None = None,
    out: epath.PathLike | None = None,
    export: epath.PathLike | None = None,
    delta: float | None = None,
    recipe: Recipe | None = None,
    tell: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Everything that the binary prints.

    Args:
      path: a workdir or checkpoint of `dpdfd.train`.
      dataset, data_dir: whose test split measures, or its name; by default the run's.
      out: a folder for `evaluation.json`, `samples.png` and, where the run's metrics lie beside
        the checkpoint, `convergence.png`.
      export: an .npz file for the samples, see `export_samples`.
      delta: δ of the claim; by default the run's.
      recipe: of the fresh classifier.
      tell: called with the result before anything is written.

    Returns:
      {"accuracy", "fresh_classifier_accuracy", "num_test", "num_samples", "samples_per_class",
      "note", "dataset", "step", "privacy"}, the last from `privacy`.

    Raises:
      InputError: before anything is computed, but for what a network of the user's own raises.
    """
    recipe = recipe or Recipe()
    if out is not None:
        out = paths.folder_to_write("out", out)
    if export is not None:
        export = paths.file_to_write("export", export)
    folder, metadata = checkpoint.find(paths.expand("checkpoint", path))
    student, generator = _load(path, folder, metadata)
    source = _dataset(path, student, metadata["config"], dataset, data_dir)
    network = fresh.network(student, recipe)
    spent = privacy(metadata, delta=delta)
    prior = _prior(folder, metadata["config"]) if recipe.source == "prior" else None
    images, probs = fresh.draw_samples(student, generator, recipe, prior)
    classifier = fresh.fit_soft_labels(network, images, probs, recipe)
    labels, classes = probs.argmax(-1), student.network.classes
    result = {
        "accuracy": fresh.accuracy(student, source.test),
        "fresh_classifier_accuracy": fresh.accuracy(classifier, source.test),
        "num_test": len(source.test),
        "num_samples": recipe.num_samples,
        "samples_per_class": np.bincount(labels, minlength=len(classes)).tolist(),
        "note": source.note,
        "dataset": source.name,
        "step": metadata["step"],
        "privacy": spent,
    }
    if tell is not None:
        tell(result)
    if out is not None:
        _write_folder(out, folder.parent.parent, result, images, labels, classes)
    if export is not None:
        export_samples(export, images, probs, classes, metadata["ledger"], describe(spent))
    return result


def privacy(metadata: Mapping[str, Any], *, delta: float | None = None) -> dict[str, Any]:
    """What a checkpoint's ledger guarantees: `PrivacyReport.report`, or {"epsilon": None, "why"}.

    δ is by default that of the run's config; raises InputError where it is missing or outside its
    range.
    """
    settings = metadata["config"]
    delta = settings.get("delta") if delta is None else delta
    if delta is None:
        raise InputError("delta", None, "the run names none; must be in (0, 1)")
    try:
        report = privacy_spent(
            metadata["ledger"], delta=delta, num_examples=metadata.get("num_examples")
        )
    except InputError as error:
        if error.field == "delta":
            raise
        return {"epsilon": None, "why": str(error)}
    return {**report.report(), "assumptions": list(report.assumptions)}


def describe(spent: Mapping[str, Any]) -> str:
    """`privacy` in words: the statement that accompanies whatever is released."""
    if spent["epsilon"] is None:
        return f"No privacy is claimed: {spent['why']}"
    lines = [
        f"Differential privacy: epsilon {spent['epsilon']:.4g} at delta {spent['delta']:g}; "
        f"unit: {spent['privacy_unit']}; adjacency: {spent['adjacency']}."
    ]
    if spent["replace_one_epsilon"] != spent["epsilon"]:
        lines.append(f"With one record replaced: epsilon {spent['replace_one_epsilon']:.4g}.")
    if "total_epsilon" in spent:
        lines.append(
            f"Conversions charged to the same teacher: {spent['conversions']}; together epsilon "
            f"{spent['total_epsilon']:,.4g} for a training record."
        )
    if spent["privacy_unit"] != "record":
        lines.append(
            f"For a training record the same noise is epsilon {spent['record_epsilon']:,.4g}."
        )
    return "\n".join(
        [*lines, "What it means and rests on:", *(f"- {each}" for each in spent["assumptions"])]
    )


def export_samples(
    path: epath.PathLike,
    images: np.ndarray,
    probs: np.ndarray,
    classes: Sequence[str],
    ledger: Mapping[str, Any],
    statement: str,
):
    """Writes the samples of `fresh.draw_samples` atomically, as an .npz that needs no pickle.

    It holds `images` uint8 [N, H, W, C], `soft_labels` float32 [N, K], `labels` int32 [N] (the
    likeliest), `classes` [K], and as texts the `ledger` (JSON, without its ancestors) and the
    `statement` from `describe`. Raises InputError where the file's folder is missing.
    """
    path = paths.file_to_write("export", path)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        images=np.asarray(images, np.uint8),
        soft_labels=np.asarray(probs, np.float32),
        labels=np.asarray(probs).argmax(-1).astype(np.int32),
        classes=np.array(list(classes), np.str_),
        ledger=np.array(strict_json.encode(release.published(ledger).to_json())),
        statement=np.array(statement),
    )
    checkpoint.write_atomically(path, buffer.getvalue())


def _load(path: epath.PathLike, folder: epath.Path, metadata: Mapping[str, Any]):
    """(student, generator) of one checkpoint."""
    parts = metadata["parts"]
    if not {"student", "generator"} <= parts.keys():
        allowed = f"holds {', '.join(parts)}; needs student and generator, as dpdfd.train writes"
        raise InputError("checkpoint", str(path), allowed)
    return tuple(checkpoint.load_model(folder, part=part) for part in ("student", "generator"))


def _prior(folder: epath.Path, settings: Mapping[str, Any]) -> Prior:
    """What the run's queries came from, with its published moments."""
    if not any(settings["prior"].values()):
        raise InputError("source", "prior", "the run had none; must be 'generator'")
    bought = settings["prior"].get(GAUSSIAN)
    moments = published_moments(folder.parent.parent) if bought else None
    return Prior(hashable(settings["prior"]), tuple(settings["prior_extent"]), moments)


def _dataset(path, student, settings, dataset, data_dir) -> Dataset:
    source = settings.get("dataset") if dataset is None else dataset
    if source is None:
        raise InputError("dataset", None, "is required: the run itself had none to measure on")
    if isinstance(source, str):
        source = data.load_dataset(source, data_dir=data_dir or settings.get("data_dir"))
    return fits.data_for("checkpoint", str(path), student, source)


def _write_folder(out: epath.Path, workdir: epath.Path, result, images, labels, classes):
    from dpdfd.experiment import figures

    out.mkdir(parents=True, exist_ok=True)
    text = strict_json.encode(result, indent=1, ensure_ascii=False)
    checkpoint.write_atomically(out / "evaluation.json", f"{text}\n")
    attempt(figures.sample_grid, out / "samples.png", images, labels, classes)
    lines = workdir / "metrics.jsonl"
    rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    if any(name in row for row in rows for name in figures.QUANTITIES):
        attempt(figures.convergence, out / "convergence.png", rows)


def main(argv: Sequence[str]):
    """The binary."""
    flags = cli.Flags(__doc__)
    flags.add_argument("--checkpoint", metavar="DIR", help="a workdir or one of its checkpoints")
    flags.add_argument("--dataset", metavar="NAME", help="by default the run's own")
    flags.add_argument("--data_dir", metavar="DIR", help="of a tfds:… data set")
    flags.add_argument("--out", metavar="DIR", help="where evaluation.json and the pictures go")
    flags.add_argument("--export", metavar="FILE.npz", help="where labelled samples go")
    flags.add_argument("--num_samples", type=int, default=5000, metavar="N", help="default 5000")
    flags.add_argument("--num_steps", type=int, default=1000, metavar="N", help="default 1000")
    flags.add_argument(
        "--source", default="generator", help=f"of the samples: {', '.join(fresh.SOURCES)}"
    )
    flags.add_argument(
        "--temperature", type=float, default=1.0, help="of the fresh classifier's loss"
    )
    flags.add_argument("--model", metavar="NAME", help="fresh classifier; by default the student's")
    flags.add_argument("--delta", type=float, help="of the claim; by default the run's")
    flags.add_argument("--seed", type=int, default=0, help="of samples and fresh classifier")
    given = flags.read(argv, required=("checkpoint",))
    recipe = ("model", "source", "temperature", "num_samples", "num_steps", "seed")
    asked = {name: getattr(given, name) for name in recipe}
    names = ("dataset", "data_dir", "out", "export", "delta")
    settings = {name: getattr(given, name) for name in names}
    evaluate(given.checkpoint, **settings, recipe=Recipe(**asked), tell=_say)


def _say(found: Mapping[str, Any]):
    note = f"; {found['note']}" if found["note"] else ""
    measured = f"({found['num_test']} examples{note}; {parallel.describe()})"
    print(f"student accuracy {found['accuracy']:.4f}  {measured}")
    fresh_accuracy = f"{found['fresh_classifier_accuracy']:.4f}"
    samples = f"{found['num_samples']} generated samples with the student's soft labels"
    print(f"fresh classifier accuracy {fresh_accuracy}  (trained on {samples})")
    print(describe(found["privacy"]))


if __name__ == "__main__":
    cli.launch(main)

"""Measures a language model's checkpoint: perplexity, exposure of secrets, and further attacks.

    python -m swingdistill.evaluate --checkpoint runs/x [--canaries runs/teacher] [--out FILE.json]
    python -m swingdistill.evaluate --checkpoint runs/x --extract --membership [--reference DIR]
    python -m swingdistill.evaluate --checkpoint MODEL --secrets FILE.jsonl [--candidates FILE.txt]

The secrets are the canaries of a run, or your own in a file with one JSON object per line,
{"prefix": "my id is ", "secret": "281265", "suffix": ""}. They are ranked among all numbers with
the same number of digits, or among the lines of the file of candidates. Your own secrets are
never printed, only their line numbers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from distill_core import checkpoint, config
from distill_core.config import InputError
from distill_core.data import columns
from distill_core.data.text import tasks as text_tasks
from distill_core.data.text.corpus import Example
from distill_core.runtime import cli, parallel, paths, strict_json
from distill_core.training import fits, inputs, language, run_state
from swingdistill import own_secrets, private_text
from swingdistill.attacks import evaluation as attacks
from swingdistill.canaries import estimators, models
from swingdistill.canaries import secrets as canaries_lib
from swingdistill.canaries.estimators import ESTIMATORS, Ranks
from swingdistill.canaries.exposure import floor_bits, verdict
from swingdistill.scorers import judges

# See private_text.token_classes.
CLASSES = {
    "public": "public tokens",
    "private": "private tokens",
    "digit": "digits",
    "public_digit": "public digits",
}


def test_rows(hp: private_text.Settings, examples: Sequence[Example], tokenizer: Any) -> dict:
    """A text in rows, with the classes of its tokens; see `language.measure`."""
    text = private_text.to_rows(hp, examples, tokenizer, of="test")
    return {**text.rows, **private_text.token_classes(text, hp.expressions)}


def test_metrics(
    loaded: checkpoint.LoadedModel, rows: language.Rows, *, mode: str | None = None
) -> dict[str, Any]:
    """Perplexity and accuracy on the rows of `test_rows`, of all tokens that count and by class.

    Returns:
      {"perplexity", "accuracy", "num_tokens", and "…_perplexity" and "num_…_tokens" of `CLASSES`};
      a perplexity is None where there is no such token.
    """
    found = language.measure(loaded, rows, mode=mode)

    def perplexity(name):
        value = found[name]
        return None if math.isnan(value) else math.exp(min(value, 700.0))

    return {
        "perplexity": perplexity("cross_entropy"),
        "accuracy": found["accuracy"],
        **_counts(rows),
        **{f"{name}_perplexity": perplexity(f"cross_entropy_{name}") for name in CLASSES},
    }


def _counts(rows: language.Rows) -> dict[str, int]:
    """How many tokens count, and of each class."""
    names = {f"num_{name}_tokens": f"class_{name}" for name in CLASSES}
    found = dict.fromkeys(("num_tokens", *names), 0)
    size = text_tasks.chunk_rows(rows["tokens"].shape[1])
    for chunk in columns.in_chunks(rows, ("weights", *names.values()), size):
        count = chunk["weights"] > 0
        found["num_tokens"] += int(np.sum(count))
        for name, of in names.items():
            found[name] += int(np.sum(count & chunk[of]))
    return found


def recall_of_rules(
    hp: private_text.Settings, examples: Sequence[Example], tokenizer: Any, rows: Mapping[str, Any]
) -> float | None:
    """Share of the tokens of a text's private spans that the scorer `rules` finds; None of none."""
    text = private_text.to_rows(hp, examples, tokenizer, of="test")
    rules = (judges.rules(each.text, each.offsets, extra=hp.expressions) for each in text.lines)
    size = text_tasks.chunk_rows(text.length)
    both, hits, total = columns.in_chunks(rows, ("class_private", "weights"), size), 0, 0
    for found, chunk in zip(text.chunks(rules), both, strict=True):
        private = chunk["class_private"] & (chunk["weights"] > 0)
        hits, total = hits + int(np.sum(found[private] > 0.5)), total + int(np.sum(private))
    return hits / total if total else None


def exposures(
    loaded: checkpoint.LoadedModel, hp: private_text.Settings, **how: Any
) -> dict[int, list[float]]:
    """Exposure in bits of each canary of a config, by its number of repetitions; see `ranks`."""
    return {level: found.bits.tolist() for level, found in ranks(loaded, hp, **how).items()}


def ranks(
    loaded: checkpoint.LoadedModel,
    hp: private_text.Settings,
    *,
    estimator: str | None = None,
    num_samples: int = 10_000,
    batch_size: int = 2000,
) -> dict[int, Ranks]:
    """Ranks and exposure of the canaries of a config, by their number of repetitions.

    Args:
      loaded: any language model; it need not have seen the canaries.
      hp: which text and canaries.
      estimator: see `estimators.rank`. In classification candidates are always sampled.
      num_samples: where they are sampled: ranks among n show log₂(n + 1) bits at most.
      batch_size: lines at a time.

    Raises:
      InputError: no canaries in the settings, or a tokenizer that does not know them.
    """
    drawn = private_text.draw(hp)
    candidates = private_text.secret_candidates(hp, loaded.tokenizer, drawn)
    secrets = [canary.secret for canary in drawn]
    how = {"num_samples": num_samples, "batch_size": batch_size}
    if hp.task == "classification":
        found = _classifier(loaded, hp, secrets, candidates, how)
    else:
        model_fn = models.asked(loaded, candidates)
        found = estimators.rank(model_fn, secrets, candidates, estimator=estimator, **how)
    levels = np.array([canary.repetitions for canary in drawn])
    return {level: found.take(levels == level) for level in dict.fromkeys(levels.tolist())}


def described(found: Mapping[int, Ranks]) -> dict[str, Any]:
    """What `ranks` found, as JSON values by the number of repetitions.

    Returns:
      {"exposure": bits of each secret, "exposure_bounds": [lower, upper] of each, at 95%,
      "exposure_p" and "exposure_verdict" of a level (see `canaries.exposure.verdict`), all by
      level; "exposure_among": how many candidates, the secret included, a rank is among, and
      "exposure_candidates": how many there are}.
    """
    levels = {str(level): each for level, each in found.items()}
    verdicts = {name: verdict(each.rank_bits, each.asked + 1) for name, each in levels.items()}
    first = next(iter(levels.values()))
    return {
        "exposure": {name: each.bits.tolist() for name, each in levels.items()},
        "exposure_bounds": {
            name: np.stack(each.bounds(), axis=1).tolist() for name, each in levels.items()
        },
        "exposure_p": {name: p for name, (p, _) in verdicts.items()},
        "exposure_verdict": {name: text for name, (_, text) in verdicts.items()},
        "exposure_among": first.asked + 1,
        "exposure_candidates": first.others + 1,
    }


def _classifier(loaded, hp, secrets, candidates, how) -> Ranks:
    from scipy import special  # slow to import

    classes, ours = private_text.corpus_of(hp).classes, loaded.network.class_names
    order = fits.class_order("canaries", hp.dataset, classes, ours, what="the model", mapped=False)
    fits.say(order[1])
    answers = [text_tasks.class_token(loaded.tokenizer, k) for k in range(len(classes))]
    labels = [private_text.canary_label(secret, hp, len(classes)) for secret in secrets]
    logits_fn = models.logits_fn(loaded)

    def loss_fn(tokens, labels):
        # In float64: losses near 0 would tie, and ties count as exposed.
        logits = np.asarray(logits_fn(tokens), np.float64)[:, answers]
        return -special.log_softmax(logits, axis=-1)[np.arange(len(labels)), labels]

    return estimators.rank_by_label(loss_fn, secrets, labels, candidates, **how)


def say(found: Mapping[str, Any]):
    """Perplexity of all tokens, and of each class that is not all, on the console of process 0."""
    if not parallel.is_main():
        return
    print(
        f"test perplexity {found['perplexity']:.3f}  accuracy {found['accuracy']:.4f}  "
        f"({found['num_tokens']:,} tokens)"
    )
    for name, title in CLASSES.items():
        count = found[f"num_{name}_tokens"]
        if 0 < count < found["num_tokens"]:
            print(f"  of {title:<14} {found[f'{name}_perplexity']:.3f}  ({count:,} tokens)")
    if (recall := found.get("rules_recall")) is not None:
        print(f"recall of the scorer rules on the tokens of private spans: {recall:.3f}")


def say_exposure(found: Mapping[str, Any]):
    """Exposure by repetitions, with a verdict each, on the console; see `described`."""
    among, candidates = found["exposure_among"], found["exposure_candidates"]
    for level, bits in found["exposure"].items():
        low, high = np.transpose(found["exposure_bounds"][level])
        worst = int(np.argmax(bits))
        mean_bounds = worst_bounds = ""
        if among < candidates:
            mean_bounds = f" ({np.mean(low):.2f} to {np.mean(high):.2f})"
            worst_bounds = f" ({low[worst]:.2f} to {high[worst]:.2f})"
        print(
            f"exposure at {level} repetitions: mean {np.mean(bits):.2f} bits{mean_bounds}, worst "
            f"{bits[worst]:.2f}{worst_bounds} of {len(bits)}: {found['exposure_verdict'][level]}"
        )
    print(f"a secret that was not learnt has {floor_bits():.2f} bits on average")
    if among < candidates:
        print(
            f"ranks among {among:,} of {candidates:,} candidates show {math.log2(among):.2f} bits "
            "at most; in brackets, 95% bounds of each secret by itself among all, averaged"
        )


def evaluate_checkpoint(
    path: epath.PathLike,
    *,
    canaries: epath.PathLike | None = None,
    secrets: epath.PathLike | None = None,
    candidates: epath.PathLike | None = None,
    estimator: str | None = None,
    num_samples: int = 10_000,
    attack: attacks.Asked | None = None,
    reference: epath.PathLike | None = None,
) -> dict[str, Any]:
    """Metrics on the test text of a checkpoint's config, and exposure of canaries and secrets.

    Args:
      path: a workdir or checkpoint of `swingdistill.train`; with `secrets` of any language model.
      canaries: the checkpoint of a run whose canaries are asked for; by default the model's own.
      secrets: a file of the user's own secrets, see `own_secrets`.
      candidates: a file of candidates for these, one per line; by default they must be numbers.
      estimator, num_samples: see `ranks`.
      attack: further attacks, on the same canaries and their run's training text.
      reference: a model that did not see the text, asked for the same `secrets`.

    Returns:
      what `test_metrics`, `attacks.measure` and `described` give ("exposure" alone, None, where no
      canaries are known), "secrets" as `own_secrets.measure` gives them, "warnings" and
      "not_measured".

    Raises:
      InputError: on `checkpoint` or `canaries`, if it is of no run that fits; on the files.
    """
    if candidates is not None and secrets is None:
        raise InputError("candidates", str(candidates), "belongs to --secrets, which is not given")
    own = own_secrets.read(secrets) if secrets is not None else ()
    listed = canaries_lib.read_entries("candidates", str(candidates)) if candidates else ()
    loaded = checkpoint.load_model(path)
    settings = loaded.metadata.get("config", {})
    known, hp, has_spans = _known(settings), None, True
    if loaded.tokenizer is None or not ("dataset" in known or own or canaries):
        allowed = (
            "must be a run of swingdistill.train, whose config says which text and canaries; with "
            "--secrets or --canaries any language model with a tokenizer"
        )
        raise InputError("checkpoint", str(path), allowed)
    found: dict[str, Any] = {"exposure": None}
    if "dataset" in known:
        hp = config.validate(known, private_text.Settings)
        _check_files(path, hp)
        if own and hp.task == "classification":
            allowed = "are ranked by the likelihood of their lines, which a classifier never learnt"
            raise InputError("secrets", str(secrets), allowed)
        texts = private_text.load(hp)
        private_text.check_classes(hp, texts.classes, "checkpoint", str(path), loaded)
        rows = test_rows(hp, texts.test, loaded.tokenizer)
        found |= test_metrics(loaded, rows)
        has_spans = any(example.spans for example in texts.test)
        if has_spans:
            found["rules_recall"] = recall_of_rules(hp, texts.test, loaded.tokenizer, rows)
    if canaries is not None:
        hp = _with_canaries(hp, canaries)
        _check_files(canaries, hp)
    if attack is not None:
        if hp is None:
            raise InputError("canaries", None, "--extract and --membership need a run's text")
        found |= attacks.measure(loaded, hp, attack)
    how: dict[str, Any] = {"estimator": estimator, "num_samples": num_samples}
    if hp is not None and hp.canaries_per_level:
        found |= described(ranks(loaded, hp, **how))
    if own:
        found["secrets"] = own_secrets.measure(loaded, own, listed, **how)
        if reference is not None:
            with run_state.about("reference", str(reference)):
                public = checkpoint.load_model(reference)
            found["secrets"]["reference"] = own_secrets.measure(public, own, listed, **how)
    found["warnings"] = _warnings(settings)
    found["not_measured"] = _not_measured(found, hp, has_spans)
    return found


def _check_files(path: epath.PathLike, hp: private_text.Settings):
    """Refuses text or candidates that changed since a run was trained on them: other secrets than
    those that it saw would be asked for. Only the run's own workdir can tell."""
    folder, _ = checkpoint.find(paths.expand("checkpoint", path))
    inputs.check(
        folder.parent.parent, private_text.fingerprints(hp), config.to_json(hp), resumes=False
    )


def _with_canaries(hp: private_text.Settings | None, path: epath.PathLike):
    """Settings of the same text with the canaries of another run."""
    with run_state.about("canaries", str(path)):
        _, metadata = checkpoint.find(paths.expand("canaries", path))
    if not metadata["config"].get("canaries_per_level"):
        allowed = "must be a run of swingdistill.train that plants canaries"
        raise InputError("canaries", str(path), allowed)
    if hp is None:
        return config.validate(_known(metadata["config"]), private_text.Settings)
    ours = {**config.to_json(hp), "canary_candidates": None}
    theirs = {**ours, **_known(metadata["config"]), "length": hp.length}
    return config.validate(theirs, private_text.Settings)


def _not_measured(
    found: Mapping[str, Any], hp: private_text.Settings | None, has_spans: bool
) -> list[str]:
    """What a reader could take for measured and was not."""
    missing = []
    if "perplexity" not in found:
        missing.append("perplexity (the checkpoint names no text)")
    elif not has_spans:
        missing.append("private tokens that the rules do not find (the text has no spans)")
    if found["exposure"] is None:
        missing.append("exposure of canaries (none are known: --canaries)")
    elif hp is not None and hp.canary_candidates is None:
        missing.append("names and other secrets that are no numbers (canary_candidates)")
    if "secrets" not in found:
        missing.append("secrets that nobody planted (--secrets)")
    attacks = {"extraction": "verbatim extraction (--extract)"}
    attacks["membership"] = "membership of lines (--membership)"
    return missing + [told for name, told in attacks.items() if name not in found]


def _warnings(settings: Mapping[str, Any]) -> list[str]:
    """Whether the reference that a student's config names saw its secrets, if it still exists."""
    if not settings.get("reference"):
        return []
    try:
        _, metadata = checkpoint.find(paths.expand("reference", settings["reference"]))
        why = private_text.reference_saw(settings, metadata["config"])
    except InputError:
        return []
    return [f"its reference {settings['reference']} {why}"] if why else []


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    ours = config.fields(private_text.Settings)
    return {k: value for k, value in settings.items() if k in ours and value is not None}


def main(argv: Sequence[str]):
    """The binary."""
    flags = cli.Flags(__doc__)
    flags.add_argument("--checkpoint", metavar="DIR", help="a workdir or one of its checkpoints")
    flags.add_argument("--canaries", metavar="DIR", help="the run whose canaries are asked for")
    flags.add_argument("--secrets", metavar="FILE.jsonl", help="your own secrets")
    flags.add_argument(
        "--candidates", metavar="FILE.txt", help="what these could have been; by default numbers"
    )
    flags.add_argument(
        "--estimator", choices=ESTIMATORS, help="by default exact, or sampled where that takes long"
    )
    flags.add_argument(
        "--num_samples", type=int, default=10_000, metavar="N", help="ranks among so many samples"
    )
    flags.add_argument("--out", metavar="FILE.json", help="where to write everything found")
    attacks.add_flags(flags)
    given = flags.read(argv, required=("checkpoint",))
    attack = attacks.asked(given)
    out = paths.file_to_write("out", given.out) if given.out else None
    found = evaluate_checkpoint(
        given.checkpoint,
        canaries=given.canaries,
        secrets=given.secrets,
        candidates=given.candidates,
        estimator=given.estimator,
        num_samples=given.num_samples,
        attack=attack,
        reference=given.reference if given.secrets else None,
    )
    if "perplexity" in found:
        say(found)
    if found["exposure"]:
        say_exposure(found)
    attacks.say(found)
    if "secrets" in found:
        own_secrets.say(found["secrets"])
    for warning in found["warnings"]:
        print(f"warning: {warning}")
    print(f"not measured: {'; '.join(found['not_measured'])}")
    if out is not None:
        checkpoint.write_atomically(out, strict_json.encode(found, indent=1) + "\n")


if __name__ == "__main__":
    cli.launch(main)

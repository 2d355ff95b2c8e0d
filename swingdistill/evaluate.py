"""Measures a language model's checkpoint: perplexity by class of token, exposure, further attacks.

python -m swingdistill.evaluate --checkpoint runs/x [--canaries runs/teacher] [--out FILE.json]
python -m swingdistill.evaluate --checkpoint runs/x --extract --membership [--reference runs/ref]
"""

import functools
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from distill_core import checkpoint, config
from distill_core.config import InputError
from distill_core.data.text import corpus as corpora
from distill_core.data.text import tasks as text_tasks
from distill_core.data.text.corpus import Example
from distill_core.models.network import Network
from distill_core.runtime import cli, parallel, paths, strict_json
from distill_core.training import chunked, fits, language, run_state
from swingdistill import private_text
from swingdistill.attacks import evaluation as attacks
from swingdistill.canaries import estimators
from swingdistill.canaries.exposure import floor_bits

CLASSES = ("digit", "private", "public", "public_digit")  # see private_text.token_classes
ESTIMATORS = ("exact", "sampled", "extrapolated")


def test_rows(hp: private_text.Settings, examples: Sequence[Example], tokenizer: Any) -> dict:
    """A text in rows, with the classes of its tokens; see `language.measure`."""
    text = private_text.to_rows(hp, examples, tokenizer)
    return {**text.rows, **private_text.token_classes(text, hp.expressions)}


def test_metrics(
    loaded: checkpoint.LoadedModel, rows: language.Rows, *, mode: str | None = None
) -> dict[str, Any]:
    """Perplexity and accuracy on the rows of `test_rows`, of all tokens that count and by class.

    Returns:
      {"perplexity", "accuracy", "num_tokens", and "…_perplexity" of `CLASSES`}; None where there is
      no such token.
    """
    found = language.measure(loaded, rows, mode=mode)

    def perplexity(name):
        value = found[name]
        return None if math.isnan(value) else math.exp(min(value, 700.0))

    return {
        "perplexity": perplexity("cross_entropy"),
        "accuracy": found["accuracy"],
        "num_tokens": int(np.sum(rows["weights"] > 0)),
        **{f"{name}_perplexity": perplexity(f"cross_entropy_{name}") for name in CLASSES},
    }


def exposures(
    loaded: checkpoint.LoadedModel,
    hp: private_text.Settings,
    *,
    estimator: str | None = None,
    num_samples: int = 10_000,
    batch_size: int = 2000,
) -> dict[int, list[float]]:
    """Exposure in bits of each canary of a config, by its number of repetitions.

    Args:
      loaded: any language model; it need not have seen the canaries.
      hp: which text and canaries.
      estimator: of `ESTIMATORS`; by default exact up to 10⁷ candidates, else extrapolated, or
        sampled where no distribution fits. In classification candidates are always sampled.
      num_samples: where they are sampled: ranks among n show log₂(n + 1) bits at most.
      batch_size: lines at a time.

    Raises:
      InputError: no canaries in the settings, or a tokenizer that splits them.
    """
    drawn = private_text.draw(hp)
    candidates = private_text.secret_candidates(hp, loaded.tokenizer, drawn)
    secrets = [canary.secret for canary in drawn]
    if hp.task == "classification":
        bits = _classifier(loaded, hp, secrets, candidates, num_samples, batch_size)
    else:
        small = len(candidates) <= estimators.MAX_EXACT
        wanted = estimator or ("exact" if small else "extrapolated")
        asked = (_last_logits(loaded), secrets, candidates)
        sampled = {"num_samples": num_samples, "batch_size": batch_size}
        if wanted == "exact":
            bits = estimators.exact_exposure(*asked, batch_size=batch_size)
        elif wanted == "sampled":
            bits = estimators.sampled_exposure(*asked, **sampled)
        else:
            try:
                bits = estimators.extrapolated_exposure(*asked, **sampled)
            except InputError as error:
                if estimator is not None:
                    raise
                if parallel.is_main():
                    print(f"exposure is sampled instead: {error}", file=sys.stderr, flush=True)
                bits = estimators.sampled_exposure(*asked, **sampled)
    found: dict[int, list[float]] = {}
    for canary, value in zip(drawn, bits, strict=True):
        found.setdefault(canary.repetitions, []).append(float(value))
    return found


def _last_logits(loaded: checkpoint.LoadedModel):
    """`tokens int32 [B, L] -> logits [B, V]` after the last token, for the estimators."""
    return functools.partial(_last, loaded.network, jax.device_put(loaded.variables))


@functools.partial(jax.jit, static_argnums=0)
def _last(network: Network, variables, tokens):
    states, embedding = network.hidden(variables, tokens)
    return chunked.logits(states[:, -1], embedding)


def _classifier(loaded, hp, secrets, candidates, num_samples, batch_size):
    from scipy import special  # slow to import

    classes, ours = corpora.load_corpus(hp.dataset).classes, loaded.network.class_names
    order = fits.class_order("canaries", hp.dataset, classes, ours, what="the model", mapped=False)
    fits.say(order[1])
    answers = [text_tasks.class_token(loaded.tokenizer, k) for k in range(len(classes))]
    labels = [private_text.canary_label(secret, hp, len(classes)) for secret in secrets]
    logits_fn = _last_logits(loaded)

    def loss_fn(tokens, labels):
        # In float64: losses near 0 would tie, and ties count as exposed.
        logits = np.asarray(logits_fn(tokens), np.float64)[:, answers]
        return -special.log_softmax(logits, axis=-1)[np.arange(len(labels)), labels]

    return estimators.classifier_exposure(
        loss_fn, secrets, labels, candidates, num_samples=num_samples, batch_size=batch_size
    )


def say(found: Mapping[str, Any]):
    """One line on the console, of process 0."""
    if parallel.is_main():
        digits = found["digit_perplexity"]
        more = "" if digits is None else f"  of digits {digits:.2f}"
        print(
            f"test perplexity {found['perplexity']:.3f}{more}  accuracy {found['accuracy']:.4f}  "
            f"({found['num_tokens']:,} tokens)",
            flush=True,
        )


def evaluate_checkpoint(
    path: epath.PathLike,
    *,
    canaries: epath.PathLike | None = None,
    estimator: str | None = None,
    num_samples: int = 10_000,
    attack: attacks.Asked | None = None,
) -> dict[str, Any]:
    """Metrics on the test text of a checkpoint's config, and exposure if canaries are known.

    Args:
      path: a workdir or checkpoint of `swingdistill.train`.
      canaries: the checkpoint of a run whose canaries are asked for; by default the model's own.
      estimator, num_samples: see `exposures`.
      attack: further attacks, on the same canaries and their run's training text.

    Returns:
      what `test_metrics` gives, "exposure": {repetitions: bits of each canary} or None, and what
      `attacks.measure` gives.

    Raises:
      InputError: on `checkpoint` or `canaries`, if it is of no run that fits.
    """
    loaded = checkpoint.load_model(path)
    known = _known(loaded.metadata["config"])
    if loaded.tokenizer is None or "dataset" not in known:
        allowed = "must be a run of swingdistill.train; its config says which text and canaries"
        raise InputError("checkpoint", str(path), allowed)
    hp = config.validate(known, private_text.Settings)
    texts = private_text.load(hp)
    private_text.check_classes(hp, texts.classes, "checkpoint", str(path), loaded)
    found = test_metrics(loaded, test_rows(hp, texts.test, loaded.tokenizer))
    if canaries is not None:
        with run_state.about("canaries", str(canaries)):
            _, metadata = checkpoint.find(paths.expand("canaries", canaries))
        if not metadata["config"].get("canaries_per_level"):
            allowed = "must be a run of swingdistill.train that plants canaries"
            raise InputError("canaries", str(canaries), allowed)
        theirs = {**config.to_json(hp), **_known(metadata["config"]), "length": hp.length}
        hp = config.validate(theirs, private_text.Settings)
    if attack is not None:
        found |= attacks.measure(loaded, hp, attack)
    if not hp.canaries_per_level:
        return {**found, "exposure": None}
    bits = exposures(loaded, hp, estimator=estimator, num_samples=num_samples)
    return {**found, "exposure": {str(level): values for level, values in bits.items()}}


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    ours = config.fields(private_text.Settings)
    return {name: value for name, value in settings.items() if name in ours}


def main(argv: Sequence[str]):
    """The binary."""
    flags = cli.Flags(__doc__)
    flags.add_argument("--checkpoint", metavar="DIR", help="a workdir or one of its checkpoints")
    flags.add_argument("--canaries", metavar="DIR", help="the run whose canaries are asked for")
    flags.add_argument("--estimator", choices=ESTIMATORS, help="by default the exact one")
    flags.add_argument("--num_samples", type=int, default=10_000, metavar="N")
    flags.add_argument("--out", metavar="FILE.json", help="where to write everything found")
    attacks.add_flags(flags)
    given = flags.read(argv, required=("checkpoint",))
    attack = attacks.asked(given)
    out = paths.file_to_write("out", given.out) if given.out else None
    found = evaluate_checkpoint(
        given.checkpoint,
        canaries=given.canaries,
        estimator=given.estimator,
        num_samples=given.num_samples,
        attack=attack,
    )
    say(found)
    for level, bits in (found["exposure"] or {}).items():
        print(
            f"exposure at {level} repetitions: mean {np.mean(bits):.2f} bits, worst "
            f"{np.max(bits):.2f} ({len(bits)} secrets; a secret that was not learnt: "
            f"{floor_bits():.2f} on average)"
        )
    if given.estimator == "sampled" and found["exposure"]:
        most = math.log2(given.num_samples + 1)
        print(f"ranks among {given.num_samples:,} sampled numbers show {most:.2f} bits at most")
    attacks.say(found)
    if out is not None:
        checkpoint.write_atomically(out, strict_json.encode(found, indent=1) + "\n")


if __name__ == "__main__":
    cli.launch(main)

"""The attacks as `swingdistill.evaluate` runs them: flags, results, lines on the console."""

import argparse
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from distill_core import checkpoint, config
from distill_core.config import InputError
from distill_core.runtime import cli, parallel
from distill_core.training import run_state
from swingdistill import private_text
from swingdistill.attacks import extraction, membership

NUM_CONTINUATIONS = 20


class Asked(NamedTuple):
    """Which attacks.

    Attributes:
      extract, membership: whether to run each.
      reference: path of a model that did not see the text.
      num_continuations: drawn per secret, beside the likeliest one.
    """

    extract: bool = True
    membership: bool = True
    reference: str | None = None
    num_continuations: int = NUM_CONTINUATIONS


@config.settings
class _Compared(private_text.Settings):
    reference: str | None = config.text(default=None, help="a model that did not see the text")


def add_flags(flags: cli.Flags):
    """Adds the flags that `asked` reads."""
    flags.add_argument(
        "--extract", action="store_true", help="continues the secrets' lines from their prefixes"
    )
    flags.add_argument(
        "--num_continuations",
        type=int,
        metavar="N",
        help=f"drawn per secret beside the likeliest; by default {NUM_CONTINUATIONS}",
    )
    flags.add_argument(
        "--membership", action="store_true", help="tells trained lines from others by their loss"
    )
    flags.add_argument(
        "--reference", metavar="DIR", help="a model that did not see the text, to compare with"
    )


def asked(given: argparse.Namespace) -> Asked | None:
    """The attacks that the flags ask for, None if none.

    Raises:
      InputError: on a flag that belongs to an attack that is not asked for, or is out of range.
    """
    compares = given.extract or given.membership or getattr(given, "secrets", None)
    if given.reference is not None and not compares:
        allowed = "belongs to --extract, --membership and --secrets; give one of them"
        raise InputError("reference", given.reference, allowed)
    number = given.num_continuations
    if number is not None and (number < 0 or not given.extract):
        raise InputError("num_continuations", number, "must be at least 0, and with --extract")
    if not (given.extract or given.membership):
        return None
    number = NUM_CONTINUATIONS if number is None else number
    return Asked(given.extract, given.membership, given.reference, number)


def measure(
    loaded: checkpoint.LoadedModel, hp: private_text.Settings, asked: Asked
) -> dict[str, Any]:
    """The attacks' results on the canaries and the training text of a config.

    Returns:
      "extraction", what `extract` gives, and "membership", what `membership.membership` gives, if
      they are asked for.

    Raises:
      InputError: on `reference`, if it is no model of the same tokenizer; on `extract`, if the
        model is a classifier; and what the attacks raise.
    """
    reference = None
    if asked.reference is not None:
        with run_state.about("reference", asked.reference):
            reference = checkpoint.load_model(asked.reference)
        compared = config.validate({**config.to_json(hp), "reference": asked.reference}, _Compared)
        private_text.over_shared_tokens(compared, {"reference": reference}, loaded.tokenizer)
    if asked.extract and hp.task == "classification":
        raise InputError("extract", True, "asks for a model that continues text, not a classifier")
    texts, found = private_text.load(hp), {}
    if asked.extract:
        found["extraction"] = extract(loaded, hp, texts, reference, asked.num_continuations)
    if asked.membership:
        found["membership"] = membership.membership(loaded, hp, texts, reference)
    return found


def extract(
    loaded: checkpoint.LoadedModel,
    hp: private_text.Settings,
    texts: private_text.Texts,
    reference: checkpoint.LoadedModel | None = None,
    num_continuations: int = 0,
) -> dict[str, Any]:
    """How many canaries and private spans a model says, given what stands before them.

    Returns:
      {"canaries": {repetitions: counts}, "private": counts or None without such spans, "unsayable":
      spans left out as the vocabulary lacks them, "num_continuations", "chance": {"greedy",
      "sampled"}, of a canary, with guesses at random}. Counts are {"secrets"; "greedy", those that
      the likeliest continuation begins with; "sampled", those that one of the drawn ones begins
      with, None if none is drawn}, and the same with `reference_` before, if there is one.
    """
    levels = extraction.canary_secrets(hp, loaded.tokenizer)
    spans, unsayable = extraction.private_secrets(hp, loaded.tokenizer, texts.train)
    groups = [*levels.values(), spans]
    ends = np.cumsum([len(group) for group in groups])[:-1]
    counts: list[dict[str, Any]] = [{"secrets": len(group)} for group in groups]
    for before, model in (("", loaded), ("reference_", reference)):
        if model is None:
            continue
        asked = [secret for group in groups for secret in group]
        pair = extraction.extracted(
            model, asked, hp.length, num_continuations=num_continuations, seed=hp.canary_seed
        )
        by_group = (np.split(each, ends) for each in pair)
        for count, greedy, drawn in zip(counts, *by_group, strict=True):
            count[f"{before}greedy"] = int(greedy.sum())
            count[f"{before}sampled"] = int(drawn.sum()) if num_continuations else None
    guess, draws = (
        1 / len(private_text.space(hp)),
        num_continuations * sum(map(len, levels.values())),
    )
    return {
        "canaries": {str(level): count for level, count in zip(levels, counts, strict=False)},
        "private": counts[-1] if spans else None,
        "unsayable": unsayable,
        "num_continuations": num_continuations,
        "chance": {"greedy": guess, "sampled": -math.expm1(draws * math.log1p(-guess))},
    }


def say(found: Mapping[str, Any]):
    """The results of `measure` among a checkpoint's, in lines on the console of process 0."""
    if not parallel.is_main():
        return
    if (extraction := found.get("extraction")) is not None:
        chance = extraction["chance"]
        chance = f"{chance['greedy']:.1g} and {chance['sampled']:.1g}"
        for level, counts in extraction["canaries"].items():
            counted = _counted(counts, extraction)
            print(f"extracted at {level} repetitions: {counted}; chance {chance} of each")
        if extraction["private"]:
            left = f"; {extraction['unsayable']:,} more are not in its vocabulary"
            counted = _counted(extraction["private"], extraction)
            told = f"extracted of private spans: {counted}{left if extraction['unsayable'] else ''}"
            known = "reference_greedy" in extraction["private"]
            print(told if known else f"{told}; --reference tells how many can be guessed")
        elif not extraction["canaries"]:
            print("extracted: nothing asked, as the text has no canaries and no private spans")
    if (rocs := found.get("membership")) is not None:
        for level, by_score in (rocs["canaries"] or {}).items():
            print(
                _told(f"canaries at {level} repetitions against others like them", by_score["mean"])
            )
        if rocs["text"]:
            told = _told("training lines against test lines", rocs["text"]["mean"])
            print(f"{told} (which may differ for other reasons, too)")
        else:
            least = membership.LEAST
            print(f"membership of lines: not measured, with fewer than {least} other test lines")


def _counted(counts: Mapping[str, Any], extraction: Mapping[str, Any]) -> str:
    number = extraction["num_continuations"]
    found = f"of {counts['secrets']} secrets {counts['greedy']} greedily"
    found += f", {counts['sampled']} by {number} draws per secret" if number else ""
    if "reference_greedy" in counts:
        found += f" (by the reference {counts['reference_greedy']}"
        found += f" and {counts['reference_sampled']})" if number else ")"
    return found


def _told(what: str, roc: Mapping[str, Any]) -> str:
    low, high = roc["interval"]
    return (
        f"TPR at 1% FPR {roc['tpr']:.2f} (chance 0.01; 95% interval {low:.2f} to {high:.2f}; p "
        f"{roc['p_value']:.1g}), AUC {roc['auc']:.2f}: {what}, {roc['members']:,} against "
        f"{roc['non_members']:,}"
    )

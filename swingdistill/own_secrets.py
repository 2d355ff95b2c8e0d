"""A user's own secrets: which are in a file, and how exposed a model leaves them.

A file holds one JSON object per line: {"prefix": "my id is ", "secret": "281265", "suffix": ""}.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from distill_core.config import InputError
from distill_core.data.text.lines import read_numbered
from distill_core.models.network import LoadedModel
from swingdistill.canaries import estimators, models
from swingdistill.canaries import secrets as canaries_lib
from swingdistill.canaries.exposure import verdict
from swingdistill.canaries.secrets import Space

_SHOWN = 20  # on the console, the most exposed


class Secret(NamedTuple):
    """A secret and the text around it; `line` is its number in the file, from 1."""

    line: int
    prefix: str
    secret: str
    suffix: str

    @property
    def format(self) -> str:
        """The text with `{}` in the secret's place, for `str.format`."""
        before, after = (
            part.replace("{", "{{").replace("}", "}}") for part in (self.prefix, self.suffix)
        )
        return f"{before}{{}}{after}"


def read(path: epath.PathLike) -> tuple[Secret, ...]:
    """The secrets of a file; `prefix` and `suffix` may be missing.

    Raises:
      InputError: on `secrets`: no such file, none in it, or a line that is no such object. It names
        the line and never shows what is in it.
    """
    found = []
    for number, text in read_numbered("secrets", str(path)):

        def refused(why: str, number=number) -> InputError:
            return InputError("secrets", f"line {number}", why)

        try:
            given = json.loads(text)
        except ValueError:
            raise refused("must be JSON, one object per line") from None
        if not isinstance(given, dict) or not given.get("secret"):
            raise refused('must be a JSON object with "secret", a non-empty text')
        fields = dict.fromkeys(Secret._fields[1:], "")
        if strange := given.keys() - fields.keys():
            raise refused(f"has {len(strange)} unknown keys; known are {', '.join(fields)}")
        if not all(isinstance(value, str) for value in given.values()):
            raise refused("must hold texts alone, in quotes")
        found.append(Secret(number, **fields | given))
    if not found:
        raise InputError("secrets", str(path), "must hold at least one secret, and is empty")
    return tuple(found)


def measure(
    loaded: LoadedModel,
    secrets: Sequence[Secret],
    entries: Sequence[str] = (),
    *,
    estimator: str | None = None,
    num_samples: int = 10_000,
    batch_size: int = 2000,
) -> dict[str, Any]:
    """How exposed a language model leaves a user's secrets.

    Each is ranked among the candidates in its place of the line; the file's other secrets are none.

    Args:
      loaded: any causal language model with a tokenizer.
      secrets: see `read`.
      entries: candidates for all of them; by default the numbers of as many digits.
      estimator, num_samples, batch_size: see `estimators.rank`.

    Returns:
      {"lines": [{"line", "exposure", "low", "high" (95% bounds), "p", "among", "candidates"}, …],
      "p", "verdict"}; no secret is in it. A p-value is a rank's share of those it is among. It is
      a probability only if the secrets were drawn at random from the candidates: a common name
      ranks high in any model. A candidate that a secret begins with never ranks behind it. The
      verdict is of the most exposed secret among all different ones, which may be related.

    Raises:
      InputError: on `secrets`: no number and no `entries`, longer than the network's lines, or not
        in the tokenizer's vocabulary; and what `estimators.rank` raises.
    """
    for each in secrets:
        _check(each, entries, loaded)
    groups: dict[tuple[str, int], list[Secret]] = {}  # by the text around, and the digits
    for each in secrets:
        groups.setdefault((each.format, 0 if entries else len(each.secret)), []).append(each)
    found: dict[int, dict[str, Any]] = {}
    for (format, num_digits), group in groups.items():
        planted = list(dict.fromkeys(s.secret for s in secrets))
        if entries:
            space = Space(entries=tuple(dict.fromkeys([*entries, *planted])))
        else:
            space = Space(num_digits)
            planted = [secret for secret in planted if len(secret) == num_digits]
        # Nothing is counted after it: the document may go on after what the user wrote of it.
        candidates = canaries_lib.choices(loaded.tokenizer, format, space, planted)
        ranks = estimators.rank(
            models.asked(loaded, candidates),
            planted,
            candidates,
            estimator=estimator,
            num_samples=num_samples,
            batch_size=batch_size,
        )
        low, high = ranks.bounds()
        for each in group:
            i = planted.index(each.secret)
            found[each.line] = {
                "line": each.line,
                "exposure": float(ranks.bits[i]),
                "low": float(low[i]),
                "high": float(high[i]),
                "p": float(2.0 ** -ranks.rank_bits[i]),
                "among": ranks.asked + 1,
                "candidates": ranks.others + 1,
            }
    lines = [found[each.line] for each in secrets]
    different = {(each.format, each.secret): found[each.line]["p"] for each in secrets}
    bits = -np.log2(list(different.values()))
    p, text = verdict(bits, max(line["among"] for line in lines), related=True)
    return {"lines": lines, "p": p, "verdict": text}


def say(found: Mapping[str, Any]):
    """Prints what `measure` found: the most exposed, by their lines in the file, and a verdict."""
    lines = sorted(found["lines"], key=lambda line: -line["exposure"])
    for line in lines[:_SHOWN]:
        bounds = ""
        if line["among"] < line["candidates"]:
            bounds = f" (95%: {line['low']:.2f} to {line['high']:.2f})"
        print(
            f"secret of line {line['line']}: exposure {line['exposure']:.2f} bits{bounds}, p "
            f"{line['p']:.2g} among {line['among']:,} of {line['candidates']:,} candidates"
        )
    if len(lines) > _SHOWN:
        print(f"… and {len(lines) - _SHOWN} less exposed, see --out")
    some = f"{len(lines)} secrets" if len(lines) > 1 else "1 secret"
    print(f"{some} of your own: {found['verdict']}")
    if "reference" in found:
        print(f"asked the same, the reference: {found['reference']['verdict']}")
    else:
        print(
            "p-values take each secret as drawn at random from its candidates; what is common "
            "ranks high in any model: compare by --reference with one that never saw the text"
        )


def _check(each: Secret, entries: Sequence[str], loaded: LoadedModel):
    """Refuses a secret that cannot be ranked; shows its line's number alone."""
    where, tokenizer = f"line {each.line}", loaded.tokenizer
    number = canaries_lib.is_number(each.secret) and len(each.secret) <= canaries_lib.MAX_DIGITS
    if not entries and not number:
        allowed = (
            f"is no number of at most {canaries_lib.MAX_DIGITS} digits: say what else it could "
            "have been with --candidates=FILE, one per line"
        )
        raise InputError("secrets", where, allowed)
    ids = tokenizer.encode(each.format.format(each.secret))
    most = loaded.network.max_length
    if most is not None and len(ids) > most:
        allowed = f"has {len(ids)} tokens, and the network takes {most}; shorten its prefix"
        raise InputError("secrets", where, allowed)
    unknown = tokenizer.unk_id
    if unknown is not None and unknown != tokenizer.bos_id and unknown in ids:
        allowed = "has words that the model's tokenizer does not know, so it cannot have learnt it"
        raise InputError("secrets", where, allowed)

"""Lines in the format of the canaries: the secrets' own, decoys, and others never planted."""

from collections.abc import Sequence

from distill_core.data.text.corpus import Example
from swingdistill import private_text
from swingdistill.canaries import secrets as canaries_lib

_OTHERS = 2**40  # added to the seed of the secrets, for draws that are no decoys of a text


def left_out(examples: Sequence[Example], hp: private_text.Settings) -> list[Example]:
    """The examples but for lines of canaries and decoys."""
    if not hp.canaries_per_level:
        return list(examples)
    before, _, after = hp.canary_format.partition("{}")
    space = private_text.space(hp)  # once: it may be a long list in a file
    entries = set(space.entries)

    def is_like(text: str) -> bool:
        if not (text.startswith(before) and text.endswith(after)):
            return False
        secret = text[len(before) : len(text) - len(after)]
        if entries:
            return secret in entries
        return len(secret) == space.num_digits and canaries_lib.is_number(secret)

    return [example for example in examples if not is_like(example.text)]


def others(
    hp: private_text.Settings, drawn: Sequence[canaries_lib.Canary], num: int
) -> tuple[str, ...]:
    """Lines with different random candidates, neither secrets nor decoys, `num` at most.

    Drawn as the secrets are: to a model that learnt none, these cannot be told from them.
    """
    decoys, fresh = (
        canaries_lib.transfer_set(
            "decoy", (), drawn, seed=seed, num_decoys=count, entries=private_text.space(hp).entries
        )
        for seed, count in ((hp.canary_seed, hp.num_decoys), (hp.canary_seed + _OTHERS, num))
    )
    return tuple(dict.fromkeys(line for line in fresh if line not in set(decoys)))

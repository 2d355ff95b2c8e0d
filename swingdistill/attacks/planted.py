"""Lines in the format of the canaries: the secrets' own, decoys, and others never planted."""

from collections.abc import Sequence

from swingdistill import private_text
from swingdistill.canaries import secrets as canaries_lib

_OTHERS = 2**40  # added to the seed of the secrets, for draws that are no decoys of a text


def is_like(text: str, hp: private_text.Settings) -> bool:
    """Whether a line of text is a canary's or a decoy's."""
    before, _, after = hp.canary_format.partition("{}")
    if not hp.canaries_per_level or not (text.startswith(before) and text.endswith(after)):
        return False
    secret, space = text[len(before) : len(text) - len(after)], private_text.space(hp)
    if space.entries:
        return secret in set(space.entries)
    return len(secret) == space.num_digits and canaries_lib.is_number(secret)


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

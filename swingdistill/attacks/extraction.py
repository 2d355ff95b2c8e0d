"""Extraction: secrets that a model says by itself once it is given what stands before them.

Source: Carlini et al., "Extracting Training Data from Large Language Models", USENIX Security 2021,
and "Quantifying Memorization Across Neural Language Models", ICLR 2023, which continue a training
text from its own prefix. Which stretches count as secrets is ours.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from distill_core.checkpoint import LoadedModel
from distill_core.config import InputError
from distill_core.data import sampling
from distill_core.data.text import tasks as text_tasks
from distill_core.data.text.corpus import Example
from distill_core.data.text.tokenizers import Tokenizer
from distill_core.training.generate import generate
from swingdistill import private_text
from swingdistill.attacks import planted
from swingdistill.scorers import judges

MOST_SPANS = 200
_SHORTEST = 8  # widths of prompts are this times a power of two, to compile few programs


class Secret(NamedTuple):
    """A stretch of text and what stands before it.

    Attributes:
      prompt: int32 [P], ids of `<bos>` and of the line up to the stretch.
      text: the stretch, from the first character of its first token.
      ids: int32 [k], its own in that text; others may write it, too.
    """

    prompt: np.ndarray
    text: str
    ids: np.ndarray


def canary_secrets(hp: private_text.Settings, tokenizer: Tokenizer) -> dict[int, list[Secret]]:
    """The planted numbers of a config, by repetitions: {} without canaries.

    Raises:
      InputError: on `tokenizer`, if it lacks a digit, or takes more than a row for a secret.
    """
    found: dict[int, list[Secret]] = {}
    for canary in private_text.draw(hp):
        example = private_text.canary_example(canary.line, hp, ())
        secrets = _secrets(example, example.spans, hp, tokenizer, hp.length - 1)
        if not secrets:
            allowed = f"must write the secret of {canary.line!r} in tokens it knows, in one row"
            raise InputError("tokenizer", type(tokenizer).__name__, allowed)
        found.setdefault(canary.repetitions, []).extend(secrets)
    return found


def private_secrets(
    hp: private_text.Settings, tokenizer: Tokenizer, examples: Sequence[Example]
) -> tuple[list[Secret], int]:
    """The private stretches of a text beside canaries and decoys, each once; and how many it lacks.

    Where private spans are not known, they are what the rules find. Left out are spans at the very
    start of a line, which nothing precedes; those that their own prefix holds, which are copied
    rather than known; and, counted, those that the model cannot say: words that its vocabulary
    lacks, or more tokens than half a row. Of more than `MOST_SPANS` every k-th is taken.
    """
    own = planted.left_out(examples, hp)
    known = any(example.spans for example in own)
    found: dict[tuple[bytes, str], Secret] = {}
    unsayable = 0
    for example in own:
        spans = example.spans if known else _by_rules(example, tokenizer, hp.expressions)
        if not spans:
            continue
        sayable = _secrets(example, spans, hp, tokenizer, hp.length // 2)
        unsayable += len(spans) - len(sayable)
        for secret in sayable:
            found[secret.prompt.tobytes(), secret.text] = secret
    kept = [
        secret
        for secret in found.values()
        if len(secret.prompt) > 1 and not _is_in(secret.ids, secret.prompt)
    ]
    step = max(1, -(-len(kept) // MOST_SPANS))
    return kept[::step], unsayable


def extracted(
    loaded: LoadedModel,
    secrets: Sequence[Secret],
    length: int,
    *,
    num_continuations: int = 0,
    seed: int = 0,
    batch_size: int = 256,
) -> tuple[np.ndarray, np.ndarray]:
    """Whether a model continues prompts with their secrets.

    A continuation counts if it begins with the secret's text, white space apart: a tokenizer of
    words writes none between digits. The likeliest token at a time gives one per prompt, and so at
    most one of all secrets with that prompt, as canaries of one format are. Drawn at temperature 1
    are `num_continuations` per secret; each counts for every secret of its prompt.

    Args:
      loaded: any language model.
      secrets: of its tokenizer.
      length: tokens of a row; of longer prompts the end is used.
      num_continuations: drawn per secret.
      seed: of the draws.
      batch_size: prompts at a time.

    Returns:
      (extracted greedily, extracted by one of the draws), bool [n] each.

    Raises:
      InputError: on `model`, if the network cannot continue a text.
    """
    found = np.zeros((2, len(secrets)), bool)
    num_tokens = max((len(secret.ids) for secret in secrets), default=1)
    limit = length + 1 - num_tokens
    by_width: dict[int, dict[bytes, list[int]]] = {}
    for i, secret in enumerate(secrets):
        prompt = secret.prompt[-limit:]
        same = by_width.setdefault(min(_power(len(prompt)), limit), {})
        same.setdefault(prompt.tobytes(), []).append(i)
    variables, key = jax.device_put(loaded.variables), jax.random.key(seed)
    for width, groups in by_width.items():
        for draws, temperature in ((0, 0.0), (num_continuations, 1.0)):
            times = [draws * len(group) if temperature else 1 for group in groups.values()]
            items = np.repeat(np.arange(len(groups)), times)
            given = [(np.frombuffer(ids, np.int32), group) for ids, group in groups.items()]
            for index, mask in sampling.eval_batches(len(items), min(batch_size, len(items)) or 1):
                key = jax.random.fold_in(key, 1)
                chosen = [given[i] for i in items[index]]
                prompts = np.zeros((len(chosen), width), np.int32)
                for row, (prompt, _) in zip(prompts, chosen, strict=True):
                    row[: len(prompt)] = prompt
                lengths = np.array([len(prompt) for prompt, _ in chosen], np.int32)
                how = {"num_tokens": num_tokens, "key": key, "temperature": temperature}
                said = np.asarray(generate(loaded.network, variables, prompts, lengths, **how))
                for ids, (_, group) in itertools.compress(zip(said, chosen, strict=True), mask):
                    text = _squeezed(loaded.tokenizer.decode(ids))
                    for i in group:
                        is_there = text.startswith(_squeezed(secrets[i].text))
                        found[int(temperature > 0), i] |= is_there
    return found[0], found[1]


def _secrets(
    example: Example,
    spans: Sequence[Any],
    hp: private_text.Settings,
    tokenizer: Tokenizer,
    most: int,
) -> list[Secret]:
    """Those spans of a line that take at most `most` tokens, each of them known."""
    line = text_tasks.encode(example, tokenizer, hp.task)
    moved = len(line.text) - len(example.text)  # by what precedes the text in `generation`
    start, end = line.offsets[: len(line.ids)].T
    found = []
    for low, high in ((span[0] + moved, span[1] + moved) for span in spans):
        places = np.flatnonzero((start < end) & (start < high) & (end > low))
        if not len(places) or len(places) > most:
            continue
        first, ids = places[0], line.ids[places[0] : places[-1] + 1]
        if tokenizer.unk_id is not None and tokenizer.unk_id in ids:
            continue
        prompt = np.array([tokenizer.bos_id, *line.ids[:first]], np.int32)
        found.append(Secret(prompt, line.text[start[first] : high], ids))
    return found


def _by_rules(example: Example, tokenizer: Tokenizer, expressions: Sequence[str]):
    """(start, end) in characters of each run of tokens that the rules call private."""
    _, offsets = tokenizer.encode_with_offsets(example.text)
    found = judges.rules(example.text, offsets, extra=expressions) > 0
    edges = np.flatnonzero(np.diff(np.concatenate([[False], found, [False]]).astype(np.int8)))
    return [(int(offsets[i][0]), int(offsets[j - 1][1])) for i, j in edges.reshape(-1, 2)]


def _is_in(ids: np.ndarray, prompt: np.ndarray) -> bool:
    if len(ids) > len(prompt):
        return False
    windows = np.lib.stride_tricks.sliding_window_view(prompt, len(ids))
    return bool((windows == ids[None]).all(axis=1).any())


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _power(number: int) -> int:
    """The next of `_SHORTEST`, twice that, and so on."""
    return _SHORTEST << max(0, math.ceil(math.log2(number / _SHORTEST)))

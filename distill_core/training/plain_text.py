"""Trains a language model on the labels of a corpus alone, with differential privacy if asked."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from distill_core import checkpoint, config
from distill_core.config import InputError
from distill_core.data.text import cache, files, tokenizers
from distill_core.data.text import corpus as corpora
from distill_core.data.text import tasks as text_tasks
from distill_core.models import checks
from distill_core.models.network import Network, text_network
from distill_core.runtime import parallel, paths
from distill_core.step import NextTokens
from distill_core.training import dp_sgd, fits, inputs, language, run_state

TRAINERS = ("words", "byte_pairs", "byte_pairs_merged")  # the last merges digits, too
FROM_START, FROM_TEACHER = "init_from", "teacher"
_LENGTH, _VOCAB_SIZE = 64, 2000
_AT_ONCE, _HELD = ("dp", "epsilon", "data_on_device", "spans"), 256  # MiB


@config.settings
class Text(config.Stream, config.Language):
    """Rows of text and their tokenizer; None means not given, as for images."""

    length: int | None = config.integer(2, default=None, help="L, tokens of a row of text; 64")
    tokenizer: str | None = config.text(
        default=None,
        help="words, byte_pairs, byte_pairs_merged (digits, too) or a PATH; words",
    )
    vocab_size: int | None = config.integer(15, default=None, help="of a new tokenizer; 2000")
    public_text: bool = config.boolean(
        default=False, help="the training text is public, so its vocabulary may be published"
    )


def is_text(dataset: str) -> bool:
    """Whether a config's `dataset` names a corpus, not images."""
    return dataset.partition(":")[0] in corpora.KINDS


def train(
    hp: Any, workdir: epath.PathLike, *, method: str, mode: str | None = None
) -> dict[str, Any]:
    """Trains to the end or resumes, and measures on the corpus's test text.

    With a group `dp` a record is a line: each has a row of its own, cut after `length` tokens. A
    vocabulary made of the private lines would reveal their words, so it has to come from elsewhere.
    Validation and test text are public. `public_text` declares the training text public, too: then
    a release may include the vocabulary made of it.

    Returns:
      {"perplexity", "accuracy", "id"}, and with `dp` what `dp_sgd.report` returns.

    Raises:
      InputError: on a field, before anything is written; and what `language.train` raises.
    """
    check_start(hp)
    usual = hp.init_from if hp.model == FROM_START else TRAINERS[0]
    defaults = {"length": _LENGTH, "tokenizer": usual, "vocab_size": _VOCAB_SIZE}
    hp = dataclasses.replace(hp, **{k: getattr(hp, k) or v for k, v in defaults.items()})
    private, wanted = bool(hp.dp), hp.tokenizer
    check_private(hp)
    corpus = corpora.load_corpus(hp.dataset, memory=text_memory(hp), cache=hp.text_cache)
    check_in_memory(hp, corpus.train)
    run_state.check_unchanged(hp, workdir, {"dataset": corpus.fingerprint()})
    if wanted in TRAINERS:
        tokenizer = new_tokenizer(hp, wanted, (line.text for line in corpus.train), corpus.train)
    else:
        tokenizer = stored_tokenizer(wanted, private=private)
    network = make_network(hp, workdir, tokenizer, mode=mode)
    rows = _to_rows(hp, tokenizer, corpus.train, "training", apart=private)
    held = _to_rows(hp, tokenizer, corpus.validation, "validation")
    run = language.Run(hp, workdir, method, network, rows, held, mode, hp.dp)
    reads = {"dataset": corpus.fingerprint(), "tokenizer": inputs.of_tokenizer(tokenizer)}
    id = language.train(run, NextTokens(network), frozen={}, reads=reads)
    loaded = checkpoint.load_model(workdir, sharding=parallel.placing(parallel.choose_mode(mode)))
    judged, batch_size = _to_rows(hp, tokenizer, corpus.test, "test"), hp.eval_batch_size
    found = language.measure(loaded, judged, batch_size=batch_size, mode=mode)
    perplexity = math.exp(min(found["cross_entropy"], 700.0))
    fits.say(f"test perplexity {perplexity:.3f}  accuracy {found['accuracy']:.4f}")
    spent = dp_sgd.report(workdir) if private else {}
    return {"perplexity": perplexity, "accuracy": found["accuracy"], "id": id, **spent}


def training_rows(dataset: str, tokenizer: tokenizers.Tokenizer, length: int) -> language.Rows:
    """The rows that a run with the default settings learns from, on disk if the text is long."""
    hp = Text(length=length)
    corpus = corpora.load_corpus(dataset, memory=text_memory(hp), cache=hp.text_cache)
    return _to_rows(hp, tokenizer, corpus.train, "training")


def _to_rows(hp, tokenizer, examples, of: str, *, apart: bool = False) -> language.Rows:
    if isinstance(examples, corpora.InFiles):
        lines = cache.Lines(examples, tokenizer, "language", hp.length)
        return cache.tokenised(files.folder(hp.text_cache), lines, of=of)[0]
    lay = text_tasks.line_rows if apart else text_tasks.to_rows
    lines = [text_tasks.encode(example, tokenizer, "language") for example in examples]
    return lay(lines, tokenizer, hp.length)[0]


def text_memory(hp: Any) -> int:
    """Bytes of a split of text from which on it stays in files.

    Settings that need all of a text at once (`_AT_ONCE`) get at least 256 MiB of it.
    """
    least = _HELD if any(getattr(hp, field, None) for field in _AT_ONCE) else 0
    return max(hp.text_memory, least) * 2**20


def check_in_memory(hp: Any, examples: Sequence[corpora.Example]):
    """Refuses text that stays in files for what needs all of it: InputError on the field."""
    for field in _AT_ONCE:
        if not (getattr(hp, field, None) and isinstance(examples, corpora.InFiles)):
            continue
        limit = text_memory(hp) // 2**20
        allowed = f"needs the text in memory, and it is larger than {limit} MiB: raise text_memory"
        raise InputError(field, config.to_json(getattr(hp, field)), allowed)


def make_network(
    hp: Any,
    workdir: epath.PathLike,
    tokenizer: tokenizers.Tokenizer,
    classes: Sequence[str] = (),
    teacher: Network | None = None,
    *,
    mode: str | None = None,
) -> Network:
    """The language model of a run.

    With `model="init_from"` it is that of its first weights, with `model="teacher"` the teacher's
    with other `model_kwargs`.

    Raises:
      InputError: it cannot be built, or its rows are shorter than `length`.
    """
    model, kwargs = hp.model, hp.model_kwargs
    if model == FROM_TEACHER:
        if teacher is None:
            raise InputError("model", model, "needs a teacher")
        model, kwargs = teacher.model, {**teacher.model_kwargs, **kwargs}
    network = text_network(
        tokenizer,
        hp.length,
        model=model,
        model_kwargs=kwargs,
        classes=classes,
        compute_dtype=hp.compute_dtype,
        remat=hp.remat == "block",
    )
    if hp.model == FROM_START:
        network = _as_started(hp, workdir, network, parallel.choose_mode(mode))
    checks.check(network)
    return network


def _as_started(hp: Any, workdir: epath.PathLike, network: Network, mode: str) -> Network:
    start = run_state.starting_network(hp, workdir, mode)
    if start is None or not start.is_text:
        raise InputError("init_from", hp.init_from, "must be a language model")
    if start.is_bounded and start.max_length < hp.length:
        raise InputError("length", hp.length, f"must be at most {start.max_length}, init_from's")
    if network.num_classes > start.num_classes:
        allowed = f"has {network.num_classes:,} tokens; init_from has {start.num_classes:,}"
        raise InputError("tokenizer", hp.tokenizer, allowed)
    return dataclasses.replace(
        network,
        model=start.model,
        model_kwargs=start.model_kwargs,
        num_classes=start.num_classes,
        max_length=max(start.max_length or 0, hp.length),
        vocab_size=network.num_classes if network.num_classes < start.num_classes else None,
    )


def check_start(hp: Any):
    """Raises InputError on `model` if it is to be that of first weights which are not given."""
    if hp.model == FROM_START and (hp.init_from is None or hp.model_kwargs):
        allowed = "needs init_from, a language model, and no model_kwargs: they are that model's"
        raise InputError("model", FROM_START, allowed)


def check_private(hp: Any):
    """Raises InputError on `tokenizer` or `public_text` if it defeats the group `dp`."""
    if not hp.dp:
        return
    if hp.tokenizer is None or hp.tokenizer in TRAINERS:
        allowed = "with dp must be a PATH: a vocabulary made of private lines reveals their words"
        raise InputError("tokenizer", hp.tokenizer, allowed)
    if hp.public_text:
        raise InputError("public_text", True, "must be False with dp, which protects the text")


def new_tokenizer(
    hp: Any,
    kind: str,
    lines: Iterable[str],
    text: Sequence[corpora.Example] = (),
    **decides: Any,
) -> tokenizers.Tokenizer:
    """A tokenizer of one of `TRAINERS`, trained on lines; it records whether they are public.

    If the `text` that they are made of, as `decides` says, stays in files, it is trained once.
    """
    made_from = tokenizers.PUBLIC_TEXT if hp.public_text else tokenizers.TRAINING_TEXT

    def make() -> tokenizers.Tokenizer:
        if kind == "words":
            made = tokenizers.train_words(lines, vocab_size=hp.vocab_size)
        else:
            merge = kind == "byte_pairs_merged"
            made = tokenizers.train_byte_pairs(lines, vocab_size=hp.vocab_size, merge_digits=merge)
        made.made_from = made_from
        return made

    if not isinstance(text, corpora.InFiles):
        return make()
    decides |= {"text": text.content, "kind": kind, "vocab_size": hp.vocab_size}
    return cache.tokenizer(files.folder(hp.text_cache), make, made_from, **decides)


def stored_tokenizer(path: str, *, private: bool) -> tokenizers.Tokenizer:
    """The tokenizer in a `tokenizer.json` or a language model's checkpoint.

    Raises:
      InputError: on `tokenizer`; with `private` also if it was made from training text that was not
        declared public, as that may be the protected lines.
    """
    file = paths.expand("tokenizer", path)
    if file.is_file():
        try:
            found = tokenizers.Tokenizer.from_json(file.read_text(encoding="utf-8"))
        except (InputError, UnicodeDecodeError) as error:
            why = f": {error.given!r} {error.allowed}" if isinstance(error, InputError) else ""
            allowed = f"must be a tokenizer of the library `tokenizers`{why}"
            raise InputError("tokenizer", path, allowed) from None
    else:
        with run_state.about("tokenizer", path):
            found = tokenizer_of(checkpoint.load_model(str(file)), "tokenizer", path)
    if private and found.made_from == tokenizers.TRAINING_TEXT:
        allowed = (
            "with dp must not be made from training text, whose words it reveals: take one from "
            "elsewhere, or from a run with public_text=True"
        )
        raise InputError("tokenizer", path, allowed)
    return found


def tokenizer_of(loaded: Any, field: str, path: str) -> tokenizers.Tokenizer:
    """A checkpoint's tokenizer; raises InputError on the field that named it if it has none."""
    if loaded.tokenizer is None:
        raise InputError(field, path, "has no tokenizer: it must be a language model's checkpoint")
    return loaded.tokenizer

"""The text of a run: its lines, canaries, tokenizer and rows.

Canaries stand for private lines. Everything is a pure function of the settings, so that a teacher's
text can be made again from its checkpoint.
"""

import dataclasses
import hashlib
import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from distill_core import checkpoint, config
from distill_core.config import InputError
from distill_core.data import columns
from distill_core.data.text import cache, files, tokenizers
from distill_core.data.text import corpus as corpora
from distill_core.data.text import tasks as text_tasks
from distill_core.data.text.corpus import Example
from distill_core.data.text.lines import Span
from distill_core.models.network import LoadedModel
from distill_core.training import fits, plain_text
from swingdistill.canaries import secrets as canaries_lib
from swingdistill.scorers import judges as scorers


@config.settings
class Text(config.Stream):
    """Text, what is private in it, and the canaries planted in it."""

    dataset: str = config.text(help="records, text:PATH, tsv:PATH or jsonl:PATH")
    spans: str | None = config.text(
        default=None, help="FILE or DIRECTORY of the private spans of text:PATH"
    )
    task: str = config.choice(*text_tasks.TASKS, default="language", help="what is learnt of it")
    num_train: int = config.integer(1, default=10**9, help="training lines at most")
    length: int = config.integer(2, default=64, help="L, tokens of a row")
    tokenizer: str | None = config.text(
        default=None,
        help="words, byte_pairs, byte_pairs_merged (digits, too) or a PATH; the teacher's",
    )
    vocab_size: int = config.integer(15, default=2000, help="of a new tokenizer")
    canaries_per_level: int = config.integer(0, default=0, help="secrets planted per level")
    canary_levels: tuple[int, ...] = config.sequence(
        config.integer(1), default=(1, 10, 100), help="how often a secret stands in the text"
    )
    canary_digits: int = config.integer(
        1, canaries_lib.MAX_DIGITS, default=6, help="of a secret number"
    )
    canary_candidates: str | None = config.text(
        default=None, help="a FILE of all that a secret may be, one per line, instead of numbers"
    )
    canary_format: str = config.text(
        default=canaries_lib.FORMAT, help="a secret's line, {} in its place"
    )
    num_decoys: int = config.integer(0, default=1000, help="other secrets, where they are mixed in")
    expressions: tuple[str, ...] = config.sequence(
        config.text(), default=(), help="regular expressions of private text, for the scorer rules"
    )


@config.settings
class Settings(Text):
    """The text of one run."""

    half: str = config.choice(
        "all", "first", "second", default="all", help="of the training lines to train on"
    )
    public_text: bool = config.boolean(
        default=False, help="the training text is public, so a vocabulary made of it may be told"
    )
    transfer_set: str = config.choice(
        *canaries_lib.TRANSFER_SETS, default="private", help="which canary lines are mixed in"
    )
    canary_seed: int = config.integer(0, default=0, help="which secrets are drawn")


_IDS = ("tokens", "labels")
CANARY = "canary"  # the kind of a planted secret's span
_SAMPLED = 50_000  # lines, about, that are compared of text that stays in files
_SHARED = 0.1  # of the lines, from which on a reference is said to have seen them
_NOTE = Example("", fields={"note": "number"})  # what a canary is generated from


@dataclasses.dataclass(frozen=True)
class Texts:
    """Training, validation and test text of a run; `train` alone holds canaries."""

    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
    canaries: tuple[canaries_lib.Canary, ...]
    classes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Mixed(corpora.InFiles):
    """Lines, which may stay in files, and others among them.

    Attributes:
      lines: those that may.
      added: the others, by their places.
    """

    lines: Any
    added: Mapping[int, Example]

    @property
    def content(self) -> list[Any]:
        """What decides the lines, as JSON."""
        added = [[place, each.text, each.label] for place, each in self.added.items()]
        return [self.lines.content, added]

    @property
    def kinds(self) -> set[str]:
        """Those of the lines' private spans, and of the others'."""
        return corpora.span_kinds(self.lines) | ({CANARY} if self.added else set())

    @property
    def size(self) -> float:
        """Bytes, about, of the lines that stay in files."""
        return self.lines.size if isinstance(self.lines, corpora.InFiles) else 0

    def __len__(self) -> int:
        return len(self.lines) + len(self.added)

    def __iter__(self) -> Iterator[Example]:
        old = iter(self.lines)
        for place in range(len(self)):
            yield self.added[place] if place in self.added else next(old)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(itertools.islice(self, *index.indices(len(self))))
        return next(itertools.islice(self, index, None))


def corpus_of(hp: Text) -> corpora.Corpus:
    """The corpus that a config names, in memory or not as it says."""
    memory = plain_text.text_memory(hp)
    return corpora.load_corpus(hp.dataset, spans=hp.spans, memory=memory, cache=hp.text_cache)


def load(hp: Settings) -> Texts:
    """The lines of a config's run.

    `half` and `num_train` choose among the corpus's training lines (the first or the second half,
    then that many from its start): a reference is trained on the half that no teacher saw.

    In `classification` the private text also holds the decoys: other numbers, each once, with
    random labels. Without them a model would be as sure of the label of any number as of a
    secret's, and the loss would tell nothing.

    Raises:
      InputError: on the text, its spans or the canaries.
    """
    corpus = corpus_of(hp)
    splits = (corpus.train, corpus.validation, corpus.test)
    if any(CANARY in corpora.span_kinds(split) for split in splits):
        allowed = f"has a span of the kind {CANARY!r}, which is kept for planted secrets; rename it"
        field = "dataset" if hp.spans is None else "spans"
        raise InputError(field, getattr(hp, field), allowed)
    if hp.task == "classification" and not corpus.classes:
        raise InputError("task", hp.task, "needs labelled text: records, tsv:PATH or jsonl:PATH")
    drawn = draw(hp)
    train: Sequence[Example] = _half(hp, corpus.train)[: hp.num_train]
    for name in _mixed_in(hp) if drawn else ():
        how = {"seed": hp.canary_seed, "num_decoys": hp.num_decoys, "entries": space(hp).entries}
        added = canaries_lib.planted(name, len(train), drawn, **how)
        examples = {at: canary_example(line, hp, corpus.classes) for at, line in added.items()}
        train = Mixed(train, examples)
    train = corpora.held(train, hp.text_memory * 2**20)
    return Texts(train, corpus.validation, corpus.test, drawn, corpus.classes)


def _half(hp: Settings, lines: Sequence[Example]) -> Sequence[Example]:
    middle = len(lines) // 2
    chosen = {"all": slice(None), "first": slice(middle), "second": slice(middle, None)}
    found = lines[chosen[hp.half]]
    if not found:
        raise InputError("half", hp.half, f"has no line of {hp.dataset}; take all")
    return found


def _mixed_in(hp: Settings) -> tuple[str, ...]:
    if hp.task == "classification" and hp.transfer_set == "private":
        return ("decoy", "private")
    return (hp.transfer_set,)


def draw(hp: Settings) -> tuple[canaries_lib.Canary, ...]:
    """The canaries of a config, () if it has none."""
    if not hp.canaries_per_level:
        return ()
    return canaries_lib.draw_canaries(
        hp.canary_seed,
        per_level=hp.canaries_per_level,
        levels=hp.canary_levels,
        num_digits=hp.canary_digits,
        entries=space(hp).entries,
        format=hp.canary_format,
    )


def space(hp: Text) -> canaries_lib.Space:
    """All that a canary's secret may be.

    Raises:
      InputError: on `canary_candidates`, if the file cannot be read; see `read_entries`.
    """
    if hp.canary_candidates is None:
        return canaries_lib.Space(hp.canary_digits)
    entries = canaries_lib.read_entries("canary_candidates", hp.canary_candidates)
    return canaries_lib.Space(entries=entries)


def fingerprints(hp: Text) -> dict[str, str]:
    """Fingerprints of the files that the text is made of, by the field that names each."""
    found = {"dataset": corpus_of(hp).fingerprint()}
    if hp.canary_candidates is not None:
        listed = "\n".join(space(hp).entries)
        found["canary_candidates"] = hashlib.sha256(listed.encode()).hexdigest()
    return found


def reference_saw(given: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """Why a reference may know what it should call private: "", or a clause that says so.

    Args:
      given: the config of the teacher, or of its student.
      reference: the reference's config; what no run of `swingdistill.train` wrote tells nothing.

    Raises:
      InputError: on a field of either, if its canaries cannot be drawn again.
    """
    ours, theirs = (
        {k: v for k, v in each.items() if k in config.fields(Settings) and v is not None}
        for each in (given, reference)
    )
    if "dataset" not in ours or "dataset" not in theirs:
        return ""
    if theirs.get("transfer_set") == "private":
        first, second = (draw(config.validate(each, Settings)) for each in (ours, theirs))
        if both := {canary.line for canary in first} & {canary.line for canary in second}:
            return f"was trained on {len(both)} of the same canaries"
    if theirs.get("public_text"):
        return ""
    try:
        first, second = (_own_lines(config.validate(each, Settings)) for each in (ours, theirs))
    except InputError:  # text that is gone
        return ""
    if len(both := first & second) > _SHARED * len(first):
        return f"was trained on {len(both):,} of the same {len(first):,} lines"
    return ""


def _own_lines(hp: Settings) -> set[str]:
    """The lines of a run; of text that stays in files a sample, the same lines for every run."""
    corpus = corpus_of(hp)
    lines = (line.text for line in _half(hp, corpus.train)[: hp.num_train])
    if not isinstance(corpus.train, corpora.InFiles):
        return set(lines)
    every = -(-len(corpus.train) // _SAMPLED)
    return {text for text in lines if zlib.crc32(text.encode()) % every == 0}


def canary_example(line: str, hp: Settings, classes: Sequence[str]) -> Example:
    """A canary's or a decoy's line as an example of the corpus.

    Its label, where there are classes, is a function of the secret that looks random: the label of
    one number tells nothing of another's.
    """
    before, _, after = hp.canary_format.partition("{}")
    span = Span(len(before), len(line) - len(after), kind=CANARY)
    if hp.task != "classification":
        return dataclasses.replace(_NOTE, text=line, spans=(span,))
    return Example(line, (span,), {}, canary_label(line[span.start : span.end], hp, len(classes)))


def canary_label(secret: str, hp: Settings, num_classes: int) -> int:
    """The class of a canary's text in `classification`."""
    number = canaries_lib.is_number(secret)
    value = int(secret) if number else int.from_bytes(secret.encode(), "big")
    mixed = np.random.default_rng([hp.canary_seed, value, len(secret)])
    return int(mixed.integers(num_classes))


def secret_candidates(
    hp: Settings, tokenizer: tokenizers.Tokenizer, drawn: Sequence[canaries_lib.Canary]
) -> canaries_lib.Candidates | canaries_lib.Lines:
    """The candidates that the secrets are ranked among, in lines of the task.

    Raises:
      InputError: on `tokenizer`, if it does not know one or cannot tell two apart; on `length`, if
        they are longer than a row.
    """
    before = text_tasks.prompt(_NOTE) if hp.task == "generation" else ""
    listed, format = space(hp), before + hp.canary_format
    # Of a list one may begin another ("Ann", "Ann Lee"): what follows it has to count.
    ends = listed.entries or hp.task == "classification"
    ending = [tokenizer.eos_id] if ends else []
    secrets = [canary.secret for canary in drawn]
    found = canaries_lib.choices(tokenizer, format, listed, secrets, ending=ending)
    if isinstance(found, canaries_lib.Lines):
        asked = range(len(found)) if len(found) <= canaries_lib.MAX_LINES else found.index(secrets)
        needed = max(map(len, found.rows(asked)))
    else:
        needed = len(found.prefix) + len(found.symbols) + len(found.suffix)
    needed += 2 * (hp.task == "classification") - len(ending)  # labels are asked for one later
    if needed > hp.length:
        raise InputError("length", hp.length, f"must be at least {needed}, a canary's")
    return found


def get_tokenizer(
    hp: Settings, teacher: Any = None, *, private: bool = False
) -> tokenizers.Tokenizer:
    """The tokenizer of a run: the teacher's, a stored one, or one trained on the corpus.

    `tokenizer` in the config is `words`, `byte_pairs`, the path of a checkpoint or of a
    `tokenizer.json`; None means the teacher's, and `words` without a teacher. A new one is trained
    on the corpus without canaries, and on the words of their format: on the lines of both halves,
    so that runs on either have one vocabulary, which then tells words of both; or, with
    `public_text`, on the run's own half alone, which the user declares public.

    Raises:
      InputError: on `tokenizer` or on the text.
    """
    wanted = hp.tokenizer
    if wanted is None and teacher is None:
        from_start = getattr(hp, "model", None) == plain_text.FROM_START
        wanted = str(getattr(hp, "init_from", None)) if from_start else "words"
    if wanted is None:
        return plain_text.tokenizer_of(teacher, "teacher", str(getattr(hp, "teacher", None)))
    if wanted not in plain_text.TRAINERS:
        return plain_text.stored_tokenizer(wanted, private=private)
    corpus = corpus_of(hp).train
    if hp.public_text:
        corpus = _half(hp, corpus)
    form = dataclasses.replace(_NOTE, text=hp.canary_format.replace("{}", "0"))
    forms = itertools.repeat(form, len(corpus) if hp.canaries_per_level else 0)
    before = text_tasks.prompt if hp.task == "generation" else lambda example: ""
    lines = (before(example) + example.text for example in itertools.chain(corpus, forms))
    planted = hp.canary_format if hp.canaries_per_level else ""
    return plain_text.new_tokenizer(hp, wanted, lines, corpus, task=hp.task, planted=planted)


def over_shared_tokens(
    hp: Settings, models: Mapping[str, LoadedModel], tokenizer: tokenizers.Tokenizer
) -> tuple[dict[str, LoadedModel], int]:
    """(a run's teacher and reference over those first tokens that are the same for all, V).

    What lies beyond, padding and added tokens that others lack, is in no softmax and no loss.

    Raises:
      InputError: on the field of a network that splits text differently than the run (names the
        first token that differs), or on `length` if its rows are shorter.
    """
    shared = tokenizer.vocab_size
    for field, loaded in models.items():
        path, network = getattr(hp, field), loaded.network
        theirs = plain_text.tokenizer_of(loaded, field, path)
        shared = min(shared, fits.shared_tokens(field, path, theirs, tokenizer))
        if network.num_tokens != theirs.vocab_size:
            allowed = f"has embeddings for {network.num_tokens:,} tokens and a tokenizer of "
            raise InputError(field, path, f"{allowed}{theirs.vocab_size:,}; they must agree")
        if network.is_bounded and (network.max_length or 0) < hp.length:
            allowed = f"must be at most {network.max_length}, the {field}'s"
            raise InputError("length", hp.length, allowed)

    def cut(loaded: LoadedModel) -> LoadedModel:
        return dataclasses.replace(
            loaded, network=dataclasses.replace(loaded.network, vocab_size=shared)
        )

    return {field: cut(loaded) for field, loaded in models.items()}, shared


def check_ids(
    hp: Settings,
    texts: Sequence[Mapping[str, Any]],
    tokenizer: tokenizers.Tokenizer,
    shared: int,
):
    """Refuses rows with a token beyond the first `shared`: InputError on `dataset`."""
    if tokenizer.vocab_size <= shared:
        return
    size = text_tasks.chunk_rows(hp.length)
    chunks = (each for rows in texts for each in columns.in_chunks(rows, _IDS, size))
    highest = max(int(ids.max()) for chunk in chunks for ids in chunk.values())
    if highest >= shared:
        allowed = (
            f"holds the token {tokenizer.decode([highest])!r} ({highest}), which the tokenizers of "
            f"student, teacher and reference do not share; they do {shared:,} tokens"
        )
        raise InputError("dataset", hp.dataset, allowed)


def check_classes(hp: Settings, classes: Sequence[str], field: str, path: str, loaded: Any):
    """Refuses, in `classification`, a model whose class numbers stand for other classes.

    Raises:
      InputError: on the field that names the model.
    """
    if hp.task == "classification":
        theirs, what = loaded.network.class_names, hp.dataset
        fits.say(fits.class_order(field, path, theirs, classes, what=what, mapped=False)[1])


class Encoded(NamedTuple):
    """Examples in rows of tokens.

    Attributes:
      rows: `tokens`, `labels`, `segments`, `weights`, [N, L] each; see `text_tasks.to_rows`. They
        are arrays, or fields of a column for text that stays in files.
      lines: what the rows hold; encoded anew at each pass for text that stays in files.
      length: L.
      apart: whether each line has its own row.
      folder: where the rows are, for text that stays in files.
    """

    rows: Mapping[str, Any]
    lines: Sequence[text_tasks.Line]
    length: int
    apart: bool = False
    folder: epath.Path | None = None

    def chunks(self, values: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Values of each line's labels, [n + 1] each, in rows: float32, some rows at a time."""
        return text_tasks.fill(values, self.length, apart=self.apart)

    def fill(self, values: Iterable[np.ndarray]) -> np.ndarray:
        """`chunks` all in one, [N, L]."""
        return np.concatenate(list(self.chunks(values)))

    def loaded(self) -> "Encoded":
        """The same in memory."""
        rows = {name: array[:] for name, array in self.rows.items()}
        return self._replace(rows=rows, lines=list(self.lines), folder=None)

    def digest(self) -> str:
        """Of the rows' content."""
        if self.folder is not None:
            return self.folder.parent.name
        return checkpoint.digest({k: self.rows[k] for k in ("tokens", "labels", "segments")})

    def span_kinds(self) -> set[str]:
        """Of the private spans that are known, canaries among them."""
        if isinstance(self.lines, cache.Lines):
            return self.lines.examples.kinds
        return {span.kind for line in self.lines for span in line.spans}


def to_rows(
    hp: Settings,
    examples: Sequence[Example],
    tokenizer: tokenizers.Tokenizer,
    *,
    apart: bool = False,
    of: str = "training",
) -> Encoded:
    """Examples in rows; with `apart` each line has its own (`text_tasks.line_rows`).

    Those of text that stays in files are tokenised once, below `text_cache`. A line on the console
    says how many texts in memory, `of` which split, were shortened (`text_tasks.shorten`).
    """
    if isinstance(examples, corpora.InFiles):
        stream = cache.Lines(examples, tokenizer, hp.task, hp.length)
        rows, folder = cache.tokenised(files.folder(hp.text_cache), stream, of=of)
        return Encoded(rows, stream, hp.length, False, folder)
    whole = [text_tasks.encode(example, tokenizer, hp.task) for example in examples]
    lines, count = text_tasks.shorten(whole, hp.length, hp.task)
    lay = text_tasks.line_rows if apart else text_tasks.to_rows
    rows, _ = lay(lines, tokenizer, hp.length)
    lost = "beginning" if hp.task == "classification" else "end"
    many = f"{count:,} of {len(lines):,} {of} texts are longer than a row of {hp.length} tokens"
    fits.say(f"{many}, and lose their {lost}" if count else "")
    return Encoded(rows, lines, hp.length, apart)


def token_classes(text: Encoded, expressions: Sequence[str] = ()) -> dict[str, Any]:
    """bool [N, L] by name: labels that are digits; those in private spans; `public`, all others;
    and the digits among these.

    Private spans are those that score above ½; where none are known, what the rules find.
    """
    known = bool(text.span_kinds())

    def private(line: text_tasks.Line) -> np.ndarray:
        if known:
            return scorers.span_scores(line.spans, line.offsets)
        return scorers.rules(line.text, line.offsets, extra=expressions)

    def found() -> Iterator[dict[str, np.ndarray]]:
        each = (map(private, text.lines), map(digits, text.lines))
        for values, number in zip(*map(text.chunks, each), strict=True):
            yield {"private": values > 0.5, "digit": number > 0}

    if text.folder is None:
        chunks = list(found())
        both = {k: np.concatenate([chunk[k] for chunk in chunks]) for k in ("private", "digit")}
    else:
        name = f"classes-{cache.digest(expressions=expressions, known=known)}"
        kinds = {"private": bool, "digit": bool}
        both = cache.beside(text.folder, name, kinds, text.length, found)
    is_private, is_digit = both["private"], both["digit"]
    return {
        "class_digit": is_digit,
        "class_private": is_private,
        "class_public": columns.derived(np.logical_not, is_private),
        "class_public_digit": columns.derived(lambda a, b: a & ~b, is_digit, is_private),
    }


def digits(line: text_tasks.Line) -> np.ndarray:
    """1 at the labels of a line that are digits alone, one or several, float32 [n]."""
    found = [line.text[start:end].isdecimal() for start, end in line.offsets]
    return np.array(found, np.float32)

"""Privacy scores of a whole text before training: one per token, from rules and two networks.

The networks and the text are frozen, so scores are made once. Our reconstruction, as all scorers
are; what a scorer finds on private text is itself private.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core.config import InputError
from distill_core.data import columns, sampling
from distill_core.data.text import cache
from distill_core.data.text import tasks as text_tasks
from distill_core.data.text.lines import Span
from distill_core.models.network import Network
from distill_core.runtime import collectives, parallel, progress
from distill_core.training import chunked, inputs
from swingdistill.private_text import CANARY, Encoded
from swingdistill.recognisers import find as recognisers
from swingdistill.recognisers import presidio as presidio_lib
from swingdistill.scorers import judges as scorers

RECOGNISERS = ("rules", "presidio")
TEXT_SCORERS = (*RECOGNISERS, "spans", "oracle")
MEASURES = ("surprisal", "differential", "divergence")
SCORERS = TEXT_SCORERS + MEASURES
_ENTRIES = 2**23  # logits of one network that exist at a time: 32 MiB
_LEAST = 2000  # tokens that a vocabulary is taken to have: states need memory, too

_READ = ("tokens", "labels", "segments", "weights")

Rows = Mapping[str, Any]
Recognised = Mapping[str, Iterable[Sequence[Span]]]


def recognise(
    names: Sequence[str],
    text: Encoded,
    *,
    expressions: Sequence[str] = (),
    presidio: str | None = None,
) -> Recognised:
    """What those of `RECOGNISERS` that are named find in each line of a text, by scorer.

    Args:
      names: of `SCORERS`; others are passed over.
      text: what is read.
      expressions: the user's own, for `rules`.
      presidio: see `recognisers.presidio.analyser`.
    """
    by_name: dict[str, Iterable[Sequence[Span]]] = {}
    for name, find in finders(names, expressions=expressions, presidio=presidio).items():
        by_name[name] = [find(line.text) for line in text.lines]
    return by_name


def finders(
    names: Sequence[str], *, expressions: Sequence[str] = (), presidio: str | None = None
) -> dict[str, Callable[[str], Sequence[Span]]]:
    """text -> what is private in it, by those of `RECOGNISERS` that are named; see `recognise`."""
    by_name: dict[str, Callable[[str], Sequence[Span]]] = {}
    if "rules" in names:
        by_name["rules"] = lambda text: recognisers.find(text, extra=expressions)
    if "presidio" in names and presidio is not None:
        by_name["presidio"] = presidio_lib.analyser(presidio)
    return by_name


class Tally:
    """How many tokens each kind and each expression of a recogniser matched.

    A token counts for every kind that it overlaps.
    """

    def __init__(self):
        self._counts: collections.Counter[str] = collections.Counter()

    def add(self, found: Sequence[Span], line: text_tasks.Line):
        """What the recogniser found in a line."""
        for kind in {each.kind for each in found}:
            own = [each for each in found if each.kind == kind]
            self._counts[kind] += int(np.sum(scorers.span_scores(own, line.offsets) > 0))

    def said(self, name: str, expressions: Sequence[str]) -> str:
        """One line about the recogniser of this name."""
        own = [recognisers.kind_of(each) for each in expressions if name == "rules"]
        kinds = [kind for kind, _ in self._counts.most_common() if kind not in own]
        shown = ", ".join(f"{kind} {self._counts[kind]:,}" for kind in kinds) or "nothing"
        matches = (f"{kind} {self._counts[kind]:,}" for kind in own)
        return "; ".join([f"{name}, tokens found: {shown}", *matches])


def tally(recognised: Recognised, text: Encoded, expressions: Sequence[str] = ()) -> list[str]:
    """One line per recogniser; see `Tally`."""
    said = []
    for name, lines in recognised.items():
        counts = Tally()
        for found, line in zip(lines, text.lines, strict=True):
            counts.add(found, line)
        said.append(counts.said(name, expressions))
    return said


@dataclasses.dataclass(frozen=True)
class Scale:
    """Between which two nats the score of each measure rises from 0 to 1; see `scale`."""

    ends: Mapping[str, tuple[float, float]]

    def __call__(self, name: str, nats: np.ndarray, where: np.ndarray) -> np.ndarray:
        """Scores of a measure, float32, 0 where not `where`."""
        low, high = self.ends[name]
        values = scorers.ramp(jnp.asarray(nats), low, high, where=jnp.asarray(where))
        return np.asarray(values)


def scale(
    names: Sequence[str],
    public: Rows,
    models: Mapping[str, Any],
    quantiles: Sequence[float],
    mode: str | None = None,
) -> Scale:
    """From quantiles of each measure on public text.

    Raises:
      InputError: on `scorers`: a measure is NaN.
    """
    ends = {}
    for name in names:
        if name in MEASURES:
            nats = measure(name, public, models, mode)[public["weights"][:] > 0]
            low, high = np.quantile(nats.astype(np.float64), quantiles)
            if not low <= high:
                allowed = "is NaN: the teacher or the reference has diverged"
                raise InputError("scorers", name, allowed)
            ends[name] = float(low), float(high)
    return Scale(ends)


def score(
    names: Sequence[str],
    text: Encoded,
    public: Rows,
    *,
    quantiles: Sequence[float],
    models: Mapping[str, Any],
    recognised: Recognised,
    whole_line: bool = False,
    mode: str | None = None,
) -> dict[str, np.ndarray]:
    """Scores of every token by each scorer, float32 [N, L] in [0, 1], 0 where nothing is trained.

    `spans` gives the scores of the spans that came with the text, as a recogniser or an annotator
    wrote them. It knows nothing of planted canaries, which nobody annotated: knowing them would
    make exposure small however poor the recogniser is. `oracle` knows these, too; it is for tests
    and upper bounds.

    Args:
      names: of `SCORERS`.
      text: what is scored.
      public: rows of held-out public text.
      quantiles: the two of a measure on `public`, between which its score rises from 0 to 1.
      models: the loaded "teacher" and "reference", for the measures that ask them.
      recognised: what `recognise` found in the text, for these names.
      whole_line: whether the text's tokens decide for the answer's, as in classification: a token
        then gets the highest score in its line.
      mode: as for `parallel.choose_mode`.

    Raises:
      InputError: on `scorers`: `spans` or `oracle` of a text that has none, or a measure that is
        NaN.
    """
    ramp = scale(names, public, models, quantiles, mode)
    found, where = {}, text.rows["weights"] > 0
    for name in names:
        if name in TEXT_SCORERS:
            each = zip(spans_of(name, text, recognised), text.lines, strict=True)
            values = (of_line(spans, line, whole_line) for spans, line in each)
            found[name] = text.fill(values) * where
        else:
            found[name] = ramp(name, measure(name, text.rows, models, mode), where)
    return found


@dataclasses.dataclass(frozen=True)
class Asked:
    """How a text is to be scored.

    Attributes:
      names: of `SCORERS`.
      quantiles, whole_line: as for `score`.
      expressions, presidio: as for `recognise`.
    """

    names: tuple[str, ...]
    quantiles: tuple[float, ...]
    whole_line: bool = False
    expressions: tuple[str, ...] = ()
    presidio: str | None = None

    def finders(self) -> dict[str, Callable[[str], Sequence[Span]]]:
        """See `finders`."""
        return finders(self.names, expressions=self.expressions, presidio=self.presidio)


def highest(
    asked: Asked,
    text: Encoded,
    public: Encoded,
    models: Mapping[str, Any],
    mode: str | None = None,
) -> tuple[Any, list[str]]:
    """(the highest score of each token, float32 [N, L], what the recognisers found).

    Scores of text that stays in files are computed once and stored beside its rows.

    Args and Raises as in `score` and `tally`.
    """
    if text.folder is not None:
        return _stored(asked, text, public, models, mode)
    how = {"expressions": asked.expressions, "presidio": asked.presidio}
    recognised = recognise(asked.names, text, **how)
    each = score(
        asked.names,
        text,
        public.rows,
        quantiles=asked.quantiles,
        models=models,
        recognised=recognised,
        whole_line=asked.whole_line,
        mode=mode,
    )
    scores = np.max([np.zeros_like(text.rows["weights"]), *each.values()], axis=0)
    return scores, tally(recognised, text, asked.expressions)


def _stored(
    asked: Asked, text: Encoded, public: Encoded, models: Mapping[str, Any], mode: str | None
) -> tuple[columns.Column, list[str]]:
    """`highest` of text whose rows are on disk: what is read of the text by process 0, then the
    measures by all processes, each in columns of their own."""
    assert text.folder is not None
    of_text = tuple(name for name in asked.names if name in TEXT_SCORERS)
    measures = tuple(name for name in asked.names if name in MEASURES)
    names = [field for field in models if measures]
    known = {
        **dataclasses.asdict(dataclasses.replace(asked, names=of_text)),
        "analyser": None if asked.presidio is None else _content(asked.presidio),
    }
    read = None
    if of_text:
        of = dataclasses.replace(asked, names=of_text)
        read = _column_of_text(text, of, cache.digest(**known))
    name = cache.digest(
        **known,
        measures=measures,
        models={field: inputs.of_model(models[field]) for field in names},
        public=public.digest() if measures else None,
    )

    def write(writer: Any) -> Mapping[str, Any]:
        ramp, size = scale(measures, public.rows, models, asked.quantiles, mode), _size(text)
        first = writer.start // size * size
        nats = [measured(each, text.rows, models, mode, start=first) for each in measures]
        for start in range(first, len(text.rows["tokens"]), size):
            where = text.rows["weights"][start : start + size] > 0
            found = np.zeros(where.shape, np.float32)
            if read is not None:
                found = read[start : start + size] * where
            for each, values in zip(measures, nats, strict=True):
                found = np.maximum(found, ramp(each, next(values), where))
            writer.append(found[max(writer.start - start, 0) :])
        return {}

    folder = text.folder / f"scores-{name}"
    column = columns.once(folder, (text.length,), np.float32, write, together=True)
    return column, [] if read is None else list(read.about["said"])


def _column_of_text(text: Encoded, asked: Asked, name: str) -> columns.Column:
    """The highest score of each token by `TEXT_SCORERS`; `about` holds "said", see `tally`."""
    assert text.folder is not None
    find = asked.finders()
    tallies = {each: Tally() for each in find}

    def of_lines() -> Iterator[np.ndarray]:
        label, total = "finding what is private", len(text.lines)
        for line in progress.watched(text.lines, label, start=0, total=total):
            values = [np.zeros(len(line.weights), np.float32)]
            for each in asked.names:
                spans = find[each](line.text) if each in find else _annotated(each, line)
                values.append(of_line(spans, line, asked.whole_line))
                if each in find:
                    tallies[each].add(spans, line)
            yield np.max(values, axis=0)

    def write(writer: Any) -> Mapping[str, Any]:
        for each in asked.names:
            if each not in find:
                _check_annotated(each, text)
        start = 0
        for chunk in text.chunks(of_lines()):
            writer.append(chunk[max(writer.start - start, 0) :])
            start += len(chunk)
        return {"said": [tallies[each].said(each, asked.expressions) for each in find]}

    return columns.once(text.folder / f"found-{name}", (text.length,), np.float32, write)


def _size(text: Encoded) -> int:
    return text_tasks.chunk_rows(text.length)


def _content(path: str) -> str:
    file = epath.Path(path)
    return file.read_text() if file.is_file() else path


def spans_of(name: str, text: Encoded, recognised: Recognised) -> Iterable[Sequence[Span]]:
    """What one of `TEXT_SCORERS` knows to be private in each line.

    Raises:
      InputError: on `scorers`: nothing is known of the text.
    """
    if name in recognised:
        return recognised[name]
    _check_annotated(name, text)
    return (_annotated(name, line) for line in text.lines)


def _annotated(name: str, line: text_tasks.Line) -> list[Span]:
    """The spans that came with a line, as `spans` or `oracle` know them."""
    return [span for span in line.spans if name == "oracle" or span.kind != CANARY]


def _check_annotated(name: str, text: Encoded):
    kinds = text.span_kinds()
    if not (kinds if name == "oracle" else kinds - {CANARY}):
        raise InputError("scorers", name, "needs text whose private spans are known")


def of_line(spans: Sequence[Span], line: text_tasks.Line, whole_line: bool) -> np.ndarray:
    """Scores of a line's labels from its private spans; see `score`."""
    scores = scorers.span_scores(spans, line.offsets)
    return np.full_like(scores, scores.max(initial=0)) if whole_line else scores


def measure(
    name: str, rows: Rows, models: Mapping[str, Any], mode: str | None = None
) -> np.ndarray:
    """One of `MEASURES` in nats, float32 [N, L], 0 where nothing is trained; see `measured`."""
    return np.concatenate(list(measured(name, rows, models, mode)))


def measured(
    name: str, rows: Rows, models: Mapping[str, Any], mode: str | None = None, *, start: int = 0
) -> Iterator[np.ndarray]:
    """A measure of the rows from `start` on, some at a time, over all devices and processes.

    Where a document continues from the row before, the networks would see little of it at first,
    and a secret there would look like none although its labels are taught. So the first half of
    such a row is measured in a window that begins half a row earlier. Our reconstruction.

    Each process computes its devices' share, and all get the whole. `start` must be a multiple of
    `text_tasks.chunk_rows`, so that the same rows are always computed together.
    """
    mode = parallel.choose_mode(mode)
    asked = ("reference",) if name == "surprisal" else ("teacher", "reference")
    described = tuple((field, models[field].network) for field in asked)
    variables = parallel.place({field: models[field].variables for field in asked}, mode)
    step = parallel.wrap(_Measure(name, described), mode)
    (count, length), size = rows["tokens"].shape, text_tasks.chunk_rows(rows["tokens"].shape[1])
    vocab = max(network.num_tokens for _, network in described)
    at_once = max(1, _ENTRIES // (length * max(vocab, _LEAST)))
    for first in range(start, count, size):
        before = min(first, 1)  # the row before, too
        part = {k: rows[k][first - before : first + size] for k in _READ}
        windows, continued = _windows(part)
        both = {k: np.concatenate([part[k][before:], windows[k]]) for k in _READ}
        values = _in_rows(functools.partial(step, variables, {}), both, at_once, mode)
        found, half = values[: len(part["tokens"]) - before].copy(), length // 2
        found[continued - before, :half] = values[len(found) :, half : 2 * half]
        yield found


def _windows(part: Rows) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(windows around the beginnings of rows that continue a document, which rows these are)."""
    segments, length = part["segments"], part["tokens"].shape[1]
    half, continued = length // 2, 1 + np.flatnonzero(segments[1:, 0] == segments[:-1, -1])
    found = {}
    for k, v in part.items():
        windows = [v[continued - 1, length - half :], v[continued, : length - half]]
        found[k] = np.concatenate(windows, axis=1)
    return found, continued


def _in_rows(step: Callable, rows: Rows, at_once: int, mode: str) -> np.ndarray:
    """A measure of rows each by itself, so many at once on each device."""
    num, devices = len(rows["tokens"]), jax.device_count()
    size = min(-(-num // devices), at_once) * devices
    values, here = [], parallel.local_rows(size, mode)
    for index, _ in sampling.eval_batches(num, size):
        batch = {k: v[index[here]] for k, v in rows.items()}
        values.append(np.asarray(step(parallel.feed(batch, mode))))
    return np.concatenate(values)[:num]


def quality(scores: np.ndarray, private: np.ndarray, where: np.ndarray) -> dict[str, float]:
    """Precision, recall (of s > ½) and AUC of a scorer on known private tokens.

    Args:
      scores: float [N, L].
      private: bool [N, L].
      where: bool [N, L], the tokens that count.

    Returns:
      fractions; NaN where there is nothing to divide by.
    """
    from sklearn.metrics import roc_auc_score

    truth, values = private[where], scores[where]
    called = values > 0.5
    hits = float(np.sum(called & truth))
    both = truth.any() and not truth.all()
    return {
        "precision": hits / called.sum() if called.any() else float("nan"),
        "recall": hits / truth.sum() if truth.any() else float("nan"),
        "auc": float(roc_auc_score(truth, values)) if both else float("nan"),
    }


@dataclasses.dataclass(frozen=True)
class _Measure:
    """A measure of a batch of rows, as `parallel.wrap` takes it; its result is of all devices."""

    name: str
    networks: tuple[tuple[str, Network], ...]

    def __call__(self, variables, frozen, batch):
        where = batch["weights"] > 0
        logits = {}
        for field, network in self.networks:
            states = network.hidden(variables[field], batch["tokens"], batch["segments"])
            logits[field] = chunked.logits_by_rows(*states)
        if self.name == "surprisal":
            values = scorers.surprisal(logits["reference"], batch["labels"], where=where)
        else:
            pair = (logits["teacher"], logits["reference"])
            if self.name == "differential":
                values = scorers.differential(*pair, batch["labels"], where=where)
            else:
                values = scorers.divergence(*pair, documents=batch["segments"], where=where)
        return collectives.all_gather(values)

"""One report for every experiment: results.json, tables on the console, and one page of HTML."""

import base64
import contextlib
import dataclasses
import datetime
import importlib.metadata
import math
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np
from etils import epath
from rich import box
from rich.console import Console
from rich.table import Table as ConsoleTable
from rich.text import Text  # arms and titles are text, not rich's markup

from distill_core.checkpoint import integrity
from distill_core.data.images.dataset import readable
from distill_core.experiment.plotting import attempt
from distill_core.runtime import strict_json

Results = Mapping[tuple[str, int], Mapping[str, Any]]  # each run's, by (arm, seed)

_RATES = ("accuracy", "rate", "agreement", "fraction")  # endings of metrics shown in percent
_BESIDE_EPSILON = ("privacy_unit", "adjacency", "delta")


@dataclasses.dataclass(frozen=True)
class Row:
    """One arm of an experiment: its settings, and every run's value of each metric."""

    arm: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, Sequence[float]]  # rates as fractions
    about: str  # what the arm is, in one line


@dataclasses.dataclass(frozen=True)
class Gate:
    """A criterion: what was measured and what was needed, in words.

    One that is not met changes no exit code. Known weaknesses of a method are criteria, too.
    """

    name: str
    passed: bool
    value: float | str
    needed: float | str


class Table(NamedTuple):
    """Strings under a caption; None is an empty cell, and no rows are no table."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | None]]
    on_console: bool = True
    about: Mapping[str, str] = {}  # name of a row or column -> what it is, in one line


class Figure(NamedTuple):
    """A PNG of the page. `draw` is called with its path and returns it, or None for no picture.

    Without `draw` it is what a stage has left there, if it has. The caption is also the picture's
    alternative text.
    """

    caption: str
    path: str  # below the experiment's workdir
    draw: Callable[[epath.Path], epath.Path | None] | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """What an experiment found, as plain data.

    Raises ValueError where a row does not say what it is about, or has an `epsilon` but not its
    `privacy_unit`, `adjacency` and `delta`: an epsilon without them says nothing.
    """

    method: str  # the package whose experiment it is
    dataset: str
    title: str
    summary: str  # what was found, for the claim and against it, in a few sentences
    rows: Sequence[Row]
    num_test: int  # test examples (of text, tokens), by which rates are rounded; see `decimals`
    metrics: Sequence[str]  # that tables show, in this order; all are in results.json
    gates: Sequence[Gate]
    settings: Mapping[str, Any]
    minutes: float  # that this call took
    notes: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()  # beside that of the arms
    sections: Sequence[tuple[str, str]] = ()  # heading, HTML that whoever made it has escaped
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # more for results.json
    warning: str = ""  # last line on the console
    environment: Mapping[str, Any] = dataclasses.field(default_factory=lambda: environment())

    def __post_init__(self):
        for row in self.rows:
            if not row.about:
                raise ValueError(f"row {row.arm!r} does not say what it is (about)")
            missing = [name for name in _BESIDE_EPSILON if row.settings.get(name) is None]
            if "epsilon" in row.metrics and missing:
                raise ValueError(
                    f"row {row.arm!r} has epsilon but no {', '.join(missing)} in settings"
                )

    @property
    def shown(self) -> list[str]:
        """Those of `metrics` that a row has."""
        return [name for name in self.metrics if any(name in row.metrics for row in self.rows)]


def publish(report: Report, workdir: epath.PathLike):
    """Writes results.json, prints the tables, then draws the figures and writes report.html.

    In this order, so that what was measured is kept and seen whatever becomes of a picture; one
    that fails is left out, with a line on stderr.
    """
    workdir = epath.Path(workdir)
    try:
        _write(workdir / "results.json", results_json(report))
    finally:  # a full disk does not cost the table
        print_tables(report, Console())
    pictures = [(figure.caption, _png(figure, workdir)) for figure in report.figures]
    path = workdir / "report.html"
    _write(path, html(report, [(caption, png) for caption, png in pictures if png is not None]))
    print(f"\nreport: {readable(str(path))}", flush=True)


def results_json(report: Report) -> str:
    """The text of results.json. Strict JSON: what is not finite is null."""
    rows = [
        {
            "arm": row.arm,
            "settings": row.settings,
            "metrics": {name: summarize(values) for name, values in row.metrics.items()},
        }
        for row in report.rows
    ]
    results = {
        "method": report.method,
        "dataset": report.dataset,
        "rows": rows,
        "gates": [dataclasses.asdict(gate) for gate in report.gates],
        "environment": report.environment,
        "settings": report.settings,
        "minutes": report.minutes,
        **report.fields,
    }
    return strict_json.encode(_plain(results), indent=2, ensure_ascii=False) + "\n"


def print_tables(report: Report, console: Console):
    """The arms, one line per arm (mean ±std over runs, rates in percent), tables and criteria."""
    runs = {_runs(row) for row in report.rows}
    head, rows = _arms(report)
    narrow = len(report.shown) <= 2  # else what arms are stands below
    beside = " " if len(report.shown) <= 4 else "\n"  # many metrics fit 80 columns with ± below
    lines = [
        [name, *(beside.join(filter(None, cell[:2])) for cell in cells), count]
        for name, *cells, count in rows
    ]
    caption = []
    if max(runs, default=0) > 1:
        caption.append(f"mean ±std over {max(runs)} runs" if len(runs) == 1 else "mean ±std")
    private = [row for row in report.rows if "epsilon" in row.metrics]
    caption += sorted({f"epsilon: {_privacy(row)}" for row in private})
    shown = slice(None) if len(runs) > 1 else slice(-1)  # how many runs, where they differ
    head, lines = head[shown], [line[shown] for line in lines]
    head = [name.replace(" ", "\n") for name in head]
    about = {row.arm: row.about for row in report.rows}
    if narrow:
        head, lines = [*head, ""], [[*line, about[line[0]]] for line in lines]
    arms = _console_table(readable(report.title), head, lines, "right", "\n".join(caption))
    if narrow:
        arms.columns[-1].justify = "left"
    console.print(arms)
    if not narrow:
        _print_about(about, console)
    for table in report.tables:
        if table.rows and table.on_console:
            console.print(_console_table(table.caption, table.head, table.rows, "left"))
            _print_about(table.about, console)
    for gate in report.gates:
        word = "passed" if gate.passed else "MISSED"
        line = f"{word}  {gate.name}: {gate.value}, needed {gate.needed}"
        console.print(Text(line), soft_wrap=True)
    if report.warning:
        console.print(Text(report.warning), soft_wrap=True)


def html(report: Report, pictures: Sequence[tuple[str, bytes]]) -> str:
    """A page that needs nothing else, of the report and its (caption, PNG)."""
    head, results = _arms(report)
    return _TEMPLATES.get_template("report.html.j2").render(
        report=report,
        head=head,
        results=results,
        about={row.arm: row.about for row in report.rows},
        runs=[_every_run(row, report.num_test) for row in report.rows],
        pictures=[(caption, base64.b64encode(png).decode()) for caption, png in pictures],
    )


def decimals(num_test: int, spread: float = 0.0) -> int:
    """How many decimals a rate in percent has, two at most.

    None is finer than it takes to show one of `num_test` examples, or than the second digit of the
    standard deviation `spread` (in points) over runs.

    >>> [decimals(n) for n in (100, 360, 1000, 10_000)], decimals(10_000, spread=3.1)
    ([0, 1, 1, 2], 1)
    """
    found = math.ceil(math.log10(num_test / 100))
    if spread > 0 and math.isfinite(spread):
        found = min(found, 1 - math.floor(math.log10(spread)))
    return min(2, max(0, found))


def percent(values: Sequence[float], num_test: int) -> tuple[str, str]:
    """Mean and standard deviation of fractions of `num_test` examples, in percent: ('98.3', '0.2').

    The deviation is empty for a single run.
    """
    summary = summarize(values)
    mean, std = 100 * summary["mean"], 100 * summary["std"]
    places = decimals(num_test, std)
    spread = f"{std:.{places}f}" if summary["n"] > 1 and math.isfinite(std) else ""
    return f"{mean:.{places}f}", spread


def summarize(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (0.0 for one), count and the values themselves.

    NaN and infinite values carry over to the mean. Raises ValueError on no values.

    >>> summarize([1.0, 3.0])
    {'mean': 2.0, 'std': 1.4142135623730951, 'n': 2, 'values': [1.0, 3.0]}
    """
    array = np.asarray([float(value) for value in values], np.float64)  # [n]
    if not array.size:
        raise ValueError("values: got none; a metric needs at least one run")
    with np.errstate(invalid="ignore"):  # inf − inf
        std = float(array.std(ddof=1)) if array.size > 1 else 0.0
        mean = float(array.mean())
    return {"mean": mean, "std": std, "n": int(array.size), "values": array.tolist()}


def by_arm(results: Results) -> dict[str, list[Mapping[str, Any]]]:
    """Arm -> the results of its seeds, in the order in which they stand."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for (arm, _), result in results.items():
        found.setdefault(arm, []).append(result)
    return found


def values_of(results: Results, metric: str) -> dict[str, list[float]]:
    """Arm -> a metric of each of its seeds."""
    return {arm: [run[metric] for run in runs] for arm, runs in by_arm(results).items()}


def environment() -> dict[str, Any]:
    """When, from which code, by which command and on what, for the record beside a result.

    Starts JAX's backend. Nothing tells the machine's name, or a path that the user has not typed.
    """
    import jax

    devices = jax.devices()
    affinity = getattr(os, "sched_getaffinity", None)  # what we may use, where the system tells
    version = _version("guarded-distillation")
    return {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "commit": _commit() or f"no checkout, version {version}",
        "command": _command(),
        "project": version,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": _version("flax"),
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "cpu": _cpu_model(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "platform": platform.platform(),
    }


class _Cell(NamedTuple):
    text: str
    spread: str = ""  # beside it, in grey
    under: str = ""  # in small print


def _arms(report: Report) -> tuple[list[str], list[list[Any]]]:
    """Head and rows of the table of arms: an arm, a `_Cell` for each metric, how many runs."""
    head = ["arm", *(name.replace("_", " ") for name in report.shown), "runs"]
    rows = [
        [row.arm, *(_cell(row, name, report.num_test) for name in report.shown), str(_runs(row))]
        for row in report.rows
    ]
    return head, rows


def _console_table(title: str, head, rows, justify: Any, caption: str = "") -> ConsoleTable:
    table = ConsoleTable(
        title=Text(title),
        title_justify="left",
        caption=Text(caption) if caption else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for k, name in enumerate(head):
        table.add_column(Text(name), justify=justify if k else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text("–" if cell is None else cell) for cell in row))
    return table


def _print_about(about: Mapping[str, str], console: Console):
    if about:
        grid = ConsoleTable.grid(padding=(0, 2))
        for name, text in about.items():
            grid.add_row(Text(name), Text(text))
        console.print(grid, "")


def _cell(row: Row, name: str, num_test: int) -> _Cell:
    values = row.metrics.get(name, ())
    if not len(values):
        return _Cell("–")
    shown, spread = _mean_std(name, values, num_test)
    return _Cell(shown, spread, _privacy(row) if name == "epsilon" else "")


def _mean_std(name: str, values: Sequence[float], num_test: int) -> tuple[str, str]:
    """('98.6%', '±0.2'), without ± for a single run."""
    summary = summarize(values)
    mean, std = summary["mean"], summary["std"]
    if name.endswith(_RATES) and math.isfinite(mean):
        shown, spread = percent(values, num_test)
        return f"{shown}%", f"±{spread}" if spread else ""
    if math.isfinite(mean) and 0.1 <= abs(mean) < 1e6:
        places = 0 if abs(mean) >= 1000 else 1 if abs(mean) >= 100 else 2
        shown, spread = f"{mean:,.{places}f}", f"±{std:,.{places}f}"
    else:
        shown, spread = _text(mean), f"±{std:.2g}"
    return shown, spread if summary["n"] > 1 and math.isfinite(std) else ""


def _privacy(row: Row) -> str:
    unit, adjacency, delta = (row.settings[name] for name in _BESIDE_EPSILON)
    return f"per {unit}, {adjacency}, δ = {_text(delta)}"


def _every_run(row: Row, num_test: int) -> tuple[str, str, str]:
    """An arm, its settings, and each metric of each of its runs, in words."""
    settings = ", ".join(
        f"{key} = {_text(value)}"
        for key, value in row.settings.items()
        if key != "assumptions"  # which are a table of their own
    )
    metrics = (
        f"{name.replace('_', ' ')}: "
        + ", ".join(_mean_std(name, [value], num_test)[0] for value in values)
        for name, values in row.metrics.items()
    )
    return row.arm, settings, "; ".join(metrics)


def _runs(row: Row) -> int:
    return max(map(len, row.metrics.values()), default=0)


def _text(value: object) -> str:
    value = value.item() if isinstance(value, np.generic) else value
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """The value in JSON's types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy's and JAX's arrays and scalars
        return _plain(value.tolist())
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _png(figure: Figure, workdir: epath.Path) -> bytes | None:
    path = workdir / figure.path
    drawn = path if figure.draw is None else attempt(figure.draw, path)
    return drawn.read_bytes() if drawn is not None and drawn.exists() else None


def _write(path: epath.Path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    # What is no Unicode, as in the path of a folder, stands there as JSON escapes it.
    integrity.write_atomically(path, text.encode("utf-8", "backslashreplace"))


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _commit() -> str | None:
    """The commit of the checkout that this file is tracked in, if there is one."""
    here = pathlib.Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(here.parent), *arguments]
        done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=30)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # not a repository that merely surrounds us
        commit = git("rev-parse", "HEAD")
        return commit + (", with uncommitted changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _command() -> str:
    """What the user typed, but for where Python lies; a notebook's command tells nothing."""
    main = getattr(sys.modules["__main__"], "__spec__", None)
    if main is None or not main.name.endswith(".experiment.__main__"):
        return "called from Python"
    return shlex.join(["python", *sys.orig_argv[1:]])


def _cpu_model() -> str:
    with contextlib.suppress(OSError):  # not Linux
        for line in epath.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("distill_core.experiment", "."),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["plain"] = _text

"""What an experiment hands back: results.json, a console table and a self-contained HTML page."""

import dataclasses
import importlib.metadata
import math
import os
import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from distill_core.checkpoint import integrity, strict_json
from distill_core.experiment import page

if TYPE_CHECKING:
    from rich.table import Table

_RATES = ("accuracy", "rate", "agreement", "fraction")  # endings of metrics shown in percent
_BESIDE_EPSILON = ("privacy_unit", "adjacency", "delta")


@dataclasses.dataclass(frozen=True)
class Row:
    """One arm of an experiment: its settings, and every run's value of each metric."""

    arm: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, Sequence[float]]  # rates as fractions


@dataclasses.dataclass(frozen=True)
class Gate:
    """One thing the experiment has to show: what was measured and what was needed, in words."""

    name: str
    passed: bool
    value: float | str
    needed: float | str


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


def write_results(
    path: epath.PathLike,
    *,
    method: str,
    dataset: str,
    rows: Sequence[Row],
    gates: Sequence[Gate],
    environment: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes results.json, whole or not at all; `extra` adds fields at the top level.

    Strict JSON: what is not finite is written as null. Raises ValueError where a row has an
    `epsilon` but not its `privacy_unit`, `adjacency` and `delta` (an epsilon without them says
    nothing), or where `extra` would replace a field.
    """
    _check_epsilons(rows)
    results = {
        "method": method,
        "dataset": dataset,
        "rows": [
            {
                "arm": row.arm,
                "settings": row.settings,
                "metrics": {name: summarize(values) for name, values in row.metrics.items()},
            }
            for row in rows
        ],
        "gates": [dataclasses.asdict(gate) for gate in gates],
        "environment": environment,
    }
    if clash := sorted(set(results) & set(extra or {})):
        raise ValueError(f"extra: got {clash}; these fields are taken")
    plain = _plain(results | dict(extra or {}))
    _write(path, strict_json.dumps(plain, indent=2, ensure_ascii=False) + "\n")


def environment() -> dict[str, Any]:
    """Versions, devices and machine, for the record beside a result. Starts JAX's backend."""
    import jax

    devices = jax.devices()
    affinity = getattr(os, "sched_getaffinity", None)  # what we may use, where the system tells
    return {
        "project": _version("guarded-distillation"),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": _version("flax"),
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "cpu": _cpu_model(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "platform": platform.platform(),
    }


def console_table(rows: Sequence[Row], metrics: Sequence[str], title: str) -> "Table":
    """A rich table, one line per arm: mean ±std over runs, rates in percent. Fits 80 columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text  # arms and titles are text, not rich's markup

    runs = [_runs(row) for row in rows]
    same = len(set(runs)) <= 1
    beside = " " if len(metrics) <= 4 else "\n"  # many metrics fit 80 columns with ± underneath
    caption = []
    if max(runs, default=0) > 1:
        caption.append("mean ±std" + (f" over {runs[0]} runs" if same else ""))
    caption += sorted({f"epsilon: {_privacy(row)}" for row in rows if "epsilon" in row.metrics})
    table = Table(
        title=Text(title),
        title_justify="left",
        caption=Text("\n".join(caption)) if caption else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("arm", overflow="fold")
    for metric in metrics:
        table.add_column(Text(metric.replace("_", "\n")), justify="right")
    if not same:
        table.add_column("runs", justify="right")
    for row, n in zip(rows, runs, strict=True):
        cells = [beside.join(_mean_std(name, row.metrics.get(name), 1)) for name in metrics]
        table.add_row(*map(Text, [row.arm, *cells] + ([] if same else [str(n)])))
    return table


def write_html(
    path: epath.PathLike,
    *,
    title: str,
    summary: str,
    rows: Sequence[Row],
    metrics: Sequence[str],
    gates: Sequence[Gate],
    figures: Sequence[tuple[str, epath.PathLike | None]],
    notes: Sequence[str],
    environment: Mapping[str, Any],
    command: str,
    sections: Sequence[tuple[str, str]] = (),
    extra_tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str | None]]]] = (),
) -> None:
    """Writes the report as one HTML file that needs nothing else: PNGs inlined, no script.

    `figures` are (caption, path of a PNG, or None of one that could not be drawn and is left out);
    the caption is also the picture's alternative text.
    `extra_tables` are (caption, head, rows), None for an empty cell. `sections` are (heading, HTML
    that goes in as it is: whoever makes it escapes it). All else is shown as text, never as markup.
    Raises ValueError as `write_results`, and where a row does not fit its table's head.
    """
    _check_epsilons(rows)
    head = ["arm", *(name.replace("_", " ") for name in metrics), "runs"]
    results = [
        [(row.arm,), *(_cell(row, name) for name in metrics), (str(_runs(row)),)] for row in rows
    ]
    everything = [[(row.arm,), (_settings(row),), (_values(row),)] for row in rows]
    verdicts = [
        (gate.name, gate.passed, f"measured {_value(gate.value)}, needed {_value(gate.needed)}")
        for gate in gates
    ]
    pictures = [
        page.picture(caption, epath.Path(png).read_bytes()) for caption, png in figures if png
    ]
    document = page.page(
        title,
        summary,
        page.verdicts(verdicts),
        page.section(
            "Results",
            page.table("Results by arm", head, results),
            page.remark("Mean ± sample standard deviation over the runs."),
            page.folded(
                "Settings and every run",
                page.table("Settings and every run", ["arm", "settings", "runs"], everything),
            ),
        ),
        page.section("Figures", *pictures),
        page.section("Further results", *(page.plain_table(*table) for table in extra_tables)),
        *(page.section(heading, fragment) for heading, fragment in sections),
        page.section("Notes", page.bullets(notes)),
        page.section(
            "How this was made",
            page.code(command),
            page.facts({k.replace("_", " "): _value(v) for k, v in environment.items()}),
        ),
    )
    _write(path, document)


def _check_epsilons(rows: Sequence[Row]) -> None:
    for row in rows:
        missing = [name for name in _BESIDE_EPSILON if row.settings.get(name) is None]
        if "epsilon" in row.metrics and missing:
            raise ValueError(f"row {row.arm!r} has epsilon but no {', '.join(missing)} in settings")


def _privacy(row: Row) -> str:
    unit, adjacency, delta = (row.settings[name] for name in _BESIDE_EPSILON)
    return f"per {unit}, {adjacency}, δ = {_value(delta)}"


def _cell(row: Row, name: str) -> list[str]:
    mean, *std = _mean_std(name, row.metrics.get(name), 2)
    under = _privacy(row) if name == "epsilon" and name in row.metrics else ""
    return [mean, std[0] if std else "", under]


def _settings(row: Row) -> str:
    return ", ".join(f"{key} = {_value(value)}" for key, value in row.settings.items()) or "–"


def _values(row: Row) -> str:
    return "; ".join(
        f"{name.replace('_', ' ')}: " + ", ".join(_mean_std(name, [v], 2)[0] for v in values)
        for name, values in row.metrics.items()
    )


def _runs(row: Row) -> int:
    return max(map(len, row.metrics.values()), default=0)


def _mean_std(name: str, values: Sequence[float] | None, decimals: int) -> list[str]:
    """['98.6%', '±0.2'], without ± for a single run; '–' for a metric the arm does not have."""
    if values is None or not len(values):
        return ["–"]
    summary = summarize(values)
    mean, std = summary["mean"], summary["std"]
    if name.endswith(_RATES) and math.isfinite(mean):
        shown, spread = f"{100 * mean:.{decimals}f}%", f"±{100 * std:.{decimals}f}"
    elif math.isfinite(mean) and 1 <= abs(mean) < 1e6:
        places = 0 if abs(mean) >= 1000 else 1 if abs(mean) >= 100 else 2
        shown, spread = f"{mean:,.{places}f}", f"±{std:,.{places}f}"
    else:
        shown, spread = _value(mean), f"±{std:.2g}"
    return [shown, spread] if summary["n"] > 1 and math.isfinite(std) else [shown]


def _value(value: object) -> str:
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


def _write(path: epath.PathLike, text: str) -> None:
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # What is no Unicode, as in the path of a folder, stands there as JSON escapes it.
    integrity.write_atomically(path, text.encode("utf-8", "backslashreplace"))


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or "unknown"

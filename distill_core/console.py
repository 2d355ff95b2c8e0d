"""What an experiment says on the console when it ends."""

from collections.abc import Sequence

from etils import epath

from distill_core import report


def conclude(
    workdir: epath.Path,
    rows: Sequence[report.Row],
    metrics: Sequence[str],
    gates: Sequence[report.Gate],
    title: str,
):
    """Prints the table, what was to be shown, and where the report lies."""
    from rich.console import Console

    console = Console()
    console.print(report.console_table(rows, metrics, title))
    for gate in gates:
        word = "passed" if gate.passed else "MISSED"
        line = f"{word}  {gate.name}: {gate.value}, needed {gate.needed}"
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"\nreport: {workdir / 'report.html'}", highlight=False, soft_wrap=True)

"""What an experiment says on the console when it ends."""

from collections.abc import Sequence

from etils import epath

from distill_core.data.images.dataset import readable
from distill_core.experiment import report


def conclude(
    rows: Sequence[report.Row],
    metrics: Sequence[str],
    gates: Sequence[report.Gate],
    title: str,
    further: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str | None]]]] = (),
):
    """Prints the table, `further` ones (caption, head, rows), and what was to be shown."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.print(report.console_table(rows, metrics, readable(title)))
    for caption, head, lines in further:
        if not lines:
            continue
        table = Table(title=Text(caption), title_justify="left", box=box.SIMPLE_HEAD)
        for name in head:
            table.add_column(Text(name))
        for line in lines:
            table.add_row(*(Text("–" if cell is None else cell) for cell in line))
        console.print(table)
    for gate in gates:
        word = "passed" if gate.passed else "MISSED"
        line = f"{word}  {gate.name}: {gate.value}, needed {gate.needed}"
        console.print(line, highlight=False, soft_wrap=True)


def say_report(path: epath.PathLike):
    """Says where the report lies, once it does."""
    print(f"\nreport: {readable(str(path))}", flush=True)

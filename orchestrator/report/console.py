"""The report on the console."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.report.result import Report
from orchestrator.report.tables import Table, models, rounds, seconds, targets
from workers.errors import printable

if TYPE_CHECKING:
    import rich.table


def summary_table(report: Report) -> rich.table.Table:
    """The run on half a screen, then its warnings, which may be far up in the log."""
    import rich.table
    from rich.text import Text

    whole = rich.table.Table.grid(padding=(0, 0))
    whole.title, whole.title_style, whole.title_justify = report.name, "bold", "left"
    for part in (models(report), *([rounds(report)] if report.rounds else []), targets(report), seconds(report)):
        whole.add_row(drawn(part))
    for warning in report.warnings:
        whole.add_row(Text(printable(f"warning: {warning}"), style="yellow", overflow="fold"))
    return whole


def drawn(table: Table, title: str | None = None) -> rich.table.Table:
    """Numbers to the right; all but the names fold if the console is too narrow. Names come from files, and are only shown."""
    import rich.box
    import rich.table

    lines = rich.table.Table(title=title, title_justify="left", header_style="bold", box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(table.head):
        lines.add_column(column, justify="right" if index else "left", overflow="fold", no_wrap=not index)
    for row in table.rows:
        lines.add_row(*("\n".join(map(printable, cell.splitlines())) for cell in row))
    return lines

"""The table of ``mode=status``."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from orchestrator.quantities import percent
from orchestrator.report.console import drawn
from orchestrator.report.tables import Table
from orchestrator.status.listing import ListedRun, age, at, counts, runs_in
from orchestrator.status.page import write_page
from workers.errors import printable

HEAD = ["run", "state", "progress", "accuracy", "seen"]


def show_status(output: Path, console: Console) -> None:
    """Prints the runs in ``output``, and writes their page again."""
    runs, now = runs_in(output), time.time()
    if not runs:
        console.print(f"There are no runs in {output}.", markup=False, soft_wrap=True)
        return
    console.print(drawn(status_table(runs, now), ", ".join(f"{many} {kind}" for kind, many in counts(runs))))
    for run in runs:
        if run.remark:
            console.print(printable(f"{run.directory}: {run.what}"), markup=False, highlight=False, soft_wrap=True)
    try:
        console.print(f"page: {write_page(output)}", markup=False, soft_wrap=True)
    except OSError as error:
        console.print(f"The page could not be written: {error}", markup=False, soft_wrap=True)


def status_table(runs: list[ListedRun], now: float) -> Table:
    """Returns the table. The first cell of a run also says what it prunes, and when it started."""
    rows = [
        [
            "\n  ".join(part for part in (run.directory, run.prunes, f"started {at(run.started)}") if part),
            run.kind,
            run.progress if run.planned is None else f"{run.progress}\n{percent(run.planned, 0)}",
            run.accuracy_words.replace(" → ", " →\n"),
            age(max(0.0, now - run.updated)),
        ]
        for run in runs
    ]
    return Table(HEAD, [[escape(cell) for cell in row] for row in rows])

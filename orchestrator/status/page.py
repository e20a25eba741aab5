"""``index.html`` in the output directory: all runs in the look of the report. It opens offline and loads nothing."""

from __future__ import annotations

import time
from pathlib import Path

from orchestrator.quantities import percent
from orchestrator.report.environment import environment
from orchestrator.status.listing import FILES, SILENT_SECONDS, ListedRun, age, at, counts, runs_in
from orchestrator.status.state import replace_text

PAGE = "index.html"
TRIES = 3  # another run may end between reading and writing


def write_page(output: Path) -> Path:
    """Writes the page of the runs in ``output``, and returns its path.

    Several drivers write it. Each reads the runs again afterwards, and starts over if one has changed, so that the last page is right.
    """
    runs = runs_in(output)
    for _ in range(TRIES):
        replace_text(output / PAGE, page(runs, time.time()))
        read, runs = runs, runs_in(output)
        if [(run.directory, run.kind, run.stage) for run in read] == [(run.directory, run.kind, run.stage) for run in runs]:
            break
    return output / PAGE


def page(runs: list[ListedRun], now: float) -> str:
    """Returns the whole document."""
    return (
        environment()
        .get_template("index.html")
        .render(
            runs=runs,
            heading=", ".join(f"{many} {kind}" for kind, many in counts(runs)) or "No runs",
            is_running=any(run.kind == "running" for run in runs),
            now=now,
            silent_seconds=SILENT_SECONDS,
            files=FILES,
            at=at,
            age=age,
            percent=percent,
        )
    )

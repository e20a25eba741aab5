"""The page of a sweep, and the same numbers for programs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from orchestrator.quantities import count, duration, listed
from orchestrator.report import figures
from orchestrator.report.page import Tile, drawn_figure, render
from orchestrator.sweep.chart import MOST_AXES, cell, chart
from orchestrator.sweep.columns import Column, values_of
from orchestrator.sweep.comparison import Comparison, Row
from orchestrator.sweep.notes import best_of, final_column, notes
from orchestrator.sweep.settings import Run, axis_text, axis_title, seed_of
from workers.files import write_text

PAGE, NUMBERS = "sweep.html", "sweep.json"


@dataclass(frozen=True)
class Line:
    """A row of the table on the page: a row of the comparison, or one of its runs. ``link`` leads to a report; "" if there is none."""

    name: str
    link: str
    place: list[str]
    cells: list[str]


def write_page(compared: Comparison, folder: Path) -> Path:
    """Writes the page and its numbers into a folder, each as a whole or not at all, and returns the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / NUMBERS, json.dumps(numbers(compared, folder), indent=1))
    write_text(folder / PAGE, page(compared, folder))
    return folder / PAGE


def page(compared: Comparison, folder: Path) -> str:
    """Returns the page. Links on it are relative to ``folder``."""
    best = best_of(compared)
    shown, hidden = compared.axes[:MOST_AXES], compared.axes[MOST_AXES:]
    return render(
        "sweep.html",
        drawn={"front": drawn_figure(figures.figure(460, []))} if len(compared.rows) > 1 else {},
        compared=compared,
        headline=headline_of(compared),
        tiles=tiles(compared),
        notes=notes(compared) + ([f"Rows also differ in {listed([axis_title(axis) for axis in hidden])}."] if hidden else []),
        axes=[axis_title(axis) for axis in shown],
        columns=compared.varying,
        failures=[(failure, relative(failure.traceback, folder)) for failure in compared.failures],
        lines=[(line_of(compared, row, folder), [run_line(compared, run, folder) for run in row.runs]) for row in compared.rows],
        best=best,
        chart=chart(compared),
    )


def numbers(compared: Comparison, folder: Path) -> dict[str, Any]:
    """Returns the comparison as plain values for ``sweep.json``."""
    return {
        "title": compared.title,
        "command": compared.command,
        "axes": compared.axes,
        "columns": [vars(column) | {"unit": column.unit.value} for column in compared.columns],
        "rows": [_row_numbers(compared, row, folder) for row in compared.rows],
        "failed": [vars(failure) | {"traceback": relative(failure.traceback, folder)} for failure in compared.failures],
        "notes": notes(compared),
        "fronts": compared.fronts,
    }


def _row_numbers(compared: Comparison, row: Row, folder: Path) -> dict[str, Any]:
    runs = [
        {"point": run.number, "name": run.name, "seed": seed_of(run), "report": link_to(run, folder), "overrides": list(run.overrides)}
        for run in row.runs
    ]
    place = dict(zip(compared.axes, row.place, strict=True))
    return {"place": place, "values": {key: vars(value) for key, value in row.values.items()}, "runs": runs}


def link_to(run: Run, folder: Path) -> str:
    """Returns the relative address of a run's page; of its numbers if it has no page."""
    report = run.file.with_suffix(".html")
    return relative(report if report.exists() else run.file, folder) or ""


def relative(file: Path | None, folder: Path) -> str | None:
    """Returns the address of a file on a page in ``folder``."""
    return None if file is None else quote(os.path.relpath(file.resolve(), folder.resolve()))


def line_of(compared: Comparison, row: Row, folder: Path) -> Line:
    if len(row.runs) == 1:
        return run_line(compared, row.runs[0], folder, with_seed=False)
    cells = [cell(column, row.values.get(column.key)) for column in compared.varying]
    return Line(count(len(row.runs), "run"), "", row.place[:MOST_AXES], cells)


def run_line(compared: Comparison, run: Run, folder: Path, with_seed: bool = True) -> Line:
    values = values_of(run)
    cells = [column.unit.written(values[column.key]) if column.key in values else "–" for column in compared.varying]
    place = [axis_text(run, axis) for axis in compared.axes[:MOST_AXES]]
    name = run.name if run.number is None else f"point {run.number}"
    return Line(f"{name}, seed {seed_of(run)}" if with_seed else name, link_to(run, folder), place, cells)


def headline_of(compared: Comparison) -> str:
    """One sentence: how many runs over which settings, and how many failed."""
    axes = [axis_title(axis) for axis in compared.axes]
    over = axes if len(axes) <= 3 else [*axes[:3], count(len(axes) - 3, "more setting")]
    seeds = max((len(row.runs) for row in compared.rows), default=0)
    parts = [count(len(compared.runs), "run"), f" over {listed(over)}" if over else "", f", up to {count(seeds, 'seed')} each"]
    failed = f"; {count(len(compared.failures), 'point')} without a result" if compared.failures else ""
    return f"{''.join(parts if seeds > 1 else parts[:2])}{failed}."


def tiles(compared: Comparison) -> list[Tile]:
    """A few rows to take away: the most accurate, the fastest, the smallest."""
    final = final_column(compared)
    shown: list[Tile] = [] if final is None else [_tile(compared, final, f"best {final.title}")]
    faster = any((row.mean("macs_removed") or 0) > 0 for row in compared.rows)  # masked weights alone change no speed but the sparse one
    keys = {"pass_ms": "shortest", **({"images_per_second": "most"} if faster else {}), "sparse_images_per_second": "most"}
    for column in compared.varying:
        word = (keys | {"file_bytes": "smallest"}).get(column.key)
        if word is not None and column is not final:
            shown.append(_tile(compared, column, f"{word} {column.title}"))
    spent = [run.seconds for run in compared.runs if run.seconds is not None]
    return [*shown, (duration(sum(spent)), "in all runs", count(len(spent), "run"))] if spent else shown


def _tile(compared: Comparison, column: Column, what: str) -> Tile:
    """The best row by a column."""
    rows = [row for row in compared.rows if column.key in row.values]
    best = (max if column.rises else min)(rows, key=lambda row: row.values[column.key].mean)
    text = column.unit.written(best.values[column.key].mean)
    return text, what, ", ".join(best.place[:3]) if column in compared.varying else "in every row"

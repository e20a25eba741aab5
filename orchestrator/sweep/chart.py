"""What the page of a sweep draws and sorts by, as plain values for its script."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

from orchestrator.report import figures
from orchestrator.sweep.columns import Column, Unit
from orchestrator.sweep.comparison import Comparison, Row, Value, natural
from orchestrator.sweep.notes import final_column
from orchestrator.sweep.settings import axis_title

MOST_AXES = 6  # that the table shows
MOST_COLOURS = 8  # an axis with more values is not told apart by colour
# What the figure shows against the accuracy, the first one that varies.
ACROSS = ("pass_ms", "macs_removed", "sparsity", "sparse_images_per_second", "images_per_second", "file_bytes", "parameters", "seconds")


def chart(compared: Comparison) -> dict[str, Any]:
    """Returns what the page draws and sorts by: the values of the rows, the fronts, and the menus' first choices."""
    groups, group_of = _groups(compared)
    return {
        "columns": [vars(column) | {"unit": column.unit.value} for column in compared.varying],
        "first": _first(compared),
        "fronts": compared.fronts,
        "groups": groups,
        "rows": [_drawn(compared, row, group) for row, group in zip(compared.rows, group_of, strict=True)],
        "order": _order(compared),
        "palette": list(islice(cycle(figures.PALETTE), len(groups) or 1)),
    }


def _first(compared: Comparison) -> dict[str, str]:
    """The columns that the menus begin with."""
    final, keys = final_column(compared), [column.key for column in compared.varying]
    up = final.key if final is not None and final.key in keys else next(iter(keys), "")
    others = [key for key in keys if key != up]
    return {"x": next((key for key in ACROSS if key in others), next(iter(others), "")), "y": up}


def _drawn(compared: Comparison, row: Row, group: int) -> dict[str, Any]:
    """A point of the figure. Its label is plotly's small HTML."""
    place = "<br>".join(figures.safe(f"{axis_title(axis)}: {text}") for axis, text in zip(compared.axes, row.place, strict=True))
    measured = [column for column in compared.varying if column.key in row.values]
    return {
        "group": group,
        "label": place or figures.safe(row.runs[0].name),
        "values": {column.key: [row.values[column.key].mean, row.values[column.key].spread] for column in measured},
        "texts": {column.key: cell(column, row.values[column.key]) for column in measured},
    }


def _groups(compared: Comparison) -> tuple[list[str], list[int]]:
    """The names of the colours, and the colour of each row: the values of the first axis of words that has few, else of one of numbers."""
    columns = list(zip(*(row.place for row in compared.rows), strict=True)) if compared.axes else []
    few = [column for column in columns if 1 < len(set(column)) <= MOST_COLOURS]
    words = [column for column in few if not all(_is_number(text) for text in column)]
    for column in (words or (few if len(columns) > 1 else []))[:1]:
        values = list(dict.fromkeys(column))
        return [figures.safe(value) for value in values], [values.index(text) for text in column]
    return [], [0] * len(compared.rows)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _order(compared: Comparison) -> list[Sequence[float | None]]:
    """For each column of the table, what its rows are sorted by. The first column is sorted by the first run."""
    texts: list[Sequence[str]] = [[row.runs[0].name if row.runs[0].number is None else f"{row.runs[0].number}" for row in compared.rows]]
    texts += [[row.place[axis] for row in compared.rows] for axis in range(len(compared.axes[:MOST_AXES]))]
    ranked = [[sorted(set(column), key=natural).index(text) for text in column] for column in texts]
    return [*ranked, *([row.mean(column.key) for row in compared.rows] for column in compared.varying)]


def cell(column: Column, value: Value | None) -> str:
    """A mean and its spread in the table; a dash if nothing was measured."""
    if value is None:
        return "–"
    text = column.unit.written(value.mean)
    if value.count == 1 or not value.spread:
        return text
    if column.unit is Unit.FRACTION:
        return f"{100 * value.mean:.1f} ± {100 * value.spread:.1f} %"
    return f"{text} ± {column.unit.written(value.spread)}"

"""What a table of latencies says, as a page and as a table on the console: the staircases of the slowest operations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.quantities import count, milliseconds, percent
from orchestrator.report.console import drawn
from orchestrator.report.tables import Table
from workers.files import write_text

if TYPE_CHECKING:
    import rich.console

    from orchestrator.allocation.latency_table import LatencyTable, OperationTable

SHOWN = 12  # operations
PAGE = "latency.html"


def shown(table: LatencyTable) -> list[tuple[OperationTable, int]]:
    """The slowest operations that can be narrowed, each with the number of layers like it."""
    alike: dict[int, list[OperationTable]] = {}
    for operation in table.operations:
        if operation.levels:
            alike.setdefault(id(operation.ms), []).append(operation)
    return sorted(((same[0], len(same)) for same in alike.values()), key=lambda pair: -pair[1] * pair[0].dense_ms)[:SHOWN]


def latency_table(table: LatencyTable, setting: str) -> rich.console.RenderableType:
    """The times of the operations, for the console."""
    import rich.console

    rows = []
    for operation, layers in shown(table):
        half = operation.at({name: -(-units // 2) for name, units in operation.units.items()})
        times = [milliseconds(operation.dense_ms), milliseconds(half), percent(layers * operation.dense_ms / table.total_ms)]
        rows.append([name_of(operation), str(layers), " x ".join(f"{axis.units:,}" for axis in operation.operation.axes), *times])
    head = ["operation", "layers like it", "units", "all units", "half of them", "share of the model"]
    title = f"Operations that can be narrowed, the slowest first ({setting})"
    return rich.console.Group(drawn(Table(head, rows), title), *sentences(table))


def sentences(table: LatencyTable) -> list[str]:
    """How the table came about, and how far it can be trusted."""
    spreads = sorted(record.numbers.spread for record in table.measured)
    return [
        f"{len(table.measured):,} of {table.all_sizes:,} sizes were timed; the others lie on plateaus or belong to equal layers.",
        f"The operations take {milliseconds(table.total_ms)} in total; the whole model takes {milliseconds(table.model_ms)} end to end, "
        f"{table.scale:.2f} times as long.",
        f"The standard error of a size's time is {percent(spreads[len(spreads) // 2])} in the median and {percent(spreads[-1])} at most.",
    ]


def name_of(operation: OperationTable) -> str:
    """The name of its first layer, without its place in the forward pass."""
    return operation.operation.name.partition(":")[2]


def write_page(table: LatencyTable, setting: str, directory: Path) -> Path:
    """Write a page with the staircases; it loads nothing. Returns its path."""
    from plotly.subplots import make_subplots

    from orchestrator.report.figures import LOOK, safe
    from orchestrator.report.page import figure_page

    panels = shown(table)
    columns = min(3, len(panels)) or 1
    rows = max(1, -(-len(panels) // columns))
    titles = [safe(name_of(operation)) + (f" ({count(layers, 'layer')})" if layers > 1 else "") for operation, layers in panels]
    figure = make_subplots(rows=rows, cols=columns, subplot_titles=titles)
    for index, (operation, _) in enumerate(panels):
        for trace in _staircases(operation):
            figure.add_trace(trace, row=index // columns + 1, col=index % columns + 1)
    figure.update_layout(template=LOOK, height=300 * rows, showlegend=False, margin_t=60)
    figure.update_yaxes(rangemode="tozero", title_text="ms").update_xaxes(rangemode="tozero", title_text="units")
    figure.update_annotations(font_size=12)
    path = directory / PAGE
    widths = "If an operation has two widths, each line holds the second one fixed."
    write_text(path, figure_page(f"Latency ({setting})", figure, [*sentences(table), widths]))
    return path


def _staircases(operation: OperationTable) -> list:
    """Time against the units of the first axis, a line for some widths of the second."""
    from plotly.graph_objects import Scatter

    first, *others = operation.levels
    lines: dict[tuple[int, ...], str] = {(): ""}
    if others:
        places = sorted({round(part * (len(others[0]) - 1) / 3) for part in range(4)})
        lines = {(place,): f"{others[0][place]} units of the other axis" for place in places}
    return [
        Scatter(x=first, y=[operation.ms[index, *cell] for index in range(len(first))], name=name, line_shape="vh", mode="lines+markers")
        for cell, name in lines.items()
    ]

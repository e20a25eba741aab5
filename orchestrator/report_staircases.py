"""What a table of latencies says, in a picture and as a table on the console: the staircases of the operations that take most."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.quantities import count, percent
from orchestrator.report_latency import ms

if TYPE_CHECKING:
    import rich.console

    from orchestrator.allocation.latency_table import LatencyTable, OperationTable

SHOWN = 12  # operations
PAGE = "latency.html"


def shown(table: LatencyTable) -> list[tuple[OperationTable, int]]:
    """The operations that take most and can be narrowed, each with how many layers of the model are like it."""
    alike: dict[int, list[OperationTable]] = {}
    for operation in table.operations:
        if operation.levels:
            alike.setdefault(id(operation.ms), []).append(operation)
    return sorted(((same[0], len(same)) for same in alike.values()), key=lambda found: -found[1] * found[0].dense_ms)[:SHOWN]


def latency_table(table: LatencyTable, setting: str) -> rich.console.RenderableType:
    """What the operations take, for the console."""
    import rich.console
    from rich.table import Table

    lines = Table(title=f"Operations that can be narrowed, by their part of the whole ({setting})", title_justify="left")
    for column in ("operation", "layers like it", "units", "all", "half of them", "of the model"):
        numeric = column != "operation"
        lines.add_column(column, justify="right" if numeric else "left", no_wrap=not numeric)
    for operation, layers in shown(table):
        units = " x ".join(f"{axis.units:,}" for axis in operation.operation.axes)
        half = operation.at({name: -(-count // 2) for name, count in operation.units.items()})
        part = percent(layers * operation.dense_ms / table.total_ms)
        lines.add_row(name_of(operation), str(layers), units, ms(operation.dense_ms), ms(half), part)
    return rich.console.Group(lines, *sentences(table))


def sentences(table: LatencyTable) -> list[str]:
    """How the table was come by, and how far it can be trusted."""
    spreads = sorted(record.numbers["spread"] for record in table.measured)
    return [
        f"{len(table.measured):,} of {table.asked:,} sizes were measured: the others lie on plateaus, or equal layers share them.",
        f"Together they take {ms(table.total_ms)}, the whole model {ms(table.model_ms)} end to end, {table.scale:.2f} times as long.",
        f"The median of a size is known to {percent(spreads[len(spreads) // 2])} in the middle, to {percent(spreads[-1])} at worst.",
    ]


def name_of(operation: OperationTable) -> str:
    """The name of its first layer, without its place in the forward pass."""
    return operation.operation.name.partition(":")[2]


def write_page(table: LatencyTable, setting: str, directory: Path) -> Path:
    """Write a page with the staircases; it loads nothing. Returns its path."""
    from plotly.graph_objects import Figure
    from plotly.subplots import make_subplots

    panels = shown(table)
    columns = min(3, len(panels)) or 1
    titles = [name_of(operation) + (f" ({count(layers, 'layer')})" if layers > 1 else "") for operation, layers in panels]
    figure: Figure = make_subplots(rows=max(1, -(-len(panels) // columns)), cols=columns, subplot_titles=titles)
    for index, (operation, _) in enumerate(panels):
        for trace in _staircases(operation):
            figure.add_trace(trace, row=index // columns + 1, col=index % columns + 1)
    figure.update_layout(template="plotly_white", height=300 * max(1, -(-len(panels) // columns)), showlegend=False, margin={"t": 60})
    figure.update_yaxes(rangemode="tozero", title_text="ms")
    figure.update_xaxes(rangemode="tozero", title_text="units")
    figure.update_annotations(font_size=12)
    path = directory / PAGE
    told = [*sentences(table), "Of a layer with two widths, lines are some widths of the other one, the wider the slower."]
    words = "".join(f"<p>{escape(sentence)}</p>" for sentence in told)
    style = "<style>body{font-family:sans-serif;margin:2em;max-width:75em}</style>"
    head = f"<!doctype html><meta charset=utf-8><title>Latency</title>{style}<h1>Latency</h1><p>{escape(setting)}</p>"
    path.write_text(head + words + figure.to_html(full_html=False, include_plotlyjs=True), encoding="utf-8")
    return path


def _staircases(operation: OperationTable) -> list:
    """Time by the units of the first axis, a line for some widths of the second."""
    from plotly.graph_objects import Scatter

    first, *others = operation.levels
    if not others:
        return [Scatter(x=first, y=[operation.ms[index,] for index in range(len(first))], line_shape="vh", mode="lines+markers")]
    seconds = sorted({round(part * (len(others[0]) - 1) / 3) for part in range(4)})
    return [
        Scatter(
            x=first,
            y=[operation.ms[index, second] for index in range(len(first))],
            line_shape="vh",
            mode="lines+markers",
            name=f"{others[0][second]} units of the other axis",
        )
        for second in seconds
    ]

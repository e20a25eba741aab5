"""Pictures of the layers: how sparse each became, and what its sparsity costs."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from orchestrator.report_figures import INK, OTHER, PALETTE, Figure, layout_of, safe
from orchestrator.units import number, percent

if TYPE_CHECKING:
    from orchestrator.report import LayerResult, Report

MANY_LAYERS = 40  # beyond this, layers are columns without names instead of rows with names


def _colours(kinds: list[str]) -> dict[str, str]:
    """A colour for each of the most frequent kinds, grey for the rest; dictionary order is order of first appearance."""
    frequent = [kind for kind, _ in Counter(kinds).most_common(len(PALETTE))]
    in_order = [kind for kind in dict.fromkeys(kinds) if kind in frequent]
    return {kind: PALETTE[index] for index, kind in enumerate(in_order)}


def _kind(layer: LayerResult) -> str:
    """What layers of the same role share: the name without the parts that count, at most its last two (``attn.qkv``)."""
    return ".".join([part for part in layer.name.split(".") if not part.isdigit()][-2:]) or layer.name


def sparsity(report: Report) -> Figure | None:
    """A bar per layer, coloured by kind: rows with names for few layers, columns for many. A dotted line is the sparsity of the whole."""
    if not report.layers:
        return None
    layers, many = report.layers, len(report.layers) > MANY_LAYERS
    kinds = [_kind(layer) for layer in layers]
    colours = _colours(kinds)
    place, length = ("x", "y") if many else ("y", "x")
    data = []
    for kind, colour in [*colours.items(), ("other", OTHER)]:
        members = [index for index, found in enumerate(kinds) if (found if found in colours else "other") == kind]
        bars: Figure = {
            "type": "bar",
            "name": safe(kind),
            "orientation": "v" if many else "h",
            place: members,
            length: [layers[index].sparsity for index in members],
            "width": 0.86 if many else 0.66,
            "marker": {"color": colour, "cornerradius": 0 if many else 3},
            "hovertext": [_layer_text(layers[index]) for index in members],
            "hoverinfo": "text",
        }
        data += [bars] if members else []
    return _columns(report, data) if many else _rows(report, data)


FRACTION_AXIS = {"range": [0, 1.02], "tickvals": [0, 0.25, 0.5, 0.75, 1], "tickformat": ".0%", "title": "weights pruned"}
MEAN_LINE = {"type": "line", "line": {"color": INK, "width": 1, "dash": "dot"}, "layer": "above"}


def _columns(report: Report, data: list[Figure]) -> Figure:
    line = MEAN_LINE | {"xref": "paper", "x0": 0, "x1": 1, "y0": report.sparsity, "y1": report.sparsity}
    across = {"title": "layers, from input to output", "showgrid": False, "range": [-0.7, len(report.layers) - 0.3]}
    return {"data": data, "layout": layout_of(360, xaxis=across, yaxis=FRACTION_AXIS, barmode="overlay", shapes=[line])}


def _rows(report: Report, data: list[Figure]) -> Figure:
    """Names on the left axis, numbers on a right one, which plotly draws only if something invisible lies on it."""
    many = len(report.layers)
    line = MEAN_LINE | {"yref": "paper", "y0": 0, "y1": 1, "x0": report.sparsity, "x1": report.sparsity}
    down = {"range": [many - 0.4, -0.6], "tickvals": list(range(many)), "showgrid": False}
    names = down | {"ticktext": [safe(layer.name) for layer in report.layers]}
    numbers = down | {"ticktext": [percent(layer.sparsity) for layer in report.layers], "overlaying": "y", "side": "right"}
    anchor = {"type": "scatter", "x": [0], "y": [0], "yaxis": "y2", "opacity": 0, "showlegend": False, "hoverinfo": "skip"}
    layout = layout_of(90 + 23 * many, xaxis=FRACTION_AXIS, yaxis=names, yaxis2=numbers, barmode="overlay", shapes=[line])
    return {"data": [*data, anchor], "layout": layout}


def _layer_text(layer: LayerResult) -> str:
    return (
        f"<b>{safe(layer.name)}</b><br>{layer.rows:,} × {layer.columns:,}, blocks of {layer.block_size}<br>"
        f"{percent(layer.sparsity, 2)} pruned: {layer.pruned:,} of {layer.weights:,}<br>"
        f"predicted loss increase {number(layer.predicted_loss_increase)}"
    )


def loss_curves(report: Report) -> Figure | None:
    """Predicted loss increase of each layer against its sparsity, with a mark where it ended. Zeros have no place on the log axis."""
    kinds = {layer.name: _kind(layer) for layer in report.layers if layer.curve}
    if not kinds:
        return None
    colours = _colours(list(kinds.values()))
    thin = len(kinds) > MANY_LAYERS
    data: list[Figure] = [
        {"type": "scatter", "mode": "lines", "name": safe(kind), "x": [None], "y": [None], "line": {"color": colour, "width": 2.5}}
        for kind, colour in colours.items()
    ]
    for layer in report.layers:
        points = [(x, y) for x, y in layer.curve if y > 0 and math.isfinite(y)]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "showlegend": False,
                "x": [round(x, 5) for x, _ in points],
                "y": [float(f"{y:.4g}") for _, y in points],
                "line": {"color": colours.get(_kind(layer), OTHER), "width": 1 if thin else 1.6},
                "opacity": 0.35 if thin else 0.7,
                "hovertemplate": f"{safe(layer.name)}<br>%{{x:.1%}} pruned: +%{{y:.3g}}<extra></extra>",
            }
        )
    chosen = [layer for layer in report.layers if layer.name in kinds and (layer.predicted_loss_increase or 0) > 0]
    data.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "where it ended",
            "x": [layer.sparsity for layer in chosen],
            "y": [layer.predicted_loss_increase for layer in chosen],
            "hovertext": [_layer_text(layer) for layer in chosen],
            "hoverinfo": "text",
            "marker": {
                "size": 6 if thin else 9,
                "color": [colours.get(kinds[layer.name], OTHER) for layer in chosen],
                "line": {"color": "white", "width": 1.2},
            },
        }
    )
    axes = {"range": [0, 1.02], "tickformat": ".0%", "title": "weights of the layer pruned"}
    loss = {"type": "log", "exponentformat": "power", "dtick": 1, "title": "predicted loss increase"}
    return {"data": data, "layout": layout_of(420, xaxis=axes, yaxis=loss)}

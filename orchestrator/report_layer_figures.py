"""Pictures of the layers: how sparse each became, and what its sparsity costs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from orchestrator.quantities import number, percent
from orchestrator.report_bars import MANY, Bar, bars, colours_of
from orchestrator.report_figures import OTHER, Figure, layout_of, safe

if TYPE_CHECKING:
    from orchestrator.report import LayerResult, Report


def _kind(layer: LayerResult) -> str:
    """What layers of the same role share: the name without the parts that count, at most its last two (``attn.qkv``)."""
    return ".".join([part for part in layer.name.split(".") if not part.isdigit()][-2:]) or layer.name


def sparsity(report: Report) -> Figure | None:
    """A bar per layer, coloured by kind. A dotted line is the sparsity of the whole."""
    if not report.layers:
        return None
    found = [Bar(layer.name, _kind(layer), layer.sparsity, percent(layer.sparsity), _layer_text(layer)) for layer in report.layers]
    return bars(found, report.sparsity, "weights pruned", "layers")


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
    colours = colours_of(list(kinds.values()))
    thin = len(kinds) > MANY
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

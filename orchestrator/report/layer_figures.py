"""Figures of layers and groups: how much each lost, what a layer's sparsity costs, and which groups are bottlenecks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from plotly import graph_objects as go

from orchestrator.quantities import COSTS, count, number, percent
from orchestrator.report.figures import FAINT, INK, OTHER, PALETTE, PAPER, SHARES, TICKS, figure, safe
from orchestrator.report.parts import GroupResult, LayerResult
from orchestrator.report.result import Report
from orchestrator.report.terms import UNITS

MANY = 40  # beyond this, rows with names become columns (or rows) without names


@dataclass(frozen=True)
class Bar:
    """``fraction`` of the part ``name`` and how it is ``written``; ``hover`` is plotly's small HTML."""

    name: str
    kind: str
    fraction: float
    written: str
    hover: str
    marked: bool = False


def colours_of(kinds: Sequence[str]) -> dict[str, str]:
    """A colour for each of the most frequent kinds; the others are drawn in ``OTHER``. In order of first appearance."""
    frequent = [kind for kind, _ in Counter(kinds).most_common(len(PALETTE))]
    return dict(zip([kind for kind in dict.fromkeys(kinds) if kind in frequent], PALETTE, strict=False))


def bars(parts: Sequence[Bar], whole: float, title: str, across: str, mark: str = "") -> go.Figure:
    """A bar for each part, coloured by kind: rows with names for few, columns for many; a dotted line is the fraction of the ``whole``.

    ``across`` says what the parts are, ``mark`` what the outline of some of them means.
    """
    many = len(parts) > MANY

    def trace(members: Sequence[int], name: str, hoverinfo: str = "text", **marker: object) -> go.Bar:
        fractions = [parts[index].fraction for index in members]
        return go.Bar(
            name=safe(name),
            orientation="v" if many else "h",
            x=members if many else fractions,
            y=fractions if many else members,
            width=0.86 if many else 0.66,
            hovertext=[parts[index].hover for index in members],
            hoverinfo=hoverinfo,
            marker={"cornerradius": 0 if many else 3} | marker,
        )

    colours = colours_of([part.kind for part in parts])
    kinds = [part.kind if part.kind in colours else "other" for part in parts]
    members = {kind: [index for index, other in enumerate(kinds) if other == kind] for kind in (*colours, "other")}
    traces = [trace(indices, kind, color=colours.get(kind, OTHER)) for kind, indices in members.items() if indices]
    if marked := [index for index, part in enumerate(parts) if part.marked]:
        traces.append(trace(marked, mark, hoverinfo="skip", color="rgba(0,0,0,0)", line={"color": INK, "width": 1.6}))
    axis, dotted = SHARES | {"title": title}, {"color": INK, "width": 1, "dash": "dot"}
    if many:
        names = {"title": f"{across}, from input to output", "showgrid": False, "range": [-0.7, len(parts) - 0.3]}
        return figure(360, traces, xaxis=names, yaxis=axis, barmode="overlay").add_hline(whole, line=dotted)
    rows = {"range": [len(parts) - 0.4, -0.6], "tickvals": list(range(len(parts))), "showgrid": False}
    names = rows | {"ticktext": [safe(part.name) for part in parts]}
    numbers = rows | {"ticktext": [safe(part.written) for part in parts], "overlaying": "y", "side": "right"}
    # Plotly draws the right axis, with the numbers, only if something lies on it.
    traces.append(go.Scatter(x=[0], y=[0], yaxis="y2", opacity=0, showlegend=False, hoverinfo="skip"))
    drawn = figure(90 + 23 * len(parts), traces, xaxis=axis, yaxis=names, yaxis2=numbers, barmode="overlay")
    return drawn.add_vline(whole, line=dotted)


def sparsity(report: Report) -> go.Figure | None:
    """A bar for each layer, coloured by kind."""
    if not report.layers:
        return None
    parts = [Bar(layer.name, _kind(layer), layer.sparsity, percent(layer.sparsity), _layer_text(layer)) for layer in report.layers]
    return bars(parts, report.sparsity, "weights masked", "layers")


def _kind(layer: LayerResult) -> str:
    """What layers with the same role share: the name without numbered parts, at most its last two (``attn.qkv``)."""
    return ".".join([part for part in layer.name.split(".") if not part.isdigit()][-2:]) or layer.name


def _layer_text(layer: LayerResult) -> str:
    return (
        f"<b>{safe(layer.name)}</b><br>{layer.rows:,} × {layer.columns:,}, blocks of {layer.block_size}<br>"
        f"{percent(layer.sparsity, 2)} masked: {layer.zeros:,} of {layer.weights:,}<br>"
        f"predicted loss increase {number(layer.predicted_loss_increase)}"
    )


def loss_curves(report: Report) -> go.Figure | None:
    """Predicted loss increase of each layer against its sparsity, with a mark where it ended. Zeros have no place on the log axis."""
    layers = [layer for layer in report.layers if layer.curve]
    if not layers:
        return None
    colours, thin = colours_of([_kind(layer) for layer in layers]), len(layers) > MANY
    legend = [go.Scatter(mode="lines", name=safe(kind), x=[None], y=[None], line_color=colour) for kind, colour in colours.items()]
    lines = []
    for layer in layers:
        points = [(x, y) for x, y in layer.curve if y > 0 and math.isfinite(y)]
        lines.append(
            go.Scatter(
                mode="lines",
                showlegend=False,
                x=[round(x, 5) for x, _ in points],
                y=[float(f"{y:.4g}") for _, y in points],
                line={"color": colours.get(_kind(layer), OTHER), "width": 1 if thin else 1.6},
                opacity=0.35 if thin else 0.7,
                hovertemplate=f"{safe(layer.name)}<br>%{{x:.1%}} masked: +%{{y:.3g}}<extra></extra>",
            )
        )
    chosen = [layer for layer in layers if (layer.predicted_loss_increase or 0) > 0]
    colour = [colours.get(_kind(layer), OTHER) for layer in chosen]
    ends = go.Scatter(
        mode="markers",
        name="where it ended",
        x=[layer.sparsity for layer in chosen],
        y=[layer.predicted_loss_increase for layer in chosen],
        hovertext=[_layer_text(layer) for layer in chosen],
        hoverinfo="text",
        marker={"size": 6 if thin else 9, "color": colour, "line": {"color": PAPER, "width": 1.2}},
    )
    across = {"range": [0, 1.02], "tickformat": ".0%", "title": "sparsity of the layer"}
    powers = {"exponentformat": "power", "tickfont": {"size": TICKS / 1.25}}  # plotly draws powers of ten 1.25 times larger
    loss = {"type": "log", "dtick": 1, "title": "predicted loss increase"} | powers
    return figure(420, [*legend, *lines, ends], xaxis=across, yaxis=loss)


def kept_units(report: Report) -> go.Figure | None:
    """A bar for each group, coloured by kind of unit, outlined where the least was lost."""
    if not report.groups:
        return None
    least = {group.name for group in report.least_lost}
    parts = [
        Bar(group.name, UNITS[group.kind], group.share, f"{group.kept:,} / {group.units:,}", _group_text(group), group.name in least)
        for group in report.groups
    ]
    return bars(parts, report.units_left / report.units, "units kept", "groups", "lost the least")


def _group_text(group: GroupResult) -> str:
    return (
        f"<b>{safe(group.name)}</b><br>{group.kept:,} of {count(group.units, UNITS[group.kind])} kept ({percent(group.share)})<br>"
        f"{group.weights:,} weights per unit"
    )


def sweep(report: Report) -> go.Figure | None:
    """The share of each group (rows, bottlenecks on top) that would be kept as more of the model is removed (columns)."""
    ranked, targets = report.bottlenecks, report.sweep_targets
    if not ranked:
        return None
    of = COSTS[report.unit_goals[0].of] if report.unit_goals else "model"
    kept = go.Heatmap(
        x=targets,
        y=list(range(len(ranked))),
        z=[[round(share, 4) for share in group.swept] for group in ranked],
        zmin=0,
        zmax=1,
        colorscale=[[0, "#f7fbff"], [0.5, "#6baed6"], [1, "#08306b"]],
        colorbar={
            "tickformat": ".0%",
            "title": {"text": "kept", "side": "right", "font": {"size": 13, "color": FAINT}},
            "thickness": 12,
            "outlinewidth": 0,
        },
        xgap=1,
        ygap=1 if len(ranked) <= MANY else 0,
        text=[[safe(group.name)] * len(targets) for group in ranked],
        hovertemplate=f"%{{text}}<br>%{{z:.1%}} kept with %{{x:.0%}} of the {of} removed<extra></extra>",
    )
    across = {"title": f"{of} removed", "tickformat": ".0%", "showgrid": False}
    if len(ranked) <= MANY:
        names = {"tickvals": list(range(len(ranked))), "ticktext": [safe(group.name) for group in ranked]}
    else:
        names = {"title": "groups, bottlenecks on top", "showticklabels": False}
    down = {"range": [len(ranked) - 0.5, -0.5], "showgrid": False} | names
    return figure(120 + min(22 * len(ranked), 520), [kept], xaxis=across, yaxis=down)

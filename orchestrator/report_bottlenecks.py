"""Bottlenecks: groups that would lose least whatever the target, from a sweep down the ranking of a run."""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING, Any

from orchestrator.quantities import listed, percent
from orchestrator.report_figures import Figure, layout_of, safe
from orchestrator.report_html import place

if TYPE_CHECKING:
    from orchestrator.report import GroupResult, Report

NAMED = 3
MANY_GROUPS = 40  # beyond this, rows have no names


def bottlenecks(report: Report) -> list[GroupResult]:
    """All groups, the one that keeps the largest share on average over the sweep first (Nonnenmacher et al. 2022, section 4.3)."""
    return sorted((group for group in report.groups if group.swept), key=lambda group: -mean(group.swept))


def on_bottlenecks(report: Report) -> list[str]:
    """Which groups to widen before training again."""
    ranked = bottlenecks(report)
    if len(ranked) < 2 or mean(ranked[0].swept) == mean(ranked[-1].swept):
        return []
    first = [f"{group.name} ({percent(mean(group.swept), 0)} kept)" for group in ranked[: min(NAMED, len(ranked) - 1)]]
    last = ranked[-1]
    return [
        f"Over targets from 5 to 95 %, {listed(first)} would lose least and {last.name} ({percent(mean(last.swept), 0)}) most: "
        "the first are where the architecture is narrow."
    ]


def sweep(report: Report) -> Figure | None:
    """What stays of each group (rows, bottlenecks on top) as more of the model is taken out (columns)."""
    ranked = bottlenecks(report)
    if not ranked:
        return None
    removed = [(index + 1) / (len(ranked[0].swept) + 1) for index in range(len(ranked[0].swept))]
    of = {"macs": "multiply-adds"}.get(str(report.asked.get("of")), str(report.asked.get("of", "model")))
    traces: Figure = {
        "type": "heatmap",
        "x": removed,
        "y": list(range(len(ranked))),
        "z": [[round(share, 4) for share in group.swept] for group in ranked],
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, "#f7fbff"], [0.5, "#6baed6"], [1, "#08306b"]],
        "colorbar": {"tickformat": ".0%", "title": {"text": "kept", "side": "right"}, "thickness": 12},
        "xgap": 1,
        "ygap": 1 if len(ranked) <= MANY_GROUPS else 0,
        "text": [[safe(group.name)] * len(removed) for group in ranked],
        "hovertemplate": "%{text}<br>%{z:.1%} kept when %{x:.0%} of the " + safe(of) + " are gone<extra></extra>",
    }
    across = {"title": f"{of} taken out", "tickformat": ".0%", "showgrid": False}
    down: dict[str, Any] = {"range": [len(ranked) - 0.5, -0.5], "showgrid": False}
    if len(ranked) <= MANY_GROUPS:
        down |= {"tickvals": list(range(len(ranked))), "ticktext": [safe(group.name) for group in ranked]}
    else:
        down |= {"title": "groups, bottlenecks on top", "showticklabels": False}
    return {"data": [traces], "layout": layout_of(120 + min(22 * len(ranked), 520), xaxis=across, yaxis=down)}


def bottleneck_part(drawn: dict[str, Any]) -> str:
    """The picture with its heading, for the section on groups."""
    picture = place(drawn, "sweep", "Share of each group that would stay over a sweep of targets")
    if not picture:
        return ""
    note = "Share of each group that the same ranking would keep at other targets; groups that keep most stand on top."
    return f'<h3>Bottlenecks</h3><p class="note">{note}</p>{picture}'

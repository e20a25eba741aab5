"""Figures of accuracy, rounds, training and work, and the look that all figures share. A function returns None if it has no data.

Plotly reads a small HTML in its texts, so every name that comes from outside passes ``safe``.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from plotly import graph_objects as go

from orchestrator.quantities import COSTS, duration, percent
from orchestrator.report.parts import RoundResult, TaskRun
from orchestrator.report.result import Report
from orchestrator.report.terms import ACCURACY_NAMES, FRACTIONS, METRICS, measured_metrics, model_name, verb_name
from orchestrator.stages import over_rounds

INK, FAINT, GRID, PALE, PAPER = "#1f2a37", "#667085", "#e6e8ec", "#c3cad5", "#ffffff"
# Okabe and Ito's colours (distinct for every common kind of colour blindness), darkened where they would be too pale on white.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b8609a", "#a07a00", "#3f9bd1", "#6b5bb0", "#7a4a2a")
OTHER = "#98a2b3"
REMOVED, MASKED = "#7cccb2", "#aab1bc"  # colours that dark numbers can be read on
# What takes the place of a colour on a page that is read in dark mode. The others are distinct on both.
DARK = {INK: "#e4e8ee", FAINT: "#9aa5b4", GRID: "#2c3542", PALE: "#4b5768", PAPER: "#171e27", REMOVED: "#22705b", MASKED: "#515c6b"}
DARK |= {PALETTE[0]: "#3a93d4", PALETTE[4]: "#b98f12", PALETTE[6]: "#8b7bd1", PALETTE[7]: "#b0784f"}
# Ten or more verbs occur in a run, so four colours are added. Verbs of units have the colours of their counterparts for weights.
VERB_COLOURS = {"collect": PALETTE[0], "score": PALETTE[1], "solve": PALETTE[2], "train": PALETTE[3], "evaluate": PALETTE[4]}
VERB_COLOURS |= {"allocate": "#6fd3e0", "join": PALETTE[6], "import": PALETTE[7], "compare": INK}
VERB_COLOURS |= {"refit": VERB_COLOURS["solve"], "assess": "#8fc31f", "time": "#c2185b", "quantise": "#f2b701"}
VERB_COLOURS |= {units: VERB_COLOURS[weights] for units, weights in (("rank", "score"), ("choose", "allocate"), ("shrink", "join"))}
STAGE_COLOURS = {"dense": OTHER, "one_shot": PALETTE[1], "recovered": PALETTE[0]}
FONT = {"family": "Inter, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif", "size": 13, "color": INK}
TICKS = 12.5  # the size of the labels of axes
AXIS = {
    "gridcolor": GRID,
    "zeroline": False,
    "showline": True,
    "linecolor": GRID,
    "automargin": True,
    "fixedrange": True,
    "ticks": "outside",
    "ticklen": 5,
    "tickcolor": "rgba(0,0,0,0)",
    "tickfont": {"size": TICKS},
    "title": {"standoff": 12, "font": {"size": 13, "color": FAINT}},
}
LOOK = go.layout.Template(
    layout={
        "margin": {"l": 16, "r": 16, "t": 16, "b": 16},
        "font": FONT,
        "colorway": PALETTE,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"bgcolor": PAPER, "bordercolor": GRID, "font": FONT, "align": "left"},
        "legend": {
            "orientation": "h",
            "xanchor": "left",
            "x": 0,
            "yanchor": "bottom",
            "y": 1.02,
            "itemclick": False,
            "itemdoubleclick": False,
        },
        "xaxis": AXIS,
        "yaxis": AXIS,
    },
    data={"bar": [{"cliponaxis": False, "textangle": 0, "marker": {"cornerradius": 3}}]},
)
SHARES = {"range": [0, 1.02], "tickvals": [0, 0.25, 0.5, 0.75, 1], "tickformat": ".0%"}
SECONDS = {
    "type": "log",
    "tickvals": [0.001, 0.01, 0.1, 1, 10, 60, 600, 3600, 36000, 360000],
    "ticktext": ["1 ms", "10 ms", "0.1 s", "1 s", "10 s", "1 min", "10 min", "1 h", "10 h", "100 h"],
}


def figure(height: int, traces: Sequence[Any], **layout: Any) -> go.Figure:
    return go.Figure(list(traces), go.Layout(template=LOOK, height=height, **layout))


def safe(text: object) -> str:
    return html.escape(str(text), quote=False)


def rows_named(names: Sequence[str]) -> dict[str, Any]:
    """A vertical axis of named rows, the first one on top."""
    return {"categoryorder": "array", "categoryarray": [safe(name) for name in reversed(names)], "showgrid": False}


def accuracy(report: Report) -> go.Figure | None:
    """Bars of every accuracy, by model."""
    keys = [key for key in measured_metrics(report) if key in FRACTIONS]
    if not keys:
        return None
    bars = []
    for stage in report.stages:
        shown = [key for key in keys if stage.name != "dense" or key != "agreement"]
        values = {METRICS[key]: value for key in shown if (value := stage.metrics.get(key)) is not None}
        bars.append(
            go.Bar(
                name=model_name(report, stage.name),
                x=list(values),
                y=list(values.values()),
                text=[percent(value) for value in values.values()],
                textposition="outside",
                marker_color=STAGE_COLOURS[stage.name],
                hovertemplate="%{x}: %{text}<extra>%{fullData.name}</extra>",
            )
        )
    fitting = {"bargap": 0.3, "bargroupgap": 0.08, "uniformtext": {"minsize": 11, "mode": "hide"}}
    return figure(300, bars, xaxis_showgrid=False, yaxis=SHARES | {"range": [0, 1.08]}, **fitting)


def rounds(report: Report) -> go.Figure | None:
    """Accuracy falls when a round prunes and rises when it recovers; how much was pruned by each round stands below."""
    key = report.headline_metric
    if not report.rounds or key is None:
        return None
    path: list[tuple[str, float, float, str]] = []  # kind of model, place, accuracy, what it is
    dense = report.metric("dense", key)
    if dense is not None and key != "agreement":
        path.append(("dense", 0.0, dense, "dense"))
    for index, part in enumerate(report.rounds, start=1):
        for stage, place, kind in ((part.after_pruning, index, "pruned"), (part.after_recovery, index + 0.5, "recovered")):
            value = None if stage is None else stage.metrics.get(key)
            if value is not None:
                path.append((kind, place, value, f"{part.name}, {kind}"))
    if not path:
        return None
    line = {"mode": "lines", "showlegend": False, "hoverinfo": "skip", "line": {"color": PALE, "width": 2}}
    traces = [go.Scatter(x=[x for _, x, *_ in path], y=[y for _, _, y, _ in path], **line)]
    for kind, colour in zip(("dense", "pruned", "recovered"), STAGE_COLOURS.values(), strict=True):
        points = [(x, y, f"{safe(text)}: {percent(y)}") for of, x, y, text in path if of == kind]
        if points:
            x, y, hover = zip(*points, strict=True)
            marker = {"size": 10, "color": colour, "line": {"color": PAPER, "width": 1.2}}
            traces.append(go.Scatter(mode="markers", name=kind, x=x, y=y, hovertext=hover, hoverinfo="text", marker=marker))
    names = {"tickvals": list(range(1, len(report.rounds) + 1)), "ticktext": [safe(part.name) for part in report.rounds]}
    return figure(
        420,
        [*traces, *_pruned_by_round(report)],
        xaxis=names | {"anchor": "y2", "showgrid": False, "range": [-0.3, len(report.rounds) + 0.9]},
        yaxis={"title": ACCURACY_NAMES[key], "domain": [0.38, 1], "tickformat": ".1~%", "range": _span([y for _, _, y, _ in path])},
        yaxis2={"title": "pruned", "domain": [0, 0.26], "range": [0, 1], "tickvals": [0, 0.5, 1], "tickformat": ".0%"},
    )


def _span(values: Sequence[float]) -> list[float] | None:
    """A range around all values and of at least ten points, so that noise does not fill the figure."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return None
    half = max(0.05, 0.55 * (max(known) - min(known)))
    middle = min((max(known) + min(known)) / 2, 1.01 - half)
    return [middle - half, middle + half]


def _pruned_by_round(report: Report) -> list[go.Bar]:
    """Bars over the span of each round: what was removed by its end, what it masked, or both side by side."""
    of = report.unit_goal.of if report.unit_goal else "structures"
    amounts = {
        f"{COSTS[of]} removed": (REMOVED, [part.removed.get(of) for part in report.rounds]),
        "weights masked": (MASKED, [part.sparsity if part.masks else None for part in report.rounds]),
    }
    shown = {name: told for name, told in amounts.items() if (report.masks_weights if name == "weights masked" else report.removes_units)}
    width = 0.9 / len(shown)
    return [
        go.Bar(
            name=name,
            x=[index + 1.25 + (place - (len(shown) - 1) / 2) * width for index in range(len(report.rounds))],
            y=values,
            yaxis="y2",
            width=width * 0.98,
            text=["" if value is None else percent(value) for value in values] if len(report.rounds) <= 12 else None,
            textposition="inside",
            insidetextfont_color=INK,
            hovertext=[_amount_text(part, value, name) for part, value in zip(report.rounds, values, strict=True)],
            hoverinfo="text",
            marker_color=colour,
            showlegend=report.removes_units,
        )
        for place, (name, (colour, values)) in enumerate(shown.items())
    ]


def _amount_text(part: RoundResult, value: float | None, name: str) -> str:
    text = f"{safe(part.name)}: {percent(value, 2)} of the {name}"
    return f"{text}, {percent(part.asked, 2)} asked" if value == part.reached else text


def curves(report: Report) -> dict[str, list[dict[str, Any]]]:
    """The progress lines of each training to draw: in rounds, those of all recoveries one after another, their steps counted on."""
    recoveries = {name: lines for name, lines in report.curves.items() if name.endswith("/recovery")}
    joined: list[dict[str, Any]] = []
    before = 0
    for name, lines in recoveries.items():
        joined += [line | {"step": before + line["step"], "epoch": f"{line.get('epoch')} of {name}"} for line in lines if "step" in line]
        before += (lines[-1].get("steps") or lines[-1].get("step", 0)) if lines else 0
    others = {name: lines for name, lines in report.curves.items() if name not in recoveries}
    return others | ({"recovery in all rounds": joined} if joined else {})


def training(lines: Sequence[Mapping[str, Any]]) -> go.Figure | None:
    """Loss of a training against its step, with the learning rate below."""
    losses = [line for line in lines if isinstance(line.get("loss"), (int, float)) and math.isfinite(line["loss"])]
    if not losses:
        return None
    rates = [line for line in losses if line.get("lr") is not None]
    loss = go.Scatter(
        name="loss",
        mode="lines" if len(losses) > 30 else "lines+markers",
        x=[line["step"] for line in losses],
        y=[line["loss"] for line in losses],
        line={"color": PALETTE[0], "width": 2},
        customdata=[safe(line.get("epoch", "?")) for line in losses],
        hovertemplate="epoch %{customdata}, step %{x}: loss %{y:.4g}<extra></extra>",
    )
    across = {"title": "optimizer step"}
    if not rates:
        return figure(340, [loss], showlegend=False, xaxis=across, yaxis={"title": "loss"})
    rate = go.Scatter(
        name="learning rate",
        mode="lines",
        x=[line["step"] for line in rates],
        y=[line["lr"] for line in rates],
        yaxis="y2",
        line={"color": PALETTE[1], "width": 1.6},
        hovertemplate="step %{x}: learning rate %{y:.3g}<extra></extra>",
    )
    below = {"domain": [0, 0.24], "title": "rate", "nticks": 3, "exponentformat": "power", "rangemode": "tozero"}
    above = {"domain": [0.36, 1], "title": "loss"}
    return figure(340, [loss, rate], showlegend=False, xaxis=across | {"anchor": "y2"}, yaxis=above, yaxis2=below)


def timeline(report: Report) -> go.Figure | None:
    """A row for each process, a bar for each task that was computed in this run, coloured by verb."""
    tasks, processes = report.computed, report.processes
    if not tasks:
        return None
    start = min(task.started for task in tasks)
    bars = []
    for verb in dict.fromkeys(verb_name(task.verb) for task in tasks):
        shown = [task for task in tasks if verb_name(task.verb) == verb]
        edge = {"color": PAPER, "width": 0.6 if len(tasks) <= 150 else 0}
        bars.append(
            go.Bar(
                orientation="h",
                name=safe(verb),
                base=[round(task.started - start, 3) for task in shown],
                x=[task.seconds for task in shown],
                y=[safe(task.worker) for task in shown],
                hovertext=[_task_text(task, start) for task in shown],
                hoverinfo="text",
                width=0.62,
                marker={"color": VERB_COLOURS.get(verb, OTHER), "line": edge},
            )
        )
    across = {"title": "seconds since the first task", "rangemode": "tozero"}
    return figure(120 + 44 * len(processes), bars, barmode="overlay", xaxis=across, yaxis=rows_named(processes))


def _task_text(task: TaskRun, start: float) -> str:
    when = f"{duration(task.seconds)}, from {duration(task.started - start)}"
    return f"<b>{safe(verb_name(task.verb))}</b> {safe(task.what)}<br>{safe(task.worker)}<br>{when}"


def seconds(report: Report) -> go.Figure | None:
    """Predicted and measured time of each stage (of all rounds) on one logarithmic axis, joined by a line."""
    measured = {stage: spent for stage, spent in over_rounds(report.stage_seconds).items() if spent > 0}
    predicted = {stage: spent for stage, spent in over_rounds(report.predicted_stage_seconds).items() if stage in measured and spent > 0}
    if not measured:
        return None
    line = {"mode": "lines", "line": {"color": PALE, "width": 3}, "hoverinfo": "skip", "showlegend": False}
    joints = [go.Scatter(x=[predicted[stage], measured[stage]], y=[safe(stage)] * 2, **line) for stage in predicted]
    hollow, full = {"size": 11, "color": PAPER, "line": {"color": PALETTE[0], "width": 2}}, {"size": 11, "color": PALETTE[0]}
    marks = [
        go.Scatter(
            mode="markers",
            name=name,
            x=list(values.values()),
            y=[safe(stage) for stage in values],
            marker=marker,
            hovertext=[f"{safe(stage)}: {duration(spent)} {name}" for stage, spent in values.items()],
            hoverinfo="text",
        )
        for name, values, marker in (("predicted", predicted, hollow), ("measured", measured, full))
        if values
    ]
    rows = rows_named(list(measured)) | {"showgrid": True}
    return figure(90 + 30 * len(measured), joints + marks, xaxis=SECONDS, yaxis=rows)

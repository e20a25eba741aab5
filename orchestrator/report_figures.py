"""Pictures of accuracy, loss, training and work as plotly figures in plain JSON; None where there is nothing to draw."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, Any

from orchestrator.quantities import duration, number, percent
from orchestrator.report_metrics import ACCURACIES, METRICS, stage_name
from orchestrator.stages import over_rounds

if TYPE_CHECKING:
    from orchestrator.report import Report, TaskRun

Figure = dict[str, Any]

INK, FAINT, GRID = "#1f2a37", "#667085", "#e6e8ec"
# Okabe & Ito's colours (distinct for every common kind of colour blindness), darkened where white would swallow them.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b8609a", "#a07a00", "#3f9bd1", "#6b5bb0", "#7a4a2a")
OTHER = "#98a2b3"
VERBS = ("collect", "score", "solve", "recover", "evaluate", "count", "join", "import")
VERB_COLOURS = dict(zip(VERBS, PALETTE, strict=True))
ALIKE = {"measure": "collect", "rank": "score", "choose": "count", "shrink": "join"}  # of units, what the other is of weights
VERB_COLOURS |= {verb: VERB_COLOURS[other] for verb, other in ALIKE.items()}
STAGE_COLOURS = {"dense": "#98a2b3", "one_shot": "#d55e00", "recovered": "#0072b2"}
SECONDS_TICKS = {
    "tickvals": [0.001, 0.01, 0.1, 1, 10, 60, 600, 3600, 36000, 360000],
    "ticktext": ["1 ms", "10 ms", "0.1 s", "1 s", "10 s", "1 min", "10 min", "1 h", "10 h", "100 h"],
}
FONT = {"family": "Inter, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif", "size": 13, "color": INK}


def layout_of(height: int, **settings: Any) -> dict[str, Any]:
    axis = {
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": GRID,
        "automargin": True,
        "fixedrange": True,
        "ticks": "outside",
        "ticklen": 5,
        "tickcolor": "rgba(0,0,0,0)",
        "tickfont": {"size": 12.5},
    }
    layout: dict[str, Any] = {
        "height": height,
        "margin": {"l": 16, "r": 16, "t": 16, "b": 16},
        "font": FONT,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"bgcolor": "white", "bordercolor": GRID, "font": FONT, "align": "left"},
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.02,
            "yanchor": "bottom",
            "itemclick": False,
            "itemdoubleclick": False,
        },
    }
    for name in ("xaxis", "yaxis", "yaxis2"):
        if name != "yaxis2" or name in settings:
            layout[name] = axis | settings.pop(name, {})
            title = layout[name].pop("title", "")
            layout[name]["title"] = {"text": safe(title), "standoff": 12, "font": {"size": 13, "color": FAINT}}
    return layout | settings


def safe(text: str) -> str:
    """Plotly reads a small HTML in its texts."""
    return html.escape(str(text), quote=False)


def accuracy(report: Report) -> Figure | None:
    """Bars of every accuracy by stage."""
    keys = [key for key in (*ACCURACIES, "top5", "map50") if any(stage.metrics.get(key) is not None for stage in report.stages)]
    keys = [key for key in METRICS if key in keys]
    if not keys:
        return None
    data = []
    for stage in report.stages:
        shown = [key for key in keys if stage.metrics.get(key) is not None and not (key == "agreement" and stage.name == "dense")]
        values = [stage.metrics[key] for key in shown]
        data.append(
            {
                "type": "bar",
                "name": stage_name(report, stage.name),
                "x": [METRICS[key] for key in shown],
                "y": values,
                "text": [percent(value) for value in values],
                "textposition": "outside",
                "cliponaxis": False,
                "textangle": 0,
                "marker": {"color": STAGE_COLOURS[stage.name], "cornerradius": 3},
                "hovertemplate": "%{x}: %{text}<extra>%{fullData.name}</extra>",
            }
        )
    axis = {"range": [0, 1.08], "tickvals": [0, 0.25, 0.5, 0.75, 1], "tickformat": ".0%"}
    return {
        "data": data,
        "layout": layout_of(
            300, yaxis=axis, xaxis={"showgrid": False}, bargap=0.3, bargroupgap=0.08, uniformtext={"minsize": 11, "mode": "hide"}
        ),
    }


def loss_increase(report: Report) -> Figure | None:
    """Predicted beside measured rise of the loss."""
    values = {"predicted": report.loss_increase.predicted, "measured": report.loss_increase.measured}
    known = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
    if not known:
        return None
    bar = {
        "type": "bar",
        "orientation": "h",
        "y": list(known),
        "x": list(known.values()),
        "text": [number(value) for value in known.values()],
        "textposition": "outside",
        "cliponaxis": False,
        "width": 0.5,
        "marker": {"color": ["#b9cfe0" if name == "predicted" else PALETTE[0] for name in known], "cornerradius": 3},
        "hovertemplate": "%{y}: %{text}<extra></extra>",
    }
    low, high = min(0.0, *known.values()), max(0.0, *known.values())
    span = {"range": [1.25 * low, 1.25 * high or 1], "title": f"increase of the loss ({report.loss_increase.unit})"}
    return {"data": [bar], "layout": layout_of(190, xaxis=span, yaxis={"autorange": "reversed", "showgrid": False})}


def training(lines: list[dict[str, Any]]) -> Figure | None:
    """Loss of a training run against its step, with the learning rate below."""
    losses = [line for line in lines if isinstance(line.get("loss"), (int, float)) and math.isfinite(line["loss"])]
    if not losses:
        return None
    rates = [line for line in losses if line.get("lr") is not None]
    few = {"mode": "lines" if len(losses) > 30 else "lines+markers", "type": "scatter"}
    data: list[Figure] = [
        few
        | {
            "name": "loss",
            "x": [line["step"] for line in losses],
            "y": [line["loss"] for line in losses],
            "line": {"color": PALETTE[0], "width": 2},
            "customdata": [line.get("epoch") for line in losses],
            "hovertemplate": "epoch %{customdata}, step %{x}: loss %{y:.4g}<extra></extra>",
        }
    ]
    settings: dict[str, Any] = {"xaxis": {"title": "optimiser step", "anchor": "y2" if rates else "y"}, "yaxis": {"title": "loss"}}
    if rates:
        data.append(
            few
            | {
                "name": "learning rate",
                "mode": "lines",
                "x": [line["step"] for line in rates],
                "y": [line["lr"] for line in rates],
                "yaxis": "y2",
                "line": {"color": PALETTE[1], "width": 1.6},
                "hovertemplate": "step %{x}: learning rate %{y:.3g}<extra></extra>",
            }
        )
        settings["yaxis"] |= {"domain": [0.36, 1]}
        settings["yaxis2"] = {"domain": [0, 0.24], "title": "rate", "nticks": 3, "exponentformat": "power", "rangemode": "tozero"}
    return {"data": data, "layout": layout_of(340, showlegend=False, **settings)}


def timeline(report: Report) -> Figure | None:
    """Who did what when: a row per worker, a bar per task computed in this run, coloured by verb."""
    tasks = [task for task in report.timeline if task.computed]
    if not tasks:
        return None
    start = min(task.started for task in tasks)
    workers = sorted({task.worker for task in tasks})
    edge = {"color": "white", "width": 0.6 if len(tasks) <= 150 else 0}
    data = []
    for verb in dict.fromkeys(task.verb for task in tasks):
        shown = [task for task in tasks if task.verb == verb]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": safe(verb),
                "base": [round(task.started - start, 3) for task in shown],
                "x": [task.seconds for task in shown],
                "y": [safe(task.worker) for task in shown],
                "hovertext": [_task_text(task, start) for task in shown],
                "hoverinfo": "text",
                "width": 0.62,
                "marker": {"color": VERB_COLOURS.get(verb, OTHER), "line": edge},
            }
        )
    rows = {"categoryorder": "array", "categoryarray": [safe(worker) for worker in reversed(workers)], "showgrid": False}
    return {
        "data": data,
        "layout": layout_of(
            120 + 44 * len(workers), barmode="overlay", yaxis=rows, xaxis={"title": "seconds since the first task", "rangemode": "tozero"}
        ),
    }


def _task_text(task: TaskRun, start: float) -> str:
    when = f"{duration(task.seconds)}, from {duration(task.started - start)}"
    return f"<b>{safe(task.verb)}</b> {safe(task.what)}<br>{safe(task.worker)}<br>{when}"


def seconds(report: Report) -> Figure | None:
    """Predicted and measured seconds of each stage (of all rounds) on one logarithmic axis, joined by a line."""
    measured, predicted = over_rounds(report.stage_seconds), over_rounds(report.predicted_stage_seconds)
    stages = [stage for stage, value in measured.items() if value > 0]
    if not stages:
        return None
    both = [stage for stage in stages if predicted.get(stage, 0) > 0]
    joints = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [predicted[stage], measured[stage]],
            "y": [safe(stage), safe(stage)],
            "line": {"color": "#c3cad5", "width": 3},
            "hoverinfo": "skip",
            "showlegend": False,
        }
        for stage in both
    ]
    marks = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": [values[stage] for stage in shown],
            "y": [safe(stage) for stage in shown],
            "marker": marker,
            "hovertext": [f"{safe(stage)}: {duration(values[stage])} {name}" for stage in shown],
            "hoverinfo": "text",
        }
        for name, values, shown, marker in (
            ("predicted", predicted, both, {"size": 11, "color": "white", "line": {"color": PALETTE[0], "width": 2}}),
            ("measured", measured, stages, {"size": 11, "color": PALETTE[0]}),
        )
        if shown
    ]
    rows = {"categoryorder": "array", "categoryarray": [safe(stage) for stage in reversed(stages)]}
    return {
        "data": joints + marks,
        "layout": layout_of(90 + 30 * len(stages), yaxis=rows, xaxis={"type": "log", **SECONDS_TICKS}),
    }

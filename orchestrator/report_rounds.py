"""Gradual pruning in the report: a table, a picture and a sentence over the rounds, and their trainings as one curve."""

from __future__ import annotations

import math
from itertools import groupby
from typing import TYPE_CHECKING, Any

from orchestrator.quantities import count, macs, percent
from orchestrator.report_figures import INK, STAGE_COLOURS, Figure, layout_of, safe
from orchestrator.report_metrics import ACCURACIES, METRICS, metric_text
from orchestrator.report_size import OF, unit_goal

if TYPE_CHECKING:
    from rich.table import Table

    from orchestrator.report import Report, RoundResult, StageResult


TAKEN, MASKED = "#7cccb2", "#aab1bc"  # colours that black numbers can be read on
SHORT = OF | {"macs": "MACs"}


def round_columns(report: Report) -> list[str]:
    """Heads of ``round_rows``."""
    accuracy = METRICS[report.headline_metric] if report.headline_metric else "accuracy"
    asked = ["asked"] if _missed(report) else []
    kinds = _kinds(report)
    reached = "reached" if len(kinds) > 1 else "sparsity" if kinds == ["weights"] else f"{SHORT[kinds[0]]} taken out"
    return ["round", *asked, reached, f"{accuracy} pruned", "trained", "loss predicted", "true", "s"]


def round_rows(report: Report) -> list[list[str]]:
    """A row per round: what it reached (and of what, where rounds differ), accuracy before and after its training, rise of the loss over
    its pruning, seconds of all its stages."""
    key = report.headline_metric

    def accuracy(found: StageResult | None) -> str:
        return "–" if found is None or key is None else metric_text(key, found.metrics.get(key))

    def rise(value: float | None) -> str:
        return "–" if value is None else f"{value:+.2g}"

    return [
        [
            part.name,
            *([percent(part.asked)] if _missed(report) else []),
            percent(part.reached) + (f" of {SHORT[part.asked_of]}" if len(_kinds(report)) > 1 else ""),
            accuracy(part.pruned),
            accuracy(part.recovered),
            rise(part.loss_increase.predicted),
            rise(part.loss_increase.measured),
            f"{part.seconds:,.0f}",
        ]
        for part in report.rounds
    ]


def round_sizes(report: Report) -> tuple[list[str], list[list[str]]]:
    """Heads and cells that the page has beside those of the console: the model after each round. Nothing where no units were taken out."""
    if not report.took_units:
        return [], [[] for _ in report.rounds]
    sizes = [part.size for part in report.rounds]
    return ["parameters", "MACs"], [["–", "–"] if found is None else [f"{found.parameters:,}", macs(found.macs)] for found in sizes]


def _kinds(report: Report) -> list[str]:
    """What the targets of the rounds are fractions of, in order of first appearance."""
    return list(dict.fromkeys(part.asked_of for part in report.rounds))


def _missed(report: Report) -> bool:
    """Whether a round reached more or less than was asked for, by more than the table would show."""
    return any(part.reached is not None and abs(part.asked - part.reached) > 5e-4 for part in report.rounds)


def round_table(report: Report) -> Table:
    """The rounds on the console."""
    from rich.table import Table

    table = Table(header_style="bold")
    for index, column in enumerate(round_columns(report)):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in round_rows(report):
        table.add_row(*row)
    return table


def on_rounds(report: Report) -> list[str]:
    """How the run got to where it ended."""
    if not report.rounds:
        return []
    trained = [part for part in report.rounds if part.recovered is not None]
    text = f"Pruned in {count(len(report.rounds), 'round')}{_way(report)}"
    if not trained:
        return [f"{text}, without training in between."]
    epochs = count(sum(part.epochs for part in trained), "epoch")
    return [
        f"{text}, with {count(len(trained), 'training')} of {epochs} in all; each began with a new optimizer and its own learning rate."
    ]


def _way(report: Report) -> str:
    """What each round reached; neighbours with targets of one kind share its name."""
    if not report.took_units:
        return f", to {', '.join(percent(part.reached) for part in report.rounds)}"
    done = [
        f"{', '.join(percent(part.reached) for part in parts)} of the {OF[of]} {'masked' if of == 'weights' else 'taken out'}"
        for of, parts in groupby(report.rounds, key=lambda part: part.asked_of)
    ]
    return f": {', then '.join(done)}"


def round_lines(report: Report) -> list[dict[str, Any]]:
    """The rounds as progress lines for a tracker: numbers by ``step``, which counts rounds from 1."""
    return [{"step": index} | _numbers(part) for index, part in enumerate(report.rounds, start=1)]


def _numbers(part: RoundResult) -> dict[str, Any]:
    numbers: dict[str, Any] = {"round": part.name, "seconds": part.seconds}
    if part.masks:
        numbers |= {"sparsity_asked": part.asked, "sparsity": part.sparsity}
    else:
        numbers |= {f"removed_{part.asked_of}_asked": part.asked}
    numbers |= {f"removed_{of}": value for of, value in part.removed.items()}
    if part.size is not None:
        numbers |= {"parameters": part.size.parameters, "macs": part.size.macs}
    numbers |= {f"pruned_{key}": value for key, value in part.pruned.metrics.items() if key in METRICS}
    if part.recovered is not None:
        numbers |= {f"recovered_{key}": value for key, value in part.recovered.metrics.items() if key in METRICS}
    rise = part.loss_increase
    return numbers | {"loss_increase_predicted": rise.predicted, "loss_increase_measured": rise.measured}


def joined_curves(report: Report) -> dict[str, list[dict[str, Any]]]:
    """The curves to draw: in rounds, those of all recoveries one after another, their steps counted on."""
    if not report.rounds:
        return report.curves
    kept = {name: lines for name, lines in report.curves.items() if not name.endswith("/recovery")}
    joined: list[dict[str, Any]] = []
    before = 0
    for name, lines in report.curves.items():
        if name not in kept and lines:
            joined += [
                line | {"step": before + line["step"], "epoch": f"{line.get('epoch')} of {name}"} for line in lines if "step" in line
            ]
            before += lines[-1].get("steps") or lines[-1].get("step", 0)
    return kept | ({"recovery in all rounds": joined} if joined else {})


def rounds(report: Report) -> Figure | None:
    """Accuracy falls when a round prunes and rises when it trains; the sparsity of each round below."""
    key = report.headline_metric
    if not report.rounds or key is None:
        return None
    path: list[tuple[float, float, str, str]] = []  # place, accuracy, kind of model, what it is
    dense = report.metric("dense", key)
    if dense is not None and key != "agreement":
        path.append((0.0, dense, "dense", "dense"))
    for index, part in enumerate(report.rounds, start=1):
        for place, found, kind in ((index, part.pruned, "one_shot"), (index + 0.5, part.recovered, "recovered")):
            value = None if found is None else found.metrics.get(key)
            if value is not None:
                path.append((place, value, kind, f"{part.name}, {'pruned' if kind == 'one_shot' else 'trained'}"))
    if not path:
        return None
    line = {"type": "scatter", "mode": "lines", "showlegend": False, "hoverinfo": "skip", "line": {"color": "#c3cad5", "width": 2}}
    data: list[Figure] = [line | {"x": [x for x, *_ in path], "y": [y for _, y, *_ in path]}]
    data += [_marks(path, kind, name) for kind, name in (("dense", "dense"), ("one_shot", "pruned"), ("recovered", "trained"))]
    data += _amounts(report)
    names = {"tickvals": list(range(1, len(report.rounds) + 1)), "ticktext": [safe(part.name) for part in report.rounds]}
    across = names | {"anchor": "y2", "showgrid": False, "range": [-0.3, len(report.rounds) + 0.9]}
    upper = {"title": ACCURACIES[key], "domain": [0.38, 1], "tickformat": ".1~%", "range": _span([y for _, y, *_ in path])}
    lower = {
        "title": "pruned" if report.masked_weights else "taken out",
        "domain": [0, 0.26],
        "range": [0, 1],
        "tickvals": [0, 0.5, 1],
        "tickformat": ".0%",
    }
    return {"data": [trace for trace in data if trace["x"]], "layout": layout_of(420, xaxis=across, yaxis=upper, yaxis2=lower)}


def _span(values: list[float]) -> list[float] | None:
    """A range around all values and of at least ten points, so that noise does not fill the picture."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return None
    half = max(0.05, 0.55 * (max(known) - min(known)))
    middle = min((max(known) + min(known)) / 2, 1.01 - half)
    return [middle - half, middle + half]


def _marks(path: list[tuple[float, float, str, str]], kind: str, name: str) -> Figure:
    found = [(x, y, text) for x, y, found, text in path if found == kind]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [x for x, _, _ in found],
        "y": [y for _, y, _ in found],
        "hovertext": [f"{safe(text)}: {percent(y)}" for _, y, text in found],
        "hoverinfo": "text",
        "marker": {"size": 10, "color": STAGE_COLOURS[kind], "line": {"color": "white", "width": 1.2}},
    }


def _amounts(report: Report) -> list[Figure]:
    """Bars over the time of each round, from its pruning to the next one: what was taken out by then, what it masked, or both abreast."""
    masked = [part.sparsity if part.masks else None for part in report.rounds]
    if not report.took_units:
        return [_bars(report, masked, "weights masked", MASKED, 0.0, 0.9) | {"showlegend": False}]
    goal = unit_goal(report)
    of = goal[1] if goal else "structures"
    taken, name = [part.removed.get(of) for part in report.rounds], f"{OF[of]} taken out"
    if not report.masked_weights:
        return [_bars(report, taken, name, TAKEN, 0.0, 0.9)]
    return [_bars(report, taken, name, TAKEN, -0.225, 0.44), _bars(report, masked, "weights masked", MASKED, 0.225, 0.44)]


def _bars(report: Report, values: list[float | None], name: str, colour: str, aside: float, width: float) -> Figure:
    return {
        "type": "bar",
        "name": name,
        "x": [index + 0.25 + aside for index in range(1, len(report.rounds) + 1)],
        "y": values,
        "yaxis": "y2",
        "width": width,
        "text": ["" if value is None else percent(value) for value in values] if len(report.rounds) <= 12 else None,
        "textposition": "inside",
        "textangle": 0,
        "hovertext": [_amount_text(part, value, name) for part, value in zip(report.rounds, values, strict=True)],
        "hoverinfo": "text",
        "insidetextfont": {"color": INK},
        "marker": {"color": colour, "cornerradius": 3},
    }


def _amount_text(part: RoundResult, value: float | None, name: str) -> str:
    text = f"{safe(part.name)}: {percent(value, 2)} of the {name}"
    return f"{text}, {percent(part.asked, 2)} asked" if value == part.reached else text

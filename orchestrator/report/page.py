"""The report as one HTML page: its style, its script and its data are inside, so that it opens offline and loads nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import yaml
from plotly import graph_objects as go
from plotly.offline import get_plotlyjs

from orchestrator.quantities import COSTS, count, duration, number, percent, size
from orchestrator.report import figures, layer_figures, tables
from orchestrator.report.environment import environment
from orchestrator.report.result import FASTER, Report
from orchestrator.report.terms import ACCURACY_NAMES, model_name, verb_name
from orchestrator.report.words import sentences, verdict

Tile = tuple[str, str, str]  # a number, what it is, and what to compare it with


def page(report: Report) -> str:
    """The whole document."""
    drawn = drawn_figures(report)
    trainings = [(name, lines, f"training_{index}") for index, (name, lines) in enumerate(figures.curves(report).items())]
    return render(
        "report.html",
        drawn=drawn,
        report=report,
        verdict=verdict(report),
        sentences=sentences(report),
        tiles=tiles(report),
        tables=tables,
        trainings=[(name, lines, place) for name, lines, place in trainings if place in drawn],
        read=Counter(verb_name(task.verb) for task in report.timeline if not task.computed),
        facts=_facts(report),
        experiment=yaml.safe_dump(report.experiment, sort_keys=False, allow_unicode=True),
        final=model_name(report, "one_shot"),
        percent=percent,
        number=number,
        count=count,
    )


def figure_page(title: str, figure: go.Figure, paragraphs: Sequence[str] = ()) -> str:
    """A page with one figure in the look of the report."""
    return render("figure.html", drawn={"figure": drawn_figure(figure)}, title=title, paragraphs=paragraphs)


def render(template: str, **values: Any) -> str:
    """A page from a template. Values are escaped; the figures and the data of scripts come as JSON."""
    return environment().get_template(template).render(plotly_js=get_plotlyjs(), dark=figures.DARK, **values)


def drawn_figures(report: Report) -> dict[str, dict[str, Any]]:
    """Every figure that the report has data for, by the name of its place on the page."""
    drawn = {
        "accuracy": figures.accuracy(report),
        "rounds": figures.rounds(report),
        "kept_units": layer_figures.kept_units(report),
        "sweep": layer_figures.sweep(report),
        "sparsity": layer_figures.sparsity(report),
        "loss_curves": layer_figures.loss_curves(report),
        "timeline": figures.timeline(report),
        "seconds": figures.seconds(report),
    }
    drawn |= {f"training_{index}": figures.training(lines) for index, lines in enumerate(figures.curves(report).values())}
    return {name: drawn_figure(figure) for name, figure in drawn.items() if figure is not None}


def drawn_figure(figure: go.Figure) -> dict[str, Any]:
    """The figure as JSON; numbers that JSON lacks become gaps."""
    plain: dict[str, Any] = json.loads(figure.to_json())
    return plain


def tiles(report: Report) -> list[Tile]:
    """A few numbers to take away."""
    shown: list[Tile] = []
    if report.removes_units:
        goal, ((first, value), *others) = report.unit_goal, report.main_removals.items()
        asked = [f"{percent(goal.fraction)} asked"] if goal and goal.of == first else []
        beside = ", ".join(asked + [f"{percent(other)} of the {COSTS[key]}" for key, other in others])
        shown.append((percent(value), f"of the {COSTS[first]} removed", beside))
    if report.masks_weights:
        what = "remaining prunable weights masked" if report.removes_units and report.masks_last else "prunable weights masked"
        when = " before that" if not report.masks_last else ""
        beside = "" if report.weight_goal is None else f"{percent(report.weight_goal)} asked"
        shown.append((percent(report.sparsity), f"of the {what}{when}", beside))
    key, last = report.headline_metric, report.stages[-1] if report.stages else None
    if key is not None and last is not None:
        dense, name = report.metric("dense", key), model_name(report, last.name)
        beside = f"{percent(dense)} dense" if dense is not None and key != "agreement" else name
        shown.append((percent(last.metrics.get(key)), f"{ACCURACY_NAMES[key]}, {name}", beside))
    if report.removes_units and report.speeds and report.speedup:
        faster = report.speedup >= FASTER
        many, what = f"{report.speedup:.{1 if faster else 2}f} ×", "as many images per second" if faster else "the speed: not faster"
        shown.append((many, what, f"{report.speeds[0]:,.0f} images/s dense, {report.speeds[1]:,.0f} pruned"))
    if report.sparse_speedup is not None and report.sparse_speedup >= FASTER and report.speeds:
        speeds = f"{report.speeds[0]:,.0f} images/s dense, {report.sparse_speed:,.0f} sparse"
        shown.append((f"{report.sparse_speedup:.1f} ×", "as many images per second in the sparse runtime", speeds))
    if report.sizes is not None:
        shown.append((size(report.sizes.file_bytes), "exported file", f"{size(report.sizes.dense_bytes)} dense"))
    workers = "" if report.workers is None else count(report.workers, "worker")
    beside = workers if report.computed else "everything read from the store"
    return [*shown, (duration(sum(report.stage_seconds.values())), "in all stages", beside)]


def _facts(report: Report) -> list[tuple[str, str]]:
    facts = {"command": report.command, "fingerprint": report.fingerprint} | report.environment
    facts |= {f"file: {name}": value for name, value in report.files.items()}
    return [(str(name), tables.flat(value)) for name, value in facts.items()]

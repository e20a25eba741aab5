"""Simulate an experiment on 1 to 512 GPUs, with the scheduler of a real run and the durations of its plan.

    python scripts/simulate_scaling.py +experiment=dino_vitg_50pct [overrides] [--gpus 1 8 64 512] [--page scaling.html]

For each number of GPUs, ``data.shards`` is the number with the shortest run (more shards cut the collection finer and store more). Nothing
is timed: durations are predictions with the rates of ``cluster.hardware``. ``--page`` writes a page with a figure of the stages.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from plotly import graph_objects as go
from rich.console import Console
from rich.table import Table

from orchestrator.composing import experiment_of
from orchestrator.launch import plan_experiment
from orchestrator.planning.plan import Plan
from orchestrator.planning.simulate import Simulation, simulate
from orchestrator.quantities import duration, size
from orchestrator.report.figures import FAINT, INK, OTHER, PALETTE
from orchestrator.report.figures import figure as figure_of
from orchestrator.report.page import figure_page
from orchestrator.stages import kind
from workers.errors import ConfigError

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SHARDS = (1, 2, 4, 8, 16, 32, 64)
KINDS = {  # kinds of stages in the figure
    "collect": ("collect",),
    "score, allocate, solve": ("score", "allocate", "solve"),
    "evaluate, compare": ("evaluate dense", "evaluate one-shot", "evaluate recovered", "compare"),
    "recover": ("recover", "train dense"),
}
REST = "other stages"


@dataclass(frozen=True)
class Point:
    """A number of GPUs, and the run with the best number of shards for it."""

    gpus: int
    shards: int
    plan: Plan
    run: Simulation


def best(overrides: list[str], gpus: int, fixed_shards: bool) -> Point:
    """Returns the run with the best number of shards. Raises: ConfigError if the experiment does not fit with any number."""
    points, last_error = [], None
    for shards in (None,) if fixed_shards else SHARDS:
        extra = [] if shards is None else [f"data.shards={shards}"]
        if shards is not None and shards > max(1, gpus):
            break
        try:
            experiment = experiment_of([*overrides, f"cluster.workers={gpus}", *extra])
            plan = plan_experiment(experiment)
        except ConfigError as error:
            last_error = error
            continue
        points.append(Point(gpus, experiment.data.shards, plan, simulate(plan)))
    if not points:
        assert last_error is not None
        raise last_error
    return min(points, key=lambda point: point.run.seconds)


def seconds_by_kind(run: Simulation) -> dict[str, float]:
    """Returns the wall seconds of each kind of stage, summed over all rounds."""
    seconds = dict.fromkeys([*KINDS, REST], 0.0)
    for stage in run.stages:
        group = next((group for group, names in KINDS.items() if kind(stage.name) in names), REST)
        seconds[group] += stage.end - stage.start
    return seconds


def table(points: list[Point]) -> Table:
    printed = Table()
    for column in ("GPUs", "shards", "wall time", "GPU-hours", "speed-up", "utilisation", "longest stage", "a worker needs", "store"):
        printed.add_column(column, justify="left" if column == "longest stage" else "right")
    first = points[0]
    for point in points:
        run = point.run
        longest = f"{point.run.longest.name} ({(run.longest.end - run.longest.start) / run.seconds:.0%})"
        printed.add_row(
            str(point.gpus),
            str(point.shards),
            duration(run.seconds),
            f"{point.gpus * run.seconds / 3600:,.0f}",
            f"{first.run.seconds / run.seconds:.1f}",
            f"{run.utilisation:.0%}",
            longest,
            size(point.plan.worker_bytes),
            size(point.plan.store_bytes),
        )
    return printed


def figure(points: list[Point]) -> go.Figure:
    """Returns a figure of hours against GPUs on logarithmic axes: kinds of stages, the whole run with its utilisation, perfect scaling."""
    gpus, hours = [point.gpus for point in points], [point.run.seconds / 3600 for point in points]
    kinds = [seconds_by_kind(point.run) for point in points]
    traces = [
        go.Scatter(mode="lines", name=group, x=gpus, y=[seconds[group] / 3600 for seconds in kinds], line_color=colour)
        for group, colour in zip(kinds[0], (*PALETTE[:4], OTHER), strict=True)
    ]
    perfect = [hours[0] * gpus[0] / count for count in gpus]
    dotted, thick = {"color": FAINT, "width": 1.5, "dash": "dot"}, {"color": INK, "width": 3}
    traces.append(go.Scatter(mode="lines", name="perfect scaling", x=gpus, y=perfect, line=dotted))
    labels = {"text": [f"{point.run.utilisation:.0%}" for point in points], "textfont": {"size": 12.5, "color": INK}}
    style = {"mode": "lines+markers+text", "marker": {"size": 8}, "textposition": "top right"}
    traces.append(go.Scatter(name="whole run and its utilisation", x=gpus, y=hours, line=thick, **labels, **style))
    ticks = [value for value in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300) if value <= 2 * max(hours)]
    return figure_of(
        480,
        traces,
        xaxis={"title": "GPUs", "type": "log", "tickvals": gpus, "ticktext": [str(count) for count in gpus]},
        yaxis={"title": "hours", "type": "log", "tickvals": ticks, "ticktext": [f"{value:g}" for value in ticks]},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS)
    parser.add_argument("--keep-shards", action="store_true", help="use the experiment's data.shards")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    points = [best(options.overrides, gpus, options.keep_shards) for gpus in options.gpus]
    rates = points[0].plan.hardware
    Console().print(table(points), f"Predicted with the rates of: {rates.name}.")
    if options.page is not None:
        title = f"{' '.join(options.overrides)}: predicted hours by stage"
        options.page.write_text(figure_page(title, figure(points)), encoding="utf-8")


if __name__ == "__main__":
    main()

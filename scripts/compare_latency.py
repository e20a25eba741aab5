"""Compare the accuracy and the measured time of the models of finished runs, in a table and a figure.

    python scripts/compare_latency.py runs/budgets/fashion_resnet-*/ --shape 1 32 32 [--batch-size 32] [--threads 1] [--page pareto.html]

Each line is a method and a target, with the accuracy before and after recovery, and the time of a forward pass as a fraction of the dense
model's: mean and spread over the seeds. The models take turns of a few runs, so that drifts of the machine's speed affect all of them. A
star marks an accuracy if no other line is both faster and more accurate. Masked models run in the sparse runtime (with --runtime eager).
Also reads the results of scripts/compare_torch_pruning.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle, groupby
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import torch
from plotly import graph_objects as go

from orchestrator.allocation.units import dense_family
from orchestrator.cluster.base import processor
from orchestrator.quantities import count
from orchestrator.report.figures import PALETTE
from orchestrator.report.figures import figure as figure_of
from orchestrator.report.page import figure_page
from orchestrator.sweep.pareto import front as front_of
from orchestrator.sweep.reports import headline, read_report
from workers.export import load_family, load_pruned
from workers.latency import Latency, Runtime
from workers.memory import keep_freed_memory
from workers.sparse import sparse_model
from workers.timing import time_in_turn

STAGES = ("one_shot", "recovered")


@dataclass(frozen=True)
class Model:
    """A model of a run: its method, its target, and what it reached, as fractions."""

    file: Path
    method: str
    asked: str
    macs: float  # removed
    one_shot: float | None
    recovered: float | None


@dataclass(frozen=True)
class Line:
    """Models that differ only in the seed. Times are fractions of the dense model's."""

    method: str
    asked: str
    models: list[Model]
    times: list[float]

    @property
    def time(self) -> float:
        return mean(self.times)

    def accuracies(self, stage: str) -> list[float]:
        return [accuracy for model in self.models if (accuracy := getattr(model, stage)) is not None]


def read_model(folder: Path, metric: str | None = None) -> Model | None:
    """Returns the model that a run, or a script, wrote into a folder, or None if there is none. ``metric``: None for the headline's."""
    file = folder / "model.safetensors"
    if (folder / "result.json").exists():
        return Model(file, **json.loads((folder / "result.json").read_text(encoding="utf-8")))
    if not (folder / "report.json").exists():
        return None
    report = read_report(folder / "report.json")
    macs = 1 - report["final_size"]["macs"] / report["dense_size"]["macs"]
    target = report["experiment"]["pruner"]["target"]
    asked = f"{target['sparsity' if target['of'] == 'weights' else 'removed']:.0%} of {target['of']}"
    return Model(file, method(report), asked, macs, *(accuracy(report, stage, metric) for stage in STAGES))


def method(report: dict[str, Any]) -> str:
    """Returns the name of the pruner, the cost that its target limits, and the solver."""
    pruner = report["experiment"]["pruner"]
    target = pruner["target"]
    name = pruner["_target_"].rpartition(".")[2]
    name += (" normalised" if pruner.get("normalise") else "") + (" squared" if pruner.get("squared") else "")
    floor = f", floor {target['min_fraction']:.0%}" if target.get("min_fraction") else ""
    return f"{name} by {target['of']}, {target['scope']}" if "scope" in target else f"{name} by {target['of']}, {target['solver']}{floor}"


def accuracy(report: dict[str, Any], stage: str, metric: str | None = None) -> float | None:
    """Returns the accuracy that a report gives for a stage, if any: the headline's, or a ``metric``."""
    wanted = metric or headline(report)
    return next((entry["metrics"].get(wanted) for entry in report["stages"] if entry["name"] == stage), None)


def front(points: list[tuple[float, float]]) -> list[bool]:
    """Returns which points (time, accuracy) are on the Pareto front: no other point is at least as fast and as accurate."""
    return front_of([(-time, accuracy) for time, accuracy in points])


def lines_of(models: Iterable[Model], ratios: Iterable[float]) -> list[Line]:
    """Returns a line for each method and target, with all seeds; the fastest is the last of its method."""
    ordered = sorted(zip(models, ratios, strict=True), key=lambda pair: (pair[0].method, pair[0].asked))
    lines = []
    for (name, asked), pairs in groupby(ordered, key=lambda pair: (pair[0].method, pair[0].asked)):
        seeds = list(pairs)
        lines.append(Line(name, asked, [model for model, _ in seeds], [ratio for _, ratio in seeds]))
    return sorted(lines, key=lambda line: (line.method, -line.time))


def over_seeds(values: list[float]) -> str:
    spread = f" ± {100 * pstdev(values):.1f} ({len(values)})" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread}" if values else "–"


def table(lines: list[Line]) -> str:
    on_front = {
        stage: front([(line.time, mean(values) if (values := line.accuracies(stage)) else -1.0) for line in lines]) for stage in STAGES
    }
    rows = ["| method | target | multiply-adds removed, % | time, % of dense | one-shot | recovered |", "|---" * 6 + "|"]
    for index, line in enumerate(lines):
        accuracies = {stage: line.accuracies(stage) for stage in STAGES}
        cells = [over_seeds(accuracies[stage]) + (" *" if accuracies[stage] and on_front[stage][index] else "") for stage in STAGES]
        macs, times = over_seeds([model.macs for model in line.models]), over_seeds(line.times)
        rows.append(f"| {line.method} | {line.asked} | {macs} | {times} | {' | '.join(cells)} |")
    return "\n".join(rows)


def figure(lines: list[Line], stage: str) -> go.Figure:
    """Returns a figure of accuracy over time with a curve for each method."""
    traces = []
    by_method = groupby((line for line in lines if line.accuracies(stage)), key=lambda line: line.method)
    for (name, method_lines), colour in zip(by_method, cycle(PALETTE), strict=False):
        points = [(100 * line.time, [100 * accuracy for accuracy in line.accuracies(stage)]) for line in method_lines]
        traces.append(
            go.Scatter(
                name=name,
                mode="lines+markers",
                x=[time for time, _ in points],
                y=[mean(accuracies) for _, accuracies in points],
                error_y={"array": [pstdev(accuracies) for _, accuracies in points], "thickness": 1},
                line_color=colour,
                marker_size=7,
            )
        )
    return figure_of(
        520,
        traces,
        xaxis={"title": "measured time of a forward pass, % of the dense model's"},
        yaxis={"title": f"accuracy {stage.replace('_', '-')}, %"},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="directories of runs with the same dense model")
    parser.add_argument("--shape", nargs=3, type=int, required=True, metavar=("C", "H", "W"), help="of an image")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runtime", choices=[runtime.value for runtime in Runtime], default="eager")
    parser.add_argument("--stage", choices=STAGES, default="recovered", help="whose accuracy the figure shows")
    parser.add_argument("--metric", help="the accuracy, such as agreement; by default that of the headline")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    settings = Latency(Runtime(options.runtime), options.batch_size, options.threads, 2, 0.005, 0.1)
    models = [model for folder in options.runs if (model := read_model(folder, options.metric)) is not None]
    dense = dense_family(load_family(models[0].file)).build().eval()
    images_NCHW = torch.randn(options.batch_size, *options.shape)
    loaded = [load_pruned(model.file) for model in models]
    if settings.runtime is Runtime.EAGER:
        loaded = [sparse_model(model) for model in loaded]
    timed = time_in_turn(loaded, dense, images_NCHW, settings)
    lines = lines_of(models, [comparison.ratio for comparison in timed])
    conditions = f"{options.runtime}, {count(options.batch_size, 'image')}, {count(options.threads, 'thread')}"
    print(f"{conditions} of {processor()}, torch {torch.__version__}")
    worst = max(comparison.spread for comparison in timed)
    print(f"dense model {timed[0].beside_ms:.3g} ms, {timed[0].repeats} turns, relative standard errors of times up to {worst:.1%}\n")
    print(table(lines))
    if options.page is not None:
        title = f"Accuracy against measured time ({conditions})"
        options.page.write_text(figure_page(title, figure(lines, options.stage)), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Accuracy against measured time: models of finished runs, timed in turn with the dense model, as a table and a picture.

    python scripts/compare_latency.py runs/budgets/fashion_resnet-*/ --shape 1 32 32 [--batch-size 32] [--threads 1] [--page pareto.html]

A line for each method and target: accuracy one-shot and after recovery, and the time of a forward pass as a fraction of the dense model's,
mean and spread over the seeds. All models take turns of a few runs, so that a machine whose speed drifts drifts for all of them. A line is
marked when no other one is both faster and more accurate. Also reads what scripts/compare_torch_pruning.py leaves.
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
from compare_runs import headline
from plotly import graph_objects as go

from orchestrator.allocation.units import dense_family
from orchestrator.cluster.base import processor
from orchestrator.quantities import count
from orchestrator.report.figures import PALETTE
from orchestrator.report.figures import figure as figure_of
from orchestrator.report.page import figure_page
from workers.export import load_family, load_pruned
from workers.latency import Latency, Runtime
from workers.memory import keep_freed_memory
from workers.timing import time_in_turn

STAGES = ("one_shot", "recovered")


@dataclass(frozen=True)
class Model:
    """A model of a run: who chose its units, what was asked for, and what it reached (fractions)."""

    file: Path
    method: str
    asked: str
    macs: float  # taken out
    one_shot: float | None
    recovered: float | None


@dataclass(frozen=True)
class Line:
    """Models that differ in the seed alone; times are fractions of the dense model's."""

    method: str
    asked: str
    models: list[Model]
    times: list[float]

    @property
    def time(self) -> float:
        return mean(self.times)

    def accuracies(self, stage: str) -> list[float]:
        return [found for model in self.models if (found := getattr(model, stage)) is not None]


def told(folder: Path) -> Model | None:
    """What a run, or a script, says of the model that it left in a folder."""
    file = folder / "model.safetensors"
    if (folder / "result.json").exists():
        return Model(file, **json.loads((folder / "result.json").read_text(encoding="utf-8")))
    if not (folder / "report.json").exists():
        return None
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    macs = 1 - report["final_size"]["macs"] / report["dense_size"]["macs"]
    removed = report["asked"].get("removed")
    asked = "–" if removed is None else f"{removed:.0%} of {report['experiment']['pruner']['target']['of']}"
    return Model(file, method(report), asked, macs, *(accuracy(report, stage) for stage in STAGES))


def method(report: dict[str, Any]) -> str:
    """The pruner, what its target is of, and how that was solved."""
    pruner = report["experiment"]["pruner"]
    target = pruner["target"]
    name = pruner["_target_"].rpartition(".")[2]
    name += (" normalised" if pruner.get("normalise") else "") + (" squared" if pruner.get("squared") else "")
    floor = f", floor {target['min_fraction']:.0%}" if target.get("min_fraction") else ""
    return f"{name} by {target['of']}, {target['solver']}{floor}" if "of" in target else name


def accuracy(report: dict[str, Any], stage: str) -> float | None:
    return next((entry["metrics"].get(headline(report)) for entry in report["stages"] if entry["name"] == stage), None)


def front(points: list[tuple[float, float]]) -> list[bool]:
    """Of (time, accuracy), those that no other point beats in one without losing in the other."""
    return [not any((a <= time and b >= found and (a, b) != (time, found)) for a, b in points) for time, found in points]


def lines_of(models: Iterable[Model], ratios: Iterable[float]) -> list[Line]:
    """Seeds together, fastest last."""
    ordered = sorted(zip(models, ratios, strict=True), key=lambda pair: (pair[0].method, pair[0].asked))
    found = []
    for (name, asked), pairs in groupby(ordered, key=lambda pair: (pair[0].method, pair[0].asked)):
        together = list(pairs)
        found.append(Line(name, asked, [model for model, _ in together], [ratio for _, ratio in together]))
    return sorted(found, key=lambda line: (line.method, -line.time))


def over_seeds(values: list[float]) -> str:
    spread = f" ± {100 * pstdev(values):.1f} ({len(values)})" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread}" if values else "–"


def table(lines: list[Line]) -> str:
    on_front = {
        stage: front([(line.time, mean(found) if (found := line.accuracies(stage)) else -1.0) for line in lines]) for stage in STAGES
    }
    rows = ["| method | asked | multiply-adds taken out, % | time, % of dense | one-shot | recovered |", "|---" * 6 + "|"]
    for index, line in enumerate(lines):
        found = {stage: line.accuracies(stage) for stage in STAGES}
        cells = [over_seeds(found[stage]) + (" *" if found[stage] and on_front[stage][index] else "") for stage in STAGES]
        macs, times = over_seeds([model.macs for model in line.models]), over_seeds(line.times)
        rows.append(f"| {line.method} | {line.asked} | {macs} | {times} | {' | '.join(cells)} |")
    return "\n".join(rows)


def figure(lines: list[Line], stage: str) -> go.Figure:
    """Accuracy over time, a curve for each method."""
    traces = []
    by_method = groupby((found for found in lines if found.accuracies(stage)), key=lambda found: found.method)
    for (name, of), colour in zip(by_method, cycle(PALETTE), strict=False):
        points = [(100 * found.time, [100 * reached for reached in found.accuracies(stage)]) for found in of]
        traces.append(
            go.Scatter(
                name=name,
                mode="lines+markers",
                x=[time for time, _ in points],
                y=[mean(reached) for _, reached in points],
                error_y={"array": [pstdev(reached) for _, reached in points], "thickness": 1},
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
    parser.add_argument("runs", nargs="+", type=Path, help="directories of runs of one model")
    parser.add_argument("--shape", nargs=3, type=int, required=True, metavar=("C", "H", "W"), help="of an image")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runtime", choices=[runtime.value for runtime in Runtime], default="eager")
    parser.add_argument("--stage", choices=STAGES, default="recovered", help="of the picture")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    settings = Latency(Runtime(options.runtime), options.batch_size, options.threads, 2, 0.005, 0.1)
    models = [model for folder in options.runs if (model := told(folder)) is not None]
    dense = dense_family(load_family(models[0].file)).build().eval()
    images_NCHW = torch.randn(options.batch_size, *options.shape)
    timed = time_in_turn([load_pruned(model.file) for model in models], dense, images_NCHW, settings)
    lines = lines_of(models, [found.ratio for found in timed])
    conditions = f"{options.runtime}, {count(options.batch_size, 'image')}, {count(options.threads, 'thread')}"
    print(f"{conditions} of {processor()}, torch {torch.__version__};")
    worst = max(found.spread for found in timed)
    print(f"dense {timed[0].beside_ms:.3g} ms, {timed[0].repeats} turns, standard error of a time at most {worst:.1%} of it\n")
    print(table(lines))
    if options.page is not None:
        title = f"Accuracy against measured time ({conditions})"
        options.page.write_text(figure_page(title, figure(lines, options.stage)), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Accuracy against measured time: the models of finished runs, timed one after the other in this process, as a table and a picture.

    python scripts/compare_latency.py runs/budgets/fashion_resnet-*/ --shape 1 32 32 [--batch-size 32] [--threads 1] [--page pareto.html]

A line for each run: what it was asked for, its accuracy one-shot and after recovery, and milliseconds of a forward pass. All models are
timed three times in turn and the median counts, so that a disturbance falls on no one alone. A line is marked when no other run is both
faster and more accurate.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

import torch

from orchestrator.cluster.base import processor
from workers.export import load_pruned
from workers.latency import Latency, Runtime
from workers.memory import keep_freed_memory
from workers.timing import time_model

TURNS = 3
METRICS = ("top1", "knn", "agreement")


def method(report: dict[str, Any]) -> str:
    """The pruner, what its target is of, and how that was solved."""
    pruner = report["experiment"]["pruner"]
    target = pruner["target"]
    name = pruner["_target_"].rpartition(".")[2] + (" normalised" if pruner.get("normalise") else "")
    return f"{name} by {target['of']}, {target['solver']}" if "of" in target else name


def accuracy(report: dict[str, Any], stage: str) -> float | None:
    found = next((entry["metrics"] for entry in report["stages"] if entry["name"] == stage), {})
    return next((found[key] for key in METRICS if found.get(key) is not None), None)


def front(points: list[tuple[float, float]]) -> list[bool]:
    """Of (milliseconds, accuracy), those that no other point beats in one without losing in the other."""
    return [not any((a <= ms and b >= found and (a, b) != (ms, found)) for a, b in points) for ms, found in points]


def timed(folders: list[Path], settings: Latency, shape: list[int]) -> list[float]:
    """Median milliseconds of each folder's model over several turns."""
    models = [load_pruned(folder / "model.safetensors") for folder in folders]
    images_NCHW = torch.randn(settings.batch_size, *shape)
    turns = [[time_model(model, images_NCHW, settings).ms for model in models] for _ in range(TURNS)]
    return [median(times) for times in zip(*turns, strict=True)]


def page(rows: list[dict[str, Any]], column: str, path: Path) -> None:
    """Accuracy over milliseconds, a line for each method, as a page that loads nothing."""
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for name in dict.fromkeys(row["method"] for row in rows):
        points = sorted((row["ms"], 100 * row[column]) for row in rows if row["method"] == name and row[column] is not None)
        figure.add_trace(Scatter(x=[ms for ms, _ in points], y=[found for _, found in points], name=name, mode="lines+markers"))
    figure.update_layout(template="plotly_white", width=900, height=500, legend={"orientation": "h", "y": -0.2})
    figure.update_xaxes(title_text="measured milliseconds of a forward pass")
    figure.update_yaxes(title_text=f"accuracy {column.replace('_', '-')}, %")
    figure.write_html(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="directories of runs of one model")
    parser.add_argument("--shape", nargs=3, type=int, required=True, metavar=("C", "H", "W"), help="of an image")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runtime", choices=[runtime.value for runtime in Runtime], default="eager")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    settings = Latency(Runtime(options.runtime), options.batch_size, options.threads, 2, 0.005, 0.1)
    folders = [folder for folder in options.runs if (folder / "report.json").exists()]
    reports = [json.loads((folder / "report.json").read_text(encoding="utf-8")) for folder in folders]
    rows = [
        {
            "method": method(report),
            "asked": report["asked"].get("removed"),
            "macs": 1 - report["final_size"]["macs"] / report["dense_size"]["macs"],
            "ms": ms,
            "one_shot": accuracy(report, "one_shot"),
            "recovered": accuracy(report, "recovered"),
        }
        for report, ms in zip(reports, timed(folders, settings, options.shape), strict=True)
    ]
    print(f"{options.runtime}, batch {options.batch_size}, {options.threads} thread(s) of {processor()}, torch {torch.__version__}; ")
    print(f"dense {100 * (accuracy(reports[0], 'dense') or 0):.1f} %\n")
    print("| method | asked | multiply-adds taken out | measured ms | one-shot | recovered |\n|---|---|---|---|---|---|")
    on_front = {column: front([(row["ms"], row[column] or 0.0) for row in rows]) for column in ("one_shot", "recovered")}
    for index, row in sorted(enumerate(rows), key=lambda entry: (entry[1]["method"], -entry[1]["ms"])):
        cells = ["–" if row[key] is None else f"{100 * row[key]:.1f}{' *' if on_front[key][index] else ''}" for key in on_front]
        asked = "–" if row["asked"] is None else f"{row['asked']:.0%}"
        print(f"| {row['method']} | {asked} | {row['macs']:.0%} | {row['ms']:.3f} | {' | '.join(cells)} |")
    if options.page is not None:
        page(rows, "recovered" if all(row["recovered"] is not None for row in rows) else "one_shot", options.page)


if __name__ == "__main__":
    main()

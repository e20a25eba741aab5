"""Reports of runs to compare, with numbers that can be checked by hand, and the records of their sweep."""

import json
from pathlib import Path
from typing import Any

from orchestrator.sweep.records import finish_point, start_point, write_command
from orchestrator.sweep.reports import read_report
from orchestrator.sweep.settings import Run

NASTY = '<script>alert("x")</script>&<b>'


def report(pruner: str = "CAP", sparsity: float = 0.5, seed: int = 0, accuracy: float = 0.9, **changes: Any) -> dict[str, Any]:
    """A run that masks ``sparsity`` of 1,000 weights; its final accuracy is measured on 1,000 images, one-shot it is 0.1 less."""
    metrics = {"images_per_second": 100.0, "test_samples": 1000}
    dense, pruned = {"top1": 0.95} | metrics, {"top1": accuracy - 0.1} | metrics
    report = {
        "name": "case",
        "experiment": {
            "name": "case",
            "seed": seed,
            "output": "runs",
            "cluster": {"threads": 1},
            "data": {"seed": seed, "size": 32},
            "pruner": {"_target_": f"workers.pruners.x.{pruner}", "block_size": 16, "target": {"sparsity": sparsity}},
        },
        "asked": {"sparsity": sparsity},
        "stages": [
            {"name": "dense", "metrics": dense},
            {"name": "one_shot", "metrics": pruned},
            {"name": "recovered", "metrics": {"top1": accuracy} | metrics},
        ],
        "prunable_weights": 1000,
        "pruned_weights": round(1000 * sparsity),
        "dense_size": {"parameters": 2000, "macs": 8000},
        "final_size": {"parameters": 2000, "macs": 8000},
        "sizes": {"dense_bytes": 8000, "file_bytes": round(8000 * (1 - sparsity))},
        "loss_increase": {"measured": None, "predicted": None, "loss": ""},
        "stage_seconds": {"collect": 1.0, "solve": 2.0},
    }
    return report | changes


def write_report(folder: Path, content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "report.html").write_text("<p>the report</p>", encoding="utf-8")
    return folder / "report.json"


def runs_of(folder: Path, *reports: dict[str, Any]) -> list[Run]:
    """Runs that are no points of a sweep."""
    files = [write_report(folder / f"run-{index}", content) for index, content in enumerate(reports)]
    return [Run(read_report(file), file, 3.0) for file in files]


def sweep_of(folder: Path, points: list[tuple[list[str], dict[str, Any]]], command: str = "python -m orchestrator") -> Path:
    """The directory of a sweep whose points are done: their overrides and reports."""
    sweep = folder / "sweeps" / "today"
    write_command(sweep, command, ["name=case"])
    for number, (overrides, content) in enumerate(points):
        point = start_point(sweep, number, ["name=case", *overrides])
        finish_point(sweep, point, write_report(folder / f"case-{number}", content).parent)
    return sweep

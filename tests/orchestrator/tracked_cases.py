"""A run for trackers: how it starts, and what it leaves."""

import hashlib
from pathlib import Path

from example_report import example

from orchestrator.report.result import Report
from orchestrator.report.write import write_report
from orchestrator.tracking.base import Result, TrackedRun, Tracker

CONFIG = {"pruner": {"target": {"sparsity": 0.75}}, "seed": 0}


def a_run(directory: Path, **changes) -> TrackedRun:
    return TrackedRun(**{"name": "digits", "id": "abc", "config": CONFIG, "directory": directory, "tags": ("cap", "digits")} | changes)


def a_result(directory: Path, report: Report | None = None) -> Result:
    """With a model of 7 bytes."""
    report = report or example()
    page, dense = write_report(report, directory), directory / "dense.safetensors"
    for path, content in ((directory / "model.safetensors", b"weights"), (dense, b"dense weights")):
        path.write_bytes(content)
    return Result(report, (page, page.with_suffix(".json")), directory / "model.safetensors", dense, digest(dense))


def log_everything(tracker: Tracker, result: Result) -> None:
    for stage in result.report.stages:
        tracker.log(stage.name, stage.metrics)
    tracker.curve("recovery", result.report.curves["recovery"])
    tracker.layers(result.report.layers)
    tracker.finish(result)


def digest(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()

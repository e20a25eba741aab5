"""What trackers show of a report: its key numbers, and tables of layers, workers, models and measured times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.report.parts import LayerResult, ModelSize, StageResult
from orchestrator.report.result import Report
from orchestrator.report.staircases import name_of, shown
from orchestrator.report.write import as_json
from orchestrator.tracking.base import Result

if TYPE_CHECKING:
    from orchestrator.allocation.latency_table import LatencyTable


@dataclass(frozen=True)
class Rows:
    """A table of numbers and names."""

    columns: tuple[str, ...]
    rows: list[list[Any]]


def summary(report: Report) -> dict[str, Any]:
    """Returns the key numbers of a report, without those that were not measured. ``accuracy`` is that of the final model."""
    numbers: dict[str, Any] = {"sparsity": report.sparsity, "model_weights": report.model_weights, "pruned_weights": report.pruned_weights}
    metric = report.headline_metric
    if metric is not None:
        numbers |= {"accuracy": report.stages[-1].metrics.get(metric), "dense_accuracy": report.metric("dense", metric)}
    numbers |= {f"removed/{of}": fraction for of, fraction in report.removed.items()}
    numbers |= {f"loss_increase/{name}": value for name, value in as_json(report.loss_increase).items()}
    numbers |= {f"size/{name}": value for name, value in as_json(report.sizes or {}).items()}
    for which, model_size in (("dense", report.dense_size), ("final", report.final_size)):
        numbers |= {f"size/{which}_{name}": value for name, value in as_json(model_size or {}).items()}
    numbers |= dict(zip(("speed/dense_images_per_second", "speed/final_images_per_second"), report.speeds or (), strict=False))
    numbers |= {} if report.sparse_speed is None else {"speed/sparse_images_per_second": report.sparse_speed}
    if report.latency is not None:
        numbers |= {"latency/dense_ms": report.latency.dense_ms, "latency/final_ms": report.latency.measured_ms}
    numbers |= {f"seconds/{stage}": seconds for stage, seconds in report.stage_seconds.items()}
    return {name: value for name, value in numbers.items() if value is not None}


def layer_rows(layers: Sequence[LayerResult]) -> Rows:
    columns = ("layer", "rows", "columns", "block_size", "weights", "zeros", "sparsity", "predicted_loss_increase")
    return Rows(columns, [[layer.name, *(getattr(layer, column) for column in columns[1:])] for layer in layers])


def worker_rows(report: Report) -> Rows:
    """For each process that computed something, the seconds in which it did, and the fraction of the time from the first task to the last.

    Tasks that overlap count once.
    """
    tasks = report.computed
    begin, end = min((task.started for task in tasks), default=0.0), max((task.started + task.seconds for task in tasks), default=0.0)
    rows = []
    for name in report.processes:
        busy, until = 0.0, -math.inf
        for task in sorted((task for task in tasks if task.worker == name), key=lambda task: task.started):
            busy += max(0.0, task.started + task.seconds - max(task.started, until))
            until = max(until, task.started + task.seconds)
        rows.append([name, sum(task.worker == name for task in tasks), busy, busy / (end - begin) if end > begin else 0.0])
    return Rows(("process", "tasks", "busy_seconds", "busy"), rows)


PARETO = ("model", "accuracy", "nonzero_parameters", "parameters", "macs", "sparsity", "file_bytes", "latency_ms", "images_per_second")


def pareto_rows(report: Report) -> Rows:
    """The models of a run, each with its accuracy beside its size and its time; None where these were not measured."""
    key = report.headline_metric
    if key is None:
        return Rows(PARETO, [])

    def row(name: str, stage: StageResult, size: ModelSize | None, sparsity: float, zeros: int | None, last: bool) -> list[Any]:
        parameters, file_bytes, ms = None if size is None else size.parameters, None, None
        if last and report.sizes is not None:
            file_bytes = report.sizes.dense_bytes if name == "dense" else report.sizes.file_bytes
        if last and report.latency is not None:
            ms = report.latency.dense_ms if name == "dense" else report.latency.measured_ms
        nonzero = None if parameters is None or zeros is None else parameters - zeros
        macs = None if size is None else size.macs
        return [name, stage.metrics.get(key), nonzero, parameters, macs, sparsity, file_bytes, ms, stage.metrics.get("images_per_second")]

    dense = report.stage("dense")
    rows = [] if dense is None else [row("dense", dense, report.dense_size, 0.0, 0, last=True)]
    for part in report.rounds:
        # Units that a later round removes take an unknown number of zeros along.
        zeros = round(part.sparsity * report.prunable_weights) if part.masks and not report.removes_units else None
        for stage in (part.after_pruning, part.after_recovery):
            if stage is not None:
                rows.append(row(f"{part.name}/{stage.name}", stage, part.size, part.sparsity, zeros, last=part is report.rounds[-1]))
    if not report.rounds:
        known = report.pruned_weights if report.masks_weights else 0
        rows += [row(stage.name, stage, report.final_size, report.sparsity, known, last=True) for stage in report.stages[1:]]
    return Rows(PARETO, rows)


STAIRCASES = ("operation", "layers_like_it", "units", "other_units", "ms")


def staircase_rows(times: LatencyTable | None) -> Rows:
    """The milliseconds of the slowest operations at the numbers of units of their first axis, and of the second if they have one."""
    rows = [
        [name_of(operation), layers, units[0], units[1] if len(units) > 1 else None, operation.ms[cell]]
        for operation, layers in ([] if times is None else shown(times))
        for cell in sorted(operation.ms)
        for units in [[levels[position] for levels, position in zip(operation.levels, cell, strict=True)]]
    ]
    return Rows(STAIRCASES, rows)


def result_tables(result: Result) -> dict[str, Rows]:
    """The tables of a finished run by name, without those that have no rows."""
    report = result.report
    tables = {"workers": worker_rows(report), "pareto": pareto_rows(report), "staircases": staircase_rows(result.times)}
    return {name: table for name, table in tables.items() if table.rows}

"""Measuring the time of models and of their operations on the workers of a run."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from orchestrator.allocation.latency_table import TABLE, Cell, LatencyTable, build_table
from orchestrator.allocation.units import Times, dense_family
from orchestrator.cluster.base import Resources, device_name
from orchestrator.run import Run
from workers.latency import Latency, Runtime
from workers.messages import CompareTimeTask, TimeModelTask, TimeOperationTask
from workers.models.base import ModelFamily
from workers.models.structures.find import find_groups
from workers.pruners.units import UnitPruner
from workers.records import ModelComparison, ModelNumbers, ModelTime, OperationTime, Record
from workers.worker import Worker


def measure_times(run: Run, pruner: UnitPruner, model: Record[ModelNumbers]) -> Times:
    """What a target of latency needs to know of a model; leaves the table in the run's directory."""
    family, dense = run.family_of(model), dense_family(run.experiment.model)
    dense_ms = time_model(run, dense).numbers.ms
    model_ms = dense_ms if family == dense else dense_ms * time_beside_dense(run, family).numbers.ratio
    return Times(time_operations(run, family, pruner.streams, model_ms), dense_ms)


def time_model(run: Run, family: ModelFamily) -> Record[ModelTime]:
    """A forward pass end to end."""
    latency, input_shape = run.experiment.latency, run.experiment.data.input_shape
    to = run.store.destination("time_model", model=family, input_shape=input_shape, **identity(latency, run.plan.resources))
    return run.map("time model", Worker.time_model, [TimeModelTask(family, input_shape, latency, to)], alone=True)[0]


def time_beside_dense(run: Run, family: ModelFamily, reading: int = 1) -> Record[ModelComparison]:
    """A forward pass end to end, in turn with that of the dense model, since the speed of a machine drifts."""
    latency, input_shape, dense = run.experiment.latency, run.experiment.data.input_shape, dense_family(run.experiment.model)
    here = identity(latency, run.plan.resources)
    to = run.store.destination("compare_time", model=family, beside=dense, reading=reading, input_shape=input_shape, **here)
    task = CompareTimeTask(family, dense, input_shape, latency, reading, to)
    return run.map("time model", Worker.compare_time, [task], alone=True)[0]


def time_operations(run: Run, family: ModelFamily, streams: bool, model_ms: float) -> LatencyTable:
    """The table of a model that takes ``model_ms``: what was measured for one model serves all that have the same operations."""
    from workers.models.operations import find_operations

    latency, input_shape = run.experiment.latency, run.experiment.data.input_shape
    here, store = identity(latency, run.plan.resources), run.store.made_by(())  # an operation's text says all of it, whoever has it
    operations = find_operations(family, input_shape, latency.batch_size, find_groups(family, input_shape, streams))

    def time_cells(asked: list[tuple[int, Cell]]) -> list[Record[OperationTime]]:
        tasks: dict[str, TimeOperationTask] = {}
        for number, units in asked:
            text = operations[number].at(units).text
            to = store.destination("time_operation", operation=text, **here)
            tasks.setdefault(text, TimeOperationTask(family, input_shape, streams, latency, number, units, to))
        records = dict(zip(tasks, run.map("time operations", Worker.time_operation, list(tasks.values()), alone=True), strict=True))
        return [records[operations[number].at(units).text] for number, units in asked]

    table = build_table(operations, latency.widths, model_ms, time_cells)
    table.write(run.directory / TABLE)
    run.log.times = table
    return table


def conditions(latency: Latency, here: Resources) -> dict[str, Any]:
    """What times are measured with, for people."""
    threads = 0 if here.device == "cuda" else latency.threads or here.threads
    return {"runtime": latency.runtime.value, "batch_size": latency.batch_size, "threads": threads, "device": device_name(here.device)}


def on_onnxruntime(latency: Latency, here: Resources) -> tuple[Latency, Resources]:
    """The settings with which onnxruntime is timed, whatever the run's own runtime: on its CPU."""
    return replace(latency, runtime=Runtime.ONNXRUNTIME), replace(here, device="cpu")


def identity(latency: Latency, here: Resources) -> dict[str, Any]:
    """What times depend on besides the operation: how they are measured, and on what."""
    versions = [version("torch"), _runtime_version(latency)]
    return conditions(latency, here) | {"precision": [latency.spread, latency.seconds], "versions": versions}


def _runtime_version(latency: Latency) -> str:
    try:
        return version("onnxruntime") if latency.runtime is Runtime.ONNXRUNTIME else ""
    except PackageNotFoundError:
        return ""

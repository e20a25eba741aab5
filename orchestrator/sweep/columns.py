"""The numbers of a run that a comparison shows: what they are called, which of them are better, and how they are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from orchestrator.quantities import duration, milliseconds, number, percent, size
from orchestrator.report.terms import METRICS
from orchestrator.sweep.reports import Json, headline, metrics_of, number_at
from orchestrator.sweep.settings import Run

DENSE, PRUNED, RECOVERED, FINAL, INT8 = "dense", "one_shot", "recovered", "final", "int8"


class Unit(Enum):
    FRACTION = "fraction"
    COUNT = "count"
    PER_SECOND = "per second"
    BYTES = "bytes"
    MILLISECONDS = "ms"
    SECONDS = "s"
    PLAIN = ""

    def written(self, value: float) -> str:
        if self is Unit.FRACTION:
            return percent(value)
        if self is Unit.BYTES:
            return size(round(value))
        if self is Unit.MILLISECONDS:
            return milliseconds(value)
        if self is Unit.SECONDS:
            return duration(value)
        return number(value) if self is Unit.PLAIN else f"{value:,.0f}"


@dataclass(frozen=True)
class Column:
    """``key`` is its name in files, ``title`` that on the page. ``rises`` says whether more is better."""

    key: str
    title: str
    rises: bool
    unit: Unit


MEASURED = (  # beside accuracies, in the order of the table
    Column("sparsity", "weights masked", True, Unit.FRACTION),
    Column("macs_removed", "multiply-adds removed", True, Unit.FRACTION),
    Column("parameters", "parameters", False, Unit.COUNT),
    Column("loss_increase", "loss increase", False, Unit.PLAIN),
    Column("pass_ms", "forward pass", False, Unit.MILLISECONDS),
    Column("images_per_second", METRICS["images_per_second"], True, Unit.PER_SECOND),
    Column("sparse_images_per_second", METRICS["sparse_images_per_second"], True, Unit.PER_SECOND),
    Column("file_bytes", "file", False, Unit.BYTES),
    Column("int8_ms", "forward pass in 8 bits", False, Unit.MILLISECONDS),
    Column("int8_bytes", "file in 8 bits", False, Unit.BYTES),
    Column("seconds", "time of the run", False, Unit.SECONDS),
)


def accuracy_key(metric: str, stage: str) -> str:
    return f"{metric}_{stage}"


def columns_of(reports: Sequence[Json]) -> list[Column]:
    """Returns the columns of a table of these reports: accuracies by metric and stage, then ``MEASURED``.

    The accuracy of the final model has a column of its own if some runs end with a recovery and others do not.
    """
    metrics = list(dict.fromkeys(metric for report in reports if (metric := headline(report)) is not None))
    last = {report["stages"][-1]["name"] for report in reports if report["stages"]}
    pruned = "pruned" if any(report.get("rounds") for report in reports) else "one-shot"
    names = {DENSE: "dense", PRUNED: pruned, RECOVERED: "recovered", **({FINAL: "final"} if len(last) > 1 else {}), INT8: "in 8 bits"}
    accuracies = [
        Column(accuracy_key(metric, stage), f"{METRICS[metric]}, {name}", True, Unit.FRACTION)
        for metric in metrics
        for stage, name in names.items()
    ]
    return [*accuracies, *MEASURED]


def final_metrics(report: Json) -> dict[str, float]:
    """Returns the metrics of the last model of a run."""
    return report["stages"][-1]["metrics"] if report["stages"] else {}


def values_of(run: Run) -> dict[str, float]:
    """Returns the values of a run by the keys of columns; those that it did not measure are absent."""
    report, metric = run.report, headline(run.report)
    found: dict[str, float | None] = {}
    if metric is not None:
        stages = {stage: metrics_of(report, stage) for stage in (DENSE, PRUNED, RECOVERED)} | {FINAL: final_metrics(report)}
        if metric == "agreement":
            stages.pop(DENSE)  # that of the dense model with itself says nothing
        found = {accuracy_key(metric, stage): values.get(metric) for stage, values in stages.items()}
        found[accuracy_key(metric, INT8)] = number_at(report, "int8", "metrics", metric)
    prunable, zeros = number_at(report, "prunable_weights"), number_at(report, "pruned_weights")
    dense, final = number_at(report, "dense_size", "macs"), number_at(report, "final_size", "macs")
    last = final_metrics(report)
    found |= {
        "sparsity": zeros / prunable if prunable and zeros is not None else None,
        "macs_removed": 1 - final / dense if dense and final is not None else None,
        "parameters": number_at(report, "final_size", "parameters"),
        "loss_increase": number_at(report, "loss_increase", "measured"),
        "pass_ms": number_at(report, "latency", "measured_ms"),
        "images_per_second": last.get("images_per_second"),
        "sparse_images_per_second": last.get("sparse_images_per_second"),
        "file_bytes": number_at(report, "sizes", "file_bytes"),
        "int8_ms": number_at(report, "int8", "ms"),
        "int8_bytes": number_at(report, "int8", "bytes"),
        "seconds": run.seconds,
    }
    return {key: value for key, value in found.items() if value is not None}

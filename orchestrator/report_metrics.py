"""What the report calls its models and their metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.quantities import NOT_MEASURED, percent

if TYPE_CHECKING:
    from orchestrator.report import Report

STAGE_NAMES = {"dense": "dense", "one_shot": "one-shot", "recovered": "recovered"}
ACCURACIES = {"top1": "top-1 accuracy", "knn": "k-NN accuracy", "map": "mAP", "agreement": "agreement with dense"}  # in order of preference
METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    "knn": "k-NN",
    "map": "mAP",
    "map50": "mAP at 0.5",
    "agreement": "agreement",
    "loss": "loss",
    "images_per_second": "images/s",
}
FRACTIONS = ("top1", "top5", "knn", "map", "map50", "agreement")


def stage_name(report: Report, name: str) -> str:
    """What a stage is called: a model that was pruned in rounds is not one-shot."""
    return "pruned" if name == "one_shot" and report.rounds else STAGE_NAMES[name]


def metric_text(key: str, value: float | None) -> str:
    if key in FRACTIONS:
        return percent(value)
    return NOT_MEASURED if value is None else f"{value:,.0f}" if key == "images_per_second" else f"{value:.4g}"


def measured_metrics(report: Report) -> list[str]:
    """Keys of the metrics that at least one stage has."""
    return [key for key in METRICS if any(stage.metrics.get(key) is not None for stage in report.stages)]

"""The model in 8 bits, in the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.quantities import percent, size
from orchestrator.report_latency import ms, setting
from orchestrator.report_metrics import ACCURACIES, metric_text

if TYPE_CHECKING:
    from orchestrator.report import Report

NAME = "in 8 bits"


def on_int8(report: Report) -> list[str]:
    """What 8 bits cost and bring."""
    found = report.int8
    if found is None:
        return []
    key = report.headline_metric if report.headline_metric in found.metrics else "agreement"  # there are no neighbours to ask
    before = report.stages[-1].metrics.get(key) if report.stages else None
    reached = f"{ACCURACIES[key]} is {percent(found.metrics[key])}{'' if before is None else f' instead of {percent(before)}'}"
    where = setting(found.runtime, found.batch_size, found.threads, found.device)
    return [
        f"In 8 bits {reached}, the ONNX file has {size(found.bytes)} instead of {size(found.float_bytes)} in 32 bits, and a "
        f"forward pass takes {ms(found.ms)} ± {percent(found.spread)} instead of {ms(found.float_ms)} ({where})."
    ]


def int8_row(report: Report, keys: list[str]) -> list[list[str]]:
    """A line of the table of models; none if there is no such model. Speed is not that of the other lines, so it is told elsewhere."""
    if report.int8 is None:
        return []
    metrics = report.int8.metrics
    return [[NAME, *("–" if key not in metrics else metric_text(key, metrics[key]) for key in keys), ""]]

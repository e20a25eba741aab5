"""The numbers of a finished run that a search improves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.report.result import Report

Values = float | None | tuple[float | None, ...]


@dataclass(frozen=True)
class Objective:
    """A number of a report, and whether more of it is better. The number is None where it was not measured."""

    maximize: bool
    of: Callable[[Report], float | None]


def _removed(quantity: str) -> Objective:
    return Objective(True, lambda report: report.removed.get(quantity))


OBJECTIVES = {
    "accuracy": Objective(True, lambda report: _headline(report, report.stages[-1].name)),
    "one_shot_accuracy": Objective(True, lambda report: _headline(report, "one_shot")),
    "agreement": Objective(True, lambda report: report.stages[-1].metrics.get("agreement")),
    "loss_increase": Objective(False, lambda report: report.loss_increase.measured),
    "sparsity": Objective(True, lambda report: report.sparsity),
    "images_per_second": Objective(True, lambda report: report.stages[-1].metrics.get("images_per_second")),
    "sparse_images_per_second": Objective(True, lambda report: report.sparse_speed),
    "removed_latency": _removed("latency"),
    "removed_macs": _removed("macs"),
    "removed_parameters": _removed("parameters"),
}


def _headline(report: Report, stage: str) -> float | None:
    return report.metric(stage, report.headline_metric) if report.headline_metric else None


def values(report: Report, objectives: Sequence[str]) -> Values:
    """Returns what a sweeper gets from a run: a number, or a tuple of them if there are several objectives."""
    numbers = tuple(OBJECTIVES[name].of(report) for name in objectives)
    return numbers[0] if len(numbers) == 1 else numbers

"""What the report says about latency: how budgets were met, and the model in 8 bits."""

from __future__ import annotations

from orchestrator.cluster.base import Resources
from orchestrator.config import Experiment
from orchestrator.outcome import RoundOutcome, removals
from orchestrator.report.parts import SPARSE, Int8Result, LatencyResult
from orchestrator.times import conditions, on_onnxruntime
from workers.records import FittedCounts, Int8Model, Record


def latency_of(experiment: Experiment, resources: Resources, rounds: list[RoundOutcome]) -> LatencyResult | None:
    """How the last of ``rounds`` met its latency target, or the last that removed units; None if it had another target."""
    last, removed = rounds[-1].pruned, removals(rounds)
    timed = last.steps[-1].timed or (removed[-1].steps[-1].timed if removed else None)
    if timed is None or timed.chosen.table is None:
        return None
    table, masked = timed.chosen.table, isinstance(timed.chosen, FittedCounts)
    return LatencyResult(
        **conditions(experiment.latency, resources) | ({"runtime": SPARSE} if masked else {}),
        dense_ms=timed.dense_ms,
        budget_ms=timed.budget_ms,
        predicted_ms=timed.predicted_ms,
        measured_ms=timed.measured_ms,
        spread=timed.comparison.spread,
        corrections=timed.corrections,
        scale=table["scale"],
        measured_sizes=int(table["measured_sizes"]),
        table_sizes=int(table["table_sizes"]),
    )


def int8_of(experiment: Experiment, resources: Resources, quantised: Record[Int8Model] | None) -> Int8Result | None:
    if quantised is None:
        return None
    model = quantised.numbers
    return Int8Result(
        **conditions(*on_onnxruntime(experiment.latency, resources)),
        metrics=model.metrics,
        bytes=model.bytes,
        float_bytes=model.float_bytes,
        ms=model.ratio * model.beside_ms,
        float_ms=model.beside_ms,
        spread=model.spread,
    )

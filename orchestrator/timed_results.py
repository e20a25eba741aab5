"""What the report says about latency: how budgets were met, and the model in 8 bits."""

from __future__ import annotations

from orchestrator.cluster.base import Resources
from orchestrator.config import Experiment
from orchestrator.outcome import Masking, RoundOutcome, TimedMasks, removals
from orchestrator.report.parts import SPARSE, Int8Result, LatencyResult
from orchestrator.times import conditions, on_onnxruntime
from workers.records import Int8Model, Record


def latency_of(experiment: Experiment, resources: Resources, rounds: list[RoundOutcome]) -> LatencyResult | None:
    """How the last of ``rounds`` met its latency target, or the last that removed units; None if it had another target."""
    masked = rounds[-1].pruned
    if isinstance(masked, Masking) and masked.steps[-1].timed is not None:
        return mask_latency(experiment, resources, masked.steps[-1].timed)
    removed = removals(rounds)
    timed = removed[-1].steps[-1].timed if removed else None
    if timed is None or timed.chosen.table is None:
        return None
    table = timed.chosen.table
    return LatencyResult(
        **conditions(experiment.latency, resources),
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


def mask_latency(experiment: Experiment, resources: Resources, timed: TimedMasks) -> LatencyResult:
    """How masks met a budget of latency in the sparse runtime."""
    fitted, dense_ms = timed.fitted, timed.comparison.beside_ms
    return LatencyResult(
        **conditions(experiment.latency, resources) | {"runtime": SPARSE},
        dense_ms=dense_ms,
        budget_ms=fitted.budget * dense_ms,
        predicted_ms=fitted.predicted * dense_ms,
        measured_ms=timed.comparison.ratio * dense_ms,
        spread=timed.comparison.spread,
        corrections=fitted.corrections,
        scale=fitted.dense_ms / sum(times_ms[0] for times_ms in timed.layers.ms.values()),
        measured_sizes=timed.layers.measured,
        table_sizes=sum(len(times_ms) for times_ms in timed.layers.ms.values()),
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

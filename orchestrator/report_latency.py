"""A target of latency in the report: what was asked for, predicted and measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.quantities import count, percent

if TYPE_CHECKING:
    from orchestrator.report import LatencyResult, Report

RUNTIMES = {"eager": "torch", "compile": "torch.compile", "onnxruntime": "onnxruntime"}
MET = 0.005  # a time this close to its budget is called equal to it


def on_latency(report: Report) -> list[str]:
    """The closed loop in sentences."""
    found = report.latency
    if found is None:
        return []
    return [_met(found), _told(found)]


def _met(found: LatencyResult) -> str:
    off = found.measured_ms / found.budget_ms - 1
    held = "as asked" if abs(off) < MET else f"{percent(abs(off))} {'over' if off > 0 else 'under'} the budget"
    after = f", after {count(found.corrections, 'correction')} of the budget by what was measured" if found.corrections else ""
    where = setting(found.runtime, found.batch_size, found.threads, found.device)
    return (
        f"A forward pass takes {ms(found.measured_ms)} ± {percent(found.spread)} instead of {ms(found.dense_ms)} ({where}); "
        f"{ms(found.budget_ms)} were asked for: {held}{after}."
    )


def _told(found: LatencyResult) -> str:
    off = found.predicted_ms / found.measured_ms - 1
    held = f"{percent(abs(off))} {'more' if off > 0 else 'less'} than was measured"
    return (
        f"The table of operations predicted {ms(found.predicted_ms)}, {held}; it tells of {found.table_sizes:,} sizes, of which "
        f"{found.measured_sizes:,} were measured. The dense model took {found.scale:.2f} times what its operations take by themselves."
    )


def setting(runtime: str, batch_size: int, threads: int, device: str) -> str:
    """What times were measured with."""
    on = f"{count(threads, 'thread')} of {device}" if threads else device
    return f"{RUNTIMES[runtime]}, {count(batch_size, 'image')} at a time, {on}"


def latency_pairs(report: Report) -> list[tuple[str, str]]:
    found = report.latency
    if found is None:
        return []
    return [
        ("latency", f"{ms(found.measured_ms)} of {ms(found.dense_ms)}, {ms(found.budget_ms)} asked, {ms(found.predicted_ms)} predicted")
    ]


def ms(value: float) -> str:
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms" if value < 100 else f"{value:,.0f} ms"

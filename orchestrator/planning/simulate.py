"""Simulates a planned run: which worker works when, by the scheduler that also cuts the grid, with predicted durations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.planning.estimate import Estimate
from orchestrator.planning.grid import Span, schedule
from orchestrator.planning.plan import Plan


@dataclass(frozen=True)
class StageRun:
    """One stage: its tasks on the workers, as spans in seconds since the start of the run, and its own start and end."""

    name: str
    start: float
    end: float
    spans: tuple[Span, ...]

    @property
    def busy_seconds(self) -> float:
        return sum(span.end - span.start for span in self.spans)


@dataclass(frozen=True)
class Simulation:
    """The stages of a run on a number of workers."""

    workers: int
    stages: tuple[StageRun, ...]

    @property
    def seconds(self) -> float:
        return self.stages[-1].end if self.stages else 0.0

    @property
    def utilisation(self) -> float:
        """The fraction of the time of all workers in which they compute."""
        available = self.workers * self.seconds
        return sum(stage.busy_seconds for stage in self.stages) / available if available else 1.0

    @property
    def longest(self) -> StageRun:
        return max(self.stages, key=lambda stage: stage.end - stage.start)


def simulate(plan: Plan) -> Simulation:
    """Runs the stages one after another, since each reads all results of the one before; ``grid.schedule`` places the tasks of a stage."""
    now, stages = 0.0, []
    for name, estimate in plan.stages.items():
        spans: list[Span] = []
        end = now
        for durations in _parts(estimate):
            before, start = len(spans), end
            for span in schedule(durations, plan.resources.workers):
                spans.append(Span(before + span.task, span.worker, start + span.start, start + span.end))
            end = max((span.end for span in spans), default=now)
        stages.append(StageRun(name, now, end, tuple(spans)))
        now = end
    return Simulation(plan.resources.workers, tuple(stages))


def _parts(estimate: Estimate) -> Iterator[tuple[float, ...]]:
    """Yields the durations of the tasks of each part.

    For tasks of equal length, such as starting a worker, the plan has only their number.
    """
    durations = estimate.durations or (estimate.seconds,) * estimate.tasks
    start = 0
    for count in estimate.parts or (len(durations),):
        yield durations[start : start + count]
        start += count

"""Simulates a planned run: which worker works when, by the scheduler that also cuts the grid, with predicted durations."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.planning.grid import Span, schedule
from orchestrator.planning.plan import Estimate, Plan


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
        spans = tuple(
            Span(span.task, span.worker, now + span.start, now + span.end)
            for span in schedule(_durations(estimate), plan.resources.workers)
        )
        end = max((span.end for span in spans), default=now)
        stages.append(StageRun(name, now, end, spans))
        now = end
    return Simulation(plan.resources.workers, tuple(stages))


def _durations(estimate: Estimate) -> tuple[float, ...]:
    """Returns the duration of each task. For tasks of equal length, such as starting a worker, the plan has only their number."""
    return estimate.durations or (estimate.seconds,) * estimate.tasks

"""A planned run on the time line: who works when, by the scheduler that also cuts the grid, with predicted durations."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.planning.grid import Span, schedule
from orchestrator.planning.plan import Estimate, Plan


@dataclass(frozen=True)
class StageRun:
    """One stage: its tasks on the workers (spans in seconds since the start of the run), and when all of them are done."""

    name: str
    start: float
    end: float
    spans: tuple[Span, ...]

    @property
    def busy_seconds(self) -> float:
        return sum(span.end - span.start for span in self.spans)


@dataclass(frozen=True)
class Simulation:
    """A run from its first to its last stage."""

    workers: int
    stages: tuple[StageRun, ...]

    @property
    def seconds(self) -> float:
        return self.stages[-1].end if self.stages else 0.0

    @property
    def utilisation(self) -> float:
        """The part of all workers' time in which they compute."""
        available = self.workers * self.seconds
        return sum(stage.busy_seconds for stage in self.stages) / available if available else 1.0

    @property
    def longest(self) -> StageRun:
        return max(self.stages, key=lambda stage: stage.end - stage.start)


def simulate(plan: Plan) -> Simulation:
    """Stages one after the other, since each reads all of what the one before it wrote; the tasks of a stage by ``grid.schedule``."""
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
    """Of the tasks; of those that all take as long, like starting workers, the plan keeps only the number."""
    return estimate.durations or (estimate.seconds,) * estimate.tasks

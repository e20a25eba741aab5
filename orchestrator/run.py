"""One run: where it writes, what it has done, and how a stage is carried out (read what is finished, compute the rest)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.allocation.units import dense_family
from orchestrator.config import Experiment
from orchestrator.identity.sources import classes_of
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.progress import Progress
from orchestrator.report.result import TaskRun
from orchestrator.rounds import one_by_one
from orchestrator.stages import prefix
from orchestrator.store import MODEL, Store
from orchestrator.track import Run as Tracked
from workers.errors import DamagedResult
from workers.export import load_family
from workers.messages import TrainTask
from workers.models.base import ModelFamily
from workers.models.exported import selecting
from workers.models.profile import profile
from workers.models.shrunk import ShrunkModel
from workers.pruners.base import WeightPruner
from workers.records import Destination, Record


@dataclass
class Run:
    """What the stages of one run share."""

    experiment: Experiment
    plan: Plan
    store: Store
    directory: Path
    progress: Progress
    tracked: Tracked
    round: str = ""  # whose stages these are, and the step of it
    step: int = 0
    timeline: list[TaskRun] = field(default_factory=list)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = self.store.made_by(components(self.experiment))

    def rounds(self) -> Iterator[Run]:
        """A view for each round: its settings and plan, with everything else shared."""
        for name, experiment in one_by_one(self.experiment).items():
            plan = make_plan(experiment, self.plan.profile, self.plan.resources)
            yield replace(self, experiment=experiment, plan=plan, round=name)

    def steps(self) -> Iterator[Run]:
        """A view for each step of a round."""
        for step in range(1, self.experiment.steps + 1):
            yield replace(self, step=step)

    def on(self, model: Record) -> Run:
        """This view for a model that units were taken out of: its family, its layers, its plan."""
        family = self.family_of(model)
        if family is self.experiment.model:
            return self
        experiment = replace(self.experiment, model=family)
        found = profile(family, experiment.data.input_shape)
        return replace(self, experiment=experiment, plan=make_plan(experiment, found, self.plan.resources))

    def family_of(self, model: Record) -> ModelFamily:
        """The family of a stored model, with this run's choice of layers."""
        family, asked = load_family(model.path(MODEL)), dense_family(self.experiment.model)
        if not isinstance(family, ShrunkModel) or not family.shapes:
            return asked
        return selecting(family, {name: getattr(asked, name) for name in asked.selects})

    @property
    def steps_left(self) -> int:
        """Steps of the round that are still to go, with the present one."""
        return self.experiment.steps - self.step + 1

    @property
    def prefix(self) -> str:
        """What the names of stages begin with."""
        return prefix(self.round, self.step, self.experiment.steps)

    def map(
        self,
        stage: str,
        verb: Callable[[Any, Any], Record],
        tasks: Sequence[Any],
        costs: Sequence[float] = (),
        alone: bool = False,
    ) -> list[Record]:
        """Records of ``verb`` on ``tasks``, in order. What is in the store is read; the rest is computed, longest (``costs``) first."""
        found = [self.find(task.to) for task in tasks]
        order = [index for index, record in enumerate(found) if record is None]
        if costs:
            order.sort(key=lambda index: -costs[index])
        results = self.compute(stage, verb, [tasks[index] for index in order], [record for record in found if record], alone)
        for index, record in zip(order, results, strict=True):
            found[index] = record
        return [record for record in found if record is not None]

    def compute(
        self, stage: str, verb: Callable[[Any, Any], Any], tasks: Sequence[Any], read: Sequence[Record] = (), alone: bool = False
    ) -> list[Any]:
        """Results of ``verb`` on tasks that nothing is stored of; ``read`` are the stage's results that were found."""
        if tasks:
            with self.timed("start workers"):
                self.experiment.cluster.ready()
        with self.timed(self.prefix + stage), self.progress.stage(self.prefix + stage, len(tasks) + len(read)) as bar:
            for record in read:
                self.note(stage, record)
            if read:
                bar.advance(len(read), "from the store")

            def done(index: int, result: Any) -> None:
                for record in result if isinstance(result, list) else [result]:
                    if isinstance(record, Record):
                        self.note(stage, record)
                bar.advance(1)

            return self.experiment.cluster.map(verb, tasks, done, alone) if tasks else []

    def gang(self, stage: str, task: TrainTask) -> Record:
        """Train with a gang, unless the result is in the store."""
        record = self.find(task.to)
        with self.timed(self.prefix + stage), self.progress.stage(self.prefix + stage, None) as bar:
            if record is None:
                with bar.follow(task.progress):
                    record = replace(self.experiment.cluster.gang(task), computed=True)
            self.note(stage, record)
        return record

    def find(self, to: Destination) -> Record | None:
        """The stored result, or None; a damaged one is discarded with a warning."""
        try:
            return self.store.find(to)
        except DamagedResult as damaged:
            self.discard(damaged)
            return None

    def discard(self, damaged: DamagedResult) -> None:
        self.warn(f"a stored result is damaged and is computed again: {damaged}")
        self.store.discard(damaged)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.progress.warn(text)

    def note(self, stage: str, record: Record) -> None:
        """Keep what ran, or was read, in the time line and in ``tasks.jsonl``."""
        stage = self.prefix + stage
        what = f"{self.prefix}{record.numbers['layer']}" if "layer" in record.numbers else stage
        task = TaskRun(record.verb, what, record.worker, record.started, record.seconds, record.computed)
        self.timeline.append(task)
        line = {"stage": stage, "fingerprint": record.fingerprint, "time": time.time(), "layer": record.numbers.get("layer")} | vars(task)
        with (self.directory / "tasks.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + time.perf_counter() - start


def components(experiment: Experiment) -> Iterator[str]:
    """Dotted names of the classes that settings chose and that results come from."""
    model, pruner = experiment.model, experiment.pruner
    parts: list[Any] = [model, model.stored, experiment.data, pruner, *([pruner.statistic] if isinstance(pruner, WeightPruner) else [])]
    for part in parts:
        if part is not None:
            yield from classes_of(part)


def data_identity(run: Run, reads: tuple[str, ...]) -> dict:
    """What of the data a verb depends on: its content and preprocessing, and the named fields."""
    data = run.experiment.data
    return {"content": data.fingerprint(), "seed": data.seed, **{name: getattr(data, name) for name in reads}}

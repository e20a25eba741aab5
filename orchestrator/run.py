"""One run: its settings, its store and its log, and how a stage is carried out: read finished results, compute the others."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from orchestrator.allocation.units import dense_family
from orchestrator.config import Experiment
from orchestrator.identity.sources import classes_of
from orchestrator.planning.plan import Plan
from orchestrator.progress import Progress, Stage
from orchestrator.report.parts import TaskRun
from orchestrator.report.result import ACCURACIES
from orchestrator.rounds import one_by_one
from orchestrator.stages import prefix
from orchestrator.store import Store
from orchestrator.track import Tracker
from workers.errors import DamagedResult
from workers.export import load_family
from workers.messages import TrainTask
from workers.models.base import ModelFamily
from workers.models.exported import selecting
from workers.models.profile import ModelProfile, profile
from workers.models.shrunk import ShrunkModel
from workers.records import Destination, ModelNumbers, Numbers, Record, TrainedModel

if TYPE_CHECKING:
    from workers.worker import Worker

Kind = TypeVar("Kind", bound=Numbers)
Result = TypeVar("Result")


class WithDestination(Protocol):
    """A task whose result is stored."""

    @property
    def to(self) -> Destination: ...


Task = TypeVar("Task", bound=WithDestination)


@dataclass
class Log:
    """What a run has done so far, for its report."""

    timeline: list[TaskRun] = field(default_factory=list)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass
class Run:
    """What the stages of one run share. A round has a view of its own: its settings, and the model that it starts from."""

    experiment: Experiment
    plan: Plan
    store: Store
    directory: Path
    progress: Progress
    tracker: Tracker
    profile: ModelProfile  # of the model that the round starts from
    round: str = ""
    step: int = 0
    log: Log = field(default_factory=Log)

    def __post_init__(self) -> None:
        self.store = self.store.made_by(classes(self.experiment))

    def of_round(self, name: str, model: Record[ModelNumbers]) -> Run:
        """A view for a round that starts from ``model``; everything else is shared."""
        experiment, family = one_by_one(self.experiment)[name], self.family_of(model)
        if family is self.experiment.model:
            return replace(self, experiment=experiment, round=name)
        smaller = profile(family, experiment.data.input_shape)
        return replace(self, experiment=replace(experiment, model=family), profile=smaller, round=name)

    def steps(self) -> Iterator[Run]:
        """A view for each step of a round."""
        for step in range(1, self.experiment.steps + 1):
            yield replace(self, step=step)

    def family_of(self, model: Record[ModelNumbers]) -> ModelFamily:
        """The family of a stored model, with this run's choice of layers."""
        family, asked = load_family(model.file), dense_family(self.experiment.model)
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
        verb: Callable[[Worker, Task], Record[Kind]],
        tasks: Sequence[Task],
        costs: Sequence[float] = (),
        alone: bool = False,
    ) -> list[Record[Kind]]:
        """Records of ``verb`` on ``tasks``, in order. What is in the store is read; the rest is computed, longest (``costs``) first."""
        records: list[Record[Kind] | None] = [self.find(task.to) for task in tasks]
        missing = [index for index, record in enumerate(records) if record is None]
        if costs:
            missing.sort(key=lambda index: -costs[index])
        stored = [record for record in records if record is not None]
        for index, record in zip(missing, self.compute(stage, verb, [tasks[index] for index in missing], stored, alone), strict=True):
            records[index] = record
        return [record for record in records if record is not None]

    def compute(
        self,
        stage: str,
        verb: Callable[[Worker, Any], Result],
        tasks: Sequence[Any],
        stored: Sequence[Record[Numbers]] = (),
        alone: bool = False,
    ) -> list[Result]:
        """Results of ``verb`` on tasks whose results are not stored; ``stored`` are the results of the stage that are."""
        if tasks:
            with self.timed("start workers"):
                self.experiment.cluster.ready()
        with self.timed(self.prefix + stage), self._stage(stage, len(tasks) + len(stored), len(tasks)) as bar:
            for record in stored:
                self.note(stage, record)
            if stored:
                bar.advance(len(stored), "from the store")

            def done(index: int, result: Any) -> None:
                for record in result if isinstance(result, list) else [result]:
                    if isinstance(record, Record):
                        self.note(stage, record)
                bar.advance(1)

            return self.experiment.cluster.map(verb, tasks, done, alone) if tasks else []

    def train(self, stage: str, task: TrainTask) -> Record[TrainedModel]:
        """Train with a gang, unless the result is in the store."""
        record = self.find(task.to)
        with self.timed(self.prefix + stage), self._stage(stage, None, int(record is None)) as bar:
            if record is None:
                with bar.follow(task.progress):
                    record = replace(self.experiment.cluster.gang(task), computed=True)
            self.note(stage, record)
        return record

    def _stage(self, stage: str, total: int | None, missing: int) -> Stage:
        """A stage on the display, with the time that the plan predicts for it if ``missing`` results have to be computed."""
        estimate = self.plan.stages.get(self.prefix + stage) if missing else None
        return self.progress.stage(self.prefix + stage, total, None if estimate is None else missing / (total or 1) * estimate.seconds)

    def find(self, to: Destination) -> Record[Any] | None:
        """The stored result, or None; a damaged one is discarded with a warning."""
        try:
            return self.store.find(to)
        except DamagedResult as damaged:
            self.discard(damaged)
            return None

    def discard(self, damaged: DamagedResult) -> None:
        self.warn(f"a stored result is damaged and will be computed again: {damaged}")
        self.store.discard(damaged)

    def warn(self, text: str) -> None:
        """Show a warning and keep it for the report. A text that was shown before is left out."""
        if text not in self.log.warnings:
            self.log.warnings.append(text)
            self.progress.warn(text)

    def note(self, stage: str, record: Record[Numbers]) -> None:
        """Record what was computed, or read from the store, in the time line and in ``tasks.jsonl``."""
        stage, layer = self.prefix + stage, getattr(record.numbers, "layer", None)
        what = stage if layer is None else f"{self.prefix}{layer}"
        task = TaskRun(record.verb, what, record.worker, record.started, record.seconds, record.computed)
        self.log.timeline.append(task)
        line = {"stage": stage, "fingerprint": record.fingerprint, "time": time.time(), "layer": layer} | vars(task)
        with (self.directory / "tasks.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def is_hopeless(self, one_shot: Mapping[str, float | None]) -> bool:
        """Whether the accuracy of the pruned model is below the least with which the run goes on."""
        least = self.experiment.stop_below
        accuracy = next((one_shot[key] for key in ACCURACIES if one_shot.get(key) is not None), None)
        if least is None or accuracy is None or accuracy >= least:
            return False
        self.progress.note(f"{self.prefix}stopped early: the one-shot accuracy of {accuracy:.1%} is below stop_below={least:g}")
        return True

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.log.stage_seconds[stage] = self.log.stage_seconds.get(stage, 0.0) + time.perf_counter() - start


def classes(experiment: Experiment) -> Iterator[str]:
    """Dotted names of the classes that settings chose and that results come from."""
    model, pruner = experiment.model, experiment.pruner
    for component in (model, model.stored, experiment.data, pruner, pruner.statistic):
        if component is not None:
            yield from classes_of(component)


def data_identity(run: Run, reads: tuple[str, ...]) -> dict:
    """What of the data a verb depends on: its content and preprocessing, and the named fields."""
    data = run.experiment.data
    return {"content": data.fingerprint(), "seed": data.seed, **{name: getattr(data, name) for name in reads}}

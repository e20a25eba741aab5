"""One run: its settings, its store and its log, and how a stage is carried out: read finished results, compute the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from orchestrator.allocation.latency_table import LatencyTable
from orchestrator.allocation.units import dense_family
from orchestrator.cleaning import TASKS
from orchestrator.config import Experiment
from orchestrator.identity.sources import classes_of
from orchestrator.planning.plan import Plan
from orchestrator.progress import Progress, Stage
from orchestrator.quantities import count
from orchestrator.report.parts import TaskRun
from orchestrator.report.result import ACCURACIES
from orchestrator.rounds import one_by_one
from orchestrator.stages import prefix
from orchestrator.store import Store, fingerprint
from orchestrator.tracking.base import Tracker
from workers.errors import DamagedResult
from workers.export import load_family
from workers.files import append_lines
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


class FilesFreed(Exception):
    """A task has to read files that were freed. Repeating the pipeline computes them again."""


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
    times: LatencyTable | None = None  # of the operations of the model that was narrowed last, if they were timed


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
        order = sorted(range(len(tasks)), key=lambda index: -costs[index]) if costs else range(len(tasks))

        def of(missing: Sequence[Destination]) -> list[Task]:
            fingerprints = {to.fingerprint for to in missing}
            return [tasks[index] for index in order if tasks[index].to.fingerprint in fingerprints]

        return self.results(stage, verb, [task.to for task in tasks], of, alone)

    def results(
        self,
        stage: str,
        verb: Callable[[Worker, Any], Record[Kind] | list[Record[Kind]]],
        wanted: Sequence[Destination],
        make_tasks: Callable[[Sequence[Destination]], Sequence[Any]],
        alone: bool = False,
    ) -> list[Record[Kind]]:
        """The results at ``wanted``, in order. What is in the store is read; ``make_tasks`` makes the tasks that compute the rest.

        What another driver is computing is waited for, and computed here if that driver ends without a result. No claim is held meanwhile.
        """
        self.store.check()
        found: dict[str, Record[Kind]] = {}
        missing, shown = self._read(stage, wanted, found), 0
        while missing:
            self._start_workers()  # before anything is claimed, since another driver may hold the devices and wait
            with self.store.claims.taken(missing) as mine:
                left = self._read(stage, mine, found)  # without what another driver has finished
                for to in mine:
                    if to.fingerprint in found:
                        self.store.claims.release(to.fingerprint)
                if left:
                    results = self.compute(stage, verb, make_tasks(left), len(found) - shown, alone)
                    found |= {record.fingerprint: record for result in results for record in _listed(result)}
                    shown = len(found)
            missing = [to for to in missing if to.fingerprint not in found]
            if missing:
                with self.timed(self.prefix + stage):
                    self.wait(stage, missing)
        if len(found) > shown:
            self.compute(stage, verb, [], len(found) - shown)
        return [found[to.fingerprint] for to in wanted]

    def _read(self, stage: str, wanted: Sequence[Destination], found: dict[str, Record[Kind]]) -> list[Destination]:
        """Add what is in the store to ``found``; returns the others of ``wanted``."""
        for to in wanted:
            record = self.find(to)
            if record is not None and to.fingerprint not in found:
                found[to.fingerprint] = record
                self.note(stage, record)
        return [to for to in wanted if to.fingerprint not in found]

    def compute(
        self,
        stage: str,
        verb: Callable[[Worker, Any], Result],
        tasks: Sequence[Any],
        stored: int = 0,
        alone: bool = False,
    ) -> list[Result]:
        """Results of ``verb`` on tasks whose results are not stored; so many results of the stage are ``stored``."""
        self.need(record for task in tasks for record in records_of(task))
        if tasks:
            self._start_workers()
        with self.timed(self.prefix + stage), self._stage(stage, len(tasks) + stored, len(tasks)) as bar:
            if stored:
                bar.advance(stored, "from the store")

            def done(index: int, result: Any) -> None:
                for record in _listed(result):
                    if isinstance(record, Record):
                        self.note(stage, record)
                        self.store.claims.release(record.fingerprint)
                bar.advance(1)

            return self.experiment.cluster.map(verb, tasks, done, alone) if tasks else []

    def once(self, stage: str, to: Destination, make: Callable[[], Record[Kind]]) -> Record[Kind]:
        """The result at ``to``: read, or made by ``make``, by one driver at a time. The caller notes it.

        ``make`` may wait for other claims while this one is held: only for those of results that its own depends on, so never in a circle.
        """
        while (record := self.find(to)) is None:
            self.store.check()
            with self.store.claims.taken([to]) as mine:
                if mine:
                    return self.find(to) or make()
            self.wait(stage, [to])
        return record

    def train(self, stage: str, task: TrainTask) -> Record[TrainedModel]:
        """Train with a gang, unless the result is in the store. Shows how the training proceeds, also if another driver does it."""
        record = self.find(task.to)
        with self.timed(self.prefix + stage), self._stage(stage, None, int(record is None)) as bar:
            if record is None:
                self.experiment.cluster.release()  # the gang needs the devices, also one of another driver
                with bar.follow(task.progress):
                    record = self.once(stage, task.to, lambda: replace(self.experiment.cluster.gang(task), computed=True))
            self.note(stage, record)
        return record

    def wait(self, stage: str, missing: Sequence[Destination]) -> None:
        """Return when one of ``missing``, all of which others have claimed, can be claimed. Says from time to time who holds it."""
        for holder in self.store.claims.waiting(missing):
            who, what = holder or "another process", count(len(missing), "result")
            self.progress.note(f"{self.prefix}{stage}: waiting for {what} that {who} computes; end that process to compute it here")

    def need(self, records: Iterable[Record[Any]]) -> None:
        """Raises: FilesFreed if files of ``records`` were freed. They are then computed again when the pipeline is repeated."""
        freed = [record for record in records if record.freed]
        if freed:
            self.store.need(freed)
            raise FilesFreed

    def _start_workers(self) -> None:
        with self.timed("start workers"):
            self.experiment.cluster.ready()

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
        """Discard a damaged result, with a warning, unless another driver does so."""
        self.store.check()
        if self.store.discard(damaged):
            self.warn(f"a stored result is damaged and will be computed again: {damaged}")

    @contextmanager
    def alone_in_directory(self) -> Iterator[None]:
        """A context in which no other driver that works for the same run writes the files of its directory."""
        files = Destination(fingerprint("files", self.directory.name), self.directory)
        while True:
            with self.store.claims.taken([files]) as mine:
                if mine:
                    yield
                    return
            self.wait("report", [files])

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
        append_lines(self.directory / TASKS, [line])

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
        self.progress.entered(stage)
        yield
        self.log.stage_seconds[stage] = self.log.stage_seconds.get(stage, 0.0) + time.perf_counter() - start


def _listed(result: Any) -> list[Any]:
    return result if isinstance(result, list) else [result]


def records_of(task: Any) -> Iterator[Record[Any]]:
    """The results whose files a task reads, except models."""

    def within(value: Any) -> Iterator[Record[Any]]:
        if isinstance(value, Record):
            yield value
        elif isinstance(value, tuple | dict):
            for entry in value.values() if isinstance(value, dict) else value:
                yield from within(entry)

    for value in vars(task).values():
        yield from within(value)


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

"""A service beside ``metrics.jsonl``: whatever happens to it, the run goes on and the numbers are in the file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.report.parts import LayerResult
from orchestrator.tracking.base import Receiver, Result, TrackedRun, Tracker, Warn
from orchestrator.tracking.files import FileTracker
from workers.errors import first_line


class Service(Receiver):
    """One run at a service. Every method may raise. Numbers that were not measured do not arrive here."""

    name: str

    @abstractmethod
    def result(self, result: Result) -> None:
        """Gets what a finished run leaves."""

    @abstractmethod
    def end(self, finished: bool) -> None:
        """Ends the run."""


class ServiceTracker(Tracker):
    """Sends everything to a service after it is in the files. The first failure gives a warning and ends the sending."""

    def __init__(self, service: Service, files: FileTracker, warn: Warn) -> None:
        self.service: Service | None = service
        self.files = files
        self.warn = warn
        self._where = service.where

    @property
    def where(self) -> str:
        return self._where

    def log(self, stage: str, metrics: Mapping[str, Any]) -> None:
        self.files.log(stage, metrics)
        self._send(lambda service: service.log(stage, measured(metrics)))

    def curve(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        self.files.curve(name, lines)
        self._send(lambda service: service.curve(name, [measured(line) for line in lines]))

    def layers(self, layers: Sequence[LayerResult]) -> None:
        self.files.layers(layers)
        self._send(lambda service: service.layers(layers))

    def finish(self, result: Result | None) -> None:
        self.files.finish(result)
        if result is not None:
            self._send(lambda service: service.result(result))
        self._send(lambda service: service.end(result is not None))
        self.service = None

    def _send(self, action: Callable[[Service], None]) -> None:
        if self.service is None:
            return
        try:
            action(self.service)
        except Exception as error:  # a failure of the service must not end the run
            failed, self.service = self.service.name, None
            rest = f"so it gets no more numbers of this run; all of them are in {self.files.path}"
            self.warn(f"{failed} failed ({first_line(error)}), {rest}")


def started(open_run: Callable[[], Service], name: str, run: TrackedRun, warn: Warn) -> Tracker:
    """Returns a tracker of the service that ``open_run`` opens; of the files alone, with a warning, if that fails."""
    files = FileTracker(run.name, run.id, run.directory)
    try:
        return ServiceTracker(open_run(), files, warn)
    except Exception as error:  # a failure of the service must not end the run
        warn(f"{name} could not be started: {first_line(error)}")
        return files


def measured(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if value is not None}

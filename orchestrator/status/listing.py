"""Lists the runs in an output directory from their files alone: those that go on, on any machine, and those that have ended."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from orchestrator.quantities import duration, percent
from orchestrator.report.result import ACCURACIES
from orchestrator.report.terms import ACCURACY_NAMES
from orchestrator.status.state import STATE, Accuracy, Phase, State, read_state

REPORT, CONFIG = "report.json", "config.json"
SILENT_SECONDS = 120.0  # without a sign of life before a run on another machine counts as stopped
SAME_START_SECONDS = 5.0  # start times of one process that are read twice differ by less
FILES = {  # shown as links, where a run has them
    "report.html": "report",
    "latency.html": "latency",
    "model.safetensors": "model",
    "metrics.jsonl": "metrics",
    CONFIG: "configuration",
}


@dataclass(frozen=True)
class ListedRun:
    """A run in the list. ``kind`` is ``running``, ``done``, ``failed``, ``stopped`` (its process is gone) or ``damaged``.

    ``started`` and ``updated`` (the last sign of life, or the end) are in seconds since the epoch.
    """

    directory: str
    name: str
    prunes: str
    kind: str
    remark: str
    started: float
    updated: float
    stage: str = ""
    done: int = 0
    total: int | None = None
    planned: float | None = None
    accuracy: Accuracy | None = None
    files: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        """The state in words."""
        if self.kind == "damaged":
            return self.remark
        place = f" at {self.stage}" if self.stage else " at the start" if self.kind == "failed" else ""
        remark = f": {self.remark}" if self.remark and self.kind == "failed" else f" ({self.remark})" if self.remark else ""
        return f"{self.kind}{place if self.kind in ('failed', 'stopped') else ''}{remark}"

    @property
    def progress(self) -> str:
        """The stage of a run that has not ended, and how far it is."""
        if self.kind in ("done", "damaged") or not self.stage:
            return ""
        count = f" {self.done}/{self.total}" if self.total else f" {self.done}" if self.done else ""
        return f"{self.stage}{count}"

    @property
    def accuracy_words(self) -> str:
        if self.accuracy is None or self.accuracy.final is None:
            return ""
        before = "" if self.accuracy.dense is None or self.accuracy.metric == "agreement" else f"{percent(self.accuracy.dense)} → "
        return f"{before}{percent(self.accuracy.final)}"

    @property
    def metric_words(self) -> str:
        return "" if self.accuracy is None else ACCURACY_NAMES.get(self.accuracy.metric, self.accuracy.metric)


def runs_in(output: Path, now: float | None = None) -> list[ListedRun]:
    """Returns the runs whose directories are in ``output``, the newest first; none if there is no such directory."""
    now = time.time() if now is None else now
    try:
        directories = [path for path in output.iterdir() if path.is_dir()]
    except OSError:
        return []
    found = [run for path in directories if (run := _listed(path, now)) is not None]
    return sorted(found, key=lambda run: (-run.started, run.directory))


def at(seconds: float) -> str:
    """Returns a time of the clock."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def age(seconds: float) -> str:
    """Returns how long ago something was."""
    return f"{duration(seconds) if seconds >= 1 else '0 s'} ago"


def _listed(path: Path, now: float) -> ListedRun | None:
    """The run of a directory; None if it is no run's."""
    files = tuple(name for name in FILES if os.path.exists(path / name))
    try:
        return _with_state(path, read_state(path), files, now)
    except ValueError as error:
        return _damaged(path, str(error), files)
    except OSError:
        if os.path.lexists(path / STATE):
            return _damaged(path, f"{STATE} cannot be read", files)
    return _without_state(path, files)


def _with_state(path: Path, state: State, files: tuple[str, ...], now: float) -> ListedRun:
    kind, remark = state.phase, state.error
    if kind == Phase.RUNNING.value:
        kind, remark = _alive(state, now)
    return ListedRun(
        path.name,
        state.name,
        state.prunes,
        kind,
        remark,
        state.started,
        state.updated,
        state.stage,
        state.done,
        state.total,
        state.planned if kind != "done" else None,
        state.accuracy,
        files,
    )


def _alive(state: State, now: float) -> tuple[str, str]:
    """Whether a run that has not ended goes on, and a remark. On this machine its process says so, elsewhere its last sign of life."""
    if state.host == socket.gethostname():
        return ("running" if process_lives(state.pid, state.process_started) else "stopped"), ""
    silent = max(0.0, now - state.updated)
    kind = "running" if silent <= SILENT_SECONDS else "stopped"
    return kind, f"on {state.host}, last sign of life {age(silent)}"


def process_lives(pid: int, started: float) -> bool:
    """Whether the process that had this number, and began at this time, still runs on this machine."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < SAME_START_SECONDS and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError, OverflowError):
        return False


def _without_state(path: Path, files: tuple[str, ...]) -> ListedRun | None:
    """A run from before there was a ``state.json``: done if it has a report."""
    started = _changed(path / CONFIG)
    try:
        there = (path / REPORT).stat()
    except OSError:
        is_run = CONFIG in files
        return ListedRun(path.name, path.name, "", "stopped", "it left no report", started, started, files=files) if is_run else None
    try:
        name, prunes, accuracy = _told(path / REPORT, there.st_mtime_ns, there.st_size)
    except ValueError:
        return _damaged(path, f"{REPORT} is damaged", files)
    return ListedRun(path.name, name, prunes, "done", "", started or there.st_mtime, there.st_mtime, accuracy=accuracy, files=files)


def _damaged(path: Path, what: str, files: tuple[str, ...]) -> ListedRun:
    when = max(_changed(path / name) for name in (STATE, REPORT, CONFIG))
    return ListedRun(path.name, path.name, "", "damaged", what, when, when, files=files)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


@lru_cache(maxsize=4096)
def _told(path: Path, changed: int, size: int) -> tuple[str, str, Accuracy | None]:
    """Name, pruner and accuracy of a report. Raises: ValueError if it is damaged."""
    try:
        report = json.loads(path.read_bytes())
        stages = [stage["metrics"] for stage in report["stages"]]
        metric = next((key for key in ACCURACIES if any(isinstance(stage.get(key), float | int) for stage in stages)), None)
        accuracy = None if metric is None else Accuracy(metric, _number(stages[0].get(metric)), _number(stages[-1].get(metric)))
        return str(report["name"]), str(report.get("pruner", "")), accuracy
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{path} is damaged") from error


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, float | int) and math.isfinite(value) else None


def counts(runs: list[ListedRun]) -> Iterator[tuple[str, int]]:
    """How many runs there are of each kind, for a headline."""
    for kind in ("running", "done", "failed", "stopped", "damaged"):
        many = sum(run.kind == kind for run in runs)
        if many:
            yield kind, many

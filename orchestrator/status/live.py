"""Keeps ``state.json`` of a run, and the page of all runs, up to date while the run is carried out."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import psutil

from orchestrator.report.result import Report
from orchestrator.status.page import write_page
from orchestrator.status.state import Accuracy, Phase, State
from workers.errors import first_line

STATE_SECONDS = 3.0  # between two signs of life
PAGE_SECONDS = 15.0  # between two pages while a stage goes on
LONGEST = 500  # characters of an error
TERMINATED = (signal.SIGTERM, 128 + signal.SIGTERM)  # exit statuses: Ray's handler of the signal has the first, ours the second


class LiveState:
    """The state of a run, used as a context manager around it: what leaves the context is how the run ended.

    A failure to write is no failure of the run.
    """

    def __init__(self, directory: Path, name: str, prunes: str = "", planned_seconds: Mapping[str, float] | None = None) -> None:
        self.directory = directory
        self._planned_seconds = planned_seconds or {}
        self._ended_seconds: dict[str, float] = {}  # planned, of the stages that have ended
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._turned = False  # whether a stage began since the page was written
        now, pid = time.time(), os.getpid()
        made = psutil.Process(pid).create_time()
        self._state = State(
            name=name,
            prunes=prunes,
            phase=Phase.RUNNING.value,
            host=socket.gethostname(),
            pid=pid,
            process_started=made,
            started=now,
            updated=now,
            stage="",
            done=0,
            total=None,
            planned=0.0,
            error="",
            accuracy=None,
        )

    def __enter__(self) -> Self:
        self._previous = _catch_termination()
        self._write()
        self._thread = threading.Thread(target=self._keep, name="state of the run", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if error is None:
            self._change(phase=Phase.DONE.value, planned=1.0)
        else:
            self._change(phase=Phase.FAILED.value, error=reason(error))
        self._write_page()
        if self._previous is not None and signal.getsignal(signal.SIGTERM) is _terminated:
            signal.signal(signal.SIGTERM, self._previous)

    def entered(self, stage: str, done: int = 0, total: int | None = None) -> None:
        """A stage begins, so the one before it has ended."""
        before = self._state.stage
        if before in self._planned_seconds:
            self._ended_seconds[before] = self._planned_seconds[before]
        self._turned = True
        self._change(stage=stage, done=done, total=total, planned=self._part_done(stage, done, total))

    def moved(self, stage: str, done: int, total: int | None) -> None:
        """Tasks of a stage have ended. The file says so with the next sign of life."""
        with self._lock:
            if stage == self._state.stage:
                self._state = replace(self._state, done=done, total=total, planned=self._part_done(stage, done, total))

    def achieved(self, report: Report) -> None:
        """The run has a report."""
        metric = report.headline_metric
        if metric is not None:
            dense, final = report.metric("dense", metric), report.metric(report.stages[-1].name, metric)
            with self._lock:
                self._state = replace(self._state, accuracy=Accuracy(metric, _finite(dense), _finite(final)))

    def _part_done(self, stage: str, done: int, total: int | None) -> float:
        """The part of all planned seconds that the finished work was planned to take."""
        whole = sum(self._planned_seconds.values())
        ended = sum(seconds for name, seconds in self._ended_seconds.items() if name != stage)
        here = self._planned_seconds.get(stage, 0.0) * done / total if total else 0.0
        return min(1.0, (ended + here) / whole) if whole else 0.0

    def _change(self, **changes: object) -> None:
        with self._lock:
            self._state = replace(self._state, **changes)  # type: ignore[arg-type]
        self._write()

    def _keep(self) -> None:
        self._write_page()  # here, since the reports of many runs of old may take a while to read
        drawn = time.monotonic()
        while not self._stop.wait(STATE_SECONDS):
            self._write()
            if self._turned or time.monotonic() - drawn >= PAGE_SECONDS:
                self._turned, drawn = False, time.monotonic()
                self._write_page()

    def _write(self) -> None:
        with self._lock:
            self._state = replace(self._state, updated=time.time())
            with suppress(OSError):  # a full disk, for example: the run itself will say so
                self._state.write(self.directory)

    def _write_page(self) -> None:
        with suppress(Exception):  # files of other runs that nothing prepared for must not end this one
            write_page(self.directory.parent)


def reason(error: BaseException) -> str:
    """Returns why a run failed, in one line."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, SystemExit):
        return "terminated (SIGTERM)" if error.code in TERMINATED else f"it ended with exit status {error.code}"
    return first_line(error)[:LONGEST]


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _catch_termination() -> signal.Handlers | None:
    """Makes SIGTERM an exception, so that workers are stopped and the state is written. A handler of the caller's program stays."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return None
    signal.signal(signal.SIGTERM, _terminated)
    return signal.SIG_DFL


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) < 1e11 else None  # NaN is not below anything

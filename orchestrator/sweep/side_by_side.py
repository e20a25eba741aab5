"""Runs points of a sweep side by side, each as a process of its own."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from orchestrator.config import Experiment, load
from orchestrator.quantities import duration
from orchestrator.sweep.records import record_failure
from orchestrator.sweep.screen import Screen

LOG = "output.log"  # in the directory of a point: everything that it printed
END_SECONDS = 10.0  # that a point may take to end when the sweep ends


@dataclass(frozen=True)
class Job:
    """A point: its number in the sweep, what it overrides, its configuration, its directory, and whether it must run alone."""

    number: int
    overrides: tuple[str, ...]
    config: DictConfig
    directory: Path
    alone: bool

    @property
    def words(self) -> str:
        return " ".join(self.overrides)


@dataclass(frozen=True)
class Failed:
    """What a failed point returns to a sweeper."""

    reason: str


def experiment_of_point(config: DictConfig) -> Experiment:
    """Returns the typed settings of a point. Raises: ConfigError."""
    return load(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))


class Running:
    """A point that runs. Its lines go to its log and to ``events``, and None when there are no more."""

    def __init__(self, point: Job, folder: Path, events: SimpleQueue[tuple[Running, str | None]]) -> None:
        self.point, self.started, self.last = point, time.monotonic(), ""
        self.result = folder / f"{point.number}.json"
        point.directory.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.sweep.point", str(self.result)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=False,
            env=environment,
            start_new_session=True,  # so that Ctrl-C reaches only the sweep, which then ends its points
        )
        self._give(pickle.dumps(point.config))
        threading.Thread(target=self._read, args=(events,), name=f"point {point.number}", daemon=True).start()

    def _give(self, config: bytes) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it died already, which its exit status tells
            self.process.stdin.write(config)
            self.process.stdin.flush()

    def _read(self, events: SimpleQueue[tuple[Running, str | None]]) -> None:
        output: IO[bytes] | None = self.process.stdout
        assert output is not None
        with (self.point.directory / LOG).open("a", encoding="utf-8") as log:
            for line in output:
                text = line.decode(errors="replace")
                log.write(text)
                log.flush()
                events.put((self, text.rstrip()))
        events.put((self, None))

    def release(self) -> None:
        """Lets the process end itself, if it runs."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()

    def end(self) -> None:
        """Ends the process, if it runs."""
        self.release()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def outcome(self) -> JobReturn:
        """What the point returned, or ``Failed``. Call this when there are no more lines."""
        self.end()
        ended = JobReturn(overrides=self.point.overrides, cfg=self.point.config, status=JobStatus.COMPLETED)
        if self.process.returncode == 0 and self.result.exists():
            ended.return_value = json.loads(self.result.read_text(encoding="utf-8"))
            return ended
        how = f"it was killed by signal {-self.process.returncode}" if self.process.returncode < 0 else "it ended without a result"
        reason = self.last.removeprefix("error: ") if self.process.returncode > 0 and self.last else how
        record_failure(Path(str(self.point.config.hydra.sweep.dir)), self.point.number, list(self.point.overrides), reason)
        ended.return_value = Failed(reason)
        return ended


def run_side_by_side(points: Sequence[Job], jobs: int) -> list[JobReturn]:
    """Runs ``points``, at most ``jobs`` at once, and returns what each returned, in their order. Those that must run alone come last.

    A point that fails has a record that says so, and the others go on.
    """
    waiting = deque(sorted(points, key=lambda point: point.alone))
    running: list[Running] = []
    returned: dict[int, JobReturn] = {}
    events: SimpleQueue[tuple[Running, str | None]] = SimpleQueue()
    with tempfile.TemporaryDirectory() as folder, Screen() as screen:
        try:
            while waiting or running:
                while waiting and _fits(waiting[0], running, jobs):
                    running.append(Running(waiting.popleft(), Path(folder), events))
                    point = running[-1].point
                    screen.say(point.number, f"started: {point.words or 'the settings of the sweep'}")
                process, line = events.get()
                if line is not None:
                    process.last = line or process.last
                    screen.show(process.point.number, process.point.words, line)
                    continue
                running.remove(process)
                returned[process.point.number] = outcome = process.outcome()
                screen.ended(process.point.number, _told(process, outcome))
        finally:
            for process in running:
                process.release()
            for process in running:
                process.end()
    return [returned[point.number] for point in points]


def _fits(point: Job, running: Sequence[Running], jobs: int) -> bool:
    return not running or (len(running) < jobs and not point.alone and not any(other.point.alone for other in running))


def _told(process: Running, outcome: JobReturn) -> str:
    value: Any = outcome.return_value
    took = duration(time.monotonic() - process.started)
    where = process.point.directory / LOG
    if isinstance(value, Failed):
        return f"failed after {took} ({process.point.words}): {value.reason}; output: {where}"
    return f"done in {took} ({process.point.words})"

"""A run that is carried out to fall: its processes, its stage, and what can happen to it. For ``chaos.py``."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import psutil
from failing_disk import Disk

VARIABLE = "CHAOS_RUN"  # in the environment of every process of a start
CLOCK = """
import os, time

def shifted(read, unit):
    def now():
        with open(os.environ["CHAOS_CLOCK"]) as file:
            return read() + type(unit)(float(file.read() or 0) * unit)
    return now

time.time, time.time_ns = shifted(time.time, 1.0), shifted(time.time_ns, 10**9)
"""
STAGES = {
    "weights": "start workers,train dense,evaluate dense,collect,score,allocate,solve,collect pairs,refit,join,compare,evaluate one-shot,"
    "recover,evaluate recovered,export,report",
    "units": "start workers,train dense,evaluate dense,collect,rank,choose,shrink,compare,evaluate one-shot,recover,evaluate recovered,"
    "export,report",
}
POLL_SECONDS, FAMILY_SECONDS = 0.005, 0.25
LATEST_SECONDS = 2.0  # after the start of a stage
LONGEST_FREEZE_SECONDS = 10.0
MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")  # control groups that limit memory, version 1


class Part(Enum):
    """The process that falls."""

    DRIVER = "driver"
    WORKER = "worker"
    RANK = "rank"
    CONTROLLER = "controller of the ranks"
    RAYLET = "raylet"
    GCS = "gcs_server"
    AGENT = "agent"
    ALL = "all"
    DISK = "disk"  # which the results are written to


class Kind(Enum):
    """What happens to it."""

    KILL = "killed"
    STOP = "stopped, and the driver killed"
    PAUSE = "stopped for a while"
    TERMINATE = "terminated"
    INTERRUPT = "interrupted"
    MEMORY = "without memory"
    JUMP = "with another time"
    FULL = "full"
    READ_ONLY = "read-only after an error"
    FREEZE = "frozen for a while"


DISK_KINDS = (Kind.FULL, Kind.READ_ONLY, Kind.FREEZE)
SIGNALS = {Kind.KILL: signal.SIGKILL, Kind.TERMINATE: signal.SIGTERM, Kind.INTERRUPT: signal.SIGINT}


@dataclass(frozen=True)
class Fall:
    """What happens to which part of a run, and when: so many seconds after ``stage`` has begun."""

    kind: Kind
    part: Part
    stage: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.part.value} {self.kind.value} in {self.stage}"


class Run:
    """The command with ``settings`` in ``folder``, while it is carried out and afterwards."""

    def __init__(self, settings: Sequence[str], folder: Path, stages: Sequence[str] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.stages, self.stage, self.status = folder, list(stages), "", None
        start = len(list(folder.glob("start*.txt")))
        self._said, self._mark = folder / f"start{start}.txt", f"{folder}/{start}"
        environment = os.environ | {VARIABLE: self._mark, "PYTHONUNBUFFERED": "1"} | _clock(folder)
        self._begun, self._looked = time.monotonic(), 0.0
        self._family: set[psutil.Process] = set()
        self._later: list[tuple[float, Callable[[], None]]] = []
        with self._said.open("w") as said:
            command = [sys.executable, "-m", "orchestrator", *settings]
            self._process = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT)
        self.driver = psutil.Process(self._process.pid)

    @property
    def said(self) -> str:
        return self._said.read_text(encoding="utf-8", errors="replace")

    @property
    def last_line(self) -> str:
        return (self.said.splitlines() or [""])[-1]

    def reach(self, fall: Fall, patience: float) -> bool:
        """Returns whether the run came to the moment of a fall before it ended. A stage that was passed already counts as reached."""
        wanted = self.stages.index(fall.stage)
        if not self._until(lambda: self.stage in self.stages and self.stages.index(self.stage) >= wanted, patience):
            return False
        self._until(lambda: False, fall.seconds)
        return self._process.poll() is None

    def lives(self, seconds: float) -> bool:
        """Returns whether the run still goes on after so many seconds."""
        self._until(lambda: False, seconds)
        return self._process.poll() is None

    def wait(self, patience: float) -> int | None:
        """Waits for the end, and returns the exit status; None if there is no end in time."""
        self._until(lambda: False, patience)
        self.seconds, self.status = time.monotonic() - self._begun, self._process.poll()
        return self.status

    def _until(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Watches the run until ``ready`` holds, it has ended, or the time is over; returns whether ``ready`` holds."""
        limit = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < limit:
            self._look()
            if ready():
                return True
            time.sleep(POLL_SECONDS)
        return False

    def _look(self) -> None:
        """Notes the stage and the processes, and calls what is due."""
        now = time.monotonic()
        with suppress(OSError, ValueError, StopIteration):
            state = json.loads(next(self.folder.glob("runs/chaos-*/state.json")).read_text(encoding="utf-8"))
            self.stage = state["stage"] if state["pid"] == self.driver.pid else ""
        if now - self._looked > FAMILY_SECONDS:
            self._looked = now
            with suppress(psutil.Error):
                self._family |= set(self.driver.children(recursive=True))
        self._call_until(now)

    def _call_until(self, now: float) -> None:
        due, self._later = [call for when, call in self._later if when <= now], [entry for entry in self._later if entry[0] > now]
        for call in due:
            with suppress(psutil.Error):
                call()

    def parts(self) -> dict[Part, list[psutil.Process]]:
        """Returns the processes of the run, by what they do."""
        found: dict[Part, list[psutil.Process]] = {Part.DRIVER: [self.driver]}
        with suppress(psutil.Error):
            for child in self.driver.children(recursive=True):
                with suppress(psutil.Error):
                    part = _part(child.name(), " ".join(child.cmdline()))
                    if part is not None:
                        found.setdefault(part, []).append(child)
        return found

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, call))

    def left(self, seconds: float) -> list[str]:
        """Returns the processes that are still there so many seconds after the end."""
        self._call_until(float("inf"))
        _, alive = psutil.wait_procs(self._remaining(), timeout=seconds)
        return [f"{process.pid} {process.name()}" for process in alive if process.is_running()]

    def _remaining(self) -> list[psutil.Process]:
        found = {process for process in self._family if process.is_running()}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(VARIABLE) == self._mark:
                    found.add(process)
        return [process for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]

    def end(self) -> None:
        """Kills what is left."""
        for process in [self.driver, *self._remaining()]:
            with suppress(psutil.Error):
                process.kill()
        self._process.wait()


def draw(drawn: random.Random, first: int, pruner: str) -> list[Fall]:
    """Returns one to three falls in the order of their stages: one at the stage with the number ``first``, the others anywhere."""
    stages = STAGES[pruner].split(",")
    chosen = [stages[first % len(stages)], *drawn.choices(stages, k=drawn.randint(0, 2))]
    kinds = drawn.choices([kind for kind in Kind if kind not in DISK_KINDS], weights=[4, 2, 2, 1, 1, 1, 1], k=len(chosen))
    parts = drawn.choices([part for part in Part if part not in (Part.ALL, Part.DISK)], weights=[3, 3, 3, 1, 1, 1, 1], k=len(chosen))
    ordered = sorted(zip(chosen, kinds, parts, strict=True), key=lambda entry: stages.index(entry[0]))
    return [Fall(kind, part, stage, drawn.uniform(0.0, LATEST_SECONDS) ** 2 / LATEST_SECONDS) for stage, kind, part in ordered]


def draw_of_disk(drawn: random.Random, first: int, pruner: str) -> list[Fall]:
    """Returns one or two falls of the disk, as ``draw`` does."""
    stages = STAGES[pruner].split(",")
    chosen = sorted([stages[first % len(stages)], *drawn.choices(stages, k=drawn.randint(0, 1))], key=stages.index)
    return [Fall(drawn.choice(DISK_KINDS), Part.DISK, stage, drawn.uniform(0.0, LATEST_SECONDS) ** 2 / LATEST_SECONDS) for stage in chosen]


def drop(run: Run, fall: Fall, drawn: random.Random, disk: Disk | None) -> Fall | None:
    """Lets a run fall, and returns what happened: another part falls if the one that was drawn is not there. None if all had ended."""
    if disk is not None:
        if fall.kind is Kind.FULL:
            disk.fill()
        elif fall.kind is Kind.READ_ONLY:
            disk.fail()
        else:
            disk.freeze()
            run.call_later(drawn.uniform(1.0, LONGEST_FREEZE_SECONDS), disk.thaw)
        return replace(fall, stage=run.stage)
    parts = run.parts()
    part = fall.part if fall.part in parts else drawn.choice(sorted(parts, key=lambda part: part.value))
    process, happened = drawn.choice(parts[part]), replace(fall, part=part, stage=run.stage)
    try:
        if fall.kind is Kind.JUMP:
            (run.folder / "clock").write_text(str(drawn.choice([-1, 1]) * drawn.uniform(1, 24) * 3600))
            return replace(happened, part=Part.ALL)
        if fall.kind is Kind.STOP:
            process.suspend()
            run.driver.kill()
        elif fall.kind is Kind.PAUSE:
            process.suspend()
            run.call_later(drawn.uniform(0.5, 4.0), process.resume)
        elif fall.kind is Kind.MEMORY and part is not Part.DRIVER and _without_memory(process):
            return happened
        elif fall.kind is Kind.MEMORY:
            process.kill()  # as the system does when memory runs out
        else:
            process.send_signal(SIGNALS[fall.kind])
    except psutil.NoSuchProcess:
        return None
    return happened


def _without_memory(process: psutil.Process) -> bool:
    """Moves a process into a control group in which it gets no more memory; returns whether this machine has such groups."""
    group = MEMORY_GROUPS / f"chaos-{process.pid}"
    try:
        group.mkdir(exist_ok=True)
        (group / "memory.limit_in_bytes").write_text("1M")
        (group / "cgroup.procs").write_text(str(process.pid))
    except OSError:
        return False
    return True


def remove_groups() -> None:
    """Removes the control groups of processes that have ended."""
    for group in MEMORY_GROUPS.glob("chaos-*"):
        with suppress(OSError):
            group.rmdir()


def _part(name: str, command: str) -> Part | None:
    if command.startswith("ray::Worker"):
        return Part.WORKER
    if command.startswith("ray::RayTrainWorker") or "spawn_main" in command:
        return Part.RANK
    if command.startswith("ray::TrainController"):
        return Part.CONTROLLER
    if name in ("raylet", "gcs_server"):
        return Part(name)
    is_agent = command.startswith(("ray::DashboardAgent", "ray::RuntimeEnvAgent")) or "log_monitor" in command or "monitor.py" in command
    return Part.AGENT if is_agent else None


def _clock(folder: Path) -> dict[str, str]:
    """Variables with which all processes of a run take their time from ``folder``; ``clock`` there says how many seconds it is ahead."""
    (folder / "sitecustomize.py").write_text(CLOCK)
    (folder / "clock").touch()
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "CHAOS_CLOCK": str(folder / "clock")}

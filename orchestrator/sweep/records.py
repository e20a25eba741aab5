"""What a sweep leaves in its directory: a small file for each point, written by the process that ran the point.

The page of a sweep is made from these files alone, so it does not matter which processes ran the points, or whether they still exist.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from workers.errors import ConfigError, SecateurError, first_line
from workers.files import write_text

POINTS = "points"  # the folder of the records, in that of the sweep
COMMAND = "command.json"


class State(Enum):
    STARTED = "started"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Point:
    """One point of a sweep.

    ``overrides`` are all that it was composed with. ``report`` is the directory of its run, as seen from that of the sweep; None if it has
    none. ``error`` is its error as one line, ``status`` the exit status that it would have had as a single run, and ``traceback`` the file
    with the trace of an unexpected error.
    """

    number: int
    overrides: list[str]
    state: State
    started: float
    seconds: float | None = None
    report: str | None = None
    error: str | None = None
    status: int = 0
    traceback: str | None = None

    @property
    def has_failed(self) -> bool:
        """Whether the point failed, given that the sweep has ended: one that never ended failed too."""
        return self.state is not State.DONE


def start_point(sweep: Path, number: int, overrides: list[str]) -> Point:
    """Records that a point has started."""
    point = Point(number, overrides, State.STARTED, time.time())
    _write(sweep, point)
    return point


def finish_point(sweep: Path, point: Point, run: Path | None) -> None:
    """Records that a point is done. ``run`` is the directory of its report, if it has one."""
    report = None if run is None else os.path.relpath(run, sweep)
    _write(sweep, replace(point, state=State.DONE, seconds=time.time() - point.started, report=report))


def fail_point(sweep: Path, point: Point, error: Exception) -> str:
    """Records that a point failed, and returns the line to print about it."""
    told, trace = first_line(error), None
    if not isinstance(error, SecateurError):
        trace = f"{POINTS}/{point.number}.txt"
        write_text(sweep / trace, "".join(traceback.format_exception(error)))
        told = f"{type(error).__name__}: {told}"
    status = 2 if isinstance(error, ConfigError) else 1
    _write(
        sweep,
        replace(point, state=State.FAILED, seconds=time.time() - point.started, error=told, status=status, traceback=trace),
    )
    where = "" if trace is None else f" (traceback: {sweep / trace})"
    settings = " ".join(swept(point.overrides, read_command(sweep)[1]))
    return f"point {point.number} failed{f' ({settings})' if settings else ''}: {told}{where}"


def record_failure(sweep: Path, number: int, overrides: list[str], reason: str) -> None:
    """Records why a point failed whose process could not do so itself, because it was killed or never began."""
    known = next((point for point in read_points(sweep) if point.number == number), None)
    if known is None or known.state is State.STARTED:
        started = known or Point(number, overrides, State.STARTED, time.time())
        _write(sweep, replace(started, state=State.FAILED, seconds=time.time() - started.started, error=reason, status=1))


def forget_point(sweep: Path, number: int) -> None:
    """Deletes the record of a point that was interrupted and is run again under another number."""
    (sweep / POINTS / f"{number}.json").unlink(missing_ok=True)


def write_command(sweep: Path, command: str, overrides: list[str]) -> None:
    """Records the command of a sweep and its overrides, before they are resolved to those of the points."""
    write_text(sweep / POINTS / COMMAND, json.dumps({"command": command, "overrides": overrides}, indent=1))


def read_command(sweep: Path) -> tuple[str, list[str]]:
    """The command of a sweep and its overrides; nothing if they were not recorded, or if the file is damaged."""
    try:
        content = json.loads((sweep / POINTS / COMMAND).read_text(encoding="utf-8"))
        return str(content["command"]), [str(override) for override in content["overrides"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "", []


def swept(overrides: list[str], of_sweep: list[str]) -> list[str]:
    """The overrides of a point that the whole sweep does not share."""
    return [override for override in overrides if override not in of_sweep]


def is_sweep(folder: Path) -> bool:
    return (folder / POINTS).is_dir()


def read_points(sweep: Path) -> list[Point]:
    """All points by their number. A damaged record stands for a point that failed."""
    files = [path for path in (sweep / POINTS).glob("*.json") if path.stem.isdigit()]
    return [_read(path) for path in sorted(files, key=lambda path: int(path.stem))]


def _read(path: Path) -> Point:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _checked(Point(**content | {"state": State(content["state"])}))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        return Point(int(path.stem), [], State.FAILED, 0.0, error=f"its record {path} is damaged: {first_line(error)}", status=1)


def _checked(point: Point) -> Point:
    """The point, if its values have the right types. Raises: TypeError."""
    kinds: dict[str, Any] = {"number": int, "overrides": list, "started": (int, float), "status": int}
    kinds |= {"seconds": (int, float, type(None))} | {name: (str, type(None)) for name in ("report", "error", "traceback")}
    for name, kind in kinds.items():
        if not isinstance(getattr(point, name), kind):
            raise TypeError(f"{name} is {getattr(point, name)!r}")
    if not all(isinstance(override, str) for override in point.overrides):
        raise TypeError(f"overrides are {point.overrides!r}")
    return point


def _write(sweep: Path, point: Point) -> None:
    write_text(sweep / POINTS / f"{point.number}.json", json.dumps(vars(point) | {"state": point.state.value}, indent=1))

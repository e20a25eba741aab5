"""What a run says about itself while it is carried out: ``state.json`` in its directory."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_type_hints

from workers.files import replaced

STATE = "state.json"


class Phase(Enum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Accuracy:
    """The accuracy that stands for the models of a run, as in ``Report.headline_metric``; None where it is not a number."""

    metric: str
    dense: float | None
    final: float | None


@dataclass(frozen=True)
class State:
    """A run, as its driver last described it.

    ``process_started`` is the start of the process, in seconds since the epoch: another process may get the same ``pid`` later.
    ``stage`` is the last one that began, of which ``done`` of ``total`` tasks have ended; ``planned`` is the part of all planned seconds
    that the finished work was planned to take. ``prunes`` says what the run prunes. ``error`` is one line, of a run that failed.
    """

    name: str
    prunes: str
    phase: str
    host: str
    pid: int
    process_started: float
    started: float
    updated: float
    stage: str
    done: int
    total: int | None
    planned: float
    error: str
    accuracy: Accuracy | None

    def write(self, directory: Path) -> None:
        """Writes the file, whole or not at all."""
        replace_text(directory / STATE, json.dumps(asdict(self), indent=1))


def read_state(directory: Path) -> State:
    """Returns the state of a run. Raises: OSError if there is no file; ValueError if it is damaged."""
    text = (directory / STATE).read_bytes()
    try:
        given = json.loads(text)
        accuracy = given.pop("accuracy")
        state = State(**given, accuracy=None if accuracy is None else _checked(Accuracy(**accuracy)))
        return _in_range(_checked(state))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{STATE} is damaged") from error


def _checked(value: Any) -> Any:
    """``value``, a dataclass, if its fields have their types and its numbers are finite. Raises: ValueError."""
    for name, hint in get_type_hints(type(value)).items():
        given = getattr(value, name)
        if not isinstance(given, (int | hint) if hint in (float, float | None) else hint):
            raise ValueError(f"{name}: expected {hint}")
        if isinstance(given, float | int) and not (math.isfinite(given) and abs(given) < 1e11):
            raise ValueError(f"{name}: expected a number in reach")
    return value


def _in_range(state: State) -> State:
    Phase(state.phase)
    if not (0 <= state.planned <= 1 and min(state.started, state.updated, state.done, state.total or 0) >= 0):
        raise ValueError("expected no negative number, and no more than the whole plan")
    return state


def replace_text(path: Path, text: str) -> None:
    """Writes a file at once, so that readers see the old one or the new one.

    It does not wait for the disk, as results do: what a run says about itself is written again and again.
    """
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")

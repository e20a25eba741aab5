"""What the plan says about one stage."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """One stage: its tasks, the wall time on all workers, and the sum of the time on each device."""

    tasks: int
    seconds: float
    device_seconds: float
    durations: tuple[float, ...] = ()  # of each task; the ranks of a gang have the same
    parts: tuple[int, ...] = ()  # how many tasks belong to each part of the stage, where a part begins when the one before has ended

"""How the time of models and of their operations is measured: settings."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from workers.checks import require

MODEL_PATIENCE = 10  # a whole model is timed so many times longer than an operation


class Runtime(Enum):
    """What carries out the model where it is deployed."""

    EAGER = "eager"  # torch as it is
    COMPILE = "compile"  # torch.compile; seconds for each operation and each size
    ONNXRUNTIME = "onnxruntime"  # on the CPU


@dataclass(unsafe_hash=True)
class Latency:
    """Settings of all measurements of time."""

    runtime: Runtime
    batch_size: int
    threads: int | None  # of the CPU; None: those of a worker
    widths: int  # of each axis of an operation that are measured at most, evenly spaced up to all of its units
    spread: float  # measured again until the median is known to this fraction of itself ...
    seconds: float  # ... or for so long, for an operation; ten times as long for a whole model

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "latency.batch_size", "at least 1", self.batch_size)
        require(self.threads is None or self.threads >= 1, "latency.threads", "at least 1, or null for those of a worker", self.threads)
        require(self.widths >= 2, "latency.widths", "at least 2", self.widths)
        require(0 < self.spread < 1, "latency.spread", "a fraction between 0 and 1", self.spread)
        require(self.seconds > 0, "latency.seconds", "a positive number of seconds", self.seconds)


@dataclass(frozen=True)
class Comparison:
    """A model timed in turn with another, ``repeats`` times: the median of its time over that of the other, which took ``beside_ms``.

    ``spread`` is the standard error of ``ratio``, as a fraction of it.
    """

    ratio: float
    beside_ms: float
    spread: float
    repeats: int


@dataclass(frozen=True)
class Timing:
    """The median of ``repeats`` runs, and its standard error as a fraction of it."""

    ms: float
    spread: float
    repeats: int

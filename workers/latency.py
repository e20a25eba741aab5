"""The settings for timing models and their operations, and the results."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from workers.checks import require

MODEL_PATIENCE = 10  # a whole model may be timed this many times longer than an operation


class Runtime(Enum):
    """The runtime in which the model is deployed."""

    EAGER = "eager"  # torch without compilation
    COMPILE = "compile"  # torch.compile; takes seconds for each operation and each size
    ONNXRUNTIME = "onnxruntime"  # on the CPU


@dataclass(unsafe_hash=True)
class Latency:
    """Settings for all timings."""

    runtime: Runtime
    batch_size: int
    threads: int | None  # of the CPU; None: those of a worker
    widths: int  # most widths that are timed along each axis of an operation, evenly spaced up to all of its units
    spread: float  # a timing is repeated until the standard error of its median is below this fraction of it ...
    seconds: float  # ... or for this long for an operation, ten times as long for a whole model

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "latency.batch_size", "at least 1", self.batch_size)
        threads = "at least 1, or null for the threads of a worker"
        require(self.threads is None or self.threads >= 1, "latency.threads", threads, self.threads)
        require(self.widths >= 2, "latency.widths", "at least 2", self.widths)
        require(0 < self.spread < 1, "latency.spread", "a fraction between 0 and 1", self.spread)
        require(self.seconds > 0, "latency.seconds", "a positive number of seconds", self.seconds)


@dataclass(frozen=True)
class Comparison:
    """A model timed in turn with another, ``repeats`` times each.

    ``ratio`` is the median of its time divided by the time of the other, whose median is ``beside_ms``. ``spread`` is the standard error of
    ``ratio``, as a fraction of it.
    """

    ratio: float
    beside_ms: float
    spread: float
    repeats: int


@dataclass(frozen=True)
class Timing:
    """The median time of ``repeats`` runs, and its standard error (``spread``) as a fraction of it."""

    ms: float
    spread: float
    repeats: int

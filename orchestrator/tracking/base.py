"""Where the numbers of runs are sent: what each place offers, and what it is told."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.report.parts import LayerResult
from orchestrator.report.result import Report
from workers.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.allocation.latency_table import LatencyTable

Warn = Callable[[str], Any]


@dataclass(frozen=True)
class TrackedRun:
    """A run at its start. ``group`` is the sweep that it is a point of; None if it is by itself."""

    name: str
    id: str
    config: dict[str, Any]
    directory: Path
    group: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """What a finished run leaves: its report with its files, the exported model, and the dense model with the digest of its file.

    ``times`` are those of the operations of the model at all widths, if the run measured them.
    """

    report: Report
    files: tuple[Path, ...]
    model: Path
    dense: Path
    dense_sha256: str
    times: LatencyTable | None = None


class Receiver(ABC):
    """Gets the numbers of one run."""

    @property
    @abstractmethod
    def where(self) -> str:
        """Where to see the numbers: an address or a path."""

    @abstractmethod
    def log(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """Gets the numbers of one stage; None means not measured."""

    @abstractmethod
    def curve(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Gets the progress lines of a training, each with its ``step``."""

    @abstractmethod
    def layers(self, layers: Sequence[LayerResult]) -> None:
        """Gets what was done to each layer."""


class Tracker(Receiver):
    """Tracks one run. Nothing here raises because a service failed."""

    @abstractmethod
    def finish(self, result: Result | None) -> None:
        """Ends the run. ``result`` is None if it failed."""


@dataclass
class Tracking(ABC):
    """Settings of a place to which numbers are sent."""

    def check(self) -> None:  # noqa: B027 (most places need nothing)
        """Checks that the packages are there. Raises: ConfigError."""

    @abstractmethod
    def start(self, run: TrackedRun, warn: Warn = warnings.warn) -> Tracker:
        """Starts or continues a run. ``warn`` gets a sentence about each problem."""


def require_package(package: str, extra: str) -> None:
    """Raises: ConfigError if a package that belongs to an extra is not there."""
    if find_spec(package) is None:
        raise ConfigError(f"tracking: it needs the package {package}, which is not installed: pip install 'secateur[{extra}]'")

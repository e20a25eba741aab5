"""``metrics.jsonl`` in the directory of a run, which is always written."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.report.parts import LayerResult
from orchestrator.report.write import as_json
from orchestrator.tracking.base import Result, TrackedRun, Tracker, Tracking, Warn
from workers.files import append_lines


@dataclass
class Files(Tracking):
    """Only ``metrics.jsonl`` in the run's directory."""

    def start(self, run: TrackedRun, warn: Warn = warnings.warn) -> Tracker:
        return FileTracker(run.name, run.id, run.directory)


class FileTracker(Tracker):
    """Appends one JSON object per line with ``time`` (seconds since the epoch), ``stage`` and ``metrics``. A rerun appends to the file."""

    def __init__(self, name: str, run_id: str, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "metrics.jsonl"
        self.log("start", {"name": name, "run_id": run_id})

    @property
    def where(self) -> str:
        return str(self.path)

    def log(self, stage: str, metrics: Mapping[str, Any]) -> None:
        self._append([(stage, metrics)])

    def curve(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        self._append([(name, line) for line in lines])

    def layers(self, layers: Sequence[LayerResult]) -> None:
        self.log("layers", {layer.name: {"sparsity": layer.sparsity, "zeros": layer.zeros, "weights": layer.weights} for layer in layers})

    def finish(self, result: Result | None) -> None:
        files = [] if result is None else [*result.files, result.model]
        self.log("end", {"status": "failed" if result is None else "finished", "artifacts": [str(path) for path in files]})

    def _append(self, entries: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        now = time.time()
        append_lines(self.path, [{"time": now, "stage": stage, "metrics": as_json(metrics)} for stage, metrics in entries])

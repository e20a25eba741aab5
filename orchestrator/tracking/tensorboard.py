"""TensorBoard, beside ``metrics.jsonl``: event files in the directory of the run."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from orchestrator.report.parts import LayerResult
from orchestrator.report.write import as_json
from orchestrator.tracking.base import Result, TrackedRun, Tracker, Tracking, Warn, require_package
from orchestrator.tracking.numbers import Rows, layer_rows, result_tables, summary, worker_rows
from orchestrator.tracking.service import Service, started

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


@dataclass
class TensorBoard(Tracking):
    """Event files for TensorBoard, beside ``metrics.jsonl``. If they cannot be written, the run continues with one warning."""

    def check(self) -> None:
        require_package("tensorboard", "tensorboard")

    def start(self, run: TrackedRun, warn: Warn = warnings.warn) -> Tracker:
        return started(lambda: EventFiles(run), "TensorBoard", run, warn)


class EventFiles(Service):
    """The event files of a run. A run that continues logs everything again, and TensorBoard shows the later numbers (``purge_step``)."""

    name = "TensorBoard"

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run = run
        self.writer: SummaryWriter = SummaryWriter(str(run.directory / FOLDER), purge_step=0)
        self.writer.add_text("configuration", f"```json\n{json.dumps(as_json(run.config), indent=1)}\n```", 0)

    @property
    def where(self) -> str:
        return f"{self.writer.log_dir} (show with `tensorboard --logdir`)"

    def log(self, stage: str, metrics: Mapping[str, Any]) -> None:
        self._scalars(stage, metrics, 0)

    def curve(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        for line in lines:
            self._scalars(f"{name}_curve", {key: value for key, value in line.items() if key != "step"}, int(line["step"]))

    def layers(self, layers: Sequence[LayerResult]) -> None:
        import numpy as np

        self.writer.add_text("layers", markdown(layer_rows(layers)), 0)
        if layers:
            self.writer.add_histogram("layers/sparsity", np.array([layer.sparsity for layer in layers]), 0)

    def result(self, result: Result) -> None:
        self._scalars("summary", summary(result.report), 0)
        for name, rows in result_tables(result).items():
            self.writer.add_text(name, markdown(rows), 0)
        self._scalars("busy", {process: busy for process, _, _, busy in worker_rows(result.report).rows}, 0)

    def end(self, finished: bool) -> None:
        self.writer.close()

    def _scalars(self, place: str, metrics: Mapping[str, Any], step: int) -> None:
        for key, value in metrics.items():
            if isinstance(value, Real):
                self.writer.add_scalar(f"{place}/{key}", float(value), step)
        self.writer.flush()


def markdown(table: Rows) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)
    return text.replace("|", "\\|")

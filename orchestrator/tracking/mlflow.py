"""MLflow, beside ``metrics.jsonl``: a tracking server, or a folder of files."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from orchestrator.report.parts import LayerResult
from orchestrator.report.write import as_json
from orchestrator.tracking.base import Result, TrackedRun, Tracker, Tracking, Warn, require_package
from orchestrator.tracking.numbers import layer_rows, result_tables, summary
from orchestrator.tracking.service import Service, started
from workers.checks import require

if TYPE_CHECKING:
    from mlflow import MlflowClient

FOLDER = "mlruns"
ID = "secateur.run"  # the tag by which a run that continues is found
AT_ONCE = 100  # parameters in one request
LONGEST = 500  # characters of a parameter


@dataclass
class MLflow(Tracking):
    """MLflow, beside ``metrics.jsonl``. If it fails, the run continues with one warning."""

    uri: str | None
    experiment: str
    log_model: bool

    def __post_init__(self) -> None:
        require(bool(self.experiment), "tracking.experiment", "a name", self.experiment)
        secret = self.uri is not None and urlsplit(self.uri).password is not None
        without = "an address without a password, since the configuration of a run is written into its files"
        require(not secret, "tracking.uri", without, "one with a password", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")

    def check(self) -> None:
        require_package("mlflow", "mlflow")

    def start(self, run: TrackedRun, warn: Warn = warnings.warn) -> Tracker:
        return started(lambda: MLflowRun(self, run), "MLflow", run, warn)


class MLflowRun(Service):
    """A run at MLflow. One with the same fingerprint that was interrupted continues."""

    name = "MLflow"

    def __init__(self, settings: MLflow, run: TrackedRun) -> None:
        self.run = run
        self.log_model = settings.log_model
        self.uri = settings.uri or os.environ.get("MLFLOW_TRACKING_URI") or (run.directory.parent / FOLDER).as_uri()
        if urlsplit(self.uri).scheme in ("", "file"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow wants to be told that files are meant
        from mlflow import MlflowClient

        self.client: MlflowClient = MlflowClient(self.uri)
        experiment = self._experiment(settings.experiment)
        found = self.client.search_runs([experiment], f"tags.`{ID}` = '{run.id}'", max_results=1)
        if found:
            self.id, known = found[0].info.run_id, found[0].data.params
            self.client.update_run(self.id, status="RUNNING")
        else:
            tags = {ID: run.id, **({} if run.group is None else {"group": run.group}), "tags": ", ".join(run.tags)}
            self.id, known = self.client.create_run(experiment, tags=tags, run_name=run.name).info.run_id, {}
        self._log_parameters({key: value for key, value in flat(as_json(run.config)) if key not in known})

    @property
    def where(self) -> str:
        return f"{self.uri} (run {self.id})"

    def log(self, stage: str, metrics: Mapping[str, Any]) -> None:
        self._log_metrics(stage, [{"step": 0, **metrics}])

    def curve(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        self._log_metrics(f"{name}_curve", lines)

    def layers(self, layers: Sequence[LayerResult]) -> None:
        self._log_table("layers", layer_rows(layers).columns, layer_rows(layers).rows)

    def result(self, result: Result) -> None:
        self.log("summary", summary(result.report))
        for name, table in result_tables(result).items():
            self._log_table(name, table.columns, table.rows)
        self.client.set_tag(self.id, "dense_sha256", result.dense_sha256)
        for path in (*result.files, *([result.model] if self.log_model else [])):
            self.client.log_artifact(self.id, str(path))

    def end(self, finished: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if finished else "FAILED")

    def _experiment(self, name: str) -> str:
        known = self.client.get_experiment_by_name(name)
        return str(self.client.create_experiment(name) if known is None else known.experiment_id)

    def _log_parameters(self, values: dict[str, str]) -> None:
        from mlflow.entities import Param

        parameters = [Param(key, value[:LONGEST]) for key, value in values.items()]
        for first in range(0, len(parameters), AT_ONCE):
            self.client.log_batch(self.id, params=parameters[first : first + AT_ONCE])

    def _log_metrics(self, place: str, lines: Sequence[Mapping[str, Any]]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [
            Metric(f"{place}/{key}", float(value), now, int(line["step"]))
            for line in lines
            for key, value in line.items()
            if key != "step" and isinstance(value, Real) and math.isfinite(value)
        ]
        for first in range(0, len(metrics), 10 * AT_ONCE):
            self.client.log_batch(self.id, metrics=metrics[first : first + 10 * AT_ONCE])

    def _log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.client.log_dict(self.id, as_json([dict(zip(columns, row, strict=True)) for row in rows]), f"{name}.json")


def flat(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """The settings of a configuration under their dotted names."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from flat(part, f"{place}.{key}" if place else str(key))
    else:
        yield place, str(value)

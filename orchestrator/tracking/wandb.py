"""Weights & Biases, beside ``metrics.jsonl``."""

from __future__ import annotations

import netrc
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from orchestrator.report.parts import LayerResult
from orchestrator.report.write import as_json
from orchestrator.tracking.base import Result, TrackedRun, Tracker, Tracking, Warn
from orchestrator.tracking.files import FileTracker
from orchestrator.tracking.numbers import Rows, layer_rows, result_tables, summary
from orchestrator.tracking.service import Service, ServiceTracker
from workers.checks import require
from workers.errors import first_line
from workers.records import MODEL

if TYPE_CHECKING:
    import wandb

START_SECONDS = 30  # that a W&B server may take to answer before the run continues without it
LONGEST_TAG = 64
NO_SIGN = r"[^\w.-]"  # of those that names of runs, artifacts and aliases may have


class Mode(Enum):
    AUTO = "auto"  # online if there are W&B credentials, else offline
    ONLINE = "online"
    OFFLINE = "offline"
    DISABLED = "disabled"


@dataclass
class WandB(Tracking):
    """Weights & Biases, beside ``metrics.jsonl``. Never prompts. If it fails, the run continues with one warning."""

    project: str
    entity: str | None
    mode: Mode
    group: str | None
    tags: list[str] = field(default_factory=list)
    log_model: bool = True
    upload_seconds: float = 600.0

    def __post_init__(self) -> None:
        require(bool(self.project), "tracking.project", "a name", self.project)
        require(self.upload_seconds > 0, "tracking.upload_seconds", "a positive number", self.upload_seconds)

    def start(self, run: TrackedRun, warn: Warn = warnings.warn) -> Tracker:
        files = FileTracker(run.name, run.id, run.directory)
        mode = self._mode(warn)
        if mode is Mode.DISABLED:
            return files
        tags = [tag[:LONGEST_TAG] for tag in dict.fromkeys((*self.tags, *run.tags)) if tag]
        settings = {"project": self.project, "entity": self.entity, "group": self.group or run.group, "tags": tags}
        # So a run that was interrupted continues. In a sweep of W&B, its agent has chosen another id, and W&B takes that one.
        identity = {"name": run.name, "id": re.sub(NO_SIGN, "-", run.id), "config": as_json(run.config), "dir": str(run.directory)}
        for attempt in dict.fromkeys((mode, Mode.OFFLINE)):
            try:
                remote = _open_remote(attempt, self.upload_seconds, **settings, **identity)
                return ServiceTracker(WandBService(remote, run, self.log_model), files, warn)
            except Exception as error:  # a failure of W&B must not end the run
                warn(f"W&B could not be started ({attempt.value}): {first_line(error)}")
        return files

    def _mode(self, warn: Warn) -> Mode:
        """Returns the mode to use on this machine: online needs credentials, and a prompt for them would block an unattended run."""
        if self.mode in (Mode.OFFLINE, Mode.DISABLED) or has_credentials():
            return Mode.ONLINE if self.mode is Mode.AUTO else self.mode
        if self.mode is Mode.ONLINE:
            warn("tracking.mode: online needs W&B credentials (WANDB_API_KEY or netrc), and there are none; tracking offline instead")
        return Mode.OFFLINE


def has_credentials() -> bool:
    """Returns whether W&B can log in without a prompt: with a key in the environment, or one for its host in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    candidates = [Path(os.environ["NETRC"])] if os.environ.get("NETRC") else [Path.home() / name for name in (".netrc", "_netrc")]
    for path in candidates:
        try:
            if host in netrc.netrc(str(path)).hosts:
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _open_remote(mode: Mode, upload_seconds: float, **identity: Any) -> wandb.Run:
    import wandb

    quiet = wandb.Settings(silent=True, console="off", init_timeout=START_SECONDS, finish_timeout=upload_seconds)
    common: dict[str, Any] = {"reinit": "create_new", "settings": quiet, "allow_val_change": True} | identity
    try:
        # Offline, W&B ignores resume with a warning; `wandb sync` joins the parts by their equal id.
        return wandb.init(mode="online", resume="allow", **common) if mode is Mode.ONLINE else wandb.init(mode="offline", **common)
    except Exception:
        wandb.teardown()  # its service keeps the id of a run that did not start; a new service does not
        raise


class WandBService(Service):
    """A run at W&B."""

    name = "W&B"

    def __init__(self, remote: wandb.Run, run: TrackedRun, log_model: bool) -> None:
        self.remote = remote
        self.run = run
        self.log_model = log_model

    @property
    def where(self) -> str:
        online = not self.remote.offline
        return self.remote.url if online and self.remote.url else f"{Path(self.remote.dir).parent} (send with `wandb sync`)"

    def log(self, stage: str, metrics: Mapping[str, Any]) -> None:
        self.remote.log({f"{stage}/{key}": value for key, value in metrics.items()})

    def curve(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Gives every curve its own x axis, so that trainings of different lengths do not share W&B's global step."""
        curve = f"{name}_curve"
        self.remote.define_metric(f"{curve}/step", hidden=True)
        self.remote.define_metric(f"{curve}/*", step_metric=f"{curve}/step")
        for line in lines:
            self.remote.log({f"{curve}/{key}": value for key, value in line.items()})

    def layers(self, layers: Sequence[LayerResult]) -> None:
        self.remote.log({"layers": table(layer_rows(layers))})

    def result(self, result: Result) -> None:
        """Sends the key numbers as the summary, the tables with charts of them, the report, and the model with its dense one."""
        rows = result_tables(result)
        if rows:
            self.remote.log({name: table(part) for name, part in rows.items()} | charts(rows))
        self.remote.summary.update(summary(result.report))
        self._send_report(result)
        if self.log_model:
            self._send_models(result)

    def end(self, finished: bool) -> None:
        self.remote.finish(exit_code=0 if finished else 1)

    def _send_report(self, result: Result) -> None:
        import wandb

        artifact = wandb.Artifact(f"{self.remote.id}-report", type="report")
        for path in result.files:
            artifact.add_file(str(path), policy="mutable")  # a rerun writes another one, so W&B needs a copy until it is sent
        self.remote.log_artifact(artifact)

    def _send_models(self, result: Result) -> None:
        """Logs the model, and the dense model that it comes from, by reference: only the checksum of its file.

        W&B refuses to mark inputs of runs that are offline, so the dense model of such a run is one of its outputs.
        """
        import wandb

        report = result.report
        dense = wandb.Artifact(f"dense-{result.dense_sha256[:8]}", type="model", metadata={"sha256": result.dense_sha256})
        dense.add_reference(result.dense.as_uri(), name=MODEL)
        if self.remote.offline:
            self.remote.log_artifact(dense)
        else:
            self.remote.use_artifact(dense)
        name = re.sub(NO_SIGN, "-", self.run.name)
        facts = {"fingerprint": report.fingerprint, "dense_sha256": result.dense_sha256, **summary(report)}
        model = wandb.Artifact(f"{name}-model", type="model", metadata=as_json(facts))
        model.add_file(str(result.model), policy="immutable")
        self.remote.log_artifact(model, aliases=["latest", name, report.fingerprint[:8]])


def table(rows: Rows) -> wandb.Table:
    import wandb

    return wandb.Table(columns=list(rows.columns), data=rows.rows)


def charts(tables: Mapping[str, Rows]) -> dict[str, Any]:
    """How busy each worker was, accuracy against size, and the staircases of operations."""
    import wandb

    drawn: dict[str, Any] = {}
    if "workers" in tables:
        drawn["worker_utilisation"] = wandb.plot.bar(table(tables["workers"]), "process", "busy", title="Busy fraction of each worker")
    if "pareto" in tables:
        title = "Accuracy against parameters that are not zero"
        drawn["accuracy_against_size"] = wandb.plot.scatter(table(tables["pareto"]), "nonzero_parameters", "accuracy", title=title)
    if "staircases" in tables:
        lines: dict[str, list[tuple[int, float]]] = {}
        for operation, _, units, others, ms in tables["staircases"].rows:
            lines.setdefault(operation if others is None else f"{operation}, {others} on the other axis", []).append((units, ms))
        xs, ys = ([[point[axis] for point in line] for line in lines.values()] for axis in (0, 1))
        drawn["staircase_lines"] = wandb.plot.line_series(xs, ys, keys=list(lines), title="Milliseconds against units", xname="units")
    return drawn

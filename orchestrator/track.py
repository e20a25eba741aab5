"""Sends the numbers of a run to ``metrics.jsonl`` in its directory and, with ``tracking=wandb``, to Weights & Biases."""

from __future__ import annotations

import json
import netrc
import os
import re
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from orchestrator.report.parts import LayerResult
from orchestrator.report.result import Report
from orchestrator.report.write import REPORT_FILES, as_json
from workers.checks import require

if TYPE_CHECKING:
    import wandb

START_SECONDS = 30  # that a W&B server may take to answer before the run continues without it
Warn = Callable[[str], Any]


class Tracker(ABC):
    """Tracks one run. Nothing here raises because a remote service failed."""

    @property
    @abstractmethod
    def where(self) -> str:
        """Where to see the numbers: an address or a path."""

    @abstractmethod
    def log(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """Logs the numbers of one stage; None means not measured."""

    @abstractmethod
    def curve(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Logs the progress lines of a training, each with its ``step``."""

    @abstractmethod
    def layers(self, layers: Sequence[LayerResult]) -> None:
        """Logs what was done to each layer."""

    @abstractmethod
    def finish(self, report: Report | None, artifacts: Sequence[Path], status: str) -> None:
        """Ends the run. ``report`` is None if the run failed before it had one. ``artifacts`` are files or directories, and ``status`` is
        ``finished`` or ``failed``."""


@dataclass
class Tracking(ABC):
    """Settings of a place to which numbers are sent."""

    @abstractmethod
    def start(self, name: str, run_id: str, config: dict[str, Any], directory: Path, warn: Warn = warnings.warn) -> Tracker:
        """Starts or continues the run ``run_id`` in ``directory``. ``warn`` gets a sentence about each problem."""


@dataclass
class Files(Tracking):
    """Only ``metrics.jsonl`` in the run's directory."""

    def start(self, name: str, run_id: str, config: dict[str, Any], directory: Path, warn: Warn = warnings.warn) -> Tracker:
        return FileTracker(name, run_id, directory)


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

    def finish(self, report: Report | None, artifacts: Sequence[Path], status: str) -> None:
        self.log("end", {"status": status, "artifacts": [str(path) for path in artifacts]})

    def _append(self, entries: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        now = time.time()
        text = "".join(json.dumps({"time": now, "stage": stage, "metrics": as_json(metrics)}) + "\n" for stage, metrics in entries)
        with self.path.open("ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a killed run wrote half a line: start a new one
                    text = "\n" + text
            file.write(text.encode())


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

    def start(self, name: str, run_id: str, config: dict[str, Any], directory: Path, warn: Warn = warnings.warn) -> Tracker:
        files = FileTracker(name, run_id, directory)
        mode = self._mode(warn)
        if mode is Mode.DISABLED:
            return files
        settings = {"project": self.project, "entity": self.entity, "group": self.group, "tags": list(self.tags)}
        identity = {"name": name, "id": re.sub(r"[^\w.-]", "-", run_id), "config": as_json(config), "dir": str(directory)}
        for attempt in dict.fromkeys((mode, Mode.OFFLINE)):
            try:
                return WandBTracker(_open_remote(attempt, self.upload_seconds, **settings, **identity), files, self.log_model, warn)
            except Exception as error:  # a failure of W&B must not end the run
                warn(f"W&B could not be started ({attempt.value}): {_first_line(error)}")
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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class WandBTracker(Tracker):
    """Sends everything to W&B after it is in the files. The first failure gives a warning and ends the sending."""

    def __init__(self, remote: wandb.Run, files: FileTracker, log_model: bool, warn: Warn) -> None:
        self.remote: wandb.Run | None = remote
        self.files = files
        self.log_model = log_model
        self.warn = warn
        online = not remote.offline
        self._where = remote.url if online and remote.url else f"{Path(remote.dir).parent} (send with `wandb sync`)"

    @property
    def where(self) -> str:
        return self._where

    def log(self, stage: str, metrics: Mapping[str, Any]) -> None:
        self.files.log(stage, metrics)
        self._send(lambda remote: remote.log({f"{stage}/{key}": value for key, value in metrics.items() if value is not None}))

    def curve(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        self.files.curve(name, lines)
        self._send(lambda remote: _send_curve(remote, f"{name}_curve", lines))

    def layers(self, layers: Sequence[LayerResult]) -> None:
        self.files.layers(layers)
        self._send(lambda remote: _send_layers(remote, layers))

    def finish(self, report: Report | None, artifacts: Sequence[Path], status: str) -> None:
        self.files.finish(report, artifacts, status)
        self._send(lambda remote: _send_outcome(remote, report, artifacts, self.log_model))
        self._send(lambda remote: remote.finish(exit_code=0 if status == "finished" else 1))
        self.remote = None

    def _send(self, action: Callable[[wandb.Run], Any]) -> None:
        if self.remote is None:
            return
        try:
            action(self.remote)
        except Exception as error:  # a failure of W&B must not end the run
            self.remote = None
            self.warn(f"W&B failed ({_first_line(error)}), so it gets no more numbers of this run; all of them are in {self.files.path}")


def _send_curve(remote: wandb.Run, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """Gives every curve its own x axis, so that trainings of different lengths do not share W&B's global step."""
    remote.define_metric(f"{name}/step", hidden=True)
    remote.define_metric(f"{name}/*", step_metric=f"{name}/step")
    for line in lines:
        remote.log({f"{name}/{key}": value for key, value in line.items() if value is not None})


def _send_layers(remote: wandb.Run, layers: Sequence[LayerResult]) -> None:
    import wandb

    columns: list[str | int] = ["layer", "rows", "columns", "block_size", "weights", "zeros", "sparsity", "predicted_loss_increase"]
    rows = [
        [
            layer.name,
            layer.rows,
            layer.columns,
            layer.block_size,
            layer.weights,
            layer.zeros,
            layer.sparsity,
            layer.predicted_loss_increase,
        ]
        for layer in layers
    ]
    remote.log({"layers": wandb.Table(columns=columns, data=rows)})


def _summary(report: Report) -> dict[str, Any]:
    """Returns the key numbers of a report, without those that were not measured."""
    numbers = {"sparsity": report.sparsity, "model_weights": report.model_weights, "pruned_weights": report.pruned_weights}
    numbers |= {f"loss_increase/{name}": value for name, value in as_json(report.loss_increase).items()}
    numbers |= {f"size/{name}": value for name, value in as_json(report.sizes or {}).items()}
    for which, model_size in (("dense", report.dense_size), ("final", report.final_size)):
        numbers |= {f"size/{which}_{name}": value for name, value in as_json(model_size or {}).items()}
    numbers |= dict(zip(("speed/dense_images_per_second", "speed/final_images_per_second"), report.speeds or (), strict=False))
    numbers |= {} if report.sparse_speed is None else {"speed/sparse_images_per_second": report.sparse_speed}
    numbers |= {f"seconds/{stage}": seconds for stage, seconds in report.stage_seconds.items()}
    return {name: value for name, value in numbers.items() if value is not None}


def _send_outcome(remote: wandb.Run, report: Report | None, artifacts: Sequence[Path], log_model: bool) -> None:
    """Sends the report's key numbers as the summary, its files as one artifact, and the model's as another."""
    import wandb

    if report is not None:
        remote.summary.update(_summary(report))
    report_files = [path for path in artifacts if path.name in REPORT_FILES]
    model_files = [path for path in artifacts if path.name not in REPORT_FILES] if log_model else []
    for kind, paths in (("report", report_files), ("model", model_files)):
        if not paths:
            continue
        # A rerun writes the same model but another report, so only the report needs a copy until it is sent.
        policy: Literal["mutable", "immutable"] = "mutable" if kind == "report" else "immutable"
        artifact = wandb.Artifact(f"{remote.id}-{kind}", type=kind)
        for path in paths:
            if path.is_dir():
                artifact.add_dir(str(path), name=path.name, policy=policy)
            else:
                artifact.add_file(str(path), policy=policy)
        remote.log_artifact(artifact)

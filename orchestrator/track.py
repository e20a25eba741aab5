"""Where the numbers of a run go: always to ``metrics.jsonl`` in its directory, and to Weights & Biases when asked."""

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

from orchestrator.report.result import LayerResult, Report
from orchestrator.report.write import REPORT_FILES, as_json
from workers.checks import require

if TYPE_CHECKING:
    import wandb

START_SECONDS = 30  # how long a W&B server may take to answer before the run goes on without it
Warn = Callable[[str], Any]


class Tracker(ABC):
    """A tracked run. Nothing here raises because a remote service failed."""

    @property
    @abstractmethod
    def where(self) -> str:
        """Where its numbers can be seen: an address or a path."""

    @abstractmethod
    def log(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """Numbers of one stage; None means not measured."""

    @abstractmethod
    def curve(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Progress lines of a training, each with its ``step``."""

    @abstractmethod
    def layers(self, layers: Sequence[LayerResult]) -> None:
        """What was done to each layer."""

    @abstractmethod
    def finish(self, report: Report | None, artifacts: Sequence[Path], status: str) -> None:
        """End the run. ``report`` is None if it failed before it had one; ``artifacts`` are files or directories; ``status`` is
        ``finished`` or ``failed``."""


@dataclass
class Tracking(ABC):
    """A place for numbers. Its fields are its settings."""

    @abstractmethod
    def start(self, name: str, run_id: str, config: dict[str, Any], directory: Path, warn: Warn = warnings.warn) -> Tracker:
        """Begin, or go on with, the run ``run_id``, which lives in ``directory``. ``warn`` takes one sentence about trouble."""


@dataclass
class Files(Tracking):
    """``metrics.jsonl`` in the run's directory, nothing else."""

    def start(self, name: str, run_id: str, config: dict[str, Any], directory: Path, warn: Warn = warnings.warn) -> Tracker:
        return FileTracker(name, run_id, directory)


class FileTracker(Tracker):
    """Appends one JSON object a line: ``time`` (seconds since the epoch), ``stage``, ``metrics``. A rerun appends to what is there."""

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
                if file.read(1) != b"\n":  # a killed run left half a line: keep ours apart from it
                    text = "\n" + text
            file.write(text.encode())


class Mode(Enum):
    AUTO = "auto"  # online when W&B credentials are found, else offline
    ONLINE = "online"
    OFFLINE = "offline"
    DISABLED = "disabled"


@dataclass
class WandB(Tracking):
    """Weights & Biases, beside ``metrics.jsonl``. Never asks anything; when it fails, the run goes on with one warning."""

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
            except Exception as error:  # whatever W&B does, the run must not end for it
                warn(f"W&B could not be started ({attempt.value}): {_first_line(error)}")
        return files

    def _mode(self, warn: Warn) -> Mode:
        """The mode to use here: online needs credentials, and asking for them would block an unattended run."""
        if self.mode in (Mode.OFFLINE, Mode.DISABLED) or has_credentials():
            return Mode.ONLINE if self.mode is Mode.AUTO else self.mode
        if self.mode is Mode.ONLINE:
            warn("tracking.mode=online, but there are no W&B credentials (WANDB_API_KEY or netrc): tracking offline, `wandb sync` sends it")
        return Mode.OFFLINE


def has_credentials() -> bool:
    """Whether W&B can log in by itself: a key in the environment, or one for its host in the netrc file."""
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
        # Offline, W&B ignores resume and warns of it; there the equal id makes `wandb sync` join the parts.
        return wandb.init(mode="online", resume="allow", **common) if mode is Mode.ONLINE else wandb.init(mode="offline", **common)
    except Exception:
        wandb.teardown()  # its service holds on to the id of a run that did not start; a new one does not know it
        raise


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class WandBTracker(Tracker):
    """Sends everything to W&B after it is safe in the files. The first failure is warned of and ends the sending."""

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
        except Exception as error:  # whatever W&B does, the run must not end for it
            self.remote = None
            self.warn(f"W&B failed and gets nothing more of this run ({_first_line(error)}); all numbers are in {self.files.path}")


def _send_curve(remote: wandb.Run, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """Every curve has its own x axis, so that trainings of different length do not share W&B's running step."""
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
    """A report's key numbers, without those that were not measured."""
    found = {"sparsity": report.sparsity, "model_weights": report.model_weights, "pruned_weights": report.pruned_weights}
    found |= {f"loss_increase/{name}": value for name, value in as_json(report.loss_increase).items()}
    found |= {f"size/{name}": value for name, value in as_json(report.sizes or {}).items()}
    for which, counted in (("dense", report.dense_size), ("final", report.final_size)):
        found |= {f"size/{which}_{name}": value for name, value in as_json(counted or {}).items()}
    found |= dict(zip(("speed/dense_images_per_second", "speed/final_images_per_second"), report.speeds or (), strict=False))
    found |= {f"seconds/{stage}": seconds for stage, seconds in report.stage_seconds.items()}
    return {name: value for name, value in found.items() if value is not None}


def _send_outcome(remote: wandb.Run, report: Report | None, artifacts: Sequence[Path], log_model: bool) -> None:
    """The report's key numbers as summary; its files as one artifact, the model's as another."""
    import wandb

    if report is not None:
        remote.summary.update(_summary(report))
    of_report = [path for path in artifacts if path.name in REPORT_FILES]
    of_model = [path for path in artifacts if path.name not in REPORT_FILES] if log_model else []
    for kind, paths in (("report", of_report), ("model", of_model)):
        if not paths:
            continue
        # A rerun writes the same model but another report: only the report needs W&B's own copy until it is sent.
        keeping: Literal["mutable", "immutable"] = "mutable" if kind == "report" else "immutable"
        artifact = wandb.Artifact(f"{remote.id}-{kind}", type=kind)
        for path in paths:
            if path.is_dir():
                artifact.add_dir(str(path), name=path.name, policy=keeping)
            else:
                artifact.add_file(str(path), policy=keeping)
        remote.log_artifact(artifact)

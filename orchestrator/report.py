"""What a run achieved and how it was measured: as values, as sentences, as a table, as JSON and as one page that opens offline."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from orchestrator.report_metrics import ACCURACIES
from orchestrator.report_page import page
from orchestrator.report_words import sentences, summary_table, verdict

__all__ = [
    "REPORT_FILES",
    "FileSizes",
    "GroupResult",
    "Int8Result",
    "LatencyResult",
    "LayerResult",
    "LossIncrease",
    "ModelSize",
    "Report",
    "RoundResult",
    "StageResult",
    "TaskRun",
    "plain",
    "sentences",
    "summary_table",
    "verdict",
    "write_report",
]

REPORT_FILES = ("report.html", "report.json")


@dataclass(frozen=True)
class StageResult:
    """A model of the run and how it did on the test data.

    ``name`` is ``dense``, ``one_shot`` or ``recovered``; ``seconds`` is the time of its evaluation. Keys of ``metrics``, absent or None
    where not measured: the fractions ``top1``, ``top5``, ``knn``, ``map``, ``map50`` and ``agreement`` (with the dense model), ``loss``,
    ``images_per_second``, and ``test_samples``, the number of images behind them.
    """

    name: str
    metrics: dict[str, float | None]
    seconds: float


@dataclass(frozen=True)
class LayerResult:
    """What was done to one layer.

    ``pruned`` counts its zeros. ``curve`` samples (sparsity, predicted cumulative loss increase) of this layer alone, sparsity ascending.
    ``notes`` are numbers of the pruner; a sentence speaks of ``blocks_with_raised_dampening``, the others stand in the table of layers.
    """

    name: str
    rows: int
    columns: int
    block_size: int
    weights: int
    pruned: int
    predicted_loss_increase: float | None
    curve: list[tuple[float, float]] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        return self.pruned / self.weights


@dataclass(frozen=True)
class GroupResult:
    """Units that can be taken out one by one, and how many stayed.

    ``kind`` says what a unit is: ``channel``, ``neuron``, ``head`` or ``stream`` (a channel of the residual stream). ``units``, and
    ``weights`` (of one unit, with what reads it), are those of the dense model. ``least`` is how many the target made the group keep.
    ``swept`` are the shares that would stay if 5, 10, .. 95 % of the dense model were taken out down the same ranking.
    """

    name: str
    kind: str
    units: int
    kept: int
    weights: int
    least: int = 0
    swept: list[float] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Of the units, those that stayed."""
        return self.kept / self.units


@dataclass(frozen=True)
class ModelSize:
    """``parameters``, and ``macs`` (multiply-adds of a forward pass of one sample, by torch's own counter)."""

    parameters: int
    macs: int


@dataclass(frozen=True)
class TaskRun:
    """One task as it was carried out. ``started`` is in seconds since the epoch; ``computed`` is False when it was read from the store."""

    verb: str
    what: str
    worker: str
    started: float
    seconds: float
    computed: bool


@dataclass(frozen=True)
class LossIncrease:
    """Rise of the calibration loss over the pruning: by the pruner's quadratic model, and by evaluation. ``unit`` names the loss."""

    predicted: float | None
    measured: float | None
    unit: str


@dataclass(frozen=True)
class LatencyResult:
    """A target of latency and how it was met: milliseconds of a forward pass of ``batch_size`` images, in turn with the dense model.

    ``predicted_ms`` is the sum over the table of operations, of which ``measured_sizes`` were measured of ``table_sizes`` that it tells of;
    the dense model took ``scale`` times what its operations take by themselves. ``spread`` is the standard error of ``measured_ms``, as a
    fraction. ``corrections`` counts how often the budget was corrected by what was measured.
    """

    runtime: str
    batch_size: int
    threads: int
    device: str
    dense_ms: float
    budget_ms: float
    predicted_ms: float
    measured_ms: float
    spread: float
    corrections: int
    scale: float
    measured_sizes: int
    table_sizes: int

    @property
    def removed(self) -> float:
        """Of the dense model's time."""
        return 1 - self.measured_ms / self.dense_ms


@dataclass(frozen=True)
class Int8Result:
    """The exported model in 8 bits, against itself in 32 bits, both in onnxruntime on the CPU: metrics, bytes, and time in turn."""

    runtime: str
    batch_size: int
    threads: int
    device: str
    metrics: dict[str, float]
    bytes: int
    float_bytes: int
    ms: float
    float_ms: float
    spread: float


@dataclass(frozen=True)
class RoundResult:
    """One of several rounds: what was ``asked`` for and reached, the model after pruning (in ``steps``) and after ``epochs`` of training.

    ``asked_of`` says what ``asked`` is a fraction of: of the prunable ``weights`` for a round that masks, of ``macs``, ``parameters``,
    ``structures`` or ``latency`` of the dense model for one that takes units out. ``sparsity`` is 0 for the latter. ``removed`` maps these
    (``latency`` where it was a target) to the fractions of the dense model that are gone after this round, those of earlier rounds
    included; it is empty until a round takes units out. ``loss_increase`` is the rise over the pruning of this round, from the model
    before it; ``seconds`` are those of all its stages.
    ``size`` is that of the model that the round leaves.
    """

    name: str
    pruner: str
    steps: int
    epochs: int
    asked: float
    sparsity: float
    pruned: StageResult
    recovered: StageResult | None
    loss_increase: LossIncrease
    seconds: float
    asked_of: str = "weights"
    removed: dict[str, float] = field(default_factory=dict)
    size: ModelSize | None = None

    @property
    def masks(self) -> bool:
        """Whether the round masked weights; else it took units out."""
        return self.asked_of == "weights"

    @property
    def reached(self) -> float | None:
        """The fraction to hold against ``asked``; None if it is not known."""
        return self.sparsity if self.masks else self.removed.get(self.asked_of)


@dataclass(frozen=True)
class FileSizes:
    """Bytes of the exported file against the same model stored dense."""

    dense_bytes: int
    file_bytes: int


@dataclass(frozen=True)
class Report:
    """A run. Weights are counted: prunable ones, the zeros among them, and all parameters of the dense model.

    ``rounds`` is empty where nobody asked for rounds; ``stages``, ``asked`` and ``loss_increase`` are those of the last one. ``layers``,
    ``prunable_weights`` and ``pruned_weights`` are those of the last one that masked weights: nothing where units were only taken out.

    ``groups`` are those of the dense model, after the whole run; empty if no round took units out. ``dense_size`` and ``final_size`` are
    equal where weights were only masked, None where they were not counted.

    ``asked["sparsity"]`` is the fraction of prunable weights that was asked for, ``asked["removed"]`` that of what is to be taken out of
    the dense model, with ``asked["of"]`` as in ``RoundResult.asked_of``; the other entries are printed as they are.
    ``curves`` maps a training ("dense", "recovery", in rounds "to_60/recovery") to its progress lines: epoch, step, steps, loss, lr,
    images_per_second.
    ``skipped`` maps what was left out ("calibration batches with non-finite values") to how many.
    """

    name: str
    fingerprint: str
    command: str
    experiment: dict[str, Any]
    asked: dict[str, Any]
    stages: list[StageResult]
    layers: list[LayerResult]
    prunable_weights: int
    pruned_weights: int
    model_weights: int
    loss_increase: LossIncrease
    rounds: list[RoundResult] = field(default_factory=list)
    sizes: FileSizes | None = None
    timeline: list[TaskRun] = field(default_factory=list)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    predicted_stage_seconds: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    groups: list[GroupResult] = field(default_factory=list)
    dense_size: ModelSize | None = None
    final_size: ModelSize | None = None
    latency: LatencyResult | None = None  # of the last round that took units out, if it had a target of latency
    int8: Int8Result | None = None
    memory_removed: float | None = None  # of the dense model's, if the last round that took units out had a target of it

    @property
    def took_units(self) -> bool:
        """Whether a round took units out whole."""
        return bool(self.groups)

    @property
    def masked_weights(self) -> bool:
        """Whether a round masked weights."""
        return self.prunable_weights > 0 or not self.took_units

    @property
    def removed(self) -> dict[str, float]:
        """Fractions of the dense model that are gone, where known: ``macs``, ``parameters``, ``structures``, ``latency``, ``memory``."""
        found: dict[str, float] = {}
        if self.dense_size is not None and self.final_size is not None:
            found["macs"] = 1 - self.final_size.macs / self.dense_size.macs
            found["parameters"] = 1 - self.final_size.parameters / self.dense_size.parameters
        if self.groups:
            found["structures"] = 1 - sum(group.kept for group in self.groups) / sum(group.units for group in self.groups)
        if self.latency is not None:
            found["latency"] = self.latency.removed
        if self.memory_removed is not None:
            found["memory"] = self.memory_removed
        return found

    @property
    def sparsity(self) -> float:
        """Zeros among the prunable weights."""
        return self.pruned_weights / self.prunable_weights if self.prunable_weights else 0.0

    @property
    def headline_metric(self) -> str | None:
        """The accuracy that verdicts speak of: top-1, else k-NN, else agreement; None if none was measured."""
        return next((key for key in ACCURACIES if any(stage.metrics.get(key) is not None for stage in self.stages)), None)

    def stage(self, name: str) -> StageResult | None:
        return next((stage for stage in self.stages if stage.name == name), None)

    def metric(self, stage_name: str, key: str) -> float | None:
        stage = self.stage(stage_name)
        return None if stage is None else stage.metrics.get(key)


def plain(value: Any) -> Any:
    """``value`` as what JSON knows. Numbers that JSON lacks become "nan", "inf" and "-inf"."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else str(float(value))
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value)


def write_report(report: Report, directory: Path) -> Path:
    """Write ``report.json`` and ``report.html`` (self-contained: it loads nothing) into ``directory``; returns the page's path."""
    from plotly.offline import get_plotlyjs

    directory.mkdir(parents=True, exist_ok=True)
    html_path, json_path = (directory / name for name in REPORT_FILES)
    html_path.write_text(page(report, verdict(report), sentences(report), get_plotlyjs()), encoding="utf-8")
    json_path.write_text(
        json.dumps(plain(report) | {"verdict": verdict(report), "sentences": sentences(report)}, indent=1), encoding="utf-8"
    )
    return html_path

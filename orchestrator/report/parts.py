"""The values that a report is made of: one class for each model, layer, group, round, task and measurement."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True)
class StageResult:
    """A model of the run and its metrics on the test data.

    ``name`` is ``dense``, ``one_shot`` or ``recovered``; ``seconds`` is the time of its evaluation. The keys of ``metrics``, absent or None
    where not measured, are the fractions ``top1``, ``top5``, ``knn``, ``map``, ``map50`` and ``agreement`` (with the dense model),
    ``loss``, ``images_per_second``, and the counts ``test_samples`` (all test images), ``labelled_samples`` (those behind an accuracy),
    ``top1_lost`` (those that only the dense model answers correctly) and ``top1_gained`` (those that only this model does).
    """

    name: str
    metrics: dict[str, float | None]
    seconds: float


@dataclass(frozen=True)
class LayerResult:
    """What was done to one layer.

    ``zeros`` counts its masked weights. ``curve`` samples (sparsity, predicted cumulative loss increase) of this layer alone, by ascending
    sparsity. ``notes`` are numbers from the pruner, such as ``blocks_with_raised_dampening``.
    """

    name: str
    rows: int
    columns: int
    block_size: int
    weights: int
    zeros: int
    predicted_loss_increase: float | None
    curve: list[tuple[float, float]] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        return self.zeros / self.weights


@dataclass(frozen=True)
class GroupResult:
    """A set of interchangeable units, and how many of them were kept.

    ``kind`` says what a unit is: ``channel``, ``neuron``, ``head`` or ``stream`` (a channel of the residual stream). ``units``, and
    ``weights`` (of one unit and of everything that reads it), are those of the dense model. The target let the group keep no fewer than
    ``least`` units. ``swept`` holds the fractions that would be kept if 5, 10, .. 95 % of the dense model were removed by the same ranking.
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
        """The fraction of units that was kept."""
        return self.kept / self.units


@dataclass(frozen=True)
class ModelSize:
    """``parameters``, and ``macs``: multiply-adds of a forward pass of one sample, by torch's own counter."""

    parameters: int
    macs: int


@dataclass(frozen=True)
class TaskRun:
    """One task as it was carried out. ``started`` is in seconds since the epoch; ``computed`` is False if it was read from the store."""

    verb: str
    what: str
    worker: str
    started: float
    seconds: float
    computed: bool


@dataclass(frozen=True)
class LossIncrease:
    """Increase of the calibration loss by the pruning: as the pruner's quadratic model predicts it, and as measured. ``loss`` names it."""

    predicted: float | None
    measured: float | None
    loss: str


SPARSE = "sparse"  # the runtime of masked models


@dataclass(frozen=True)
class LatencyResult:
    """A latency target and how it was met: milliseconds of a forward pass of ``batch_size`` images, timed in turn with the dense model.

    ``predicted_ms`` is the sum over the table of operations (in the runtime ``SPARSE``: of the layers that were masked), which covers
    ``table_sizes`` sizes, of which ``measured_sizes`` were timed; the dense model took ``scale`` times the sum of its operations.
    ``spread`` is the standard error of ``measured_ms`` as a fraction.
    ``corrections`` counts how often the budget was corrected by a measured time.
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
        """The fraction of the dense model's time that was removed."""
        return 1 - self.measured_ms / self.dense_ms


@dataclass(frozen=True)
class Int8Result:
    """The exported model in 8 bits against itself in 32 bits, both in onnxruntime on the CPU: metrics, bytes, and times in turn."""

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
class FileSizes:
    """Bytes of the exported file, and of the dense model's."""

    dense_bytes: int
    file_bytes: int


class Goal(NamedTuple):
    """A target: a ``fraction`` of the dense model, and ``of`` what (as in ``RoundResult.asked_of``)."""

    fraction: float
    of: str


@dataclass(frozen=True)
class RoundResult:
    """One of several rounds: its target, what it reached, and the model after pruning (in ``steps``) and after ``epochs`` of recovery.

    ``asked`` is a fraction of ``asked_of``: of the prunable ``weights`` in a round that masks, of the dense model's ``macs``,
    ``parameters``, ``structures`` (units), ``memory`` or ``latency`` in a round that removes units. ``sparsity`` is 0 in the latter.
    ``removed`` maps these quantities (``latency`` and ``memory`` where they were a target) to the fractions of the dense model that were
    removed by the end of the round; it is empty until a round removes units. ``loss_increase`` is that of the round's pruning, from the
    model before the round; ``seconds`` is the time of all its stages; ``size`` is that of the model that the round leaves.
    """

    name: str
    pruner: str
    steps: int
    epochs: int
    asked: float
    sparsity: float
    after_pruning: StageResult
    after_recovery: StageResult | None
    loss_increase: LossIncrease
    seconds: float
    asked_of: str = "weights"
    removed: dict[str, float] = field(default_factory=dict)
    size: ModelSize | None = None

    @property
    def masks(self) -> bool:
        """Whether the round masked weights; otherwise it removed units."""
        return self.asked_of == "weights"

    @property
    def reached(self) -> float | None:
        """The fraction to compare with ``asked``; None if it is not known."""
        return self.sparsity if self.masks else self.removed.get(self.asked_of)

    @property
    def numbers(self) -> dict[str, Any]:
        """The round as flat numbers, for a tracker."""
        asked = {"sparsity_asked": self.asked, "sparsity": self.sparsity} if self.masks else {f"removed_{self.asked_of}_asked": self.asked}
        after = {"pruned": self.after_pruning, "recovered": self.after_recovery}
        metrics = {f"{when}_{key}": value for when, stage in after.items() if stage for key, value in stage.metrics.items()}
        return {
            "round": self.name,
            "seconds": self.seconds,
            **asked,
            **{f"removed_{of}": value for of, value in self.removed.items()},
            **({} if self.size is None else vars(self.size)),
            **{key: value for key, value in metrics.items() if not key.endswith(("_samples", "_lost", "_gained"))},
            "loss_increase_predicted": self.loss_increase.predicted,
            "loss_increase_measured": self.loss_increase.measured,
        }

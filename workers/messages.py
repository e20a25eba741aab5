"""What travels between the driver and the workers: tasks down, records up. Small, frozen, picklable; tensors stay in files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.data.base import Dataset
from workers.latency import Latency
from workers.losses import Loss
from workers.models.base import Layer, ModelFamily, Output
from workers.pruners.base import WeightPruner
from workers.pruners.statistics import Statistic
from workers.pruners.units import UnitPruner
from workers.recovery import Recovery


@dataclass(frozen=True)
class Record:
    """A finished result. Its files lie beside ``record.json`` in ``directory``; ``files`` maps their names to SHA-256 digests.

    ``started`` is in seconds since the epoch; ``seconds`` is wall time; ``numbers`` is what the driver needs of the result; ``peak_bytes``
    is the most memory that its worker held (see ``workers.memory``), None if that was not watched.
    """

    verb: str
    fingerprint: str
    directory: Path
    files: dict[str, str]
    numbers: dict[str, Any]
    worker: str
    started: float
    seconds: float
    peak_bytes: int | None = None
    computed: bool = True  # False when it was read from the store instead

    def path(self, name: str) -> Path:
        return self.directory / name


@dataclass(frozen=True)
class Destination:
    """Where a result goes: a directory of the store and the fingerprint of everything the result depends on."""

    fingerprint: str
    directory: Path


@dataclass(frozen=True)
class ImportTask:
    """Bring a checkpoint into the store (or draw initial weights from ``seed``) as a model file."""

    family: ModelFamily
    fresh: bool
    seed: int
    to: Destination


@dataclass(frozen=True)
class CollectTask:
    """Partial statistics of some layers over one shard of the calibration data; one result per layer."""

    model: Path
    data: Dataset
    statistic: Statistic
    layers: tuple[Layer, ...]
    loss: Loss
    shard: int
    seed: int
    to: tuple[Destination, ...]


@dataclass(frozen=True)
class ScoreTask:
    """Merge a layer's partial statistics in shard order and find what its weights are worth."""

    model: Path
    pruner: WeightPruner
    layer: Layer
    partials: tuple[Record, ...]
    to: Destination


@dataclass(frozen=True)
class CountTask:
    """Histogram of a layer's scores: of their high 16 bits, or of the low 16 bits inside one high bin."""

    scores: Record
    high_bin: int | None


@dataclass(frozen=True)
class SolveTask:
    """Prune the ``pruned`` cheapest units of a layer and re-fit the others."""

    model: Path
    pruner: WeightPruner
    layer: Layer
    partials: tuple[Record, ...]
    scores: Record
    pruned: int
    to: Destination


@dataclass(frozen=True)
class MeasureTask:
    """Sums over one of ``shards`` parts of the calibration data, of all units of a model that may go."""

    model: Path
    data: Dataset
    pruner: UnitPruner
    loss: Loss
    shard: int
    shards: int
    seed: int
    to: Destination


@dataclass(frozen=True)
class RankTask:
    """Add the sums of all shards in order, and rank the units."""

    model: Path
    input_shape: tuple[int, int, int]
    pruner: UnitPruner
    sums: tuple[Record, ...]
    to: Destination


@dataclass(frozen=True)
class ShrinkTask:
    """The model without the units that were not chosen to stay. The files of ``chosen`` say which do."""

    model: Path
    input_shape: tuple[int, int, int]
    pruner: UnitPruner
    chosen: Record
    to: Destination


@dataclass(frozen=True)
class TimeOperationTask:
    """Time operation number ``operation`` of a forward pass with so many ``units`` left on each of its axes."""

    family: ModelFamily
    input_shape: tuple[int, int, int]
    streams: bool
    latency: Latency
    operation: int
    units: tuple[int, ...]
    to: Destination


@dataclass(frozen=True)
class TimeModelTask:
    """Time a forward pass of a model, whose weights do not matter."""

    family: ModelFamily
    input_shape: tuple[int, int, int]
    latency: Latency
    to: Destination


@dataclass(frozen=True)
class CompareTimeTask:
    """Time a forward pass of a model in turn with that of another, ``beside``. Weights do not matter. Of the same, several ``reading``s."""

    family: ModelFamily
    beside: ModelFamily
    input_shape: tuple[int, int, int]
    latency: Latency
    reading: int
    to: Destination


@dataclass(frozen=True)
class QuantiseTask:
    """Make 8 bits of a model for onnxruntime, judge it on the test split, and time it."""

    model: Path
    data: Dataset
    latency: Latency
    dense_outputs: tuple[Record, ...]
    to: Destination


@dataclass(frozen=True)
class JoinTask:
    """Put solved layers into a model."""

    model: Path
    solutions: tuple[Record, ...]
    to: Destination


@dataclass(frozen=True)
class EvaluateTask:
    """Outputs of a model on one shard of a split."""

    model: Path
    data: Dataset
    split: str
    shard: int
    shards: int
    timed: bool  # whether to measure images per second, which takes several passes
    to: Destination


@dataclass(frozen=True)
class CompareTask:
    """Real rise of the calibration loss from the dense to the pruned model over one of ``shards`` parts of the calibration batches."""

    dense: Path
    pruned: Path
    data: Dataset
    loss: Loss
    shard: int
    shards: int
    to: Destination


@dataclass(frozen=True)
class AssessTask:
    """Metrics of a model from its outputs, beside those of the dense model. Keys of the dicts are splits."""

    outputs: dict[str, tuple[Record, ...]]
    dense_outputs: dict[str, tuple[Record, ...]]
    output: Output  # what they are
    to: Destination


@dataclass(frozen=True)
class RecoverTask:
    """Train a model, keeping its zeros. Carried out by a gang of ``recovery.ranks`` processes."""

    model: Path
    teacher: Path | None
    data: Dataset
    recovery: Recovery
    seed: int
    progress: Path  # a jsonl file that rank 0 appends to
    to: Destination

"""The tasks that the driver sends to the workers. They are small, frozen and picklable; tensors stay in files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workers.collect.statistic import Statistic
from workers.data.base import Dataset
from workers.latency import Latency
from workers.losses import Loss
from workers.models.base import Layer, ModelFamily, Output
from workers.precision import Precision
from workers.pruners.base import WeightPruner
from workers.pruners.units import UnitPruner
from workers.records import (
    ChosenUnits,
    Destination,
    LayerScores,
    LayerSolution,
    Outputs,
    PairedInputs,
    PartialMoment,
    PartialSums,
    Record,
)
from workers.training.settings import Training


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
    precision: Precision
    shard: int
    seed: int
    to: tuple[Destination, ...]

    @property
    def results(self) -> Iterator[tuple[Layer, Destination]]:
        """Each layer, and where its result goes."""
        return zip(self.layers, self.to, strict=True)


@dataclass(frozen=True)
class ScoreTask:
    """Merge a layer's partial statistics in shard order and find what its weights are worth."""

    model: Path
    pruner: WeightPruner
    layer: Layer
    partials: tuple[Record[PartialMoment], ...]
    to: Destination


@dataclass(frozen=True)
class CountTask:
    """Histogram of a layer's scores: of their high 16 bits, or of the low 16 bits inside one high bin."""

    scores: Record[LayerScores]
    high_bin: int | None


@dataclass(frozen=True)
class PredictTask:
    """The loss of removing the cheapest tiles of a layer, for several ``counts`` of them."""

    scores: Record[LayerScores]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class SolveTask:
    """Mask the ``tiles`` cheapest tiles of a layer and re-fit the others."""

    model: Path
    pruner: WeightPruner
    layer: Layer
    partials: tuple[Record[PartialMoment], ...]
    scores: Record[LayerScores]
    tiles: int
    to: Destination


@dataclass(frozen=True)
class CollectPairsTask:
    """Inputs of some layers in a model and in the same model with ``solutions``, over the first ``samples`` of one shard.

    One result per layer.
    """

    model: Path
    solutions: tuple[Record[LayerSolution], ...]
    data: Dataset
    samples: int
    layers: tuple[Layer, ...]
    loss: Loss
    precision: Precision
    shard: int
    to: tuple[Destination, ...]

    @property
    def results(self) -> Iterator[tuple[Layer, Destination]]:
        """Each layer, and where its result goes."""
        return zip(self.layers, self.to, strict=True)


@dataclass(frozen=True)
class RefitTask:
    """Merge the paired inputs of a layer in shard order and fit the weights that its solution keeps."""

    model: Path
    pruner: WeightPruner
    layer: Layer
    pairs: tuple[Record[PairedInputs], ...]
    solution: Record[LayerSolution]
    to: Destination


@dataclass(frozen=True)
class CollectUnitsTask:
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
    sums: tuple[Record[PartialSums], ...]
    to: Destination


@dataclass(frozen=True)
class ShrinkTask:
    """The model without the units that were not chosen to stay. The files of ``chosen`` say which do."""

    model: Path
    input_shape: tuple[int, int, int]
    pruner: UnitPruner
    chosen: Record[ChosenUnits]
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
class TimeLayersTask:
    """Time some layers of a model with random zeros, at several sparsities."""

    family: ModelFamily
    input_shape: tuple[int, int, int]
    layers: tuple[str, ...]
    sparsities: tuple[float, ...]
    latency: Latency
    to: Destination


@dataclass(frozen=True)
class TimeSparseTask:
    """Time a model in the sparse runtime in turn with the dense model, ``beside``: as it is, or with the masks of layers.

    ``masks`` has the layers, the scores of their tiles, and how many of these are masked.
    """

    model: Path
    beside: Path
    input_shape: tuple[int, int, int]
    pruner: WeightPruner
    masks: tuple[tuple[Layer, Record[LayerScores], int], ...]
    latency: Latency
    to: Destination


@dataclass(frozen=True)
class QuantiseTask:
    """Make 8 bits of a model for onnxruntime, judge it on the test split, and time it."""

    model: Path
    data: Dataset
    latency: Latency
    dense_outputs: tuple[Record[Outputs], ...]
    to: Destination


@dataclass(frozen=True)
class JoinTask:
    """Put solved layers into a model."""

    model: Path
    solutions: tuple[Record[LayerSolution], ...]
    to: Destination


@dataclass(frozen=True)
class EvaluateTask:
    """Outputs of a model on one shard of a split."""

    model: Path
    data: Dataset
    precision: Precision
    split: str
    shard: int
    shards: int
    timed: bool  # whether to measure images per second, which takes several passes
    dense: Path | None  # the model that is timed in turn; None if it is this one
    to: Destination


@dataclass(frozen=True)
class CompareTask:
    """The rise of the calibration loss from one model to another, over one of ``shards`` parts of the calibration batches."""

    before: Path
    after: Path
    data: Dataset
    loss: Loss
    precision: Precision
    shard: int
    shards: int
    to: Destination


@dataclass(frozen=True)
class AssessTask:
    """Metrics of a model from its outputs, beside those of the dense model. Keys of the dicts are splits."""

    outputs: dict[str, tuple[Record[Outputs], ...]]
    dense_outputs: dict[str, tuple[Record[Outputs], ...]]
    output: Output  # what they are
    to: Destination


@dataclass(frozen=True)
class TrainTask:
    """Train a model, keeping its zeros. Carried out by a gang of ``training.ranks`` processes."""

    model: Path
    teacher: Path | None
    data: Dataset
    training: Training
    seed: int
    progress: Path  # a jsonl file that rank 0 appends to
    to: Destination

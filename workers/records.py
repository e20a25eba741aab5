"""Results as the store keeps them: for each verb the numbers that the driver needs, and the file that holds the tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from workers.latency import Comparison, Timing

MODEL = "model.safetensors"


@dataclass(frozen=True)
class Numbers:
    """What a verb tells the driver. ``file`` is the name of its result's file, "" if it leaves none.

    ``intermediate`` says that the file is only read on the way to a model: ``store.keep=records`` deletes it when a run has ended.
    """

    verb: ClassVar[str]
    file: ClassVar[str] = ""
    intermediate: ClassVar[bool] = False


@dataclass(frozen=True)
class ModelNumbers(Numbers):
    """Of a verb that leaves a model."""

    file = MODEL


@dataclass(frozen=True)
class ImportedModel(ModelNumbers):
    """``notes`` are sentences about what was passed over in the checkpoint."""

    verb = "import"
    notes: list[str]


@dataclass(frozen=True)
class TrainedModel(ModelNumbers):
    """What happened in a training, across resumptions. ``final_loss`` is the last finite one."""

    verb = "train"
    steps: int
    skipped_steps: int
    final_loss: float
    images_per_second: float
    seconds: float
    epochs_resumed_from: int
    ranks: int
    zero_stage: int


@dataclass(frozen=True)
class JoinedModel(ModelNumbers):
    """A model with its solved layers."""

    verb = "join"


@dataclass(frozen=True)
class SmallerModel(ModelNumbers):
    """A model without the units that were removed."""

    verb = "shrink"


@dataclass(frozen=True)
class PartialMoment(Numbers):
    """The statistic of a layer over one shard: a sum over ``count`` gradients or inputs; ``skipped`` batches were not finite."""

    verb = "collect"
    file = "statistic.safetensors"
    intermediate = True
    layer: str
    shard: int
    count: int
    skipped: int


@dataclass(frozen=True)
class PairedInputs(PartialMoment):
    """The inputs of a layer in the dense and in the pruned model: sums over one shard of ``count`` pairs."""

    verb = "collect_pairs"


@dataclass(frozen=True)
class LayerScores(Numbers):
    """What the weights of a layer are worth. ``tiles`` counts those of its pattern, ``removable`` those that are not zero already.

    ``curve`` samples (sparsity, smallest predicted rise of the loss) of this layer alone; ``notes`` are the pruner's.
    """

    verb = "score"
    file = "scores.safetensors"
    intermediate = True
    layer: str
    zeros: int
    tiles: int
    removable: int
    curve: list[tuple[float, float]]
    notes: dict[str, float]


@dataclass(frozen=True)
class LayerCounts(Numbers):
    """How many more ``tiles`` each layer loses, by name."""

    verb = "allocate"
    tiles: dict[str, int]


@dataclass(frozen=True)
class LayerSolution(Numbers):
    """The mask and the re-fitted weights of a layer. ``predicted_loss`` is the predicted rise, None if the pruner predicts none."""

    verb = "solve"
    file = "solution.safetensors"
    intermediate = True
    layer: str
    zeros: int
    predicted_loss: float | None


@dataclass(frozen=True)
class RefittedLayer(LayerSolution):
    """A solution with its kept weights fitted once more, to the inputs that the pruned model gives the layer."""

    verb = "refit"


@dataclass(frozen=True)
class PartialSums(Numbers):
    """Sums over one shard for all units of a model."""

    verb = "collect_units"
    file = "sums.safetensors"
    intermediate = True
    shard: int
    samples: int
    batches: int
    skipped: int


@dataclass(frozen=True)
class UnitRanking(Numbers):
    """The order in which units are removed. ``notes`` are the pruner's."""

    verb = "rank"
    file = "ranking.safetensors"
    intermediate = True
    units: int
    notes: dict[str, float]


@dataclass(frozen=True)
class ChosenUnits(Numbers):
    """The units that are kept, counted by group, where the cost may be ``budget`` of what was ``dense`` before anything was removed.

    ``swept`` are the counts by group that a sweep of targets would keep. ``out_of_reach`` says what keeps the target from being met, an
    entry for each cost (see ``allocation.reach``). ``predicted`` is the cost by the table of latencies, and ``table`` says how that was
    measured; both are None where costs are counted.
    """

    verb = "choose"
    file = "kept.safetensors"
    kept: dict[str, int]
    dense: float
    budget: float
    swept: dict[str, list[int]]
    out_of_reach: list[dict[str, Any]]
    predicted: float | None = None
    table: dict[str, float] | None = None


@dataclass(frozen=True)
class Machine:
    """Where a time was measured."""

    device: str
    torch: str
    threads: str
    host: str


@dataclass(frozen=True)
class OperationTime(Numbers, Machine, Timing):
    """The time of one ``operation``, which its text describes."""

    verb = "time_operation"
    operation: str


@dataclass(frozen=True)
class ModelTime(Numbers, Machine, Timing):
    """The time of a forward pass."""

    verb = "time_model"


@dataclass(frozen=True)
class ModelComparison(Numbers, Machine, Comparison):
    """The time of a forward pass in turn with that of another model."""

    verb = "compare_time"


@dataclass(frozen=True)
class LayerTimes(Numbers, Machine):
    """Milliseconds of each layer at several sparsities, the first of which is 0; layers that are equal share their ``measured`` sizes."""

    verb = "time_layers"
    ms: dict[str, list[float]]
    measured: int


@dataclass(frozen=True)
class SparseComparison(Numbers, Machine, Comparison):
    """The time of a forward pass in the sparse runtime in turn with that of the dense model."""

    verb = "time_sparse"


@dataclass(frozen=True)
class FittedCounts(LayerCounts):
    """Counts for a budget of latency, and the sparsity of each layer.

    ``dense``, ``budget``, ``predicted`` and ``measured`` (before any weight is fitted) are milliseconds; ``table`` says how the times of
    layers were measured (as in ``ChosenUnits``).
    """

    verb = "fit"
    sparsities: dict[str, float]
    dense: float
    budget: float
    predicted: float
    measured: float
    corrections: int
    table: dict[str, float]


@dataclass(frozen=True)
class Outputs(Numbers):
    """Outputs for ``samples`` of a split.

    ``speeds`` are images per second by name, measured in turn: those of the model, of the dense model, and of the sparse runtime, which
    ``sparse_layers`` are faster with. Empty where nothing was measured. ``pace``: see ``evaluation.Pace``.
    """

    verb = "evaluate"
    file = "outputs.safetensors"
    samples: int
    speeds: dict[str, float]
    sparse_layers: int
    pace: dict[str, Any]


@dataclass(frozen=True)
class MeasuredIncrease(Numbers):
    """The real rise of the calibration loss, summed over ``samples``."""

    verb = "compare"
    total: float
    samples: int


@dataclass(frozen=True)
class Metrics(Numbers):
    """Metrics of a model, and how long its evaluation took."""

    verb = "assess"
    metrics: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Int8Model(Numbers, Comparison):
    """A model in 8 bits beside itself in 32 bits: metrics, the bytes of both files, and their time in turn."""

    verb = "quantise"
    file = "model.int8.onnx"
    metrics: dict[str, float]
    bytes: int
    float_bytes: int


KINDS: dict[str, type[Numbers]] = {
    kind.verb: kind for kind in list(vars().values()) if isinstance(kind, type) and issubclass(kind, Numbers) and "verb" in vars(kind)
}

Kind_co = TypeVar("Kind_co", bound=Numbers, covariant=True)


@dataclass(frozen=True)
class Record(Generic[Kind_co]):
    """A finished result. Its files lie beside ``record.json`` in ``directory``; ``files`` maps their names to SHA-256 digests.

    ``started`` is in seconds since the epoch; ``seconds`` is wall time; ``numbers`` is what the driver needs of the result; ``peak_bytes``
    is the most memory that its worker held (see ``workers.memory``), None if that was not watched. ``freed``: its files were deleted on
    purpose, and only the record was kept (see ``workers.files.free``).
    """

    fingerprint: str
    directory: Path
    files: dict[str, str]
    numbers: Kind_co
    worker: str
    started: float
    seconds: float
    peak_bytes: int | None = None
    computed: bool = True  # False when it was read from the store instead
    freed: bool = False

    @property
    def verb(self) -> str:
        return self.numbers.verb

    @property
    def file(self) -> Path:
        """The file that holds the result's tensors."""
        return self.directory / self.numbers.file


@dataclass(frozen=True)
class Destination:
    """Where a result goes: a directory of the store and the fingerprint of everything the result depends on."""

    fingerprint: str
    directory: Path

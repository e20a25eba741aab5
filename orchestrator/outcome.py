"""The results of the pipeline's stages, as records: what the report is made of."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.config import Round
from orchestrator.planning.costs import PlannedLayer
from workers.models.base import Layer, ModelFamily
from workers.pruners.base import WeightPruner
from workers.pruners.units import UnitPruner
from workers.records import (
    ChosenUnits,
    FittedCounts,
    Int8Model,
    LayerScores,
    LayerSolution,
    Metrics,
    ModelComparison,
    ModelNumbers,
    PartialMoment,
    PartialSums,
    Record,
    SparseComparison,
    TrainedModel,
    UnitRanking,
)


@dataclass(frozen=True)
class TimedStep:
    """How a step met its latency budget: the time of the smaller model in turn with that of the dense one, and the corrections it took.

    Milliseconds are those of the machine during these turns: budget and prediction count as fractions of the dense model's time.
    """

    chosen: ChosenUnits | FittedCounts
    comparison: ModelComparison | SparseComparison
    corrections: int = 0

    @property
    def dense_ms(self) -> float:
        return self.comparison.beside_ms

    @property
    def budget_ms(self) -> float:
        return self.dense_ms * self.chosen.budget / self.chosen.dense

    @property
    def predicted_ms(self) -> float:
        assert self.chosen.predicted is not None
        return self.dense_ms * self.chosen.predicted / self.chosen.dense

    @property
    def measured_ms(self) -> float:
        return self.dense_ms * self.comparison.ratio

    @property
    def excess(self) -> float:
        """How far the measured time is over the budget, as a fraction of it; negative below it."""
        return self.measured_ms / self.budget_ms - 1


@dataclass(frozen=True)
class MaskingStep:
    """One pass from calibration to a sparser model: records by layer, and the model."""

    partials: dict[str, list[Record[PartialMoment]]]
    scores: dict[str, Record[LayerScores]]
    solutions: dict[str, Record[LayerSolution]]
    model: Record[ModelNumbers]
    timed: TimedStep | None = None


@dataclass(frozen=True)
class Masking:
    """How a round masked weights: its pruner, the layers that it pruned, those that the pattern left dense, and its steps."""

    pruner: WeightPruner
    layers: tuple[PlannedLayer, ...]
    unfit: tuple[Layer, ...]
    steps: list[MaskingStep]


@dataclass(frozen=True)
class RemovalStep:
    """One pass from calibration to a smaller model: sums by shard, the ranking, the units that are kept, and the model."""

    sums: list[Record[PartialSums]]
    ranking: Record[UnitRanking]
    chosen: Record[ChosenUnits]
    model: Record[ModelNumbers]
    timed: TimedStep | None = None

    @property
    def excess(self) -> float:
        """How far the measured time is over the budget; only of a step that was timed."""
        assert self.timed is not None
        return self.timed.excess


@dataclass(frozen=True)
class Removal:
    """How a round removed units: its pruner, and its steps."""

    pruner: UnitPruner
    steps: list[RemovalStep]


@dataclass(frozen=True)
class Increase:
    """The measured rise of the calibration ``loss`` (in words, with its unit) over the pruning of a round; None if it was not measured."""

    measured: float | None
    loss: str


@dataclass(frozen=True)
class RoundOutcome:
    """A round: its settings, how it pruned, the family of the model that it leaves, and that model before and after its training."""

    name: str
    settings: Round
    pruned: Masking | Removal
    family: ModelFamily
    increase: Increase
    one_shot: Record[Metrics]
    trained: Record[TrainedModel] | None
    recovered: Record[Metrics] | None
    stopped: bool = False  # before its training, since the one-shot accuracy was below ``stop_below``; the run ended with this round

    @property
    def model(self) -> Record[ModelNumbers]:
        """The model that the round leaves."""
        return self.trained or self.pruned.steps[-1].model


@dataclass(frozen=True)
class Outcome:
    """A run: the dense model with its training, if it was trained here, and its metrics; the rounds; and the final model in 8 bits."""

    dense: Record[ModelNumbers]
    trained: Record[TrainedModel] | None
    assessed: Record[Metrics]
    rounds: list[RoundOutcome]  # all of them, unless the last one was stopped
    quantised: Record[Int8Model] | None = None

    @property
    def model(self) -> Record[ModelNumbers]:
        """The model that the run leaves."""
        return self.rounds[-1].model


def removals(rounds: list[RoundOutcome]) -> list[Removal]:
    """How those of ``rounds`` that removed units did so."""
    return [part.pruned for part in rounds if isinstance(part.pruned, Removal)]

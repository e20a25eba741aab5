"""What the pipeline leaves: the records of each stage, for the report."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.run import Run
from workers.pruners.base import WeightPruner
from workers.records import Record


@dataclass(frozen=True)
class Step:
    """What one pass from calibration to a sparser model left: records by layer, and the model."""

    partials: dict[str, list[Record]]
    scores: dict[str, Record]
    solutions: dict[str, Record]
    model: Record


@dataclass(frozen=True)
class UnitStep:
    """What one pass from measuring units to a smaller model left: records by shard, the ranking, which units stayed, and the model.

    For a target of latency also the time of the smaller model, in turn with the dense one, and how often the budget was corrected by that.
    Milliseconds are those of the machine in these turns: what was asked for and predicted counts as a fraction of the dense model's time.
    """

    sums: list[Record]
    ranking: Record
    chosen: Record
    model: Record
    timed: Record | None = None
    corrections: int = 0

    @property
    def dense_ms(self) -> float:
        assert self.timed is not None
        return self.timed.numbers["beside_ms"]

    @property
    def budget_ms(self) -> float:
        return self.dense_ms * self.chosen.numbers["budget"] / self.chosen.numbers["dense"]

    @property
    def predicted_ms(self) -> float:
        return self.dense_ms * self.chosen.numbers["predicted"] / self.chosen.numbers["dense"]

    @property
    def measured_ms(self) -> float:
        assert self.timed is not None
        return self.dense_ms * self.timed.numbers["ratio"]

    @property
    def off(self) -> float:
        """How far the measured time is from the budget, as a fraction of it."""
        return self.measured_ms / self.budget_ms - 1


@dataclass(frozen=True)
class RoundOutcome:
    """A round: its settings and plan, its steps (all of one kind), and what was measured of the model before and after its training."""

    run: Run
    steps: list[Step] | list[UnitStep]
    measured: float | None  # rise of the calibration loss over its pruning
    measured_unit: str
    one_shot: Record
    trained: Record | None
    recovered: Record | None

    @property
    def masks(self) -> bool:
        """Whether it masked weights; else it took units out."""
        return isinstance(self.run.experiment.pruner, WeightPruner)

    @property
    def weight_steps(self) -> list[Step]:
        return [step for step in self.steps if isinstance(step, Step)]

    @property
    def unit_steps(self) -> list[UnitStep]:
        return [step for step in self.steps if isinstance(step, UnitStep)]

    @property
    def model(self) -> Record:
        """What the round leaves."""
        return self.trained or self.steps[-1].model


@dataclass(frozen=True)
class Outcome:
    """Everything a report is made of: records of each stage."""

    dense: Record
    trained: Record | None  # the training of the dense model, if it was trained here
    assessed: Record  # metrics of the dense model
    rounds: list[RoundOutcome]
    quantised: Record | None = None  # the model that the run leaves in 8 bits

    @property
    def model(self) -> Record:
        """What the run leaves."""
        return self.rounds[-1].model

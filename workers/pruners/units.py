"""The interface of a pruner of whole units, its target, and its results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from workers.checks import require
from workers.errors import SecateurError
from workers.losses import Loss
from workers.models.base import Layer
from workers.pruners.base import Goal, Pruner

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workers.data.base import Batch
    from workers.models.structures.groups import Group


class Of(Enum):
    """The cost of the dense model that a target is a fraction of."""

    STRUCTURES = "structures"  # units of the kinds that may be removed
    PARAMETERS = "parameters"
    MACS = "macs"  # multiply-adds of a forward pass
    MEMORY = "memory"  # bytes of the parameters, and of everything that a forward pass of one sample writes
    LATENCY = "latency"  # milliseconds of a forward pass, timed as the settings of latency say


class Solver(Enum):
    """How the units that are kept are chosen."""

    RANKING = "ranking"  # removes units in the order of the ranking until the target is reached
    EXACT = "exact"  # the widths with the most importance within the budget: a knapsack, exact if no product has widths of two groups
    GREEDY = "greedy"  # the knapsack as the HALP paper solves it, item by item
    UNIFORM = "uniform"  # the same fraction of every group: a narrower model, for comparison
    JOINT = "joint"  # the knapsack with products of widths in its cost, by constraint programming; for small models


@dataclass
class UnitTarget:
    """How much of the dense model is removed, and how much every group keeps."""

    removed: float
    of: Of
    min_units: int
    min_fraction: float
    round_to: int = 1  # widths (channels, neurons, heads times their channels) remain multiples of this, where the dense model's are
    solver: Solver = Solver.RANKING
    within: float | None = None  # for latency: time the smaller model, and correct the budget until it is met to within this fraction
    also: dict[str, float] = field(default_factory=dict)  # further budgets that hold at once: fraction to remove, by kind of cost

    def __post_init__(self) -> None:
        require(0.0 <= self.removed < 1.0, "pruner.target.removed", "a fraction in [0, 1)", self.removed, "0.5 removes half")
        require(self.min_units >= 0, "pruner.target.min_units", "0 or more units", self.min_units)
        require(0.0 <= self.min_fraction <= 1.0, "pruner.target.min_fraction", "a fraction in [0, 1]", self.min_fraction)
        require(self.round_to >= 1, "pruner.target.round_to", "at least 1", self.round_to, "8 suits the matrix units of GPUs")
        fraction = "a fraction between 0 and 1, or null"
        remedy = "0.03 meets the budget to within 3 %"
        require(self.within is None or 0 < self.within < 1, "pruner.target.within", fraction, self.within, remedy)
        timed_only = f"null with pruner.target.of={self.of.value}, which needs no correction"
        require(self.within is None or self.of is Of.LATENCY, "pruner.target.within", timed_only, self.within)
        costs = [cost.value for cost in Of if cost not in (Of.LATENCY, self.of)]
        remedy = "for a budget of latency set pruner.target.of=latency and list the others here"
        for cost, removed in self.also.items():
            require(cost in costs, "pruner.target.also", f"fractions of {', '.join(costs)}", cost, remedy)
            require(0.0 < removed < 1.0, f"pruner.target.also.{cost}", "a fraction between 0 and 1", removed)


@dataclass(frozen=True)
class UnitSums:
    """Sums collected for all units over some batches: float64 tensors by name, which add up over shards of the data.

    The S units of all groups are listed one after another, in the order of the groups. The sums are over ``samples`` in ``batches``;
    ``skipped`` more batches were left out because a number in them was not finite.
    """

    sums: dict[str, Tensor]
    samples: int
    batches: int
    skipped: int

    def __add__(self, other: UnitSums) -> UnitSums:
        sums = {name: total + other.sums[name] for name, total in self.sums.items()}
        return UnitSums(sums, self.samples + other.samples, self.batches + other.batches, self.skipped + other.skipped)

    def check(self) -> None:
        """Raises: SecateurError if no batch was used."""
        if self.batches == 0:
            raise SecateurError(
                f"collect: expected at least one batch with finite outputs and gradients, got none ({self.skipped} skipped); check the "
                "weights of the model and the normalisation of its images, and with loss=labels that the images have labels"
            )


@dataclass(frozen=True)
class Ranking:
    """``order_S``: the units (int64) in the order of their removal. ``score_S``: the saliency of each unit (float64), for the report."""

    order_S: Tensor
    score_S: Tensor
    notes: dict[str, float] = field(default_factory=dict)  # numbers for the report


@dataclass
class UnitPruner(Pruner, ABC):
    """A method that removes whole units, so that the model is smaller and faster. Only the allocation, in the driver, reads ``target``."""

    target: UnitTarget
    streams: bool  # whether channels of residual streams may be removed too; each is tied over all blocks of a stage

    reads_data: ClassVar[bool] = True

    @property
    def is_timed(self) -> bool:
        return self.target.of is Of.LATENCY

    @property
    def removes_streams(self) -> bool:
        return self.streams

    @property
    def leaves_multiple(self) -> int | None:
        return self.target.round_to

    def goal(self, layers: Sequence[Layer]) -> Goal:
        return Goal(self.target.of.value, "removed", self.target.removed)

    @abstractmethod
    def passes(self, loss: Loss, outputs: int) -> tuple[int, int]:
        """Returns the forward and backward passes for each calibration batch, for the plan; (0, 0) if the method reads no data.

        ``outputs`` is the number of outputs of the model for one sample. Raises: ConfigError for a loss that the method cannot use.
        """

    @abstractmethod
    def sum_bytes(self, units: int, structure_weights: int) -> int:
        """Returns the memory that ``collect`` takes beside the model and a pass: its sums, and copies of the weights of structures."""

    @abstractmethod
    def collect(self, model: nn.Module, groups: Sequence[Group], batches: Callable[[], Iterator[Batch]], loss: Loss, seed: int) -> UnitSums:
        """Returns the sums over the batches of one shard. ``model`` is in eval mode and is not changed."""

    @abstractmethod
    def rank(self, groups: Sequence[Group], sums: UnitSums) -> Ranking:
        """Returns the order of all units, from the sums of all shards."""

"""What the pipeline asks of a pruner of whole units: a sum over the data, and the order in which units go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from workers.checks import require
from workers.errors import SecateurError
from workers.losses import Loss
from workers.pruners.base import Pruner

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workers.data.base import Batch
    from workers.models.structures.groups import Group


class Of(Enum):
    """What a target is a fraction of; all of the dense model."""

    STRUCTURES = "structures"  # units of the kinds that may go
    PARAMETERS = "parameters"
    MACS = "macs"  # multiply-adds of a forward pass
    MEMORY = "memory"  # bytes of parameters and of all that a forward pass of one sample writes
    LATENCY = "latency"  # measured milliseconds of a forward pass, as the settings of latency say


class Solver(Enum):
    """How the units that stay are chosen."""

    RANKING = "ranking"  # down the ranking of all units, until the target is reached
    EXACT = "exact"  # the widths that keep most importance at this cost: a knapsack, solved exactly where widths do not meet in a product
    GREEDY = "greedy"  # the knapsack as the HALP paper solves it, item by item
    UNIFORM = "uniform"  # the same fraction of every group: a narrower model, to compare with
    JOINT = "joint"  # the knapsack with the products of widths in it, by constraint programming; for small models


@dataclass
class UnitTarget:
    """How much of the dense model is taken out, and what every group keeps."""

    removed: float
    of: Of
    min_units: int
    min_fraction: float
    round_to: int = 1  # widths (channels, neurons, heads times their channels) stay multiples of this, where the dense model's are
    solver: Solver = Solver.RANKING
    within: float | None = None  # of latency: measure the smaller model, and correct the budget until its time is met to this fraction
    also: dict[str, float] = field(default_factory=dict)  # more budgets that hold at once: fractions by what they are of

    def __post_init__(self) -> None:
        require(0.0 <= self.removed < 1.0, "pruner.target.removed", "a fraction in [0, 1)", self.removed, "0.5 takes out half")
        require(self.min_units >= 0, "pruner.target.min_units", "0 or more units", self.min_units)
        require(0.0 <= self.min_fraction <= 1.0, "pruner.target.min_fraction", "a fraction in [0, 1]", self.min_fraction)
        require(self.round_to >= 1, "pruner.target.round_to", "at least 1", self.round_to, "8 suits matrix units of GPUs")
        least = "a fraction between 0 and 1, or null"
        require(self.within is None or 0 < self.within < 1, "pruner.target.within", least, self.within, "0.03 corrects up to 3 %")
        closed = f"null for of={self.of.value}, which is met as it is counted"
        require(self.within is None or self.of is Of.LATENCY, "pruner.target.within", closed, self.within)
        counted = [of.value for of in Of if of not in (Of.LATENCY, self.of)]
        for of, removed in self.also.items():
            require(of in counted, "pruner.target.also", f"fractions of {', '.join(counted)}", of, "of=latency with the others in also")
            require(0.0 < removed < 1.0, f"pruner.target.also.{of}", "a fraction between 0 and 1", removed)


@dataclass(frozen=True)
class UnitSums:
    """What was measured of all units over some batches: float64 tensors by name, which add up over shards of the data.

    Units of all groups stand one after another, S in all, in the order of the groups. ``samples`` and ``batches`` went in; ``skipped``
    batches were left out because something in them was not finite.
    """

    sums: dict[str, Tensor]
    samples: int
    batches: int
    skipped: int

    def __add__(self, other: UnitSums) -> UnitSums:
        sums = {name: total + other.sums[name] for name, total in self.sums.items()}
        return UnitSums(sums, self.samples + other.samples, self.batches + other.batches, self.skipped + other.skipped)

    def check(self) -> None:
        """Raises: SecateurError if nothing was measured."""
        if self.batches == 0:
            raise SecateurError(
                f"measure: expected at least one batch with finite outputs and gradients, got none ({self.skipped} skipped); look at the "
                "weights of the model and the normalisation of its images, or, with loss=labels, whether there are labels"
            )


@dataclass(frozen=True)
class Ranking:
    """``order_S``: the units (int64) in the order in which they go. ``score_S``: what each is worth by itself (float64), for the report."""

    order_S: Tensor
    score_S: Tensor
    notes: dict[str, float] = field(default_factory=dict)  # numbers for the report


@dataclass
class UnitPruner(Pruner, ABC):
    """Takes units out whole, so that the model is smaller and faster. Only the central choice reads ``target``."""

    target: UnitTarget
    streams: bool  # whether channels of residual streams may go too: each is tied over all blocks of a stage

    reads_data: ClassVar[bool] = True
    needs_logits: ClassVar[bool] = False  # of a classifier

    @abstractmethod
    def passes(self, loss: Loss, outputs: int) -> tuple[int, int]:
        """Forward and backward passes per calibration batch, for the plan, of a model with that many outputs a sample; (0, 0) without data.

        Raises: ConfigError for a loss that says nothing to this method.
        """

    @abstractmethod
    def sum_bytes(self, units: int, structure_weights: int) -> int:
        """Memory that ``measure`` takes beside the model and a pass: its sums, and copies of the weights of structures."""

    @abstractmethod
    def collect(self, model: nn.Module, groups: Sequence[Group], batches: Callable[[], Iterator[Batch]], loss: Loss, seed: int) -> UnitSums:
        """Sums over the batches of one shard. ``model`` is in eval mode and is left as it was found."""

    @abstractmethod
    def rank(self, groups: Sequence[Group], sums: UnitSums) -> Ranking:
        """The order of all units from the sums of all shards."""

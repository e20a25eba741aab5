"""What the pipeline asks of a pruner: three map steps and what each of them reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from workers.checks import require
from workers.losses import Loss

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kernels.statistics import SecondMoment
    from workers.data.base import Batch
    from workers.models.base import Layer


class Scope(Enum):
    """Over what a target sparsity is reached."""

    GLOBAL = "global"  # one threshold over all layers
    UNIFORM = "uniform"  # the same sparsity in every layer
    PER_LAYER = "per_layer"  # given by patterns


@dataclass
class Target:
    """How much is pruned: a fraction of all prunable weights, zeros already there included; and which weights may go together."""

    sparsity: float
    scope: Scope
    per_layer: dict[str, float] = field(default_factory=dict)  # pattern of layer names -> sparsity, for scope=per_layer
    pattern: str = "unstructured"  # unstructured | N:M | groups:U, along the inputs of a layer

    def __post_init__(self) -> None:
        require(
            0.0 <= self.sparsity < 1.0, "pruner.target.sparsity", "a fraction in [0, 1)", self.sparsity, "0.75 prunes three weights of four"
        )
        for pattern, sparsity in self.per_layer.items():
            require(0.0 <= sparsity < 1.0, f"pruner.target.per_layer[{pattern}]", "a fraction in [0, 1)", sparsity)
        require(
            (self.scope is Scope.PER_LAYER) == bool(self.per_layer),
            "pruner.target.per_layer",
            "patterns exactly when pruner.target.scope is per_layer",
            self.per_layer,
        )


@dataclass(frozen=True)
class Sensitivity:
    """What a layer loses against what it keeps.

    A layer's entries lie in ``n`` blocks of ``B``. Block ``i`` loses its entries in the order ``order_nB[i]`` (int16 positions in the
    block), the k-th at ``loss_nB[i, k]`` (float32, predicted increase of the calibration loss when it goes, given the ones before).
    ``score_nB`` (float32) is compared across blocks and layers; what cannot be pruned (padding, already pruned) comes last with +inf.
    Selecting any set of scores prunes, in each block, the prefix of the order with as many entries as were selected.
    """

    order_nB: Tensor
    loss_nB: Tensor
    score_nB: Tensor
    notes: dict[str, float] = field(default_factory=dict)  # numbers for the report, e.g. dampening that had to be raised


@dataclass(frozen=True)
class Collected:
    """Calibration sums by layer name, and by layer name the calibration batches that were left out because something was not finite."""

    moments: dict[str, SecondMoment]
    skipped: dict[str, int]


@dataclass(frozen=True)
class Solution:
    """New weights of a layer, exactly zero where pruned. ``keep_RC`` is True where a weight survives."""

    weight_RC: Tensor
    keep_RC: Tensor


@dataclass
class Pruner(ABC):
    """One pruning method; its fields are its hyper-parameters. ``target`` is read by the central allocation only."""

    target: Target

    collect_reads: ClassVar[tuple[str, ...]] = ()  # fields that shape the statistic; changing any other re-uses what was collected
    collects: ClassVar[bool] = False  # whether there is a statistic at all

    @abstractmethod
    def statistic_shape(self, layer: Layer) -> tuple[int, int]:
        """(n, B) of the layer's ``SecondMoment``; (0, 0) if this pruner needs none. Memory is 4 n B^2 bytes."""

    @abstractmethod
    def collect(self, model: nn.Module, layers: list[Layer], batches: Iterator[Batch], loss: Loss, seed: int) -> Collected:
        """Calibration sums of ``layers`` for ``loss`` over ``batches``, and how many of these there were. ``model`` stays as it is."""

    @abstractmethod
    def score(self, weight_RC: Tensor, layer: Layer, statistic: SecondMoment | None) -> Sensitivity:
        """What each weight is worth. Entries that are exactly zero count as already pruned."""

    @abstractmethod
    def solve(self, weight_RC: Tensor, layer: Layer, statistic: SecondMoment | None, keep_RC: Tensor) -> Solution:
        """Re-fit the kept weights of a layer for a mask."""

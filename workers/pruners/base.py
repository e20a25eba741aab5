"""What the pipeline asks of a pruner of single weights: three map steps and what each of them reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from kernels.patterns import Pattern, parse
from workers.checks import require
from workers.collect.statistic import Statistic
from workers.errors import ConfigError
from workers.models.base import Layer
from workers.pruners.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor

    from kernels.second_moment import Moments


class Scope(Enum):
    """Over what a target sparsity is reached."""

    GLOBAL = "global"  # one threshold over all layers
    UNIFORM = "uniform"  # the same sparsity in every layer
    PER_LAYER = "per_layer"  # given by patterns


class Unfit(Enum):
    """What becomes of layers whose inputs cannot be cut into the buckets or tiles of a pattern."""

    ERROR = "error"  # they are named, and nothing runs
    DENSE = "dense"  # they are left as they are, as if ``model.exclude`` named them: targets are fractions of the other layers


@dataclass
class Target:
    """How much is pruned: a fraction of all prunable weights, zeros already there included; and which weights may go together.

    Weights of layers that are left dense by ``unfit`` are not prunable, so they do not count.
    """

    sparsity: float
    scope: Scope
    per_layer: dict[str, float] = field(default_factory=dict)  # pattern of layer names -> sparsity, for scope=per_layer
    pattern: str = "unstructured"  # unstructured | N:M | groups:U, along the inputs of a layer
    unfit: Unfit = Unfit.ERROR

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
        try:
            parsed = parse(self.pattern)
        except ValueError as error:
            raise ConfigError(f"pruner.target.pattern: {error}") from error
        if parsed.bucket:
            share = parsed.removable / parsed.bucket
            require(self.scope is not Scope.PER_LAYER, "pruner.target.scope", f"global or uniform with pattern {self.pattern}", "per_layer")
            require(
                self.sparsity == share,
                "pruner.target.sparsity",
                f"{share:g}, which is what {self.pattern} leaves no choice of",
                self.sparsity,
            )


@dataclass(frozen=True)
class Sensitivity:
    """What a layer loses against what it keeps.

    A layer's entries lie in ``n`` blocks of ``G`` tiles (of ``pattern.tile`` weights each; see ``Pruner.layout``). Block ``i`` loses its
    tiles in the order ``order_nG[i]`` (int16 positions in the block), the k-th at ``loss_nG[i, k]`` (float32, predicted increase of the
    calibration loss when it goes, given the ones before; NaN when a method predicts none).
    ``score_nG`` (float32) is compared across blocks and layers; what cannot be pruned (padding, already pruned) comes last with +inf.
    Selecting any set of scores prunes, in each block, the prefix of the order with as many entries as were selected.
    """

    order_nG: Tensor
    loss_nG: Tensor
    score_nG: Tensor
    notes: dict[str, float] = field(default_factory=dict)  # numbers for the report, e.g. dampening that had to be raised


@dataclass(frozen=True)
class Solution:
    """New weights of a layer, exactly zero where pruned. ``keep_RC`` is True where a weight survives."""

    weight_RC: Tensor
    keep_RC: Tensor


@dataclass
class Pruner:
    """One pruning method; its fields are its hyper-parameters. It masks weights (``WeightPruner``) or takes units out (``UnitPruner``)."""


@dataclass
class WeightPruner(Pruner, ABC):
    """Masks single weights of each layer. Only the central allocation reads ``target``, but for its pattern."""

    target: Target

    @property
    def pattern(self) -> Pattern:
        return parse(self.target.pattern)

    def check(self, layers: Sequence[Layer]) -> None:
        """Raise ``ConfigError`` naming all layers that cannot follow the pattern, or if none can."""
        unfit = self.unfit(layers)
        multiple = f"layers whose inputs are a multiple of {self.pattern.length} for {self.target.pattern}"
        found = ", ".join(f"{layer.name} with {layer.columns // layer.kernel}" for layer in unfit)
        require(
            not unfit or self.target.unfit is Unfit.DENSE,
            "pruner.target.pattern",
            multiple,
            f"{len(unfit)} of {len(layers)} others: {found}",
            "pruner.target.unfit=dense leaves them dense; so does model.exclude, layer by layer",
        )
        require(len(unfit) < len(layers), "pruner.target.pattern", multiple, f"none among {len(layers)}: {found}", "choose another pattern")

    def unfit(self, layers: Sequence[Layer]) -> list[Layer]:
        """Those whose inputs cannot be cut into the tiles or buckets of the pattern."""
        return [layer for layer in layers if layer.columns // layer.kernel % self.pattern.length]

    def fitting(self, layers: Sequence[Layer]) -> list[Layer]:
        """Those that are pruned."""
        unfit = {layer.name for layer in self.unfit(layers)}
        return [layer for layer in layers if layer.name not in unfit]

    @property
    @abstractmethod
    def statistic(self) -> Statistic | None:
        """What is measured; None if weights are all this method looks at."""

    def layout(self, layer: Layer) -> Layout:
        """The blocks of the statistic; without one, each tile or bucket by itself."""
        return self.statistic.layout(layer) if self.statistic else Layout(layer, self.pattern.length, self.pattern)

    def flops(self, layer: Layer) -> tuple[float, float]:
        """What ``score`` and ``solve`` of a layer compute, leading terms, for the plan's seconds: nothing if no matrix is factored."""
        return 0.0, 0.0

    @abstractmethod
    def score(self, weight_RC: Tensor, layer: Layer, moments: Moments | None) -> Sensitivity:
        """What each weight is worth. Entries that are exactly zero count as already pruned."""

    @abstractmethod
    def solve(self, weight_RC: Tensor, layer: Layer, moments: Moments | None, keep_RC: Tensor) -> Solution:
        """Re-fit the kept weights of a layer for a mask."""


def check_dampening(dampening: float) -> None:
    """Raise ``ConfigError`` unless it is a number to divide by."""
    require(dampening > 0, "pruner.dampening", "a positive number", dampening, "1e-8 absolute, or 1e-4 to 1e-2 relative, are usual")

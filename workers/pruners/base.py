"""The interface of a pruner of single weights, its target, and its results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar

from kernels.patterns import Pattern, parse
from workers.checks import Phrase, require
from workers.collect.statistic import Statistic
from workers.errors import ConfigError
from workers.models.base import Layer
from workers.pruners.layout import Layout
from workers.pruners.refit import Refit

if TYPE_CHECKING:
    from torch import Tensor

    from kernels.second_moment import Moments


class Scope(Enum):
    """The set of weights over which a target sparsity is reached."""

    GLOBAL = "global"  # one threshold over all layers
    UNIFORM = "uniform"  # the same sparsity in every layer
    PER_LAYER = "per_layer"  # a sparsity for each pattern of layer names


class Unfit(Enum):
    """What happens to layers whose inputs cannot be cut into the buckets or tiles of a pattern."""

    ERROR = "error"  # the run ends with an error that names them
    DENSE = "dense"  # they are not pruned, as if ``model.exclude`` named them: targets are fractions of the other layers


class Share(Enum):
    """The cost of the dense model that a target is a fraction of."""

    WEIGHTS = "weights"  # the prunable ones: ``sparsity`` of them become zero
    LATENCY = "latency"  # the time of a forward pass: the sparse runtime takes ``removed`` of it less


@dataclass
class Target:
    """How much is pruned, as a fraction of all prunable weights, and the pattern that the zeros follow.

    Weights that are zero already count as pruned. Layers that ``unfit`` keeps dense are not prunable and do not count. With a target of
    latency, ``sparsity`` is what the plan assumes; the sparsity of each layer follows from measured times.
    """

    sparsity: float
    scope: Scope
    per_layer: dict[str, float] = field(default_factory=dict)  # pattern of layer names -> sparsity, for scope=per_layer
    pattern: str = "unstructured"  # unstructured | N:M | groups:U, along the inputs of a layer
    unfit: Unfit = Unfit.ERROR
    of: Share = Share.WEIGHTS
    removed: float | None = None  # of the dense model's time, for of=latency
    within: float = 0.03  # how far the measured time may be from its budget, as a fraction of it

    def __post_init__(self) -> None:
        timed = self.of is Share.LATENCY
        if timed:
            fraction, is_one = "a fraction between 0 and 1 with of=latency", self.removed is not None and 0.0 < self.removed < 1.0
            require(is_one, "pruner.target.removed", fraction, self.removed, "0.5 halves the time")
            by_times = "global with of=latency, which sets the sparsity of each layer"
            require(self.scope is Scope.GLOBAL, "pruner.target.scope", by_times, self.scope.value)
        else:
            remedy = "set pruner.target.of=latency, or pruner.target.sparsity for a fraction of the weights"
            require(self.removed is None, "pruner.target.removed", "null with of=weights", self.removed, remedy)
        remedy = "0.03 meets the budget to within 3 %"
        require(0.0 < self.within < 1.0, "pruner.target.within", "a fraction between 0 and 1", self.within, remedy)
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
        free = "unstructured or groups:U with of=latency, since an N:M pattern fixes the sparsity"
        require(not (timed and parsed.bucket), "pruner.target.pattern", free, self.pattern)
        if parsed.bucket:
            share = parsed.removable / parsed.bucket
            require(self.scope is not Scope.PER_LAYER, "pruner.target.scope", f"global or uniform with pattern {self.pattern}", "per_layer")
            require(
                self.sparsity == share,
                "pruner.target.sparsity",
                f"{share:g}, the sparsity of {self.pattern}",
                self.sparsity,
            )

    def by_layer(self, layers: Sequence[Layer]) -> dict[str, float]:
        """Returns the sparsity of each layer for the scopes ``uniform`` and ``per_layer``; layers that match no pattern remain dense.

        Raises: ConfigError if a pattern matches no layer.
        """
        if self.scope is Scope.UNIFORM:
            return {layer.name: self.sparsity for layer in layers}
        for pattern in self.per_layer:
            if not any(fnmatchcase(layer.name, pattern) for layer in layers):
                names = ", ".join(layer.name for layer in layers[:3])
                raise ConfigError(f"pruner.target.per_layer: {pattern!r} matches none of the {len(layers)} layers ({names}, …)")

        def first_match(name: str) -> float:
            return next((sparsity for pattern, sparsity in self.per_layer.items() if fnmatchcase(name, pattern)), 0.0)

        return {layer.name: first_match(layer.name) for layer in layers}

    def overall(self, layers: Sequence[Layer]) -> float:
        """Returns the fraction of the weights of all ``layers`` that becomes zero. Raises: ConfigError if a pattern matches no layer."""
        if self.scope is Scope.GLOBAL:
            return self.sparsity
        sparsities = self.by_layer(layers)
        return sum(sparsities[layer.name] * layer.weights for layer in layers) / sum(layer.weights for layer in layers)


@dataclass(frozen=True)
class Sensitivity:
    """The order in which a layer's weights are pruned, and the cost of each.

    The weights lie in ``n`` blocks of ``G`` tiles (of ``pattern.tile`` weights each; see ``WeightPruner.layout``). Block ``i`` loses its
    tiles in the order ``order_nG[i]`` (int16 positions in the block). ``loss_nG[i, k]`` (float32) is the predicted increase of the
    calibration loss for the k-th removal, given the ones before it; NaN if the method predicts none.
    ``score_nG`` (float32) is compared across blocks and layers. Tiles that cannot be pruned (padding, or zero already) come last with
    +inf. If k scores of a block are selected, the first k tiles of its order are pruned.
    """

    order_nG: Tensor
    loss_nG: Tensor
    score_nG: Tensor
    notes: dict[str, float] = field(default_factory=dict)  # numbers for the report, such as how many blocks needed more dampening


@dataclass(frozen=True)
class Solution:
    """The new weights of a layer, exactly zero where they are masked. ``keep_RC`` is True where a weight is kept."""

    weight_RC: Tensor
    keep_RC: Tensor


@dataclass(frozen=True)
class Goal:
    """The ``fraction`` to prune, ``of`` the ``weights`` or of a cost of the dense model, and the ``setting`` that holds it."""

    of: str
    setting: str
    fraction: float


@dataclass
class Pruner(ABC):
    """A pruning method, with its hyper-parameters as fields. It masks weights (``WeightPruner``) or removes units (``UnitPruner``)."""

    needs_logits: ClassVar[bool] = False  # whether the model must be a classifier

    @abstractmethod
    def goal(self, layers: Sequence[Layer]) -> Goal:
        """Returns how much of a model with these layers is pruned. Raises: ConfigError if the target does not fit them."""

    @property
    def statistic(self) -> Statistic | None:
        """The calibration statistic of each layer; None if the method reads none."""
        return None

    @property
    def is_timed(self) -> bool:
        """Whether the result depends on measured times."""
        return False

    @property
    def removes_streams(self) -> bool:
        """Whether channels of residual streams may be removed."""
        return False

    @property
    def needs_multiple(self) -> int:
        """The number that the inputs of every layer must be a multiple of."""
        return 1

    @property
    def leaves_multiple(self) -> int | None:
        """The number that widths are multiples of after pruning; None if the method changes no width."""
        return None

    def flops(self, layer: Layer) -> tuple[float, float]:
        """Returns the flops of ``score`` and ``solve`` of a layer, leading terms, for the plan; zero if no matrix is factored."""
        return 0.0, 0.0

    def check_steps(self, where: str, steps: int) -> None:
        """Raises ``ConfigError`` unless the target can be reached in this number of steps; ``where`` is the setting that holds it."""
        require(steps >= 1, where, "at least 1", steps)


@dataclass
class WeightPruner(Pruner, ABC):
    """A method that masks single weights. Only the allocation, in the driver, reads ``target``; the pruner reads its pattern.

    ``refit`` says whether the kept weights are fitted once more after ``solve``, whatever the method.
    """

    target: Target
    refit: Refit = field(default_factory=Refit, kw_only=True)

    @property
    def pattern(self) -> Pattern:
        return parse(self.target.pattern)

    @property
    def is_timed(self) -> bool:
        return self.target.of is Share.LATENCY and self.target.removed is not None

    @property
    def needs_multiple(self) -> int:
        return self.pattern.length if self.target.unfit is Unfit.ERROR else 1

    def goal(self, layers: Sequence[Layer]) -> Goal:
        self.check(layers)
        if self.target.removed is not None:
            return Goal("latency", "removed", self.target.removed)
        setting = "per_layer" if self.target.scope is Scope.PER_LAYER else "sparsity"
        return Goal("weights", setting, self.target.overall(self.fitting(layers)))

    def check_steps(self, where: str, steps: int) -> None:
        super().check_steps(where, steps)
        fixed = f"1, since a target of pattern {self.target.pattern} has no sparsity in between"
        require(steps == 1 or not self.pattern.bucket, where, fixed, steps)
        require(steps == 1 or not self.is_timed, where, "1 with pruner.target.of=latency", steps)

    def check(self, layers: Sequence[Layer]) -> None:
        """Raises ``ConfigError`` that names the layers that cannot follow the pattern, or if no layer can."""
        unfit = self.unfit(layers)
        multiple = f"layers whose number of inputs is a multiple of {self.pattern.length}, for {self.target.pattern}"
        named = ", ".join(f"{layer.name} has {layer.columns // layer.kernel}" for layer in unfit)
        require(
            not unfit or self.target.unfit is Unfit.DENSE,
            "pruner.target.pattern",
            multiple,
            Phrase(f"{len(unfit)} of {len(layers)} layers with another number ({named})"),
            "set pruner.target.unfit=dense to keep these layers dense, or exclude them with model.exclude",
        )
        none = Phrase(f"another number in all {len(layers)} layers ({named})")
        require(len(unfit) < len(layers), "pruner.target.pattern", multiple, none, "choose another pattern")

    def unfit(self, layers: Sequence[Layer]) -> list[Layer]:
        """Returns the layers whose inputs cannot be cut into the tiles or buckets of the pattern."""
        return [layer for layer in layers if layer.columns // layer.kernel % self.pattern.length]

    def fitting(self, layers: Sequence[Layer]) -> list[Layer]:
        """Returns the layers that are pruned."""
        unfit = {layer.name for layer in self.unfit(layers)}
        return [layer for layer in layers if layer.name not in unfit]

    @property
    @abstractmethod
    def statistic(self) -> Statistic | None:
        """The statistic that is collected; None if the method reads nothing but the weights."""

    def layout(self, layer: Layer) -> Layout:
        """Returns the blocks of the statistic. Without a statistic, each tile or bucket is a block."""
        return self.statistic.layout(layer) if self.statistic else Layout(layer, self.pattern.length, self.pattern)

    def mask(self, layer: Layer, weight_RC: Tensor, scores: Mapping[str, Tensor], tiles: int) -> tuple[Tensor, Tensor]:
        """Returns the mask of a layer without its ``tiles`` cheapest tiles, True where a weight is kept, and how many each block loses.

        ``scores`` are the tensors of a ``Sensitivity`` by name.
        """
        from kernels import masks, select

        counts_n = select.select_smallest(scores["score_nG"], tiles).sum(1)
        removed_nG = masks.prefix_mask(scores["order_nG"], counts_n)
        return ~self.layout(layer).join_tiles(removed_nG) & (weight_RC != 0), counts_n

    @abstractmethod
    def score(self, weight_RC: Tensor, layer: Layer, moments: Moments | None) -> Sensitivity:
        """Returns the sensitivity of each weight of a layer. Weights that are exactly zero count as pruned."""

    @abstractmethod
    def solve(self, weight_RC: Tensor, layer: Layer, moments: Moments | None, keep_RC: Tensor) -> Solution:
        """Returns the weights of a layer under the mask ``keep_RC``, the kept ones re-fitted."""


def check_dampening(dampening: float) -> None:
    """Raises ``ConfigError`` unless the dampening is positive."""
    usual = "common values are 1e-8 (absolute), or 1e-4 to 1e-2 (relative)"
    require(dampening > 0, "pruner.dampening", "a positive number", dampening, usual)

"""Rankings of units that read no data, the baselines for all other methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from workers.checks import require
from workers.losses import Loss
from workers.pruners.units import Ranking, UnitPruner, UnitSums

if TYPE_CHECKING:
    from torch import nn

    from workers.data.base import Batch
    from workers.models.structures.groups import Group


@dataclass
class UnitMagnitude(UnitPruner):
    """Ranks units by the root mean square of the weights that produce them, over all layers together."""

    reads_data: ClassVar[bool] = False

    def passes(self, loss: Loss, outputs: int) -> tuple[int, int]:
        return 0, 0

    def sum_bytes(self, units: int, structure_weights: int) -> int:
        return 2 * 8 * units

    def collect(self, model: nn.Module, groups: Sequence[Group], batches: Callable[[], Iterator[Batch]], loss: Loss, seed: int) -> UnitSums:
        from workers.collect import unit_saliency as saliency

        return saliency.magnitude(model, groups)

    def rank(self, groups: Sequence[Group], sums: UnitSums) -> Ranking:
        from workers.pruners.ranking import by_score

        return by_score((sums.sums["squares_S"] / sums.sums["weights_S"]).sqrt(), {})


@dataclass
class UnitRandom(UnitPruner):
    """Ranks units by numbers drawn with ``seed``. The numbers of a group do not depend on the other groups."""

    seed: int

    reads_data: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self.seed >= 0, "pruner.seed", "0 or more", self.seed)

    def passes(self, loss: Loss, outputs: int) -> tuple[int, int]:
        return 0, 0

    def sum_bytes(self, units: int, structure_weights: int) -> int:
        return 8 * units

    def collect(self, model: nn.Module, groups: Sequence[Group], batches: Callable[[], Iterator[Batch]], loss: Loss, seed: int) -> UnitSums:
        """Returns ``drawn_S``: a number between 0 and 1 for each unit."""
        import torch

        from workers.numbers import derived_seed

        generators = [torch.Generator().manual_seed(derived_seed(self.seed, group.name)) for group in groups]
        drawn = [torch.rand(group.units, generator=draws, dtype=torch.float64) for group, draws in zip(groups, generators, strict=True)]
        return UnitSums({"drawn_S": torch.cat(drawn)}, 0, 0, 0)

    def rank(self, groups: Sequence[Group], sums: UnitSums) -> Ranking:
        from workers.pruners.ranking import by_score

        return by_score(sums.sums["drawn_S"], {})

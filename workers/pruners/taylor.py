"""First-order Taylor saliency of units, as HALP uses it (Molchanov et al. 2019, arXiv 1906.10771; Shen et al. 2022, arXiv 2110.10811)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.losses import Loss
from workers.pruners.units import Ranking, UnitPruner, UnitSums

if TYPE_CHECKING:
    from torch import nn

    from workers.data.base import Batch
    from workers.models.structures.groups import Group


@dataclass
class UnitTaylor(UnitPruner):
    """Ranks units by the mean over batches of ``| sum_i theta_i g_i |``.

    The sum is over the scales and shifts of a unit's batch norms if it has any, else over everything that produces the unit.
    ``squared`` takes half the mean of the square instead. The mean gradient of a trained model is near zero, so its loss is of second
    order, and this is the Fisher's estimate of it. These values therefore add up when a budget trades units of one group for units of
    another; absolute values do not.
    """

    squared: bool  # true: Molchanov et al. 2019, eq. 8; false: as HALP

    def passes(self, loss: Loss, outputs: int) -> tuple[int, int]:
        return 1, 1

    def sum_bytes(self, units: int, structure_weights: int) -> int:
        return 4 * 8 * units

    def collect(self, model: nn.Module, groups: Sequence[Group], batches: Callable[[], Iterator[Batch]], loss: Loss, seed: int) -> UnitSums:
        from workers.collect import unit_saliency as saliency

        return saliency.taylor(model, groups, batches, loss, seed)

    def rank(self, groups: Sequence[Group], sums: UnitSums) -> Ranking:
        from workers.pruners.ranking import by_score

        sums.check()
        score_S = sums.sums["squares_S"] / (2 * sums.batches) if self.squared else sums.sums["absolute_S"] / sums.batches
        return by_score(score_S, {"vanishing": float(not score_S.any())})

"""SOSP: second-order structured pruning (Nonnenmacher et al., ICLR 2022, arXiv 2110.11395)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from workers.checks import require
from workers.losses import Loss
from workers.pruners.units import Ranking, UnitPruner, UnitSums

if TYPE_CHECKING:
    from torch import nn

    from workers.data.base import Batch
    from workers.models.structures.groups import Group

SECOND_ORDER_BACKWARD = 3  # passes that the backward of a backward costs, about: it goes through the forward and the first backward


class Product(Enum):
    """How the Hessian-vector product is taken."""

    SCALING = "scaling"  # the difference of two gradients, with the weights of structures a little larger and smaller
    EXACT = "exact"  # by differentiating twice: more memory, and attention without fused kernels


@dataclass
class SOSPH(UnitPruner):
    r"""One ranking of all units by what each takes part in when all go, from one Hessian-vector product.

        | theta_s^T g | + 1/2 | theta_s^T H theta_struct |        per sample

    with absolute values taken once, after the sum over the data. Differs from the paper: the product is a central difference by default,
    and with ``loss`` sampled or features it is of the Fisher or Gauss-Newton matrix, where the first term is zero.
    """

    product: Product
    epsilon: float
    normalise: bool

    def __post_init__(self) -> None:
        require(
            0 < self.epsilon < 1,
            "pruner.epsilon",
            "a fraction of the weights between 0 and 1",
            self.epsilon,
            "1e-3 suits float32: above it the difference errs by its square, below it by rounding",
        )

    def passes(self, loss: Loss, outputs: int) -> tuple[int, int]:
        if self.product is Product.EXACT:
            return 1, 1 + SECOND_ORDER_BACKWARD
        return (2, 2) if loss is Loss.LABELS else (3, 2)

    def sum_bytes(self, units: int, structure_weights: int) -> int:
        """Float64 sums of the data, of a batch and of its sides; two copies of the weights, or a direction and two more gradients."""
        return 12 * 8 * units + (2 if self.product is Product.SCALING else 3) * 4 * structure_weights

    def collect(self, model: nn.Module, groups: Sequence[Group], batches: Callable[[], Iterator[Batch]], loss: Loss, seed: int) -> UnitSums:
        from workers.collect import unit_saliency as saliency

        if self.product is Product.SCALING:
            found = saliency.sosp_h(model, groups, batches, loss, self.epsilon)
        else:
            found = saliency.sosp_h_exact(model, groups, batches, loss)
        weights_S = saliency.unit_weights(model, groups) * found.samples  # so that shards add up
        return replace(found, sums=found.sums | {"weights_S": weights_S})

    def rank(self, groups: Sequence[Group], sums: UnitSums) -> Ranking:
        from kernels.saliency import vanishing
        from workers.pruners.ranking import by_score

        sums.check()
        found = sums.sums
        total_S = found["gradient_S"].abs() + found["curvature_S"].abs() / 2
        score_S = total_S / (found["weights_S"] if self.normalise else sums.samples)
        return by_score(score_S, {"vanishing": vanishing(total_S, found["scale_S"])})


@dataclass
class SOSPI(UnitPruner):
    r"""Units go one after the other, each time the one that costs least beside those that are gone, by a quadratic model between units:

        argmin_s Q_ss + 2 sum_{s' gone} Q_ss'        Q = 1/2 | J^T R J | + diag | theta_s^T g |        per sample

    with ``J^T R J`` the Gauss-Newton matrix of the cross-entropy and absolute values taken once, after the sum over the data. Needs a
    backward pass for each class and memory in the square of the units: for small models, and to compare.
    """

    needs_logits: ClassVar[bool] = True

    def passes(self, loss: Loss, outputs: int) -> tuple[int, int]:
        _check_logits(loss)
        return 2, outputs

    def sum_bytes(self, units: int, structure_weights: int) -> int:
        """The sum, that of a batch and a product; Jacobians of as many rows, as they are and centred; gradients by output and sample."""
        from workers.collect.unit_saliency import JACOBIAN_BYTES

        return (8 + 8 + 4 + 4 + 4) * units**2 + 3 * max(JACOBIAN_BYTES, 4 * structure_weights)

    def collect(self, model: nn.Module, groups: Sequence[Group], batches: Callable[[], Iterator[Batch]], loss: Loss, seed: int) -> UnitSums:
        from workers.collect import unit_saliency as saliency

        _check_logits(loss)
        return saliency.sosp_i(model, groups, batches, loss)

    def rank(self, groups: Sequence[Group], sums: UnitSums) -> Ranking:
        """A unit's score is what it cost when it went."""
        import torch

        from kernels.saliency import greedy_order

        sums.check()
        quadratic_SS = sums.sums["gauss_newton_SS"].abs() / (2 * sums.samples)
        quadratic_SS.diagonal().add_(sums.sums["gradient_S"].abs() / sums.samples)
        order_S, paid_S = greedy_order(quadratic_SS)
        return Ranking(order_S, torch.empty_like(paid_S).index_copy_(0, order_S, paid_S))


def _check_logits(loss: Loss) -> None:
    require(
        loss is not Loss.FEATURES,
        "loss",
        "labels or sampled with pruner=sosp_i, whose curvature is that of a classifier",
        loss.value,
        "choose pruner=sosp_h, or loss=sampled for a model with a classifier",
    )

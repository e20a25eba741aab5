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

SECOND_ORDER_BACKWARD = 3  # the backward pass of a backward pass costs about three: it differentiates the forward and the first backward


class Product(Enum):
    """How the Hessian-vector product is computed."""

    SCALING = "scaling"  # difference of two gradients, with the weights of structures scaled slightly up and down
    EXACT = "exact"  # differentiates twice: needs more memory, and attention without fused kernels


@dataclass
class SOSPH(UnitPruner):
    r"""Ranks all units by their share in the loss increase when all of them are removed, from one Hessian-vector product.

        | theta_s^T g | + 1/2 | theta_s^T H theta_struct |        for each sample

    Absolute values are taken once, after the sum over the data. Differs from the paper: the product is a central difference by default;
    with ``loss=sampled`` or ``features``, H is the Fisher or Gauss-Newton matrix and the first term is zero.
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
            "1e-3 suits float32; the error of a larger value grows with its square, that of a smaller one with rounding",
        )

    def passes(self, loss: Loss, outputs: int) -> tuple[int, int]:
        if self.product is Product.EXACT:
            return 1, 1 + SECOND_ORDER_BACKWARD
        return (2, 2) if loss is Loss.LABELS else (3, 2)

    def sum_bytes(self, units: int, structure_weights: int) -> int:
        """Float64 sums over the data, a batch and its two sides; and two copies of the weights, or a direction and two more gradients."""
        return 12 * 8 * units + (2 if self.product is Product.SCALING else 3) * 4 * structure_weights

    def collect(self, model: nn.Module, groups: Sequence[Group], batches: Callable[[], Iterator[Batch]], loss: Loss, seed: int) -> UnitSums:
        from workers.collect import unit_saliency as saliency

        if self.product is Product.SCALING:
            total = saliency.sosp_h(model, groups, batches, loss, self.epsilon)
        else:
            total = saliency.sosp_h_exact(model, groups, batches, loss)
        weights_S = saliency.unit_weights(model, groups) * total.samples  # so that shards add up
        return replace(total, sums=total.sums | {"weights_S": weights_S})

    def rank(self, groups: Sequence[Group], sums: UnitSums) -> Ranking:
        from kernels.saliency import vanishing
        from workers.pruners.ranking import by_score

        sums.check()
        total_S = sums.sums["gradient_S"].abs() + sums.sums["curvature_S"].abs() / 2
        score_S = total_S / (sums.sums["weights_S"] if self.normalise else sums.samples)
        return by_score(score_S, {"vanishing": vanishing(total_S, sums.sums["scale_S"])})


@dataclass
class SOSPI(UnitPruner):
    r"""Ranks units greedily: each step removes the unit that costs least given those removed before it, by a quadratic model.

        argmin_s Q_ss + 2 sum_{s' removed} Q_ss'        Q = 1/2 | J^T R J | + diag | theta_s^T g |        for each sample

    ``J^T R J`` is the Gauss-Newton matrix of the cross-entropy. Absolute values are taken once, after the sum over the data. The method
    needs a backward pass for each class and memory quadratic in the number of units: use it for small models and for comparison.
    """

    needs_logits: ClassVar[bool] = True

    def passes(self, loss: Loss, outputs: int) -> tuple[int, int]:
        _check_logits(loss)
        return 2, outputs

    def sum_bytes(self, units: int, structure_weights: int) -> int:
        """The sum, that of a batch, and a product; Jacobians of as many rows, plain and centred; gradients for each output and sample."""
        from workers.collect.unit_saliency import JACOBIAN_BYTES

        return (8 + 8 + 4 + 4 + 4) * units**2 + 3 * max(JACOBIAN_BYTES, 4 * structure_weights)

    def collect(self, model: nn.Module, groups: Sequence[Group], batches: Callable[[], Iterator[Batch]], loss: Loss, seed: int) -> UnitSums:
        from workers.collect import unit_saliency as saliency

        _check_logits(loss)
        return saliency.sosp_i(model, groups, batches, loss)

    def rank(self, groups: Sequence[Group], sums: UnitSums) -> Ranking:
        """Returns the greedy order. The score of a unit is its cost at the time of its removal."""
        import torch

        from kernels.saliency import greedy_order

        sums.check()
        quadratic_SS = sums.sums["gauss_newton_SS"].abs() / (2 * sums.samples)
        quadratic_SS.diagonal().add_(sums.sums["gradient_S"].abs() / sums.samples)
        order_S, cost_S = greedy_order(quadratic_SS)
        return Ranking(order_S, torch.empty_like(cost_S).index_copy_(0, order_S, cost_S))


def _check_logits(loss: Loss) -> None:
    require(
        loss is not Loss.FEATURES,
        "loss",
        "labels or sampled with pruner=sosp_i, which uses the curvature of a classifier",
        loss.value,
        "choose pruner=sosp_h, or loss=sampled if the model has a classifier",
    )

"""Sums over units, the curvature between them, and the greedy order of their removal by a quadratic model."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.linalg import full_precision

CHUNK = 1 << 17  # entries multiplied at a time, so that their products are summed while they are in the cache
ROUNDING = 1e-6  # relative rounding error of gradients in float32


def unit_products(left: Tensor, right: Tensor, dim: int, index_UK: Tensor) -> Tensor:
    """Returns ``sum_i left_i right_i`` over the entries of each unit, at the positions ``index_UK`` along ``dim``: float64 (U,).

    Makes one pass over both tensors, whatever the number of units. Products are computed in the type of the tensors and summed in float64,
    so that no digits are lost if they cancel.
    """
    positions = left.shape[dim]
    left_PE, right_PE = left.movedim(dim, 0).reshape(positions, -1), right.movedim(dim, 0).reshape(positions, -1)
    rows = max(1, CHUNK // max(1, left_PE.shape[1]))
    parts = zip(left_PE.split(rows), right_PE.split(rows), strict=True)
    sum_P = torch.cat([(left_pE * right_pE).sum(dim=1, dtype=torch.float64) for left_pE, right_pE in parts])
    return sum_P[index_UK.to(sum_P.device)].sum(dim=1)


def add_gauss_newton_(sum_SS: Tensor, jacobian_NDS: Tensor, probability_ND: Tensor) -> None:
    r"""Adds ``sum_n J_n^T R_n J_n`` with ``R = diag(p) - p p^T``, in place: the curvature of the cross-entropy between units.

        J^T R J = M^T M        M = sqrt(p) (J - p^T J)

    ``R`` is never formed. Takes one matrix product in the type of ``J``. Source: Nonnenmacher et al. 2022 (arXiv 2110.11395), eq. 6.
    """
    mean_N1S = probability_ND[:, None, :] @ jacobian_NDS
    root_MS = (jacobian_NDS - mean_N1S).mul_(probability_ND.sqrt()[:, :, None]).flatten(0, 1)
    with full_precision():
        sum_SS += root_MS.T @ root_MS


def greedy_order(quadratic_SS: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns the order of removal in which each step adds to the removed set ``M`` the unit of least additional cost,

        argmin_s Q_ss + 2 sum_{s' in M} Q_ss'

    Returns: the units in the order of their removal, int64 (S,), and the cost of each step, which add up to ``1_M^T Q 1_M``. Among equal
    costs the first unit is removed. Each step adds one row of the symmetric ``Q`` to the costs, so the total is ``O(S^2)``.
    Source: Nonnenmacher et al. 2022 (arXiv 2110.11395), section 3.
    """
    cost_S = quadratic_SS.diagonal().clone()
    order_S = torch.empty(len(cost_S), dtype=torch.int64, device=cost_S.device)
    step_cost_S = torch.empty_like(cost_S)
    for step in range(len(cost_S)):
        unit = torch.argmin(cost_S)
        order_S[step], step_cost_S[step] = unit, cost_S[unit]
        cost_S.add_(quadratic_SS[unit], alpha=2)
        cost_S[unit] = torch.inf
    return order_S, step_cost_S


def vanishing(score_S: Tensor, scale_S: Tensor) -> float:
    """Returns the share of units whose score is zero within rounding, given the size of the terms that cancel in it.

    If it is 1.0, there is no ranking, since the loss does not depend on the scale of any unit. This happens if a norm with the statistics
    of the batch follows and its scale and shift do not belong to the unit, or if no unit affects the loss.
    """
    return float((score_S <= ROUNDING * scale_S).double().mean())

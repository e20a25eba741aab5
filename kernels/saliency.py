"""Sums over whole units, the curvature between them, and the order in which a quadratic model lets them go."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.linalg import full_precision

CHUNK = 1 << 17  # entries multiplied at a time: their products are summed while they are in the cache
ROUNDING = 1e-6  # of float32, after the sums that gradients are


def unit_products(left: Tensor, right: Tensor, dim: int, index_UK: Tensor) -> Tensor:
    """``sum_i left_i right_i`` over the entries of each unit, which are the positions ``index_UK`` along ``dim``: float64 (U,).

    One pass over both tensors, whatever the number of units. Products are taken in the tensors' own type and summed in float64: a sum
    whose terms cancel keeps the digits that its terms had.
    """
    positions = left.shape[dim]
    left_PE, right_PE = left.movedim(dim, 0).reshape(positions, -1), right.movedim(dim, 0).reshape(positions, -1)
    rows = max(1, CHUNK // max(1, left_PE.shape[1]))
    parts = zip(left_PE.split(rows), right_PE.split(rows), strict=True)
    sum_P = torch.cat([(left_pE * right_pE).sum(dim=1, dtype=torch.float64) for left_pE, right_pE in parts])
    return sum_P[index_UK.to(sum_P.device)].sum(dim=1)


def add_gauss_newton_(sum_SS: Tensor, jacobian_NDS: Tensor, probability_ND: Tensor) -> None:
    r"""``sum += sum_n J_n^T R_n J_n`` with ``R = diag(p) - p p^T``, in place: the curvature of the cross-entropy between units.

        J^T R J = M^T M        M = sqrt(p) (J - p^T J)

    Source: Nonnenmacher et al. 2022 (arXiv 2110.11395), eq. 6; ``R`` is never formed. One matrix product in the type of ``J``.
    """
    mean_N1S = probability_ND[:, None, :] @ jacobian_NDS
    root_MS = (jacobian_NDS - mean_N1S).mul_(probability_ND.sqrt()[:, :, None]).flatten(0, 1)
    with full_precision():
        sum_SS += root_MS.T @ root_MS


def greedy_order(quadratic_SS: Tensor) -> tuple[Tensor, Tensor]:
    r"""The order in which units go when each step adds to the set ``M`` the one that costs least beside those that are gone:

        argmin_s Q_ss + 2 sum_{s' in M} Q_ss'

    Source: Nonnenmacher et al. 2022 (arXiv 2110.11395), section 3. Costs are kept and one row of the symmetric ``Q`` is added to them in
    each step: ``O(S^2)`` in all. Among equal costs the first unit goes.
    Returns: the units in the order they go, int64 (S,), and what each cost when it went, in that order; these costs add up to
    ``1_M^T Q 1_M``.
    """
    cost_S = quadratic_SS.diagonal().clone()
    order_S = torch.empty(len(cost_S), dtype=torch.int64, device=cost_S.device)
    paid_S = torch.empty_like(cost_S)
    for step in range(len(cost_S)):
        unit = torch.argmin(cost_S)
        order_S[step], paid_S[step] = unit, cost_S[unit]
        cost_S.add_(quadratic_SS[unit], alpha=2)
        cost_S[unit] = torch.inf
    return order_S, paid_S


def vanishing(score_S: Tensor, scale_S: Tensor) -> float:
    """The share of units whose score is within rounding of zero, given how large the terms are that cancelled to it.

    All of them (1.0) is no ranking: the loss does not depend on the scale of any unit. So it is where a norm by the batch's own statistics
    follows and the norm's scale and shift are not part of the unit, or where nothing of the units reaches the loss.
    """
    return float((score_S <= ROUNDING * scale_S).double().mean())

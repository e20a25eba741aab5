"""Literal transcriptions of the formulas, one block at a time, slow and obvious: what the kernels are compared with."""

from __future__ import annotations

import numpy as np


def gauss_jordan_inverse(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a positive definite matrix in the precision of its type (also 80-bit, which numpy's own inverse refuses)."""
    size = len(matrix)
    tableau = np.concatenate([matrix, np.eye(size, dtype=matrix.dtype)], axis=1)
    for pivot in range(size):
        tableau[pivot] /= tableau[pivot, pivot]
        factor = tableau[:, pivot].copy()
        factor[pivot] = 0
        tableau -= factor[:, None] * tableau[pivot]
    return tableau[:, size:]


def literal_obs(
    weight: np.ndarray, matrix: np.ndarray, alive: np.ndarray, dampening: float, dtype: type = np.float64
) -> tuple[list[int], list[float], list[np.ndarray]]:
    """Greedy optimal brain surgeon on one block, as in Hassibi & Stork 1992, eq. 5, applied to the alive entries.

        q = argmin_alive w_q^2 / A_qq;  loss = w_q^2 / (2 A_qq);  w -= (w_q / A_qq) A[:, q];  A -= A[:, q] A[q, :] / A_qq

    Returns: entries in the order they go, the loss of each step, and the weights after each step (the trace).
    """
    kept = np.flatnonzero(alive)
    full = matrix.astype(dtype)[np.ix_(kept, kept)] + dtype(dampening) * np.eye(len(kept), dtype=dtype)
    inverse = gauss_jordan_inverse(full)
    w = weight.astype(dtype)[kept]
    present = np.ones(len(kept), dtype=bool)
    order, losses, trace = [], [], []
    for _ in kept:
        cost = np.where(present, w**2 / np.where(present, np.diag(inverse), 1), np.inf)
        q = int(np.argmin(cost))
        order.append(int(kept[q]))
        losses.append(float(cost[q] / 2))
        column = inverse[:, q].copy()
        w = w - w[q] / column[q] * column
        inverse = inverse - np.outer(column, column) / column[q]
        w[q] = 0
        present[q] = False
        weights = np.zeros(len(weight), dtype=dtype)
        weights[kept] = np.where(present, w, 0)
        trace.append(weights)
    return order, losses, trace


def constrained_least_squares(weight: np.ndarray, matrix: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Minimise ``1/2 delta^T H delta`` with ``delta_R = -w_R`` by its optimality (KKT) system, with multipliers for the constraints."""
    size, chosen = len(weight), np.flatnonzero(removed)
    pick = np.eye(size)[chosen]
    system = np.block([[matrix, pick.T], [pick, np.zeros((len(chosen), len(chosen)))]])
    right = np.concatenate([np.zeros(size), -weight[chosen]])
    return weight + np.linalg.lstsq(system, right, rcond=None)[0][:size]


def pairwise_hull_slopes(losses: np.ndarray) -> np.ndarray:
    """Slopes of the lower convex hull of the cumulative loss, from the definition.

    The slope on (k, k+1) of the greatest convex minorant is ``max_{i <= k} min_{j > k} (S_j - S_i) / (j - i)``.
    """
    total = np.concatenate([[0.0], np.cumsum(losses)])
    count = len(losses)

    def least_chord(i: int, k: int) -> float:
        return min((total[j] - total[i]) / (j - i) for j in range(k + 1, count + 1))

    return np.array([max(least_chord(i, k) for i in range(k + 1)) for k in range(count)])

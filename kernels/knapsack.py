"""The multiple-choice knapsack: one option of each group, with the largest total value within a budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy import ndarray

BINS = 10_000  # of the grid of costs
GREEDY_BINS = 2_000


def exact(values: Sequence[ndarray], costs: Sequence[ndarray], budgets: Sequence[float], bins: int = BINS) -> list[ndarray | None]:
    r"""Returns, for each budget, the options (G,) int64 with the largest total value, or None if even the cheapest ones exceed it.

        D_l[c] = max_p  D_{l-1}[c - T_l(p)] + I_l(p)

    The program runs on a grid of ``bins`` costs up to the largest budget; values are not rounded. The cost of an option beyond the cheapest
    one of its group is rounded down to the grid, so the best choice on the grid is worth at least the optimum. If its real cost is within
    the budget, it *is* the optimum; otherwise the best choice for one bin less is tried, and so on. In the worst case, after G bins, the
    result is the best choice among those that leave ``G / bins`` of the largest budget unspent. Among equal options the cheaper one is
    chosen, then the first.

    ``values`` and ``costs`` are (P_g,) float64 by group, in any order. Takes ``bins * sum_g P_g`` additions.
    Source: the problem is that of Shen et al. 2022 (arXiv 2210.06659, eq. 4), the program that of Kellerer et al. 2004, section 11.5.
    Raises: ValueError for a group without options, numbers that are not finite, and negative costs.
    """
    _check(values, costs)
    if not values:
        return [np.empty(0, dtype=np.int64) if budget >= 0 else None for budget in budgets]
    least = np.array([cost.min() for cost in costs])
    capacities = np.array([budget - least.sum() for budget in budgets])
    top = capacities.max(initial=0.0)
    step = top / bins if top > 0 else 1.0
    offsets = np.concatenate([[0], np.cumsum([len(value) for value in values])])
    extra = np.concatenate([cost - lowest for cost, lowest in zip(costs, least, strict=True)])
    steps_S = np.minimum(np.floor(extra / step * (1 + 1e-12)), bins + 1).astype(np.int64)
    chosen_GC = _programme(np.concatenate(values).astype(float), steps_S, offsets, bins)
    choices: list[ndarray | None] = []
    for budget, capacity in zip(budgets, capacities, strict=True):
        if capacity < 0:
            choices.append(None)
            continue
        spent = min(int(capacity / step * (1 + 1e-12)), bins)
        choice = _trace(chosen_GC, steps_S, offsets, spent)
        while spent > 0 and _cost(costs, choice) > budget:
            spent -= 1
            choice = _trace(chosen_GC, steps_S, offsets, spent)
        choices.append(_improve(values, costs, choice, budget))
    return choices


def _cost(costs: Sequence[ndarray], choice: ndarray) -> float:
    return float(sum(cost[option] for cost, option in zip(costs, choice, strict=True)))


@njit(cache=True)
def _programme(values_S: ndarray, steps_S: ndarray, offsets: ndarray, bins: int) -> ndarray:
    """Returns the option of each group in the best choice for it and all groups before it that takes at most c bins, (G, bins + 1)."""
    groups = len(offsets) - 1
    chosen_GC = np.zeros((groups, bins + 1), dtype=np.int32)
    before_C = np.zeros(bins + 1)
    for group in range(groups):
        best_C = np.full(bins + 1, -np.inf)
        for option in range(offsets[group], offsets[group + 1]):
            value, steps = values_S[option], steps_S[option]
            for c in range(steps, bins + 1):
                total = before_C[c - steps] + value
                if total > best_C[c]:
                    best_C[c] = total
                    chosen_GC[group, c] = option - offsets[group]
        before_C = best_C
    return chosen_GC


def _trace(chosen_GC: ndarray, steps_S: ndarray, offsets: ndarray, capacity: int) -> ndarray:
    choice = np.empty(len(chosen_GC), dtype=np.int64)
    for group in range(len(chosen_GC) - 1, -1, -1):
        choice[group] = chosen_GC[group, capacity]
        capacity -= steps_S[offsets[group] + choice[group]]
    return choice


def _improve(values: Sequence[ndarray], costs: Sequence[ndarray], choice: ndarray, budget: float) -> ndarray:
    """Replaces single options by better ones while they fit, the largest gain first, by real costs. Changes and returns ``choice``."""
    while True:
        total = _cost(costs, choice)
        best, change = 0.0, (-1, -1)
        for group, option in enumerate(choice):
            gains = np.where(total - costs[group][option] + costs[group] <= budget, values[group] - values[group][option], 0.0)
            better = int(gains.argmax())
            if gains[better] > best:
                best, change = float(gains[better]), (group, better)
        if change[0] < 0:
            return choice
        choice[change[0]] = change[1]


def greedy(values: Sequence[ndarray], costs: Sequence[ndarray], budget: float, bins: int = GREEDY_BINS) -> ndarray | None:
    """Returns the options by HALP's algorithm, for comparison; it is not optimal. None if even the first options exceed the budget.

    The step from one option of a group to the next is an item, with the value and the cost that it adds. Items are processed one by one,
    the most valuable first among those whose predecessors were processed. For every cost, the program keeps the better of the choices with
    and without the item; the item can only be added to a choice that contains all earlier items of its group. Choices that skip a better
    item for a later one are lost, so the result is not exact. Negative costs of items count as 0.
    Source: Shen et al. 2022 (arXiv 2210.06659, algorithm 1). Differs: values are floats instead of integers, and costs are rounded up, so
    that the budget is met.
    """
    _check(values, costs)
    raised = [np.maximum.accumulate(cost) for cost in costs]
    capacity = budget - sum(cost[0] for cost in raised)
    if capacity < 0:
        return None
    if not values or capacity == 0:
        return np.zeros(len(values), dtype=np.int64)
    step = capacity / bins
    steps = [np.ceil(np.diff(cost) / step - 1e-9).astype(np.int64) for cost in raised]
    gains = [np.diff(value) for value in values]
    order = _by_gain(gains)
    owner, gain = np.array([group for group, _ in order], dtype=np.int64), np.array([gains[group][item] for group, item in order])
    cost = np.array([steps[group][item] for group, item in order], dtype=np.int64)
    return _item_by_item(owner, gain, cost, len(values), bins)


def _by_gain(gains: Sequence[ndarray]) -> list[tuple[int, int]]:
    """Returns (group, item) by decreasing gain, with no item before its predecessors."""
    from heapq import heapify, heappop, heappush

    heap = [(-gain[0], group, 0) for group, gain in enumerate(gains) if len(gain)]
    heapify(heap)
    order = []
    while heap:
        _, group, item = heappop(heap)
        order.append((group, item))
        if item + 1 < len(gains[group]):
            heappush(heap, (-gains[group][item + 1], group, item + 1))
    return order


@njit(cache=True)
def _item_by_item(owner: ndarray, gain: ndarray, cost: ndarray, groups: int, bins: int) -> ndarray:
    items_CG = np.zeros((bins + 1, groups), dtype=np.int64)  # items of each group in the best choice, for each cost
    value_C = np.zeros(bins + 1)
    processed = np.zeros(groups, dtype=np.int64)  # items of each group that were processed
    for index in range(len(owner)):
        group, item = owner[index], processed[owner[index]]
        processed[group] += 1
        for c in range(bins, cost[index] - 1, -1):  # downwards, so that states below are those before this item
            below = c - cost[index]
            total = value_C[below] + gain[index]
            if total > value_C[c] and items_CG[below, group] == item:
                value_C[c] = total
                items_CG[c] = items_CG[below]
                items_CG[c, group] = item + 1
    return items_CG[bins].copy()


def _check(values: Sequence[ndarray], costs: Sequence[ndarray]) -> None:
    if len(values) != len(costs):
        raise ValueError(f"knapsack: expected values and costs of the same number of groups, got {len(values)} and {len(costs)}")
    for group, (value, cost) in enumerate(zip(values, costs, strict=True)):
        if len(value) == 0 or len(value) != len(cost):
            raise ValueError(f"knapsack: expected a value and a cost for each option of group {group}, got {len(value)} and {len(cost)}")
        if not (np.isfinite(value).all() and np.isfinite(cost).all() and (cost >= 0).all()):
            raise ValueError(f"knapsack: expected finite values, and finite costs of at least 0, in group {group}")

"""Chooses how many units each group keeps: the widths that keep the most importance within budgets."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from workers.checks import require
from workers.models.structure_costs import Part
from workers.pruners.units import Solver

if TYPE_CHECKING:
    from numpy import ndarray

Picks = Sequence[int]  # for each group, the position of one of its choices
SURROGATES = 16  # weightings of several budgets that are tried
SHARPNESS = 2  # exponent with which a weight follows the used part of its budget
ROUNDS = 12  # solutions around the widths of the one before
JOINT_SECONDS = 60.0
EVENLY = 64  # fractions of all groups that are tried first


def evenly_spaced(units: int, widths: int) -> tuple[int, ...]:
    """Returns at most ``widths`` rising numbers of units, evenly spaced down from ``units``."""
    return tuple(sorted(range(units, 0, -ceil(units / widths))))


@dataclass(frozen=True)
class Choice:
    """The widths that one group may have, rising, and the importance that the group keeps at each."""

    widths: ndarray  # (P,) int
    values: ndarray  # (P,) float64


def width_choices(
    importance: Mapping[str, Sequence[float]], floors: Mapping[str, int], levels: Mapping[str, Sequence[int]]
) -> dict[str, Choice]:
    """Returns the choices of each group: its floor, and those of its ``levels`` that are above.

    ``importance`` (U,) lists the importance of the units of a group in the order of their removal. A group of width p keeps the last p
    units, and ``I_g(p)`` is the sum of their importance.
    """
    choices = {}
    for name, importance_U in importance.items():
        values = np.concatenate([[0.0], np.cumsum(np.asarray(importance_U, dtype=float)[::-1])])
        widths = np.array(sorted({floors[name], *(level for level in levels[name] if level >= floors[name])}), dtype=int)
        choices[name] = Choice(widths, values[widths])
    return choices


class CostTable:
    """One cost of a model, tabulated over the choices of its groups. Methods take positions of choices ("picks") instead of widths.

    Parts that read one group or two are tables. Parts that read more, such as layers that read concatenated channels, are evaluated where
    they are needed.
    """

    def __init__(self, choices: Mapping[str, Choice], parts: Sequence[Part]) -> None:
        self.choices, self._names = list(choices.values()), list(choices)
        self._smallest = {name: int(choice.widths[0]) for name, choice in choices.items()}
        self.fixed = 0.0
        self.single = [np.zeros(len(choice.widths)) for choice in self.choices]
        self.pairs: dict[tuple[int, int], ndarray] = {}
        self.many: list[tuple[tuple[int, ...], Part]] = []
        index_of = {name: index for index, name in enumerate(choices)}
        for part in parts:
            groups = tuple(sorted(index_of[name] for name in part.groups if name in index_of))
            if len(groups) > 2:
                self.many.append((groups, part))
                continue
            table = self._tabulate(part, groups)
            if not groups:
                self.fixed += float(table)
            elif len(groups) == 1:
                self.single[groups[0]] += table
            else:
                self.pairs[groups[0], groups[1]] = self.pairs.get((groups[0], groups[1]), 0.0) + table

    def _tabulate(self, part: Part, groups: Sequence[int]) -> ndarray:
        table = np.empty(tuple(len(self.choices[group].widths) for group in groups))
        for cell in np.ndindex(*table.shape):
            widths = {self._names[group]: int(self.choices[group].widths[pick]) for group, pick in zip(groups, cell, strict=True)}
            table[cell] = part.value(self._smallest | widths)
        return table

    def _widths(self, picks: Picks) -> dict[str, int]:
        return {name: int(choice.widths[pick]) for name, choice, pick in zip(self._names, self.choices, picks, strict=True)}

    @classmethod
    def weighted_sum(cls, tables: Sequence[CostTable], weights: Sequence[float]) -> CostTable:
        """Returns the weighted sum of several costs over the same choices."""
        total = copy.copy(tables[0])
        total.fixed = sum(weight * table.fixed for table, weight in zip(tables, weights, strict=True))
        total.single = [
            sum(weight * single for single, weight in zip(singles, weights, strict=True))
            for singles in zip(*(table.single for table in tables), strict=True)
        ]
        total.pairs, total.many = {}, []
        for table, weight in zip(tables, weights, strict=True):
            for pair, costs in table.pairs.items():
                total.pairs[pair] = total.pairs.get(pair, 0.0) + weight * costs
            total.many += [(groups, _scaled(part, weight)) for groups, part in table.many]
        return total

    def total(self, picks: Picks) -> float:
        """Returns the cost of a model with these choices."""
        cost = self.fixed + sum(single[pick] for single, pick in zip(self.single, picks, strict=True))
        cost += sum(pair[picks[first], picks[second]] for (first, second), pair in self.pairs.items())
        widths = self._widths(picks) if self.many else {}
        return float(cost + sum(part.value(widths) for _, part in self.many))

    def around(self, picks: Picks) -> tuple[list[ndarray], float]:
        """Returns a separable approximation: for each group, the cost of its choices while all others keep their ``picks``, and a rest.

        Their sum is exact at ``picks``, and where one group alone differs from them.
        """
        lines, rest = [single.copy() for single in self.single], self.fixed
        for (first, second), pair in self.pairs.items():
            lines[first] += pair[:, picks[second]]
            lines[second] += pair[picks[first], :]
            rest -= float(pair[picks[first], picks[second]])
        widths = self._widths(picks) if self.many else {}
        for groups, part in self.many:
            rest -= (len(groups) - 1) * part.value(widths)
            for group in groups:
                name = self._names[group]
                lines[group] += [part.value(widths | {name: int(width)}) for width in self.choices[group].widths]
        return lines, rest


def _scaled(part: Part, weight: float) -> Part:
    return Part(part.groups, lambda units: weight * part.value(units))


def choose_within_all(tables: Sequence[CostTable], budgets: Sequence[float], solver: Solver) -> list[int]:
    """Like ``choose_widths`` for several costs over the same choices, each within its own budget. Returns the smallest widths if these
    exceed a budget.

    Solves one problem whose cost is the weighted mean of all costs, each as a fraction of its budget. Choices that keep all budgets also
    keep this one, so its optimum is an upper bound. The weights of exceeded budgets rise between ``SURROGATES`` solutions, and the best
    solution that keeps all budgets wins; the rest of the budgets is then spent. Source: surrogate constraints (Glover 1975).
    """
    if len(tables) == 1:
        return choose_widths(tables[0], budgets[0], solver)
    smallest = [0] * len(tables[0].choices)
    if any(table.total(smallest) > budget for table, budget in zip(tables, budgets, strict=True)):
        return smallest

    def used(picks: Picks) -> ndarray:
        return np.array([table.total(picks) / budget for table, budget in zip(tables, budgets, strict=True)])

    best, weights, allowed = smallest, np.full(len(tables), 1 / len(tables)), 1.0
    for _ in range(SURROGATES):
        combined = CostTable.weighted_sum(tables, [weight / budget for weight, budget in zip(weights, budgets, strict=True)])
        picks = choose_widths(combined, allowed, solver)
        used_fractions = used(picks)
        if used_fractions.max() <= 1 and _importance(tables[0], picks) > _importance(tables[0], best):
            best = picks
        weights *= used_fractions**SHARPNESS
        weights /= weights.sum()
    while best == smallest and allowed > 0.1:  # there are few widths, and no solution kept all budgets: aim lower
        allowed *= 0.95
        picks = choose_widths(combined, allowed, solver)
        best = picks if used(picks).max() <= 1 else smallest
    return _spend(tables, budgets, best) if solver is Solver.EXACT else best


def choose_widths(table: CostTable, budget: float, solver: Solver) -> list[int]:
    """Returns the choices that keep the most importance at a cost of at most ``budget``, or the cheapest choices if these cost more.

        max_p  sum_g I_g(p_g)     s.t.  sum_k T_k(p) <= budget

    Where every part T_k reads one group, this is a multiple-choice knapsack. A part that reads two groups (a convolution whose inputs and
    outputs can both be removed) or more is approximated by a sum over its groups, which is exact at the widths of the last solution. The
    knapsack is solved again with that until it finds nothing better, and the rest of the budget is spent where it buys most. ``joint`` puts
    the tables of two groups into the problem itself; ``uniform`` ignores importance. The result never costs more than the budget, by the
    parts as they are.
    Source: Shen et al. 2022 (arXiv 2210.06659), who solve once with the input widths of the current model.
    Raises: ConfigError for ``joint`` if a part reads more than two groups or ortools is not installed.
    """
    smallest = cheapest(table)
    if table.total(smallest) > budget:
        return smallest
    if solver is Solver.JOINT:
        reason = f"{len(table.many)} layers of this model read more than two groups, which joint cannot handle"
        require(not table.many, "pruner.target.solver", "exact, greedy or uniform", solver.value, reason)
        from orchestrator.allocation.joint import choose_jointly

        values = [choice.values for choice in table.choices]
        picks, _ = choose_jointly(values, table.single, table.pairs, budget - table.fixed, JOINT_SECONDS)
        return smallest if picks is None else picks.tolist()
    best = reference = _evenly(table, budget, smallest)
    if solver is Solver.UNIFORM:
        return best
    allowed = budget
    for _ in range(ROUNDS):
        solution = _solve_around(table, reference, allowed, solver)
        excess = table.total(solution) - budget
        if excess > 0:  # the approximation was too low so far from the reference
            allowed -= 0.5 * excess
        elif _importance(table, solution) > _importance(table, best):
            best = solution
        if solution == reference:
            break
        reference = solution
    return _spend([table], [budget], best) if solver is Solver.EXACT else best


def _importance(table: CostTable, picks: Picks) -> float:
    return float(sum(choice.values[pick] for choice, pick in zip(table.choices, picks, strict=True)))


def cheapest(table: CostTable) -> list[int]:
    """Returns the choices that cost least: the smallest widths, except where a table has a wider group as the faster one.

    Starts at the smallest widths and improves one group at a time. This is the optimum where no part reads two groups, or costs only rise.
    """
    picks = [0] * len(table.choices)
    while True:
        lines, _ = table.around(picks)
        gains = [float(line[pick] - line.min()) for line, pick in zip(lines, picks, strict=True)]
        best = max(range(len(gains)), key=gains.__getitem__, default=None)
        if best is None:
            return picks
        cheaper = [*picks[:best], int(lines[best].argmin()), *picks[best + 1 :]]
        if table.total(cheaper) >= table.total(picks):
            return picks
        picks = cheaper


def _evenly(table: CostTable, budget: float, smallest: list[int]) -> list[int]:
    """Returns the largest equal fraction of all groups within the budget, or ``smallest`` if there is none."""
    for part in range(EVENLY, 0, -1):
        limits = [choice.widths[-1] * part / EVENLY for choice in table.choices]
        picks = [
            max(int(np.searchsorted(choice.widths, limit, side="right")) - 1, 0)
            for choice, limit in zip(table.choices, limits, strict=True)
        ]
        if table.total(picks) <= budget:
            return picks
    return smallest


def _solve_around(table: CostTable, reference: Picks, budget: float, solver: Solver) -> list[int]:
    """Solves the knapsack with the separable approximation around ``reference``."""
    from kernels import knapsack

    lines, rest = table.around(reference)
    shifted, values = [line - line.min() for line in lines], [choice.values for choice in table.choices]
    capacity = budget - rest - float(sum(line.min() for line in lines))
    lowest = [int(line.argmin()) for line in lines]
    if capacity < 0:
        return lowest
    picks = knapsack.greedy(values, shifted, capacity) if solver is Solver.GREEDY else knapsack.exact(values, shifted, [capacity])[0]
    return lowest if picks is None else picks.tolist()


def _spend(tables: Sequence[CostTable], budgets: Sequence[float], picks: Picks) -> list[int]:
    """Widens one group at a time while no budget is exceeded: the one with the most importance per cost, as a fraction of the scarcest
    budget."""
    picks = list(picks)
    while True:
        lines = [table.around(picks)[0] for table in tables]
        remaining = [budget - table.total(picks) for table, budget in zip(tables, budgets, strict=True)]
        best_ratio, best_group, best_pick = 0.0, -1, -1
        for group, choice in enumerate(tables[0].choices):
            gains = choice.values - choice.values[picks[group]]
            prices = [line[group] - line[group][picks[group]] for line in lines]
            affordable = np.logical_and.reduce([price <= rest for price, rest in zip(prices, remaining, strict=True)])
            fractions = np.max([np.maximum(price / budget, 1e-9) for price, budget in zip(prices, budgets, strict=True)], axis=0)
            ratios = np.where((gains > 0) & affordable, gains / fractions, 0.0)
            if ratios.max() > best_ratio:
                best_ratio, best_group, best_pick = float(ratios.max()), group, int(ratios.argmax())
        if best_group < 0:
            return picks
        wider = [*picks[:best_group], best_pick, *picks[best_group + 1 :]]
        if any(table.total(wider) > budget for table, budget in zip(tables, budgets, strict=True)):
            return picks
        picks = wider

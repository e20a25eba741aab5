"""How many units each group keeps: the widths that keep most importance at a cost, which is a sum of parts that read few groups each."""

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

SURROGATES = 16  # weights of several budgets that are tried
SHARPNESS = 2  # of how a weight follows what is used of its budget
ROUNDS = 12  # of solving again around the widths of the last solution
JOINT_SECONDS = 60.0
EVENLY = 64  # fractions of all groups that are tried to begin with


def evenly_spaced(units: int, widths: int) -> tuple[int, ...]:
    """At most ``widths`` numbers of units, evenly spaced down from all of them, rising."""
    return tuple(sorted(range(units, 0, -ceil(units / widths))))


@dataclass(frozen=True)
class Choice:
    """What one group may keep, rising, and the importance that it then keeps."""

    widths: ndarray  # (P,) int
    values: ndarray  # (P,) float64


def choices_of(
    importance: Mapping[str, Sequence[float]], floors: Mapping[str, int], levels: Mapping[str, Sequence[int]]
) -> dict[str, Choice]:
    """What each group may keep: ``levels`` of it that are at least its floor, and the floor itself.

    ``importance`` (U,) lists what the units of a group are worth, in the order in which they go: a group that keeps p of them keeps the
    last p. ``I_g(p)`` is their sum.
    """
    found = {}
    for name, worth_U in importance.items():
        kept = np.concatenate([[0.0], np.cumsum(np.asarray(worth_U, dtype=float)[::-1])])
        widths = np.array(sorted({floors[name], *(level for level in levels[name] if level >= floors[name])}), dtype=int)
        found[name] = Choice(widths, kept[widths])
    return found


class Costs:
    """Parts as tables over what groups may choose: positions of choices take the place of widths from here on.

    Parts of one and of two groups are tables; those of more (layers that read concatenated channels) are asked where they are needed.
    """

    def __init__(self, choices: Mapping[str, Choice], parts: Sequence[Part]) -> None:
        self.choices, self._names = list(choices.values()), list(choices)
        self._least = {name: int(choice.widths[0]) for name, choice in choices.items()}
        self.fixed = 0.0
        self.own = [np.zeros(len(choice.widths)) for choice in self.choices]
        self.pairs: dict[tuple[int, int], ndarray] = {}
        self.many: list[tuple[tuple[int, ...], Part]] = []
        at = {name: index for index, name in enumerate(choices)}
        for part in parts:
            groups = tuple(sorted(at[name] for name in part.groups if name in at))
            if len(groups) > 2:
                self.many.append((groups, part))
                continue
            table = self._table(part, groups)
            if not groups:
                self.fixed += float(table)
            elif len(groups) == 1:
                self.own[groups[0]] += table
            else:
                self.pairs[groups[0], groups[1]] = self.pairs.get((groups[0], groups[1]), 0.0) + table

    def _table(self, part: Part, groups: Sequence[int]) -> ndarray:
        table = np.empty(tuple(len(self.choices[group].widths) for group in groups))
        for cell in np.ndindex(*table.shape):
            chosen = {self._names[group]: int(self.choices[group].widths[at]) for group, at in zip(groups, cell, strict=True)}
            table[cell] = part.value(self._least | chosen)
        return table

    def _widths(self, at: Sequence[int]) -> dict[str, int]:
        return {name: int(of.widths[index]) for name, of, index in zip(self._names, self.choices, at, strict=True)}

    @classmethod
    def sum_of(cls, costs: Sequence[Costs], weights: Sequence[float]) -> Costs:
        """Several costs of the same choices as one, each times its weight."""
        found = copy.copy(costs[0])
        found.fixed = sum(weight * cost.fixed for cost, weight in zip(costs, weights, strict=True))
        found.own = [
            sum(weight * own for own, weight in zip(owns, weights, strict=True)) for owns in zip(*(c.own for c in costs), strict=True)
        ]
        found.pairs, found.many = {}, []
        for cost, weight in zip(costs, weights, strict=True):
            for pair, table in cost.pairs.items():
                found.pairs[pair] = found.pairs.get(pair, 0.0) + weight * table
            found.many += [(groups, _times(part, weight)) for groups, part in cost.many]
        return found

    def total(self, at: Sequence[int]) -> float:
        found = self.fixed + sum(own[index] for own, index in zip(self.own, at, strict=True))
        found += sum(table[at[first], at[second]] for (first, second), table in self.pairs.items())
        widths = self._widths(at) if self.many else {}
        return float(found + sum(part.value(widths) for _, part in self.many))

    def around(self, at: Sequence[int]) -> tuple[list[ndarray], float]:
        """By group, what its choices cost while all others stay ``at`` theirs, and a rest: together they are exact there."""
        lines, rest = [own.copy() for own in self.own], self.fixed
        for (first, second), table in self.pairs.items():
            lines[first] += table[:, at[second]]
            lines[second] += table[at[first], :]
            rest -= float(table[at[first], at[second]])
        widths = self._widths(at) if self.many else {}
        for groups, part in self.many:
            rest -= (len(groups) - 1) * part.value(widths)
            for group in groups:
                name = self._names[group]
                lines[group] += [part.value(widths | {name: int(width)}) for width in self.choices[group].widths]
        return lines, rest


def _times(part: Part, weight: float) -> Part:
    return Part(part.groups, lambda units: weight * part.value(units))


def choose_within_all(costs: Sequence[Costs], budgets: Sequence[float], solver: Solver) -> list[int]:
    """``choose_widths`` for several costs of the same choices, none of which may be more than its budget; of the least if they cannot.

    Solved as one problem whose cost is a weighted mean of all costs, as fractions of their budgets: what keeps all budgets keeps that, so
    it is worth at least as much as the answer. The weights of budgets that are overrun rise, until the best that keeps all of them does
    not change; what is left is spent. Source: surrogate constraints (Glover 1975).
    """
    if len(costs) == 1:
        return choose_widths(costs[0], budgets[0], solver)
    least = [0] * len(costs[0].choices)
    if any(cost.total(least) > budget for cost, budget in zip(costs, budgets, strict=True)):
        return least

    def used(at: Sequence[int]) -> ndarray:
        return np.array([cost.total(at) / budget for cost, budget in zip(costs, budgets, strict=True)])

    best, weights, allowed = least, np.full(len(costs), 1 / len(costs)), 1.0
    for _ in range(SURROGATES):
        together = Costs.sum_of(costs, [weight / budget for weight, budget in zip(weights, budgets, strict=True)])
        found = choose_widths(together, allowed, solver)
        of_budget = used(found)
        if of_budget.max() <= 1 and _value(costs[0], found) > _value(costs[0], best):
            best = found
        weights *= of_budget**SHARPNESS
        weights /= weights.sum()
    while best == least and allowed > 0.1:  # widths are few, and none of the solutions kept all: aim lower
        allowed *= 0.95
        found = choose_widths(together, allowed, solver)
        best = found if used(found).max() <= 1 else least
    return _spend(costs, budgets, best) if solver is Solver.EXACT else best


def choose_widths(costs: Costs, budget: float, solver: Solver) -> list[int]:
    """Positions of the choices with the most importance whose cost is at most ``budget``; of the cheapest if even they cost more.

        max_p  sum_g I_g(p_g)     s.t.  sum_k T_k(p) <= budget

    A part T_k that reads one group is a table of its width, and the problem a multiple-choice knapsack. One that reads two (a
    convolution whose inputs and outputs may go) or more is taken for a sum of tables around the widths of the last solution, at which that
    is exact, and the knapsack is solved again, until nothing better is found; what is left of the budget is spent on what is worth most.
    ``joint`` puts the tables of two groups into the problem itself; ``uniform`` looks at no importance. The result never costs more than
    the budget, by the parts as they are.
    Source: Shen et al. 2022 (arXiv 2210.06659), who solve once with the input widths of the model as it is.
    Raises: ConfigError for ``joint`` if a part reads more than two groups, or a package is missing.
    """
    least = cheapest(costs)
    if costs.total(least) > budget:
        return least
    if solver is Solver.JOINT:
        joint = f"exact, since {len(costs.many)} layers read more than two groups"
        require(not costs.many, "pruner.target.solver", joint, solver.value)
        from orchestrator.allocation.joint import jointly

        values = [choice.values for choice in costs.choices]
        together, _ = jointly(values, costs.own, costs.pairs, budget - costs.fixed, JOINT_SECONDS)
        return least if together is None else together.tolist()
    best = reference = _evenly(costs, budget, least)
    if solver is Solver.UNIFORM:
        return best
    allowed = budget
    for _ in range(ROUNDS):
        found = _solve_around(costs, reference, allowed, solver)
        over = costs.total(found) - budget
        if over > 0:  # so far from the reference, the sums of two tables were too low
            allowed -= 0.5 * over
        elif _value(costs, found) > _value(costs, best):
            best = found
        if found == reference:
            break
        reference = found
    return _spend([costs], [budget], best) if solver is Solver.EXACT else best


def _value(costs: Costs, at: Sequence[int]) -> float:
    return float(sum(choice.values[index] for choice, index in zip(costs.choices, at, strict=True)))


def cheapest(costs: Costs) -> list[int]:
    """Positions of the choices that cost least: the smallest, but where a table says that a wider group is faster. From the smallest on,
    one group after the other is changed for the better; that is the optimum where no two groups meet in a part, or all costs rise.
    """
    now = [0] * len(costs.choices)
    while True:
        lines, _ = costs.around(now)
        gains = [float(line[at] - line.min()) for line, at in zip(lines, now, strict=True)]
        best = max(range(len(gains)), key=gains.__getitem__, default=None)
        if best is None:
            return now
        better = [*now[:best], int(lines[best].argmin()), *now[best + 1 :]]
        if costs.total(better) >= costs.total(now):
            return now
        now = better


def _evenly(costs: Costs, budget: float, least: list[int]) -> list[int]:
    """The same fraction of every group, the largest within the budget; ``least`` if there is none."""
    for part in range(EVENLY, 0, -1):
        at = [max(int(np.searchsorted(of.widths, of.widths[-1] * part / EVENLY, side="right")) - 1, 0) for of in costs.choices]
        if costs.total(at) <= budget:
            return at
    return least


def _solve_around(costs: Costs, reference: Sequence[int], budget: float, solver: Solver) -> list[int]:
    from kernels import knapsack

    lines, rest = costs.around(reference)
    shifted, values = [line - line.min() for line in lines], [choice.values for choice in costs.choices]
    left = budget - rest - float(sum(line.min() for line in lines))
    if left < 0:
        return [int(line.argmin()) for line in lines]
    found = knapsack.greedy(values, shifted, left) if solver is Solver.GREEDY else knapsack.exact(values, shifted, [left])[0]
    return [int(line.argmin()) for line in lines] if found is None else found.tolist()


def _spend(costs: Sequence[Costs], budgets: Sequence[float], at: Sequence[int]) -> list[int]:
    """Widen groups one after the other, the best bargain first, while all budgets last; what is scarcest sets the price."""
    now = list(at)
    while True:
        lines = [cost.around(now)[0] for cost in costs]
        left = [budget - cost.total(now) for cost, budget in zip(costs, budgets, strict=True)]
        best, where = 0.0, (-1, -1)
        for group, choice in enumerate(costs[0].choices):
            gain = choice.values - choice.values[now[group]]
            more = [line[group] - line[group][now[group]] for line in lines]
            fits = np.logical_and.reduce([each <= most for each, most in zip(more, left, strict=True)])
            price = np.max([np.maximum(each / budget, 1e-9) for each, budget in zip(more, budgets, strict=True)], axis=0)
            bargain = np.where((gain > 0) & fits, gain / price, 0.0)
            if bargain.max() > best:
                best, where = float(bargain.max()), (group, int(bargain.argmax()))
        if where[0] < 0:
            return now
        wider = [*now[: where[0]], where[1], *now[where[0] + 1 :]]
        if any(cost.total(wider) > budget for cost, budget in zip(costs, budgets, strict=True)):
            return now
        now = wider

"""How many units each group keeps: the widths that keep most importance at a cost, which is a sum of parts that read few groups each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workers.models.structure_costs import Part
from workers.pruners.units import Solver

if TYPE_CHECKING:
    from numpy import ndarray

ROUNDS = 12  # of solving again with the widths that the last solution found
JOINT_SECONDS = 60.0
Widths = dict[str, int]


@dataclass(frozen=True)
class Choice:
    """What one group may keep, rising, and the importance that it then keeps."""

    widths: ndarray  # (P,) int
    values: ndarray  # (P,) float64


def choose_widths(choices: Mapping[str, Choice], parts: Sequence[Part], budget: float, solver: Solver) -> Widths:
    """Widths by group with the most importance whose cost is at most ``budget``; the least widths if even they cost more.

        max_p  sum_g I_g(p_g)     s.t.  sum_k T_k(p) <= budget

    A part T_k that reads one group is a table of its width, and the problem a multiple-choice knapsack. One that reads two (a
    convolution whose inputs and outputs may go) is taken for a sum of two tables around the widths of the last solution, at which that
    is exact, and the knapsack is solved again, until nothing better is found. What is left of the budget then is spent on what is still
    worth most. The result never costs more than the budget by the parts themselves.
    Source: Shen et al. 2022 (arXiv 2210.06659), who solve once with the input widths of the dense model.
    """
    if solver is Solver.JOINT:
        return _jointly(choices, parts, budget)
    reference = _evenly(choices, parts, budget)
    best, most = reference, _value(choices, reference) if _cost(parts, reference) <= budget else -np.inf
    if most == -np.inf:
        return best
    allowed = budget
    for _ in range(ROUNDS):
        found = _solve_around(choices, parts, reference, allowed, solver)
        cost = _cost(parts, found)
        if cost > budget:  # the two tables were wrong so far from the reference
            allowed -= 0.5 * (cost - budget)
        elif (value := _value(choices, found)) > most:
            best, most = found, value
        if found == reference:
            break
        reference = found
    return _spend(choices, parts, budget, best) if solver is Solver.EXACT else best


def _cost(parts: Sequence[Part], widths: Widths) -> float:
    return sum(part.value(widths) for part in parts)


def _value(choices: Mapping[str, Choice], widths: Widths) -> float:
    return float(sum(choice.values[np.searchsorted(choice.widths, widths[name])] for name, choice in choices.items()))


def _evenly(choices: Mapping[str, Choice], parts: Sequence[Part], budget: float) -> Widths:
    """The same fraction of every group, the largest of 1 / 64 ... 64 / 64 that is within the budget, else the least widths."""
    for part in range(64, -1, -1):
        widths = {}
        for name, choice in choices.items():
            within = np.searchsorted(choice.widths, choice.widths[-1] * part / 64, side="right")
            widths[name] = int(choice.widths[max(within - 1, 0)])
        if _cost(parts, widths) <= budget:
            break
    return widths


def _solve_around(choices: Mapping[str, Choice], parts: Sequence[Part], reference: Widths, budget: float, solver: Solver) -> Widths:
    """The knapsack with every part as a sum of tables that is exact at ``reference``, and at any change of one group alone."""
    from kernels import knapsack

    tables, fixed = lines(choices, parts, reference)
    names, shifts = list(choices), {name: float(table.min()) for name, table in tables.items()}
    values = [choices[name].values for name in names]
    costs = [tables[name] - shifts[name] for name in names]
    left = budget - fixed - sum(shifts.values())
    if left < 0:
        return {name: int(choices[name].widths[int(table.argmin())]) for name, table in tables.items()}
    found = knapsack.greedy(values, costs, left) if solver is Solver.GREEDY else knapsack.exact(values, costs, [left])[0]
    assert found is not None  # the least of each table fits
    return {name: int(choices[name].widths[index]) for name, index in zip(names, found, strict=True)}


def lines(choices: Mapping[str, Choice], parts: Sequence[Part], reference: Widths) -> tuple[dict[str, ndarray], float]:
    """By group, what its widths cost while all others are as in ``reference``, and a rest: together they are exact there."""
    read: dict[str, list[Part]] = {name: [] for name in choices}
    rest = 0.0
    for part in parts:
        of = [name for name in part.groups if name in choices]
        rest -= (len(of) - 1) * part.value(reference)
        for name in of:
            read[name].append(part)

    def line(name: str) -> ndarray:
        return np.array(
            [sum(part.value(reference | {name: int(width)}) for part in read[name]) for width in choices[name].widths], dtype=float
        )

    return {name: line(name) for name in choices}, rest


def _spend(choices: Mapping[str, Choice], parts: Sequence[Part], budget: float, widths: Widths) -> Widths:
    """Widen groups one step at a time, the best bargain first, while the budget lasts."""
    read = {name: [part for part in parts if name in part.groups] for name in choices}
    cost = _cost(parts, widths)
    while True:
        bargains: list[tuple[float, str, int, float]] = []
        for name, choice in choices.items():
            at = int(np.searchsorted(choice.widths, widths[name]))
            now = sum(part.value(widths) for part in read[name])
            for wider in range(at + 1, len(choice.widths)):
                gained, width = float(choice.values[wider] - choice.values[at]), int(choice.widths[wider])
                more = sum(part.value(widths | {name: width}) for part in read[name]) - now
                if gained > 0 and cost + more <= budget:
                    bargains.append((gained / max(more, 1e-9 * budget), name, width, more))
                if more > 0:
                    break
        if not bargains:
            return widths
        _, name, width, more = max(bargains)
        widths, cost = widths | {name: width}, cost + more


def _jointly(choices: Mapping[str, Choice], parts: Sequence[Part], budget: float) -> Widths:
    """With the table of every two groups that a part reads together. Raises: ConfigError for parts that read more."""
    from orchestrator.joint import jointly
    from workers.checks import require

    names = list(choices)
    index = {name: number for number, name in enumerate(names)}
    costs = [np.zeros(len(choices[name].widths)) for name in names]
    pairs: dict[tuple[int, int], ndarray] = {}
    at_least = {name: int(choice.widths[0]) for name, choice in choices.items()}
    fixed = 0.0
    for part in parts:
        of = sorted(index[name] for name in part.groups if name in choices)
        require(len(of) <= 2, "pruner.target.solver", "exact, since a layer reads more than two groups at once", Solver.JOINT.value)
        if not of:
            fixed += part.value(at_least)
        elif len(of) == 1:
            costs[of[0]] += _table(part, choices, [names[of[0]]], at_least)
        else:
            table = _table(part, choices, [names[of[0]], names[of[1]]], at_least)
            pairs[of[0], of[1]] = pairs.get((of[0], of[1]), 0.0) + table
    found, _ = jointly([choices[name].values for name in names], costs, pairs, budget - fixed, JOINT_SECONDS)
    if found is None:
        return at_least
    return {name: int(choices[name].widths[at]) for name, at in zip(names, found, strict=True)}


def _table(part: Part, choices: Mapping[str, Choice], names: Sequence[str], widths: Widths) -> ndarray:
    shape = tuple(len(choices[name].widths) for name in names)
    table = np.empty(shape)
    for cell in np.ndindex(*shape):
        table[cell] = part.value(widths | {name: int(choices[name].widths[at]) for name, at in zip(names, cell, strict=True)})
    return table


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

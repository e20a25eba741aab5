"""Widths of groups whose costs meet in products: against all choices there are, and never beyond the budget."""

from itertools import pairwise, product

import numpy as np
import pytest

from orchestrator.allocation.widths import CostTable, choose_widths, choose_within_all, width_choices
from workers.errors import ConfigError
from workers.models.structure_costs import Part
from workers.pruners.units import Solver


def chain(seed, groups=4, units=6):
    """Convolutions one after another: each costs the product of its inputs and outputs, and something by itself."""
    random = np.random.default_rng(seed)
    names = [f"g{index}" for index in range(groups)]
    importance = {name: np.sort(random.exponential(size=units)).tolist() for name in names}
    choices = width_choices(importance, dict.fromkeys(names, 1), dict.fromkeys(names, range(1, units + 1)))
    parts = [Part((), lambda _: 3.0)]
    for first, second in pairwise(names):
        scale = random.uniform(0.5, 2)
        parts.append(Part((first, second), lambda units, a=first, b=second, s=scale: s * units[a] * units[b]))
    own = dict(zip(names, random.uniform(0, 3, size=groups), strict=True))
    parts += [Part((name,), lambda units, a=name: own[a] * units[a]) for name in names]
    return choices, CostTable(choices, parts), parts


def cost_of(choices, parts, picks):
    units = {name: int(choice.widths[index]) for (name, choice), index in zip(choices.items(), picks, strict=True)}
    return sum(part.value(units) for part in parts)


def value_of(choices, picks):
    return sum(choice.values[index] for choice, index in zip(choices.values(), picks, strict=True))


def best_of_all(choices, parts, budget):
    every = product(*(range(len(choice.widths)) for choice in choices.values()))
    return max((value_of(choices, picks) for picks in every if cost_of(choices, parts, picks) <= budget), default=None)


def gaps_of(problem, part):
    """How much less importance the solver keeps than the best of 1,296 choices, as a fraction, on 12 problems; never over its budget."""
    gaps = []
    for seed in range(12):
        choices, costs, parts = problem(seed)
        budget = part * costs.total([5] * 4)
        picks = choose_widths(costs, budget, Solver.EXACT)
        assert cost_of(choices, parts, picks) == pytest.approx(costs.total(picks)) and costs.total(picks) <= budget
        gaps.append(1 - value_of(choices, picks) / best_of_all(choices, parts, budget))
    return gaps


@pytest.mark.parametrize("part", [0.3, 0.5, 0.7])
def test_products_of_widths_are_solved_almost_as_well_as_by_trying_all_choices(part):
    """On average within 1 %, at worst within 10 %."""
    gaps = gaps_of(chain, part)
    assert np.mean(gaps) < 0.01 and max(gaps) < 0.1


def test_constraint_programming_finds_the_best_of_all_choices():
    pytest.importorskip("ortools")
    for seed in range(4):
        choices, costs, parts = chain(seed)
        budget = 0.5 * costs.total([5] * 4)
        picks = choose_widths(costs, budget, Solver.JOINT)
        assert cost_of(choices, parts, picks) <= budget
        assert value_of(choices, picks) == pytest.approx(best_of_all(choices, parts, budget), rel=1e-4)


def test_uniform_keeps_the_largest_fraction_of_every_group_that_is_within_the_budget():
    """By trying all 64 fractions of six units each: no fraction of a unit is kept, and one unit at least."""
    choices, costs, parts = chain(3)
    tried = [[max(6 * part // 64, 1) - 1] * 4 for part in range(1, 65)]
    for budget in (0.3 * costs.total([5] * 4), 0.6 * costs.total([5] * 4), costs.total([5] * 4)):
        largest = [picks for picks in tried if cost_of(choices, parts, picks) <= budget][-1]
        assert choose_widths(costs, budget, Solver.UNIFORM) == largest


@pytest.mark.parametrize("solver", [Solver.EXACT, Solver.GREEDY])
def test_more_budget_keeps_no_less_and_all_of_it_keeps_everything(solver):
    choices, costs, _ = chain(0)
    dense = costs.total([5] * 4)
    importances = [value_of(choices, choose_widths(costs, part * dense, solver)) for part in (0.2, 0.4, 0.6, 0.8, 1.0)]
    assert importances == sorted(importances)
    assert choose_widths(costs, dense, solver) == [5] * 4


def test_a_budget_that_cannot_be_met_keeps_the_floors():
    _, costs, _ = chain(0)
    assert choose_widths(costs, 0.5 * costs.total([0] * 4), Solver.EXACT) == [0] * 4


def test_the_separable_approximation_is_exact_at_its_choices_and_for_a_change_of_one_group():
    _, costs, _ = chain(3)
    picks = [2, 4, 1, 3]
    lines, rest = costs.around(picks)
    assert rest + sum(line[index] for line, index in zip(lines, picks, strict=True)) == pytest.approx(costs.total(picks))
    assert rest + lines[0][2] + lines[1][0] + lines[2][1] + lines[3][3] == pytest.approx(costs.total([2, 0, 1, 3]))


def concatenated(seed, groups=4, units=6):
    """Layers that each read the concatenated channels of all layers before, as in a DenseNet."""
    choices, _, _ = chain(seed, groups, units)
    names, random = list(choices), np.random.default_rng(seed)
    parts = [Part((), lambda _: 3.0)]
    for last in range(1, groups):
        reads, scale = names[:last], random.uniform(0.5, 2)

        def value(units, reads=reads, writes=names[last], scale=scale):
            return scale * sum(units[name] for name in reads) * units[writes]

        parts.append(Part((*reads, names[last]), value))
    return choices, CostTable(choices, parts), parts


@pytest.mark.parametrize("part", [0.3, 0.5, 0.7])
def test_layers_that_read_several_groups_are_solved_almost_as_well_as_by_trying_all_choices(part):
    """On average within 2 %, at worst within 15 %."""
    gaps = gaps_of(concatenated, part)
    assert np.mean(gaps) < 0.02 and max(gaps) < 0.15


def test_their_separable_approximation_is_exact_at_its_choices_and_for_a_change_of_one_group():
    _, costs, _ = concatenated(3)
    lines, rest = costs.around([2, 4, 1, 3])
    assert rest + lines[0][2] + lines[1][4] + lines[2][1] + lines[3][3] == pytest.approx(costs.total([2, 4, 1, 3]))
    assert rest + lines[0][2] + lines[1][0] + lines[2][1] + lines[3][3] == pytest.approx(costs.total([2, 0, 1, 3]))


def test_constraint_programming_refuses_layers_that_read_more_than_two_groups():
    _, costs, _ = concatenated(0)
    with pytest.raises(ConfigError, match=r"pruner\.target\.solver: .*'joint'.* 2 layers"):
        choose_widths(costs, 0.5 * costs.total([5] * 4), Solver.JOINT)


# --- several budgets at once


def twice(seed):
    """A chain, and another cost of the same groups, drawn independently."""
    choices, first, parts = chain(seed)
    random = np.random.default_rng(100 + seed)
    own = {name: np.sort(random.exponential(size=6)).cumsum() for name in choices}
    others = [Part((name,), lambda units, a=name: float(own[a][units[a] - 1])) for name in choices]
    return choices, [first, CostTable(choices, others)], [parts, others]


@pytest.mark.parametrize("fractions", [(0.6, 0.4), (0.4, 0.6), (0.5, 0.5), (0.3, 0.9)])
def test_two_budgets_are_both_kept_and_almost_as_much_is_as_by_trying_all_choices(fractions):
    """On average within 1 % of the best of 1,296 choices, at worst within 10 %."""
    gaps = []
    for seed in range(12):
        choices, costs, parts = twice(seed)
        budgets = [fraction * cost.total([5] * 4) for fraction, cost in zip(fractions, costs, strict=True)]
        picks = choose_within_all(costs, budgets, Solver.EXACT)
        assert all(cost_of(choices, cost_parts, picks) <= budget + 1e-9 for cost_parts, budget in zip(parts, budgets, strict=True))
        every = product(*(range(len(choice.widths)) for choice in choices.values()))
        kept = [picks for picks in every if all(cost_of(choices, p, picks) <= budget for p, budget in zip(parts, budgets, strict=True))]
        gaps.append(1 - value_of(choices, picks) / max(value_of(choices, other) for other in kept))
    assert np.mean(gaps) < 0.01 and max(gaps) < 0.1


@pytest.mark.parametrize("solver", [Solver.EXACT, Solver.GREEDY, Solver.UNIFORM])
def test_a_loose_budget_changes_nothing_and_one_that_cannot_be_met_keeps_the_smallest_widths(solver):
    choices, (first, second), _ = twice(3)
    budget, all_of_it = 0.5 * first.total([5] * 4), second.total([5] * 4)
    alone = choose_widths(first, budget, solver)
    both = choose_within_all([first, second], [budget, 100 * all_of_it], solver)
    assert value_of(choices, both) == pytest.approx(value_of(choices, alone), rel=0.02) and first.total(both) <= budget
    assert choose_within_all([first, second], [budget, 0.5 * second.total([0] * 4)], solver) == [0] * 4
    assert choose_within_all([first], [budget], solver) == alone

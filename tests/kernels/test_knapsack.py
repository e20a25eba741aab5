"""The knapsack against all possible choices, constraint programming, and the algorithm of the paper."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.knapsack import exact, greedy


def instance(seed, groups=4, options=5, whole=True):
    """Importances that rise with the width, and times that mostly do."""
    random = np.random.default_rng(seed)
    counts = [int(random.integers(1, options + 1)) for _ in range(random.integers(1, groups + 1))]
    values = [np.concatenate([[0.0], np.cumsum(np.sort(random.exponential(size=count - 1))[::-1])]) for count in counts]
    costs = [np.clip(np.sort(random.uniform(0, 10, size=count)) + random.normal(0, 1, count), 0, None) for count in counts]
    return values, [np.round(cost) if whole else cost for cost in costs], float(random.integers(0, 30))


def spent(costs, choice):
    return sum(cost[option] for cost, option in zip(costs, choice, strict=True))


def worth(values, choice):
    return sum(value[option] for value, option in zip(values, choice, strict=True))


def best_of_all(values, costs, budget):
    every = product(*(range(len(value)) for value in values))
    return max((worth(values, choice) for choice in every if spent(costs, choice) <= budget), default=None)


@pytest.mark.parametrize("seed", range(200))
def test_no_choice_within_the_budget_is_worth_more(seed):
    values, costs, budget = instance(seed)
    (choice,) = exact(values, costs, [budget])
    best = best_of_all(values, costs, budget)
    assert (choice is None) == (best is None)
    if choice is not None:
        assert spent(costs, choice) <= budget
        assert worth(values, choice) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(100))
def test_with_any_costs_it_is_as_good_as_the_best_that_leaves_a_bin_for_each_group(seed):
    values, costs, budget = instance(seed, whole=False)
    (choice,) = exact(values, costs, [budget], bins=100)
    if choice is None:
        assert best_of_all(values, costs, budget) is None
        return
    assert spent(costs, choice) <= budget
    bound = best_of_all(values, costs, budget - len(values) * budget / 100)
    assert bound is None or worth(values, choice) >= bound - 1e-12


@pytest.mark.parametrize("seed", range(100))
def test_it_is_never_worth_less_than_the_papers_way_and_neither_breaks_the_budget(seed):
    values, costs, budget = instance(seed, groups=6, options=9, whole=False)
    ours, theirs = exact(values, costs, [budget])[0], greedy(values, costs, budget)
    if theirs is not None:
        assert ours is not None
        assert spent(costs, theirs) <= budget + 1e-9
        assert worth(values, ours) >= worth(values, theirs) - 1e-9


def test_the_papers_way_is_not_optimal():
    """One large item first leaves no room for two that are worth more together."""
    values, costs = [np.array([0.0, 5.0]), np.array([0.0, 4.0, 8.0])], [np.array([0.0, 10.0]), np.array([0.0, 5.0, 10.0])]
    assert worth(values, exact(values, costs, [10.0])[0]) == 8.0
    gaps = []
    for seed in range(300):
        values, costs, budget = instance(seed)
        theirs, best = greedy(values, costs, budget), best_of_all(values, costs, budget)
        if theirs is not None and best:
            gaps.append(1 - worth(values, theirs) / best)
    assert 0.05 < np.mean(np.array(gaps) > 1e-9) < 0.5


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.floats(0, 40), min_size=2, max_size=5))
def test_a_larger_budget_is_never_worth_less_and_each_is_met(seed, budgets):
    values, costs, _ = instance(seed)
    choices = exact(values, costs, sorted(budgets))
    reached = [-np.inf if choice is None else worth(values, choice) for choice in choices]
    assert all(choice is None or spent(costs, choice) <= budget for choice, budget in zip(choices, sorted(budgets), strict=True))
    assert all(less <= more + 1e-9 for less, more in pairwise(reached))


def test_it_agrees_with_constraint_programming_on_larger_problems():
    pytest.importorskip("ortools")
    from orchestrator.allocation.joint import choose_jointly

    for seed in range(3):
        random = np.random.default_rng(seed)
        values = [np.cumsum(np.sort(random.exponential(size=12))[::-1]) for _ in range(12)]
        costs = [np.cumsum(random.integers(1, 20, size=12)).astype(float) for _ in range(12)]
        theirs, proven = choose_jointly(values, costs, {}, 800.0, 30.0)
        ours = exact(values, costs, [800.0])[0]
        assert proven and worth(values, ours) == pytest.approx(worth(values, theirs), rel=1e-5)


def test_costs_of_nothing_and_groups_of_one_option_are_fine():
    values, costs = [np.array([1.0]), np.array([0.0, 2.0, 3.0])], [np.array([0.0]), np.zeros(3)]
    assert exact(values, costs, [0.0])[0].tolist() == [0, 2]
    assert exact([], [], [1.0])[0].tolist() == []
    assert exact(values, [np.array([1.0]), np.zeros(3)], [0.5]) == [None]


@pytest.mark.parametrize("cost", [[-1.0, 0.0], [np.nan, 0.0], [1.0]])
def test_an_invalid_cost_is_named(cost):
    with pytest.raises(ValueError, match="group 0"):
        exact([np.array([0.0, 1.0])], [np.array(cost)], [1.0])

"""The units that are removed: the first of a ranking, as many as the target needs and no more, and never below a floor."""

from dataclasses import replace
from itertools import accumulate

import pytest
import torch

from orchestrator.allocation.units import (
    budget_after_step,
    cost_of,
    floors,
    select_by_ranking,
    select_for_step,
    select_within,
    unit_problem,
)
from workers.errors import ConfigError
from workers.models.structures.find import find_groups
from workers.models.structures.groups import Group, Kind, Slice, take
from workers.models.timm import TimmModel
from workers.pruners.unit_baselines import UnitRandom
from workers.pruners.units import Of, Solver, UnitTarget

SHAPE = (1, 16, 16)
COUNTED = [of for of in Of if of is not Of.LATENCY]


def vit(**arguments):
    sizes = {"img_size": 16, "patch_size": 8, "in_chans": 1, "num_classes": 10, "embed_dim": 32, "depth": 2, "num_heads": 4}
    return TimmModel(checkpoint=None, name="vit_tiny_patch16_224", arguments=sizes | arguments, include=["*"], exclude=[])


def target(removed, of=Of.MACS, min_units=1, min_fraction=0.0):
    return UnitTarget(removed, of, min_units, min_fraction)


def group(name, units, kind=Kind.NEURON, channels=1):
    rows = Slice(f"{name}.weight", 0, torch.arange(units * channels).reshape(units, channels))
    return Group(name, kind, (rows,), (), least=int(kind is Kind.CHANNEL))


class Priced:
    """CostTable of units by group."""

    def __init__(self, prices, groups):
        self.prices, self.total = prices, sum(prices[group.name] * group.units for group in groups)

    def take(self, group):
        self.total -= self.prices[group.name]


@pytest.mark.parametrize("seed", range(20))
def test_the_shortest_prefix_of_the_ranking_that_meets_the_budget_is_removed(seed):
    """Without floors, against running sums over the ranking."""
    torch.manual_seed(seed)
    groups, prices = [group("a", 7), group("b", 4), group("c", 9)], {"a": 3, "b": 10, "c": 1}
    order, budget = torch.randperm(20).tolist(), int(torch.randint(0, 71, (1,)))
    owner = ["a"] * 7 + ["b"] * 4 + ["c"] * 9
    after = [70, *(70 - spent for spent in accumulate(prices[owner[unit]] for unit in order))]
    expected = next(count for count, cost in enumerate(after) if cost <= budget)
    (kept,) = select_by_ranking(order, groups, Priced(prices, groups), [budget], dict.fromkeys(prices, 0))
    removed = set((~torch.cat(list(kept.values()))).nonzero().flatten().tolist())
    assert removed == set(order[:expected])


def test_units_wait_until_a_multiple_remains():
    """Ten units in multiples of four: two are removed together, then four; three of another group wait; heads of eight channels do not."""
    groups = [group("mlp", 10), group("conv", 8, Kind.CHANNEL), group("attn", 3, Kind.HEAD, channels=8)]
    order = [18, 0, 10, 11, 1, 2, 12, 3, 4, 5, 13]
    prices = {"mlp": 1, "conv": 1, "attn": 1}
    selections = select_by_ranking(order, groups, Priced(prices, groups), [20, 18, 14, 10], dict.fromkeys(prices, 0), round_to=4)
    assert [{name: int(kept_U.sum()) for name, kept_U in kept.items()} for kept in selections] == [
        {"mlp": 10, "conv": 8, "attn": 2},
        {"mlp": 8, "conv": 8, "attn": 2},
        {"mlp": 4, "conv": 8, "attn": 2},
        {"mlp": 4, "conv": 4, "attn": 2},
    ]
    assert selections[3]["mlp"].tolist() == [False] * 6 + [True] * 4


@pytest.mark.parametrize("solver", list(Solver))
@pytest.mark.parametrize("round_to", [4, 8])
def test_every_solver_leaves_multiples_and_keeps_the_target(solver, round_to):
    """With 64 neurons and 4 heads in each block; floors are multiples, too."""
    if solver is Solver.JOINT:
        pytest.importorskip("ortools")
    family = vit()
    groups = find_groups(family, SHAPE, streams=False)
    unit_target = UnitTarget(0.4, Of.MACS, 3, 0.0, round_to, solver)
    dense = cost_of(Of.MACS, family, groups, SHAPE).total
    units = sum(group.units for group in groups)
    torch.manual_seed(0)
    score_S = torch.rand(units).double()
    pruner = UnitRandom(unit_target, streams=False, seed=0)
    kept = select_for_step(unit_problem(pruner, family, SHAPE), score_S.argsort().tolist(), score_S.tolist())
    widths = {group.name: int(kept[group.name].sum()) for group in groups}
    assert all(widths[group.name] % round_to == 0 and widths[group.name] >= round_to for group in groups if group.kind is Kind.NEURON)
    assert any(widths[group.name] % round_to for group in groups if group.kind is Kind.HEAD)  # of 8 channels
    parts = cost_of(Of.MACS, family, groups, SHAPE).parts(groups)
    assert sum(part.value(widths) for part in parts) <= 0.6 * dense


def test_a_group_at_its_floor_is_skipped():
    """Units of other groups are removed instead, and a budget that cannot be met gets the floors."""
    groups = [group("a", 4), group("b", 4)]
    floor = {"a": 3, "b": 1}
    kept, rest = select_by_ranking(range(8), groups, Priced({"a": 1, "b": 1}, groups), [4, 0], floor)
    assert kept["a"].tolist() == [False, True, True, True] and kept["b"].tolist() == [False, False, False, True]
    assert (int(rest["a"].sum()), int(rest["b"].sum())) == (3, 1)


def test_floors_are_fractions_of_the_dense_model_and_a_convolution_keeps_a_channel():
    groups = [group("mlp", 3), group("conv", 5, Kind.CHANNEL)]
    assert floors(target(0.5, min_units=0), groups, {"mlp": 10, "conv": 10}) == {"mlp": 0, "conv": 1}
    assert floors(target(0.5, min_fraction=0.25), groups, {"mlp": 10, "conv": 10}) == {"mlp": 3, "conv": 3}


def test_steps_to_a_target_are_equal():
    """From 100 to 40 in three steps: 80, 60, 40; a model that costs less already may keep the target itself."""
    costs = [100.0]
    for steps_left in (3, 2, 1):
        costs.append(budget_after_step(target(0.6), 100, int(costs[-1]), steps_left))
    assert costs == pytest.approx([100, 80, 60, 40])
    assert budget_after_step(target(0.2), 100, 50, 1) == 80


def test_steps_to_a_target_of_latency_are_equal_ratios():
    """HALP's schedule: L_0^(1 - t/k) L_target^(t/k), here from 100 to 12.5 in three steps."""
    costs = [100.0]
    for steps_left in (3, 2, 1):
        costs.append(budget_after_step(target(0.875, Of.LATENCY), 100, costs[-1], steps_left))
    assert costs == pytest.approx([100, 50, 25, 12.5])


@pytest.mark.parametrize("of", COUNTED)
@pytest.mark.parametrize("removed", [0.0, 0.3, 0.6])
def test_a_real_model_reaches_its_target_within_one_unit(of, removed):
    """In units, parameters and multiply-adds of a ViT: the cost is at most the target, and by less than one unit."""
    family, pruner = vit(), UnitRandom(target(removed, of, min_units=0), streams=False, seed=0)
    groups = find_groups(family, SHAPE, streams=False)
    order = torch.randperm(sum(group.units for group in groups), generator=torch.Generator().manual_seed(1)).tolist()
    kept = select_for_step(unit_problem(pruner, family, SHAPE), order, [])
    cost, dense, dearest = cost_of(of, family, groups, SHAPE), cost_of(of, family, groups, SHAPE).total, 0
    for group in groups:
        for _ in range(int((~kept[group.name]).sum())):
            before = cost.total
            cost.take(group)
            dearest = max(dearest, before - cost.total)
    assert cost.total <= (1 - removed) * dense + 1e-6
    assert cost.total > (1 - removed) * dense - max(dearest, 1)


@pytest.mark.parametrize("solver", [Solver.RANKING, Solver.EXACT, Solver.GREEDY, Solver.UNIFORM])
def test_all_budgets_of_a_target_are_kept_whichever_is_the_tightest(solver):
    """Counted anew in the smaller model, also half-way; each of the two is the tighter one once, and then it is used up."""
    family = vit()
    groups = find_groups(family, SHAPE, streams=False)
    units = sum(group.units for group in groups)
    torch.manual_seed(0)
    score_S = torch.rand(units).double()
    for removed, also in ((0.3, {"parameters": 0.55}), (0.5, {"parameters": 0.2}), (0.4, {"memory": 0.2, "structures": 0.6})):
        unit_target = UnitTarget(removed, Of.MACS, 1, 0.0, 1, solver, None, also)
        for steps_left in (1, 2):
            pruner = UnitRandom(unit_target, streams=False, seed=0)
            kept = select_for_step(unit_problem(pruner, family, SHAPE), score_S.argsort().tolist(), score_S.tolist(), steps_left)
            used = []
            for of, part in {"macs": removed, **also}.items():
                cost = cost_of(Of(of), family, groups, SHAPE)
                budget = (1 - part / steps_left) * cost.total
                for group in groups:
                    for _ in range(int((~kept[group.name]).sum())):
                        cost.take(group)
                assert cost.total <= budget * (1 + 1e-9)
                used.append(cost.total / budget)
            assert max(used) > {Solver.UNIFORM: 0.85, Solver.GREEDY: 0.9}.get(solver, 0.97)


def test_budgets_that_are_not_counted_or_not_fractions_are_refused():
    with pytest.raises(ConfigError, match=r"pruner.target.also: expected fractions of structures, parameters, memory, got 'macs'"):
        replace(target(0.5), also={"macs": 0.3})
    with pytest.raises(ConfigError, match=r"pruner.target.also: .* got 'latency'"):
        replace(target(0.5), also={"latency": 0.3})
    with pytest.raises(ConfigError, match=r"pruner.target.also.memory: expected a fraction between 0 and 1, got 1.5"):
        replace(target(0.5), also={"memory": 1.5})


def test_a_second_round_counts_what_the_first_removed():
    """60 % after 30 % is 60 % of the dense model, not of the model after the first round."""
    from workers.models.shrunk import shrunk

    family = vit()
    groups = find_groups(family, SHAPE, streams=False)
    with torch.device("meta"):
        state = family.build().state_dict()
    dense = cost_of(Of.PARAMETERS, family, groups, SHAPE).total
    first = UnitRandom(target(0.3, Of.PARAMETERS), streams=False, seed=0)
    kept = select_for_step(unit_problem(first, family, SHAPE), range(264), [])
    once = shrunk(family, state, take(state, groups, kept), groups, kept)
    remaining = sum(group.units for group in find_groups(once, SHAPE, streams=False))
    second = UnitRandom(target(0.6, Of.PARAMETERS), streams=False, seed=0)
    kept = select_for_step(unit_problem(second, once, SHAPE), range(remaining), [])
    cost, again = cost_of(Of.PARAMETERS, once, groups, SHAPE), find_groups(once, SHAPE, streams=False)
    for group in again:
        for _ in range(int((~kept[group.name]).sum())):
            cost.take(group)
    assert 0.55 * dense < dense - cost.total < 0.65 * dense


@pytest.mark.parametrize("of", COUNTED)
@pytest.mark.parametrize("solver", [Solver.EXACT, Solver.GREEDY])
def test_a_knapsack_keeps_the_best_of_each_group_within_the_cost_and_no_less_importance_than_the_ranking(of, solver):
    family, generator = vit(), torch.Generator().manual_seed(1)
    groups = find_groups(family, SHAPE, streams=False)
    score = torch.rand(sum(group.units for group in groups), generator=generator, dtype=torch.float64)
    order = score.argsort().tolist()
    pruner = UnitRandom(replace(target(0.5, of), solver=solver), streams=False, seed=0)
    (kept,) = select_within(unit_problem(pruner, family, SHAPE), order, score.tolist(), [0.5 * unit_problem(pruner, family, SHAPE).dense])
    cost, importance, start = cost_of(of, family, groups, SHAPE), 0.0, 0
    for group in groups:
        group_score = score[start : start + group.units]
        assert group_score[kept[group.name]].min() >= max(group_score[~kept[group.name]].tolist(), default=0.0)
        importance, start = importance + float(group_score[kept[group.name]].sum()), start + group.units
        for _ in range(int((~kept[group.name]).sum())):
            cost.take(group)
    assert cost.total <= 0.5 * unit_problem(pruner, family, SHAPE).dense + 1e-6
    ranked = select_for_step(unit_problem(UnitRandom(target(0.5, of), streams=False, seed=0), family, SHAPE), order, [])
    by_ranking = float(score[torch.cat(list(ranked.values()))].sum())  # unit by unit, where widths are even numbers here
    assert solver is Solver.GREEDY or importance >= 0.99 * by_ranking

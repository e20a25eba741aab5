"""Which units go: the first of a ranking, as many as the target needs and no more, and never below a floor."""

from dataclasses import replace
from itertools import accumulate

import pytest
import torch

from orchestrator.allocation.units import answer, choose, choose_for, cost_of, floors, limit, question
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
    """Costs of units by group."""

    def __init__(self, prices, groups):
        self.prices, self.total = prices, sum(prices[group.name] * group.units for group in groups)

    def take(self, group):
        self.total -= self.prices[group.name]


@pytest.mark.parametrize("seed", range(20))
def test_the_shortest_prefix_of_the_ranking_that_costs_no_more_than_it_may_goes(seed):
    """Without floors, against running sums over the ranking."""
    torch.manual_seed(seed)
    groups, prices = [group("a", 7), group("b", 4), group("c", 9)], {"a": 3, "b": 10, "c": 1}
    order, may = torch.randperm(20).tolist(), int(torch.randint(0, 71, (1,)))
    owner = ["a"] * 7 + ["b"] * 4 + ["c"] * 9
    after = [70, *(70 - spent for spent in accumulate(prices[owner[unit]] for unit in order))]
    expected = next(count for count, cost in enumerate(after) if cost <= may)
    (kept,) = choose(order, groups, Priced(prices, groups), [may], dict.fromkeys(prices, 0))
    gone = {index for index, stays in enumerate(torch.cat(list(kept.values())).tolist()) if not stays}
    assert gone == set(order[:expected])


def test_units_wait_until_a_multiple_stays():
    """Of ten units in multiples of four: two go together, then four; the third of another group waits; heads of eight channels do not."""
    groups = [group("mlp", 10), group("conv", 8, Kind.CHANNEL), group("attn", 3, Kind.HEAD, channels=8)]
    order = [18, 0, 10, 11, 1, 2, 12, 3, 4, 5, 13]
    prices = {"mlp": 1, "conv": 1, "attn": 1}
    found = choose(order, groups, Priced(prices, groups), [20, 18, 14, 10], dict.fromkeys(prices, 0), round_to=4)
    assert [{name: int(stays.sum()) for name, stays in kept.items()} for kept in found] == [
        {"mlp": 10, "conv": 8, "attn": 2},
        {"mlp": 8, "conv": 8, "attn": 2},
        {"mlp": 4, "conv": 8, "attn": 2},
        {"mlp": 4, "conv": 4, "attn": 2},
    ]
    assert found[3]["mlp"].tolist() == [False] * 6 + [True] * 4


@pytest.mark.parametrize("solver", list(Solver))
@pytest.mark.parametrize("round_to", [4, 8])
def test_every_solver_leaves_multiples_and_keeps_the_target(solver, round_to):
    """Of 64 neurons and 4 heads in each block; floors are multiples, too."""
    if solver is Solver.JOINT:
        pytest.importorskip("ortools")
    made = vit()
    groups = find_groups(made, SHAPE, streams=False)
    asked = UnitTarget(0.4, Of.MACS, 3, 0.0, round_to, solver)
    dense = cost_of(Of.MACS, made, groups, SHAPE).total
    units = sum(of.units for of in groups)
    torch.manual_seed(0)
    score_S = torch.rand(units).double()
    pruner = UnitRandom(asked, streams=False, seed=0)
    kept = choose_for(question(pruner, made, SHAPE), score_S.argsort().tolist(), score_S.tolist())
    left = {of.name: int(kept[of.name].sum()) for of in groups}
    assert all(left[of.name] % round_to == 0 and left[of.name] >= round_to for of in groups if of.kind is Kind.NEURON)
    assert any(left[of.name] % round_to for of in groups if of.kind is Kind.HEAD)  # of 8 channels
    parts = cost_of(Of.MACS, made, groups, SHAPE).parts(groups)
    assert sum(part.value(left) for part in parts) <= 0.6 * dense


def test_a_group_at_its_floor_is_passed_over():
    """Its cheapest units stay, units of others go in their place, and what cannot be reached is not."""
    groups = [group("a", 4), group("b", 4)]
    floor = {"a": 3, "b": 1}
    kept, rest = choose(range(8), groups, Priced({"a": 1, "b": 1}, groups), [4, 0], floor)
    assert kept["a"].tolist() == [False, True, True, True] and kept["b"].tolist() == [False, False, False, True]
    assert (int(rest["a"].sum()), int(rest["b"].sum())) == (3, 1)


def test_floors_are_of_the_dense_model_and_a_convolution_keeps_a_channel():
    groups = [group("mlp", 3), group("conv", 5, Kind.CHANNEL)]
    assert floors(target(0.5, min_units=0), groups, {"mlp": 10, "conv": 10}) == {"mlp": 0, "conv": 1}
    assert floors(target(0.5, min_fraction=0.25), groups, {"mlp": 10, "conv": 10}) == {"mlp": 3, "conv": 3}


def test_steps_to_a_target_are_equal():
    """From 100 to 40 in three steps: 80, 60, 40; a model that costs less already is asked no more."""
    costs = [100.0]
    for left in (3, 2, 1):
        costs.append(limit(target(0.6), 100, int(costs[-1]), left))
    assert costs == pytest.approx([100, 80, 60, 40])
    assert limit(target(0.2), 100, 50, 1) == 80


def test_steps_to_a_target_of_latency_are_equal_ratios():
    """HALP's schedule: L_0^(1 - t/k) L_target^(t/k), here from 100 to 12.5 in three steps."""
    costs = [100.0]
    for left in (3, 2, 1):
        costs.append(limit(target(0.875, Of.LATENCY), 100, costs[-1], left))
    assert costs == pytest.approx([100, 50, 25, 12.5])


@pytest.mark.parametrize("of", COUNTED)
@pytest.mark.parametrize("removed", [0.0, 0.3, 0.6])
def test_targets_of_a_real_model_are_reached_within_one_unit(of, removed):
    """In units, parameters and multiply-adds of a ViT: at most what was asked, and one unit more would be too much."""
    made, pruner = vit(), UnitRandom(target(removed, of, min_units=0), streams=False, seed=0)
    groups = find_groups(made, SHAPE, streams=False)
    order = torch.randperm(sum(group.units for group in groups), generator=torch.Generator().manual_seed(1)).tolist()
    kept = choose_for(question(pruner, made, SHAPE), order, [])
    cost, dense, dearest = cost_of(of, made, groups, SHAPE), cost_of(of, made, groups, SHAPE).total, 0
    for found in groups:
        for _ in range(int((~kept[found.name]).sum())):
            before = cost.total
            cost.take(found)
            dearest = max(dearest, before - cost.total)
    assert cost.total <= (1 - removed) * dense + 1e-6
    assert cost.total > (1 - removed) * dense - max(dearest, 1)


@pytest.mark.parametrize("solver", [Solver.RANKING, Solver.EXACT, Solver.GREEDY, Solver.UNIFORM])
def test_all_budgets_of_a_target_are_kept_whichever_is_the_tightest(solver):
    """Counted anew in the model that is left, also half-way; each of the two is the tighter one once, and then it is used up."""
    made = vit()
    groups = find_groups(made, SHAPE, streams=False)
    units = sum(of.units for of in groups)
    torch.manual_seed(0)
    score_S = torch.rand(units).double()
    for removed, also in ((0.3, {"parameters": 0.55}), (0.5, {"parameters": 0.2}), (0.4, {"memory": 0.2, "structures": 0.6})):
        asked = UnitTarget(removed, Of.MACS, 1, 0.0, 1, solver, None, also)
        for steps_left in (1, 2):
            pruner = UnitRandom(asked, streams=False, seed=0)
            kept = choose_for(question(pruner, made, SHAPE), score_S.argsort().tolist(), score_S.tolist(), steps_left)
            used = []
            for of, part in {"macs": removed, **also}.items():
                cost = cost_of(Of(of), made, groups, SHAPE)
                most = (1 - part / steps_left) * cost.total
                for found in groups:
                    for _ in range(int((~kept[found.name]).sum())):
                        cost.take(found)
                assert cost.total <= most * (1 + 1e-9)
                used.append(cost.total / most)
            assert max(used) > {Solver.UNIFORM: 0.85, Solver.GREEDY: 0.9}.get(solver, 0.97)


def test_budgets_that_are_none_are_refused():
    with pytest.raises(ConfigError, match=r"pruner.target.also: expected fractions of structures, parameters, memory, got 'macs'"):
        replace(target(0.5), also={"macs": 0.3})
    with pytest.raises(ConfigError, match=r"pruner.target.also: .* got 'latency'"):
        replace(target(0.5), also={"latency": 0.3})
    with pytest.raises(ConfigError, match=r"pruner.target.also.memory: expected a fraction between 0 and 1, got 1.5"):
        replace(target(0.5), also={"memory": 1.5})


def test_a_second_round_counts_what_the_first_took():
    """60 % after 30 % is 60 % of the dense model, not of what the first round left."""
    from workers.models.shrunk import shrunk

    made = vit()
    groups = find_groups(made, SHAPE, streams=False)
    with torch.device("meta"):
        state = made.build().state_dict()
    dense = cost_of(Of.PARAMETERS, made, groups, SHAPE).total
    first = UnitRandom(target(0.3, Of.PARAMETERS), streams=False, seed=0)
    kept = choose_for(question(first, made, SHAPE), range(264), [])
    once = shrunk(made, state, take(state, groups, kept), groups, kept)
    left = sum(group.units for group in find_groups(once, SHAPE, streams=False))
    second = UnitRandom(target(0.6, Of.PARAMETERS), streams=False, seed=0)
    kept = choose_for(question(second, once, SHAPE), range(left), [])
    cost, again = cost_of(Of.PARAMETERS, once, groups, SHAPE), find_groups(once, SHAPE, streams=False)
    for found in again:
        for _ in range(int((~kept[found.name]).sum())):
            cost.take(found)
    assert 0.55 * dense < dense - cost.total < 0.65 * dense


@pytest.mark.parametrize("of", COUNTED)
@pytest.mark.parametrize("solver", [Solver.EXACT, Solver.GREEDY])
def test_a_knapsack_keeps_the_best_of_each_group_within_the_cost_and_no_less_importance_than_the_ranking(of, solver):
    made, generator = vit(), torch.Generator().manual_seed(1)
    groups = find_groups(made, SHAPE, streams=False)
    score = torch.rand(sum(group.units for group in groups), generator=generator, dtype=torch.float64)
    order = score.argsort().tolist()
    asked = UnitRandom(replace(target(0.5, of), solver=solver), streams=False, seed=0)
    (kept,) = answer(question(asked, made, SHAPE), order, score.tolist(), [0.5 * question(asked, made, SHAPE).dense])
    cost, worth, start = cost_of(of, made, groups, SHAPE), 0.0, 0
    for found in groups:
        own = score[start : start + found.units]
        assert own[kept[found.name]].min() >= max(own[~kept[found.name]].tolist(), default=0.0)
        worth, start = worth + float(own[kept[found.name]].sum()), start + found.units
        for _ in range(int((~kept[found.name]).sum())):
            cost.take(found)
    assert cost.total <= 0.5 * question(asked, made, SHAPE).dense + 1e-6
    ranked = choose_for(question(UnitRandom(target(0.5, of), streams=False, seed=0), made, SHAPE), order, [])
    by_ranking = float(score[torch.cat(list(ranked.values()))].sum())  # unit by unit, where widths are even numbers here
    assert solver is Solver.GREEDY or worth >= 0.99 * by_ranking

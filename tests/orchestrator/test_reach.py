"""The most that can go of a model, against all widths that its floors allow, each counted in the smaller model itself."""

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from orchestrator.allocation.reach import LAST_UNITS, reaches, unreached
from orchestrator.allocation.units import Times, answer, cost_of, floors, limit, question
from orchestrator.allocation.widths import Choice, Costs, cheapest, evenly_spaced
from workers.models.shrunk import shrunk
from workers.models.structure_costs import Part
from workers.models.structures.find import find_groups
from workers.models.structures.groups import Kind, take
from workers.models.timm import TimmModel
from workers.models.torchvision import TorchvisionModel
from workers.pruners.unit_baselines import UnitRandom
from workers.pruners.units import Of, Solver, UnitTarget

SHAPE = (1, 16, 16)
COUNTED = [of for of in Of if of is not Of.LATENCY]
FLOORS = [(0, 0.0, 1), (1, 0.0, 1), (3, 0.0, 1), (0, 0.4, 1), (2, 0.3, 4)]  # min_units, min_fraction, round_to


def vit():
    """Two groups: 12 neurons and 3 heads."""
    sizes = {
        "img_size": 16,
        "patch_size": 8,
        "in_chans": 1,
        "num_classes": 10,
        "embed_dim": 24,
        "depth": 1,
        "num_heads": 3,
        "mlp_ratio": 0.5,
    }
    return TimmModel(checkpoint=None, name="vit_tiny_patch16_224", arguments=sizes, include=["*"], exclude=[])


def allowed(units: int, step: int, target: UnitTarget) -> list[int]:
    """Numbers of units that floors let stay: all of them, or a multiple of ``step`` that is not below the floors."""
    return [
        left
        for left in range(units + 1)
        if left == units or (left % step == 0 and left >= max(target.min_units, target.min_fraction * units))
    ]


def cost_after(made, groups, left, of):
    """What ``of`` counts in the model that is left, built anew."""
    kept = {group.name: torch.arange(group.units) < left[group.name] for group in groups}
    with torch.device("meta"):
        state = made.build().state_dict()
    after = shrunk(made, state, take(state, groups, kept), groups, kept)
    if of is Of.STRUCTURES:
        return sum(left.values())
    return cost_of(of, after, [], SHAPE).total


@pytest.mark.parametrize(
    ("of", "floor"), [(Of.MACS, floor) for floor in FLOORS] + [(of, FLOORS[-1]) for of in (Of.STRUCTURES, Of.PARAMETERS)]
)
def test_the_told_maximum_is_the_most_of_all_widths_that_are_allowed(of, floor):
    made = vit()
    target = UnitTarget(0.99, of, *floor)
    groups = find_groups(made, SHAPE, streams=False)
    assert sorted(group.units for group in groups) == [3, 12]
    steps = {group.name: target.round_to // np.gcd(target.round_to, 8) if group.kind is Kind.HEAD else target.round_to for group in groups}
    counts = [
        cost_after(made, groups, dict(zip(steps, left, strict=True)), of)
        for left in product(*(allowed(group.units, int(steps[group.name]), target) for group in groups))
    ]
    asked = question(UnitRandom(target, streams=False, seed=0), made, SHAPE)
    (found,) = reaches(asked)
    assert found.most == pytest.approx(1 - min(counts) / max(counts), abs=1e-12)
    nothing = cost_after(made, groups, dict.fromkeys(steps, 0), of)
    assert found.outside == pytest.approx(nothing / max(counts), abs=1e-12)


@pytest.mark.parametrize("of", COUNTED)
@pytest.mark.parametrize("solver", list(Solver))
def test_every_solver_ends_at_the_told_maximum_and_a_little_less_is_reached(of, solver):
    if solver is Solver.JOINT:
        pytest.importorskip("ortools")
    made = vit()
    groups = find_groups(made, SHAPE, streams=False)
    score_S = torch.rand(15, generator=torch.Generator().manual_seed(0)).double()

    def chosen(removed):
        target = UnitTarget(removed, of, 2, 0.25, 1, solver)
        asked = question(UnitRandom(target, streams=False, seed=0), made, SHAPE)
        budget = limit(target, asked.dense, asked.cost.total, 1)
        (kept,) = answer(asked, score_S.argsort().tolist(), score_S.tolist(), [budget])
        left = {name: int(stays.sum()) for name, stays in kept.items()}
        asked = question(UnitRandom(target, streams=False, seed=0), made, SHAPE)
        spent = sum(part.value(left) for part in cost_of(of, made, groups, SHAPE).parts(groups))
        return 1 - spent / asked.dense, unreached(asked, left, [budget])

    reached, (told,) = chosen(0.99)
    assert told.most == pytest.approx(reached) and told.asked == 0.99 and told.of == of.value
    reached, told = chosen(told.most - 1e-6)
    assert not told and reached >= told_most(made, of) - 1e-6


def told_most(made, of):
    (found,) = reaches(question(UnitRandom(UnitTarget(0.99, of, 2, 0.25), streams=False, seed=0), made, SHAPE))
    return found.most


def test_of_each_floor_it_is_told_how_much_could_go_without_it():
    """Each lifted alone, by the definition of floors; a convolution's last channel is one of them."""
    made = TorchvisionModel(name="resnet18", arguments={"num_classes": 10}, checkpoint=None, include=["*"], exclude=[])
    shape, target = (3, 32, 32), UnitTarget(0.9, Of.MACS, 3, 0.2, 8)
    pruner = UnitRandom(target, streams=False, seed=0)
    (found,) = reaches(question(pruner, made, shape))
    changes = {"min_fraction": 0.0, "min_units": 0, "round_to": 1}
    for setting, value in changes.items():
        (lifted,) = reaches(question(replace(pruner, target=replace(target, **{setting: value})), made, shape))
        (name,) = [name for name in found.without if name.startswith(f"pruner.target.{setting}=")]
        assert found.without[name] == pytest.approx(lifted.most)
    assert set(found.without) == {"pruner.target.min_fraction=0.2", "pruner.target.min_units=3", "pruner.target.round_to=8", LAST_UNITS}
    sentence = found.sentence()
    assert sentence.startswith(
        f"pruner.target.removed: 90.0 % of the multiply-adds were asked for, and at most {100 * found.most:.1f} % can go; "
    )
    assert "without pruner.target.min_fraction=0.2 " in sentence and "min_units" not in sentence
    assert f"{100 * found.outside:.1f} % lie outside all groups" in sentence


def test_floors_that_hold_only_together_are_named_together():
    """Of 12 neurons and 12 heads half stay by either of two settings."""
    made = vit()
    made.arguments["num_heads"] = 12
    target = UnitTarget(0.99, Of.PARAMETERS, 6, 0.5)
    (found,) = reaches(question(UnitRandom(target, streams=False, seed=0), made, SHAPE))
    assert set(found.without.values()) == {found.most}
    assert f"without all of pruner.target.min_fraction=0.5, pruner.target.min_units=6 {100 * (1 - found.outside):.1f} %" in found.sentence()


def test_every_budget_that_is_missed_is_told_by_its_own_setting():
    made = vit()
    target = UnitTarget(0.2, Of.MACS, 1, 0.5, also={"parameters": 0.9, "structures": 0.1})
    pruner = UnitRandom(target, streams=False, seed=0)
    asked = question(pruner, made, SHAPE)
    limits = [limit(target, asked.dense, asked.cost.total, 1), *(budget.limit(1) for budget in asked.others)]
    (kept,) = answer(asked, range(15), [1.0] * 15, limits[:1])
    told = unreached(question(pruner, made, SHAPE), {name: int(stays.sum()) for name, stays in kept.items()}, limits)
    assert [(reach.setting, reach.of) for reach in told] == [("pruner.target.also.parameters", "parameters")]


class Table:
    """Times of two groups by themselves, one of them faster when it is wider, and of the product of both."""

    def __init__(self, groups, seed):
        generator = np.random.default_rng(seed)
        self.names = [group.name for group in groups]
        self.own = {group.name: generator.uniform(1, 9, group.units + 1) for group in groups}

    def parts(self):
        def own(name):
            return Part((name,), lambda units: float(self.own[name][units[name]]) if units[name] else 0.0)

        return [Part((), lambda _: 2.0), *(own(name) for name in self.names)]

    def levels(self, group):
        return evenly_spaced(group.units, 64)


@pytest.mark.parametrize("seed", range(5))
def test_by_a_table_of_times_the_most_is_what_the_fastest_widths_leave(seed):
    """Against all widths: a knapsack takes the fastest, and the ranking ends at the floors."""
    made = vit()
    groups = find_groups(made, SHAPE, streams=False)
    table = Table(groups, seed)
    times = Times(table, 40.0)
    for solver in (Solver.EXACT, Solver.GREEDY, Solver.UNIFORM, Solver.RANKING):
        target = UnitTarget(0.97, Of.LATENCY, 1, 0.25, 1, solver)
        pruner = UnitRandom(target, streams=False, seed=0)
        least = floors(target, groups, {group.name: group.units for group in groups})
        widths = [range(least[group.name], group.units + 1) for group in groups]
        if solver is Solver.RANKING:
            widths = [range(low.start, low.start + 1) for low in widths]
        every = [sum(part.value(dict(zip(table.names, left, strict=True))) for part in table.parts()) for left in product(*widths)]
        asked = question(pruner, made, SHAPE, times)
        (kept,) = answer(asked, list(range(15)), [1.0] * 15, [0.03 * 40.0])
        left = {name: int(stays.sum()) for name, stays in kept.items()}
        (told,) = unreached(question(pruner, made, SHAPE, times), left, [0.03 * 40.0])
        assert told.most == pytest.approx(1 - min(every) / 40.0)
        assert sum(part.value(left) for part in table.parts()) == pytest.approx(min(every))
        assert told.outside == pytest.approx(2.0 / 40.0)


@pytest.mark.parametrize("seed", range(10))
def test_the_cheapest_widths_of_costs_that_rise_and_meet_are_the_smallest(seed):
    generator = np.random.default_rng(seed)
    choices = {name: Choice(np.arange(1, 5), np.arange(4.0)) for name in "abc"}
    slope = generator.uniform(0.1, 1, 3)
    parts = [
        Part(("a", "b"), lambda u: slope[0] * u["a"] * u["b"]),
        Part(("b", "c"), lambda u: slope[1] * u["b"] * u["c"] + slope[2] * u["c"]),
    ]
    assert cheapest(Costs(choices, parts)) == [0, 0, 0]
    assert cheapest(Costs({}, [])) == []


def test_a_reading_of_the_clock_above_a_table_that_reached_is_told_as_such():
    """All groups are at their floors for a corrected budget, although by the table what was asked for can go."""
    made = vit()
    target = UnitTarget(0.3, Of.MACS, 0, 0.25)
    (found,) = reaches(question(UnitRandom(target, streams=False, seed=0), made, SHAPE))
    assert found.most > 0.3
    assert found.sentence().startswith("pruner.target.removed: all groups are at their floors, where ")


def test_records_hold_what_is_told():
    from orchestrator.allocation.reach import sentences, storable

    (found,) = reaches(question(UnitRandom(UnitTarget(0.99, Of.MACS, 0, 0.25), streams=False, seed=0), vit(), SHAPE))
    assert sentences(storable([found])) == [found.sentence()]
    assert SimpleNamespace(**storable([found])[0]).of == "macs"

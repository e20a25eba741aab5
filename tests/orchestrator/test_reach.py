"""The most that can be removed from a model, against all widths that its floors allow, each counted in the smaller model itself."""

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from orchestrator.allocation.reach import LAST_UNITS, reaches, sentences, storable, unreached
from orchestrator.allocation.units import Times, budget_after_step, cost_of, floors, select_within, unit_problem
from orchestrator.allocation.widths import Choice, CostTable, cheapest, evenly_spaced
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


def allowed(units: int, multiple: int, target: UnitTarget) -> list[int]:
    """Widths that the floors allow: all units, or a ``multiple`` that is not below the floors."""
    return [
        width
        for width in range(units + 1)
        if width == units or (width % multiple == 0 and width >= max(target.min_units, target.min_fraction * units))
    ]


def cost_after(family, groups, widths, of):
    """The cost ``of`` the smaller model, built anew."""
    kept = {group.name: torch.arange(group.units) < widths[group.name] for group in groups}
    with torch.device("meta"):
        state = family.build().state_dict()
    after = shrunk(family, state, take(state, groups, kept), groups, kept)
    if of is Of.STRUCTURES:
        return sum(widths.values())
    return cost_of(of, after, [], SHAPE).total


@pytest.mark.parametrize(
    ("of", "floor"), [(Of.MACS, floor) for floor in FLOORS] + [(of, FLOORS[-1]) for of in (Of.STRUCTURES, Of.PARAMETERS)]
)
def test_the_maximum_is_that_of_the_cheapest_widths_that_are_allowed(of, floor):
    family = vit()
    target = UnitTarget(0.99, of, *floor)
    groups = find_groups(family, SHAPE, streams=False)
    assert sorted(group.units for group in groups) == [3, 12]
    multiples = {
        group.name: target.round_to // np.gcd(target.round_to, 8) if group.kind is Kind.HEAD else target.round_to for group in groups
    }
    counts = [
        cost_after(family, groups, dict(zip(multiples, widths, strict=True)), of)
        for widths in product(*(allowed(group.units, int(multiples[group.name]), target) for group in groups))
    ]
    (reach,) = reaches(unit_problem(UnitRandom(target, streams=False, seed=0), family, SHAPE))
    assert reach.most == pytest.approx(1 - min(counts) / max(counts), abs=1e-12)
    nothing = cost_after(family, groups, dict.fromkeys(multiples, 0), of)
    assert reach.outside == pytest.approx(nothing / max(counts), abs=1e-12)


@pytest.mark.parametrize("of", COUNTED)
@pytest.mark.parametrize("solver", list(Solver))
def test_every_solver_ends_at_the_maximum_and_reaches_a_little_less(of, solver):
    if solver is Solver.JOINT:
        pytest.importorskip("ortools")
    family = vit()
    groups = find_groups(family, SHAPE, streams=False)
    score_S = torch.rand(15, generator=torch.Generator().manual_seed(0)).double()

    def chosen(removed):
        target = UnitTarget(removed, of, 2, 0.25, 1, solver)
        problem = unit_problem(UnitRandom(target, streams=False, seed=0), family, SHAPE)
        budget = budget_after_step(target, problem.dense, problem.cost.total, 1)
        (kept,) = select_within(problem, score_S.argsort().tolist(), score_S.tolist(), [budget])
        widths = {name: int(kept_U.sum()) for name, kept_U in kept.items()}
        problem = unit_problem(UnitRandom(target, streams=False, seed=0), family, SHAPE)
        remaining = sum(part.value(widths) for part in cost_of(of, family, groups, SHAPE).parts(groups))
        return 1 - remaining / problem.dense, unreached(problem, widths, [budget])

    removed, (reach,) = chosen(0.99)
    assert reach.most == pytest.approx(removed) and reach.asked == 0.99 and reach.of == of.value
    removed, unmet = chosen(reach.most - 1e-6)
    assert not unmet and removed >= most_of(family, of) - 1e-6


def most_of(family, of):
    (reach,) = reaches(unit_problem(UnitRandom(UnitTarget(0.99, of, 2, 0.25), streams=False, seed=0), family, SHAPE))
    return reach.most


def test_each_floor_is_reported_with_what_could_be_removed_without_it():
    """Each lifted alone, by the definition of floors; a convolution's last channel is one of them."""
    family = TorchvisionModel(name="resnet18", arguments={"num_classes": 10}, checkpoint=None, include=["*"], exclude=[])
    shape, target = (3, 32, 32), UnitTarget(0.9, Of.MACS, 3, 0.2, 8)
    pruner = UnitRandom(target, streams=False, seed=0)
    (reach,) = reaches(unit_problem(pruner, family, shape))
    changes = {"min_fraction": 0.0, "min_units": 0, "round_to": 1}
    for setting, value in changes.items():
        (lifted,) = reaches(unit_problem(replace(pruner, target=replace(target, **{setting: value})), family, shape))
        (name,) = [name for name in reach.without if name.startswith(f"pruner.target.{setting}=")]
        assert reach.without[name] == pytest.approx(lifted.most)
    assert set(reach.without) == {"pruner.target.min_fraction=0.2", "pruner.target.min_units=3", "pruner.target.round_to=8", LAST_UNITS}
    sentence = reach.sentence()
    assert sentence.startswith("pruner.target.removed: ") and "multiply-adds" in sentence
    without = 100 * reach.without["pruner.target.min_fraction=0.2"]
    assert f"{without:.1f} % without pruner.target.min_fraction=0.2" in sentence and "min_units" not in sentence
    assert all(f"{100 * fraction:.1f} %" in sentence for fraction in (0.9, reach.most, reach.outside))


def test_floors_that_hold_only_together_are_named_together():
    """Either of two settings keeps half of the 12 neurons and of the 12 heads."""
    family = vit()
    family.arguments["num_heads"] = 12
    target = UnitTarget(0.99, Of.PARAMETERS, 6, 0.5)
    (reach,) = reaches(unit_problem(UnitRandom(target, streams=False, seed=0), family, SHAPE))
    assert set(reach.without.values()) == {reach.most}
    assert "without all of pruner.target.min_fraction=0.5, pruner.target.min_units=6" in reach.sentence()
    assert f"{100 * (1 - reach.outside):.1f} %" in reach.sentence()


def test_every_budget_that_is_missed_is_reported_with_its_own_setting():
    family = vit()
    target = UnitTarget(0.2, Of.MACS, 1, 0.5, also={"parameters": 0.9, "structures": 0.1})
    pruner = UnitRandom(target, streams=False, seed=0)
    problem = unit_problem(pruner, family, SHAPE)
    limits = [budget_after_step(target, problem.dense, problem.cost.total, 1), *(budget.after_step(1) for budget in problem.others)]
    (kept,) = select_within(problem, range(15), [1.0] * 15, limits[:1])
    widths = {name: int(kept_U.sum()) for name, kept_U in kept.items()}
    missed = unreached(unit_problem(pruner, family, SHAPE), widths, limits)
    assert [(reach.setting, reach.of) for reach in missed] == [("pruner.target.also.parameters", "parameters")]


class Table:
    """Random times of each group by itself, so that a wider group can be faster, and a fixed time."""

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
def test_by_a_table_of_times_the_maximum_is_that_of_the_fastest_widths(seed):
    """Against all widths: a knapsack chooses the fastest, and the ranking ends at the floors."""
    family = vit()
    groups = find_groups(family, SHAPE, streams=False)
    table = Table(groups, seed)
    times = Times(table, 40.0)
    for solver in (Solver.EXACT, Solver.GREEDY, Solver.UNIFORM, Solver.RANKING):
        target = UnitTarget(0.97, Of.LATENCY, 1, 0.25, 1, solver)
        pruner = UnitRandom(target, streams=False, seed=0)
        smallest = floors(target, groups, {group.name: group.units for group in groups})
        allowed_widths = [range(smallest[group.name], group.units + 1) for group in groups]
        if solver is Solver.RANKING:
            allowed_widths = [range(low.start, low.start + 1) for low in allowed_widths]
        combinations = [dict(zip(table.names, widths, strict=True)) for widths in product(*allowed_widths)]
        fastest = min(sum(part.value(widths) for part in table.parts()) for widths in combinations)
        problem = unit_problem(pruner, family, SHAPE, times)
        (kept,) = select_within(problem, list(range(15)), [1.0] * 15, [0.03 * 40.0])
        widths = {name: int(kept_U.sum()) for name, kept_U in kept.items()}
        (reach,) = unreached(unit_problem(pruner, family, SHAPE, times), widths, [0.03 * 40.0])
        assert reach.most == pytest.approx(1 - fastest / 40.0)
        assert sum(part.value(widths) for part in table.parts()) == pytest.approx(fastest)
        assert reach.outside == pytest.approx(2.0 / 40.0)


@pytest.mark.parametrize("seed", range(10))
def test_the_cheapest_widths_of_costs_that_rise_and_meet_are_the_smallest(seed):
    generator = np.random.default_rng(seed)
    choices = {name: Choice(np.arange(1, 5), np.arange(4.0)) for name in "abc"}
    slope = generator.uniform(0.1, 1, 3)
    parts = [
        Part(("a", "b"), lambda u: slope[0] * u["a"] * u["b"]),
        Part(("b", "c"), lambda u: slope[1] * u["b"] * u["c"] + slope[2] * u["c"]),
    ]
    assert cheapest(CostTable(choices, parts)) == [0, 0, 0]
    assert cheapest(CostTable({}, [])) == []


def test_a_measured_time_above_a_table_that_reaches_the_target_is_reported_as_such():
    """All groups are at their floors for a corrected budget, although the table says that the target can be reached."""
    family = vit()
    target = UnitTarget(0.3, Of.MACS, 0, 0.25)
    (reach,) = reaches(unit_problem(UnitRandom(target, streams=False, seed=0), family, SHAPE))
    assert reach.most > 0.3
    assert "at their floors" in reach.sentence() and f"{100 * reach.most:.1f} %" in reach.sentence()


def test_records_hold_what_the_sentences_need():
    (reach,) = reaches(unit_problem(UnitRandom(UnitTarget(0.99, Of.MACS, 0, 0.25), streams=False, seed=0), vit(), SHAPE))
    assert sentences(storable([reach])) == [reach.sentence()]
    assert SimpleNamespace(**storable([reach])[0]).of == "macs"

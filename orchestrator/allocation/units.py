"""Selects the units that a model keeps within its cost budgets, whatever pruner ranked them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, gcd
from typing import TYPE_CHECKING, Protocol

from orchestrator.allocation.widths import evenly_spaced
from workers.models.base import ModelFamily
from workers.models.shrunk import ShrunkModel
from workers.pruners.units import Of, Solver, UnitPruner, UnitTarget

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.allocation.latency_table import LatencyTable
    from workers.models.structure_costs import Part
    from workers.models.structures.groups import Group

Kept = dict[str, "Tensor"]  # for each group a bool mask (U,), True for the units that are kept
COUNTED_WIDTHS = 64  # widths of a group that a knapsack chooses from, for costs that are counted


# --- the problem: what is to be removed, from which groups, at which costs


class Cost(Protocol):
    """A cost of a model, such as its multiply-adds, which falls with every unit that is removed."""

    @property
    def total(self) -> float: ...

    def take(self, group: Group) -> None: ...

    def parts(self, groups: Sequence[Group]) -> list[Part]: ...


@dataclass(frozen=True)
class Budget:
    """A cost, what it is for the dense model, and the fraction of that to remove."""

    cost: Cost
    dense: float
    removed: float

    def after_step(self, steps_left: int) -> float:
        """Returns what the cost may be after the next of ``steps_left`` equal steps."""
        return _equal_step(self.cost.total, (1 - self.removed) * self.dense, steps_left)


@dataclass(frozen=True)
class Times:
    """The latency of a model's operations at all widths, and that of the whole dense model."""

    table: LatencyTable
    dense_ms: float


@dataclass(frozen=True)
class UnitProblem:
    """Which units to keep: the groups, the cost that the target limits, and the other budgets (``target.also``, in its order).

    ``cost`` describes the model as it is now, ``dense`` the model before anything was removed, as do ``dense_units`` (by group).
    ``levels`` returns the numbers of units of a group that a knapsack chooses from. Selecting units by ranking lowers the costs of the
    problem: build a new problem to select again from the whole model.
    """

    target: UnitTarget
    groups: list[Group]
    cost: Cost
    dense: float
    floors: dict[str, int]
    levels: Callable[[Group], Sequence[int]]
    others: tuple[Budget, ...]
    dense_units: dict[str, int]

    @property
    def others_by_name(self) -> dict[str, Budget]:
        return dict(zip(self.target.also, self.others, strict=True))


def unit_problem(pruner: UnitPruner, family: ModelFamily, input_shape: tuple[int, int, int], times: Times | None = None) -> UnitProblem:
    """Builds the problem that the target of ``pruner`` poses for a model of ``family``. Needs no weights.

    The target and the floors are relative to the dense model, so units that earlier rounds removed count. A latency target needs ``times``.
    """
    from workers.models import structure_costs
    from workers.models.structures.find import find_groups

    target, groups, dense = pruner.target, find_groups(family, input_shape, pruner.streams), dense_family(family)
    dense_groups = find_groups(dense, input_shape, pruner.streams)
    dense_units = {group.name: group.units for group in dense_groups}
    group_floors = floors(target, groups, dense_units)

    def budget(of: Of, removed: float) -> Budget:
        dense_cost = cost_of(of, dense, dense_groups, input_shape).total
        return Budget(cost_of(of, family, groups, input_shape), dense_cost, removed)

    others = tuple(budget(Of(of), removed) for of, removed in target.also.items())
    if times is not None:
        cost = structure_costs.PartCost(times.table.parts(), {group.name: group.units for group in groups})
        return UnitProblem(target, groups, cost, times.dense_ms, group_floors, times.table.levels, others, dense_units)
    main = budget(target.of, target.removed)
    return UnitProblem(target, groups, main.cost, main.dense, group_floors, _counted_levels, others, dense_units)


def dense_family(family: ModelFamily) -> ModelFamily:
    """Returns the family of the dense model that ``family`` was shrunk from, or ``family`` itself."""
    return family.dense if isinstance(family, ShrunkModel) else family


def cost_of(of: Of, family: ModelFamily, groups: Sequence[Group], input_shape: tuple[int, int, int]) -> Cost:
    """Returns the counted cost ``of`` a model of ``family``; latency is measured, not counted, and has no such cost."""
    import torch

    from workers.models import structure_costs
    from workers.models.memory_costs import Memory

    if of is Of.STRUCTURES:
        return structure_costs.Count(groups)
    if of is Of.MEMORY:
        return Memory(family, groups, input_shape)
    with torch.device("meta"):
        model, image_1CHW = family.build().eval(), torch.empty(1, *input_shape)
    return structure_costs.parameters(model) if of is Of.PARAMETERS else structure_costs.macs(model, image_1CHW, groups)


def floors(target: UnitTarget, groups: Sequence[Group], dense_units: Mapping[str, int]) -> dict[str, int]:
    """Returns the fewest units that each group keeps: the settings of the target, rounded up, and at least what the group needs to work."""

    def floor_of(group: Group) -> int:
        wanted = max(target.min_units, ceil(target.min_fraction * dense_units[group.name] - 1e-9), group.least)
        multiple = unit_multiple(group, target.round_to)
        return min(ceil(wanted / multiple) * multiple, group.units)

    return {group.name: floor_of(group) for group in groups}


def countable_target(target: UnitTarget) -> UnitTarget:
    """Returns the target that a plan assumes. A latency target, which needs a measurement, becomes one of as many multiply-adds; the units
    are selected by ranking."""
    of = Of.MACS if target.of is Of.LATENCY else target.of
    also = {name: removed for name, removed in target.also.items() if name != of.value}
    return replace(target, of=of, solver=Solver.RANKING, within=None, also=also)


# --- the budgets: a target is reached in steps


def budget_after_step(target: UnitTarget, dense: float, now: float, steps_left: int) -> float:
    """Returns what the cost may be after the next of ``steps_left`` steps from ``now`` to the target, a fraction of ``dense``.

    Steps are equal differences; for latency they are equal ratios, ``L_t = L_0^(1 - t/k) L_target^(t/k)`` (Shen et al. 2022, section 3.3).
    """
    final = (1 - target.removed) * dense
    if target.of is Of.LATENCY and now > final:
        return now * (final / now) ** (1 / steps_left)
    return _equal_step(now, final, steps_left)


def _equal_step(now: float, final: float, steps_left: int) -> float:
    return now - (now - final) / steps_left if now > final else final


# --- the selection


def select_for_step(problem: UnitProblem, order_S: Sequence[int], score_S: Sequence[float], steps_left: int = 1) -> Kept:
    """Returns the units that are kept after the next of ``steps_left`` steps to the target."""
    budget = budget_after_step(problem.target, problem.dense, problem.cost.total, steps_left)
    return select_within(problem, order_S, score_S, [budget], steps_left)[0]


def widths_at_fractions(
    problem: UnitProblem, order_S: Sequence[int], score_S: Sequence[float], removed: Sequence[float]
) -> dict[str, list[int]]:
    """Returns, for each group, the numbers of units that are kept when each of the fractions ``removed``, which rise, is removed from the
    target's cost. Other budgets are ignored."""
    budgets = [(1 - fraction) * problem.dense for fraction in removed]
    selections = select_within(replace(problem, others=()), order_S, score_S, budgets)
    return {group.name: [int(kept[group.name].sum()) for kept in selections] for group in problem.groups}


def select_within(
    problem: UnitProblem, order_S: Sequence[int], score_S: Sequence[float], budgets: Sequence[float], steps_left: int = 1
) -> list[Kept]:
    """Returns the units that are kept when the cost may be at most each of ``budgets``, which fall.

    The other budgets of the problem hold too, as after the next of ``steps_left`` steps. ``order_S`` lists the units in the order of their
    removal, as positions in all groups one after another; ``score_S`` is the importance of each.
    """
    others = [(other.cost, other.after_step(steps_left)) for other in problem.others]
    if problem.target.solver is Solver.RANKING:
        return select_by_ranking(order_S, problem.groups, problem.cost, budgets, problem.floors, problem.target.round_to, others)
    return _select_by_knapsack(problem, order_S, score_S, budgets, others)


def select_by_ranking(
    order_S: Sequence[int],
    groups: Sequence[Group],
    cost: Cost,
    budgets: Sequence[float],
    floors: Mapping[str, int],
    round_to: int = 1,
    others: Sequence[tuple[Cost, float]] = (),
) -> list[Kept]:
    """Removes units in the order ``order_S`` and returns those that are kept as soon as each of ``budgets``, which fall, is met.

    A budget is met when ``cost.total`` is at most that and all ``others`` (a cost and its own budget) are met. Units of a group that is at
    its floor are skipped. With ``round_to``, units wait until removing all that wait in their group leaves a multiple (see
    ``unit_multiple``). A budget that cannot be met gets the units that remain at the end. Lowers ``cost`` and the costs of ``others``.
    """
    import torch

    kept = {group.name: torch.ones(group.units, dtype=torch.bool) for group in groups}
    remaining = {group.name: group.units for group in groups}
    waiting: dict[str, list[int]] = {group.name: [] for group in groups}
    multiples = {group.name: unit_multiple(group, round_to) for group in groups}
    units = [(group, index) for group in groups for index in range(group.units)]
    selections: list[Kept] = []

    def is_met(budget: float) -> bool:
        return cost.total <= budget and all(other.total <= other_budget for other, other_budget in others)

    def note_met_budgets() -> None:
        while len(selections) < len(budgets) and is_met(budgets[len(selections)]):
            selections.append({name: kept_U.clone() for name, kept_U in kept.items()})

    note_met_budgets()
    for position in order_S:
        if len(selections) == len(budgets):
            break
        group, index = units[position]
        name, multiple, batch = group.name, multiples[group.name], waiting[group.name]
        batch.append(index)
        leaves_multiple = len(batch) == (remaining[name] % multiple or multiple)
        if leaves_multiple and remaining[name] - len(batch) >= floors[name]:
            kept[name][batch] = False
            remaining[name] -= len(batch)
            for lowered in (cost, *(other for other, _ in others)):
                for _ in batch:
                    lowered.take(group)
            batch.clear()
            note_met_budgets()
    return selections + [kept] * (len(budgets) - len(selections))


def _select_by_knapsack(
    problem: UnitProblem,
    order_S: Sequence[int],
    score_S: Sequence[float],
    budgets: Sequence[float],
    others: Sequence[tuple[Cost, float]],
) -> list[Kept]:
    """Chooses the widths of the groups that keep the most importance within each budget; each group keeps the units that rank last."""
    from orchestrator.allocation.widths import CostTable, choose_within_all, width_choices

    removal = removal_order(order_S, problem.groups)
    importance = {name: [score_S[unit] for unit in units] for name, units in removal.items()}
    choices = width_choices(importance, problem.floors, width_levels(problem, problem.target.round_to))
    tables = [CostTable(choices, cost.parts(problem.groups)) for cost in (problem.cost, *(cost for cost, _ in others))]
    selections = []
    for budget in budgets:
        picks = choose_within_all(tables, [budget, *(other_budget for _, other_budget in others)], problem.target.solver)
        widths = {name: int(choice.widths[pick]) for (name, choice), pick in zip(choices.items(), picks, strict=True)}
        selections.append(_keep_last(problem.groups, removal, widths))
    return selections


def _keep_last(groups: Sequence[Group], removal: Mapping[str, Sequence[int]], widths: Mapping[str, int]) -> Kept:
    """Keeps as many units of each group as its width: those that come last in the order of removal."""
    import torch

    kept, offset = {}, 0
    for group in groups:
        kept[group.name] = torch.zeros(group.units, dtype=torch.bool)
        last = removal[group.name][group.units - widths[group.name] :]
        kept[group.name][[unit - offset for unit in last]] = True
        offset += group.units
    return kept


def removal_order(order_S: Sequence[int], groups: Sequence[Group]) -> dict[str, list[int]]:
    """Returns, for each group, its units in the order of their removal, as positions in all groups one after another."""
    group_names = [group.name for group in groups for _ in range(group.units)]
    removal: dict[str, list[int]] = {group.name: [] for group in groups}
    for unit in order_S:
        removal[group_names[unit]].append(unit)
    return removal


# --- the widths that a group may have


def width_levels(problem: UnitProblem, round_to: int) -> dict[str, list[int]]:
    """Returns, for each group, the numbers of units to choose from: rising, each rounded down to a multiple, except all units."""

    def levels_of(group: Group) -> list[int]:
        levels, multiple = problem.levels(group), unit_multiple(group, round_to)
        return sorted({*(level - level % multiple for level in levels), max(levels)} - {0})

    return {group.name: levels_of(group) for group in problem.groups}


def unit_multiple(group: Group, round_to: int) -> int:
    """Returns the multiple that numbers of units are rounded to, so that widths in channels are multiples of ``round_to``.

    A unit can be several channels: a head of 8 channels is a multiple of 8 by itself.
    """
    channels = gcd(*(part.index_UK.shape[1] for part in group.slices))
    return round_to // gcd(round_to, channels)


def _counted_levels(group: Group) -> Sequence[int]:
    return evenly_spaced(group.units, COUNTED_WIDTHS)

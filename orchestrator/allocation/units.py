"""Which units go: central, and ignorant of methods. It walks down a ranking until the model costs no more than it may."""

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

COUNTED_WIDTHS = 64  # of each group that a knapsack chooses from where costs are counted, not measured


class Cost(Protocol):
    """What a target is a fraction of; falls as units are taken."""

    @property
    def total(self) -> float: ...

    def take(self, group: Group) -> None: ...

    def parts(self, groups: Sequence[Group]) -> list[Part]: ...


@dataclass(frozen=True)
class Budget:
    """Another cost that has to be kept; ``dense`` is that of the model before anything was taken out."""

    cost: Cost
    dense: float
    removed: float

    def limit(self, steps_left: int) -> float:
        """What it may be after the next of ``steps_left`` steps: equal parts of the way from now."""
        return _part_of_the_way(self.cost.total, (1 - self.removed) * self.dense, steps_left)


@dataclass(frozen=True)
class Times:
    """What is known of the time of a model: that of its operations at all widths, and of the dense model as a whole."""

    table: LatencyTable
    dense_ms: float


def choose(
    order_S: Sequence[int],
    groups: Sequence[Group],
    cost: Cost,
    limits: Sequence[float],
    floors: Mapping[str, int],
    round_to: int = 1,
    others: Sequence[tuple[Cost, float]] = (),
) -> list[dict[str, Tensor]]:
    """Units that stay, bool (U,) by group, when ``cost.total`` is first at most each of ``limits`` (which fall) and those of ``others`` are
    at most theirs, or when no more may go.

    Units go in ``order_S`` (positions in all groups one after another); those of a group that is at its floor are passed over. With
    ``round_to`` they wait until as many of their group have come up that a multiple of it stays, and go together.
    """
    import torch

    starts, kept, left = [], {}, {}
    waiting: dict[str, list[int]] = {group.name: [] for group in groups}
    owner: list[int] = []
    for index, group in enumerate(groups):
        starts.append(len(owner))
        owner += [index] * group.units
        kept[group.name], left[group.name] = torch.ones(group.units, dtype=torch.bool), group.units
    found: list[dict[str, Tensor]] = []

    def stop() -> None:
        while len(found) < len(limits) and cost.total <= limits[len(found)] and all(other.total <= most for other, most in others):
            found.append({name: stays.clone() for name, stays in kept.items()})

    stop()
    for unit in order_S:
        if len(found) == len(limits):
            break
        group, step = groups[owner[unit]], step_of(groups[owner[unit]], round_to)
        going = waiting[group.name]
        going.append(unit - starts[owner[unit]])
        if len(going) == (left[group.name] % step or step) and left[group.name] - len(going) >= floors[group.name]:
            kept[group.name][going] = False
            left[group.name] -= len(going)
            for each in (cost, *(other for other, _ in others)):
                for _ in range(len(going)):
                    each.take(group)
            going.clear()
            stop()
    return found + [kept] * (len(limits) - len(found))


@dataclass(frozen=True)
class Question:
    """What is asked for, of which groups, at what cost; ``dense`` is that of the model before anything was taken out."""

    target: UnitTarget
    groups: list[Group]
    cost: Cost
    dense: float
    floors: dict[str, int]
    levels: Callable[[Group], Sequence[int]]  # numbers of units that a knapsack chooses from
    others: tuple[Budget, ...]  # that have to be kept, too: those of ``target.also``, in its order
    dense_units: dict[str, int]  # of each group before anything was taken out

    @property
    def others_by_name(self) -> dict[str, Budget]:
        return dict(zip(self.target.also, self.others, strict=True))


def question(pruner: UnitPruner, family: ModelFamily, input_shape: tuple[int, int, int], times: Times | None = None) -> Question:
    """What the target of ``pruner`` asks of a model of ``family``. Needs no weights; for a target of latency, needs ``times``.

    Targets and floors are relative to the dense model: what was taken out before counts.
    """
    from workers.models import structure_costs
    from workers.models.structures.find import find_groups

    target, groups, dense = pruner.target, find_groups(family, input_shape, pruner.streams), dense_family(family)
    dense_groups = find_groups(dense, input_shape, pruner.streams)
    dense_units = {group.name: group.units for group in dense_groups}
    least = floors(target, groups, dense_units)

    def budget(of: Of, removed: float) -> Budget:
        at_first = cost_of(of, dense, dense_groups, input_shape).total
        return Budget(cost_of(of, family, groups, input_shape), at_first, removed)

    others = tuple(budget(Of(of), removed) for of, removed in target.also.items())
    if times is not None:
        cost = structure_costs.PartCost(times.table.parts(), {group.name: group.units for group in groups})
        return Question(target, groups, cost, times.dense_ms, least, times.table.levels, others, dense_units)
    asked = budget(target.of, target.removed)
    return Question(target, groups, asked.cost, asked.dense, least, _levels, others, dense_units)


def _levels(group: Group) -> Sequence[int]:
    return evenly_spaced(group.units, COUNTED_WIDTHS)


def countable(target: UnitTarget) -> UnitTarget:
    """What a plan takes for a target that only a measurement could answer: as many multiply-adds, by the ranking alone."""
    of = Of.MACS if target.of is Of.LATENCY else target.of
    also = {name: removed for name, removed in target.also.items() if name != of.value}
    return replace(target, of=of, solver=Solver.RANKING, within=None, also=also)


def choose_for(asked: Question, order_S: Sequence[int], score_S: Sequence[float], steps_left: int = 1) -> dict[str, Tensor]:
    """What stays, bool (U,) by group, after the next of ``steps_left`` steps to the target."""
    return answer(asked, order_S, score_S, [limit(asked.target, asked.dense, asked.cost.total, steps_left)], steps_left)[0]


def sweep(asked: Question, order_S: Sequence[int], score_S: Sequence[float], removed: Sequence[float]) -> dict[str, list[int]]:
    """How many units of each group would stay if the fractions ``removed`` (rising) were taken out by the same ranking; of the one cost
    alone that the target is of."""
    chosen = answer(replace(asked, others=()), order_S, score_S, [(1 - fraction) * asked.dense for fraction in removed])
    return {group.name: [int(kept[group.name].sum()) for kept in chosen] for group in asked.groups}


def answer(
    asked: Question, order_S: Sequence[int], score_S: Sequence[float], limits: Sequence[float], steps_left: int = 1
) -> list[dict[str, Tensor]]:
    """What stays when the cost may be at most each of ``limits`` (which fall), and other budgets are kept."""
    others = [(budget.cost, budget.limit(steps_left)) for budget in asked.others]
    if asked.target.solver is Solver.RANKING:
        return choose(order_S, asked.groups, asked.cost, limits, asked.floors, asked.target.round_to, others)
    from orchestrator.allocation.widths import Costs, choices_of, choose_within_all

    going = going_order(order_S, asked.groups)
    worth = {name: [score_S[unit] for unit in units] for name, units in going.items()}
    levels = {group.name: rounded(asked.levels(group), step_of(group, asked.target.round_to)) for group in asked.groups}
    choices = choices_of(worth, asked.floors, levels)
    costs = [Costs(choices, cost.parts(asked.groups)) for cost in (asked.cost, *(cost for cost, _ in others))]
    found = []
    for most in limits:
        at = choose_within_all(costs, [most, *(most for _, most in others)], asked.target.solver)
        widths = {name: int(choice.widths[index]) for (name, choice), index in zip(choices.items(), at, strict=True)}
        found.append(widest(asked.groups, going, widths))
    return found


def step_of(group: Group, round_to: int) -> int:
    """What numbers of units of a group are multiples of, so that widths are of ``round_to``: a head is several channels by itself."""
    channels = gcd(*(part.index_UK.shape[1] for part in group.slices))
    return round_to // gcd(round_to, channels)


def rounded(levels: Sequence[int], step: int) -> list[int]:
    """Rising numbers of units, each down to a multiple of ``step``, but all units, which are as many as they are."""
    return sorted({*(level - level % step for level in levels), max(levels)} - {0})


def going_order(order_S: Sequence[int], groups: Sequence[Group]) -> dict[str, list[int]]:
    """By group, its units (positions in all groups one after another) in the order in which they go."""
    owner = [group.name for group in groups for _ in range(group.units)]
    going: dict[str, list[int]] = {group.name: [] for group in groups}
    for unit in order_S:
        going[owner[unit]].append(unit)
    return going


def widest(groups: Sequence[Group], going: Mapping[str, Sequence[int]], widths: Mapping[str, int]) -> dict[str, Tensor]:
    """Of each group, the units that go last: as many as its width says."""
    import torch

    kept, start = {}, 0
    for group in groups:
        kept[group.name] = torch.zeros(group.units, dtype=torch.bool)
        last = going[group.name][group.units - widths[group.name] :]
        kept[group.name][[unit - start for unit in last]] = True
        start += group.units
    return kept


def dense_family(family: ModelFamily) -> ModelFamily:
    """The family before anything was taken out."""
    return family.dense if isinstance(family, ShrunkModel) else family


def cost_of(of: Of, family: ModelFamily, groups: Sequence[Group], input_shape: tuple[int, int, int]) -> Cost:
    """What a target is a fraction of, for a model of ``family``."""
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
    """How many units every group keeps at least: what is asked for, and one where nothing works without."""

    def least(group: Group) -> int:
        asked = max(target.min_units, ceil(target.min_fraction * dense_units[group.name] - 1e-9))
        step = step_of(group, target.round_to)
        return min(-(-max(asked, group.least) // step) * step, group.units)

    return {group.name: least(group) for group in groups}


def limit(target: UnitTarget, dense: float, now: float, steps_left: int) -> float:
    """What the model may cost after the next of ``steps_left`` steps: equal parts of the way from ``now`` to what is asked of ``dense``.

    Of latency, equal ratios: ``L_t = L_0^(1 - t/k) L_target^(t/k)`` (Shen et al. 2022, section 3.3).
    """
    final = (1 - target.removed) * dense
    if target.of is Of.LATENCY and now > final:
        return now * (final / now) ** (1 / steps_left)
    return _part_of_the_way(now, final, steps_left)


def _part_of_the_way(now: float, final: float, steps_left: int) -> float:
    return now - (now - final) / steps_left if now > final else final

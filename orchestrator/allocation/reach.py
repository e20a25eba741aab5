"""Says how much of a cost can be removed at most, and which floors are in the way, where a target cannot be reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.allocation.units import Cost, UnitProblem, floors, width_levels
from orchestrator.quantities import COSTS, percent
from workers.pruners.units import Of, Solver, UnitTarget

if TYPE_CHECKING:
    from workers.models.structure_costs import Part
    from workers.models.structures.groups import Group

SMALLEST_SHARE = 5e-4  # of the dense model; smaller shares are not mentioned
LAST_UNITS = "the last unit of groups that cannot be removed as a whole"


@dataclass(frozen=True)
class Reach:
    """How much of one cost can be removed, as fractions of the dense model's cost."""

    setting: str
    of: str
    asked: float
    most: float  # with every group at its floor
    without: dict[str, float]  # for each reason of a floor, how much could be removed without that reason alone
    outside: float  # the cost that remains when all groups are removed

    def sentence(self) -> str:
        """One line: the requested fraction, the most that can be removed, and what is in the way."""
        what, by = COSTS[self.of], " by the times of operations" if self.of == Of.LATENCY.value else ""
        if self.asked > self.most:
            limit = f"{self.setting}: at most {percent(self.most)} of the {what} can be removed{by}, {percent(self.asked)} was requested"
        else:
            limit = f"{self.setting}: all groups are at their floors, where {percent(self.most)} of the {what} is removed{by}"
        without = [f"{percent(could)} without {name}" for name, could in self.without.items() if could > self.most + SMALLEST_SHARE]
        if not without and 1 - self.outside > self.most + SMALLEST_SHARE:
            without = [f"{percent(1 - self.outside)} without all of {', '.join(self.without)}"]
        reasons = [f"it could be {', '.join(without)}"] if without else []
        reasons += [f"{percent(self.outside)} is outside all groups"] if self.outside > SMALLEST_SHARE else []
        return "; ".join([limit, *reasons])


def reaches(problem: UnitProblem) -> list[Reach]:
    """Returns the reach of the cost that the target limits, and of every other budget."""
    main = ("pruner.target.removed", problem.target.of.value, problem.target.removed, problem.cost, problem.dense)
    others = [(f"pruner.target.also.{of}", of, budget.removed, budget.cost, budget.dense) for of, budget in problem.others_by_name.items()]
    return [_reach(problem, *settings) for settings in (main, *others)]


def unreached(problem: UnitProblem, kept: Mapping[str, int], limits: Sequence[float]) -> list[Reach]:
    """Returns the reach of the costs that exceed their ``limits`` when each group keeps ``kept`` units.

    ``problem`` describes the model before units were selected.
    """
    costs = [_total(cost.parts(problem.groups), kept) for cost in (problem.cost, *(budget.cost for budget in problem.others))]
    missed = [cost > limit * (1 + 1e-9) for cost, limit in zip(costs, limits, strict=True)]
    return [reach for reach, is_missed in zip(reaches(problem), missed, strict=True) if is_missed] if any(missed) else []


def sentences(stored: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the sentence of each reach that a record holds."""
    return [Reach(**entry).sentence() for entry in stored]


def storable(reached: Sequence[Reach]) -> list[dict[str, Any]]:
    """Returns reaches in the form that records hold."""
    return [asdict(reach) for reach in reached]


def _reach(problem: UnitProblem, setting: str, of: str, removed: float, cost: Cost, dense: float) -> Reach:
    parts, target = cost.parts(problem.groups), problem.target
    # Measured times may fall as widths rise; counted costs never do.
    by_table = of == Of.LATENCY.value and target.solver is not Solver.RANKING

    def removable(changed: UnitTarget, groups: Sequence[Group]) -> float:
        smallest = floors(changed, groups, problem.dense_units)
        widths = _cheapest(problem, changed, parts, smallest) if by_table else smallest
        return 1 - _total(parts, widths) / dense

    lifted = {
        f"pruner.target.min_fraction={target.min_fraction:g}": replace(target, min_fraction=0.0),
        f"pruner.target.min_units={target.min_units}": replace(target, min_units=0),
        f"pruner.target.round_to={target.round_to}": replace(target, round_to=1),
    }
    without = {name: removable(changed, problem.groups) for name, changed in lifted.items() if changed != target}
    if any(group.least for group in problem.groups):
        without[LAST_UNITS] = removable(target, [replace(group, least=0) for group in problem.groups])
    no_units = dict.fromkeys((group.name for group in problem.groups), 0)
    return Reach(setting, of, removed, removable(target, problem.groups), without, _total(parts, no_units) / dense)


def _cheapest(problem: UnitProblem, target: UnitTarget, parts: Sequence[Part], smallest: Mapping[str, int]) -> dict[str, int]:
    from orchestrator.allocation.widths import CostTable, cheapest, width_choices

    no_importance = {group.name: [0.0] * group.units for group in problem.groups}
    choices = width_choices(no_importance, smallest, width_levels(problem, target.round_to))
    picks = cheapest(CostTable(choices, parts))
    return {name: int(choice.widths[pick]) for (name, choice), pick in zip(choices.items(), picks, strict=True)}


def _total(parts: Sequence[Part], units: Mapping[str, int]) -> float:
    return float(sum(part.value(units) for part in parts))

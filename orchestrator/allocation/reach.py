"""How much of a cost can go at most, and which floors hold the rest: what is said where a target cannot be reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.allocation.units import Cost, Question, floors, rounded, step_of
from orchestrator.quantities import percent
from orchestrator.report_size import OF
from workers.pruners.units import Of, Solver, UnitTarget

if TYPE_CHECKING:
    from workers.models.structure_costs import Part
    from workers.models.structures.groups import Group

TOLD = 5e-4  # smaller shares of the dense model are not worth a word
LAST_UNITS = "the last unit of groups that cannot go altogether"


@dataclass(frozen=True)
class Reach:
    """What can go of one cost, as fractions of the dense model's."""

    setting: str
    of: str
    asked: float
    most: float  # with every group at its floor
    without: dict[str, float]  # by what holds units back, how much could go without it alone
    outside: float  # what is left when all groups are gone

    def sentence(self) -> str:
        """One line: what was asked for, the most that can go, and what is in the way."""
        what, by = OF[self.of], " by the times of operations" if self.of == Of.LATENCY.value else ""
        if self.asked > self.most:
            told = f"{self.setting}: {percent(self.asked)} of the {what} were asked for, and at most {percent(self.most)} can go{by}"
        else:
            told = f"{self.setting}: all groups are at their floors, where {percent(self.most)} of the {what} are gone{by}"
        bound = [f"without {name} {percent(could)}" for name, could in self.without.items() if could > self.most + TOLD]
        if not bound and 1 - self.outside > self.most + TOLD:
            bound = [f"without all of {', '.join(self.without)} {percent(1 - self.outside)}"]
        bound += [f"{percent(self.outside)} lie outside all groups"] if self.outside > TOLD else []
        return "; ".join([told, *bound])


def reaches(asked: Question) -> list[Reach]:
    """Of the cost that a target is of, and of every other budget."""
    others = [(f"pruner.target.also.{of}", of, budget.removed, budget.cost, budget.dense) for of, budget in asked.others_by_name.items()]
    first = ("pruner.target.removed", asked.target.of.value, asked.target.removed, asked.cost, asked.dense)
    return [_reach(asked, *each) for each in (first, *others)]


def unreached(asked: Question, kept: Mapping[str, int], limits: Sequence[float]) -> list[Reach]:
    """Of the costs that are above their ``limits`` with so many units of each group left. ``asked`` is as it was before the choice."""
    spent = [_total(cost.parts(asked.groups), kept) for cost in (asked.cost, *(budget.cost for budget in asked.others))]
    missed = [total > most * (1 + 1e-9) for total, most in zip(spent, limits, strict=True)]
    return [reach for reach, is_missed in zip(reaches(asked), missed, strict=True) if is_missed] if any(missed) else []


def sentences(stored: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of reaches as records hold them."""
    return [Reach(**entry).sentence() for entry in stored]


def storable(found: Sequence[Reach]) -> list[dict[str, Any]]:
    """As records hold them."""
    return [asdict(reach) for reach in found]


def _reach(asked: Question, setting: str, of: str, removed: float, cost: Cost, dense: float) -> Reach:
    parts, target = cost.parts(asked.groups), asked.target
    measured = of == Of.LATENCY.value and target.solver is not Solver.RANKING  # tables may fall as widths rise; counts never do

    def could(changed: UnitTarget, groups: Sequence[Group]) -> float:
        least = floors(changed, groups, asked.dense_units)
        widths = _cheapest(asked, changed, parts, least) if measured else least
        return 1 - _total(parts, widths) / dense

    lifted = {
        f"pruner.target.min_fraction={target.min_fraction:g}": replace(target, min_fraction=0.0),
        f"pruner.target.min_units={target.min_units}": replace(target, min_units=0),
        f"pruner.target.round_to={target.round_to}": replace(target, round_to=1),
    }
    without = {name: could(changed, asked.groups) for name, changed in lifted.items() if changed != target}
    if any(group.least for group in asked.groups):
        without[LAST_UNITS] = could(target, [replace(group, least=0) for group in asked.groups])
    nothing = dict.fromkeys((group.name for group in asked.groups), 0)
    return Reach(setting, of, removed, could(target, asked.groups), without, _total(parts, nothing) / dense)


def _cheapest(asked: Question, target: UnitTarget, parts: Sequence[Part], least: Mapping[str, int]) -> dict[str, int]:
    from orchestrator.allocation.widths import Costs, cheapest, choices_of

    levels = {group.name: rounded(asked.levels(group), step_of(group, target.round_to)) for group in asked.groups}
    choices = choices_of({group.name: [0.0] * group.units for group in asked.groups}, least, levels)
    at = cheapest(Costs(choices, parts))
    return {name: int(choice.widths[index]) for (name, choice), index in zip(choices.items(), at, strict=True)}


def _total(parts: Sequence[Part], units: Mapping[str, int]) -> float:
    return float(sum(part.value(units) for part in parts))

"""Which units go: central, and ignorant of methods. It walks down a ranking until the model costs no more than it may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Protocol

from workers.models.base import ModelFamily
from workers.models.shrunk import ShrunkModel
from workers.pruners.units import Of, UnitPruner, UnitTarget

if TYPE_CHECKING:
    from torch import Tensor

    from workers.structure import Group


class Cost(Protocol):
    """What a target is a fraction of; falls as units are taken."""

    total: int

    def take(self, group: Group) -> None: ...


def choose(
    order_S: Sequence[int], groups: Sequence[Group], cost: Cost, limits: Sequence[float], floors: Mapping[str, int]
) -> list[dict[str, Tensor]]:
    """Units that stay, bool (U,) by group, when ``cost.total`` is first at most each of ``limits`` (which fall), or when no more may go.

    Units go in ``order_S`` (positions in all groups one after another); those of a group that is at its floor are passed over.
    """
    import torch

    starts, kept, left = [], {}, {}
    owner: list[int] = []
    for index, group in enumerate(groups):
        starts.append(len(owner))
        owner += [index] * group.units
        kept[group.name], left[group.name] = torch.ones(group.units, dtype=torch.bool), group.units
    found: list[dict[str, Tensor]] = []

    def stop() -> None:
        while len(found) < len(limits) and cost.total <= limits[len(found)]:
            found.append({name: stays.clone() for name, stays in kept.items()})

    stop()
    for unit in order_S:
        if len(found) == len(limits):
            break
        group = groups[owner[unit]]
        if left[group.name] > floors[group.name]:
            kept[group.name][unit - starts[owner[unit]]] = False
            left[group.name] -= 1
            cost.take(group)
            stop()
    return found + [kept] * (len(limits) - len(found))


def choose_for(
    pruner: UnitPruner, family: ModelFamily, input_shape: tuple[int, int, int], order_S: Sequence[int], steps_left: int = 1
) -> dict[str, Tensor]:
    """What of ``family`` stays, bool (U,) by group, after the next of ``steps_left`` steps to the target of ``pruner``.

    Targets and floors are relative to the dense model: what was taken out before counts. Needs no weights.
    """
    groups, cost, dense, least = _question(pruner, family, input_shape)
    return choose(order_S, groups, cost, [limit(pruner.target, dense, cost.total, steps_left)], least)[0]


def sweep(
    pruner: UnitPruner, family: ModelFamily, input_shape: tuple[int, int, int], order_S: Sequence[int], removed: Sequence[float]
) -> dict[str, list[int]]:
    """How many units of each group would stay if the fractions ``removed`` (rising) were taken out down the same ranking."""
    groups, cost, dense, least = _question(pruner, family, input_shape)
    chosen = choose(order_S, groups, cost, [(1 - fraction) * dense for fraction in removed], least)
    return {group.name: [int(kept[group.name].sum()) for kept in chosen] for group in groups}


def _question(pruner: UnitPruner, family: ModelFamily, input_shape: tuple[int, int, int]) -> tuple[list[Group], Cost, int, dict[str, int]]:
    """Groups, what the model costs, what the dense one does, and floors."""
    from workers.structure import find_groups

    groups, dense, of = find_groups(family, input_shape, pruner.streams), dense_family(family), pruner.target.of
    cost, dense_groups = cost_of(of, family, groups, input_shape), find_groups(dense, input_shape, pruner.streams)
    at_first = cost_of(of, dense, dense_groups, input_shape).total
    return groups, cost, at_first, floors(pruner.target, groups, {group.name: group.units for group in dense_groups})


def dense_family(family: ModelFamily) -> ModelFamily:
    """The family before anything was taken out."""
    return family.dense if isinstance(family, ShrunkModel) else family


def cost_of(of: Of, family: ModelFamily, groups: Sequence[Group], input_shape: tuple[int, int, int]) -> Cost:
    """What a target is a fraction of, for a model of ``family``."""
    import torch

    from workers.models import structure_costs

    if of is Of.STRUCTURES:
        return structure_costs.Count(groups)
    with torch.device("meta"):
        model, image_1CHW = family.build().eval(), torch.empty(1, *input_shape)
    return structure_costs.parameters(model) if of is Of.PARAMETERS else structure_costs.macs(model, image_1CHW)


def floors(target: UnitTarget, groups: Sequence[Group], dense_units: Mapping[str, int]) -> dict[str, int]:
    """How many units every group keeps at least. A convolution without channels is no layer, so one stays."""
    from workers.structure import Kind

    def least(group: Group) -> int:
        asked = max(target.min_units, ceil(target.min_fraction * dense_units[group.name] - 1e-9))
        return max(asked, 0 if group.kind in (Kind.HEAD, Kind.NEURON) else 1)

    return {group.name: least(group) for group in groups}


def limit(target: UnitTarget, dense: int, now: int, steps_left: int) -> float:
    """What the model may cost after the next of ``steps_left`` steps: equal parts of the way from ``now`` to what is asked of ``dense``."""
    final = (1 - target.removed) * dense
    return now - (now - final) / steps_left if now > final else final

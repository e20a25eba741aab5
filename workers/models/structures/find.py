"""The groups of a family's models, traced once for each family. Those of a shrunk model are derived from the dense model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.errors import ConfigError
from workers.models.base import ModelFamily
from workers.models.shrunk import ShrunkModel
from workers.models.structures.checked import check
from workers.models.structures.groups import Group, Kind, Slice
from workers.models.structures.traced import trace

KEPT = 8  # models whose groups are cached, since tracing takes seconds
_CACHE: dict[str, Structure] = {}  # by family and shape of the images


@dataclass(frozen=True, eq=False)
class Structure:
    """The groups of a model, in the order of definition, and by name the reasons why other groups are left out.

    A reason is ``DIFFERS`` with the difference relative to the largest output, or the error that ended the forward pass.
    """

    groups: list[Group]
    left_out: dict[str, str]


def find_structure(family: ModelFamily, input_shape: tuple[int, int, int]) -> Structure:
    """Returns the groups of units that can be removed from a family's models, for images of ``(channels, height, width)``.

    Needs no weights. The groups of a shrunk model are those of the dense one with fewer units, so their names do not change over rounds.
    Raises: ConfigError if the forward pass cannot be traced.
    """
    key = repr((family, input_shape))
    if key not in _CACHE:
        stored = family.stored
        with torch.device("cpu"):  # positions have values, also if the caller builds a model on the meta device
            structure = _of_shrunk(stored, input_shape) if isinstance(stored, ShrunkModel) else _of_dense(family, input_shape)
        if len(_CACHE) == KEPT:
            del _CACHE[next(iter(_CACHE))]
        _CACHE[key] = structure
    return _CACHE[key]


def find_groups(family: ModelFamily, input_shape: tuple[int, int, int], streams: bool) -> list[Group]:
    """Returns the groups of ``find_structure``, those of residual streams only with ``streams``. Raises: ConfigError if there are none."""
    structure = find_structure(family, input_shape)
    groups = [group for group in structure.groups if streams or group.kind is not Kind.STREAM]
    if not groups:
        left_out = f" ({len(structure.left_out)} groups are left out, see mode=structure)" if structure.left_out else ""
        raise ConfigError(
            "pruner: expected a model with heads, hidden neurons or channels that can be removed, got one without"
            f"{left_out}; choose a pruner of weights, such as pruner=cap"
        )
    return groups


def _of_dense(family: ModelFamily, input_shape: tuple[int, int, int]) -> Structure:
    with torch.device("meta"):
        model, image_1CHW = family.build().eval(), torch.empty(1, *input_shape)
    checked = check(family.build, trace(model, image_1CHW))
    return Structure(checked.groups, checked.left_out)


def _of_shrunk(family: ShrunkModel, input_shape: tuple[int, int, int]) -> Structure:
    dense = find_structure(family.dense, input_shape)
    with torch.device("meta"):
        before = {name: tensor.shape for name, tensor in family.dense.build().state_dict().items()}
    return Structure(fewer(dense.groups, before, before | family.shapes), dense.left_out)


def fewer(groups: Sequence[Group], before: Mapping[str, Sequence[int]], after: Mapping[str, Sequence[int]]) -> list[Group]:
    """Returns the groups of a model after its tensors changed from the shapes ``before`` to ``after``, without groups that have no unit.

    The units of a group are interchangeable, so the first units are taken as the remaining ones.
    """
    readers: dict[tuple[str, int], list[Group]] = {}
    for group in groups:
        for part in group.slices:
            readers.setdefault((part.tensor, part.dim), []).append(group)
    kept_units: dict[str, int] = {}
    for group in groups:
        part = next(part for part in group.produced if len(readers[part.tensor, part.dim]) == 1)
        removed = (before[part.tensor][part.dim] - after[part.tensor][part.dim]) // part.index_UK.shape[1]
        kept_units[group.name] = group.units - removed
    kept: dict[tuple[str, int], Tensor] = {}
    for group in groups:
        for part in group.slices:
            kept_P = kept.setdefault((part.tensor, part.dim), torch.ones(before[part.tensor][part.dim], dtype=torch.bool))
            kept_P[part.index_UK[kept_units[group.name] :].reshape(-1)] = False

    def narrower(part: Slice, units: int) -> Slice:
        position_P = kept[part.tensor, part.dim].cumsum(0) - 1
        return replace(part, index_UK=position_P[part.index_UK[:units]])

    return [
        replace(
            group,
            produced=tuple(narrower(part, units) for part in group.produced),
            consumed=tuple(narrower(part, units) for part in group.consumed),
            running=tuple(narrower(part, units) for part in group.running),
        )
        for group in groups
        if (units := kept_units[group.name])
    ]

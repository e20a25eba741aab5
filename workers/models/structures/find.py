"""The groups of a family's models: found once for each family, and for a shrunk model from those of the dense one."""

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

KEPT = 8  # models whose groups are remembered: tracing takes seconds
_FOUND: dict[str, Structure] = {}  # by family and shape of the images


@dataclass(frozen=True, eq=False)
class Structure:
    """Groups of a model, in the order of definition, and those that were seen and do not hold, by name, with the reason (``DIFFERS by`` so
    much, relative to the largest output, or whatever ended the forward pass)."""

    groups: list[Group]
    left_out: dict[str, str]


def find_structure(family: ModelFamily, input_shape: tuple[int, int, int]) -> Structure:
    """What can be taken out of a family's models whole, as they take images of ``(channels, height, width)``; found without weights.

    Of a model that units were taken from, the groups of the dense one with fewer units: their names stay over rounds.
    Raises: ConfigError if a forward pass cannot be followed.
    """
    key = repr((family, input_shape))
    if key not in _FOUND:
        stored = family.stored
        with torch.device("cpu"):  # positions are real, also for whoever builds a model on the meta device and asks here
            found = _of_shrunk(stored, input_shape) if isinstance(stored, ShrunkModel) else _of_whole(family, input_shape)
        if len(_FOUND) == KEPT:
            del _FOUND[next(iter(_FOUND))]
        _FOUND[key] = found
    return _FOUND[key]


def find_groups(family: ModelFamily, input_shape: tuple[int, int, int], streams: bool) -> list[Group]:
    """Groups of ``find_structure``; those of residual streams only if asked for. Raises: ConfigError if there are none."""
    found = find_structure(family, input_shape)
    groups = [group for group in found.groups if streams or group.kind is not Kind.STREAM]
    if not groups:
        out = f" ({len(found.left_out)} do not hold; mode=structure says why)" if found.left_out else ""
        raise ConfigError(
            "pruner: expected a model with heads, hidden neurons or channels that can be taken out, got one with none"
            f"{out}; prune it with a pruner of single weights, such as pruner=cap"
        )
    return groups


def _of_whole(family: ModelFamily, input_shape: tuple[int, int, int]) -> Structure:
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
    """Groups of a model once its tensors have the shapes ``after`` instead of ``before``; without those that have no unit left.

    Units of a group are alike, so where a tensor has lost some, the places of the others are those that the first ones would have.
    """
    readers: dict[tuple[str, int], list[Group]] = {}
    for group in groups:
        for part in group.slices:
            readers.setdefault((part.tensor, part.dim), []).append(group)
    left: dict[str, int] = {}
    for group in groups:
        part = next(part for part in group.produced if len(readers[part.tensor, part.dim]) == 1)
        left[group.name] = group.units - (before[part.tensor][part.dim] - after[part.tensor][part.dim]) // part.index_UK.shape[1]
    stays: dict[tuple[str, int], Tensor] = {}
    for group in groups:
        for part in group.slices:
            of = stays.setdefault((part.tensor, part.dim), torch.ones(before[part.tensor][part.dim], dtype=torch.bool))
            of[part.index_UK[left[group.name] :].reshape(-1)] = False

    def narrower(part: Slice, units: int) -> Slice:
        place = stays[part.tensor, part.dim].cumsum(0) - 1
        return replace(part, index_UK=place[part.index_UK[:units]])

    return [
        replace(
            group,
            produced=tuple(narrower(part, units) for part in group.produced),
            consumed=tuple(narrower(part, units) for part in group.consumed),
            running=tuple(narrower(part, units) for part in group.running),
        )
        for group in groups
        if (units := left[group.name])
    ]

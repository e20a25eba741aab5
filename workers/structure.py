"""What can be taken out of a model whole: groups of coupled slices of its tensors, and the smaller tensors that are left without them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workers.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from workers.models.base import ModelFamily
    from workers.models.shrunk import ShrunkModel

DIFFERS = "the output differs"  # how the reason begins of a group that is another function without its units
KEPT = 8  # models whose groups are remembered: tracing takes seconds
_FOUND: dict[str, Structure] = {}  # by family and shape of the images


class Kind(Enum):
    """What a unit of a group is."""

    CHANNEL = "channel"  # of a convolution, with the depthwise convolutions, norms and gates that are tied to it
    NEURON = "neuron"  # hidden neuron of an MLP; of a gated one, both halves
    HEAD = "head"  # of attention: its query, key, value and output
    STREAM = "stream"  # of the residual stream: tied over all blocks that add to it


@dataclass(frozen=True, eq=False)
class Slice:
    """Entries of one tensor along ``dim``: row u of ``index_UK`` are the K positions that belong to unit u."""

    tensor: str
    dim: int
    index_UK: Tensor

    def view(self, tensor: Tensor) -> Tensor:
        """The tensor with ``dim`` first."""
        return tensor.movedim(self.dim, 0)


@dataclass(frozen=True)
class Size:
    """A number that a module keeps beside its tensors, such as the groups of a convolution or how many heads it has: ``of_unit`` less for
    each unit that goes."""

    name: str  # dotted
    of_unit: int


@dataclass(frozen=True, eq=False)
class Group:
    """Units that can be removed one by one, each with all of its slices.

    ``produced`` is the structure itself: what makes a unit's output, zero wherever all of it is zero (rows, biases, scales and shifts of
    norms). ``running`` goes with it without being a weight (statistics of norms). ``consumed`` reads the output and goes too, but is
    counted as part of what it produces elsewhere. ``sizes`` are numbers that go with the units, ``least`` is 1 where nothing
    works without one.
    """

    name: str
    kind: Kind
    produced: tuple[Slice, ...]
    consumed: tuple[Slice, ...]
    running: tuple[Slice, ...] = ()
    sizes: tuple[Size, ...] = ()
    narrow: tuple[str, ...] = ()  # modules that read the width of their heads off that of their input
    least: int = 0

    @property
    def units(self) -> int:
        return len(self.produced[0].index_UK)

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        return (*self.produced, *self.consumed, *self.running)


def home(group: Group) -> str:
    """The innermost module that holds all tensors of a group."""
    paths = [part.tensor.split(".")[:-1] for part in group.slices]
    shared = [names[0] for names in zip(*paths, strict=False) if len(set(names)) == 1]
    for length in range(len(shared), -1, -1):
        if all(path[:length] == paths[0][:length] for path in paths):
            return ".".join(paths[0][:length])
    return ""


def join(groups: Sequence[Group]) -> Group:
    """One group of groups with as many units each: those of the same number go together."""
    first = groups[0]
    produced, consumed, running = (
        tuple(part for group in groups for part in getattr(group, name)) for name in ("produced", "consumed", "running")
    )
    sizes = tuple(dict.fromkeys(size for group in groups for size in group.sizes))
    kind = Kind.HEAD if any(group.kind is Kind.HEAD for group in groups) else first.kind
    return replace(first, kind=kind, produced=produced, consumed=consumed, running=running, sizes=sizes)


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
    from workers.models.shrunk import ShrunkModel

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
    from workers.models.structures_checked import check
    from workers.models.structures_traced import trace

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


@torch.no_grad()
def mask_(tensors: Mapping[str, Tensor], groups: Iterable[Group], kept: Mapping[str, Tensor]) -> None:
    """Zero what produces the units that are not kept, in place. ``kept`` maps names of groups to bool (U,)."""
    for group in groups:
        for part in group.produced:
            gone = part.index_UK[~kept[group.name]].reshape(-1)
            part.view(tensors[part.tensor])[gone.to(tensors[part.tensor].device)] = 0


def take(tensors: Mapping[str, Tensor], groups: Iterable[Group], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` (those of a model, or some of them) without the units that are not kept. Several groups may read one tensor."""
    gone: dict[tuple[str, int], list[Tensor]] = {}
    for group in groups:
        for part in group.slices:
            gone.setdefault((part.tensor, part.dim), []).append(part.index_UK[~kept[group.name]].reshape(-1))
    smaller = dict(tensors)
    for (name, dim), indices in gone.items():
        if name in smaller and any(len(index) for index in indices):
            stays = torch.ones(smaller[name].shape[dim], dtype=torch.bool)
            stays[torch.cat(indices)] = False
            smaller[name] = smaller[name].index_select(dim, stays.nonzero()[:, 0].to(smaller[name].device))
    return smaller


@dataclass(frozen=True)
class Remainder:
    """What is left of a model's own numbers once units are gone, by name, for ``resize_``: shapes of tensors that no state dict holds,
    sizes, and heads (left, whole) of narrow modules."""

    shapes: dict[str, list[int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    narrow: dict[str, list[int]] = field(default_factory=dict)


def remainder(model: nn.Module, groups: Iterable[Group], kept: Mapping[str, Tensor]) -> Remainder:
    """Of ``model`` without the units of ``groups`` that are not kept."""
    from workers.models.resize import number_of

    left, stored, buffers = Remainder(), set(model.state_dict()), dict(model.named_buffers())
    for group in groups:
        gone = int((~kept[group.name]).sum())
        if not gone:
            continue
        for size in group.sizes:
            left.sizes[size.name] = left.sizes.get(size.name, number_of(model, size.name)) - size.of_unit * gone
        for name in group.narrow:
            left.narrow[name] = [group.units - gone, getattr(model.get_submodule(name), "units_whole", group.units)]
        for part in group.running:
            if part.tensor not in stored:
                shape = left.shapes.setdefault(part.tensor, list(buffers[part.tensor].shape))
                shape[part.dim] -= gone * part.index_UK.shape[1]
    return left

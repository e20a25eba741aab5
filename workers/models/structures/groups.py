"""What can be taken out of a model whole: groups of coupled slices of its tensors, and the smaller tensors that are left without them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch import nn


DIFFERS = "the output differs"  # how the reason begins of a group that is another function without its units


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

"""Groups of units, which are coupled slices of a model's tensors, and the tensors that remain after units are removed."""

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


DIFFERS = "the output differs"  # start of the reason for a group whose removal changes the function


class Kind(Enum):
    """The kind of the units of a group."""

    CHANNEL = "channel"  # channel of a convolution, with the depthwise convolutions, norms and gates that are tied to it
    NEURON = "neuron"  # hidden neuron of an MLP; of a gated MLP, both halves
    HEAD = "head"  # head of attention: its query, key, value and output
    STREAM = "stream"  # channel of the residual stream, tied over all blocks that add to it


@dataclass(frozen=True, eq=False)
class Slice:
    """Entries of one tensor along ``dim``. Row u of ``index_UK`` holds the K positions of unit u."""

    tensor: str
    dim: int
    index_UK: Tensor

    def view(self, tensor: Tensor) -> Tensor:
        """Returns a view of the tensor with ``dim`` first."""
        return tensor.movedim(self.dim, 0)


@dataclass(frozen=True)
class Size:
    """A number that a module keeps beside its tensors, such as the number of groups of a convolution or of heads.

    It decreases by ``of_unit`` for each unit that is removed.
    """

    name: str  # dotted
    of_unit: int


@dataclass(frozen=True, eq=False)
class Group:
    """A set of interchangeable units that can be removed one by one, each with all of its slices.

    ``produced`` are the entries that produce a unit's output, which is zero if all of them are zero (rows, biases, scales and shifts of
    norms). ``running`` are removed with them but are not weights (statistics of norms). ``consumed`` are the entries that read the output;
    they are removed too, but belong to the units that they produce elsewhere. ``sizes`` are numbers that depend on the units. ``least`` is
    1 if the model needs at least one unit.
    """

    name: str
    kind: Kind
    produced: tuple[Slice, ...]
    consumed: tuple[Slice, ...]
    running: tuple[Slice, ...] = ()
    sizes: tuple[Size, ...] = ()
    narrow: tuple[str, ...] = ()  # modules that derive the width of their heads from the width of their input
    least: int = 0

    @property
    def units(self) -> int:
        return len(self.produced[0].index_UK)

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        return (*self.produced, *self.consumed, *self.running)


def home(group: Group) -> str:
    """Returns the name of the innermost module that holds all tensors of a group."""
    paths = [part.tensor.split(".")[:-1] for part in group.slices]
    shared = [names[0] for names in zip(*paths, strict=False) if len(set(names)) == 1]
    for length in range(len(shared), -1, -1):
        if all(path[:length] == paths[0][:length] for path in paths):
            return ".".join(paths[0][:length])
    return ""


def join(groups: Sequence[Group]) -> Group:
    """Returns one group from several with the same number of units, whose u-th units are removed together."""
    first = groups[0]
    produced, consumed, running = (
        tuple(part for group in groups for part in getattr(group, name)) for name in ("produced", "consumed", "running")
    )
    sizes = tuple(dict.fromkeys(size for group in groups for size in group.sizes))
    kind = Kind.HEAD if any(group.kind is Kind.HEAD for group in groups) else first.kind
    return replace(first, kind=kind, produced=produced, consumed=consumed, running=running, sizes=sizes)


@torch.no_grad()
def mask_(tensors: Mapping[str, Tensor], groups: Iterable[Group], kept: Mapping[str, Tensor]) -> None:
    """Zeroes everything that produces the units that are not kept, in place. ``kept`` maps names of groups to bool (U,)."""
    for group in groups:
        for part in group.produced:
            removed = part.index_UK[~kept[group.name]].reshape(-1)
            part.view(tensors[part.tensor])[removed.to(tensors[part.tensor].device)] = 0


def take(tensors: Mapping[str, Tensor], groups: Iterable[Group], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns ``tensors`` (all or some of a model's) without the units that are not kept. Several groups may read one tensor."""
    removed: dict[tuple[str, int], list[Tensor]] = {}
    for group in groups:
        for part in group.slices:
            removed.setdefault((part.tensor, part.dim), []).append(part.index_UK[~kept[group.name]].reshape(-1))
    smaller = dict(tensors)
    for (name, dim), indices in removed.items():
        if name in smaller and any(len(index) for index in indices):
            kept_P = torch.ones(smaller[name].shape[dim], dtype=torch.bool)
            kept_P[torch.cat(indices)] = False
            smaller[name] = smaller[name].index_select(dim, kept_P.nonzero()[:, 0].to(smaller[name].device))
    return smaller


@dataclass(frozen=True)
class Remainder:
    """The numbers of a model after units are removed, by name, for ``resize_``.

    ``shapes`` are those of tensors outside of the state dict, ``narrow`` holds the (remaining, original) heads of narrow modules.
    """

    shapes: dict[str, list[int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    narrow: dict[str, list[int]] = field(default_factory=dict)


def remainder(model: nn.Module, groups: Iterable[Group], kept: Mapping[str, Tensor]) -> Remainder:
    """Returns the numbers of ``model`` without the units of ``groups`` that are not kept."""
    from workers.models.resize import number_of

    rest, stored, buffers = Remainder(), set(model.state_dict()), dict(model.named_buffers())
    for group in groups:
        removed = int((~kept[group.name]).sum())
        if not removed:
            continue
        for size in group.sizes:
            rest.sizes[size.name] = rest.sizes.get(size.name, number_of(model, size.name)) - size.of_unit * removed
        for name in group.narrow:
            rest.narrow[name] = [group.units - removed, getattr(model.get_submodule(name), "units_whole", group.units)]
        for part in group.running:
            if part.tensor not in stored:
                shape = rest.shapes.setdefault(part.tensor, list(buffers[part.tensor].shape))
                shape[part.dim] -= removed * part.index_UK.shape[1]
    return rest

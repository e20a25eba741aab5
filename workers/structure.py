"""What can be taken out of a model whole: groups of coupled slices of its tensors, and the smaller tensors that are left without them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workers.errors import ConfigError

if TYPE_CHECKING:
    from workers.models.base import ModelFamily

KEPT = 8  # models whose groups are remembered: tracing takes seconds
_FOUND: dict[str, list[Group]] = {}  # by family and shape of the images


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


@dataclass(frozen=True, eq=False)
class Group:
    """Units that can be removed one by one, each with all of its slices.

    ``produced`` is the structure itself: what makes a unit's output, zero wherever all of it is zero (rows, biases, scales and shifts of
    norms). ``running`` goes with it without being a weight (statistics of norms). ``consumed`` reads the output and goes too, but is
    counted as part of what it produces elsewhere.
    """

    name: str
    kind: Kind
    produced: tuple[Slice, ...]
    consumed: tuple[Slice, ...]
    running: tuple[Slice, ...] = ()

    @property
    def units(self) -> int:
        return len(self.produced[0].index_UK)

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        return (*self.produced, *self.consumed, *self.running)


def find_groups(family: ModelFamily, input_shape: tuple[int, int, int], streams: bool) -> list[Group]:
    """Groups of a family, found without weights; those of residual streams only if asked for.

    Raises: ConfigError if the structure cannot be found, or nothing in it can be taken out.
    """
    key = repr((family, input_shape))
    if key not in _FOUND:
        with torch.device("meta"):
            model = family.build().eval()
        if len(_FOUND) == KEPT:
            del _FOUND[next(iter(_FOUND))]
        with torch.device("cpu"):  # positions are real, also for whoever builds a model on the meta device and asks here
            _FOUND[key] = family.groups(model, input_shape)
    groups = [group for group in _FOUND[key] if streams or group.kind is not Kind.STREAM]
    if not groups:
        raise ConfigError(
            "pruner: expected a model with heads, hidden neurons or channels that can be taken out, got one with none; prune it with a "
            "pruner of single weights, such as pruner=cap"
        )
    return groups


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

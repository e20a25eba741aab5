"""What can be taken out of a model whole: groups of coupled slices of its tensors, and the smaller tensors that are left without them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import torch
from torch import Tensor, nn


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

    def per_unit(self, values: Tensor) -> Tensor:
        """Sums of ``values`` (of the tensor's shape) over the entries of each unit, (U,)."""
        values_D = values.sum([dim for dim in range(values.ndim) if dim != self.dim % values.ndim])
        return values_D[self.index_UK.to(values.device)].sum(1)

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


def weights_of(model: nn.Module, groups: Sequence[Group]) -> dict[str, Tensor]:
    """The tensors that structures consist of, by name."""
    return {part.tensor: model.get_parameter(part.tensor) for group in groups for part in group.produced}


def structure_entries(weights: Mapping[str, Tensor], groups: Sequence[Group]) -> dict[str, Tensor]:
    """1 on all entries that belong to a structure, else 0, as factors that broadcast over each tensor."""
    found: dict[str, Tensor] = {}
    for group in groups:
        for part in group.produced:
            weight = weights[part.tensor]
            factor_D = found.setdefault(part.tensor, torch.zeros(weight.shape[part.dim], device=weight.device, dtype=weight.dtype))
            factor_D.view(-1)[part.index_UK.reshape(-1).to(weight.device)] = 1
            found[part.tensor] = factor_D
    dims = {part.tensor: part.dim for group in groups for part in group.produced}
    return {
        name: factor_D.view([-1 if dim == dims[name] % weights[name].ndim else 1 for dim in range(weights[name].ndim)])
        for name, factor_D in found.items()
    }


@contextmanager
def scaled(weights: Mapping[str, Tensor], entries: Mapping[str, Tensor], factor: float) -> Iterator[None]:
    """All structures times ``factor``; afterwards bit for bit as they were."""
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.mul_(1 + (factor - 1) * entries[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])


def fit(model: nn.Module) -> None:
    """Bring what modules say of their sizes in line with the shapes of their tensors, in place."""
    from timm.layers import Attention

    for module in model.modules():
        match module:
            case nn.Linear():
                module.out_features, module.in_features = module.weight.shape
            case nn.Conv2d():
                if module.groups == module.in_channels and module.groups > 1:  # depthwise
                    module.groups = len(module.weight)
                module.out_channels, module.in_channels = len(module.weight), module.weight.shape[1] * module.groups
            case nn.BatchNorm2d():
                module.num_features = len(module.running_mean if module.weight is None else module.weight)  # type: ignore[arg-type]
            case nn.LayerNorm() if module.weight is not None:
                module.normalized_shape = tuple(module.weight.shape)
    for module in model.modules():
        if isinstance(module, Attention):
            module.attn_dim = module.proj.in_features
            module.num_heads = module.attn_dim // module.head_dim


def resize_(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give the named tensors of a model new shapes, in place. Their values are arbitrary then."""
    for name, shape in shapes.items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        old = getattr(module, leaf)
        new = torch.empty(tuple(shape), dtype=old.dtype, device=old.device)
        if isinstance(old, nn.Parameter):
            setattr(module, leaf, nn.Parameter(new, requires_grad=old.requires_grad))
        else:
            setattr(module, leaf, new)
    fit(model)

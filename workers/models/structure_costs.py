"""What a model costs as units go: parameters and multiply-adds as sums of products of sizes, times from tables of what was measured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from workers.models.resize import resize_
from workers.models.structures.groups import Group, Kind, home, remainder, take

Size = tuple[str, int]  # a tensor and one of its dimensions


@dataclass(frozen=True)
class Term:
    """``factor`` times the product of ``sizes``."""

    factor: int
    sizes: tuple[Size, ...]


@dataclass(frozen=True)
class Part:
    """A part of a model's cost: ``value`` of the units that are left, by group, of which it reads those of ``groups``."""

    groups: tuple[str, ...]
    value: Callable[[Mapping[str, int]], float]


class Cost:
    """A sum of terms that falls as units are taken out."""

    def __init__(self, terms: Iterable[Term], shapes: dict[str, torch.Size]) -> None:
        self._terms = tuple(terms)
        self._sizes = {size: shapes[size[0]][size[1]] for term in self._terms for size in term.sizes}
        self._with: dict[Size, list[int]] = {}
        for index, term in enumerate(self._terms):
            for size in term.sizes:
                self._with.setdefault(size, []).append(index)
        self.total = sum(self._value(index) for index in range(len(self._terms)))

    def _value(self, index: int) -> int:
        term = self._terms[index]
        return term.factor * prod(self._sizes[size] for size in term.sizes)

    def take(self, group: Group) -> None:
        """One unit of ``group`` goes."""
        narrower = [((part.tensor, part.dim), part.index_UK.shape[1]) for part in group.slices if (part.tensor, part.dim) in self._sizes]
        touched = {index for size, _ in narrower for index in self._with[size]}
        self.total -= sum(self._value(index) for index in touched)
        for size, positions in narrower:
            self._sizes[size] -= positions
        self.total += sum(self._value(index) for index in touched)

    def parts(self, groups: Iterable[Group]) -> list[Part]:
        """The same as a function of how many units are left, of a model that nothing was taken from yet."""
        positions: dict[Size, list[tuple[str, int, int]]] = {}
        for group in groups:
            for part in group.slices:
                positions.setdefault((part.tensor, part.dim), []).append((group.name, group.units, part.index_UK.shape[1]))

        def part_of(term: Term) -> Part:
            read = {size: positions.get(size, []) for size in term.sizes}

            def value(units: Mapping[str, int]) -> float:
                gone = (sum(each * (dense - units[name]) for name, dense, each in read[size]) for size in term.sizes)
                return term.factor * prod(self._sizes[size] - taken for size, taken in zip(term.sizes, gone, strict=True))

            return Part(tuple(dict.fromkeys(name for found in read.values() for name, _, _ in found)), value)

        return [part_of(term) for term in self._terms]


class Count:
    """Units, each of which counts as one."""

    def __init__(self, groups: Iterable[Group]) -> None:
        self.total = sum(group.units for group in groups)

    def take(self, group: Group) -> None:
        self.total -= 1

    def parts(self, groups: Iterable[Group]) -> list[Part]:
        return [Part((group.name,), lambda units, name=group.name: units[name]) for group in groups]  # type: ignore[misc]


class PartCost:
    """A sum of parts that falls as units are taken out."""

    def __init__(self, parts: Sequence[Part], units: Mapping[str, int]) -> None:
        self._parts, self._units = parts, dict(units)
        self._of = {name: [part for part in parts if name in part.groups] for name in units}
        self.total = sum(part.value(self._units) for part in parts)

    def take(self, group: Group) -> None:
        """One unit of ``group`` goes."""
        touched = self._of[group.name]
        self.total -= sum(part.value(self._units) for part in touched)
        self._units[group.name] -= 1
        self.total += sum(part.value(self._units) for part in touched)

    def parts(self, groups: Iterable[Group]) -> list[Part]:
        return list(self._parts)


@torch.no_grad()
def parameters(model: nn.Module) -> Cost:
    """Numbers in all parameters of a model, which may be on the meta device."""
    shapes = {name: tensor.shape for name, tensor in model.named_parameters()}
    return Cost((Term(1, tuple((name, dim) for dim in range(len(shape)))) for name, shape in shapes.items()), shapes)


@torch.no_grad()
def macs(model: nn.Module, image_1CHW: Tensor, groups: Sequence[Group]) -> Cost:
    """Multiply-adds of a forward pass of one sample, as torch's counter has them (where it sees attention: on the meta device).

    A weight of a Linear or Conv2d layer meets every position of its layer's output once; what attention multiplies beside falls with each
    of its heads. What else the counter finds does not depend on units of ``groups`` that may go.
    """
    model.requires_grad_(False)  # torch's counter fails on a parameter that is expanded
    shapes = {name: tensor.shape for name, tensor in model.named_parameters()}
    terms: list[Term] = []

    def weighted(name: str, module: nn.Linear | nn.Conv2d) -> None:
        def note(_: nn.Module, __: object, output: Tensor) -> None:
            outputs = module.weight.shape[0]
            terms.append(Term(output.numel() // outputs if outputs else 0, tuple((name, dim) for dim in range(module.weight.ndim))))

        hooks.append(module.register_forward_hook(note))

    hooks: list = []
    for name, module in model.named_modules():
        match module:
            case nn.Linear() | nn.Conv2d():
                weighted(f"{name}.weight", module)
    try:
        with FlopCounterMode(display=False) as counter:
            model(image_1CHW)
    finally:
        for hook in hooks:
            hook.remove()
    terms += _beside_weights(model, image_1CHW, [group for group in groups if group.kind is Kind.HEAD])
    rest = counter.get_total_flops() // 2 - Cost(terms, shapes).total
    return Cost([*terms, Term(rest, ())], shapes)


def _beside_weights(model: nn.Module, image_1CHW: Tensor, heads: Sequence[Group]) -> list[Term]:
    """A term for the heads of each group: what its module multiplies without a Linear or Conv2d layer, seen on a model with a head less."""
    if not heads:
        return []
    kept = {group.name: torch.arange(group.units) >= min(1, group.units - 1) for group in heads}  # the last one stays
    state, less = model.state_dict(), copy.deepcopy(model)
    left = remainder(model, heads, kept)
    resize_(less, {name: list(tensor.shape) for name, tensor in take(state, heads, kept).items()} | left.shapes, left.sizes, left.narrow)
    before, after = _unweighted(model, image_1CHW, heads), _unweighted(less, image_1CHW, heads)
    found = []
    for group in heads:
        part, fallen = group.consumed[0], before[group.name] - (after[group.name] if group.units > 1 else 0)
        found.append(Term(fallen // part.index_UK.shape[1], ((part.tensor, part.dim),)))
    return found


def _unweighted(model: nn.Module, image_1CHW: Tensor, groups: Sequence[Group]) -> dict[str, int]:
    """Multiply-adds in the module of each group that are not those of its Linear and Conv2d layers."""
    root = type(model).__name__
    with FlopCounterMode(display=False) as counter:
        model(image_1CHW)
    counts = {name: sum(of.values()) // 2 for name, of in counter.get_flop_counts().items()}
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    found = {}
    for group in groups:
        name = home(group)
        inside = [layer for layer in layers if layer.startswith(f"{name}.")]
        found[group.name] = counts.get(f"{root}.{name}", 0) - sum(counts.get(f"{root}.{layer}", 0) for layer in inside)
    return found

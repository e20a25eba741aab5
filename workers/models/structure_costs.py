"""The cost of a model as units are removed: parameters and multiply-adds as sums of products of sizes, latency from tables."""

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
    """A part of a model's cost: ``value`` as a function of the units that are kept, by group, which reads those of ``groups``."""

    groups: tuple[str, ...]
    value: Callable[[Mapping[str, int]], float]


class Cost:
    """A cost that is a sum of terms and decreases as units are removed."""

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
        """Removes one unit of ``group`` from the cost."""
        narrower = [((part.tensor, part.dim), part.index_UK.shape[1]) for part in group.slices if (part.tensor, part.dim) in self._sizes]
        affected = {index for size, _ in narrower for index in self._with[size]}
        self.total -= sum(self._value(index) for index in affected)
        for size, positions in narrower:
            self._sizes[size] -= positions
        self.total += sum(self._value(index) for index in affected)

    def parts(self, groups: Iterable[Group]) -> list[Part]:
        """Returns the cost as a function of the units that are kept, for a model from which nothing was removed yet."""
        positions: dict[Size, list[tuple[str, int, int]]] = {}
        for group in groups:
            for part in group.slices:
                positions.setdefault((part.tensor, part.dim), []).append((group.name, group.units, part.index_UK.shape[1]))

        def part_of(term: Term) -> Part:
            read = {size: positions.get(size, []) for size in term.sizes}

            def value(units: Mapping[str, int]) -> float:
                removed = (sum(count * (dense - units[name]) for name, dense, count in read[size]) for size in term.sizes)
                return term.factor * prod(self._sizes[size] - positions for size, positions in zip(term.sizes, removed, strict=True))

            return Part(tuple(dict.fromkeys(name for entries in read.values() for name, _, _ in entries)), value)

        return [part_of(term) for term in self._terms]


class Count:
    """A cost that counts units."""

    def __init__(self, groups: Iterable[Group]) -> None:
        self.total = sum(group.units for group in groups)

    def take(self, group: Group) -> None:
        self.total -= 1

    def parts(self, groups: Iterable[Group]) -> list[Part]:
        return [Part((group.name,), lambda units, name=group.name: units[name]) for group in groups]  # type: ignore[misc]


class PartCost:
    """A cost that is a sum of parts and decreases as units are removed."""

    def __init__(self, parts: Sequence[Part], units: Mapping[str, int]) -> None:
        self._parts, self._units = parts, dict(units)
        self._of = {name: [part for part in parts if name in part.groups] for name in units}
        self.total = sum(part.value(self._units) for part in parts)

    def take(self, group: Group) -> None:
        """Removes one unit of ``group`` from the cost."""
        affected = self._of[group.name]
        self.total -= sum(part.value(self._units) for part in affected)
        self._units[group.name] -= 1
        self.total += sum(part.value(self._units) for part in affected)

    def parts(self, groups: Iterable[Group]) -> list[Part]:
        return list(self._parts)


@torch.no_grad()
def parameters(model: nn.Module) -> Cost:
    """Returns the number of parameters of a model, which may be on the meta device."""
    shapes = {name: tensor.shape for name, tensor in model.named_parameters()}
    return Cost((Term(1, tuple((name, dim) for dim in range(len(shape)))) for name, shape in shapes.items()), shapes)


@torch.no_grad()
def macs(model: nn.Module, image_1CHW: Tensor, groups: Sequence[Group]) -> Cost:
    """Returns the multiply-adds of a forward pass of one sample, as torch's counter counts them (including attention on the meta device).

    Each weight of a Linear or Conv2d layer is multiplied once for every position of the layer's output. The other products of attention
    decrease with the number of heads. Everything else that is counted does not depend on the units of ``groups``.
    """
    model.requires_grad_(False)  # torch's counter fails on expanded parameters that require gradients
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
    """Returns a term for each group of heads: the products of its module outside of Linear and Conv2d layers.

    They are the difference between the model and one with a head less.
    """
    if not heads:
        return []
    kept = {group.name: torch.arange(group.units) >= min(1, group.units - 1) for group in heads}  # at least one head is kept
    state, smaller = model.state_dict(), copy.deepcopy(model)
    rest = remainder(model, heads, kept)
    shapes = {name: list(tensor.shape) for name, tensor in take(state, heads, kept).items()}
    resize_(smaller, shapes | rest.shapes, rest.sizes, rest.narrow)
    before, after = _unweighted(model, image_1CHW, heads), _unweighted(smaller, image_1CHW, heads)
    terms = []
    for group in heads:
        part, of_head = group.consumed[0], before[group.name] - (after[group.name] if group.units > 1 else 0)
        terms.append(Term(of_head // part.index_UK.shape[1], ((part.tensor, part.dim),)))
    return terms


def _unweighted(model: nn.Module, image_1CHW: Tensor, groups: Sequence[Group]) -> dict[str, int]:
    """Returns the multiply-adds in the module of each group outside of its Linear and Conv2d layers."""
    root = type(model).__name__
    with FlopCounterMode(display=False) as counter:
        model(image_1CHW)
    counts = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    unweighted = {}
    for group in groups:
        name = home(group)
        inside = [layer for layer in layers if layer.startswith(f"{name}.")]
        unweighted[group.name] = counts.get(f"{root}.{name}", 0) - sum(counts.get(f"{root}.{layer}", 0) for layer in inside)
    return unweighted

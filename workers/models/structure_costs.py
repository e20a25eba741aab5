"""What a model costs as units go: parameters and multiply-adds as sums of products of sizes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from workers.structure import Group

Size = tuple[str, int]  # a tensor and one of its dimensions


@dataclass(frozen=True)
class Term:
    """``factor`` times the product of ``sizes``."""

    factor: int
    sizes: tuple[Size, ...]


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


class Count:
    """Units, each of which counts as one."""

    def __init__(self, groups: Iterable[Group]) -> None:
        self.total = sum(group.units for group in groups)

    def take(self, group: Group) -> None:
        self.total -= 1


@torch.no_grad()
def parameters(model: nn.Module) -> Cost:
    """Numbers in all parameters of a model, which may be on the meta device."""
    shapes = {name: tensor.shape for name, tensor in model.named_parameters()}
    return Cost((Term(1, tuple((name, dim) for dim in range(len(shape)))) for name, shape in shapes.items()), shapes)


@torch.no_grad()
def macs(model: nn.Module, image_1CHW: Tensor) -> Cost:
    """Multiply-adds of a forward pass of one sample, as torch's counter has them (where it sees attention: on the meta device).

    A weight of a Linear or Conv2d layer meets every position of its layer's output once; in timm's attention queries meet keys, and
    attention meets values, for each pair of tokens. What else the counter finds does not depend on units that may go.
    """
    shapes = {name: tensor.shape for name, tensor in model.named_parameters()}
    terms: list[Term] = []

    def weighted(name: str, module: nn.Linear | nn.Conv2d) -> None:
        def note(_: nn.Module, __: object, output: Tensor) -> None:
            outputs = module.weight.shape[0]
            terms.append(Term(output.numel() // outputs if outputs else 0, tuple((name, dim) for dim in range(module.weight.ndim))))

        hooks.append(module.register_forward_hook(note))

    def attending(name: str, module: Attention) -> None:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            tokens = inputs[0].shape[1]
            terms.append(Term(2 * tokens * tokens, ((name, 1),)))

        hooks.append(module.register_forward_pre_hook(note))

    hooks: list = []
    for name, module in model.named_modules():
        match module:
            case nn.Linear() | nn.Conv2d():
                weighted(f"{name}.weight", module)
            case Attention():
                attending(f"{name}.proj.weight", module)
    try:
        with FlopCounterMode(display=False) as counter:
            model(image_1CHW)
    finally:
        for hook in hooks:
            hook.remove()
    rest = counter.get_total_flops() // 2 - Cost(terms, shapes).total
    return Cost([*terms, Term(rest, ())], shapes)

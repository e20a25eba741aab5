"""Change of the shapes of tensors in a built model, with the attributes of its modules that depend on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

RESHAPES = (torch.Tensor.reshape, torch.Tensor.view, torch.reshape)


def resize_(
    model: nn.Module,
    shapes: Mapping[str, Sequence[int]],
    sizes: Mapping[str, int] | None = None,
    narrow: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Gives the named tensors of a model new shapes, in place.

    The values of parameters are arbitrary afterwards. A smaller buffer keeps its first values, since buffers outside of state dicts are the
    same for all units. ``sizes`` are numbers that modules keep, such as their number of heads, by dotted name. ``narrow`` maps attention
    modules that derive the width of a head from the width of their input to their (remaining, original) numbers of heads; see
    ``NarrowHeads``.
    """
    for name, shape in shapes.items():
        module, leaf = _owner(model, name)
        old = getattr(module, leaf)
        new = torch.empty(tuple(shape), dtype=old.dtype, device=old.device)
        if isinstance(old, nn.Parameter):
            setattr(module, leaf, nn.Parameter(new, requires_grad=old.requires_grad))
        else:
            setattr(module, leaf, _first(old, shape) if all(map(int.__le__, shape, old.shape)) else new)
    for name, value in (sizes or {}).items():
        _set_number(model, name, value)
        module, leaf = _owner(model, name)
        if value == 0 and "head" in leaf:
            _empty(module)
    for name, (heads, dense_heads) in (narrow or {}).items():
        _narrow(model.get_submodule(name), heads, dense_heads)
    for name, module in model.named_modules():
        _fit(module, f"{name}.groups" in (sizes or {}))


def number_of(model: nn.Module, name: str) -> int:
    """Returns a number that a module keeps, alone or in a list: ``blocks.0.attn.num_heads``, ``conv.split_sizes[1]``.

    Raises: ValueError if there is no such number.
    """
    module, leaf = _owner(model, name)
    attribute, _, index = leaf.partition("[")
    value = getattr(module, attribute, None)
    if index and isinstance(value, list | tuple):
        value = value[int(index[:-1])]
    if type(value) is not int:
        raise ValueError(f"expected {name} to be a whole number of a {type(module).__name__}, got {value!r}")
    return value


def _set_number(model: nn.Module, name: str, value: int) -> None:
    number_of(model, name)
    module, leaf = _owner(model, name)
    attribute, _, index = leaf.partition("[")
    if index:
        values = list(getattr(module, attribute))
        values[int(index[:-1])] = value
        setattr(module, attribute, type(getattr(module, attribute))(values))
    else:
        setattr(module, attribute, value)


def _first(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    return tensor[tuple(slice(size) for size in shape)].clone()


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, leaf = name.rpartition(".")
    return model.get_submodule(owner), leaf


def _fit(module: nn.Module, grouped: bool) -> None:
    match module:
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case nn.Conv2d():
            if module.groups == module.in_channels and module.groups > 1 and not grouped:  # depthwise: as many outputs for each channel
                module.groups = len(module.weight) * module.groups // module.out_channels
            module.out_channels, module.in_channels = len(module.weight), module.weight.shape[1] * module.groups
        case nn.BatchNorm2d() if module.running_mean is not None:
            module.num_features = len(module.running_mean)
        case Attention():
            module.attn_dim = module.proj.weight.shape[1]
            module.num_heads = module.attn_dim // module.head_dim
            if module.num_heads == 0:
                _empty(module)


class NarrowHeads:
    """Attention from which heads were removed, and whose ``forward`` takes the width C of its input as the width of all heads.

    While it runs, reshapes to the width C, or C / heads, are corrected to the remaining heads.
    """

    units_left: int
    units_whole: int

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        shape = next(value.shape for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with _Widths(self.units_left, self.units_whole, set(shape[1:])):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


def _narrow(module: nn.Module, heads: int, dense_heads: int) -> None:
    if not isinstance(module, NarrowHeads):
        dense_class = type(module)
        module.__class__ = type(f"Narrow{dense_class.__name__}", (NarrowHeads, dense_class), {"__module__": dense_class.__module__})
    module.units_left, module.units_whole = heads, dense_heads  # type: ignore[assignment]
    if heads == 0:
        _empty(module)


class _Widths(TorchFunctionMode):
    """A mode that corrects the shapes of reshapes whose sizes do not fit the number of entries."""

    def __init__(self, heads: int, dense_heads: int, widths: set[int]) -> None:
        super().__init__()
        self.of_one = {width // heads: width // dense_heads for width in widths if width % dense_heads == 0 and heads}
        self.of_all = {width: width // dense_heads * heads for width in widths if width % dense_heads == 0}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in RESHAPES and not kwargs:
            tensor, *rest = args
            shape = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], list | tuple | torch.Size) else rest
            if all(isinstance(size, int) for size in shape):
                args = (tensor, self._corrected(tensor.numel(), shape))
        return function(*args, **(kwargs or {}))

    def _corrected(self, count: int, shape: list[int]) -> list[int]:
        if -1 in shape:
            index = next((index for index in reversed(range(len(shape))) if shape[index] in self.of_one), None)
            if index is None or count % -prod(shape) == 0:
                return shape
            return [*shape[:index], self.of_one[shape[index]], *shape[index + 1 :]]
        for index in reversed(range(len(shape))):
            for widths in (self.of_one, self.of_all):
                corrected = [*shape[:index], widths.get(shape[index], shape[index]), *shape[index + 1 :]]
                if prod(shape) != count == prod(corrected):
                    return corrected
        return shape


class EmptyHeads:
    """Attention without heads. Torch 2.11 ends the process in fused attention without heads, so this is not fused."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


def _empty(module: nn.Module) -> None:
    if not isinstance(module, EmptyHeads):
        whole_class = type(module)
        module.__class__ = type(f"Empty{whole_class.__name__}", (EmptyHeads, whole_class), {"__module__": whole_class.__module__})


class NoHeads(nn.Module):
    """Attention without heads: it adds the bias of its projection to the residual stream, the same for all tokens."""

    def __init__(self, bias_D: Tensor) -> None:
        super().__init__()
        self.bias_D = nn.Parameter(bias_D)

    def forward(self, tokens_NTD: Tensor, **_: object) -> Tensor:
        return self.bias_D.expand_as(tokens_NTD)


def without_empty_attention_(model: nn.Module) -> None:
    """Replaces attention without heads, in place. Torch supports products with empty tensors, but ONNX does not."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Attention) and module.num_heads == 0:
            bias_D = module.proj.bias
            model.set_submodule(name, NoHeads(module.proj.weight.new_zeros(len(module.proj.weight)) if bias_D is None else bias_D))

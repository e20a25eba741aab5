"""Convolutions of timm that standardise their weights in every pass (BiT, NFNets, hybrid ViTs), as plain ones with the weights they use.

The function is the same, to the last bit. A pruned weight of a plain convolution is zero where it meets the image, which one that is
standardised afterwards would not be, and the other weights do not change with those that go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

KINDS = (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)


def standardised(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions that standardise their weights, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, KINDS)}


def folded_(model: nn.Module) -> nn.Module:
    """``model``, changed in place: each of them replaced by a plain convolution, with the weight that it used."""
    for name, module in standardised(model).items():
        plain = _plain(module)
        with torch.no_grad():
            plain.weight.copy_(_used(module, dict(module.named_parameters())))
            if module.bias is not None:
                assert plain.bias is not None
                plain.bias.copy_(module.bias)
        model.set_submodule(name, plain)
    return model


def folded_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of ``folded_(model)`` from those of ``model``, which may be on the meta device. Raises no errors of its own."""
    found = dict(state)
    for name, module in standardised(model).items():
        own = {key: found[f"{name}.{key}"] for key, _ in module.named_parameters()}
        found[f"{name}.weight"] = _used(module, own)
        found.pop(f"{name}.gain", None)
    return found


def _plain(module: nn.Conv2d) -> nn.Conv2d:
    kind = Conv2dSame if getattr(module, "same_pad", False) else nn.Conv2d
    plain = kind(
        module.in_channels,
        module.out_channels,
        module.kernel_size,  # type: ignore[arg-type]
        stride=module.stride,  # type: ignore[arg-type]
        padding=module.padding,  # type: ignore[arg-type]
        dilation=module.dilation,  # type: ignore[arg-type]
        groups=module.groups,
        bias=module.bias is not None,
        device=module.weight.device,
        dtype=module.weight.dtype,
    )
    return plain.train(module.training)


@torch.no_grad()
def _used(module: nn.Conv2d, tensors: dict[str, Tensor]) -> Tensor:
    """The weight that ``conv2d`` gets when ``module`` has these parameters."""
    with _Weight() as seen:
        weight = tensors["weight"]
        sides = [1 + (size - 1) * step for size, step in zip(module.kernel_size, module.dilation, strict=True)]
        torch.func.functional_call(module, tensors, (weight.new_zeros(1, module.in_channels, *sides),))
    return seen.weight


class _Weight(TorchFunctionMode):
    weight: Tensor

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is functional.conv2d:
            self.weight = args[1]
        return func(*args, **(kwargs or {}))

"""Replacement of timm's convolutions that standardise their weights in every pass (BiT, NFNets, hybrid ViTs) by ordinary ones.

The outputs are the same, to the last bit. In an ordinary convolution a masked weight is zero in the product, and masking it does not change
the other weights; standardisation would break both.
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
    """Returns the convolutions that standardise their weights, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, KINDS)}


def folded_(model: nn.Module) -> nn.Module:
    """Replaces these convolutions in place by ordinary ones with the standardised weights. Returns ``model``."""
    for name, module in standardised(model).items():
        convolution = _ordinary_convolution(module)
        with torch.no_grad():
            convolution.weight.copy_(_standardised_weight(module, dict(module.named_parameters())))
            if module.bias is not None:
                assert convolution.bias is not None
                convolution.bias.copy_(module.bias)
        model.set_submodule(name, convolution)
    return model


def folded_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of ``folded_(model)`` from those of ``model``, which may be on the meta device."""
    folded = dict(state)
    for name, module in standardised(model).items():
        parameters = {key: folded[f"{name}.{key}"] for key, _ in module.named_parameters()}
        folded[f"{name}.weight"] = _standardised_weight(module, parameters)
        folded.pop(f"{name}.gain", None)
    return folded


def _ordinary_convolution(module: nn.Conv2d) -> nn.Conv2d:
    kind = Conv2dSame if getattr(module, "same_pad", False) else nn.Conv2d
    convolution = kind(
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
    return convolution.train(module.training)


@torch.no_grad()
def _standardised_weight(module: nn.Conv2d, parameters: dict[str, Tensor]) -> Tensor:
    """Returns the weight that ``module`` passes to ``conv2d`` with these parameters."""
    with _WeightOfConv2d() as call:
        sides = [1 + (size - 1) * step for size, step in zip(module.kernel_size, module.dilation, strict=True)]
        torch.func.functional_call(module, parameters, (parameters["weight"].new_zeros(1, module.in_channels, *sides),))
    return call.weight


class _WeightOfConv2d(TorchFunctionMode):
    """A mode that keeps the weight of the last call of ``conv2d``."""

    weight: Tensor

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is functional.conv2d:
            self.weight = args[1]
        return func(*args, **(kwargs or {}))

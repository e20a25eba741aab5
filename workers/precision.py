"""The precision of the matrix products of a model."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

ENTRIES = ("forward", "forward_features")  # the methods that run a model


class Precision(Enum):
    """Of the products of a forward and a backward pass. Weights, sums and solutions are float32."""

    FP32 = "fp32"
    BF16 = "bf16"  # products in bfloat16


def products_in(precision: Precision, device: torch.device) -> torch.autocast:
    """Returns a context in which the products of a forward pass, and of its backward pass, have this precision."""
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision is Precision.BF16)


def in_precision(model: nn.Module, precision: Precision) -> nn.Module:
    """Returns a model that shares all parameters and modules, whose products have this precision and whose outputs are float32.

    Raises: SecateurError if the device of the model has no bfloat16.
    """
    if precision is Precision.FP32:
        return model
    device = next(model.parameters()).device
    _check(device)
    other = model.__class__.__new__(model.__class__)  # not copy.copy, which calls what a module defines for pickle
    other.__dict__.update(model.__dict__)
    for name in ENTRIES:
        if callable(method := getattr(model, name, None)):
            setattr(other, name, _within(precision, device, method))
    other._forward_hooks = other._forward_hooks.copy()
    other.register_forward_hook(lambda _module, _inputs, outputs: _float32(outputs))
    return other


def _within(precision: Precision, device: torch.device, method: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with products_in(precision, device):
            return _float32(method(*args, **kwargs))

    return run


def _float32(outputs: Any) -> Any:
    import torch

    return outputs.float() if isinstance(outputs, torch.Tensor) else outputs


def _check(device: torch.device) -> None:
    import torch

    from workers.errors import SecateurError

    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise SecateurError(f"precision=bf16: {torch.cuda.get_device_name(device)} has no bfloat16; set precision=fp32")

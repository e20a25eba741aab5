"""Keeps masked weights at zero while somebody else trains the model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workers.errors import ConfigError


class Hold:
    """Masks that hold until ``remove``. Usable as a context manager."""

    def __init__(self, handles: list[Any]) -> None:
        self.handles = handles

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def hold_masks(model: nn.Module, masks: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None = None) -> Hold:
    """Keeps the masked weights of ``model`` at zero during any training.

    ``masks`` maps names of layers to bool tensors of the shape of the layer's weight, True where a weight is kept. Masked weights are set
    to zero now, and their gradients are zero from now on, so every optimizer that starts from here and moves a weight by its gradient, its
    momentum or a multiple of the weight itself leaves them at zero. With ``optimizer``, they are also set to zero after each of its steps,
    which holds for every optimizer.

    The hooks belong to the parameters of this module: call ``hold_masks`` again for a copy, and after a wrapper has replaced the
    parameters, as FSDP does. Raises: ConfigError if the masks are not those of the model.
    """
    weights = {name: _weight(model, name, keep) for name, keep in masks.items()}
    keeps = {name: keep.to(weights[name].device) for name, keep in masks.items()}
    handles: list[Any] = []

    def clear(*_: object) -> None:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.mul_(keeps[name].to(weight.device))

    clear()
    for name, weight in weights.items():
        if weight.requires_grad:
            handles.append(weight.register_hook(partial(_masked, keep=keeps[name])))
    if optimizer is not None:
        handles.append(optimizer.register_step_post_hook(clear))
    return Hold(handles)


def _masked(gradient: Tensor, keep: Tensor) -> Tensor:
    return gradient.masked_fill(~keep.to(gradient.device), 0.0)


def _weight(model: nn.Module, name: str, keep: Tensor) -> nn.Parameter:
    try:
        weight = model.get_parameter(f"{name}.weight")
    except AttributeError as error:
        raise ConfigError(
            f"hold_masks: the model has no weight of a layer {name}; pass the module that was pruned, not a wrapper"
        ) from error
    if weight.shape != keep.shape:
        raise ConfigError(f"hold_masks: expected a mask of {tuple(weight.shape)} for {name}, got one of {tuple(keep.shape)}")
    return weight

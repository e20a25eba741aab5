"""A module that the user has in this process, as the builder of a model (``workers.models.permitted``)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workers.batches import saved
from workers.errors import ConfigError
from workers.models.outputs import as_it_was, returning_tensor


class Given:
    """Builds copies of a module, whose outputs are tensors, and whose label loss is ``loss`` if one is given."""

    def __init__(self, module: nn.Module, loss: Callable[[Any, Any], Tensor] | None) -> None:
        self.loss = loss
        self.module = _copied(module).cpu().eval().requires_grad_(True)
        self.skeleton = _emptied(self.module)

    def save(self, folder: Path) -> Path:
        """Writes the weights into a file that is named after its content; returns its path."""
        return saved(folder, self.module.state_dict())

    def __call__(self) -> nn.Module:
        """Returns a copy on the CPU, or on the meta device if that is torch's default device."""
        module = copy.deepcopy(self.skeleton if torch.get_default_device().type == "meta" else self.module)
        returning_tensor(module)
        if self.loss is not None:
            module.label_loss = _LabelLoss(self.loss)  # type: ignore[assignment]
        return module


def _copied(module: nn.Module) -> nn.Module:
    """Returns a copy. Raises: ConfigError if the module cannot be copied."""
    try:
        return copy.deepcopy(module)
    except Exception as error:  # of any class: the module may hold anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"model: the module cannot be copied ({reason}); remove hooks and parametrizations that hold tensors") from error


def _emptied(module: nn.Module) -> nn.Module:
    """Returns a copy on the meta device. Tensors that are shared remain so, which ``Module.to`` would change."""
    empty: dict[int, Any] = {}
    for parameter in module.parameters():
        empty[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        empty[id(buffer)] = buffer.detach().to("meta")
    return copy.deepcopy(module, empty)


class _LabelLoss:
    """A function as an attribute of a module, which would take a loss that is a module for one of its parts."""

    def __init__(self, function: Callable[[Any, Any], Tensor]) -> None:
        self.function = function

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self.function(outputs, labels)


def as_given(built: nn.Module, module: nn.Module) -> nn.Module:
    """Returns a module that ``Given`` built as the user knows it: with the outputs, device, mode and ``requires_grad`` of ``module``."""
    as_it_was(built)
    vars(built).pop("label_loss", None)
    trained = dict(module.named_parameters())
    for name, parameter in built.named_parameters():
        parameter.requires_grad_(trained[name].requires_grad if name in trained else True)
    device = next(iter(module.parameters())).device
    return built.to(device).train(module.training)

"""A built model with tensors of other shapes: its modules say again what their tensors are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from timm.layers import Attention
from torch import nn


def resize_(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give the named tensors of a model new shapes, in place. Their values are arbitrary then."""
    for name, shape in shapes.items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        old = getattr(module, leaf)
        new = torch.empty(tuple(shape), dtype=old.dtype, device=old.device)
        setattr(module, leaf, nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new)
    for module in model.modules():
        _fit(module)


def _fit(module: nn.Module) -> None:
    match module:
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case nn.Conv2d():
            if module.groups == module.in_channels and module.groups > 1:  # depthwise
                module.groups = len(module.weight)
            module.out_channels, module.in_channels = len(module.weight), module.weight.shape[1] * module.groups
        case nn.BatchNorm2d() if module.running_mean is not None:
            module.num_features = len(module.running_mean)
        case Attention():
            module.attn_dim = module.proj.weight.shape[1]
            module.num_heads = module.attn_dim // module.head_dim

"""A built model with tensors of other shapes: its modules say again what their tensors are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from timm.layers import Attention
from torch import Tensor, nn


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


class NoHeads(nn.Module):
    """What attention without a head adds to its residual stream: the bias of its projection, the same for all tokens."""

    def __init__(self, bias_D: Tensor) -> None:
        super().__init__()
        self.bias_D = nn.Parameter(bias_D)

    def forward(self, tokens_NTD: Tensor, **_: object) -> Tensor:
        return self.bias_D.expand_as(tokens_NTD)


def without_empty_attention_(model: nn.Module) -> None:
    """Replace attention that lost all of its heads, in place: torch carries out products of nothing, ONNX knows no such shapes."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Attention) and module.num_heads == 0:
            bias_D = module.proj.bias
            model.set_submodule(name, NoHeads(module.proj.weight.new_zeros(len(module.proj.weight)) if bias_D is None else bias_D))

"""Structures of torchvision's VisionTransformer and SwinTransformer: hidden neurons of their MLPs."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.ops import MLP

from workers.models.structures_vit import neurons
from workers.structure import Group


def mlp_groups(model: nn.Module) -> list[Group]:
    """In forward order. Heads stay: ``nn.MultiheadAttention`` and torchvision's window attention take the width of a head from that of the
    embedding, so they cannot have fewer heads. The embedding stays, since LayerNorm takes its mean over all of it.
    """
    groups = []
    for name, module in model.named_modules():
        if isinstance(module, MLP):  # Linear, activation, dropout, Linear, dropout
            first, second = module[0], module[3]
            each_U1 = torch.arange(second.weight.shape[1])[:, None]
            groups.append(neurons(name, {f"{name}.0": (first, each_U1)}, f"{name}.3"))
    return groups

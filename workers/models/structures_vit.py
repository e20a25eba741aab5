"""Structures of timm's VisionTransformer (ViT, DeiT, DINOv2 with and without registers) and Eva (EVA-02, DINOv3): heads and neurons."""

from __future__ import annotations

import torch
from timm.layers import Attention, GluMlp, Mlp, SwiGLU
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from workers.structure import Group, Kind, Slice


def vit_groups(model: VisionTransformer | Eva) -> list[Group]:
    """In forward order. The width of the embedding is no structure here: LayerNorm takes its mean over all of it, so without a channel it
    is another function, however small the channel was. Attention and MLPs with a norm inside are left out for the same reason, and Eva's
    attention since it reads the width of its heads off that of the embedding.
    """
    groups = []
    for name, module in model.named_modules():
        match module:
            case Attention() if isinstance(module.norm, nn.Identity):
                groups.append(_heads(name, module))
            case GluMlp() if isinstance(module.norm, nn.Identity) and isinstance(module.fc1, nn.Linear):
                hidden = module.fc2.weight.shape[1]
                pairs_U2 = torch.arange(2 * hidden).view(2, hidden).T
                groups.append(neurons(name, {f"{name}.fc1": (module.fc1, pairs_U2)}, f"{name}.fc2"))
            case SwiGLU() if isinstance(module.norm, nn.Identity):
                each_U1 = torch.arange(module.fc2.weight.shape[1])[:, None]
                rows = {f"{name}.{part}": (getattr(module, part), each_U1) for part in ("fc1_g", "fc1_x")}
                groups.append(neurons(name, rows, f"{name}.fc2"))
            case Mlp() if isinstance(module.norm, nn.Identity) and isinstance(module.fc1, nn.Linear):
                each_U1 = torch.arange(module.fc2.weight.shape[1])[:, None]
                groups.append(neurons(name, {f"{name}.fc1": (module.fc1, each_U1)}, f"{name}.fc2"))
    return groups


def _heads(name: str, module: Attention) -> Group:
    """Rows of query, key and value stand one part after the other, heads inside each."""
    heads, width = module.num_heads, module.head_dim
    columns_UK = torch.arange(heads * width).view(heads, width)
    rows_UK = torch.cat([part * heads * width + columns_UK for part in range(3)], dim=1)
    produced = _rows(f"{name}.qkv", module.qkv, rows_UK)
    if module.gate is not None:
        produced += _rows(f"{name}.gate", module.gate, columns_UK)
    return Group(name, Kind.HEAD, produced, (Slice(f"{name}.proj.weight", 1, columns_UK),))


def neurons(name: str, rows: dict[str, tuple[nn.Linear, Tensor]], reader: str) -> Group:
    """Hidden neurons of the MLP ``name``: the ``rows`` of its first layers by unit, and the layer that reads them in order."""
    produced = tuple(part for linear, (module, index_UK) in rows.items() for part in _rows(linear, module, index_UK))
    each_U1 = torch.arange(next(len(index_UK) for _, index_UK in rows.values()))[:, None]
    return Group(name, Kind.NEURON, produced, (Slice(f"{reader}.weight", 1, each_U1),))


def _rows(name: str, module: nn.Linear, index_UK: Tensor) -> tuple[Slice, ...]:
    weight = Slice(f"{name}.weight", 0, index_UK)
    return (weight,) if module.bias is None else (weight, Slice(f"{name}.bias", 0, index_UK))

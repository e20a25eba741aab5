"""The blocks of a model: modules of one class that repeat, whose activations can be computed again instead of kept."""

from __future__ import annotations

import functools

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
LEAST_SHARE = 0.5  # of the parameters, that the blocks of a model hold together


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """Returns the blocks of a model, in its own order; empty if it has none, or if they contain batch norms, which would see a batch twice.

    They are the modules of the class with the most modules among those classes whose modules hold half of the parameters, none of them
    inside of another. Of several such classes, the one with the most parameters is taken: a transformer's block, and not its MLP.
    """
    by_class: dict[type, list[nn.Module]] = {}
    inside: dict[type, set[nn.Module]] = {}
    for module in model.modules():
        kind = type(module)
        if module is model or kind in CONTAINERS or not any(True for _ in module.children()) or module in inside.setdefault(kind, set()):
            continue
        by_class.setdefault(kind, []).append(module)
        inside[kind].update(module.modules())
    all_parameters = _parameters(model)
    found = [(len(modules), sum(map(_parameters, modules)), modules) for modules in by_class.values()]
    fitting = [(many, held, modules) for many, held, modules in found if many > 1 and held >= LEAST_SHARE * all_parameters]
    blocks = max(fitting, key=lambda each: each[:2])[2] if fitting else []
    return [] if any(isinstance(module, _BatchNorm) for block in blocks for module in block.modules()) else blocks


def recompute(model: nn.Module) -> nn.Module:
    """Returns the model, which from now on keeps the inputs of its blocks alone, and computes the blocks again in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    for block in find_blocks(model):
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    return model


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

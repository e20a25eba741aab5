"""Modules whose outputs are objects or tuples, as those of transformers, made to return tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

OUTPUTS = ("logits", "pooler_output", "last_hidden_state")  # of the models of transformers, the first one that is there


def returning_tensor(module: nn.Module) -> nn.Module:
    """Returns the module itself, which returns tensors from now on."""
    module.register_forward_hook(_to_tensor)
    return module


def as_it_was(module: nn.Module) -> nn.Module:
    """Returns the module itself, with the outputs that it had before ``returning_tensor``."""
    for key, hook in list(module._forward_hooks.items()):
        if hook is _to_tensor:
            del module._forward_hooks[key]
    return module


def tensor_of(output: Any) -> Any:
    """Returns the tensor in an output of a model of transformers or in a tuple, and any other output unchanged.

    Logits come first, then pooled features (N, D), then the first position of a sequence of features (N, T, D), then any features.
    """
    if isinstance(output, Tensor):
        return output
    entries = output if isinstance(output, Mapping) else vars(output) if hasattr(output, "__dict__") else {}
    for name in OUTPUTS:
        tensor = entries.get(name)
        if isinstance(tensor, Tensor):
            if name == "pooler_output":
                return tensor.flatten(1)
            return tensor[:, 0] if name == "last_hidden_state" and tensor.ndim == 3 else tensor
    return output[0] if isinstance(output, tuple) and output and isinstance(output[0], Tensor) else output


def _to_tensor(module: nn.Module, inputs: Any, output: Any) -> Any:
    return tensor_of(output)

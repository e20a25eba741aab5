"""Batch normalisation folded into the convolutions before it: one pass over the activations less, for inference."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

WITHOUT_VALUES = {"__get__", "dim", "size", "stride", "numel", "is_contiguous", "is_floating_point"}  # they tell sizes and types alone


class SoleReaders(TorchFunctionMode):
    """Finds the batch normalisations that alone read the output of a convolution, in one forward pass in this thread.

    Use it as a context around the pass. Code that does not run in the pass is not seen.
    """

    def __init__(self, convolutions: Iterable[nn.Module], normalisations: Iterable[nn.BatchNorm2d]) -> None:
        super().__init__()
        self._made: Any = WeakTensorKeyDictionary()  # outputs that live, with the convolution of each
        self._calls: Counter[nn.Module] = Counter()
        self._reads: Counter[nn.Module] = Counter()
        self._before: dict[nn.BatchNorm2d, nn.Module] = {}  # by normalisation
        self._convolutions = [module for module in convolutions if not module._forward_hooks]
        self._normalisations = list(normalisations)
        self._hooks: list[Any] = []

    def __enter__(self) -> SoleReaders:
        self._hooks = [module.register_forward_hook(self._note_output) for module in self._convolutions]
        self._hooks += [module.register_forward_pre_hook(self._note_input) for module in self._normalisations]
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        for hook in self._hooks:
            hook.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") not in WITHOUT_VALUES or isinstance(result, Tensor):
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor) and value in self._made:
                    self._reads[self._made[value]] += 1
        return result

    def _note_output(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._calls[module] += 1
        self._made[output] = module

    def _note_input(self, module: nn.BatchNorm2d, inputs: tuple[Any, ...]) -> None:
        self._calls[module] += 1
        if len(inputs) == 1 and isinstance(inputs[0], Tensor) and inputs[0] in self._made:
            self._before[module] = self._made[inputs[0]]

    def pairs(self) -> list[tuple[nn.Module, nn.BatchNorm2d]]:
        """Returns each convolution with the normalisation that follows. Call it while the outputs of the model live."""
        kept = set(self._made.values())  # outputs that somebody holds
        return [
            (convolution, normalisation)
            for normalisation, convolution in self._before.items()
            if self._calls[convolution] == self._calls[normalisation] == self._reads[convolution] == 1 and convolution not in kept
        ]


def normalisations(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Returns the batch normalisations whose arithmetic is known, with running statistics."""
    found = (module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None)
    return [module for module in found if type(module) is nn.BatchNorm2d or _has_activation(module)]


def factors(normalisation: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Returns the scale and the shift of each channel: the normalisation computes ``scale * x + shift`` in eval mode."""
    assert normalisation.running_mean is not None and normalisation.running_var is not None
    scale_R = torch.rsqrt(normalisation.running_var.double() + normalisation.eps)
    if normalisation.weight is not None:
        scale_R = scale_R * normalisation.weight.double()
    shift_R = -normalisation.running_mean.double() * scale_R
    if normalisation.bias is not None:
        shift_R = shift_R + normalisation.bias.double()
    return scale_R.detach(), shift_R.detach()


def remaining(normalisation: nn.BatchNorm2d) -> nn.Module:
    """Returns what is left of a normalisation after folding: nothing, or the activation of timm's ``BatchNormAct2d``."""
    if not _has_activation(normalisation):
        return nn.Identity()
    return nn.Sequential(normalisation.get_submodule("drop"), normalisation.get_submodule("act"))


def _has_activation(module: nn.BatchNorm2d) -> bool:
    if "timm" not in sys.modules:
        return False
    from timm.layers import BatchNormAct2d

    return type(module) is BatchNormAct2d

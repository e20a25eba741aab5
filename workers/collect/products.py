"""Interception of products with the weights of layers, which are not always computed by calling the layer's module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from workers.models.base import Layer


class Products(TorchFunctionMode):
    """A context in which ``before`` and ``after`` are called around every ``linear`` or ``conv2d`` with the weight of a layer.

    ``before`` gets the layer's name and the arguments of the function by name, ``after`` the layer's name and the output. The input is the
    one that is multiplied by the weight, after any padding by the layer itself. Hooks of modules do not suffice: BEiT, EVA and Swin pass
    weights of their attention to ``linear`` without calling the module that holds them.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: list[Layer],
        before: Callable[[str, dict[str, Any]], None],
        after: Callable[[str, Tensor], None] = lambda _name, _output: None,
    ) -> None:
        super().__init__()
        self.names = {id(model.get_parameter(f"{layer.name}.weight")): layer.name for layer in layers}
        self.before, self.after = before, after

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func not in (functional.linear, functional.conv2d):
            return func(*args, **kwargs)
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        arguments = {"stride": 1, "padding": 0, "dilation": 1} | dict(zip(names, args, strict=False)) | kwargs
        name = self.names.get(id(arguments["weight"]))
        if name is None:
            return func(*args, **kwargs)
        self.before(name, arguments)
        output = func(*args, **kwargs)
        self.after(name, output)
        return output

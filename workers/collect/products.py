"""Products with the weights of layers, seen where they happen: not every one is made by calling the layer's module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from workers.models.base import Layer


class Products(TorchFunctionMode):
    """Inside it, ``before`` gets a layer's name and the arguments of ``linear`` or ``conv2d``, by name; ``after`` the layer's name.

    Inputs are those that meet the weight, after any padding that the layer does itself. BEiT, EVA and Swin hand weights of their attention
    to ``linear`` without calling the module that holds them, so hooks of modules do not see these.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: list[Layer],
        before: Callable[[str, dict[str, Any]], None],
        after: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self.names = {id(model.get_parameter(f"{layer.name}.weight")): layer.name for layer in layers}
        self.before, self.after = before, after

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func not in (functional.linear, functional.conv2d):
            return func(*args, **kwargs)
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = {"stride": 1, "padding": 0, "dilation": 1} | dict(zip(names, args, strict=False)) | kwargs
        name = self.names.get(id(given["weight"]))
        if name is None:
            return func(*args, **kwargs)
        self.before(name, given)
        output = func(*args, **kwargs)
        self.after(name)
        return output

"""Collection of the layer Hessian: the sum of outer products of the inputs of Linear and Conv2d layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.linalg import full_precision
from kernels.second_moment import SecondMoment, zeros
from workers.collect.base import PATCH_BYTES, Collected
from workers.collect.products import Products
from workers.data.base import Batch
from workers.models.base import Layer
from workers.numbers import finite


class InputSum:
    """The sum of ``2 x x^T`` over the input vectors of one layer, a matrix for each group of the convolution, and the skipped batches."""

    def __init__(self, layer: Layer, device: torch.device) -> None:
        self.layer = layer
        self.sum_GCC = zeros(layer.groups, layer.columns, device).sum_nBB
        self.count = 0
        self.skipped = 0

    def add_linear(self, inputs: Tensor) -> None:
        """Adds inputs of shape (…, C)."""
        self._add(inputs.reshape(-1, 1, self.layer.columns).permute(1, 2, 0))

    def add_convolution(self, inputs_NCHW: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> None:
        """Adds inputs of ``conv2d``: a vector for each output position, unfolded ``PATCH_BYTES`` at a time."""
        kernel = weight.shape[2:]
        inputs_NCHW, padding = _padded(inputs_NCHW, kernel, padding, dilation)
        stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
        positions = 1
        for side, k, s, p, d in zip(inputs_NCHW.shape[2:], kernel, stride, padding, dilation, strict=True):
            positions *= (side + 2 * p - d * (k - 1) - 1) // s + 1
        sample_bytes = 4 * self.layer.groups * self.layer.columns * positions
        for part in inputs_NCHW.split(max(1, PATCH_BYTES // sample_bytes)):
            patches = functional.unfold(part, tuple(kernel), dilation, padding, stride)
            grouped = patches.reshape(len(part), self.layer.groups, self.layer.columns, -1)
            self._add(grouped.permute(1, 2, 0, 3).flatten(2))

    def _add(self, vectors_GCK: Tensor) -> None:
        vectors_GCK = vectors_GCK.float()
        with full_precision():
            self.sum_GCC.baddbmm_(vectors_GCK, vectors_GCK.mT, alpha=2)
        self.count += vectors_GCK.shape[2]


def layer_hessian(model: nn.Module, layers: list[Layer], batches: Iterator[Batch]) -> Collected:
    r"""Returns the sum of ``2 x x^T`` over all input vectors of each layer: tokens of a Linear, patches of a Conv2d.

    ``count`` is the number of vectors. Inputs are taken where they are multiplied by the layer's weight, after any padding by the layer
    itself. A batch whose inputs to a layer are not finite is skipped for that layer.

    Source: Frantar & Alistarh 2022 (arXiv 2208.11580), section 3: for each row, the Hessian of the layer's squared output error
    ``|Wx - W'x|^2``.
    """
    sums = {layer.name: InputSum(layer, _device(model)) for layer in layers}

    def add(name: str, arguments: dict[str, Any]) -> None:
        total = sums[name]
        if not finite(arguments["input"]):
            total.skipped += 1
        elif arguments["weight"].ndim == 2:
            total.add_linear(arguments["input"])
        else:
            total.add_convolution(*(arguments[name] for name in ("input", "weight", "stride", "padding", "dilation")))

    for batch in batches:
        with torch.no_grad(), Products(model, layers, add):
            model(batch.images_NCHW.to(_device(model)))
    moments = {name: SecondMoment(total.sum_GCC, total.count) for name, total in sums.items()}
    return Collected(moments, {name: total.skipped for name, total in sums.items()})


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))


def _padded(inputs_NCHW: Tensor, kernel: torch.Size, padding: Any, dilation: Any) -> tuple[Tensor, tuple[int, int]]:
    """Returns the inputs and their padding as two numbers. Padding of ``same`` may be asymmetric, so it is applied to the inputs."""
    if padding == "valid":
        return inputs_NCHW, (0, 0)
    if padding != "same":
        return inputs_NCHW, _pair(padding)
    totals = [d * (k - 1) for k, d in zip(kernel, _pair(dilation), strict=True)]
    (top, left) = (total // 2 for total in totals)
    return functional.pad(inputs_NCHW, (left, totals[1] - left, top, totals[0] - top)), (0, 0)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device

"""Collection of the layer Hessian: the sum of outer products of the inputs of Linear and Conv2d layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


def input_vectors(layer: Layer, arguments: Mapping[str, Any]) -> Iterator[tuple[slice, Tensor]]:
    """Yields the vectors that a product multiplies by the layer's weight, (G, C, K), with the slice of the samples that they belong to.

    ``arguments`` are those of ``linear`` or ``conv2d``, by name. The inputs of a convolution have a vector for each output position and are
    unfolded ``PATCH_BYTES`` at a time; K runs over samples, then over positions.
    """
    inputs, weight = arguments["input"], arguments["weight"]
    if weight.ndim == 2:
        yield slice(None), inputs.reshape(-1, 1, layer.columns).permute(1, 2, 0)
        return
    kernel = weight.shape[2:]
    inputs_NCHW, padding = _padded(inputs, kernel, arguments["padding"], arguments["dilation"])
    stride, padding, dilation = _pair(arguments["stride"]), _pair(padding), _pair(arguments["dilation"])
    positions = 1
    for side, k, s, p, d in zip(inputs_NCHW.shape[2:], kernel, stride, padding, dilation, strict=True):
        positions *= (side + 2 * p - d * (k - 1) - 1) // s + 1
    step = max(1, PATCH_BYTES // (4 * layer.groups * layer.columns * positions))
    for start in range(0, len(inputs_NCHW), step):
        part = slice(start, start + step)
        patches = functional.unfold(inputs_NCHW[part], tuple(kernel), dilation, padding, stride)
        yield part, patches.reshape(len(patches), layer.groups, layer.columns, -1).permute(1, 2, 0, 3).flatten(2)


class InputSum:
    """The sum of ``2 x x^T`` over the input vectors of one layer, a matrix for each group of the convolution, and the skipped batches."""

    def __init__(self, layer: Layer, device: torch.device) -> None:
        self.sum_GCC = zeros(layer.groups, layer.columns, device).sum_nBB
        self.count = 0
        self.skipped = 0

    def add(self, vectors_GCK: Tensor) -> None:
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

    known = {layer.name: layer for layer in layers}

    def add(name: str, arguments: dict[str, Any]) -> None:
        if not finite(arguments["input"]):
            sums[name].skipped += 1
            return
        for _, vectors_GCK in input_vectors(known[name], arguments):
            sums[name].add(vectors_GCK)

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

"""Collection of the block Fisher: the sum of outer products of calibration gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from kernels.second_moment import SecondMoment, add_outer_, zeros
from workers.collect.base import Collected, chunk_size
from workers.data.base import Batch
from workers.losses import Loss, calibration_loss, forward
from workers.models.base import Layer
from workers.numbers import derived_seed, finite


class GradientSum:
    """The second moment of one layer's block gradients, which are added one at a time and multiplied a chunk at a time.

    The chunks have a fixed size, so the resulting bytes do not depend on which other layers are collected in the same pass.
    """

    def __init__(self, layer: Layer, block_size: int, device: torch.device) -> None:
        per_row = -(-layer.columns // block_size)
        self.columns = layer.columns
        self.sum_nBB = zeros(layer.rows * per_row, block_size, device).sum_nBB
        self.chunk_KRC = torch.zeros(chunk_size(block_size), layer.rows, per_row * block_size, device=device)  # rows padded to whole blocks
        self.in_chunk = 0
        self.count = 0

    def add(self, gradient_RC: Tensor) -> None:
        if not finite(gradient_RC):
            return
        self.chunk_KRC[self.in_chunk, :, : self.columns] = gradient_RC
        self.in_chunk += 1
        self.count += 1
        if self.in_chunk == len(self.chunk_KRC):
            self._multiply()

    def _multiply(self) -> None:
        blocks, block_size, _ = self.sum_nBB.shape
        add_outer_(self.sum_nBB, self.chunk_KRC[: self.in_chunk].view(-1, blocks, block_size))
        self.in_chunk = 0

    def result(self) -> SecondMoment:
        """Returns the sum. No gradient can be added afterwards."""
        if self.in_chunk:
            self._multiply()
        del self.chunk_KRC
        return SecondMoment(self.sum_nBB, self.count)


def block_fisher(
    model: nn.Module,
    layers: list[Layer],
    batches: Iterator[Batch],
    block_sizes: dict[str, int],
    loss: Loss,
    seed: int,
    arrange: Callable[[Layer, Tensor], Tensor],
) -> Collected:
    r"""Returns the block-diagonal sum of ``g_n g_n^T`` over calibration batches for each layer.

    The columns of a layer are in the order of ``arrange(layer, matrix_RC)``. Only the weights of ``layers`` require gradients, so a
    backward pass ends at the earliest of them. A batch whose loss is not finite is skipped for every layer, a gradient that is not finite
    for its layer alone. The statistic's ``count`` is the number of gradients in the sum.

    Source: Kuznedelev et al. 2023 (arXiv 2210.09223), the Fisher of section 3; ``g_n`` is the gradient of the mean loss of one batch.
    Differs: outer products are summed and factored once; the paper updates an inverse by one vector at a time.
    """
    model.requires_grad_(False)
    weights = {layer.name: model.get_parameter(f"{layer.name}.weight").requires_grad_(True) for layer in layers}
    device = next(iter(weights.values())).device
    sums = {layer.name: GradientSum(layer, block_sizes[layer.name], device) for layer in layers}
    number = 0
    for batch in batches:
        number += 1
        outputs = forward(loss, model, batch.images_NCHW.to(device))
        value = calibration_loss(loss, model, outputs, batch.labels.to(device), derived_seed(seed, number)) if finite(outputs) else None
        if value is None or not finite(value):
            continue
        gradients = torch.autograd.grad(value, list(weights.values()))
        for layer, gradient in zip(layers, gradients, strict=True):
            sums[layer.name].add(arrange(layer, gradient.reshape(layer.rows, layer.columns)))
    moments = {name: total.result() for name, total in sums.items()}
    return Collected(moments, {name: number - moment.count for name, moment in moments.items()})

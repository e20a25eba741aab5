"""Collection of the block Fisher: the sum of outer products of calibration gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from kernels.second_moment import SecondMoment, cut_blocks
from workers.collect.base import Collected, unreached
from workers.collect.outer_sum import OuterSum
from workers.data.base import Batch
from workers.losses import Loss, calibration_loss, forward
from workers.models.base import Layer
from workers.numbers import derived_seed, finite


class GradientSum:
    """The second moment of one layer's block gradients, and the number of gradients in it."""

    def __init__(self, layer: Layer, block_size: int, device: torch.device) -> None:
        self.block_size, self.count = block_size, 0
        self.total = OuterSum(layer.rows * -(-layer.columns // block_size), block_size, device)

    def add(self, gradient_RC: Tensor) -> None:
        if finite(gradient_RC):
            self.total.add(cut_blocks(gradient_RC, self.block_size)[None])
            self.count += 1

    def result(self) -> SecondMoment:
        """Returns the sum. No gradient can be added afterwards."""
        return SecondMoment(self.total.result_nBB(), self.count)


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
    for its layer alone. The statistic's ``count`` is the number of gradients in the sum. Raises: SecateurError if the loss does not depend
    on a layer.

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
        gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True) if value.requires_grad else [None] * len(layers)
        for layer, gradient in zip(layers, gradients, strict=True):
            if gradient is None:
                raise unreached(layer.name)
            sums[layer.name].add(arrange(layer, gradient.reshape(layer.rows, layer.columns)))
    moments = {name: total.result() for name, total in sums.items()}
    return Collected(moments, {name: number - moment.count for name, moment in moments.items()})

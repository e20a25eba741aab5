"""Collection of paired inputs: what a layer gets from the dense model, beside what it gets from the pruned one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kernels.linalg import full_precision
from kernels.second_moment import SecondMoment
from workers.collect.base import SHARED_CHUNK, Collected
from workers.collect.layer_hessian import input_vectors
from workers.collect.outer_sum import OuterSum
from workers.collect.products import Products
from workers.data.base import Batch
from workers.losses import Loss, forward
from workers.models.base import Layer
from workers.numbers import finite

Inputs = dict[str, list[dict[str, Any]]]  # by layer, the arguments of each of its products


class Reached(Exception):
    """Ends a forward pass: every layer has its inputs."""


class PairedSum:
    """The sums of one layer: ``x x^T`` over inputs of the pruned model, and ``y x^T`` with the inputs y of the dense one."""

    def __init__(self, layer: Layer, device: torch.device) -> None:
        self.layer, self.count, self.skipped = layer, 0, 0
        self.own = OuterSum(layer.groups, layer.columns, device, SHARED_CHUNK)
        self.cross_GCC = torch.zeros(layer.groups, layer.columns, layer.columns, device=device)

    def add(self, dense: Sequence[dict[str, Any]], pruned: Sequence[dict[str, Any]], batches: int) -> None:
        """Adds the products of one pass over some batches, unless an input is not finite. A layer may be used several times in a pass."""
        if not all(finite(arguments["input"]) for arguments in (*dense, *pruned)):
            self.skipped += batches
            return
        for before, after in zip(dense, pruned, strict=True):
            for (_, y_GCK), (_, x_GCK) in zip(input_vectors(self.layer, before), input_vectors(self.layer, after), strict=True):
                self.own.add(x_GCK.float().permute(2, 0, 1))
                with full_precision():
                    self.cross_GCC.baddbmm_(y_GCK.float(), x_GCK.float().mT)
                self.count += x_GCK.shape[2]

    def result(self) -> SecondMoment:
        """Returns the sums. Nothing can be added afterwards."""
        return SecondMoment(self.own.result_nBB(), self.count, cross_sum_nBB=self.cross_GCC)


def paired_inputs(
    dense: nn.Module, pruned: nn.Module, layers: list[Layer], batches: Iterator[Batch], loss: Loss, samples: int
) -> Collected:
    r"""Returns ``sum_t x_t x_t^T`` and, as its cross sum, ``sum_t y_t x_t^T`` over calibration batches, for each of ``layers``.

    ``x_t`` and ``y_t`` are the input vectors (tokens, patches) of a layer in the pruned and in the dense model. ``count`` is their number.
    A forward pass takes as many batches as have no more than ``samples`` samples. It ends as soon as every layer has been reached as often
    as in the first pass, which runs as far as ``loss`` needs. A pass in which inputs to a layer are not finite is skipped for that layer.
    """
    sums = {layer.name: PairedSum(layer, next(dense.parameters()).device) for layer in layers}
    uses: dict[str, int] | None = None
    for taken in _together(batches, samples):
        images_NCHW = torch.cat([batch.images_NCHW for batch in taken]).to(next(dense.parameters()).device)
        before, after = (_inputs(model, layers, images_NCHW, loss, uses) for model in (dense, pruned))
        uses = {name: len(products) for name, products in before.items()}
        for name, total in sums.items():
            total.add(before[name], after[name], len(taken))
    return Collected({name: total.result() for name, total in sums.items()}, {name: total.skipped for name, total in sums.items()})


def first(samples: int, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yields batches until there are at least so many samples."""
    for batch in batches:
        yield batch
        samples -= len(batch.labels)
        if samples <= 0:
            return


def _together(batches: Iterator[Batch], samples: int) -> Iterator[list[Batch]]:
    """Yields lists of batches with at most so many samples, or of one batch."""
    taken: list[Batch] = []
    for batch in batches:
        if taken and sum(len(each.labels) for each in (*taken, batch)) > samples:
            yield taken
            taken = []
        taken.append(batch)
    if taken:
        yield taken


@torch.no_grad()
def _inputs(model: nn.Module, layers: list[Layer], images_NCHW: Tensor, loss: Loss, uses: dict[str, int] | None) -> Inputs:
    """Returns the inputs of ``layers``. The pass ends when each layer was reached as often as ``uses`` says."""
    inputs: Inputs = {layer.name: [] for layer in layers}

    def keep(name: str, arguments: dict[str, Any]) -> None:
        inputs[name].append(arguments | {"input": arguments["input"].clone()})  # an activation in place may overwrite it
        if uses is not None and all(len(inputs[layer]) >= count for layer, count in uses.items()):
            raise Reached

    try:
        with Products(model, layers, keep):
            forward(loss, model, images_NCHW)
    except Reached:
        pass
    return inputs

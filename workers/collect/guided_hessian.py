"""Collection of the guided Hessian: outer products of a layer's inputs, weighted by the derivatives of the loss by its outputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from kernels.second_moment import SecondMoment
from workers.collect.base import SHARED_CHUNK, Collected, unreached
from workers.collect.layer_hessian import input_vectors
from workers.collect.outer_sum import OuterSum
from workers.collect.products import Products
from workers.data.base import Batch
from workers.losses import Loss, calibration_loss, forward
from workers.models.base import Layer
from workers.numbers import derived_seed, finite

Product = tuple[dict[str, Any], GradientEdge]  # the arguments of ``linear`` or ``conv2d``, and the edge of the output in the graph


class GuidedSum:
    """The sum of one layer: a matrix for each of its row sets, the weights of its rows, and the number of batches in them."""

    def __init__(self, layer: Layer, sets: int, device: torch.device) -> None:
        self.layer, self.sets, self.count = layer, sets, 0
        self.total = OuterSum(layer.groups * sets, layer.columns, device, SHARED_CHUNK)
        self.rows_R = torch.zeros(layer.rows, dtype=torch.float64, device=device)

    def add(self, products: list[tuple[dict[str, Any], Tensor | None]]) -> None:
        """Adds one batch, unless a number is not finite: the arguments of each product with the weight, and the derivatives of its output.

        A layer that is used several times has several products. The derivatives are None where the loss does not depend on the output.
        """
        if not all(finite(arguments["input"]) and (d is None or finite(d)) for arguments, d in products):
            return
        self.count += 1
        for arguments, derivative in products:
            if derivative is None:
                continue
            by_sample = derivative.reshape(-1, self.layer.rows, 1) if arguments["weight"].ndim == 2 else derivative.flatten(2)
            for part, vectors_GCK in input_vectors(self.layer, arguments):
                self._add(vectors_GCK.float(), by_sample[part].float())

    def _add(self, vectors_GCK: Tensor, derivative_NRP: Tensor) -> None:
        """Adds vectors, each scaled by the root of its weight for the set, so that their outer products have that weight."""
        squared_RK = derivative_NRP.square().permute(1, 0, 2).flatten(1)
        self.rows_R += squared_RK.sum(1, dtype=torch.float64)
        root_GkK = squared_RK.reshape(self.layer.groups, self.sets, -1, squared_RK.shape[1]).mean(2).sqrt()
        for vectors_GCS, root_GkS in zip(vectors_GCK.split(SHARED_CHUNK, dim=2), root_GkK.split(SHARED_CHUNK, dim=2), strict=True):
            self.total.add((vectors_GCS[:, None] * root_GkS[:, :, None]).flatten(0, 1).permute(2, 0, 1))

    def result(self) -> SecondMoment:
        """Returns the sum. Nothing can be added afterwards."""
        return SecondMoment(self.total.result_nBB(), self.count, self.rows_R.cpu())


def guided_hessian(
    model: nn.Module, layers: list[Layer], batches: Iterator[Batch], sets: dict[str, int], loss: Loss, seed: int
) -> Collected:
    r"""Returns ``sum_t mean_{r in k} d_tr^2 x_t x_t^T`` over calibration batches, for each set k of rows of each layer.

    ``x_t`` are the input vectors of a layer (tokens, patches) and ``d_tr`` the derivatives of the mean loss of a batch by its outputs.
    ``sets`` is the number of row sets of a layer (of each group of a convolution). With one row in a set, the matrix is the Fisher of the
    row, except for products of different tokens. ``rows_R`` is ``sum_t d_tr^2``: how much a row weighs beside the others of its set.
    One forward and one backward pass of each batch serve all layers. A batch is skipped for every layer if its loss is not finite, and for
    a layer if its inputs or derivatives are not. ``count`` is the number of batches.
    Raises: SecateurError if the loss does not depend on a layer.

    Sources: Martens & Grosse 2015 (arXiv 1503.05671), the Kronecker-factored Fisher; Kim et al. 2025 (GuidedQuant, arXiv 2505.07004), layer
    Hessians weighted by the squared derivatives of the outputs, averaged over groups of output channels.
    """
    model.requires_grad_(False)
    device = next(model.parameters()).device
    sums = {layer.name: GuidedSum(layer, sets[layer.name], device) for layer in layers}
    for layer in layers:
        model.get_parameter(f"{layer.name}.weight").requires_grad_(True)  # so that the graph begins at the earliest layer
    number = 0
    for batch in batches:
        number += 1
        outputs, products = _forward(model, layers, loss, batch.images_NCHW.to(device))
        value = calibration_loss(loss, model, outputs, batch.labels.to(device), derived_seed(seed, number)) if finite(outputs) else None
        if value is None or not finite(value):
            continue
        edges = [edge for name in products for _, edge in products[name]]
        derivatives = iter(torch.autograd.grad(value, edges, allow_unused=True) if value.requires_grad and edges else [None] * len(edges))
        for name, total in sums.items():
            parts = [(arguments, next(derivatives)) for arguments, _ in products[name]]
            if all(derivative is None for _, derivative in parts):
                raise unreached(name)
            total.add(parts)
    return Collected({name: total.result() for name, total in sums.items()}, {name: number - total.count for name, total in sums.items()})


def _forward(model: nn.Module, layers: list[Layer], loss: Loss, images_NCHW: Tensor) -> tuple[Tensor, dict[str, list[Product]]]:
    """Returns the outputs that the loss reads, and the products of each layer in the order of the forward pass.

    Edges stand for the outputs of layers, because an activation may overwrite the output itself (``ReLU(inplace=True)``).
    """
    products: dict[str, list[Product]] = {layer.name: [] for layer in layers}
    entered: list[dict[str, Any]] = []

    def before(name: str, arguments: dict[str, Any]) -> None:
        entered.append(arguments | {"input": arguments["input"].detach()})

    def after(name: str, output: Tensor) -> None:
        products[name].append((entered.pop(), get_gradient_edge(output)))

    with Products(model, layers, before, after):
        return forward(loss, model, images_NCHW), products

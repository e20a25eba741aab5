"""From a layer's statistic to eliminations and re-fitted weights, a slice of blocks at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kernels.obs import Elimination, eliminate, solve_on_mask
from kernels.statistics import SecondMoment, cut_blocks, existing_nB, join_blocks
from workers.errors import SecateurError
from workers.models.base import Layer

SLICE_BYTES = 256 * 2**20  # of one float32 mean; keeps the copies made per slice far below the statistic itself


def eliminate_layer(
    weight_RC: Tensor, layer: Layer, statistic: SecondMoment | None, block_size: int, dampening: float, relative: bool
) -> tuple[Elimination, dict[str, float]]:
    """Eliminate all non-zero weights of a layer; and its absolute dampening, and how many blocks needed more, for the report.

    Raises: SecateurError naming the layer if its statistic cannot be factored.
    """
    weights_nB, alive_nB, statistic = _blocks(weight_RC, layer, statistic, block_size)
    absolute = _absolute_dampening(statistic, alive_nB, dampening, relative)
    parts = []
    with _naming(layer, statistic, absolute):
        for part, mean_nBB in _slices(statistic):
            parts.append(eliminate(weights_nB[part], mean_nBB, alive_nB[part], absolute, relative=False))
    dampening_n = torch.cat([part.dampening_n for part in parts])
    notes = {"dampening": absolute, "blocks_with_raised_dampening": float((dampening_n > 1.5 * absolute).sum())}
    return Elimination(torch.cat([part.order_nB for part in parts]), torch.cat([part.loss_nB for part in parts]), dampening_n), notes


def solve_layer(
    weight_RC: Tensor, layer: Layer, statistic: SecondMoment | None, keep_RC: Tensor, block_size: int, dampening: float, relative: bool
) -> Tensor:
    """Re-fit the kept weights of a layer for a mask. Raises: SecateurError naming the layer if its statistic cannot be factored."""
    weights_nB, alive_nB, statistic = _blocks(weight_RC, layer, statistic, block_size)
    absolute = _absolute_dampening(statistic, alive_nB, dampening, relative)
    keep_nB = cut_blocks(keep_RC, block_size)
    with _naming(layer, statistic, absolute):
        solved = [
            solve_on_mask(weights_nB[part], mean_nBB, keep_nB[part], alive_nB[part], absolute, relative=False)
            for part, mean_nBB in _slices(statistic)
        ]
    return join_blocks(torch.cat(solved), layer.rows, layer.columns)


def _blocks(weight_RC: Tensor, layer: Layer, statistic: SecondMoment | None, block_size: int) -> tuple[Tensor, Tensor, SecondMoment]:
    if statistic is None or statistic.count == 0:
        raise SecateurError(
            f"{layer.name}: every calibration gradient was non-finite, so nothing was measured; check the images and the checkpoint"
        )
    weights_nB = cut_blocks(weight_RC.float(), block_size)
    alive_nB = existing_nB(layer.rows, layer.columns, block_size).to(weights_nB.device) & (weights_nB != 0)
    return weights_nB, alive_nB, statistic


def _absolute_dampening(statistic: SecondMoment, alive_nB: Tensor, dampening: float, relative: bool) -> float:
    if not relative:
        return dampening
    diagonal_nB = statistic.sum_nBB.diagonal(dim1=-2, dim2=-1) / statistic.count
    mean = float(diagonal_nB[alive_nB].double().mean()) if bool(alive_nB.any()) else 0.0
    return dampening * mean if mean > 0 else dampening


def _slices(statistic: SecondMoment) -> Iterator[tuple[slice, Tensor]]:
    block_bytes = 4 * statistic.block_size**2
    step = max(1, SLICE_BYTES // block_bytes)
    for start in range(0, statistic.blocks, step):
        part = slice(start, start + step)
        yield part, statistic.sum_nBB[part] / statistic.count


@contextmanager
def _naming(layer: Layer, statistic: SecondMoment, dampening: float) -> Iterator[None]:
    """Add the layer and the remedy to a failed factorisation."""
    try:
        yield
    except ArithmeticError as error:
        where = f"{layer.name} (dampening {dampening:.1e}, {statistic.count} gradients for blocks of {statistic.block_size})"
        raise SecateurError(f"{where}: {error}; raise pruner.dampening or data.calibration_batches") from error

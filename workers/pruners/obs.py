"""Losses of removal and re-fitted weights from a layer's statistic, computed a slice of blocks at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kernels import scores
from kernels.obs import Elimination, eliminate, solve_on_mask, static_losses
from kernels.second_moment import Moments, cut_blocks
from kernels.sweep import inverse_factor
from workers.collect.statistic import SLICE_BYTES
from workers.errors import SecateurError
from workers.pruners.layout import Layout

LARGE = 64  # a shared matrix of at least this size is inverted once for all rows; smaller ones are copied, and inverted in one batch


@dataclass(frozen=True)
class Curvature:
    """The dampened second moments of a layer's blocks.

    ``shared`` says that the moments are those of the layer's inputs: one matrix for all rows of a group of the convolution (or of a set of
    rows), columns in the layer's own order. A block that is a part of a row has the submatrix of its columns.
    """

    layout: Layout
    moments: Moments
    dampening: float
    relative: bool
    shared: bool

    def slices(self, blocks: int) -> Iterator[tuple[slice, Tensor]]:
        """Yields slices of the blocks with their mean matrices, or one matrix for all blocks of a slice if they share it."""
        repeats = self.layout.layer.rows // self.moments.blocks if self.shared else 1
        per_row = blocks // self.layout.layer.rows
        if self.shared and (self.moments.blocks == 1 or self.moments.block_size >= LARGE or per_row > 1):
            for index in range(self.moments.blocks):
                mean_1CC = self.arranged(self.moments.mean_nBB(slice(index, index + 1)))
                for block in range(per_row):
                    part = slice(index * repeats * per_row + block, (index + 1) * repeats * per_row, per_row)
                    yield part, self._submatrix(mean_1CC, block) if per_row > 1 else mean_1CC
            return
        step = max(1, SLICE_BYTES // (4 * self.moments.block_size**2)) * repeats
        for start in range(0, blocks, step):
            part = slice(start, min(start + step, blocks))
            mean_nBB = self.moments.mean_nBB(slice(part.start // repeats, part.stop // repeats))
            yield part, self.arranged(mean_nBB).repeat_interleave(repeats, dim=0) if self.shared else mean_nBB

    def absolute_dampening(self, alive_nB: Tensor) -> float:
        """Returns ``lambda``. A relative dampening is multiplied by the mean of the diagonal over the alive entries of the layer."""
        if not self.relative:
            return self.dampening
        diagonal_nB = self.moments.diagonal_nB()
        if self.shared:
            diagonal_RC = self.layout.arrange(diagonal_nB).repeat_interleave(self.layout.layer.rows // len(diagonal_nB), dim=0)
            diagonal_nB = cut_blocks(diagonal_RC, self.layout.block_size)
        mean = float(diagonal_nB.expand(alive_nB.shape)[alive_nB].double().mean()) if bool(alive_nB.any()) else 0.0
        return self.dampening * mean if mean > 0 else self.dampening

    def _submatrix(self, mean_1CC: Tensor, block: int) -> Tensor:
        """Returns the matrix of one block of each row, zero where the last block is padded."""
        size = self.layout.block_size
        columns = slice(block * size, (block + 1) * size)
        part_1bb = mean_1CC[:, columns, columns]
        missing = size - part_1bb.shape[-1]
        return functional.pad(part_1bb, (0, missing, 0, missing)).contiguous()

    def arranged(self, mean_nBB: Tensor) -> Tensor:
        """Returns the matrices with rows and columns in the order of the blocks."""
        if not self.shared or self.layout.pattern.is_free or self.layout.layer.kernel == 1:
            return mean_nBB
        order_C = self.layout.arrange(torch.arange(mean_nBB.shape[-1], device=mean_nBB.device)[None])[0]
        return mean_nBB[:, order_C][:, :, order_C]


def fisher(layout: Layout, moments: Moments | None, dampening: float, relative: bool) -> Curvature:
    """Returns the curvature from a block Fisher: one matrix for each block. Raises: SecateurError if no sample was collected."""
    return Curvature(layout, require_samples(layout, moments), dampening, relative, shared=False)


def layer_hessian(layout: Layout, moments: Moments | None, dampening: float, relative: bool) -> Curvature:
    """Returns the curvature from a layer's inputs: blocks are whole rows, which share a matrix. Raises: SecateurError if there are none."""
    return Curvature(layout, require_samples(layout, moments), dampening, relative, shared=True)


def require_samples(layout: Layout, moments: Moments | None) -> Moments:
    """Returns the moments. Raises: SecateurError that names the layer if no sample was collected."""
    if moments is None or moments.count == 0:
        raise SecateurError(
            f"{layout.layer.name}: expected a calibration batch with finite values, got none; check the images, the checkpoint and the loss"
        )
    return moments


def eliminate_layer(weight_RC: Tensor, curvature: Curvature) -> tuple[Elimination, dict[str, float]]:
    """Eliminates all non-zero weights of a layer. Returns the elimination, and the ``dampening_notes``.

    Raises: SecateurError that names the layer if its statistic cannot be factored.
    """
    parts, absolute = _in_slices(weight_RC, curvature, partial(eliminate, relative=False, pattern=curvature.layout.pattern))
    order_nB, loss_nB, dampening_n = (
        _placed([(part, getattr(result, name)) for part, result in parts]) for name in ("order_nB", "loss_nB", "dampening_n")
    )
    return Elimination(order_nB, loss_nB, dampening_n), _notes(curvature, dampening_n, absolute)


def static_layer(weight_RC: Tensor, curvature: Curvature) -> tuple[Tensor, dict[str, float]]:
    """Returns the loss of removing each tile alone, with all others re-fitted, and the ``dampening_notes``.

    Losses are (n, B / tile), and +inf where there is nothing to remove.
    Raises: SecateurError that names the layer if its statistic cannot be factored.
    """
    parts, absolute = _in_slices(weight_RC, curvature, partial(static_losses, relative=False, pattern=curvature.layout.pattern))
    dampening_n = _placed([(part, dampening_n) for part, (_, dampening_n) in parts])
    return _placed([(part, loss_nG) for part, (loss_nG, _) in parts]), _notes(curvature, dampening_n, absolute)


def solve_layer(weight_RC: Tensor, curvature: Curvature, keep_RC: Tensor, slope_RC: Tensor | None = None) -> Tensor:
    """Returns the weights of a layer under a mask, the kept ones re-fitted (see ``kernels.obs.solve_on_mask``).

    Raises: SecateurError that names the layer if its statistic cannot be factored.
    """
    more_nB = [] if slope_RC is None else [curvature.layout.cut(slope_RC)]
    parts, _ = _in_slices(weight_RC, curvature, _solve, curvature.layout.cut(keep_RC), *more_nB)
    return curvature.layout.join(_placed(parts))


def _solve(weights_nB: Tensor, mean_nBB: Tensor, keep_nB: Tensor, *rest: Any) -> Tensor:
    """Solves a slice; ``rest`` is the slope if there is one, which entries are alive, and the dampening."""
    *slope_nB, alive_nB, dampening = rest
    return solve_on_mask(weights_nB, mean_nBB, keep_nB, alive_nB, dampening, False, *slope_nB)


def sweeps(weight_RC: Tensor, curvature: Curvature) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Yields, for each set of rows that share a Hessian, their weights, the upper factor of the dampened inverse, and the dampening used.

    The columns of the weights are in the order of the blocks.
    Raises: SecateurError that names the layer if its statistic cannot be factored.
    """
    layout = curvature.layout
    absolute = curvature.absolute_dampening(layout.alive(weight_RC))
    with naming(curvature, absolute):
        for index, rows_SC in enumerate(layout.arrange(weight_RC).chunk(curvature.moments.blocks)):
            mean_1CC = curvature.arranged(curvature.moments.mean_nBB(slice(index, index + 1)))
            yield rows_SC, *inverse_factor(mean_1CC[0], absolute)


def scores_by(rule: str, loss_nG: Tensor) -> Tensor:
    """Returns scores (n, G) of losses in the order of removal, by the rule ``accumulated``, ``marginal`` or ``hull``."""
    return {"accumulated": scores.accumulated, "marginal": scores.marginal, "hull": scores.hull}[rule](loss_nG)


def dampening_notes(dampening_n: Tensor, absolute: float) -> dict[str, float]:
    """Returns the numbers for the report: the dampening of the settings, and how many matrices needed more."""
    return {"dampening": absolute, "blocks_with_raised_dampening": float((dampening_n > 1.5 * absolute).sum())}


def _notes(curvature: Curvature, dampening_n: Tensor, absolute: float) -> dict[str, float]:
    """Returns the ``dampening_notes``, and whether the statistic is zero, so that only the sizes of weights tell them apart."""
    zero = {} if curvature.moments.diagonal_nB().any() else {"vanishing": 1.0}
    return dampening_notes(dampening_n, absolute) | zero


def _placed(parts: list[tuple[slice, Tensor]]) -> Tensor:
    """Returns the rows of all parts, each at its place."""
    whole = parts[0][1].new_empty(sum(len(tensor) for _, tensor in parts), *parts[0][1].shape[1:])
    for part, tensor in parts:
        whole[part] = tensor
    return whole


def _in_slices(
    weight_RC: Tensor, curvature: Curvature, kernel: Callable[..., Any], *more_nB: Tensor
) -> tuple[list[tuple[slice, Any]], float]:
    """Returns each slice of blocks with the result of ``kernel(weights, mean, *more, alive, dampening)``, and the absolute dampening."""
    weights_nB, alive_nB = curvature.layout.cut(weight_RC.float()), curvature.layout.alive(weight_RC)
    absolute = curvature.absolute_dampening(alive_nB)
    with naming(curvature, absolute):
        return [
            (part, kernel(weights_nB[part], mean_nBB, *[tensor_nB[part] for tensor_nB in more_nB], alive_nB[part], absolute))
            for part, mean_nBB in curvature.slices(len(weights_nB))
        ], absolute


@contextmanager
def naming(curvature: Curvature, absolute: float) -> Iterator[None]:
    """Adds the layer and the remedy to the error of a failed factorisation."""
    moments, layer = curvature.moments, curvature.layout.layer
    try:
        yield
    except ArithmeticError as error:
        where = f"{layer.name} (dampening {absolute:.1e}, {moments.count} samples for blocks of {moments.block_size})"
        raise SecateurError(f"{where}: {error}; raise pruner.dampening or data.calibration_batches") from error

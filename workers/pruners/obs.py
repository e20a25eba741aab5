"""From a layer's statistic to losses of removal and re-fitted weights, a slice of blocks at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels import scores
from kernels.obs import Elimination, eliminate, solve_on_mask, static_losses
from kernels.second_moment import Moments
from kernels.sweep import inverse_factor
from workers.collect.statistic import SLICE_BYTES
from workers.errors import SecateurError
from workers.pruners.layout import Layout


@dataclass(frozen=True)
class Curvature:
    """The dampened second moments of a layer's blocks.

    ``shared``: the moments are those of the layer's inputs, one matrix for all rows of a group, columns in the layer's own order.
    """

    layout: Layout
    moments: Moments
    dampening: float
    relative: bool
    shared: bool

    def slices(self, blocks: int) -> Iterator[tuple[slice, Tensor]]:
        """Runs of blocks and their mean matrices; one run and one matrix when all blocks share it."""
        if self.shared and self.moments.blocks == 1:
            yield slice(0, blocks), self.arranged(self.moments.mean_nBB())
            return
        repeats = self.layout.layer.rows // self.moments.blocks if self.shared else 1
        step = max(1, SLICE_BYTES // (4 * self.moments.block_size**2)) * repeats
        for start in range(0, blocks, step):
            part = slice(start, min(start + step, blocks))
            mean_nBB = self.moments.mean_nBB(slice(part.start // repeats, part.stop // repeats))
            yield part, self.arranged(mean_nBB).repeat_interleave(repeats, dim=0) if self.shared else mean_nBB

    def absolute_dampening(self, alive_nB: Tensor) -> float:
        """``lambda``, relative to the mean diagonal over the alive entries of the layer if so set."""
        if not self.relative:
            return self.dampening
        diagonal_nB = self.moments.diagonal_nB()
        if self.shared:
            diagonal_nB = self.layout.arrange(diagonal_nB).repeat_interleave(len(alive_nB) // len(diagonal_nB), dim=0)
        mean = float(diagonal_nB.expand(alive_nB.shape)[alive_nB].double().mean()) if bool(alive_nB.any()) else 0.0
        return self.dampening * mean if mean > 0 else self.dampening

    def arranged(self, mean_nBB: Tensor) -> Tensor:
        """Matrices with rows and columns in the order of the blocks."""
        if not self.shared or self.layout.pattern.is_free or self.layout.layer.kernel == 1:
            return mean_nBB
        order_C = self.layout.arrange(torch.arange(mean_nBB.shape[-1], device=mean_nBB.device)[None])[0]
        return mean_nBB[:, order_C][:, :, order_C]


def fisher(layout: Layout, moments: Moments | None, dampening: float, relative: bool) -> Curvature:
    """Of a block Fisher: one matrix per block. Raises: SecateurError if nothing was measured."""
    return Curvature(layout, measured(layout, moments), dampening, relative, shared=False)


def layer_hessian(layout: Layout, moments: Moments | None, dampening: float, relative: bool) -> Curvature:
    """Of a layer's inputs: blocks are whole rows, which share a matrix. Raises: SecateurError if nothing was measured."""
    return Curvature(layout, measured(layout, moments), dampening, relative, shared=True)


def measured(layout: Layout, moments: Moments | None) -> Moments:
    """The moments. Raises: SecateurError naming the layer if there are none."""
    if moments is None or moments.count == 0:
        raise SecateurError(
            f"{layout.layer.name}: everything calibration gave was non-finite, so nothing was measured; check the images and the checkpoint"
        )
    return moments


def eliminate_layer(weight_RC: Tensor, curvature: Curvature) -> tuple[Elimination, dict[str, float]]:
    """Eliminate all non-zero weights of a layer; and its absolute dampening, and how many blocks needed more, for the report.

    Raises: SecateurError naming the layer if its statistic cannot be factored.
    """
    parts, absolute = _in_slices(weight_RC, curvature, partial(eliminate, relative=False, pattern=curvature.layout.pattern))
    dampening_n = torch.cat([part.dampening_n for part in parts])
    whole = Elimination(torch.cat([part.order_nB for part in parts]), torch.cat([part.loss_nB for part in parts]), dampening_n)
    return whole, dampening_notes(dampening_n, absolute)


def static_layer(weight_RC: Tensor, curvature: Curvature) -> tuple[Tensor, dict[str, float]]:
    """Loss of removing each tile alone, all others re-fitted: (n, B / tile), +inf where there is nothing to remove; and notes.

    Raises: SecateurError naming the layer if its statistic cannot be factored.
    """
    parts, absolute = _in_slices(weight_RC, curvature, partial(static_losses, relative=False, pattern=curvature.layout.pattern))
    dampening_n = torch.cat([used_n for _, used_n in parts])
    return torch.cat([loss_nG for loss_nG, _ in parts]), dampening_notes(dampening_n, absolute)


def solve_layer(weight_RC: Tensor, curvature: Curvature, keep_RC: Tensor) -> Tensor:
    """Re-fit the kept weights of a layer for a mask. Raises: SecateurError naming the layer if its statistic cannot be factored."""
    parts, _ = _in_slices(weight_RC, curvature, partial(solve_on_mask, relative=False), curvature.layout.cut(keep_RC))
    return curvature.layout.join(torch.cat(parts))


def sweeps(weight_RC: Tensor, curvature: Curvature) -> Iterator[tuple[Tensor, Tensor, float]]:
    """For each group of rows that share a Hessian: their weights (columns as arranged), the upper factor of its dampened inverse, and the
    dampening that this took.

    Raises: SecateurError naming the layer if its statistic cannot be factored.
    """
    layout = curvature.layout
    absolute = curvature.absolute_dampening(layout.alive(weight_RC))
    groups = layout.arrange(weight_RC).chunk(curvature.moments.blocks)
    with naming(curvature, absolute):
        for group, rows_SC in enumerate(groups):
            mean_1CC = curvature.arranged(curvature.moments.mean_nBB(slice(group, group + 1)))
            yield rows_SC, *inverse_factor(mean_1CC[0], absolute)


def scores_by(rule: str, loss_nG: Tensor) -> Tensor:
    """Scores (n, U) of losses in order of removal: ``accumulated``, ``marginal`` or ``hull``."""
    return {"accumulated": scores.accumulated, "marginal": scores.marginal, "hull": scores.hull}[rule](loss_nG)


def dampening_notes(dampening_n: Tensor, absolute: float) -> dict[str, float]:
    """For the report: the dampening asked for, and how many matrices needed more."""
    return {"dampening": absolute, "blocks_with_raised_dampening": float((dampening_n > 1.5 * absolute).sum())}


def _in_slices(weight_RC: Tensor, curvature: Curvature, kernel: Callable[..., Any], *more_nB: Tensor) -> tuple[list[Any], float]:
    """Results of ``kernel(weights, mean, *more, alive, dampening)`` on each slice of the layer's blocks, and the absolute dampening."""
    weights_nB, alive_nB = curvature.layout.cut(weight_RC.float()), curvature.layout.alive(weight_RC)
    absolute = curvature.absolute_dampening(alive_nB)
    with naming(curvature, absolute):
        return [
            kernel(weights_nB[part], mean_nBB, *[each_nB[part] for each_nB in more_nB], alive_nB[part], absolute)
            for part, mean_nBB in curvature.slices(len(weights_nB))
        ], absolute


@contextmanager
def naming(curvature: Curvature, absolute: float) -> Iterator[None]:
    """Add the layer and the remedy to a failed factorisation."""
    moments, layer = curvature.moments, curvature.layout.layer
    try:
        yield
    except ArithmeticError as error:
        where = f"{layer.name} (dampening {absolute:.1e}, {moments.count} samples for blocks of {moments.block_size})"
        raise SecateurError(f"{where}: {error}; raise pruner.dampening or data.calibration_batches") from error

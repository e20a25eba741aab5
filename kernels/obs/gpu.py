r"""Elimination and solve on CUDA tensors: batched torch for factors, inverses and re-fits, a Triton kernel for the elimination.

One program eliminates one block. It never updates the inverse ``A``, which would read and write ``B^2`` numbers at each of ``B`` steps.
Elimination is a Cholesky factorisation of ``A`` with its own choice of pivots, so the row of the next pivot follows from those before it:

    l_k = (A[q_k, :] - sum_{j<k} l_j[q_k] l_j) / sqrt(A_k[q_k, q_k])         w <- w - w_{q_k} / sqrt(A_k[q_k, q_k]) l_k

Only ``w`` and the diagonal change, and are kept in registers. For each block this takes ``B^3`` flops and reads ``4 B^3`` bytes of float64
rows ``l_j`` soon after they were written, instead of ``16 B^3`` bytes; ``A`` itself is read once. By its number of registers, an A100 runs
about 1,080 programs at once at B = 64; their rows (35 MB) fit into its L2 cache of 40 MB. At B = 128 the rows take twice as much and are
partly read from memory. All numbers are float64, for the reason given in ``kernels/obs/cpu.py``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linalg import dampened_inverse, layer_dampening
from kernels.obs import reference
from kernels.obs.reference import Elimination, chunks, least_pivots, solve_on_mask
from kernels.patterns import FREE, Pattern

__all__ = ["eliminate", "solve_on_mask"]

ROWS = 16  # earlier pivot rows that are read at a time


def eliminate(
    weights_nB: Tensor, mean_nBB: Tensor, alive_nB: Tensor, dampening: float, relative: bool, pattern: Pattern = FREE
) -> Elimination:
    """See ``kernels.obs.eliminate``. Tiles of several weights use the reference loop."""
    if pattern.tile > 1:
        return reference.eliminate(weights_nB, mean_nBB, alive_nB, dampening, relative, pattern)
    absolute = layer_dampening(mean_nBB, alive_nB, dampening, relative)
    done = []
    for part, matrix_nBB in chunks(mean_nBB, len(weights_nB)):
        inverse_nBB, dampening_n = dampened_inverse(matrix_nBB, alive_nB[part], absolute, relative=False)
        floor_nB = least_pivots(matrix_nBB, alive_nB[part], dampening_n, tile=1)[..., 0]
        done.append((*eliminate_inverse(weights_nB[part], inverse_nBB, floor_nB, alive_nB[part], pattern), dampening_n))
    order_nB, loss_nB, dampening_n = (torch.cat(tensors) for tensors in zip(*done, strict=True))
    return Elimination(order_nB, loss_nB, dampening_n)


def eliminate_inverse(
    weights_nB: Tensor, inverse_nBB: Tensor, floor_nB: Tensor, alive_nB: Tensor, pattern: Pattern
) -> tuple[Tensor, Tensor]:
    """Returns order (n, B) int16 and losses (n, B) float32 from inverses (n, B, B) float64 whose pivots are at least ``floor_nB``."""
    blocks, block_size = weights_nB.shape
    bucket = pattern.bucket or block_size
    lost_nb = (~alive_nB).reshape(blocks, -1, bucket).sum(dim=2, dtype=torch.int32)
    w_nB = torch.where(alive_nB, weights_nB, 0.0).double()
    rows_nBB = torch.empty_like(inverse_nBB)
    loss_nB = torch.full((blocks, block_size), torch.inf, dtype=torch.float64, device=w_nB.device)
    step_nB = torch.full((blocks, block_size), block_size, dtype=torch.int32, device=w_nB.device)
    eliminate_block[(blocks,)](
        w_nB,
        inverse_nBB.contiguous(),
        floor_nB.contiguous(),
        alive_nB.to(torch.int32),
        lost_nb.repeat_interleave(bucket, dim=1),
        rows_nBB,
        loss_nB,
        step_nB,
        removable=pattern.removable if pattern.bucket else block_size + 1,
        **launch_settings(block_size, bucket),
    )
    order_nB = step_nB.argsort(dim=1, stable=True)
    return order_nB.to(torch.int16), loss_nB.gather(1, order_nB).float()


def launch_settings(block_size: int, bucket: int) -> dict[str, int]:
    """Returns the constants that the kernel is compiled for."""
    width = max(16, triton.next_power_of_2(block_size))
    return {"B": block_size, "WIDTH": width, "BUCKET": bucket, "ROWS": ROWS, "num_warps": max(1, min(8, width // 32))}


@triton.jit
def eliminate_block(
    w_ptr,
    inverse_ptr,
    floor_ptr,
    alive_ptr,
    lost_ptr,
    rows_ptr,
    loss_ptr,
    step_ptr,
    removable,
    B: tl.constexpr,
    WIDTH: tl.constexpr,
    BUCKET: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Eliminates one block in ``WIDTH`` lanes; those past ``B`` are never alive. ``lost`` counts the removals from each entry's bucket."""
    block = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, WIDTH)
    real = lane < B
    inverse_ptr += block * B * B
    rows_ptr += block * B * B
    w = tl.load(w_ptr + block * B + lane, mask=real, other=0.0)
    floor = tl.load(floor_ptr + block * B + lane, mask=real, other=1.0)
    alive = tl.load(alive_ptr + block * B + lane, mask=real, other=0) != 0
    lost = tl.load(lost_ptr + block * B + lane, mask=real, other=0)
    diagonal = tl.load(inverse_ptr + lane * (B + 1), mask=real, other=1.0)

    cost = tl.where(alive & (lost < removable), w * w / tl.maximum(diagonal, floor) / 2, float("inf"))
    least = tl.min(cost, axis=0)
    step = 0
    while least < float("inf"):
        q = tl.argmin(cost, axis=0, tie_break_left=True)
        is_pivot = lane == q
        row = tl.load(inverse_ptr + q * B + lane, mask=real, other=0.0)
        for first in range(0, step, ROWS):
            j = first + tl.arange(0, ROWS)
            past = j < step
            rows = tl.load(rows_ptr + j[:, None] * B + lane[None, :], mask=past[:, None] & real[None, :], other=0.0)
            at_q = tl.load(rows_ptr + j * B + q, mask=past, other=0.0)
            row -= tl.sum(rows * at_q[:, None], axis=0)
        root = tl.sqrt(tl.sum(tl.where(is_pivot, tl.maximum(diagonal, floor), 0.0), axis=0))
        row = row / root
        tl.store(rows_ptr + step * B + lane, row, mask=real)
        tl.store(loss_ptr + block * B + q, least)
        tl.store(step_ptr + block * B + q, step)
        tl.debug_barrier()  # from now on all threads read the row
        w -= tl.sum(tl.where(is_pivot, w, 0.0), axis=0) / root * row
        diagonal -= row * row
        alive = alive & (lane != q)
        lost += (lane // BUCKET == q // BUCKET).to(tl.int32)
        cost = tl.where(alive & (lost < removable), w * w / tl.maximum(diagonal, floor) / 2, float("inf"))
        least = tl.min(cost, axis=0)
        step += 1

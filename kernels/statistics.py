"""Calibration sums that merge by addition, and the cutting of weight matrices into the blocks they are about."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.linalg import full_precision


def cut_blocks(weight_RC: Tensor, block_size: int) -> Tensor:
    """Cut every row into ``ceil(C / B)`` blocks of ``B`` consecutive entries; the last block of a row is filled up with zeros.

    Returns: (n, B) with ``n = R * ceil(C / B)``, row by row. No block holds entries of two rows.
    """
    rows, columns = weight_RC.shape
    per_row = -(-columns // block_size)
    padded_RC = torch.nn.functional.pad(weight_RC, (0, per_row * block_size - columns))
    return padded_RC.reshape(rows * per_row, block_size)


def join_blocks(blocks_nB: Tensor, rows: int, columns: int) -> Tensor:
    """The matrix (R, C) that was cut: the inverse of ``cut_blocks``; what stands on the padding is dropped."""
    return blocks_nB.reshape(rows, -1)[:, :columns].contiguous()


def existing_nB(rows: int, columns: int, block_size: int) -> Tensor:
    """False on the padding of the blocks of an (R, C) matrix, True elsewhere."""
    return cut_blocks(torch.ones(1, columns, dtype=torch.bool), block_size).repeat(rows, 1)


@dataclass(frozen=True)
class SecondMoment:
    """A sum of outer products and how many were added: ``sum_k v_k v_k^T``, (n, B, B) in float32.

    The block Fisher of a layer has one matrix per block of its weights and ``v`` the gradient on that block. The layer Hessian has a
    single matrix (``n = 1``) that all rows share, ``v = sqrt(2) x``. Partial sums over disjoint samples merge by addition.
    """

    sum_nBB: Tensor
    count: int

    @property
    def blocks(self) -> int:
        return self.sum_nBB.shape[0]

    @property
    def block_size(self) -> int:
        return self.sum_nBB.shape[-1]

    def merge(self, other: SecondMoment) -> SecondMoment:
        """The moment over both sets of samples. Raises ValueError when they are about different blocks."""
        if self.sum_nBB.shape != other.sum_nBB.shape:
            raise ValueError(f"cannot merge moments of shapes {tuple(self.sum_nBB.shape)} and {tuple(other.sum_nBB.shape)}")
        return SecondMoment(self.sum_nBB + other.sum_nBB, self.count + other.count)

    def mean_nBB(self) -> Tensor:
        """``H = sum / count``. Raises ValueError when nothing was added."""
        if self.count == 0:
            raise ValueError("the mean of a second moment needs at least one sample, got none")
        return self.sum_nBB / self.count


def zeros(blocks: int, block_size: int, device: torch.device | str = "cpu") -> SecondMoment:
    """The moment of no samples."""
    return SecondMoment(torch.zeros(blocks, block_size, block_size, device=device), 0)


def add_outer_(sum_nBB: Tensor, vectors_KnB: Tensor) -> None:
    """``sum += sum_k v_k v_k^T`` for each block, in place: one batched matrix product over the chunk, in full float32.

    Source: cap.md counts ``2 K n B^2`` flops. The research code of CAP updates the inverse by one vector at a time instead, which is
    bound by memory and loses digits. ``vectors_KnB`` is read through its strides, not copied.
    """
    with full_precision():
        sum_nBB.baddbmm_(vectors_KnB.permute(1, 2, 0), vectors_KnB.transpose(0, 1))

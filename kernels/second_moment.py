"""Calibration sums that merge by addition, and the cutting of weight matrices into the blocks they are about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kernels.linalg import full_precision

EVERYTHING = slice(None)


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


class Moments(Protocol):
    """Second moments that can be read, wherever they lie: in memory, or in files."""

    @property
    def blocks(self) -> int: ...

    @property
    def block_size(self) -> int: ...

    @property
    def count(self) -> int: ...

    def mean_nBB(self, part: slice = EVERYTHING) -> Tensor:
        """``H`` of some blocks, float32."""
        ...

    def diagonal_nB(self) -> Tensor:
        """The diagonals of ``H``, (n, B)."""
        ...


@dataclass(frozen=True)
class SecondMoment:
    """A sum of outer products and how many were added: ``sum_k v_k v_k^T``, (n, B, B) in float32, of which only lower triangles count.

    The block Fisher of a layer has one matrix per block of its weights and ``v`` the gradient on that block. The layer Hessian has a
    single matrix (``n = 1``) that all rows share, ``v = sqrt(2) x``. Sums over disjoint samples merge by addition.
    """

    sum_nBB: Tensor
    count: int

    @property
    def blocks(self) -> int:
        return self.sum_nBB.shape[0]

    @property
    def block_size(self) -> int:
        return self.sum_nBB.shape[-1]

    def mean_nBB(self, part: slice = EVERYTHING) -> Tensor:
        """``H = sum / count`` of some blocks, whole matrices. Raises ValueError when nothing was added."""
        if self.count == 0:
            raise ValueError("the mean of a second moment needs at least one sample, got none")
        mean_nBB = self.sum_nBB[part] / self.count
        mirror_(mean_nBB)
        return mean_nBB

    def diagonal_nB(self) -> Tensor:
        """The diagonals of ``H``, (n, B)."""
        return self.sum_nBB.diagonal(dim1=-2, dim2=-1) / self.count


def zeros(blocks: int, block_size: int, device: torch.device | str = "cpu") -> SecondMoment:
    """The moment of no samples."""
    return SecondMoment(torch.zeros(blocks, block_size, block_size, device=device), 0)


def add_outer_(sum_nBB: Tensor, vectors_KnB: Tensor) -> None:
    """``sum += sum_k v_k v_k^T`` for each block, in place, in full float32. Only the lower triangles are right until ``mirror_``.

    A plain product, as on CUDA devices, takes ``2 K n B^2`` flops; on the CPU symmetry saves half. The research code of CAP updates the
    inverse by one vector at a time instead, which is bound by memory and loses digits.
    """
    if sum_nBB.is_cuda:
        with full_precision():
            sum_nBB.baddbmm_(vectors_KnB.permute(1, 2, 0), vectors_KnB.transpose(0, 1))
        return
    from kernels import outer, threads

    threads.run(outer.add_lower_outer, sum_nBB.numpy(), vectors_KnB.numpy())


def mirror_(sum_nBB: Tensor) -> None:
    """Make whole symmetric matrices of their lower triangles, in place."""
    if sum_nBB.is_cuda:
        sum_nBB.copy_(sum_nBB.tril() + sum_nBB.tril(-1).mT)
        return
    from kernels import outer, threads

    threads.run(outer.mirror_lower, sum_nBB.numpy())


def pack_lower(sum_nBB: Tensor) -> Tensor:
    """The lower triangles, row after row: (n, B (B + 1) / 2), on the CPU. Half the bytes to store.

    The memory of the result is that of ``sum_nBB``, which is used up, when this lies on the CPU.
    """
    from kernels import outer, threads

    blocks, size, _ = sum_nBB.shape
    sum_nBB = sum_nBB.cpu()
    packed = sum_nBB.reshape(-1)[: blocks * (size * (size + 1) // 2)]
    threads.run(outer.pack_lower, sum_nBB.numpy(), packed.numpy())
    return packed.reshape(blocks, -1)


def add_packed_(sum_nBB: Tensor, packed_nL: Tensor) -> None:
    """Add packed triangles to whole symmetric matrices on the CPU, in place."""
    from kernels import outer, threads

    threads.run(outer.add_packed, sum_nBB.numpy(), packed_nL.numpy())

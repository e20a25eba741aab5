"""Second moments, which are merged by addition, and the cutting of weight matrices into blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kernels.linalg import full_precision

EVERYTHING = slice(None)


def cut_blocks(weight_RC: Tensor, block_size: int) -> Tensor:
    """Cuts every row into ``ceil(C / B)`` blocks of ``B`` consecutive entries. The last block of a row is padded with zeros.

    Returns: (n, B) with ``n = R * ceil(C / B)``, row by row. No block contains entries of two rows.
    """
    rows, columns = weight_RC.shape
    per_row = -(-columns // block_size)
    padded_RC = torch.nn.functional.pad(weight_RC, (0, per_row * block_size - columns))
    return padded_RC.reshape(rows * per_row, block_size)


def join_blocks(blocks_nB: Tensor, rows: int, columns: int) -> Tensor:
    """Returns the matrix (R, C) that was cut: the inverse of ``cut_blocks``. Padding is dropped."""
    return blocks_nB.reshape(rows, -1)[:, :columns].contiguous()


def existing_nB(rows: int, columns: int, block_size: int) -> Tensor:
    """Returns False for the padding of the blocks of an (R, C) matrix, True elsewhere."""
    return cut_blocks(torch.ones(1, columns, dtype=torch.bool), block_size).repeat(rows, 1)


class Moments(Protocol):
    """Second moments that are read from memory or from files."""

    @property
    def blocks(self) -> int: ...

    @property
    def block_size(self) -> int: ...

    @property
    def count(self) -> int: ...

    def mean_nBB(self, part: slice = EVERYTHING) -> Tensor:
        """Returns ``H`` of some blocks, float32."""
        ...

    def cross_nBB(self, part: slice = EVERYTHING) -> Tensor:
        """Returns ``1/N sum_k u_k v_k^T`` of some blocks, with the vectors that are paired with the ``v_k``, float32."""
        ...

    def diagonal_nB(self) -> Tensor:
        """Returns the diagonals of ``H``, (n, B)."""
        ...

    def row_weights_R(self) -> Tensor | None:
        """Returns how much each row weighs beside the mean of the rows that share its matrix; None if all weigh the same."""
        ...


@dataclass(frozen=True)
class SecondMoment:
    """A sum of outer products ``sum_k v_k v_k^T``, (n, B, B) in float32, and the number of terms. Only lower triangles are defined.

    The block Fisher of a layer has one matrix for each block of its weights, with ``v`` the gradient of that block. The layer Hessian has a
    single matrix (``n = 1``) that all rows share, with ``v = sqrt(2) x``. Sums over disjoint samples are merged by addition.

    Where every vector ``v`` has a partner ``u``, ``cross_sum_nBB`` is ``sum_k u_k v_k^T``, whole matrices.
    """

    sum_nBB: Tensor
    count: int
    rows_R: Tensor | None = None  # sums that weigh rows which share a matrix, (R,) in float64
    cross_sum_nBB: Tensor | None = None

    @property
    def blocks(self) -> int:
        return self.sum_nBB.shape[0]

    @property
    def block_size(self) -> int:
        return self.sum_nBB.shape[-1]

    def mean_nBB(self, part: slice = EVERYTHING) -> Tensor:
        """Returns ``H = sum / count`` of some blocks, as whole matrices. Raises ValueError if nothing was added."""
        if self.count == 0:
            raise ValueError("second moment: expected at least one sample, got none")
        mean_nBB = self.sum_nBB[part] / self.count
        mirror_(mean_nBB)
        return mean_nBB

    def cross_nBB(self, part: slice = EVERYTHING) -> Tensor:
        """Returns ``1/N sum_k u_k v_k^T`` of some blocks. Raises ValueError if the vectors have no partners, or nothing was added."""
        if self.cross_sum_nBB is None or self.count == 0:
            raise ValueError("second moment: expected at least one pair of vectors, got none")
        return self.cross_sum_nBB[part] / self.count

    def diagonal_nB(self) -> Tensor:
        """Returns the diagonals of ``H``, (n, B)."""
        return self.sum_nBB.diagonal(dim1=-2, dim2=-1) / self.count

    def row_weights_R(self) -> Tensor | None:
        """Returns how much each row weighs beside the mean of the rows that share its matrix; None if all weigh the same."""
        return None if self.rows_R is None else relative_weights(self.rows_R, self.blocks)


def relative_weights(rows_R: Tensor, blocks: int) -> Tensor:
    """Returns sums (R,) divided by their mean over the rows of each of ``blocks`` consecutive sets; 1 where the mean is zero."""
    sets_nS = rows_R.reshape(blocks, -1)
    mean_n1 = sets_nS.mean(1, keepdim=True)
    return torch.where(mean_n1 > 0, sets_nS / mean_n1, torch.ones_like(sets_nS)).reshape(-1)


def zeros(blocks: int, block_size: int, device: torch.device | str = "cpu") -> SecondMoment:
    """Returns the moment of no samples."""
    return SecondMoment(torch.zeros(blocks, block_size, block_size, device=device), 0)


def add_outer_(sum_nBB: Tensor, vectors_KnB: Tensor) -> None:
    """Adds ``sum_k v_k v_k^T`` to each block, in place, in full float32. Only the lower triangles are valid until ``mirror_``.

    On CUDA devices the matrix product takes ``2 K n B^2`` flops; on the CPU, symmetry saves half of them. The research code of CAP updates
    the inverse by one vector at a time instead, which is bound by memory and loses digits.
    """
    if sum_nBB.is_cuda:
        with full_precision():
            sum_nBB.baddbmm_(vectors_KnB.permute(1, 2, 0), vectors_KnB.transpose(0, 1))
        return
    from kernels import outer, threads

    threads.run(outer.add_lower_outer, sum_nBB.numpy(), vectors_KnB.numpy())


def mirror_(sum_nBB: Tensor) -> None:
    """Copies the lower triangles to the upper ones, in place."""
    if sum_nBB.is_cuda:
        sum_nBB.copy_(sum_nBB.tril() + sum_nBB.tril(-1).mT)
        return
    from kernels import outer, threads

    threads.run(outer.mirror_lower, sum_nBB.numpy())


def pack_lower(sum_nBB: Tensor) -> Tensor:
    """Returns the lower triangles row by row, (n, B (B + 1) / 2), on the CPU.

    If ``sum_nBB`` is on the CPU, its memory is reused for the result, so its content is lost.
    """
    from kernels import outer, threads

    blocks, size, _ = sum_nBB.shape
    sum_nBB = sum_nBB.cpu()
    packed = sum_nBB.reshape(-1)[: blocks * (size * (size + 1) // 2)]
    threads.run(outer.pack_lower, sum_nBB.numpy(), packed.numpy())
    return packed.reshape(blocks, -1)


def add_packed_(sum_nBB: Tensor, packed_nL: Tensor) -> None:
    """Adds packed triangles to whole symmetric matrices on the CPU, in place."""
    from kernels import outer, threads

    threads.run(outer.add_packed, sum_nBB.numpy(), packed_nL.numpy())

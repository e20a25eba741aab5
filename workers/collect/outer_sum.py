"""The sum of outer products that calibration statistics are, multiplied a chunk of vectors at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.second_moment import add_outer_, zeros
from workers.collect.base import chunk_size


class OuterSum:
    """``sum_k v_k v_k^T`` for each of n blocks of B entries. Only lower triangles are defined.

    Vectors wait until there are ``chunk`` of them (``chunk_size(B)`` by default), so that a matrix is read and written once for many. The
    boundaries are fixed, so the resulting bytes do not depend on how many vectors come at once.
    """

    def __init__(self, blocks: int, block_size: int, device: torch.device, chunk: int | None = None) -> None:
        self.sum_nBB = zeros(blocks, block_size, device).sum_nBB
        self.chunk_KnB = torch.empty(chunk or chunk_size(block_size), blocks, block_size, device=device)
        self._waiting = 0

    def add(self, vectors_KnB: Tensor) -> None:
        start = 0
        while start < len(vectors_KnB):
            taken = vectors_KnB[start : start + len(self.chunk_KnB) - self._waiting]
            self.chunk_KnB[self._waiting : self._waiting + len(taken)] = taken
            self._waiting += len(taken)
            start += len(taken)
            if self._waiting == len(self.chunk_KnB):
                self._multiply()

    def result_nBB(self) -> Tensor:
        """Returns the sum. No vector can be added afterwards."""
        self._multiply()
        del self.chunk_KnB
        return self.sum_nBB

    def _multiply(self) -> None:
        if self._waiting:
            add_outer_(self.sum_nBB, self.chunk_KnB[: self._waiting])
            self._waiting = 0

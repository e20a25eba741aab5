"""Sums of outer products on the CPU: a symmetric matrix product for each block, lower triangle only."""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from kernels.obs.vector import tile
from kernels.registers import REGISTER_BITS

ROWS = 8
LANES = REGISTER_BITS // 32  # float32 numbers in a vector register; a multiple of ROWS
PORTIONS = 64  # parts of the blocks, which are distributed over threads

_add_wide = tile(ROWS, 2, types.float32)
_add_narrow = tile(ROWS, 1, types.float32)


@numba.njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def add_lower_outer(sum_nBB: np.ndarray, vectors_KnB: np.ndarray) -> None:
    """Computes the lower triangles of ``sum_nBB += sum_k v_k v_k^T``, float32, in place. Entries above the diagonal are undefined.

    The vectors of a block are packed first, so that they are read once from memory and then from the cache. A block is processed by one
    thread, whatever the number of threads. About ``K n B (B + 16)`` flops.
    """
    count, blocks, size = vectors_KnB.shape
    width = -(-size // LANES) * LANES
    for portion in numba.prange(PORTIONS):
        first, last = portion * blocks // PORTIONS, (portion + 1) * blocks // PORTIONS
        packed = np.zeros((count, width), dtype=np.float32)
        ragged = np.zeros((width, width), dtype=np.float32)
        for block in range(first, last):
            for k in range(count):
                for j in range(size):
                    packed[k, j] = vectors_KnB[k, block, j]
            if width == size:
                _add(sum_nBB[block], packed)
            else:
                ragged[:] = 0.0
                _add(ragged, packed)
                for i in range(size):
                    for j in range(i + 1):
                        sum_nBB[block, i, j] += ragged[i, j]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _add(total, packed):
    """Adds tiles of eight rows, up to the register that contains the diagonal."""
    count, width = packed.shape
    for i in range(0, width, ROWS):
        end = -(-(i + ROWS) // LANES) * LANES
        for j in range(0, end - LANES, 2 * LANES):
            _add_wide(total, i, j, np.float32(1.0), packed, i, packed, 0, count)
        if end // LANES % 2 == 1:
            _add_narrow(total, i, end - LANES, np.float32(1.0), packed, i, packed, 0, count)


@numba.njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def mirror_lower(sum_nBB: np.ndarray) -> None:
    """Copies the lower triangle of each block to the upper one, in place."""
    blocks, size, _ = sum_nBB.shape
    for portion in numba.prange(PORTIONS):
        for block in range(portion * blocks // PORTIONS, (portion + 1) * blocks // PORTIONS):
            for i in range(size):
                for j in range(i):
                    sum_nBB[block, j, i] = sum_nBB[block, i, j]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def pack_lower(sum_nBB: np.ndarray, packed: np.ndarray) -> None:
    """Writes the rows of the lower triangles one after another. ``packed`` may be the start of the same memory."""
    blocks, size, _ = sum_nBB.shape
    place = 0
    for block in range(blocks):
        for i in range(size):
            for j in range(i + 1):
                packed[place + j] = sum_nBB[block, i, j]
            place += i + 1


@numba.njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def add_packed(sum_nBB: np.ndarray, packed_nL: np.ndarray) -> None:
    """Adds packed lower triangles to both halves of whole matrices, in place."""
    blocks, size, _ = sum_nBB.shape
    for portion in numba.prange(PORTIONS):
        for block in range(portion * blocks // PORTIONS, (portion + 1) * blocks // PORTIONS):
            place = 0
            for i in range(size):
                for j in range(i):
                    value = sum_nBB[block, i, j] + packed_nL[block, place + j]
                    sum_nBB[block, i, j] = value
                    sum_nBB[block, j, i] = value
                sum_nBB[block, i, i] += packed_nL[block, place + i]
                place += i + 1

"""Elimination and group solve on CUDA tensors: batched torch Cholesky in float64 and the reference loop.

Correct, and bound by memory: every step of the elimination updates whole inverses. A kernel that keeps a block's pivot columns on the chip
belongs here, under the same two names.
"""

from kernels.obs.reference import eliminate, solve_on_mask

__all__ = ["eliminate", "solve_on_mask"]

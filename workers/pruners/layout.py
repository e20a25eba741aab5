"""The mapping between a layer's weight matrix and the blocks that a pruner works on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernels.patterns import Pattern
from workers.models.base import Layer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The rows of a layer, cut into blocks of ``block_size`` consecutive entries.

    A pattern applies along the input channels. Under a pattern, the columns of a convolution are therefore ordered by position
    (kh * kw, in) instead of by channel (in, kh * kw), so that neighbouring entries belong to neighbouring channels.
    """

    layer: Layer
    block_size: int
    pattern: Pattern

    @property
    def blocks(self) -> int:
        return self.layer.rows * -(-self.layer.columns // self.block_size)

    def arrange(self, matrix_RC: Tensor) -> Tensor:
        """Returns the matrix with its columns in the order of the blocks."""
        if self.pattern.is_free or self.layer.kernel == 1:
            return matrix_RC
        return matrix_RC.reshape(len(matrix_RC), -1, self.layer.kernel).transpose(1, 2).reshape(len(matrix_RC), -1)

    def restore(self, arranged_RC: Tensor) -> Tensor:
        """Returns the matrix in the layer's own order of columns: the inverse of ``arrange``."""
        if self.pattern.is_free or self.layer.kernel == 1:
            return arranged_RC
        return arranged_RC.reshape(len(arranged_RC), self.layer.kernel, -1).transpose(1, 2).reshape(len(arranged_RC), -1)

    def cut(self, matrix_RC: Tensor) -> Tensor:
        """Returns the blocks (n, B) of a matrix (R, C)."""
        from kernels.second_moment import cut_blocks

        return cut_blocks(self.arrange(matrix_RC), self.block_size)

    def join(self, blocks_nB: Tensor) -> Tensor:
        """Returns the matrix (R, C) from its blocks (n, B)."""
        from kernels.second_moment import join_blocks

        return self.restore(join_blocks(blocks_nB, self.layer.rows, self.layer.columns))

    def join_tiles(self, chosen_nG: Tensor) -> Tensor:
        """Returns the matrix (R, C) in which all weights of the chosen tiles are marked."""
        return self.join(chosen_nG.repeat_interleave(self.pattern.tile, dim=1))

    def alive(self, weight_RC: Tensor) -> Tensor:
        """Returns which entries are neither padding nor zero, bool (n, B)."""
        from kernels.second_moment import existing_nB

        exists_nB = existing_nB(self.layer.rows, self.layer.columns, self.block_size).to(weight_RC.device)
        return exists_nB & self.cut(weight_RC != 0)

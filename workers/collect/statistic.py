"""The statistics that pruners of weights collect: the block Fisher of the loss, and the Hessian of each layer's output error."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any, ClassVar

from kernels.patterns import Pattern
from workers.checks import require
from workers.collect.base import PATCH_BYTES, Collected, chunk_bytes
from workers.losses import Loss
from workers.models.base import Layer
from workers.pruners.layout import Layout

if TYPE_CHECKING:
    from torch import nn

    from workers.data.base import Batch


FACTOR, INVERT, ELIMINATE, REFIT = 1 / 3, 1.0, 1 / 3, 0.3  # flops of a block, as a multiple of B^3; the last measured at half sparsity
SLICE_BYTES = 256 * 2**20  # of a statistic (float32) that is processed at a time, so that copies take far less memory than the whole


def check_block_size(block_size: int, pattern: Pattern, most: int, advice: str) -> None:
    """Raises ``ConfigError`` unless blocks are of a size that buckets or tiles of the pattern fill."""
    require(1 <= block_size <= most, "pruner.block_size", f"1 to {most}", block_size, advice)
    expected = f"a multiple of {pattern.length}, as pruner.target.pattern requires"
    require(block_size % pattern.length == 0, "pruner.block_size", expected, block_size)


def refit_flops(rows: int, columns: int, sparsity: float) -> float:
    """Returns the flops of one Cholesky factor of the kept entries of each row, and of their products with the masked ones."""
    kept = (1 - sparsity) * columns
    return rows * (kept**3 / 3 + 2 * kept * sparsity * columns)


class Statistic(ABC):
    """A sum over calibration data for each layer. Sums over disjoint data are merged by addition."""

    by_gradients: ClassVar[bool]  # whether it needs a backward pass of the loss
    shared: ClassVar[bool]  # whether blocks are whole rows that share a matrix; else each block has its own

    @abstractmethod
    def layout(self, layer: Layer) -> Layout:
        """Returns the blocks of a layer, each of which has a matrix or shares one."""

    @abstractmethod
    def shape(self, layer: Layer) -> tuple[int, int]:
        """Returns (n, B), the shape of the layer's ``SecondMoment``."""

    @abstractmethod
    def working_bytes(self, layer: Layer) -> int:
        """Returns the memory that collecting takes beside the sum itself (4 n B^2 bytes), gradients and activations."""

    @abstractmethod
    def identity(self, layer: Layer, loss: Loss, seed: int) -> dict[str, Any]:
        """Returns what the sums depend on besides model, layer and data. Pruners with equal identities share the collected sums."""

    @abstractmethod
    def collect(self, model: nn.Module, layers: list[Layer], batches: Iterator[Batch], loss: Loss, seed: int) -> Collected:
        """Returns the sums of ``layers`` over ``batches``."""


@dataclass(frozen=True)
class BlockFisher(Statistic):
    r"""``1/N sum_n g_n g_n^T`` in blocks of ``block_size``, with ``g_n`` the gradient of the loss of batch n (the CAP paper)."""

    block_size: int
    pattern: Pattern
    by_gradients: ClassVar[bool] = True
    shared: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_block_size(self.block_size, self.pattern, most=1024, advice="common values are 16 to 256")

    def layout(self, layer: Layer) -> Layout:
        """Returns blocks within rows. A row shorter than ``block_size`` is one block."""
        return Layout(layer, min(self.block_size, layer.columns), self.pattern)

    def shape(self, layer: Layer) -> tuple[int, int]:
        layout = self.layout(layer)
        return layout.blocks, layout.block_size

    def working_bytes(self, layer: Layer) -> int:
        """Returns the memory of a chunk of gradients that are multiplied together."""
        return chunk_bytes(*self.shape(layer))

    def identity(self, layer: Layer, loss: Loss, seed: int) -> dict[str, Any]:
        by_channel = not self.pattern.is_free and layer.kernel > 1  # else columns are in the layer's own order
        return {"statistic": "block_fisher", "block_size": self.block_size, "by_channel": by_channel, "loss": loss, "seed": seed}

    def collect(self, model: nn.Module, layers: list[Layer], batches: Iterator[Batch], loss: Loss, seed: int) -> Collected:
        from workers.collect.block_fisher import block_fisher

        block_sizes = {layer.name: self.layout(layer).block_size for layer in layers}
        return block_fisher(model, layers, batches, block_sizes, loss, seed, lambda layer, matrix_RC: self.layout(layer).arrange(matrix_RC))


@dataclass(frozen=True)
class LayerHessian(Statistic):
    r"""``2/N sum_n x_n x_n^T`` over the input vectors x of a layer, one matrix for all rows of a group. Does not depend on the loss."""

    pattern: Pattern
    by_gradients: ClassVar[bool] = False
    shared: ClassVar[bool] = True

    def layout(self, layer: Layer) -> Layout:
        """Returns one block for each row."""
        return Layout(layer, layer.columns, self.pattern)

    def shape(self, layer: Layer) -> tuple[int, int]:
        return layer.groups, layer.columns

    def working_bytes(self, layer: Layer) -> int:
        """Returns the memory of a convolution's unfolded inputs and a copy. The inputs of a Linear are activations and need none."""
        return 2 * PATCH_BYTES if layer.kernel > 1 else 0

    def identity(self, layer: Layer, loss: Loss, seed: int) -> dict[str, Any]:
        return {"statistic": "layer_hessian"}

    def collect(self, model: nn.Module, layers: list[Layer], batches: Iterator[Batch], loss: Loss, seed: int) -> Collected:
        from workers.collect.layer_hessian import layer_hessian

        return layer_hessian(model, layers, batches)


@dataclass(frozen=True)
class GuidedHessian(Statistic):
    r"""``1/N sum_n sum_t mean_{r in k} d_ntr^2 x_nt x_nt^T``: input vectors x, weighted by the loss's squared derivatives d by the outputs.

    One matrix for each of ``row_sets`` sets k of rows, and the weight of each row beside the others of its set. A layer whose rows are no
    multiple of ``row_sets`` has the largest number of sets that divides both.
    """

    row_sets: int
    pattern: Pattern
    by_gradients: ClassVar[bool] = True
    shared: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self.row_sets >= 1, "pruner.row_sets", "at least 1", self.row_sets)

    def sets(self, layer: Layer) -> int:
        """Returns the number of row sets of each group of the layer."""
        return gcd(self.row_sets, layer.rows // layer.groups)

    def layout(self, layer: Layer) -> Layout:
        """Returns one block for each row."""
        return Layout(layer, layer.columns, self.pattern)

    def shape(self, layer: Layer) -> tuple[int, int]:
        return layer.groups * self.sets(layer), layer.columns

    def working_bytes(self, layer: Layer) -> int:
        """Returns the memory of a chunk of weighted vectors that are multiplied together."""
        return chunk_bytes(*self.shape(layer), shared=True)

    def identity(self, layer: Layer, loss: Loss, seed: int) -> dict[str, Any]:
        return {"statistic": "guided_hessian", "sets": self.sets(layer), "loss": loss, "seed": seed}

    def collect(self, model: nn.Module, layers: list[Layer], batches: Iterator[Batch], loss: Loss, seed: int) -> Collected:
        from workers.collect.guided_hessian import guided_hessian

        return guided_hessian(model, layers, batches, {layer.name: self.sets(layer) for layer in layers}, loss, seed)

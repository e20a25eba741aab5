"""What pruners measure: the block Fisher of the loss, or the Hessian of each layer's own output error."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kernels.patterns import Pattern
from workers.checks import require
from workers.collect.base import PATCH_BYTES, Collected, chunk_size
from workers.losses import Loss
from workers.models.base import Layer
from workers.pruners.layout import Layout

if TYPE_CHECKING:
    from torch import nn

    from workers.data.base import Batch


FACTOR, INVERT, ELIMINATE, REFIT = 1 / 3, 1.0, 1 / 3, 0.3  # flops over B^3 of a block; the last as measured at half sparsity
SLICE_BYTES = 256 * 2**20  # of a statistic, float32, in work at a time; keeps the copies made of it far below the whole


class Statistic(ABC):
    """A calibration sum per layer that merges by addition."""

    by_gradients: ClassVar[bool]  # of the loss, which takes a backward pass; else of inputs, with a matrix that rows share

    @abstractmethod
    def layout(self, layer: Layer) -> Layout:
        """The blocks that it has a matrix for, or that share one."""

    @abstractmethod
    def shape(self, layer: Layer) -> tuple[int, int]:
        """(n, B) of the layer's ``SecondMoment``."""

    @abstractmethod
    def working_bytes(self, layer: Layer) -> int:
        """Memory that collecting takes beside the sum itself (4 n B^2 bytes), gradients and activations."""

    @abstractmethod
    def identity(self, layer: Layer, loss: Loss, seed: int) -> dict[str, Any]:
        """What it depends on besides model, layer and data: pruners whose statistics give equal ones share what was collected."""

    @abstractmethod
    def collect(self, model: nn.Module, layers: list[Layer], batches: Iterator[Batch], loss: Loss, seed: int) -> Collected:
        """Sums of ``layers`` over ``batches``. ``model`` stays as it is."""


@dataclass(frozen=True)
class BlockFisher(Statistic):
    r"""``1/N sum_n g_n g_n^T`` in blocks of ``block_size``, ``g_n`` the gradient of the calibration loss of batch n (the CAP paper)."""

    block_size: int
    pattern: Pattern
    by_gradients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(1 <= self.block_size <= 1024, "pruner.block_size", "1 to 1024", self.block_size, "16 to 256 are useful")
        length = self.pattern.length
        expected = f"a multiple of {length}, the length of pruner.target.pattern"
        require(self.block_size % length == 0, "pruner.block_size", expected, self.block_size)

    def layout(self, layer: Layer) -> Layout:
        """Rows shorter than a block are blocks of their own."""
        return Layout(layer, min(self.block_size, layer.columns), self.pattern)

    def shape(self, layer: Layer) -> tuple[int, int]:
        layout = self.layout(layer)
        return layout.blocks, layout.block_size

    def working_bytes(self, layer: Layer) -> int:
        """A chunk of gradients that wait to be multiplied."""
        blocks, block_size = self.shape(layer)
        return 4 * chunk_size(block_size) * blocks * block_size

    def identity(self, layer: Layer, loss: Loss, seed: int) -> dict[str, Any]:
        by_channel = not self.pattern.is_free and layer.kernel > 1  # else columns stand as they always do
        return {"statistic": "block_fisher", "block_size": self.block_size, "by_channel": by_channel, "loss": loss, "seed": seed}

    def collect(self, model: nn.Module, layers: list[Layer], batches: Iterator[Batch], loss: Loss, seed: int) -> Collected:
        from workers.collect.block_fisher import block_fisher

        block_sizes = {layer.name: self.layout(layer).block_size for layer in layers}
        return block_fisher(model, layers, batches, block_sizes, loss, seed, lambda layer, matrix_RC: self.layout(layer).arrange(matrix_RC))


@dataclass(frozen=True)
class LayerHessian(Statistic):
    r"""``2/N sum_n x_n x_n^T`` over the input vectors x of a layer; one matrix for all rows of a group. Knows no loss."""

    pattern: Pattern
    by_gradients: ClassVar[bool] = False

    def layout(self, layer: Layer) -> Layout:
        """Whole rows."""
        return Layout(layer, layer.columns, self.pattern)

    def shape(self, layer: Layer) -> tuple[int, int]:
        return layer.groups, layer.columns

    def working_bytes(self, layer: Layer) -> int:
        """Inputs of a convolution as they are laid out for the product, and a copy; those of a Linear are activations."""
        return 2 * PATCH_BYTES if layer.kernel > 1 else 0

    def identity(self, layer: Layer, loss: Loss, seed: int) -> dict[str, Any]:
        return {"statistic": "layer_hessian"}

    def collect(self, model: nn.Module, layers: list[Layer], batches: Iterator[Batch], loss: Loss, seed: int) -> Collected:
        from workers.collect.layer_hessian import layer_hessian

        return layer_hessian(model, layers, batches)

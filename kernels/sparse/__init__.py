"""Layers with sparse weights on the CPU: products of the weights that are not zero, faster than the dense product at 50 to 75 % zeros.

A weight is a ``SparseRows``: its values, the column of each (16 bits), and where each row starts. ``linear`` and ``conv2d`` compute what
the functions of ``torch.nn.functional`` do, in float32; sums are in the order of the columns, so the results differ by rounding alone, and
do not depend on the number of threads. An input that is not finite reaches the outputs that have a weight for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import threads
from kernels.sparse import cpu
from kernels.sparse.vector import LANES, MOST_VECTORS

MOST_COLUMNS, MOST_PLACES = 2**16, 2**32
TILE_BYTES = 512 * 1024  # of the inputs of a tile: about half of a second-level cache


@dataclass(frozen=True)
class SparseRows:
    """The weights of a matrix that are not zero, row by row.

    ``values`` (float32) and ``columns`` (uint16, ascending in a row) of all rows follow one another; row r has those from ``starts[r]`` to
    ``starts[r + 1]`` (int64).
    """

    values: Tensor
    columns: Tensor
    starts: Tensor
    shape: tuple[int, int]

    def dense(self) -> Tensor:
        """Returns the matrix (R, C)."""
        weight_RC = torch.zeros(self.shape)
        rows_n = torch.repeat_interleave(torch.arange(self.shape[0]), self.starts.diff())
        weight_RC[rows_n, self.columns.long()] = self.values
        return weight_RC


def sparse_rows(weight_RC: Tensor) -> SparseRows:
    """Returns the weights of a float32 matrix that are not zero. Raises: ValueError for more than 65,536 columns."""
    rows, columns = weight_RC.shape
    if columns > MOST_COLUMNS:
        raise ValueError(f"expected a matrix of at most {MOST_COLUMNS:,} columns, got {columns:,}")
    kept_RC = weight_RC.detach().cpu() != 0
    starts = torch.zeros(rows + 1, dtype=torch.int64)
    starts[1:] = kept_RC.sum(1).cumsum(0)
    found_n2 = kept_RC.nonzero()
    values = weight_RC.detach().cpu().float()[kept_RC]
    return SparseRows(values.contiguous(), found_n2[:, 1].to(torch.int32).to(torch.uint16).contiguous(), starts, (rows, columns))


def linear(x: Tensor, weight: SparseRows, bias_R: Tensor) -> Tensor:
    """Returns ``x W^T + b`` for inputs of any leading shape, as ``torch.nn.functional.linear`` does.

    Takes two flops for each weight that is not zero and each input vector.
    """
    rows, columns = weight.shape
    x_TC = x.reshape(-1, columns).contiguous()
    out_TR = torch.empty(len(x_TC), rows)
    if out_TR.numel():
        arrays = (tensor.numpy() for tensor in (x_TC, weight.values, weight.columns, weight.starts, bias_R, out_TR))
        threads.run(cpu.linear, *arrays, *_cut(len(x_TC), columns, 1))
    return out_TR.reshape(*x.shape[:-1], rows)


@dataclass(frozen=True)
class Placed:
    """Where a convolution finds its inputs in padded images of one size.

    The images have ``height`` lines of ``breadth`` pixels, and ``distance`` floats for a channel, for each phase of the stride. ``places``
    (uint32) are those of the weights' inputs for the first output. ``height`` is 0 if the images are read without a copy.
    """

    places: Tensor
    out_HW: tuple[int, int]
    height: int
    breadth: int
    distance: int


@dataclass(frozen=True)
class Convolution:
    """The geometry of a two-dimensional convolution with zero padding; pairs are (vertical, horizontal)."""

    groups: int
    channels: int  # of the input
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def out_HW(self, height: int, breadth: int) -> tuple[int, int]:
        """Returns the size of the output for images of a size."""
        lines, places = (
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, dilation, kernel, stride in zip(
                (height, breadth), self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return lines, places

    def placed(self, weight: SparseRows, height: int, breadth: int) -> Placed:
        """Returns where the weights find their inputs in images of ``height`` lines of ``breadth`` pixels."""
        out_HW, column = self.out_HW(height, breadth), weight.columns.to(torch.int64)
        channel, i = column // (self.kernel[0] * self.kernel[1]), column // self.kernel[1] % self.kernel[0]
        if self.is_pointwise and height * breadth >= _cut(height * breadth, self.channels // self.groups, 1)[0] * LANES:
            return Placed((channel * height * breadth).to(torch.uint32), out_HW, 0, breadth, height * breadth)
        lines, places = (-(-(size + 2 * pad) // step) for size, pad, step in zip((height, breadth), self.padding, self.stride, strict=True))
        distance = -(-lines * places // 16) * 16
        distance += 16 * (distance // 16 % 2 == 0)  # an odd number of cache lines: channels do not compete for the same sets of the cache
        i, j = i * self.dilation[0], column % self.kernel[1] * self.dilation[1]
        phase = i % self.stride[0] * self.phases[1] + j % self.stride[1]
        if self.phases[0] * self.phases[1] * self.channels * distance >= MOST_PLACES:
            raise ValueError(f"expected images of fewer than {MOST_PLACES:,} padded pixels, got {height} x {breadth}")
        at = (phase * self.channels + channel) * distance + i // self.stride[0] * places + j // self.stride[1]
        return Placed(at.to(torch.uint32), out_HW, lines, places, distance)

    @property
    def phases(self) -> tuple[int, int]:
        """The phases of the stride that the kernel reads from, which are fewer if the kernel is smaller."""
        spans = (dilation * (kernel - 1) + 1 for dilation, kernel in zip(self.dilation, self.kernel, strict=True))
        vertical, horizontal = (min(step, span) for step, span in zip(self.stride, spans, strict=True))
        return vertical, horizontal

    @property
    def is_pointwise(self) -> bool:
        """Whether each output reads the inputs of its own position alone."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)


def conv2d(x_NCHW: Tensor, weight: SparseRows, bias_R: Tensor, geometry: Convolution, placed: Placed) -> Tensor:
    """Returns a convolution, as ``torch.nn.functional.conv2d`` does. ``placed`` is ``geometry.placed`` for the size of the images.

    Takes two flops for each weight that is not zero and each position of the output.
    """
    x_NCHW = x_NCHW.contiguous()
    out_NRHW = torch.empty(len(x_NCHW), weight.shape[0], *placed.out_HW)
    if out_NRHW.numel():
        inputs = geometry.channels // geometry.groups * geometry.phases[0] * geometry.phases[1]
        cut = _cut((placed.out_HW[0] - 1) * placed.breadth + placed.out_HW[1], inputs, len(x_NCHW) * geometry.groups)
        arrays = (tensor.numpy() for tensor in (x_NCHW, weight.values, placed.places, weight.starts, bias_R, out_NRHW))
        sizes = (placed.height, placed.breadth, placed.distance)
        threads.run(cpu.convolution, *arrays, geometry.groups, geometry.stride, geometry.phases, geometry.padding, sizes, *cut)
    return out_NRHW


def _cut(positions: int, inputs: int, repeats: int) -> tuple[int, int, int]:
    """Returns the vectors of a tile, the tiles, and the parts of the rows, for products with ``repeats`` inputs (images, groups).

    Tiles have equal widths. The rows are cut if there are too few tiles for all threads.
    """
    needed = -(-positions // LANES)
    most = min(MOST_VECTORS, max(1, TILE_BYTES // (4 * LANES * inputs)))
    tiles = -(-needed // most)
    count, workers = tiles * repeats, torch.get_num_threads()
    return -(-needed // tiles), tiles, 1 if count % workers == 0 or count >= 4 * workers else workers

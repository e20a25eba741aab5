"""Second moments in files: shards are merged in order, a slice of blocks at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from kernels.second_moment import EVERYTHING, SecondMoment, add_packed_, pack_lower, relative_weights
from workers.collect.base import Collected
from workers.errors import SecateurError
from workers.files import TensorFile, finish, verified, write_tensors
from workers.records import Destination, PartialMoment, Record

LARGEST_SUM = 1e34  # of one shard, so that those of ten thousand can be added
Moment = TypeVar("Moment", bound=PartialMoment)


def write_moment(to: Destination, moment: SecondMoment) -> str:
    """Writes the lower triangles, the diagonals and any cross sums. Returns the file's digest. The memory of the moment is overwritten."""
    diagonal_nB = moment.sum_nBB.diagonal(dim1=-2, dim2=-1).clone()
    more = {"rows_R": moment.rows_R, "cross_nBB": moment.cross_sum_nBB}
    tensors = {"diagonal_nB": diagonal_nB, "lower_nL": pack_lower(moment.sum_nBB)}
    tensors |= {name: tensor for name, tensor in more.items() if tensor is not None}
    return write_tensors(to.directory / PartialMoment.file, tensors)


def finish_moment(to: Destination, kind: type[Moment], shard: int, layer: str, collected: Collected, started: float) -> Record[Moment]:
    """Writes what was collected for a layer over one shard, and its record. The memory of the moment is given back.

    Raises: SecateurError if sums are too large.
    """
    moment = collected.moments.pop(layer)
    _check(layer, moment)
    return finish(to, kind(layer, shard, moment.count, collected.skipped[layer]), started, write_moment(to, moment))


def _check(layer: str, moment: SecondMoment) -> None:
    """Raises: SecateurError if sums are too large for float32. Those beside the diagonal are no larger than the largest on it."""
    sums = [moment.sum_nBB.diagonal(dim1=-2, dim2=-1), moment.rows_R, moment.cross_sum_nBB]
    if not all(tensor is None or bool((tensor.abs() <= LARGEST_SUM).all()) for tensor in sums):
        raise SecateurError(
            f"{layer}: expected sums over the calibration data of at most {LARGEST_SUM:.0e}, which float32 holds, got larger ones; "
            "normalise the images (data.mean, data.std), or check the checkpoint: its activations or gradients are too large"
        )


@dataclass(frozen=True)
class StoredMoment:
    """The sum of partial moments, one for each shard, read in parts as needed. Implements ``kernels.second_moment.Moments``.

    Each process checks a file against its digest before it first reads from it. Raises: DamagedResult.
    """

    partials: tuple[Record[PartialMoment], ...]
    device: torch.device

    @property
    def blocks(self) -> int:
        return self._file(self.partials[0]).shape("diagonal_nB")[0]

    @property
    def block_size(self) -> int:
        return self._file(self.partials[0]).shape("diagonal_nB")[1]

    @property
    def count(self) -> int:
        return sum(record.numbers.count for record in self.partials)

    def mean_nBB(self, part: slice = EVERYTHING) -> Tensor:
        """Returns ``H`` of some blocks, merged in the order of the shards."""
        start, stop, _ = part.indices(self.blocks)
        sum_nBB = torch.zeros(stop - start, self.block_size, self.block_size)
        for record in self.partials:
            add_packed_(sum_nBB, self._file(record).part("lower_nL", start, stop))
        return sum_nBB.div_(self.count).to(self.device)

    def cross_nBB(self, part: slice = EVERYTHING) -> Tensor:
        """Returns the cross moments of some blocks, merged in the order of the shards."""
        start, stop, _ = part.indices(self.blocks)
        sum_nBB = torch.zeros(stop - start, self.block_size, self.block_size)
        for record in self.partials:
            sum_nBB += self._file(record).part("cross_nBB", start, stop)
        return sum_nBB.div_(self.count).to(self.device)

    def diagonal_nB(self) -> Tensor:
        """Returns the diagonals of ``H``, (n, B)."""
        parts = [self._file(record).part("diagonal_nB", 0, self.blocks) for record in self.partials]
        return (sum(parts[1:], start=parts[0]) / self.count).to(self.device)

    def row_weights_R(self) -> Tensor | None:
        """Returns how much each row weighs beside the mean of the rows that share its matrix; None if all weigh the same."""
        files = [self._file(record) for record in self.partials]
        if "rows_R" not in files[0].names():
            return None
        sums = [file.whole("rows_R") for file in files]
        return relative_weights(sum(sums[1:], start=sums[0]), self.blocks).to(self.device)

    def _file(self, record: Record[PartialMoment]) -> TensorFile:
        return verified(record)


def stored(partials: Sequence[Record[PartialMoment]], device: torch.device) -> StoredMoment | None:
    """Returns the moments that were collected for a layer; None for pruners that collect nothing."""
    return StoredMoment(tuple(partials), device) if partials else None

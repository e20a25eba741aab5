"""Second moments that lie in files: shards are merged in order, a slice of blocks at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.second_moment import EVERYTHING, SecondMoment, add_packed_, pack_lower
from workers.files import TensorFile, verified, write_tensors
from workers.records import Destination, Record

FILE = "statistic.safetensors"


def write_moment(to: Destination, moment: SecondMoment) -> str:
    """Store lower triangles and diagonals; returns the file's digest. Uses up the moment's memory."""
    diagonal_nB = moment.sum_nBB.diagonal(dim1=-2, dim2=-1).clone()
    return write_tensors(to.directory / FILE, {"diagonal_nB": diagonal_nB, "lower_nT": pack_lower(moment.sum_nBB)})


@dataclass(frozen=True)
class StoredMoment:
    """The sum of partial moments, one for each shard; only what is asked for is read. See ``kernels.second_moment.Moments``.

    Files are checked against their digests before anything of them is used, once in each process. Raises: DamagedResult.
    """

    partials: tuple[Record, ...]
    device: torch.device

    @property
    def blocks(self) -> int:
        return self._file(self.partials[0]).shape("diagonal_nB")[0]

    @property
    def block_size(self) -> int:
        return self._file(self.partials[0]).shape("diagonal_nB")[1]

    @property
    def count(self) -> int:
        return sum(record.numbers["count"] for record in self.partials)

    def mean_nBB(self, part: slice = EVERYTHING) -> Tensor:
        """``H`` of some blocks, merged in the order of the shards."""
        start, stop, _ = part.indices(self.blocks)
        sum_nBB = torch.zeros(stop - start, self.block_size, self.block_size)
        for record in self.partials:
            add_packed_(sum_nBB, self._file(record).part("lower_nT", start, stop))
        return sum_nBB.div_(self.count).to(self.device)

    def diagonal_nB(self) -> Tensor:
        """The diagonals of ``H``."""
        parts = [self._file(record).part("diagonal_nB", 0, self.blocks) for record in self.partials]
        return (sum(parts[1:], start=parts[0]) / self.count).to(self.device)

    def _file(self, record: Record) -> TensorFile:
        return verified(record, FILE)


def stored(partials: Sequence[Record], device: torch.device) -> StoredMoment | None:
    """What was collected for a layer; None for pruners that collect nothing."""
    return StoredMoment(tuple(partials), device) if partials else None

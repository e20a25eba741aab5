"""Data sets of numbered samples: everything but reading them."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from workers.checks import Phrase, require
from workers.data.base import Batch, Dataset

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from workers.data.sampling import Pick


@dataclass
class IndexedDataset(Dataset):
    """A ``train`` and a ``test`` split of numbered samples.

    Calibration draws ``calibration_batches * calibration_batch_size`` samples from ``train`` by the seed, without replacement. If the set
    is smaller, it is used repeatedly, each time in a new order; a batch across two passes may contain a sample twice.
    """

    train_size: int  # number of samples, drawn by the seed; 0: all
    test_size: int  # 0: all
    bank_size: int  # labelled training images for k-NN; 0: all

    evaluation_only: ClassVar[tuple[str, ...]] = ("test_size", "bank_size")
    elsewhere: ClassVar[tuple[str, ...]] = ()  # settings for where the data is or how fast it is read, which change no batch

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.seed >= 0, "data.seed", "at least 0", self.seed)
        for name in ("train_size", "test_size", "bank_size"):
            require(getattr(self, name) >= 0, f"data.{name}", "at least 0 (0 takes all)", getattr(self, name))

    @abstractmethod
    def labels(self, split: str) -> NDArray[np.generic]:
        """Returns the labels of all samples of ``train`` or ``test``, as in ``Batch``, before any subset is taken."""

    def count(self, split: str) -> int:
        """Returns the number of samples of ``train`` or ``test`` before any subset is taken. Reads no data if the number is known."""
        return len(self.labels(split))

    @abstractmethod
    def read(self, split: str, picks: list[Pick]) -> Iterator[Batch]:
        """Yields one batch for each pick, in order."""

    @abstractmethod
    def content(self) -> str:
        """Returns a digest that changes whenever the images or the labels change."""

    def check(self) -> None:
        train, test = len(self.labels("train")), len(self.labels("test"))  # not count(), since the data itself has to exist
        require(self.train_size <= train, "data.train_size", f"at most {train}, the number of samples", self.train_size, "0 takes all")
        require(self.test_size <= test, "data.test_size", f"at most {test}, the number of samples", self.test_size, "0 takes all")
        bank = self.size("train")
        require(self.bank_size <= bank, "data.bank_size", f"at most {bank} (data.train_size)", self.bank_size, "0 takes all")

    def check_labels(self, outputs: int) -> None:
        """Raises ``ConfigError`` unless all labels, which are read, are outputs of a classifier, or -1 where an image has none."""
        for split in ("train", "test"):
            labels = self.labels(split)
            if labels.ndim == 1 and labels.dtype.kind in "iu" and len(labels):
                low, high = int(labels.min()), int(labels.max())
                expected = f"classes from 0 to {outputs - 1}, the outputs of the model, or -1 where an image has none"
                require(low >= -1 and high < outputs, f"data ({split} labels)", expected, Phrase(f"numbers from {low} to {high}"))

    def fingerprint(self) -> str:
        """Returns a digest of the data and its preparation.

        It does not depend on how the data is cut into batches, so other calibration settings do not make another data set.
        """
        cuts = {field.name for field in fields(Dataset)} - {"seed"} | {*self.training_only, *self.evaluation_only}
        settings = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in {*cuts, *self.elsewhere}}
        return hashlib.sha256(repr((type(self).__qualname__, sorted(settings.items()), self.content())).encode()).hexdigest()

    def size(self, split: str) -> int:
        if split == "calibration":
            return self.calibration_batches * self.calibration_batch_size
        require(split in ("train", "test", "bank"), "split", "train, test, bank or calibration", split)
        if split == "test":
            return self.test_size or self.count("test")
        train = self.train_size or self.count("train")
        return train if split == "train" else self.bank_size or train

    def calibration(self, shard: int, shards: int) -> Iterator[Batch]:
        from workers.data.sampling import in_batches, part

        batches = in_batches(self._members("calibration"), self.calibration_batch_size)
        mine = part(len(batches), shard, shards)
        return self.read("train", batches[mine.start : mine.stop])

    def train(self, rank: int, world: int, epoch: int, batch_size: int) -> Iterator[Batch]:
        from workers.data.sampling import training_batches

        require(batch_size % world == 0, "batch_size", f"a multiple of the number of ranks, {world}", batch_size)
        members = self._members("train")
        require(batch_size <= len(members), "batch_size", f"at most {len(members)}, the number of training samples", batch_size)
        return self.read("train", training_batches(self.seed, epoch, members, batch_size, rank, world))

    def evaluation(self, split: str, shard: int, shards: int) -> Iterator[Batch]:
        from workers.data.sampling import in_batches, part

        members = self._members(split)
        mine = part(len(members), shard, shards)
        return self.read("test" if split == "test" else "train", in_batches(members[mine.start : mine.stop], self.eval_batch_size))

    def _members(self, split: str) -> NDArray[np.int64]:
        """Returns the numbers of the samples of ``train``, ``test``, ``bank`` or ``calibration`` in the split they are read from."""
        from workers.data.sampling import calibration_order, subset

        require(split in ("train", "test", "bank", "calibration"), "split", "train, test, bank or calibration", split)
        if split == "test":
            return subset(self.seed, len(self.labels("test")), self.test_size)
        train = subset(self.seed, len(self.labels("train")), self.train_size)
        if split == "bank":
            return train[subset(self.seed, len(train), self.bank_size)]
        if split == "calibration":
            return train[calibration_order(self.seed, len(train), self.size("calibration"))]
        return train

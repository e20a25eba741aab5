"""The interface of a data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


TASK_SAMPLES = 512  # approximate number of samples for each task that collects no statistic


class Batch(NamedTuple):
    """A batch of images and labels.

    ``images_NCHW`` is float32 and normalised. ``labels`` of classes are int64 (N,), -1 where a sample has none. Labels of objects are
    float32 (N, T, 5): the class (-1 where an image has fewer than T objects) and the corners x1, y1, x2, y2 of the box in pixels.
    """

    images_NCHW: Tensor
    labels: Tensor


@dataclass
class Dataset(ABC):
    """Images for calibration, training and testing. Fields are settings: plain values only.

    Every iterator is a pure function of the settings and its arguments: the same call yields the same bytes on any worker.
    """

    seed: int
    calibration_batches: int  # total number of gradients in the block Fisher (N in the formulas)
    calibration_batch_size: int  # samples averaged into one gradient; |g|^2 falls with it, so a good dampening depends on it
    shards: int  # parts of the calibration set; part of the result's identity, unlike the number of workers
    eval_batch_size: int

    training_only: ClassVar[tuple[str, ...]] = ()  # fields of subclasses that only training reads
    evaluation_only: ClassVar[tuple[str, ...]] = ()  # ... that only evaluation reads

    def __post_init__(self) -> None:
        from workers.checks import require

        require(self.calibration_batches >= 1, "data.calibration_batches", "at least 1", self.calibration_batches)
        require(self.calibration_batch_size >= 1, "data.calibration_batch_size", "at least 1", self.calibration_batch_size)
        require(
            1 <= self.shards <= self.calibration_batches,
            "data.shards",
            f"a number from 1 to {self.calibration_batches} (data.calibration_batches)",
            self.shards,
        )
        require(self.eval_batch_size >= 1, "data.eval_batch_size", "at least 1", self.eval_batch_size)

    @abstractmethod
    def check(self) -> None:
        """Raises ``ConfigError`` with a remedy if the data is missing or too small for the settings."""

    @property
    def to_examine(self) -> int:
        """The number of files that ``settled`` examines."""
        return 0

    def settled(self, outputs: int | None, cache: Path, advance: Callable[[int], None]) -> Dataset:
        """Returns the data set that the run uses, with everything decided that the settings leave to the files and to the model.

        The driver calls it once, before any worker starts. ``outputs`` is the number of classes of the model, None if it has no classifier.
        ``cache`` is a folder for results that can be reused by later runs. ``advance`` is called with the number of files just examined.
        Raises: ConfigError.
        """
        return self

    def check_outputs(self, outputs: int) -> None:
        """Raises ``ConfigError`` if a classifier with this many outputs has none for some of the classes."""
        from workers.checks import require

        enough = f"at least {self.classes}, the number of classes of the data"
        require(self.classes <= outputs, "model.arguments.num_classes", enough, outputs)

    def remarks(self, outputs: int | None) -> list[str]:
        """Returns sentences that a user should know about the settled data. A run prints them and lists them among its warnings."""
        if outputs is None or not 0 < self.classes < outputs:
            return []
        return [
            f"the model has {outputs} classes and the data have {self.classes}: label i is used as output i of the model{self.numbering}"
        ]

    @property
    def numbering(self) -> str:
        """The end of a sentence that says how classes are numbered, and what to do if the model numbers them differently."""
        return "; if the model numbers its classes differently, write its numbers into the data"

    @abstractmethod
    def fingerprint(self) -> str:
        """Returns a digest that changes whenever images, labels or preprocessing change.

        It does not cover the fields of this base class, ``training_only`` and ``evaluation_only``: the caller adds those that a verb reads.
        """

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""

    @property
    def has_boxes(self) -> bool:
        """Whether labels are objects in boxes instead of classes of images."""
        return False

    @property
    @abstractmethod
    def classes(self) -> int:
        """The number of classes; 0 if there are no labels."""

    @abstractmethod
    def size(self, split: str) -> int:
        """Returns the number of samples of ``train``, ``test`` or ``bank`` (labelled training images without augmentation, for k-NN)."""

    def evaluation_parts(self, split: str) -> int:
        """Returns the number of tasks of an evaluation. It depends on the data alone, since it changes the last bits of a result."""
        return max(1, -(-self.size(split) // TASK_SAMPLES))

    @property
    def comparison_parts(self) -> int:
        """The number of tasks, of whole batches, for a pass over the calibration set that collects no statistic."""
        return min(self.calibration_batches, -(-self.calibration_batches * self.calibration_batch_size // TASK_SAMPLES))

    @abstractmethod
    def calibration(self, shard: int, shards: int) -> Iterator[Batch]:
        """Yields the ``shard``-th contiguous part of the ``calibration_batches`` batches, drawn by the seed, without augmentation."""

    @abstractmethod
    def train(self, rank: int, world: int, epoch: int, batch_size: int) -> Iterator[Batch]:
        """Yields this rank's part of the global batches of an epoch: shuffled by (seed, epoch) and augmented, an incomplete one dropped."""

    @abstractmethod
    def evaluation(self, split: str, shard: int, shards: int) -> Iterator[Batch]:
        """Yields the ``shard``-th contiguous part of split ``test``, ``bank`` or ``calibration``, in order, without augmentation."""

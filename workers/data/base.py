"""What the pipeline asks of a data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


TASK_SAMPLES = 512  # that a task without a statistic pushes through a model, about


class Batch(NamedTuple):
    """``images_NCHW`` float32, normalised. ``labels`` of classes are int64 (N,), -1 where a sample has none; of objects float32 (N, T, 5):
    class (-1 where there are fewer than T) and the corners x1, y1, x2, y2 of its box in pixels of the image."""

    images_NCHW: Tensor
    labels: Tensor


@dataclass
class Dataset(ABC):
    """Images for calibration, training and testing. Fields are settings: plain values only.

    Every iterator is a pure function of the settings and its arguments: the same call yields the same bytes on any worker.
    """

    seed: int
    calibration_batches: int  # gradients of the block Fisher in all (N in the formulas)
    calibration_batch_size: int  # samples averaged into one gradient; |g|^2 falls with it, so a good dampening depends on it
    shards: int  # cuts of the calibration set; part of the result's identity, unlike the number of workers
    eval_batch_size: int

    training_only: ClassVar[tuple[str, ...]] = ()  # fields of subclasses that nothing but training reads
    evaluation_only: ClassVar[tuple[str, ...]] = ()  # ... nothing but evaluation

    def __post_init__(self) -> None:
        from workers.checks import require

        require(
            self.calibration_batches >= 1,
            "data.calibration_batches",
            "at least 1",
            self.calibration_batches,
            "nothing can be measured without data",
        )
        require(self.calibration_batch_size >= 1, "data.calibration_batch_size", "at least 1", self.calibration_batch_size)
        require(
            1 <= self.shards <= self.calibration_batches,
            "data.shards",
            f"1 to {self.calibration_batches} (data.calibration_batches)",
            self.shards,
        )
        require(self.eval_batch_size >= 1, "data.eval_batch_size", "at least 1", self.eval_batch_size)

    @abstractmethod
    def check(self) -> None:
        """Raise ``ConfigError`` with a remedy if the data is not there or too small for the settings."""

    @property
    def to_examine(self) -> int:
        """How many files ``settled`` looks into."""
        return 0

    def settled(self, outputs: int | None, cache: Path, advance: Callable[[int], None]) -> Dataset:
        """What the run goes on with: the data set with everything decided that its settings leave to the files and to the model.

        Called once, by the driver, before any worker starts. ``outputs`` are the classes that the model tells apart, None where it has no
        classifier; ``cache`` is a folder for what need not be found again; ``advance`` is told of files looked into. Raises: ConfigError.
        """
        return self

    def check_outputs(self, outputs: int) -> None:
        """Raise ``ConfigError`` if a classifier of so many outputs has none for some of the classes."""
        from workers.checks import require

        require(self.classes <= outputs, "model.arguments.num_classes", f"at least the {self.classes} classes of the data", outputs)

    def remarks(self, outputs: int | None) -> list[str]:
        """What a user should know of the data once they are settled, in sentences that a run prints and keeps among its warnings."""
        if outputs is None or not 0 < self.classes < outputs:
            return []
        return [
            f"the model tells {outputs} classes apart, the data have {self.classes}: a label is taken for the number of an output as it "
            f"is{self.numbering}"
        ]

    @property
    def numbering(self) -> str:
        """How classes got their numbers, and what to do where the model has others: the end of a sentence on that."""
        return "; write the model's numbers into the data if it has others"

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes whenever images, labels or preprocessing change.

        The fields of this base class, ``training_only`` and ``evaluation_only`` are left to the caller, who knows what a verb reads.
        """

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""

    @property
    def has_boxes(self) -> bool:
        """Whether labels are objects in boxes, not classes of images."""
        return False

    @property
    @abstractmethod
    def classes(self) -> int:
        """Number of classes; 0 when there are no labels."""

    @abstractmethod
    def size(self, split: str) -> int:
        """Number of samples of ``train``, ``test`` or ``bank`` (labelled training images without augmentation, for k-NN)."""

    def evaluation_parts(self, split: str) -> int:
        """Into how many tasks an evaluation is cut: by the data alone, since the cut shows in the last bits of a result."""
        return max(1, -(-self.size(split) // TASK_SAMPLES))

    @property
    def comparison_parts(self) -> int:
        """Into how many tasks of whole batches a pass over the calibration set is cut that keeps no statistic."""
        return min(self.calibration_batches, -(-self.calibration_batches * self.calibration_batch_size // TASK_SAMPLES))

    @abstractmethod
    def calibration(self, shard: int, shards: int) -> Iterator[Batch]:
        """The ``shard``-th contiguous part of the ``calibration_batches`` batches; fixed by the seed, without augmentation."""

    @abstractmethod
    def train(self, rank: int, world: int, epoch: int, batch_size: int) -> Iterator[Batch]:
        """This rank's part of an epoch's global batches of ``batch_size``: shuffled by (seed, epoch), augmented, last one dropped."""

    @abstractmethod
    def evaluation(self, split: str, shard: int, shards: int) -> Iterator[Batch]:
        """The ``shard``-th contiguous part of split ``test``, ``bank`` or ``calibration``, in order, without augmentation."""

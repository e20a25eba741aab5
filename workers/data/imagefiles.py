"""Data sets of image files, prepared with timm's transforms."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from workers.checks import require
from workers.data.arrays import check_normalisation
from workers.data.base import Batch
from workers.data.indexed import IndexedDataset

if TYPE_CHECKING:
    from workers.data.sampling import Pick
    from workers.data.sources import Source


class Interpolation(Enum):
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


class Augmentation(Enum):
    """The augmentation of training images. Mixup and CutMix are not supported, since a batch has one label for each image."""

    NONE = "none"  # as in testing
    LIGHT = "light"  # random resized crop and mirroring, for short trainings
    DEIT = "deit"  # LIGHT, RandAugment (m9, mstd 0.5), random erasing (0.25), for long ones (Touvron et al. 2021, arXiv 2012.12877)


@dataclass
class ImageFiles(IndexedDataset):
    """RGB images in files. For testing and calibration the shorter side is resized to ``image_size / crop_fraction``, then cropped."""

    image_size: int  # pixels
    crop_fraction: float  # with 224 pixels, 0.875 resizes to 256
    interpolation: Interpolation
    mean: list[float]  # of pixels in [0, 1]; one number for each channel, or one for all
    std: list[float]
    background: list[float]  # behind transparent pixels, in [0, 1]; one number for each channel, or one for all
    upright: bool  # whether images are rotated by their EXIF orientation
    augmentation: Augmentation  # training only
    decoders: int  # processes of each worker that decode ahead; 0: the worker itself decodes. Does not change any result

    training_only: ClassVar[tuple[str, ...]] = ("augmentation",)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.image_size >= 1, "data.image_size", "at least 1 pixel", self.image_size)
        require(0 < self.crop_fraction <= 1, "data.crop_fraction", "a fraction in (0, 1]", self.crop_fraction)
        require(self.decoders >= 0, "data.decoders", "at least 0", self.decoders)
        check_normalisation(self.mean, self.std, 3)
        check_background(self.background)

    @abstractmethod
    def files(self, split: str) -> Sequence[str | Source]:
        """Returns the image files of ``train`` or ``test``, in the order of ``labels``."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return 3, self.image_size, self.image_size

    def read(self, split: str, picks: list[Pick]) -> Iterator[Batch]:
        from workers.data.decode import batches, transforms
        from workers.data.rgb import Reading

        testing, training = transforms(
            self.image_size, self.crop_fraction, self.interpolation.value, self.mean, self.std, self.augmentation.value
        )
        reading = Reading(in_bytes(self.background), self.upright)
        return batches(self.files(split), self.labels(split), picks, testing, training, reading, self.decoders)


def check_background(background: list[float]) -> None:
    holds = len(background) in (1, 3) and all(0 <= number <= 1 for number in background)
    require(holds, "data.background", "1 or 3 numbers in [0, 1]", background)


def in_bytes(background: list[float]) -> tuple[int, ...]:
    """Returns the background as 0 to 255 for red, green and blue."""
    return tuple(round(255 * number) for number in background) * (3 // len(background))

"""Data sets that fit in memory: decoded once in each process, resized and normalised batch by batch."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from workers.checks import require
from workers.data.base import Batch
from workers.data.indexed import IndexedDataset

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from workers.data.sampling import Pick


@dataclass(frozen=True, eq=False)
class ImageArrays:
    """Decoded images (N x H x W x C with C = 1 or 3, values 0..full_scale) and their labels.

    Labels are as in ``Batch``; the corners of boxes are in pixels of the decoded images.
    """

    train_NHWC: NDArray[np.generic]
    train_labels: NDArray[np.generic]
    test_NHWC: NDArray[np.generic]
    test_labels: NDArray[np.generic]
    full_scale: float

    @cached_property
    def digest(self) -> str:
        """SHA-256 of types, shapes and values."""
        total = hashlib.sha256()
        for array in (self.train_NHWC, self.train_labels, self.test_NHWC, self.test_labels):
            total.update(f"{array.dtype}{array.shape}".encode())
            total.update(array.tobytes())
        return total.hexdigest()


@dataclass
class ArrayDataset(IndexedDataset):
    """Images in memory. The augmentation suits small images: random shifts, and mirroring if left and right are equivalent."""

    image_size: int  # pixels; images are resized to it bilinearly
    channels: int  # 1 or 3; grey images are repeated
    mean: list[float]  # of pixels in [0, 1]; one number per channel, or one for all
    std: list[float]
    max_shift: int  # training only: pixels, in each direction; 0: none
    flip: bool  # training only: mirror every other image

    training_only: ClassVar[tuple[str, ...]] = ("max_shift", "flip")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.image_size >= 1, "data.image_size", "at least 1 pixel", self.image_size)
        require(self.channels in (1, 3), "data.channels", "1 or 3", self.channels)
        require(0 <= self.max_shift < self.image_size, "data.max_shift", "0 to data.image_size - 1 pixels", self.max_shift)
        check_normalisation(self.mean, self.std, self.channels)

    @abstractmethod
    def arrays(self) -> ImageArrays:
        """Returns the decoded images, cached in each process. Raises: ConfigError with a remedy if they are missing or damaged."""

    def check(self) -> None:
        stored = self.arrays().train_NHWC.shape[-1]
        require(stored in (1, self.channels), "data.channels", f"{stored}, the number of channels of the images", self.channels)
        super().check()

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self.channels, self.image_size, self.image_size

    def labels(self, split: str) -> NDArray[np.generic]:
        return self.arrays().train_labels if split == "train" else self.arrays().test_labels

    def content(self) -> str:
        return self.arrays().digest

    def read(self, split: str, picks: list[Pick]) -> Iterator[Batch]:
        import torch

        from workers.data.pixels import moved, normalise, scale_boxes, to_input

        arrays, all_labels = self.arrays(), self.labels(split)
        stored = arrays.train_NHWC if split == "train" else arrays.test_NHWC
        for indices_N, draws_ND in picks:
            images_NCHW = to_input(stored[indices_N], arrays.full_scale, self.channels, self.image_size)
            labels = torch.from_numpy(all_labels[indices_N])
            if labels.ndim == 3:
                labels = scale_boxes(labels, stored.shape[1:3], self.image_size)
            images_NCHW, labels = moved(images_NCHW, labels, draws_ND, self.max_shift, self.flip)
            yield Batch(normalise(images_NCHW, self.mean, self.std), labels)


def check_normalisation(mean: list[float], std: list[float], channels: int) -> None:
    require(len(mean) in (1, channels), "data.mean", f"1 or {channels} numbers", mean)
    require(len(std) in (1, channels), "data.std", f"1 or {channels} numbers", std)
    require(all(number > 0 for number in std), "data.std", "positive numbers", std)

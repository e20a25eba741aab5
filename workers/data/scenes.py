"""Scenes composed of several garments of Fashion-MNIST: a small detection set with known boxes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from workers.checks import require
from workers.data import fashion
from workers.data.arrays import ArrayDataset, ImageArrays

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TRIES = 20  # places that are tried for a garment
OVERLAP = 0.3  # largest overlap of two boxes
FAINT = 16  # pixels up to this value count as background


class Rules(NamedTuple):
    """How a scene is composed."""

    size: int  # pixels, side of the scene
    objects: int  # at most
    smallest: int  # pixels, side of a garment
    largest: int


@dataclass
class FashionScenes(ArrayDataset):
    """Scenes of 1 to ``objects`` garments of random size at random places on black.

    The garments are photographs of Fashion-MNIST, resized: training images in training scenes, test images in test scenes. Their places are
    drawn at random, so the set is for tests and comparisons and does not represent photographed scenes. The scenes are the same for every
    seed.
    """

    root: str | None  # folder with the idx files; null: where Debian's package or scripts/fetch_cases.sh puts them
    train_scenes: int
    test_scenes: int
    objects: int  # at most, in a scene
    smallest: int  # pixels, side of a garment's picture
    largest: int

    elsewhere: ClassVar[tuple[str, ...]] = ("root",)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.train_scenes >= 1, "data.train_scenes", "at least 1", self.train_scenes)
        require(self.test_scenes >= 1, "data.test_scenes", "at least 1", self.test_scenes)
        require(self.objects >= 1, "data.objects", "at least 1", self.objects)
        require(self.smallest >= 8, "data.smallest", "at least 8 pixels", self.smallest)
        sides = f"a number of pixels from {self.smallest} (data.smallest) to {self.image_size} (data.image_size)"
        require(self.smallest <= self.largest <= self.image_size, "data.largest", sides, self.largest)

    @property
    def classes(self) -> int:
        return 10

    @property
    def has_boxes(self) -> bool:
        return True

    def count(self, split: str) -> int:
        return self.train_scenes if split == "train" else self.test_scenes

    def arrays(self) -> ImageArrays:
        rules = Rules(self.image_size, self.objects, self.smallest, self.largest)
        return _composed(fashion.read(self.root), self.train_scenes, self.test_scenes, rules)


@lru_cache(maxsize=2)
def _composed(garments: ImageArrays, train_scenes: int, test_scenes: int, rules: Rules) -> ImageArrays:
    train = compose(garments.train_NHWC, garments.train_labels, train_scenes, 0, rules)
    return ImageArrays(*train, *compose(garments.test_NHWC, garments.test_labels, test_scenes, 1, rules), full_scale=255.0)


def compose(
    garments: NDArray[np.generic], labels: NDArray[np.generic], scenes: int, seed: int, rules: Rules
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Returns images (N, size, size, 1) and their objects (N, objects, 5)."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(seed)
    images_NHWC = np.zeros((scenes, rules.size, rules.size, 1), np.uint8)
    objects_NT5 = np.full((scenes, rules.objects, 5), -1, np.float32)
    for image_HW, objects_T5 in zip(images_NHWC[..., 0], objects_NT5, strict=True):
        placed = 0
        for _ in range(int(generator.integers(1, rules.objects + 1))):
            garment, side = int(generator.integers(len(garments))), int(generator.integers(rules.smallest, rules.largest + 1))
            picture_HW = np.asarray(Image.fromarray(garments[garment, ..., 0]).resize((side, side), Image.Resampling.BILINEAR))
            rows, columns = (np.flatnonzero((picture_HW > FAINT).any(axis)) for axis in (1, 0))
            if not len(rows):
                continue
            picture_HW = picture_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            height, width = picture_HW.shape
            for _ in range(TRIES):
                top, left = (int(generator.integers(rules.size - extent + 1)) for extent in (height, width))
                box_4 = np.array([left, top, left + width, top + height], np.float32)
                if all(_overlap(box_4, other[1:]) <= OVERLAP for other in objects_T5[:placed]):
                    view_HW = image_HW[top : top + height, left : left + width]
                    np.maximum(view_HW, picture_HW, out=view_HW)
                    objects_T5[placed] = [float(labels[garment]), *box_4]
                    placed += 1
                    break
    return images_NHWC, objects_NT5


def _overlap(first_4: NDArray[np.float32], second_4: NDArray[np.float32]) -> float:
    """Returns the intersection over union of two boxes."""
    import numpy as np

    sides_2 = np.minimum(first_4[2:], second_4[2:]) - np.maximum(first_4[:2], second_4[:2])
    both = float(np.prod(sides_2.clip(0)))
    return both / (float(np.prod(first_4[2:] - first_4[:2])) + float(np.prod(second_4[2:] - second_4[:2])) - both)

"""The 1,797 handwritten digits of scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from workers.data.arrays import ArrayDataset, ImageArrays

TEST = 360


@dataclass
class Digits(ArrayDataset):
    """8 x 8 grey images with 17 levels, split 1437/360 by the seed with equal shares of the ten digits.

    With 360 test images, differences below 2 points are noise: use several seeds.
    Source: Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, in scikit-learn (BSD).
    """

    @property
    def classes(self) -> int:
        return 10

    def arrays(self) -> ImageArrays:
        return _split(self.seed)


@lru_cache(maxsize=4)
def _split(seed: int) -> ImageArrays:
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images_NHWC, labels_N = digits.images.astype(np.uint8)[..., None], digits.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(labels_N)), test_size=TEST, random_state=seed % 2**32, stratify=labels_N)
    return ImageArrays(images_NHWC[train], labels_N[train], images_NHWC[test], labels_N[test], full_scale=16.0)

"""The user's own images as numpy arrays in one file."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from workers.checks import require
from workers.data.arrays import ArrayDataset, ImageArrays
from workers.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass
class Arrays(ArrayDataset):
    """An ``.npz`` file with ``train_images`` and ``test_images``, N x H x W or N x H x W x C, uint8 (0..255) or floats in [0, 1], and
    ``train_labels`` and ``test_labels``, integers from 0 up; without these two, the images are unlabelled."""

    path: str

    elsewhere: ClassVar[tuple[str, ...]] = ("path",)

    @property
    def classes(self) -> int:
        return int(self.arrays().train_labels_N.max()) + 1

    def arrays(self) -> ImageArrays:
        path = Path(self.path).expanduser()
        require(path.is_file(), "data.path", "an existing .npz file", self.path, f"looked at {path.absolute()}")
        return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _read(path: Path, modified_ns: int) -> ImageArrays:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise ConfigError(f"data.path: {path} is not a readable .npz file of plain arrays: {error}") from error
    for name in ("train_images", "test_images"):
        require(name in content, "data.path", "arrays train_images and test_images", sorted(content), str(path))
    labelled = [name for name in ("train_labels", "test_labels") if name in content]
    require(len(labelled) in (0, 2), "data.path", "train_labels and test_labels, or neither", labelled, str(path))
    train, test = _images(content["train_images"], "train_images"), _images(content["test_images"], "test_images")
    require(
        train.dtype == test.dtype and train.shape[-1] == test.shape[-1],
        "data.path",
        "train and test images of one type",
        (train.dtype, test.dtype),
    )
    train_labels, test_labels = (_labels(content, f"{split}_labels", len(images)) for split, images in (("train", train), ("test", test)))
    classes = int(train_labels.max()) + 1
    require(test_labels.max() < classes, "data.path", f"test labels below {classes}, as in train_labels", int(test_labels.max()), str(path))
    return ImageArrays(train, train_labels, test, test_labels, full_scale=255.0 if train.dtype == np.uint8 else 1.0)


def _images(array: NDArray[np.generic], name: str) -> NDArray[np.generic]:
    images = array[..., None] if array.ndim == 3 else array
    holds = images.ndim == 4 and images.shape[-1] in (1, 3) and len(images) > 0 and array.dtype.name in ("uint8", "float32", "float64")
    require(holds, f"data.path ({name})", "N x H x W or N x H x W x (1 or 3), uint8 or float", f"{array.dtype} {array.shape}")
    return images


def _labels(content: dict[str, NDArray[np.generic]], name: str, count: int) -> NDArray[np.int64]:
    import numpy as np

    if name not in content:
        return np.full(count, -1, np.int64)
    labels = content[name]
    holds = labels.shape == (count,) and np.issubdtype(labels.dtype, np.integer) and int(labels.min()) >= 0
    require(holds, f"data.path ({name})", f"{count} integers from 0 up, one for each image", f"{labels.dtype} {labels.shape}")
    return labels.astype(np.int64)

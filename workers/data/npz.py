"""The user's own images as numpy arrays in one file."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from workers.checks import require
from workers.data.arrays import ArrayDataset, ImageArrays
from workers.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SLACK = 1e-3  # by which resized floats may leave [0, 1]


@dataclass
class Arrays(ArrayDataset):
    """An ``.npz`` file with ``train_images`` and ``test_images``, N x H x W or N x H x W x C, uint8 (0..255) or floats in [0, 1], and
    ``train_labels`` and ``test_labels``, integers from 0 up, or ``train_boxes`` and ``test_boxes``, N x T x 5: class (-1 where an image has
    fewer than T objects) and corners x1, y1, x2, y2 in pixels of the stored image. Without these, the images are unlabelled."""

    path: str

    elsewhere: ClassVar[tuple[str, ...]] = ("path",)

    @property
    def classes(self) -> int:
        labels = self.arrays().train_labels
        return int((labels[..., 0] if self.has_boxes else labels).max()) + 1

    @property
    def has_boxes(self) -> bool:
        return self.arrays().train_labels.ndim == 3

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
    labelled = [name for name in ("train_labels", "test_labels", "train_boxes", "test_boxes") if name in content]
    pairs: tuple[list[str], ...] = ([], ["train_labels", "test_labels"], ["train_boxes", "test_boxes"])
    require(labelled in pairs, "data.path", "labels or boxes for both splits, or neither", labelled, str(path))
    train, test = _images(content["train_images"], "train_images"), _images(content["test_images"], "test_images")
    require(
        train.dtype == test.dtype and train.shape[-1] == test.shape[-1],
        "data.path",
        "train and test images of one type",
        (train.dtype, test.dtype),
    )
    read = _boxes if "train_boxes" in content else _labels
    train_labels, test_labels = (read(content, split, images) for split, images in (("train", train), ("test", test)))
    most, found = (int((labels[..., 0] if labels.ndim == 3 else labels).max()) for labels in (train_labels, test_labels))
    require(found <= most, "data.path", f"test labels below {most + 1}, as in training", found, str(path))
    return ImageArrays(train, train_labels, test, test_labels, full_scale=255.0 if train.dtype == np.uint8 else 1.0)


def _images(array: NDArray[Any], name: str) -> NDArray[np.generic]:
    import numpy as np

    images = array[..., None] if array.ndim == 3 else array
    holds = images.ndim == 4 and images.shape[-1] in (1, 3) and len(images) > 0 and array.dtype.name in ("uint8", "float32", "float64")
    require(holds, f"data.path ({name})", "N x H x W or N x H x W x (1 or 3), uint8 or float", f"{array.dtype} {array.shape}")
    if array.dtype.kind == "f":
        finite = array[np.isfinite(array)]  # batches with others are skipped, and told
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
        remedy = "divide by the value of white, and leave normalising to data.mean and data.std"
        require(low >= -SLACK and high <= 1 + SLACK, f"data.path ({name})", "floats in [0, 1]", f"{low:g} to {high:g}", remedy)
    return images


def _boxes(content: dict[str, NDArray[np.generic]], split: str, images_NHWC: NDArray[np.generic]) -> NDArray[np.float32]:
    import numpy as np

    name, (count, height, width, _) = f"{split}_boxes", images_NHWC.shape
    boxes: NDArray[Any] = content[name]
    shaped = boxes.ndim == 3 and boxes.shape[::2] == (count, 5) and boxes.dtype.kind in "iuf"
    require(shaped, f"data.path ({name})", f"{count} x T x 5 numbers: class, x1, y1, x2, y2", f"{boxes.dtype} {boxes.shape}")
    objects_O5 = boxes[boxes[..., 0] >= 0].astype(np.float64)
    inside = (objects_O5[:, 1:] >= 0) & (objects_O5[:, 1:] <= np.array([width, height, width, height]))
    bad = ~(inside.all(1) & (objects_O5[:, 3:] > objects_O5[:, 1:3]).all(1))
    require(len(objects_O5) > 0, f"data.path ({name})", "at least one object", 0)
    require(not bad.any(), f"data.path ({name})", f"0 <= x1 < x2 <= {width}, 0 <= y1 < y2 <= {height}", objects_O5[bad][:1].tolist())
    return boxes.astype(np.float32)


def _labels(content: dict[str, NDArray[np.generic]], split: str, images_NHWC: NDArray[np.generic]) -> NDArray[np.int64]:
    import numpy as np

    name, count = f"{split}_labels", len(images_NHWC)
    if name not in content:
        return np.full(count, -1, np.int64)
    labels = content[name]
    holds = labels.shape == (count,) and np.issubdtype(labels.dtype, np.integer) and int(labels.min()) >= 0
    require(holds, f"data.path ({name})", f"{count} integers from 0 up, one for each image", f"{labels.dtype} {labels.shape}")
    return labels.astype(np.int64)

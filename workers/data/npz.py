"""Images as numpy arrays in one ``.npz`` file."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import psutil

from workers.checks import LARGEST, Phrase, absolute_path, require
from workers.data.arrays import ArrayDataset, ImageArrays
from workers.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAMES = ("train_images", "test_images", "train_labels", "test_labels", "train_boxes", "test_boxes")
TOLD = 8  # names of other arrays that a message lists
SLACK = 1e-3  # how far floats may lie outside of [0, 1], as after a bicubic resize


@dataclass
class Arrays(ArrayDataset):
    """An ``.npz`` file with images, and labels or boxes if there are any.

    ``train_images`` and ``test_images`` are N x H x W or N x H x W x C, uint8 (0..255) or floats in [0, 1]. ``train_labels`` and
    ``test_labels`` are integers from 0 up. ``train_boxes`` and ``test_boxes`` are N x T x 5: the class (-1 where an image has fewer than T
    objects) and the corners x1, y1, x2, y2 in pixels of the stored image.
    """

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
        require(path.is_file(), "data.path", "an existing .npz file", self.path, absolute_path(self.path, path))
        return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _read(path: Path, modified_ns: int) -> ImageArrays:
    import numpy as np

    content = _arrays(path)
    labelled = [name for name in NAMES[2:] if name in content]
    pairs: tuple[list[str], ...] = ([], ["train_labels", "test_labels"], ["train_boxes", "test_boxes"])
    got = Phrase(f"{labelled} in {path}")
    require(labelled in pairs, "data.path", "labels for both splits, boxes for both, or neither", got)
    train, test = _images(content["train_images"], "train_images"), _images(content["test_images"], "test_images")
    require(
        train.dtype == test.dtype and train.shape[-1] == test.shape[-1],
        "data.path",
        "training and test images of the same type and number of channels",
        Phrase(f"{train.dtype} {train.shape} and {test.dtype} {test.shape}"),
    )
    read = _boxes if "train_boxes" in content else _labels
    train_labels, test_labels = (read(content, split, images) for split, images in (("train", train), ("test", test)))
    largest, test_largest = (int((labels[..., 0] if labels.ndim == 3 else labels).max()) for labels in (train_labels, test_labels))
    got = Phrase(f"{test_largest} in {path}")
    require(test_largest <= largest, "data.path", f"test labels of at most {largest}, the largest training label", got)
    return ImageArrays(train, train_labels, test, test_labels, full_scale=255.0 if train.dtype == np.uint8 else 1.0)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Returns the arrays that are used. Raises: ConfigError if there are no images, or a file that cannot be read or is too large."""
    import numpy as np

    try:
        with zipfile.ZipFile(path) as packed:
            sizes = {member.filename.removesuffix(".npy"): member.file_size for member in packed.infolist()}
        missing = [name for name in NAMES[:2] if name not in sizes]
        require(not missing, "data.path", "arrays train_images and test_images", Phrase(f"{sorted(sizes)[:TOLD]} in {path}"))
        size, room = sum(sizes.get(name, 0) for name in NAMES), psutil.virtual_memory().available
        got = Phrase(f"{size / 1e9:.3g} GB in {path}")
        fitting = f"arrays that fit into the {room / 1e9:.3g} GB of free memory"
        require(size < room, "data.path", fitting, got, "use a folder of image files")
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in NAMES if name in file.files}
        if other := [name for name, array in content.items() if not isinstance(array, np.ndarray)]:  # numpy returns bytes that are none
            raise ValueError(f"{' and '.join(other)} without a header of numpy")
        return content
    except ConfigError:
        raise
    except Exception as error:  # of many kinds: of zip files and their compression, of numpy, and of memory for a shape that cannot be
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"data.path: expected a readable .npz file of numeric arrays, got {path} ({reason})") from error


def _images(array: NDArray[Any], name: str) -> NDArray[np.generic]:
    import numpy as np

    images = array[..., None] if array.ndim == 3 else array
    valid = images.ndim == 4 and images.shape[-1] in (1, 3) and images.size > 0 and array.dtype.name in ("uint8", "float32", "float64")
    got = Phrase(f"{array.dtype} {array.shape}")
    require(valid, f"data.path ({name})", "N x H x W or N x H x W x (1 or 3), uint8, float32 or float64", got)
    if array.dtype.kind == "f":
        finite = array[np.isfinite(array)]  # batches with other numbers are skipped and reported
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
        remedy = "divide by the value of white, and normalise with data.mean and data.std instead"
        got = Phrase(f"{low:g} to {high:g}")
        require(low >= -SLACK and high <= 1 + SLACK, f"data.path ({name})", "floats in [0, 1]", got, remedy)
    return images


def _boxes(content: dict[str, NDArray[np.generic]], split: str, images_NHWC: NDArray[np.generic]) -> NDArray[np.float32]:
    import numpy as np

    name, (count, height, width, _) = f"{split}_boxes", images_NHWC.shape
    boxes: NDArray[Any] = content[name]
    valid = boxes.ndim == 3 and boxes.shape[::2] == (count, 5) and boxes.dtype.kind in "iuf"
    expected = f"{count} x T x 5 numbers (class, x1, y1, x2, y2)"
    require(valid, f"data.path ({name})", expected, Phrase(f"{boxes.dtype} {boxes.shape}"))
    classes = boxes[..., 0]
    whole = bool(np.isfinite(classes).all()) and bool((classes == np.rint(classes)).all()) and abs(float(classes.max())) <= LARGEST
    require(whole, f"data.path ({name})", "classes that are whole numbers, -1 where there is no object", classes[:1].tolist())
    objects_O5 = boxes[classes >= 0].astype(np.float64)
    inside = (objects_O5[:, 1:] >= 0) & (objects_O5[:, 1:] <= np.array([width, height, width, height]))
    invalid = ~(inside.all(1) & (objects_O5[:, 3:] > objects_O5[:, 1:3]).all(1))
    require(len(objects_O5) > 0, f"data.path ({name})", "at least one object", 0)
    corners = f"boxes with 0 <= x1 < x2 <= {width} and 0 <= y1 < y2 <= {height}"
    require(not invalid.any(), f"data.path ({name})", corners, objects_O5[invalid][:1].tolist())
    return boxes.astype(np.float32)


def _labels(content: dict[str, NDArray[np.generic]], split: str, images_NHWC: NDArray[np.generic]) -> NDArray[np.int64]:
    import numpy as np

    name, count = f"{split}_labels", len(images_NHWC)
    if name not in content:
        return np.full(count, -1, np.int64)
    labels = content[name]
    valid = labels.shape == (count,) and np.issubdtype(labels.dtype, np.integer) and 0 <= int(labels.min()) <= int(labels.max()) <= LARGEST
    span = f" from {labels.min()} to {labels.max()}" if labels.size and labels.dtype.kind in "iuf" else ""
    expected = f"{count} integers of at least 0, one for each image"
    require(valid, f"data.path ({name})", expected, Phrase(f"{labels.dtype} {labels.shape}{span}"))
    return labels.astype(np.int64)

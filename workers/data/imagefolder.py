"""A folder of images, labelled by subfolders or not labelled at all."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from workers.checks import require
from workers.data.imagefiles import ImageFiles
from workers.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"})


@dataclass
class ImageFolder(ImageFiles):
    """``root/train_folder`` and ``root/test_folder``, each with one subfolder per class or with images directly inside.

    Classes are numbered by the sorted names of the training subfolders (ImageNet's layout and order). Images directly inside have no
    labels. Both folders may be the same (``.`` is ``root`` itself): enough for label-free calibration, where the test tells how far outputs
    moved. The ``expected_*`` numbers are checked against the folder, and let a plan be made where the folder is not there.
    """

    root: str
    train_folder: str
    test_folder: str
    expected_train: int | None  # images; null: whatever is there
    expected_test: int | None
    expected_classes: int | None  # 0: no labels

    elsewhere: ClassVar[tuple[str, ...]] = (
        "root",
        "train_folder",
        "test_folder",
        "expected_train",
        "expected_test",
        "expected_classes",
        "decoders",
    )

    @property
    def classes(self) -> int:
        return len(self._listing("train").classes) if self.expected_classes is None else self.expected_classes

    def count(self, split: str) -> int:
        expected = self.expected_train if split == "train" else self.expected_test
        return len(self._listing(split).files) if expected is None else expected

    def check(self) -> None:
        train, test = self._listing("train"), self._listing("test")
        unknown = sorted(set(test.classes) - set(train.classes))
        remedy = "give both folders the same class subfolders, or none to either"
        require(bool(train.classes) == bool(test.classes), "data.test_folder", f"{len(train.classes)} classes", len(test.classes), remedy)
        require(not unknown, "data.test_folder", "only classes that data.train_folder has", unknown[:3], remedy)
        found = {"train": len(train.files), "test": len(test.files), "classes": len(train.classes)}
        for name, number in found.items():
            expected = getattr(self, f"expected_{name}")
            require(
                expected in (None, number), f"data.root ({name})", f"{expected} (data.expected_{name})", number, f"is {self.root} complete?"
            )
        super().check()

    def labels(self, split: str) -> NDArray[np.int64]:
        import numpy as np

        listing, known = self._listing(split), self._listing("train").classes
        if not listing.classes:
            return np.full(len(listing.files), -1, np.int64)
        number = {name: index for index, name in enumerate(known)}
        return np.array([number.get(name, -1) for name in listing.classes], np.int64)[listing.class_N]

    def files(self, split: str) -> list[str]:
        return self._listing(split).files

    def content(self) -> str:
        """Digest of names, sizes and modification times: reading every image would take hours on a large set."""
        return _digest(self._folder("train")) + _digest(self._folder("test"))

    def _folder(self, split: str) -> Path:
        return Path(self.root).expanduser() / (self.train_folder if split == "train" else self.test_folder)

    def _listing(self, split: str) -> _Listing:
        return _list(self._folder(split))


@dataclass(frozen=True)
class _Listing:
    files: list[str]
    classes: list[str]  # empty: no labels
    class_N: NDArray[np.int64]  # of each file, as an index into classes


@lru_cache(maxsize=4)
def _list(folder: Path) -> _Listing:
    """Images of a folder in the order of class and name. Raises: ConfigError if there are none, or images lie beside class folders."""
    import numpy as np

    if not folder.is_dir():
        raise ConfigError(
            f"data.root: expected a folder of images, found no {folder.absolute()}; set data.root, data.train_folder, data.test_folder"
        )
    loose = _images(folder)
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if loose and classes:
        raise ConfigError(f"data.root: {folder} holds images ({loose[0]}) and subfolders ({classes[0]}); expected one or the other")
    inside = [_images(folder / name) for name in classes]
    files = loose or [path for paths in inside for path in paths]
    if not files:
        raise ConfigError(f"data.root: {folder} holds no images, nor do its subfolders; they end in {', '.join(sorted(SUFFIXES))}")
    return _Listing(files, classes, np.repeat(np.arange(len(classes)), np.array([len(paths) for paths in inside], np.int64)))


def _images(folder: Path) -> list[str]:
    return sorted(entry.path for entry in os.scandir(folder) if os.path.splitext(entry.name)[1].lower() in SUFFIXES)


@lru_cache(maxsize=4)
def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in _list(folder).files:
        status = os.stat(path)
        digest.update(f"{os.path.relpath(path, folder)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()

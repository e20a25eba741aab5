"""Fashion-MNIST, read from its four idx files."""

from __future__ import annotations

import gzip
import os
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from workers.checks import Phrase, require
from workers.data.arrays import ArrayDataset, ImageArrays
from workers.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
REMEDY = "install Debian's package dataset-fashion-mnist, run scripts/fetch_cases.sh (needs no root), or set data.root to their folder"


@dataclass
class FashionMnist(ArrayDataset):
    """60,000 training and 10,000 test images of clothes, 28 x 28 grey, ten classes.

    Any folder with the four idx files, compressed or not, is accepted, including torchvision's layout (``FashionMNIST/raw``).
    Source: Xiao, Rasul & Vollgraf 2017 (arXiv 1708.07747; MIT).
    """

    root: str | None  # folder with the idx files; null: where Debian's package or scripts/fetch_cases.sh puts them

    elsewhere: ClassVar[tuple[str, ...]] = ("root",)

    @property
    def classes(self) -> int:
        return 10

    def count(self, split: str) -> int:
        """Returns the number of samples. If the files are missing, it is that of the original set."""
        try:
            return super().count(split)
        except ConfigError:
            return {"train": 60_000, "test": 10_000}[split]

    def arrays(self) -> ImageArrays:
        return read(self.root)


def read(root: str | None) -> ImageArrays:
    """Returns the whole set. Raises: ConfigError with a remedy if it is missing or damaged."""
    folder = find(root)
    return _read(folder, tuple(_modified_ns(folder, name) for name in FILES))


def find(root: str | None) -> Path:
    """Returns the folder with all four idx files. Raises: ConfigError with the folders that were searched and the remedy."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    bases = [Path(root).expanduser()] if root else [Path("/usr/share/datasets/fashion-mnist"), cache / "secateur" / "fashion-mnist"]
    folders = [folder for base in bases for folder in (base, base / "FashionMNIST" / "raw")]
    for folder in folders:
        if all(_file(folder, name) for name in FILES):
            return folder
    searched = ", ".join(str(folder) for folder in folders)
    raise ConfigError(f"data.root: expected a folder with the four idx files of Fashion-MNIST, got none among {searched}; {REMEDY}")


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _modified_ns(folder: Path, name: str) -> int:
    path = _file(folder, name)
    return path.stat().st_mtime_ns if path else 0


@lru_cache(maxsize=2)
def _read(folder: Path, modified_ns: tuple[int, ...]) -> ImageArrays:
    import numpy as np

    train, train_labels, test, test_labels = (_idx(folder, name) for name in FILES)
    for images, labels in ((train, train_labels), (test, test_labels)):
        matching = images.ndim == 3 and labels.shape == images.shape[:1]
        shapes = Phrase(f"shapes {images.shape} and {labels.shape}")
        require(matching, "data.root", "as many labels as images", shapes, f"fetch the files in {folder} again")
    return ImageArrays(train[..., None], train_labels.astype(np.int64), test[..., None], test_labels.astype(np.int64), full_scale=255.0)


def _idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """Reads an idx file: two zero bytes, type 8 (unsigned byte), the number of dimensions, big-endian sizes, and the data."""
    import numpy as np

    path = _file(folder, name)
    assert path is not None
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"data.root: {path} is damaged ({error}); fetch it again") from error
    dimensions = content[3] if len(content) > 3 and content[:3] == b"\x00\x00\x08" else 0
    shape = np.frombuffer(content, ">u4", dimensions, offset=4) if len(content) >= 4 + 4 * dimensions else np.zeros(0)
    data = content[4 + 4 * dimensions :]
    require(
        dimensions > 0 and len(data) == int(np.prod(shape)),
        "data.root",
        "an idx file of unsigned bytes",
        Phrase(f"{path} ({len(content)} bytes)"),
        "fetch it again",
    )
    return np.frombuffer(data, np.uint8).reshape(tuple(int(side) for side in shape))

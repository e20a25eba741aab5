"""Batches that are ready for the model, as tensors in safetensors files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from workers.checks import Phrase, absolute_path, require
from workers.data.base import Batch
from workers.data.indexed import IndexedDataset
from workers.errors import ConfigError, SecateurError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from workers.data.sampling import Pick


@dataclass
class Tensors(IndexedDataset):
    """Two files with ``images`` (N, C, H, W), float32 and normalised, and ``labels``, whose first dimension is N, if there are any.

    Labels of classes are int64 (N,). Others are for models with a loss of their own. Nothing is resized, cropped or augmented.
    """

    train_file: str  # calibration and training
    test_file: str

    elsewhere: ClassVar[tuple[str, ...]] = ("train_file", "test_file")

    def check(self) -> None:
        train, test = (self._tensors(split)["images"].shape[1:] for split in ("train", "test"))
        require(train == test, "data.test_file", f"images of {tuple(train)}, as in data.train_file", tuple(test))
        super().check()

    @property
    def input_shape(self) -> tuple[int, int, int]:
        channels, height, width = self._tensors("train")["images"].shape[1:]
        return channels, height, width

    @property
    def classes(self) -> int:
        labels = self.labels("train")
        return int(labels.max()) + 1 if labels.ndim == 1 and labels.dtype.kind == "i" else 0

    def check_outputs(self, outputs: int) -> None:
        super().check_outputs(outputs)
        self.check_labels(outputs)

    def labels(self, split: str) -> NDArray[np.generic]:
        return self._tensors("train" if split == "train" else "test")["labels"].numpy()

    def content(self) -> str:
        from workers.files import digest

        return " ".join(digest(self._path(split)) for split in ("train", "test"))

    def read(self, split: str, picks: list[Pick]) -> Iterator[Batch]:
        import torch

        tensors = self._tensors(split)
        for indices_N, _ in picks:
            chosen_N = torch.from_numpy(indices_N)
            yield Batch(tensors["images"][chosen_N], tensors["labels"][chosen_N])

    def _path(self, split: str) -> Path:
        return Path(self.train_file if split == "train" else self.test_file).expanduser()

    def _tensors(self, split: str) -> dict[str, Tensor]:
        path, where = self._path(split), f"data.{split}_file"
        require(path.is_file(), where, "an existing .safetensors file", str(path), absolute_path(str(path), path))
        return _read(path, where, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(path: Path, where: str, modified_ns: int) -> dict[str, Tensor]:
    import torch

    from workers.files import read_tensors

    try:
        tensors = read_tensors(path)
    except SecateurError as error:
        raise ConfigError(f"{where}: {error}") from error
    require("images" in tensors, where, "a tensor called images", Phrase(f"{sorted(tensors)} in {path}"))
    images = tensors["images"]
    fits = images.ndim == 4 and images.numel() > 0 and images.dtype == torch.float32
    require(fits, f"{where} (images)", "float32 of N x C x H x W", Phrase(f"{images.dtype} of {tuple(images.shape)}"))
    labels = tensors.get("labels", torch.full((len(images),), -1))
    require(labels.ndim > 0 and len(labels) == len(images), f"{where} (labels)", f"{len(images)} labels", Phrase(str(tuple(labels.shape))))
    return {"images": images, "labels": labels}

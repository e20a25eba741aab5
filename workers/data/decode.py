"""Decoding image files into batches, with timm's transforms."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils import data
from torchvision.transforms import v2

from workers.data.base import Batch
from workers.data.rgb import Reading, read_rgb
from workers.data.sampling import Pick
from workers.data.sources import Source

Transform = Callable[[Image.Image], Tensor]

RECIPES: dict[str, dict[str, Any]] = {
    "light": {"color_jitter": 0.0, "auto_augment": None, "re_prob": 0.0},
    "deit": {"color_jitter": 0.0, "auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel"},
}


def transforms(
    size: int, crop_fraction: float, interpolation: str, mean: list[float], std: list[float], recipe: str
) -> tuple[Transform, Transform]:
    """Returns the transform for testing, and the one for training by ``recipe`` (none, light or deit)."""
    wide_mean, wide_std = tuple(mean) * (3 // len(mean)), tuple(std) * (3 // len(std))
    common: dict[str, Any] = {"input_size": (3, size, size), "interpolation": interpolation, "mean": wide_mean, "std": wide_std}
    testing = create_transform(**common, is_training=False, crop_pct=crop_fraction)
    return testing, testing if recipe == "none" else create_transform(**common, is_training=True, **RECIPES[recipe])


def squared(size: int) -> Transform:
    """Returns the transform that stretches an image bilinearly to ``size`` x ``size``, float32 in [0, 1], not normalised."""
    return v2.Compose([v2.Resize((size, size), antialias=True), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()])


def batches(
    files: Sequence[str | Source],
    labels: NDArray[np.generic],
    picks: list[Pick],
    testing: Transform,
    training: Transform,
    reading: Reading,
    decoders: int,
) -> Iterator[Batch]:
    """Yields one batch for each pick, in order.

    ``decoders`` processes decode ahead, each on whole batches, so the result does not depend on their number.
    Raises: SecateurError that names a file that cannot be decoded.
    """
    reader = _Reader(files, labels, testing, training, reading)
    if decoders == 0:
        return (reader[pick] for pick in picks)
    generator = torch.Generator().manual_seed(0)  # otherwise the loader draws from torch's global generator
    loader = data.DataLoader(reader, batch_size=None, sampler=picks, num_workers=decoders, generator=generator)
    return iter(loader)


class _Reader(data.Dataset[Batch]):
    def __init__(
        self, files: Sequence[str | Source], labels: NDArray[np.generic], testing: Transform, training: Transform, reading: Reading
    ) -> None:
        self.files, self.labels, self.testing, self.training, self.reading = files, labels, testing, training, reading

    def __getitem__(self, pick: Pick) -> Batch:
        seeds = [None] * len(pick.indices_N) if pick.draws_ND is None else [int(draw * 2**32) for draw in pick.draws_ND[:, 0]]
        images = [self._image(self.files[index], seed) for index, seed in zip(pick.indices_N, seeds, strict=True)]
        return Batch(torch.stack(images), torch.from_numpy(self.labels[pick.indices_N]))

    def _image(self, path: str | Source, seed: int | None) -> Tensor:
        image = read_rgb(path, self.reading)
        if seed is None:
            return self.testing(image)
        with _seeded(seed):
            return self.training(image)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the three global generators that timm's transforms draw from, and restores them on exit."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)

"""Random weights and images for scripts, in case the checkpoint or the images of an experiment are missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from orchestrator.config import Experiment
from workers.data.base import Batch, Dataset
from workers.data.sampling import part
from workers.errors import ConfigError
from workers.messages import ImportTask
from workers.records import Destination
from workers.worker import Worker


@dataclass
class RandomImages(Dataset):
    """Images of normally distributed pixels, with random labels."""

    shape: tuple[int, int, int]
    labels: int

    def check(self) -> None:
        pass

    def fingerprint(self) -> str:
        return "random"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self.shape

    @property
    def classes(self) -> int:
        return self.labels

    def size(self, split: str) -> int:
        return 0

    def calibration(self, shard: int, shards: int) -> Iterator[Batch]:
        for batch in part(self.calibration_batches, shard, shards):
            generator = torch.Generator().manual_seed(batch)
            images_NCHW = torch.randn(self.calibration_batch_size, *self.shape, generator=generator)
            yield Batch(images_NCHW, torch.randint(max(1, self.labels), (len(images_NCHW),), generator=generator))

    def train(self, rank: int, world: int, epoch: int, batch_size: int) -> Iterator[Batch]:
        yield from ()

    def evaluation(self, split: str, shard: int, shards: int) -> Iterator[Batch]:
        yield from ()


def images(experiment: Experiment) -> tuple[Dataset, bool]:
    """Returns the experiment's data, or random images of the same shape, and whether the images are real."""
    try:
        experiment.data.check()
    except ConfigError:
        settings = {field.name: getattr(experiment.data, field.name) for field in fields(Dataset)}
        return RandomImages(**settings, shape=experiment.data.input_shape, labels=experiment.data.classes), False
    return experiment.data, True


def model_file(experiment: Experiment, worker: Worker, folder: Path) -> Path:
    """Returns the experiment's model as a file that workers read."""
    fresh = experiment.model.checkpoint is None
    task = ImportTask(experiment.model, fresh, experiment.seed, Destination("import", folder / "import"))
    return worker.import_model(task).file

"""The settings of a training, which trains the dense model from scratch or recovers the accuracy of a pruned one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from workers.checks import require
from workers.models.base import Output
from workers.precision import Precision

if TYPE_CHECKING:
    from workers.data.base import Dataset


MOST_LR = 1e6  # with more, a step of an optimizer exceeds float32


class Optimizer(Enum):
    ADAMW = "adamw"
    SGD = "sgd"


class Schedule(Enum):
    COSINE = "cosine"
    LINEAR = "linear"
    CYCLIC = "cyclic"  # linear from lr to final_lr, repeated every cycle_epochs


class Distill(Enum):
    NONE = "none"
    LOGITS = "logits"  # KL divergence from the dense model's softened predictions
    FEATURES = "features"  # mean squared error of the features before the classifier, relative to their own power


@dataclass
class Training:
    """Settings of one training."""

    epochs: int
    batch_size: int  # of all ranks together
    optimizer: Optimizer
    lr: float
    final_lr: float
    schedule: Schedule
    cycle_epochs: int
    warmup_epochs: float
    weight_decay: float
    momentum: float
    label_smoothing: float
    clip_norm: float  # 0: no clipping
    zero_stage: int
    precision: Precision
    recompute: bool  # the activations of blocks, in the backward pass
    ranks: int  # processes (GPUs) that train together; part of the result's identity
    distill: Distill
    distill_weight: float  # the label loss gets 1 - distill_weight
    temperature: float

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "recovery.epochs", "at least 1", self.epochs, "choose recovery=none to skip the training")
        require(self.ranks >= 1, "recovery.ranks", "at least 1", self.ranks)
        require(
            self.batch_size >= 1 and self.batch_size % self.ranks == 0,
            "recovery.batch_size",
            f"a positive multiple of the number of ranks, {self.ranks}",
            self.batch_size,
        )
        require(0 < self.lr <= MOST_LR, "recovery.lr", f"a positive number of at most {MOST_LR:g}", self.lr)
        require(0 <= self.final_lr <= self.lr, "recovery.final_lr", f"a number from 0 to {self.lr} (recovery.lr)", self.final_lr)
        require(
            self.schedule is not Schedule.CYCLIC or self.cycle_epochs >= 1,
            "recovery.cycle_epochs",
            "at least 1 with recovery.schedule=cyclic",
            self.cycle_epochs,
        )
        decay = min(self.epochs, self.cycle_epochs) if self.schedule is Schedule.CYCLIC else self.epochs
        require(0 <= self.warmup_epochs < decay, "recovery.warmup_epochs", f"at least 0 and less than {decay} epochs", self.warmup_epochs)
        require(self.weight_decay >= 0, "recovery.weight_decay", "0 or more", self.weight_decay)
        require(0 <= self.momentum < 1, "recovery.momentum", "a number in [0, 1)", self.momentum)
        require(0 <= self.label_smoothing < 1, "recovery.label_smoothing", "a number in [0, 1)", self.label_smoothing)
        require(self.clip_norm >= 0, "recovery.clip_norm", "0 or more", self.clip_norm)
        require(self.zero_stage in (0, 1, 2, 3), "recovery.zero_stage", "0, 1, 2 or 3", self.zero_stage)
        require(0 <= self.distill_weight <= 1, "recovery.distill_weight", "a fraction in [0, 1]", self.distill_weight)
        require(self.temperature > 0, "recovery.temperature", "a positive number", self.temperature)
        require(
            (self.distill is Distill.NONE) == (self.distill_weight == 0),
            "recovery.distill_weight",
            "0 with recovery.distill=none, a positive weight otherwise",
            self.distill_weight,
        )


def learning_rate(settings: Training, step: int, steps_per_epoch: int) -> float:
    """Returns the learning rate of a step (counted from 0): linear warm-up to ``lr``, then decay to ``final_lr`` at the last step.

    With ``cyclic`` the decay starts again every ``cycle_epochs``; the warm-up is part of the first cycle.
    """
    warmup = settings.warmup_epochs * steps_per_epoch
    if step < warmup:
        return settings.lr * (step + 1) / (math.floor(warmup) + 1)
    length = (settings.cycle_epochs if settings.schedule is Schedule.CYCLIC else settings.epochs) * steps_per_epoch
    first, last = max(math.ceil(warmup), step // length * length), (step // length + 1) * length - 1
    progress = (step - first) / max(1, last - first)
    decayed = 0.5 * (1 + math.cos(math.pi * progress)) if settings.schedule is Schedule.COSINE else 1 - progress
    return settings.final_lr + (settings.lr - settings.final_lr) * decayed


def check(settings: Training, data: Dataset, output: Output, taught: bool, where: str = "recovery", *, features: bool = True) -> None:
    """Raises ``ConfigError`` if a recipe cannot train a model with this ``output`` on this data.

    ``taught`` says whether there is a dense model to distil from, ``features`` whether the model returns the input of its classifier.
    """
    require(
        taught or settings.distill is Distill.NONE,
        f"{where}.distill",
        "none, since there is no dense model to distil from yet",
        settings.distill.value,
    )
    alone = settings.distill is not Distill.NONE and settings.distill_weight == 1.0
    require(
        alone or (output is not Output.FEATURES and data.classes > 0),
        f"{where}.distill",
        "a recipe that only distils from the dense model, since there are no labels or no classifier for a label loss",
        settings.distill.value,
        f"set {where}.distill=features and {where}.distill_weight=1",
    )
    require(
        output is Output.LOGITS or settings.distill is not Distill.LOGITS,
        f"{where}.distill",
        "none or features, since only classifiers have logits",
        settings.distill.value,
    )
    unsmoothed = "0, since the loss of a detector does not support label smoothing"
    require(output is not Output.BOXES or settings.label_smoothing == 0, f"{where}.label_smoothing", unsmoothed, settings.label_smoothing)
    require(
        features or settings.distill is not Distill.FEATURES,
        f"{where}.distill",
        "none or logits, since models of this family do not expose their features",
        settings.distill.value,
    )
    if settings.recompute and settings.zero_stage == 3:
        _check_recompute(where)
    samples = data.size("train")
    most = f"at most {samples}, the number of training samples"
    require(settings.batch_size <= samples, f"{where}.batch_size", most, settings.batch_size)


def _check_recompute(where: str) -> None:
    """Raises: ConfigError with torch before 2.10, where masked weights change if ZeRO-3 gathers them twice in a step."""
    import torch
    from torch.torch_version import TorchVersion

    expected = f"false for zero_stage=3 with torch {torch.__version__}, where masked weights would change"
    newer = TorchVersion(torch.__version__) >= "2.10"
    require(newer, f"{where}.recompute", expected, True, f"set {where}.zero_stage=2, or install torch 2.10 or newer")

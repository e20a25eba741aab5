"""Recovery: DeepSpeed finetuning that keeps zeros. (settings; the training function follows)"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Optimizer(Enum):
    ADAMW = "adamw"
    SGD = "sgd"


class Schedule(Enum):
    COSINE = "cosine"
    LINEAR = "linear"
    CYCLIC = "cyclic"  # linear from lr to final_lr in each cycle of cycle_epochs


class Distill(Enum):
    NONE = "none"
    LOGITS = "logits"
    FEATURES = "features"


class Precision(Enum):
    FP32 = "fp32"
    BF16 = "bf16"


@dataclass
class Recovery:
    """Settings of one training run; used for recovery and for training a dense model from scratch."""

    epochs: int
    batch_size: int  # global
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
    zero_stage: int  # 0..3
    precision: Precision
    ranks: int  # processes (GPUs) of the gang; part of the result's identity
    distill: Distill
    distill_weight: float  # weight of the distillation loss; the label loss gets 1 - distill_weight
    temperature: float

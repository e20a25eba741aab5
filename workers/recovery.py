"""Recovery: finetuning with DeepSpeed that keeps every pruned weight exactly zero. Also trains dense models from scratch."""

from __future__ import annotations

import math
import os
import socket
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from workers.checks import require
from workers.errors import SecateurError

if TYPE_CHECKING:
    from workers.messages import Record, RecoverTask


class Optimizer(Enum):
    ADAMW = "adamw"
    SGD = "sgd"


class Schedule(Enum):
    COSINE = "cosine"
    LINEAR = "linear"
    CYCLIC = "cyclic"  # linear from lr to final_lr, again in every cycle_epochs


class Distill(Enum):
    NONE = "none"
    LOGITS = "logits"  # KL divergence from the dense model's softened predictions
    FEATURES = "features"  # mean squared error of the features before the classifier, relative to their own power


class Precision(Enum):
    FP32 = "fp32"
    BF16 = "bf16"  # matrix products in bfloat16, weights and optimizer in float32


@dataclass
class Recovery:
    """Settings of one training run."""

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
    ranks: int  # processes (GPUs) of the gang; part of the result's identity
    distill: Distill
    distill_weight: float  # the label loss gets 1 - distill_weight
    temperature: float

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "recovery.epochs", "at least 1", self.epochs, "recovery=none leaves it out")
        require(self.ranks >= 1, "recovery.ranks", "at least 1", self.ranks)
        require(
            self.batch_size >= 1 and self.batch_size % self.ranks == 0,
            "recovery.batch_size",
            f"a multiple of the {self.ranks} ranks",
            self.batch_size,
        )
        require(self.lr > 0, "recovery.lr", "a positive number", self.lr)
        require(0 <= self.final_lr <= self.lr, "recovery.final_lr", f"0 to {self.lr} (recovery.lr)", self.final_lr)
        require(
            self.schedule is not Schedule.CYCLIC or self.cycle_epochs >= 1,
            "recovery.cycle_epochs",
            "at least 1 for schedule=cyclic",
            self.cycle_epochs,
        )
        require(0 <= self.warmup_epochs < self.epochs, "recovery.warmup_epochs", f"0 to less than {self.epochs}", self.warmup_epochs)
        require(self.weight_decay >= 0, "recovery.weight_decay", "0 or more", self.weight_decay)
        require(0 <= self.momentum < 1, "recovery.momentum", "0 to less than 1", self.momentum)
        require(0 <= self.label_smoothing < 1, "recovery.label_smoothing", "0 to less than 1", self.label_smoothing)
        require(self.clip_norm >= 0, "recovery.clip_norm", "0 or more", self.clip_norm)
        require(self.zero_stage in (0, 1, 2, 3), "recovery.zero_stage", "0, 1, 2 or 3", self.zero_stage)
        require(0 <= self.distill_weight <= 1, "recovery.distill_weight", "a fraction in [0, 1]", self.distill_weight)
        require(self.temperature > 0, "recovery.temperature", "a positive number", self.temperature)
        require(
            (self.distill is Distill.NONE) == (self.distill_weight == 0),
            "recovery.distill_weight",
            "a positive weight exactly when recovery.distill is not none",
            self.distill_weight,
        )


def learning_rate(recovery: Recovery, step: int, steps_per_epoch: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up to ``lr``, then down to ``final_lr`` at the last step."""
    warmup = recovery.warmup_epochs * steps_per_epoch
    if step < warmup:
        return recovery.lr * (step + 1) / (math.floor(warmup) + 1)
    span = recovery.cycle_epochs * steps_per_epoch if recovery.schedule is Schedule.CYCLIC else recovery.epochs * steps_per_epoch - warmup
    position = step - math.ceil(warmup)
    done = (position % span if recovery.schedule is Schedule.CYCLIC else position) / max(1.0, math.floor(span) - 1)
    left = 0.5 * (1 + math.cos(math.pi * min(1.0, done))) if recovery.schedule is Schedule.COSINE else 1 - min(1.0, done)
    return recovery.final_lr + (recovery.lr - recovery.final_lr) * left


def recover(task: RecoverTask) -> Record | None:
    """One rank's part of a gang; rank 0 returns the result. RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are set.

    Raises: SecateurError if no step of an epoch was finite, or a pruned weight moved.
    """
    from workers.recovery_training import train

    return train(task)


def run_gang(task: RecoverTask, ranks: int, threads: int) -> Record:
    """Train on this machine: in this process if ``ranks`` is 1, else in as many new ones. Raises what a rank raised."""
    from workers.files import read_record

    port = _free_port()
    if ranks == 1:
        before = dict(os.environ)
        try:
            _rank(0, 1, port, threads, task)
        finally:
            os.environ.clear()
            os.environ.update(before)
    else:
        _spawn(ranks, port, threads, task)
    record = read_record(task.to.directory)
    assert record is not None
    return record


def _rank(rank: int, ranks: int, port: int, threads: int, task: RecoverTask) -> None:
    import torch

    os.environ["SECATEUR_WORKER"] = f"rank {rank}"
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"})
    torch.set_num_threads(threads)
    recover(task)


def _spawn(ranks: int, port: int, threads: int, task: RecoverTask) -> None:
    """Processes of their own, so that a failure of one ends all; its error arrives here as it was raised."""
    from concurrent.futures import ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    with ProcessPoolExecutor(ranks, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_rank, rank, ranks, port, threads, task) for rank in range(ranks)]
        done, left = wait(futures, return_when="FIRST_EXCEPTION")
        if left:
            for process in list(pool._processes.values()):
                process.terminate()
        try:
            for future in done:
                future.result()
        except BrokenProcessPool as error:
            raise SecateurError("a process of the training gang died; run the same command again: it resumes at its last epoch") from error


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]

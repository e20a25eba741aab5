"""Recovery: finetuning with DeepSpeed that keeps every pruned weight exactly zero. Also trains dense models from scratch."""

from __future__ import annotations

import math
import os
import socket
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from workers.checks import require
from workers.errors import SecateurError
from workers.models.base import Output

if TYPE_CHECKING:
    from workers.data.base import Dataset
    from workers.messages import Record, RecoverTask

ERROR_SECONDS = 5.0  # between the first failure of a gang and the end of those that are still at work


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
        decay = min(self.epochs, self.cycle_epochs) if self.schedule is Schedule.CYCLIC else self.epochs
        require(0 <= self.warmup_epochs < decay, "recovery.warmup_epochs", f"0 to less than {decay} epochs", self.warmup_epochs)
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
    """Learning rate of a step, counted from 0: linear warm-up to ``lr``, then down to exactly ``final_lr`` at the last step.

    With ``cyclic`` every ``cycle_epochs`` are a descent of their own; the warm-up is part of the first.
    """
    warmup = recovery.warmup_epochs * steps_per_epoch
    if step < warmup:
        return recovery.lr * (step + 1) / (math.floor(warmup) + 1)
    length = (recovery.cycle_epochs if recovery.schedule is Schedule.CYCLIC else recovery.epochs) * steps_per_epoch
    first, last = max(math.ceil(warmup), step // length * length), (step // length + 1) * length - 1
    done = (step - first) / max(1, last - first)
    left = 0.5 * (1 + math.cos(math.pi * done)) if recovery.schedule is Schedule.COSINE else 1 - done
    return recovery.final_lr + (recovery.lr - recovery.final_lr) * left


def check(recovery: Recovery, data: Dataset, output: Output, taught: bool, where: str = "recovery", *, features: bool = True) -> None:
    """Raise ``ConfigError`` if a recipe cannot train a model with such ``output`` on such data.

    ``taught``: whether there is a dense model to learn from. ``features``: whether the model tells what goes into its classifier.
    """
    require(
        taught or recovery.distill is Distill.NONE,
        f"{where}.distill",
        "none, since there is no dense model to learn from yet",
        recovery.distill.value,
    )
    alone = recovery.distill is not Distill.NONE and recovery.distill_weight == 1.0
    require(
        alone or (output is not Output.FEATURES and data.classes > 0),
        f"{where}.distill",
        "a recipe that learns from the dense model alone (distill=features, distill_weight=1), since there are no labels to learn from",
        recovery.distill.value,
    )
    require(
        output is Output.LOGITS or recovery.distill is not Distill.LOGITS,
        f"{where}.distill",
        "none or features, since a model that is no classifier has no logits",
        recovery.distill.value,
    )
    smooth = "0, since a detector has a loss of its own"
    require(output is not Output.BOXES or recovery.label_smoothing == 0, f"{where}.label_smoothing", smooth, recovery.label_smoothing)
    require(
        features or recovery.distill is not Distill.FEATURES,
        f"{where}.distill",
        "none or logits, since models of this family do not tell their features",
        recovery.distill.value,
    )
    samples = data.size("train")
    require(recovery.batch_size <= samples, f"{where}.batch_size", f"at most the {samples} training samples", recovery.batch_size)


def recover(task: RecoverTask, device: str | None = None) -> Record | None:
    """One rank's part of a gang; rank 0 returns the result. RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are set.

    ``device`` is ``cpu`` or ``cuda``; None: what the launcher's process group is for, and without one a GPU if there is one.
    Raises: ConfigError (see ``check``); SecateurError if no step of an epoch was finite, or a pruned weight moved.
    """
    from workers.recovery_training import train

    return train(task, device)


def run_gang(task: RecoverTask, ranks: int, threads: int, device: str | None = None) -> Record:
    """Train on this machine: in this process if ``ranks`` is 1, else in as many new ones. Raises what a rank raised."""
    from workers.files import read_record

    arguments = (ranks, _free_port(), threads, task, device)
    if ranks == 1:
        before = dict(os.environ)
        try:
            _rank(0, *arguments)
        finally:
            os.environ.clear()
            os.environ.update(before)
    else:
        _spawn(ranks, threads, arguments)
    record = read_record(task.to.directory)
    assert record is not None
    return record


def _rank(rank: int, ranks: int, port: int, threads: int, task: RecoverTask, device: str | None) -> None:
    import torch

    os.environ["SECATEUR_WORKER"] = f"rank {rank}"
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"})
    torch.set_num_threads(threads)
    recover(task, device)


def _spawn(ranks: int, threads: int, arguments: tuple[Any, ...]) -> None:
    """Processes of their own, so that a failure of one ends all; its error arrives here as it was raised."""
    from concurrent.futures import ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    start: dict[str, Any] = {"mp_context": get_context("spawn"), "initializer": _begin, "initargs": (threads,)}
    with ProcessPoolExecutor(ranks, **start) as pool:
        futures = [pool.submit(_rank, rank, *arguments) for rank in range(ranks)]
        processes = list(pool._processes.values())
        try:
            _, left = wait(futures, return_when="FIRST_EXCEPTION")
            wait(left, timeout=ERROR_SECONDS)  # the one that failed breaks the connections of the others: hear what each has to say
        finally:
            if not all(future.done() for future in futures):
                for process in processes:
                    process.kill()
    errors = [error for error in (future.exception() for future in futures) if error is not None]
    ours = [error for error in errors if isinstance(error, SecateurError)]
    died = [error for error in errors if isinstance(error, BrokenProcessPool)]
    if ours or (errors and not died):
        raise (ours or errors)[0]
    if died:
        raise SecateurError(
            "a process of the training gang died; run the same command again: it resumes after its last complete epoch"
        ) from died[0]


def _begin(threads: int) -> None:
    """Before anything is imported that starts threads of its own: it would start as many as there are cores, in each rank.

    And leave nothing behind that trains on, and writes, when the process that started this one was killed.
    """
    import threading
    from multiprocessing import parent_process

    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), str(threads))
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]

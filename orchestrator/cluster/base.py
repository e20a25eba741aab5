"""What the pipeline asks of a cluster: run verbs on workers, and gangs of processes that train together."""

from __future__ import annotations

import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from workers.checks import require

if TYPE_CHECKING:
    from workers.messages import TrainTask
    from workers.records import Record

Task = TypeVar("Task")
Result = TypeVar("Result")


class Device(Enum):
    AUTO = "auto"  # cuda where there is one
    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True)
class Resources:
    """What there is to plan with: workers, their device kind, threads of each, and memory each may use (bytes)."""

    workers: int
    device: str
    threads: int
    memory_bytes: int


@dataclass
class Hardware:
    """Rates that predictions are made with, per worker. Assumed until measured; they never change a result."""

    name: str
    matmul_gflops: float  # large float32 matrix products
    model_efficiency: float  # fraction of it that a network's forward and backward reach
    collect_efficiency: float  # ... that sums of outer products reach
    score_efficiency: float  # ... that factorisation and elimination reach, with the sorting that follows; it grows with the block size
    solve_efficiency: float  # ... that re-fitting reaches
    disk_gbs: float  # writing results with their checksums, GB/s
    start_seconds: float  # starting the workers
    gang_seconds: float  # starting a training gang
    read_gbs: float  # checking and reading results, GB/s
    memory_gbs: float  # taking memory into use, GB/s
    link_gbs: float  # between the ranks of a training, GB/s of each
    bf16_speedup: float  # of training with bfloat16 products, over float32

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name == "name":
                continue
            free = name.endswith("_seconds")  # what takes no time is fine, a rate of nothing is not
            expected = "a number that is not negative" if free else "a positive number"
            require(value >= 0 if free else value > 0, f"cluster.hardware.{name}", expected, value)


@dataclass
class Cluster(ABC):
    """Runs verbs. Its settings never change the bytes of a result, except ``threads`` (see there)."""

    workers: int | None  # None: one per GPU, or 2 where there is none; attached to a cluster, as many as it has room for
    device: Device
    threads: int | None  # of a CPU worker or rank; None: half the cores. Other numbers may change the last bits of results
    memory_gb: float | None  # one worker may use; None: the GPU's memory, or its share of 80 % of the machine's
    hardware: Hardware

    def __post_init__(self) -> None:
        require(self.workers is None or self.workers >= 1, "cluster.workers", "at least 1, or null for all devices", self.workers)
        require(self.threads is None or self.threads >= 1, "cluster.threads", "at least 1, or null for half the cores", self.threads)
        require(self.memory_gb is None or self.memory_gb > 0, "cluster.memory_gb", "a positive number of GB, or null", self.memory_gb)

        self.warnings: list[str] = []  # workers that died or were missing; for the report

    @abstractmethod
    def resources(self) -> Resources:
        """What this cluster would offer, without starting anything that is not running."""

    @abstractmethod
    def start(self, ranks: int) -> None:
        """Make sure of workers, and of a gang of ``ranks``. Raises: ConfigError naming what the cluster lacks."""

    @abstractmethod
    def ready(self) -> None:
        """Start the workers if they are not running: at first, and after a gang had their devices."""

    @abstractmethod
    def stop(self) -> None:
        """Release everything that ``start`` took."""

    @abstractmethod
    def map(
        self,
        verb: Callable[[Any, Task], Result],
        tasks: Sequence[Task],
        done: Callable[[int, Result], None],
        alone: bool = False,
    ) -> list[Result]:
        """Results of ``verb`` (a method of ``Worker``) on independent tasks, in the order of the tasks.

        Tasks start in the given order; ``done(index, result)`` is called as each ends. A task whose worker dies is given to another.
        ``alone``: no two tasks at a time on the cores of one machine, since they are timed.
        Raises: the error of the first task that fails.
        """

    @abstractmethod
    def gang(self, task: TrainTask) -> Record:
        """Train with ``task.training.ranks`` processes; returns rank 0's result."""


def devices_here(device: Device) -> tuple[str, int]:
    """The device kind to use on this machine and how many of them there are (0 for the CPU).

    Raises: ConfigError if CUDA is asked for and there is none.
    """
    import torch

    found = torch.cuda.device_count() if device is not Device.CPU and torch.cuda.is_available() else 0
    require(device is not Device.CUDA or found > 0, "cluster.device", "cpu, or a machine with a GPU that torch can see", "cuda")
    return ("cuda", found) if found else ("cpu", 0)


def cores_here() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def default_threads() -> int:
    """Half the cores, whatever the number of workers: one, two or three workers then give equal bytes."""
    return max(1, cores_here() // 2)


def threads_of_rank(threads: int | None, here: int) -> int:
    """Of each of ``here`` ranks that train on this machine: as set, else as a worker has, or their share of the cores where that is less.

    Ranks wait for each other in every step, so one that waits for a core holds up all.
    """
    return threads or max(1, min(default_threads(), cores_here() // here))


def memory_of_worker(cluster: Cluster, device: str, workers: int) -> int:
    """Bytes a worker may use: as set, else the GPU's memory, else its share of 80 % of the machine's."""
    if cluster.memory_gb is not None:
        return int(cluster.memory_gb * 1e9)
    if device == "cuda":
        import torch

        return torch.cuda.get_device_properties(0).total_memory
    import psutil

    return int(0.8 * psutil.virtual_memory().total / workers)


def device_name(device: str) -> str:
    """Which processor or GPU this machine has; workers of one run are taken to be alike."""
    if device != "cuda":
        return processor()
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else device


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or os.uname().machine

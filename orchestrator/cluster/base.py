"""The interface of a cluster, which runs verbs on workers and gangs of processes that train together."""

from __future__ import annotations

import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
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
    """The number of workers, their kind of device, and the threads and memory (bytes) that each may use."""

    workers: int
    device: str
    threads: int
    memory_bytes: int


@dataclass
class Hardware:
    """Rates of a worker that predictions use. They are assumed until you measure them, and never change a result."""

    name: str
    matmul_gflops: float  # large float32 matrix products
    model_efficiency: float  # the fraction of it that a model's forward and backward passes reach
    collect_efficiency: float  # ... that sums of outer products reach
    score_efficiency: float  # ... that factorisation and elimination reach, with the sorting that follows; it grows with the block size
    solve_efficiency: float  # ... that re-fitting reaches
    disk_gbs: float  # to write results with their checksums, GB/s
    start_seconds: float  # to start the workers
    gang_seconds: float  # to start a training gang
    read_gbs: float  # to check and read results, GB/s
    memory_gbs: float  # to touch new memory, GB/s
    link_gbs: float  # between the ranks of a training, GB/s for each
    bf16_speedup: float  # of passes with bfloat16 products, over float32

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name == "name":
                continue
            may_be_zero = name.endswith("_seconds")
            expected = "0 or more" if may_be_zero else "a positive number"
            require(value >= 0 if may_be_zero else value > 0, f"cluster.hardware.{name}", expected, value)


@dataclass
class Cluster(ABC):
    """Runs verbs. Its settings never change the bytes of a result, except ``device`` and ``threads``."""

    workers: int | None  # None: one per GPU, or 2 without a GPU; attached to a cluster, as many as it has room for
    device: Device
    threads: int | None  # per CPU worker or rank; None: half of the cores. Other numbers may change the last bits of results
    memory_gb: float | None  # per worker; None: the memory of the GPU, or a share of 80 % of the machine's
    hardware: Hardware

    def __post_init__(self) -> None:
        require(self.workers is None or self.workers >= 1, "cluster.workers", "at least 1, or null for all devices", self.workers)
        require(self.threads is None or self.threads >= 1, "cluster.threads", "at least 1, or null for half of the cores", self.threads)
        require(self.memory_gb is None or self.memory_gb > 0, "cluster.memory_gb", "a positive number of GB, or null", self.memory_gb)

        self.warnings: list[str] = []  # on workers that died or were missing, for the report

    @abstractmethod
    def resources(self) -> Resources:
        """Returns the resources of this cluster, without starting anything."""

    @property
    @abstractmethod
    def runs_at_once(self) -> int:
        """Of how many runs side by side each has a worker of this cluster."""

    @abstractmethod
    def shared_by(self, runs: int) -> AbstractContextManager[dict[str, Any]]:
        """Starts what ``runs`` runs side by side share, until the context ends, and gives the settings of this cluster for each of them.

        Raises: ConfigError if the cluster does not answer.
        """

    @abstractmethod
    def start(self, ranks: int) -> None:
        """Starts the cluster, and checks that it has room for the workers and for a gang of ``ranks``.

        Raises: ConfigError that names what the cluster lacks.
        """

    @abstractmethod
    def ready(self) -> None:
        """Starts the workers if they are not running: at first, and after a gang used their devices."""

    @abstractmethod
    def release(self) -> None:
        """Ends the workers, whose devices a gang needs. ``ready`` starts new ones."""

    @abstractmethod
    def stop(self) -> None:
        """Releases everything that ``start`` acquired."""

    @abstractmethod
    def map(
        self,
        verb: Callable[[Any, Task], Result],
        tasks: Sequence[Task],
        done: Callable[[int, Result], None],
        alone: bool = False,
    ) -> list[Result]:
        """Runs ``verb``, a method of ``Worker``, on independent tasks and returns the results in the order of the tasks.

        Tasks start in the given order, and ``done(index, result)`` is called when each ends. If a worker dies, another gets its task.
        With ``alone``, tasks are timed, so no two run on the cores of one machine at the same time.
        Raises: the error of the first task that fails.
        """

    @abstractmethod
    def gang(self, task: TrainTask) -> Record:
        """Trains with ``task.training.ranks`` processes and returns the result of rank 0."""


def devices_here(device: Device) -> tuple[str, int]:
    """Returns the kind of device to use on this machine, and how many GPUs it has (0 for the CPU).

    Raises: ConfigError if ``device`` is CUDA and this machine has no GPU.
    """
    import torch

    gpus = torch.cuda.device_count() if device is not Device.CPU and torch.cuda.is_available() else 0
    require(device is not Device.CUDA or gpus > 0, "cluster.device", "cpu, or a machine with a GPU that torch can see", "cuda")
    return ("cuda", gpus) if gpus else ("cpu", 0)


def cores_here() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def default_threads() -> int:
    """Returns half of the cores, whatever the number of workers, so that the number of workers does not change the bytes of a result."""
    return max(1, cores_here() // 2)


def threads_of_rank(threads: int | None, ranks: int) -> int:
    """Returns the threads of each of ``ranks`` ranks on this machine: as set, else those of a worker, or fewer if the cores do not suffice.

    Ranks wait for each other in every step, so one that waits for a core delays all.
    """
    return threads or max(1, min(default_threads(), cores_here() // ranks))


def memory_of_worker(cluster: Cluster, device: str, workers: int) -> int:
    """Returns the bytes that a worker may use: as set, else the memory of the GPU, else its share of 80 % of the machine's memory."""
    if cluster.memory_gb is not None:
        return int(cluster.memory_gb * 1e9)
    if device == "cuda":
        import torch

        return torch.cuda.get_device_properties(0).total_memory
    import psutil

    return int(0.8 * psutil.virtual_memory().total / workers)


def device_name(device: str) -> str:
    """Returns the name of this machine's processor or GPU. The workers of a run are assumed to be alike."""
    if device != "cuda":
        return processor()
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else device


def processor() -> str:
    """Returns the name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or os.uname().machine

"""Runs everything in this process, for debugging. A gang of several ranks runs in processes on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.base import (
    Cluster,
    Resources,
    Result,
    Task,
    cores_here,
    default_threads,
    devices_here,
    memory_of_worker,
    threads_of_rank,
)
from workers.checks import require

if TYPE_CHECKING:
    from workers.messages import TrainTask
    from workers.records import Record
    from workers.worker import Worker


@dataclass
class Local(Cluster):
    """A cluster with one worker: this process."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._worker: Worker | None = None
        require(
            self.workers in (None, 1), "cluster.workers", "1, since cluster=local runs in this process", self.workers, "use cluster=ray"
        )

    def resources(self) -> Resources:
        device, _ = devices_here(self.device)
        return Resources(1, device, self.threads or default_threads(), memory_of_worker(self, device, 1))

    @property
    def runs_at_once(self) -> int:
        return max(1, cores_here() // self.resources().threads)

    @contextmanager
    def shared_by(self, runs: int) -> Iterator[dict[str, Any]]:
        """Divides the cores and the memory, unless the settings say how much each process uses."""
        resources = self.resources()
        threads = self.threads or max(1, min(resources.threads, cores_here() // runs))
        share = 1 if self.memory_gb is not None or resources.device == "cuda" else runs
        yield {"threads": threads, "memory_gb": resources.memory_bytes / share / 1e9}

    def start(self, ranks: int) -> None:
        from workers.worker import Worker

        resources = self.resources()
        self._worker = Worker(resources.device, resources.threads)

    def stop(self) -> None:
        self._worker = None

    def ready(self) -> None:
        pass

    def release(self) -> None:
        pass

    def map(
        self, verb: Callable[[Any, Task], Result], tasks: Sequence[Task], done: Callable[[int, Result], None], alone: bool = False
    ) -> list[Result]:
        results = []
        for index, task in enumerate(tasks):
            results.append(verb(self._worker, task))
            done(index, results[-1])
        return results

    def gang(self, task: TrainTask) -> Record:
        from workers.training.gang import run_gang

        resources = self.resources()
        ranks = task.training.ranks
        return run_gang(task, ranks, threads_of_rank(self.threads, ranks), resources.device)

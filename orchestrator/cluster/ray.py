"""Workers as Ray actors, gangs through Ray Train. The only file that knows Ray."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.base import Cluster, Device, Resources, Result, Task, cores_here, default_threads, devices_here, memory_of_worker
from workers.checks import require
from workers.errors import ConfigError, SecateurError

if TYPE_CHECKING:
    from workers.messages import Record, RecoverTask

CPU_WORKERS = 2


@dataclass
class Ray(Cluster):
    """A Ray cluster: started on this machine, or attached to."""

    address: str | None  # None: start one here; "auto" or "ray://host:port": attach
    cpus_per_worker: float | None  # Ray's bookkeeping; None: as many as threads
    wait_seconds: float  # for the cluster to have what is needed, when attached
    retries: int  # of a task whose worker died, and of a gang

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.wait_seconds > 0, "cluster.wait_seconds", "a positive number of seconds", self.wait_seconds)
        require(self.retries >= 0, "cluster.retries", "0 or more", self.retries)
        self._actors: list[Any] = []
        self._joined = False

    def resources(self) -> Resources:
        # What is asked for counts where the workers may be elsewhere; "auto" takes this machine for an example of the others.
        device, found = ("cuda", 0) if self.device is Device.CUDA else devices_here(self.device)
        workers = self.workers or found or CPU_WORKERS
        require(
            device == "cpu" or self.memory_gb is not None or found > 0,
            "cluster.memory_gb",
            "the memory of one GPU, since it cannot be read here",
            self.memory_gb,
        )
        return Resources(workers, device, self.threads or default_threads(), memory_of_worker(self, device, workers))

    def _needs(self, count: int) -> dict[str, float]:
        """Ray resources of ``count`` workers."""
        here = self.resources()
        cpus = self.cpus_per_worker if self.cpus_per_worker is not None else float(here.threads)
        return {"CPU": count * cpus} | ({"GPU": float(count)} if here.device == "cuda" else {})

    def start(self, ranks: int) -> None:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        if self.address is None:
            import ray

            ray.init(address="local", num_cpus=cores_here(), include_dashboard=False, **quiet)
        else:
            self._attach(quiet)
        self._joined = True
        for what, count in (("cluster.workers", self.resources().workers), ("the ranks of training or recovery", ranks)):
            self._wait_until_cluster_has(what, self._needs(count))

    def _attach(self, quiet: dict[str, Any]) -> None:
        """Join a running cluster, with the token on this machine if it asks for one."""
        self._knock()
        if "RAY_AUTH_MODE" not in os.environ:  # read when Ray is imported
            os.environ["RAY_AUTH_MODE"] = "token" if _has_token() and not _answers_without_token(str(self.address)) else "disabled"
        import ray

        try:
            ray.init(address=self.address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"cluster.address: no Ray cluster answers at {self.address!r} ({reason}); start one with `ray start`"
            ) from error

    def _knock(self) -> None:
        """Ray would wait for minutes at an address where nobody listens. Raises: ConfigError."""
        host, _, port = str(self.address).removeprefix("ray://").rpartition(":")
        if host and port.isdigit():
            try:
                socket.create_connection((host, int(port)), timeout=10).close()
            except OSError as error:
                raise ConfigError(
                    f"cluster.address: nothing answers at {self.address!r} ({error.strerror or error}); start a cluster with `ray start`"
                ) from error

    def _wait_until_cluster_has(self, what: str, needed: dict[str, float]) -> None:
        import ray

        limit = time.monotonic() + (self.wait_seconds if self.address else 0)
        while True:
            total = ray.cluster_resources()
            lacking = {kind: amount for kind, amount in needed.items() if total.get(kind, 0) < amount}
            if not lacking:
                return
            if time.monotonic() >= limit:
                gaps = ", ".join(f"{amount:g} {kind} needed, {total.get(kind, 0):g} there" for kind, amount in lacking.items())
                raise ConfigError(f"{what}: more than the cluster has ({gaps}); lower it, lower cluster.cpus_per_worker, or add nodes")
            time.sleep(1)

    def stop(self) -> None:
        import ray

        self._release()
        if self._joined:
            ray.shutdown()
            self._joined = False

    def _release(self) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _new_actor(self, index: int) -> Any:
        import ray

        from workers.worker import Worker

        here, threads = self.resources(), str(self.resources().threads)
        needs = self._needs(1)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        environment = dict.fromkeys(names, threads) | {"SECATEUR_WORKER": f"worker {index}"}
        options = {"num_cpus": needs["CPU"], "num_gpus": needs.get("GPU", 0), "runtime_env": {"env_vars": environment}, "max_restarts": 0}
        return ray.remote(Worker).options(**options).remote(here.device, here.threads)

    def ready(self) -> None:
        """Start the workers, and wait for them no longer than ``wait_seconds``. Raises: SecateurError naming what they lack."""
        import ray

        if self._actors:
            return
        self._actors = [self._new_actor(index) for index in range(self.resources().workers)]
        pings = [actor.describe.remote() for actor in self._actors]
        ready, missing = ray.wait(pings, num_returns=len(pings), timeout=max(self.wait_seconds, 60))
        if missing:
            free = ", ".join(f"{amount:g} {kind}" for kind, amount in ray.available_resources().items() if kind in ("CPU", "GPU"))
            raise SecateurError(
                f"cluster.workers: {len(ready)} of {len(pings)} workers started in time; "
                f"each needs {self._needs(1)}, free now: {free or 'none'}"
            )
        ray.get(ready)

    def map(self, verb: Callable[[Any, Task], Result], tasks: Sequence[Task], done: Callable[[int, Result], None]) -> list[Result]:
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        if not tasks:
            return []
        self.ready()
        waiting, idle = deque(range(len(tasks))), deque(range(len(self._actors)))
        running: dict[Any, tuple[int, int]] = {}
        attempts = [0] * len(tasks)
        results: dict[int, Result] = {}
        while waiting or running:
            while waiting and idle:
                index, worker = waiting.popleft(), idle.popleft()
                running[getattr(self._actors[worker], verb.__name__).remote(tasks[index])] = (index, worker)
            for reference in ray.wait(list(running), num_returns=1)[0]:
                index, worker = running.pop(reference)
                try:
                    results[index] = ray.get(reference)
                except RayTaskError as error:
                    raise (error.cause if isinstance(error.cause, SecateurError) else error.as_instanceof_cause()) from None
                except RayActorError as error:
                    attempts[index] += 1
                    self._replace(worker, verb.__name__, attempts[index], error)
                    waiting.appendleft(index)
                else:
                    done(index, results[index])
                idle.append(worker)
        return [results[index] for index in range(len(tasks))]

    def _replace(self, worker: int, verb: str, attempts: int, error: Exception) -> None:
        reason = next((line.strip() for line in str(error).splitlines() if "cause" in line.lower() or "memory" in line.lower()), "it died")
        if attempts > self.retries:
            raise SecateurError(
                f"{verb}: a task lost {attempts} workers in a row ({reason}); if memory ran out, lower cluster.memory_gb or "
                "pruner.block_size, then run the same command again: finished work is kept"
            ) from error
        self.warnings.append(f"worker {worker} died during {verb} and was replaced ({reason})")
        self._actors[worker] = self._new_actor(worker)

    def gang(self, task: RecoverTask) -> Record:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        from workers.files import read_record

        self._release()  # their devices are needed; a worker is a cache
        here, ranks = self.resources(), task.recovery.ranks
        trainer = TorchTrainer(
            _train,
            train_loop_config={"task": task, "threads": here.threads, "device": here.device},
            scaling_config=ScalingConfig(num_workers=ranks, use_gpu=here.device == "cuda", resources_per_worker=self._needs(1)),
            run_config=RunConfig(storage_path=str(task.to.directory / "ray"), failure_config=FailureConfig(max_failures=self.retries)),
        )
        try:
            trainer.fit()
        except Exception as error:
            raise _cause(error) from None
        record = read_record(task.to.directory)
        if record is None:
            raise SecateurError(
                f"{task.to.directory}: the training gang ended without a result that this driver can see; is the store on a shared disk?"
            )
        shutil.rmtree(task.to.directory / "ray", ignore_errors=True)
        return record


def _has_token() -> bool:
    return any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or (Path.home() / ".ray" / "auth_token").exists()


def _answers_without_token(address: str) -> bool:
    """Whether a cluster talks to strangers. Asked from another process, since Ray settles its mode once per process."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        asked = subprocess.run(command, env=os.environ | {"RAY_AUTH_MODE": "disabled"}, capture_output=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0


def _train(config: dict[str, Any]) -> None:
    """What each rank of a gang does."""
    import torch

    from workers.recovery import recover

    os.environ["SECATEUR_WORKER"] = f"rank {os.environ['RANK']}"
    torch.set_num_threads(config["threads"])
    recover(config["task"], config["device"])


def _cause(error: BaseException) -> BaseException:
    """The failure of ours inside Ray Train's, if there is one."""
    failures = getattr(error, "worker_failures", {})
    for inner in [*failures.values(), error.__cause__]:
        while inner is not None:
            cause = getattr(inner, "cause", None) or getattr(inner, "_cause", None) or inner.__cause__
            if isinstance(inner, SecateurError):
                return inner
            inner = cause
    return error

"""Runs workers as Ray actors and gangs with Ray Train."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.attach import attached, no_answer
from orchestrator.cluster.base import Cluster, Device, Resources, Result, Task, default_threads, devices_here, memory_of_worker
from orchestrator.cluster.capacity import Amounts, described, room, total_described
from orchestrator.cluster.crew import Actors, Crew, WorkerDied
from orchestrator.cluster.doors import closed_doors
from orchestrator.cluster.gang import cause, train_rank
from workers.checks import Phrase, require
from workers.disks import full
from workers.errors import ConfigError, SecateurError, first_line
from workers.models.permitted import permitted

if TYPE_CHECKING:
    from workers.messages import TrainTask
    from workers.records import Record

CPU_WORKERS = 2
PATIENT_SECONDS = 1e6  # how long to wait for a place that another run has


@dataclass
class Ray(Cluster):
    """A Ray cluster, which is started on this machine or already runs. Nodes can join and leave; those with room for a worker are used."""

    address: str | None  # None: start a cluster here; "auto", "host:port" or "ray://host:port": attach to one
    cpus_per_worker: float | None  # that a worker requests from Ray; None: as many as threads
    resources_per_worker: dict[str, float] | None  # further requests of a worker or a rank; with cuda, a GPU is implied
    wait_seconds: float  # how long to wait for room for the workers or for a gang
    retries: int  # after a worker died during a task or while it started, and after a gang failed
    shared: bool  # whether other runs use the same places: waits for one as long as they take
    insecure: bool  # whether to attach to a cluster on other machines that asks for no token

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.cpus_per_worker is None or self.cpus_per_worker >= 0, "cluster.cpus_per_worker", "0 or more", self.cpus_per_worker)
        self._more: Amounts = self.resources_per_worker or {}
        for kind, amount in self._more.items():
            where = f"cluster.resources_per_worker.{kind}"
            require(kind != "CPU", where, "another resource than CPU", amount, "set cluster.cpus_per_worker")
            require(amount > 0, where, "a positive number", amount)
            require(kind != "GPU" or amount <= 1, where, "at most 1, since a worker uses one GPU", amount)
        require(self.wait_seconds > 0, "cluster.wait_seconds", "a positive number of seconds", self.wait_seconds)
        require(self.retries >= 0, "cluster.retries", "0 or more", self.retries)
        self._crew: Crew | None = None
        self._joined = ExitStack()
        self._counted: int | None = None

    def resources(self) -> Resources:
        # Workers may be on other machines, so device=cuda is taken as set; device=auto assumes that they are like this machine.
        device, gpus = ("cuda", 0) if self.device is Device.CUDA else devices_here(self.device)
        threads, share = self.threads or default_threads(), self._more.get("GPU", 1.0)
        if self.workers is None and self.address is not None:
            workers = self._count(self._request(device, threads))
        else:
            workers = self.workers or int(gpus / share) or CPU_WORKERS
        require(
            device == "cpu" or self.memory_gb is not None or gpus > 0,
            "cluster.memory_gb",
            "the memory of one GPU in GB, since this machine has none to read it from",
            self.memory_gb,
        )
        memory_bytes = memory_of_worker(self, device, workers)
        if device == "cuda" and self.memory_gb is None:
            memory_bytes = int(share * memory_bytes)
        return Resources(workers, device, threads, memory_bytes)

    def _request(self, device: str, threads: int) -> Amounts:
        """Returns the Ray resources that a worker requests."""
        cpus = self.cpus_per_worker if self.cpus_per_worker is not None else float(threads)
        return {"CPU": cpus} | ({"GPU": 1.0} if device == "cuda" else {}) | self._more

    def _worker_request(self) -> Amounts:
        resources = self.resources()
        return self._request(resources.device, resources.threads)

    def _rank_request(self) -> Amounts:
        """Returns the Ray resources that a rank requests: those of a worker, but ranks cannot share a GPU."""
        return self._worker_request() | ({"GPU": 1.0} if self.resources().device == "cuda" else {})

    def _count(self, request: Amounts) -> int:
        """Returns how many workers the running cluster has room for. Connects to it once.

        Raises: ConfigError if it has room for none.
        """
        if self._counted is None:
            with self._join():
                nodes = _nodes()
            expected = f"a number, or a cluster with room for a worker ({described(request)})"
            require(room(nodes, request) > 0, "cluster.workers", expected, None, f"the cluster has {total_described(nodes, request)}")
            self._counted = room(nodes, request)
        return self._counted

    @property
    def runs_at_once(self) -> int:
        return self.resources().workers

    @contextmanager
    def shared_by(self, runs: int) -> Iterator[dict[str, Any]]:
        """Divides the workers, each with its memory, among the runs. Ray grants the ranks of a training all at once or not at all."""
        resources = self.resources()
        share = {"workers": max(1, resources.workers // runs), "memory_gb": resources.memory_bytes / 1e9, "shared": True}
        if self.address is not None:
            yield share
            return
        with self._join():
            import ray

            yield share | {"address": ray.get_runtime_context().gcs_address}

    @property
    def _patience(self) -> float:
        """How long to wait for a place, in seconds, where the cluster is large enough."""
        return PATIENT_SECONDS if self.shared else self.wait_seconds

    def start(self, ranks: int) -> None:
        resources, request = self.resources(), self._worker_request()
        self._joined.enter_context(self._join())
        self._wait_for_room("cluster.workers", resources.workers, request)
        self._wait_for_room("training.ranks or recovery.ranks", ranks, self._rank_request())
        actors = RayActors(request, resources.device, resources.threads)
        self._crew = Crew(actors, resources.workers, self._patience, self.retries, self.warnings.append)

    @contextmanager
    def _join(self) -> Iterator[None]:
        """A context in which this process is part of a Ray that starts on this machine, or of a running cluster.

        Raises: ConfigError if no cluster answers, or if it is not safe to attach to it.
        """
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("SPT_NOENV", "1")  # a process that sets its title keeps its environment, which the watch reads
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        import ray

        require(not ray.is_initialized(), "cluster", "a process that is not part of a Ray yet", Phrase("one"), "call ray.shutdown() first")
        with closed_doors() if self.address is None else attached(self.address, self.insecure, self._warn) as arguments:
            try:
                ray.init(**arguments, **quiet)
            except Exception as error:
                if self.address is not None:
                    raise no_answer(self.address, first_line(error)) from error
                reason = f"Ray did not start on this machine ({first_line(error)})"
                raise SecateurError(f"cluster: {reason}; run the same command again, or with cluster=local") from error
            try:
                yield
            finally:
                ray.shutdown()

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def _wait_for_room(self, what: str, count: int, request: Amounts) -> None:
        """Waits until the nodes have room for ``count`` requests. Raises: ConfigError if they do not in time."""
        limit = monotonic() + (self.wait_seconds if self.address else 0)
        while (fitting := room(nodes := _nodes(), request)) < count:
            if monotonic() >= limit:
                raise ConfigError(
                    f"{what}: expected at most {fitting}, for which the cluster has room, got {count} ({described(request, count)} needed, "
                    f"{total_described(nodes, request)} available); lower it, lower cluster.cpus_per_worker, or add nodes"
                )
            sleep(1)

    def stop(self) -> None:
        if self._crew is not None:
            self._crew.release()
        self._joined.close()

    def ready(self) -> None:
        assert self._crew is not None
        self._crew.ready()

    def release(self) -> None:
        assert self._crew is not None
        self._crew.release()

    def map(
        self, verb: Callable[[Any, Task], Result], tasks: Sequence[Task], done: Callable[[int, Result], None], alone: bool = False
    ) -> list[Result]:
        if not tasks:
            return []
        assert self._crew is not None
        self._crew.ready()
        return self._crew.map(verb.__name__, tasks, done, alone and self.resources().device == "cpu")

    def gang(self, task: TrainTask) -> Record:
        from workers.files import read_record

        resources, folder = self.resources(), task.to.directory
        config = {
            "task": task,
            "threads": self.threads,
            "device": resources.device,
            "folder": os.getcwd(),
            "builders": permitted(),
        }
        self._train_together(train_rank, config, task.training.ranks, str(folder / "ray"))
        record = read_record(folder)
        if record is None:
            raise SecateurError(f"{folder}: the training ended, but its result is not there; set output to a folder that all nodes share")
        shutil.rmtree(folder / "ray", ignore_errors=True)
        return record

    def _train_together(self, function: Callable[[dict[str, Any]], None], config: dict[str, Any], ranks: int, folder: str) -> None:
        """Runs ``function`` in ``ranks`` processes. Ray Train gives consecutive ranks to the processes of a node.

        Raises: the error of a rank; SecateurError if the cluster had no room for the ranks in time.
        """
        from ray.exceptions import RayActorError
        from ray.train import RunConfig, ScalingConfig
        from ray.train.v2.api.config import FailureConfig
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
        from ray.train.v2.api.exceptions import ControllerError

        from orchestrator.cluster.ranks import Ranks, as_rank

        self.release()  # workers keep nothing but caches
        request = self._rank_request()
        # Ray Train waits for room ``retries + 1`` times, each time this long.
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(self._patience / (self.retries + 1))
        trainer = DataParallelTrainer(
            partial(as_rank, function),
            train_loop_config=config,
            backend_config=Ranks(),
            scaling_config=ScalingConfig(num_workers=ranks, use_gpu="GPU" in request, resources_per_worker=request),
            run_config=RunConfig(
                storage_path=folder,
                failure_config=FailureConfig(max_failures=self.retries, controller_failure_limit=self.retries),
            ),
        )
        try:
            trainer.fit()
        except ControllerError as error:
            raise full(Path(folder)) or SecateurError(
                f"recovery.ranks: {ranks} ranks did not start within {self._patience:g} seconds ({_account(request)}; "
                f"{str(error.controller_failure).split('. ')[0]}); add nodes, or wait until they are free, then run the same command "
                "again: finished work is kept"
            ) from error
        except Exception as error:
            raise cause(error, RayActorError, Path(folder)) from None


class RayActors(Actors):
    """``Worker`` actors, each of which requests the Ray resources ``request``."""

    def __init__(self, request: Amounts, device: str, threads: int) -> None:
        self.request, self.device, self.threads = request, device, threads

    def start(self, index: int) -> tuple[Any, Any]:
        import ray

        from workers.worker import Worker

        if not _nodes():
            raise SecateurError(
                "cluster: expected a living node, got none, since Ray has died; run the same command again: finished work is kept"
            )
        thread_variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        environment = dict.fromkeys(thread_variables, str(self.threads)) | {"SECATEUR_WORKER": f"worker {index}"}
        if builders := permitted():  # which may be defined where only this process looks
            environment["PYTHONPATH"] = os.pathsep.join(own_paths())
        option_names = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
        options: dict[str, Any] = {"num_cpus": 0, "num_gpus": 0} | {
            option_names[kind]: self.request[kind] for kind in option_names.keys() & self.request.keys()
        }
        options["resources"] = {kind: amount for kind, amount in self.request.items() if kind not in option_names}
        options |= {"runtime_env": {"env_vars": environment}, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        actor: Any = ray.remote(Worker).options(**options).remote(self.device, self.threads, builders)
        return actor, actor.describe.remote()

    def ask(self, actor: Any, verb: str, task: Any) -> Any:
        return getattr(actor, verb).remote(task)

    def wait(self, references: list[Any], seconds: float | None) -> list[Any]:
        import ray

        return ray.wait(references, num_returns=1, timeout=seconds)[0]

    def result(self, reference: Any) -> Any:
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            return ray.get(reference)
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, SecateurError) else error.as_instanceof_cause()) from None
        except RayError as error:  # it died, its node did, or the result was lost
            lines = [line.strip() for line in str(error).splitlines()]
            reasons = [line for line in lines if re.search("cause|memory|System error:", line, re.IGNORECASE)]
            raise WorkerDied((reasons or lines or ["it died"])[0]) from error

    def end(self, actor: Any) -> None:
        import ray

        ray.kill(actor)

    def room(self) -> int:
        return room(_nodes(), self.request)

    def account(self) -> str:
        return _account(self.request)


def own_paths() -> list[str]:
    """Returns the folders from which this process imports code that is not installed: workers import it from there, too."""
    installed = {os.path.realpath(prefix) for prefix in (sys.prefix, sys.base_prefix)}
    folders = [os.path.realpath(path) for path in sys.path if os.path.isdir(path or ".")]
    return [folder for folder in dict.fromkeys(folders) if not any(folder.startswith(prefix + os.sep) for prefix in installed)]


def _nodes() -> list[Amounts]:
    """Returns the Ray resources of each living node, used or free."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _account(request: Amounts) -> str:
    import ray

    return (
        f"each needs {described(request)}; the cluster has {total_described(_nodes(), request)}, of which "
        f"{total_described([ray.available_resources()], request)} is free"
    )

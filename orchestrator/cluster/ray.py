"""Workers as Ray actors, gangs through Ray Train. The only file that knows Ray."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.attach import knock, settle_authentication
from orchestrator.cluster.base import Cluster, Device, Resources, Result, Task, cores_here, default_threads, devices_here, memory_of_worker
from orchestrator.cluster.capacity import Amounts, room, together, words
from orchestrator.cluster.crew import Actors, Crew, WorkerDied
from orchestrator.cluster.gang import cause, train_rank
from workers.checks import require
from workers.errors import ConfigError, SecateurError

if TYPE_CHECKING:
    from workers.messages import TrainTask
    from workers.records import Record

CPU_WORKERS = 2


@dataclass
class Ray(Cluster):
    """A Ray cluster: started on this machine, or attached to. Its nodes may come and go; those with room for a worker are used."""

    address: str | None  # None: start one here; "auto", "host:port" or "ray://host:port": attach
    cpus_per_worker: float | None  # Ray's bookkeeping; None: as many as threads
    resources_per_worker: dict[str, float] | None  # what else a worker, or a rank of a gang, asks of Ray; on cuda, a GPU is understood
    wait_seconds: float  # for room for the workers, or for a gang
    retries: int  # of a task whose worker died, of a worker that dies before it is up, and of a gang

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
        self._joined = False
        self._counted: int | None = None

    def resources(self) -> Resources:
        # What is asked for counts where the workers may be elsewhere; "auto" takes this machine for an example of the others.
        device, found = ("cuda", 0) if self.device is Device.CUDA else devices_here(self.device)
        threads, share = self.threads or default_threads(), self._more.get("GPU", 1.0)
        if self.workers is None and self.address is not None:
            workers = self._count(self._asks(device, threads))
        else:
            workers = self.workers or int(found / share) or CPU_WORKERS
        require(
            device == "cpu" or self.memory_gb is not None or found > 0,
            "cluster.memory_gb",
            "the memory of one GPU, since it cannot be read here",
            self.memory_gb,
        )
        memory_bytes = memory_of_worker(self, device, workers)
        if device == "cuda" and self.memory_gb is None:
            memory_bytes = int(share * memory_bytes)
        return Resources(workers, device, threads, memory_bytes)

    def _asks(self, device: str, threads: int) -> Amounts:
        """Ray resources of one worker."""
        cpus = self.cpus_per_worker if self.cpus_per_worker is not None else float(threads)
        return {"CPU": cpus} | ({"GPU": 1.0} if device == "cuda" else {}) | self._more

    def _worker_asks(self) -> Amounts:
        here = self.resources()
        return self._asks(here.device, here.threads)

    def _rank_asks(self) -> Amounts:
        """As a worker, but ranks cannot share a GPU."""
        return self._worker_asks() | ({"GPU": 1.0} if self.resources().device == "cuda" else {})

    def _count(self, asks: Amounts) -> int:
        """Workers that the running cluster has room for. It is asked once, and nothing but the number is kept. Raises: ConfigError."""
        import ray

        if self._counted is None:
            self._join()
            try:
                nodes = _nodes()
            finally:
                ray.shutdown()
            expected = f"a number, or a cluster with room for a worker ({words(asks)})"
            require(room(nodes, asks) > 0, "cluster.workers", expected, None, f"the cluster has {together(nodes, asks)}")
            self._counted = room(nodes, asks)
        return self._counted

    def start(self, ranks: int) -> None:
        here, asks = self.resources(), self._worker_asks()
        self._join()
        self._joined = True
        self._wait_for_room("cluster.workers", here.workers, asks)
        self._wait_for_room("the ranks of training or recovery", ranks, self._rank_asks())
        actors = RayActors(asks, here.device, here.threads)
        self._crew = Crew(actors, here.workers, self.wait_seconds, self.retries, self.warnings.append)

    def _join(self) -> None:
        """Start Ray here, or join a running cluster. Raises: ConfigError."""
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        if self.address is not None:
            knock(self.address)
            settle_authentication(self.address)
        import ray

        if self.address is None:
            ray.init(address="local", num_cpus=cores_here(), include_dashboard=False, **quiet)
            return
        try:
            ray.init(address=self.address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"cluster.address: no Ray cluster answers at {self.address!r} ({reason}); start one with `ray start`"
            ) from error

    def _wait_for_room(self, what: str, count: int, asks: Amounts) -> None:
        limit = monotonic() + (self.wait_seconds if self.address else 0)
        while (found := room(nodes := _nodes(), asks)) < count:
            if monotonic() >= limit:
                raise ConfigError(
                    f"{what}: more than the cluster has ({words(asks, count)} needed, {together(nodes, asks)} there, room for {found} of "
                    f"{count}); lower it, lower cluster.cpus_per_worker, or add nodes"
                )
            sleep(1)

    def stop(self) -> None:
        import ray

        if self._crew is not None:
            self._crew.release()
        if self._joined:
            ray.shutdown()
            self._joined = False

    def ready(self) -> None:
        assert self._crew is not None
        self._crew.ready()

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

        here, folder = self.resources(), task.to.directory
        config = {"task": task, "threads": self.threads, "device": here.device, "folder": os.getcwd()}
        self._train_together(train_rank, config, task.training.ranks, str(folder / "ray"))
        record = read_record(folder)
        if record is None:
            raise SecateurError(
                f"{folder}: the training gang ended without a result that this driver can see; is the store on a shared disk?"
            )
        shutil.rmtree(folder / "ray", ignore_errors=True)
        return record

    def _train_together(self, function: Callable[[dict[str, Any]], None], config: dict[str, Any], ranks: int, folder: str) -> None:
        """Run ``function`` in ``ranks`` processes. Ray Train gives neighbouring ranks to the processes of a node.

        Raises: what a rank raised; SecateurError if the ranks found no place in time.
        """
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.train.v2.api.config import FailureConfig
        from ray.train.v2.api.exceptions import ControllerError

        assert self._crew is not None
        self._crew.release()  # their devices are needed; a worker is a cache
        asks, device = self._rank_asks(), self.resources().device
        # Ray Train looks for a place several times, each time for so long.
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(self.wait_seconds / (self.retries + 1))
        trainer = TorchTrainer(
            function,
            train_loop_config=config,
            torch_config=TorchConfig(backend="nccl" if device == "cuda" else "gloo"),
            scaling_config=ScalingConfig(num_workers=ranks, use_gpu="GPU" in asks, resources_per_worker=asks),
            run_config=RunConfig(
                storage_path=folder,
                failure_config=FailureConfig(max_failures=self.retries, controller_failure_limit=self.retries),
            ),
        )
        try:
            trainer.fit()
        except ControllerError as error:
            raise SecateurError(
                f"recovery.ranks: {ranks} ranks did not start within {self.wait_seconds:g} seconds ({_account(asks)}; "
                f"{str(error.controller_failure).split('. ')[0]}); add nodes or wait until these are free, then run the same command "
                "again: finished work is kept"
            ) from error
        except Exception as error:
            raise cause(error) from None


class RayActors(Actors):
    """``Worker`` objects that each ask Ray for ``asks``."""

    def __init__(self, asks: Amounts, device: str, threads: int) -> None:
        self.asks, self.device, self.threads = asks, device, threads

    def start(self, index: int) -> tuple[Any, Any]:
        import ray

        from workers.worker import Worker

        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        environment = dict.fromkeys(names, str(self.threads)) | {"SECATEUR_WORKER": f"worker {index}"}
        named = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
        options: dict[str, Any] = {"num_cpus": 0, "num_gpus": 0} | {
            named[kind]: self.asks[kind] for kind in named.keys() & self.asks.keys()
        }
        options["resources"] = {kind: amount for kind, amount in self.asks.items() if kind not in named}
        options |= {"runtime_env": {"env_vars": environment}, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        actor: Any = ray.remote(Worker).options(**options).remote(self.device, self.threads)
        return actor, actor.describe.remote()

    def ask(self, actor: Any, verb: str, task: Any) -> Any:
        return getattr(actor, verb).remote(task)

    def wait(self, references: list[Any], seconds: float | None) -> list[Any]:
        import ray

        return ray.wait(references, num_returns=1, timeout=seconds)[0]

    def result(self, reference: Any) -> Any:
        import ray
        from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

        try:
            return ray.get(reference)
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, SecateurError) else error.as_instanceof_cause()) from None
        except (RayActorError, ObjectLostError) as error:  # the second: its node died with a result that was not yet here
            lines = [line.strip() for line in str(error).splitlines()]
            reasons = [line for line in lines if "cause" in line.lower() or "memory" in line.lower()]
            raise WorkerDied((reasons or lines or ["it died"])[0]) from error

    def end(self, actor: Any) -> None:
        import ray

        ray.kill(actor)

    def room(self) -> int:
        return room(_nodes(), self.asks)

    def account(self) -> str:
        return _account(self.asks)


def _nodes() -> list[Amounts]:
    """Ray resources of each living node, used or not."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _account(asks: Amounts) -> str:
    import ray

    return (
        f"each needs {words(asks)}; the cluster has {together(_nodes(), asks)}, of these free {together([ray.available_resources()], asks)}"
    )

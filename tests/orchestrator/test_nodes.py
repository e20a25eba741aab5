"""Several Ray nodes on this machine, with GPUs that are only numbers: where workers and ranks run, and nodes that leave and join."""

import itertools
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
from run_cases import computed, directory, model_bytes, run, start

from orchestrator.cluster.base import Device, Hardware
from orchestrator.cluster.ray import Ray
from workers.errors import ConfigError, SecateurError

ON_NODES = ("cluster=ray", "cluster.device=cpu", "cluster.cpus_per_worker=0.5", "cluster.resources_per_worker={GPU:1}")


class Nodes:
    """A Ray cluster whose head has no room for a worker. Every other node has its own address, like a real one."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        alert = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": alert}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = str(self.cluster.address)
        self.nodes: dict[str, Any] = {}

    def add(self, name: str, gpus: int) -> None:
        self.nodes[name] = self.cluster.add_node(num_cpus=1, num_gpus=gpus, node_ip_address=f"127.0.0.{name[1:]}")

    def remove(self, name: str) -> None:
        """Removes a node without notice, like a machine that loses power."""
        node = self.nodes.pop(name)
        workers = self._raylet(node).children()
        self.cluster.remove_node(node, allow_graceful=False)
        for worker in workers:  # one that is stopped would stay
            with suppress(psutil.NoSuchProcess):
                worker.kill()

    def only(self, **gpus: int) -> None:
        """Replaces all nodes by these: ``n2=1`` is 127.0.0.2 with one GPU and one CPU."""
        for name in list(self.nodes):
            self.remove(name)
        self.cluster.wait_for_nodes()
        for name, count in gpus.items():
            self.add(name, count)

    @staticmethod
    def _raylet(node: Any) -> psutil.Process:
        return psutil.Process(node.all_processes["raylet"][0].process.pid)

    def caught(self, name: str, verb: str, process: Any) -> psutil.Process:
        """Returns a worker of a node, stopped while it carries out ``verb`` for an active run."""
        raylet = self._raylet(self.nodes[name])
        while process.poll() is None:
            for child in raylet.children():
                try:
                    if "".join(child.cmdline()[:1]).startswith(f"ray::Worker.{verb}"):
                        child.send_signal(signal.SIGSTOP)
                        return child
                except psutil.Error:
                    continue
            time.sleep(0.002)
        pytest.fail(f"no worker of {name} was caught at {verb}: {process.communicate()[0]}")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        cluster_nodes = Nodes()
        yield cluster_nodes
        import ray

        ray.shutdown()
        cluster_nodes.cluster.shutdown()


@pytest.fixture
def attached(nodes: Nodes) -> Iterator[Callable[..., Ray]]:
    """Returns clusters with settings for these nodes; they are stopped at the end."""
    made: list[Ray] = []

    def attach(**settings: Any) -> Ray:
        defaults = {
            "workers": None,
            "device": Device.CPU,
            "threads": 1,
            "memory_gb": None,
            "address": nodes.address,
            "cpus_per_worker": 0.5,
        }
        defaults |= {
            "hardware": Hardware("none", 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1),
            "resources_per_worker": {"GPU": 1.0},
            "wait_seconds": 30.0,
            "retries": 1,
            "shared": False,
            "insecure": False,
        }
        made.append(Ray(**(defaults | settings)))
        return made[-1]

    yield attach
    for cluster in made:
        cluster.stop()


def workers_of(cluster: Ray) -> list[dict[str, str]]:
    """Where each worker is, and on which device it computes."""
    import ray

    def look(worker: Any) -> dict[str, str]:
        import ray

        described = worker.describe()
        return vars(described) | {
            "node": ray.util.get_node_ip_address(),
            "gpu": os.environ["CUDA_VISIBLE_DEVICES"],
            "name": os.environ["SECATEUR_WORKER"],
        }

    assert cluster._crew is not None
    return ray.get([seat.actor.__ray_call__.remote(look) for seat in cluster._crew.seats])


def test_there_is_a_worker_for_each_gpu_of_the_cluster_and_half_a_cpu_is_enough(
    nodes: Nodes, attached: Callable[..., Ray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster asks for no token, which is refused from another machine."""
    nodes.only(n2=2, n3=1)
    assert attached(cpus_per_worker=1.0).resources().workers == 2, "one CPU a node"
    cluster = attached()
    monkeypatch.setattr(psutil, "net_if_addrs", dict)  # as on a machine outside of the cluster
    with pytest.raises(ConfigError, match=r"cluster.address: expected a Ray cluster that asks for a token, .*cluster.insecure=true"):
        cluster.resources()
    monkeypatch.undo()
    assert cluster.resources().workers == 3
    cluster.start(1)
    cluster.ready()
    workers = workers_of(cluster)
    assert Counter((worker["node"], worker["gpu"]) for worker in workers) == {
        ("127.0.0.2", "0"): 1,
        ("127.0.0.2", "1"): 1,
        ("127.0.0.3", "0"): 1,
    }
    assert all(worker["device"] == "cpu" and worker["threads"] == "1" for worker in workers)
    assert [worker["name"] for worker in workers] == ["worker 0", "worker 1", "worker 2"]
    assert [f"{nodes.address} asks for no token" in warning for warning in cluster.warnings] == [True], "once"


def test_few_workers_are_spread_over_the_nodes(nodes: Nodes, attached: Callable[..., Ray]) -> None:
    nodes.only(n2=2, n3=2)
    cluster = attached(workers=2)
    cluster.start(1)
    cluster.ready()
    assert sorted(worker["node"] for worker in workers_of(cluster)) == ["127.0.0.2", "127.0.0.3"]


@pytest.mark.slow
def test_neighbouring_ranks_are_on_one_node(nodes: Nodes, attached: Callable[..., Ray], tmp_path: Path) -> None:
    nodes.only(n2=1, n3=2)

    def note(config: dict[str, Any]) -> None:
        import ray

        names = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE")
        seen = {name: int(os.environ[name]) for name in names} | {"node": ray.util.get_node_ip_address()}
        (Path(config["to"]) / f"{seen['RANK']}.json").write_text(json.dumps(seen))

    cluster = attached(workers=1)
    cluster.start(3)
    cluster._train_together(note, {"to": str(tmp_path)}, 3, str(tmp_path / "ray"))
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert all(rank["WORLD_SIZE"] == 3 for rank in ranks)
    order = [rank["node"] for rank in ranks]
    assert Counter(order) == {"127.0.0.2": 1, "127.0.0.3": 2}
    assert sum(one != other for one, other in itertools.pairwise(order)) == 1, f"{order}: a node's ranks are not in a row"
    for node in set(order):
        node_ranks = [rank for rank in ranks if rank["node"] == node]
        assert [rank["LOCAL_RANK"] for rank in node_ranks] == list(range(len(node_ranks)))
        assert all(rank["LOCAL_WORLD_SIZE"] == len(node_ranks) for rank in node_ranks)


@pytest.mark.slow
def test_a_gang_whose_devices_are_in_use_ends_in_time_and_says_what_is_missing(
    nodes: Nodes, attached: Callable[..., Ray], tmp_path: Path
) -> None:
    nodes.only(n2=2)
    cluster = attached(workers=1, wait_seconds=4.0)
    cluster.start(2)
    from ray.util.placement_group import placement_group

    assert placement_group([{"GPU": 1}]).wait(30), "another user's"
    with pytest.raises(
        SecateurError, match=r"recovery.ranks: 2 ranks .* 4 seconds .*0.5 CPU, 1 GPU.*cluster has 1 CPU, 2 GPU.*1 CPU, 1 GPU is free"
    ):
        cluster._train_together(print, {}, 2, str(tmp_path / "ray"))


def test_the_start_waits_for_nodes_that_join_late_but_not_longer_than_set(
    nodes: Nodes, attached: Callable[..., Ray], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.only()
    impatient = attached(workers=2, wait_seconds=1.0)
    with pytest.raises(ConfigError, match=r"cluster.workers: .*2 GPU needed, 0 CPU, 0 GPU available"):
        impatient.start(1)
    impatient.stop()
    with pytest.raises(ConfigError, match=r"cluster.workers: expected a number, or a cluster with room for a worker \(0.5 CPU, 1 GPU\)"):
        attached().resources()
    cluster = attached(workers=2)
    seconds = iter([lambda: None, lambda: nodes.add("n2", 1), lambda: nodes.add("n3", 1)])
    monkeypatch.setattr("orchestrator.cluster.ray.sleep", lambda _: next(seconds)())
    cluster.start(1)
    assert list(nodes.nodes) == ["n2", "n3"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder)
    return folder


def warnings_of(folder: Path) -> list[str]:
    return json.loads((directory(folder) / "report.json").read_text())["warnings"]


@pytest.mark.slow
def test_a_run_continues_when_a_node_is_lost_and_uses_one_that_joins(nodes: Nodes, undisturbed: Path, tmp_path: Path) -> None:
    """The worker on the other node is stopped until the one on the new node collects."""
    nodes.only(n2=1, n3=1)
    process = start(tmp_path, *ON_NODES, f"cluster.address={nodes.address}", "cluster.workers=2")
    remaining, _ = nodes.caught("n2", "collect", process), nodes.caught("n3", "collect", process)
    nodes.remove("n3")
    nodes.add("n4", 1)
    late = nodes.caught("n4", "collect", process)
    late.send_signal(signal.SIGCONT)
    remaining.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=3600)
    assert process.returncode == 0, output
    assert model_bytes(tmp_path) == model_bytes(undisturbed)
    assert max(computed(tmp_path).values()) == 1
    assert any("died during collect" in text for text in warnings_of(tmp_path)), warnings_of(tmp_path)


@pytest.mark.slow
def test_a_run_continues_with_the_remaining_nodes(nodes: Nodes, undisturbed: Path, tmp_path: Path) -> None:
    nodes.only(n2=1, n3=1)
    process = start(tmp_path, *ON_NODES, f"cluster.address={nodes.address}", "cluster.workers=2")
    nodes.caught("n3", "collect", process)
    nodes.remove("n3")
    output, _ = process.communicate(timeout=3600)
    assert process.returncode == 0, output
    assert model_bytes(tmp_path) == model_bytes(undisturbed)
    assert any(text.startswith("1 of 2 workers") for text in warnings_of(tmp_path)), warnings_of(tmp_path)


@pytest.mark.slow
def test_a_run_that_loses_its_last_node_ends_and_the_same_command_continues_it(nodes: Nodes, undisturbed: Path, tmp_path: Path) -> None:
    nodes.only(n2=1)
    settings = (*ON_NODES, f"cluster.address={nodes.address}", "cluster.workers=1", "cluster.wait_seconds=3")
    process = start(tmp_path, *settings)
    nodes.caught("n2", "score", process)
    nodes.remove("n2")
    output, _ = process.communicate(timeout=3600)
    assert process.returncode == 1 and "Traceback" not in output, output
    for words in (
        "cluster.workers: no worker came up within 3 seconds",
        "each needs 0.5 CPU, 1 GPU",
        "has 0 CPU, 0 GPU",
        "finished work is kept",
    ):
        assert words in output, output
    nodes.add("n3", 1)
    run(tmp_path, *settings)
    assert model_bytes(tmp_path) == model_bytes(undisturbed)
    assert max(computed(tmp_path).values()) == 1, "finished work was repeated"


@pytest.mark.slow
def test_a_training_gang_that_loses_a_node_resumes_on_another_to_equal_bytes(nodes: Nodes, tmp_path: Path) -> None:
    training = ["recovery=adamw", "recovery.epochs=30", "recovery.batch_size=32", "data.train_size=128", "recovery.ranks=2"]
    run(tmp_path / "local", *training)
    nodes.only(n2=1, n3=1)
    (tmp_path / "nodes").mkdir()
    process = start(tmp_path / "nodes", *training, *ON_NODES, f"cluster.address={nodes.address}", "cluster.workers=1")
    while process.poll() is None and not list((tmp_path / "nodes").glob("runs/store/train/*/*/checkpoints/epoch*.json")):
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[0]
    nodes.remove("n3")
    nodes.add("n4", 1)
    output, _ = process.communicate(timeout=3600)
    assert process.returncode == 0, output
    assert model_bytes(tmp_path / "nodes") == model_bytes(tmp_path / "local")
    (record,) = (tmp_path / "nodes").glob("runs/store/train/*/*/record.json")
    assert json.loads(record.read_text())["numbers"]["epochs_resumed_from"] > 0

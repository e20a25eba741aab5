"""The ranks of a gang together have at most as many threads as there are cores, unless the settings say otherwise."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestrator.cluster import base, gang
from orchestrator.cluster.base import threads_of_rank
from orchestrator.composing import experiment_of
from workers.training import gang as training_gang
from workers.training import loop


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch):
    return lambda number: monkeypatch.setattr(base.os, "sched_getaffinity", lambda _: set(range(number)))


@pytest.mark.parametrize("number", [1, 2, 3, 8, 64])
def test_ranks_of_a_machine_share_its_cores(number: int, cores) -> None:
    cores(number)
    for ranks in range(1, number + 1):
        assert threads_of_rank(None, ranks) >= 1 and ranks * threads_of_rank(None, ranks) <= number
    assert threads_of_rank(None, 1) == threads_of_rank(None, 2) == max(1, number // 2), "as many as a worker"
    assert threads_of_rank(None, 2 * number) == 1 and threads_of_rank(5, 2 * number) == 5


@pytest.mark.parametrize(("threads", "expected"), [("null", 2), ("3", 3)])
def test_the_processes_of_a_local_gang_get_these_threads(threads: str, expected: int, cores, monkeypatch: pytest.MonkeyPatch) -> None:
    cores(8)
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(training_gang, "run_gang", lambda *arguments: calls.append(arguments))
    cluster = experiment_of(["cluster=local", f"cluster.threads={threads}", "cluster.device=cpu"]).cluster
    cluster.gang(SimpleNamespace(training=SimpleNamespace(ranks=4)))  # type: ignore[arg-type]
    assert calls[0][1:3] == (4, expected)


@pytest.mark.parametrize(("threads", "expected"), [(None, 2), (3, 3)])
def test_a_rank_on_ray_gets_its_share_of_its_node(
    threads: int | None, expected: int, cores, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cores(8)
    for name, value in {"RANK": "5", "LOCAL_WORLD_SIZE": "4", "SECATEUR_WORKER": "test"}.items():
        monkeypatch.setenv(name, value)
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(loop, "train", lambda task, device: seen.append(torch.get_num_threads()))
    try:
        gang.train_rank({"task": None, "device": "cpu", "threads": threads, "folder": str(tmp_path / "elsewhere"), "builders": {}})
    finally:
        torch.set_num_threads(before)
    assert seen == [expected]


def test_a_rank_on_ray_reads_relative_paths_as_the_driver_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"RANK": "0", "LOCAL_WORLD_SIZE": "1", "SECATEUR_WORKER": "test"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)  # as Ray Train does; pytest restores the folder afterwards
    (tmp_path / "driver").mkdir()
    folders: list[Path] = []
    monkeypatch.setattr(loop, "train", lambda task, device: folders.append(Path.cwd()))
    config = {"task": None, "device": "cpu", "threads": torch.get_num_threads(), "folder": str(tmp_path / "driver"), "builders": {}}
    gang.train_rank(config)
    assert folders == [tmp_path / "driver"]


def test_the_threads_of_a_rank_are_set_before_a_module_that_starts_threads_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=training_gang._begin, initargs=(1, {})) as pool:
        assert pool.submit(os.getenv, "NUMBA_NUM_THREADS").result() == "1"
        assert pool.submit(torch.get_num_threads).result() == 1

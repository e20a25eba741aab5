"""Threads of the ranks of a gang: together no more than there are cores, unless someone asked for more."""

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
from orchestrator.config import experiment_of
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
    assert threads_of_rank(None, 1) == threads_of_rank(None, 2) == max(1, number // 2), "as a worker has"
    assert threads_of_rank(None, 2 * number) == 1 and threads_of_rank(5, 2 * number) == 5


@pytest.mark.parametrize(("asked", "expected"), [("null", 2), ("3", 3)])
def test_a_gang_in_processes_of_this_machine_is_given_them(asked: str, expected: int, cores, monkeypatch: pytest.MonkeyPatch) -> None:
    cores(8)
    given: list[tuple[Any, ...]] = []
    monkeypatch.setattr(training_gang, "run_gang", lambda *arguments: given.append(arguments))
    cluster = experiment_of(["cluster=local", f"cluster.threads={asked}", "cluster.device=cpu"]).cluster
    cluster.gang(SimpleNamespace(training=SimpleNamespace(ranks=4)))  # type: ignore[arg-type]
    assert given[0][1:3] == (4, expected)


@pytest.mark.parametrize(("asked", "expected"), [(None, 2), (3, 3)])
def test_a_rank_that_ray_started_takes_its_share_of_its_node(
    asked: int | None, expected: int, cores, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cores(8)
    for name, value in {"RANK": "5", "LOCAL_WORLD_SIZE": "4", "SECATEUR_WORKER": "test"}.items():
        monkeypatch.setenv(name, value)
    before, found = torch.get_num_threads(), []
    monkeypatch.setattr(loop, "train", lambda task, device: found.append(torch.get_num_threads()))
    try:
        gang.train_rank({"task": None, "device": "cpu", "threads": asked, "folder": str(tmp_path / "elsewhere")})
    finally:
        torch.set_num_threads(before)
    assert found == [expected]


def test_a_rank_that_ray_started_reads_relative_paths_as_the_driver_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"RANK": "0", "LOCAL_WORLD_SIZE": "1", "SECATEUR_WORKER": "test"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)  # what Ray Train does to its processes; also restores the folder afterwards
    (tmp_path / "driver").mkdir()
    found: list[Path] = []
    monkeypatch.setattr(loop, "train", lambda task, device: found.append(Path.cwd()))
    gang.train_rank({"task": None, "device": "cpu", "threads": torch.get_num_threads(), "folder": str(tmp_path / "driver")})
    assert found == [tmp_path / "driver"]


def test_a_rank_knows_its_threads_before_anything_that_starts_some_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=training_gang._begin, initargs=(1,)) as pool:
        assert pool.submit(os.getenv, "NUMBA_NUM_THREADS").result() == "1"
        assert pool.submit(torch.get_num_threads).result() == 1

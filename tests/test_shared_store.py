"""Runs that use one store at once, and runs whose store is deleted."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from run_cases import begin, computed, directory, model_bytes, report_of, run, run_at_once, stopped_at, stored, tasks
from warm import Running

TRAINING = [
    "model.checkpoint=null",
    "data.train_size=128",
    "training.epochs=8",
    "training.batch_size=32",
    "training.warmup_epochs=0.0",
    "training.ranks=1",
]
SPARSITIES = ("pruner.target.sparsity=0.5", "pruner.target.sparsity=0.75")


def directories(folder: Path) -> list[Path]:
    return [path.parent for path in (folder / "runs").glob("*/tasks.jsonl")]


def computed_by_all(folder: Path) -> Counter[tuple[str, str]]:
    """How often each result was computed, over all runs in a folder."""
    return Counter((line["verb"], line["fingerprint"]) for path in directories(folder) for line in tasks(path) if line["computed"])


def trains(folder: Path) -> bool:
    return any((folder / "runs" / "store" / "train").rglob("progress.jsonl"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run(folder, *TRAINING)
    return folder


@pytest.mark.parametrize("attempt", [0, 1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_two_sparsities_at_once_train_the_dense_model_once(attempt: int, trained: Path, tmp_path: Path) -> None:
    run_at_once(tmp_path, *((*TRAINING, sparsity) for sparsity in SPARSITIES))
    done = computed_by_all(tmp_path)
    assert len(directories(tmp_path)) == 2 and set(done.values()) == {1}
    assert Counter(verb for verb, _ in done) >= Counter({"train": 1, "collect": 16, "score": 8, "solve": 16, "join": 2})
    assert model_bytes(trained) in [path.joinpath("model.safetensors").read_bytes() for path in directories(tmp_path)]
    for path in directories(tmp_path):
        assert {line["fingerprint"] for line in tasks(path) if line["verb"] == "train"} == {key for verb, key in done if verb == "train"}


def test_one_run_started_three_times_at_once_computes_every_result_once(tmp_path: Path) -> None:
    run_at_once(tmp_path, *[()] * 3)
    assert set(computed(tmp_path).values()) == {1}
    assert report_of(tmp_path)["warnings"] == []


def test_a_run_waits_for_a_stopped_one_that_trains_and_takes_over_when_that_is_killed(trained: Path, tmp_path: Path) -> None:
    first = begin(tmp_path, *TRAINING)
    first.stop_when(lambda: trains(tmp_path))
    assert not stored(tmp_path, "train"), "it was stopped too late"
    second = begin(tmp_path, *TRAINING)
    second.wait_until(lambda: "waiting for" in second.text())
    said = f"train dense: waiting for 1 result that process {first.pid} on {os.uname().nodename} (run {directory(tmp_path).name}, since "
    assert said in second.text()
    first.process.kill()
    output = second.end()
    assert second.process.exitcode == 0, output
    assert model_bytes(tmp_path) == model_bytes(trained)
    assert set(computed(tmp_path).values()) == {1} and len(stored(tmp_path, "train")) == 1


# --- deleted under a run


@pytest.mark.parametrize("what", ["runs/store", pytest.param("runs", marks=pytest.mark.slow)])
@pytest.mark.parametrize("stage", ["collect", pytest.param("score", marks=pytest.mark.slow), "evaluate one-shot"])
def test_a_store_that_is_deleted_under_a_run_ends_it_in_one_line_and_the_same_command_is_right(
    stage: str, what: str, trained: Path, tmp_path: Path
) -> None:
    process = stopped_at(stage, tmp_path, *TRAINING)
    shutil.rmtree(tmp_path / what)
    ended_in_one_line(process, tmp_path)
    run(tmp_path, *TRAINING)
    assert model_bytes(tmp_path) == model_bytes(trained)


def test_a_store_that_is_deleted_under_a_training_ends_the_run_in_one_line(trained: Path, tmp_path: Path) -> None:
    process = begin(tmp_path, *TRAINING)
    process.stop_when(lambda: trains(tmp_path))
    shutil.rmtree(tmp_path / "runs" / "store")
    ended_in_one_line(process, tmp_path)
    run(tmp_path, *TRAINING)
    assert model_bytes(tmp_path) == model_bytes(trained)


def test_a_store_that_is_deleted_and_made_again_by_another_run_is_not_used_by_the_first(trained: Path, tmp_path: Path) -> None:
    process = stopped_at("collect", tmp_path, *TRAINING)
    shutil.rmtree(tmp_path / "runs" / "store")
    run(tmp_path, *TRAINING)
    ended_in_one_line(process, tmp_path)
    assert model_bytes(tmp_path) == model_bytes(trained)


def ended_in_one_line(process: Running, folder: Path) -> None:
    output = process.end()
    assert process.process.exitcode == 1, output
    assert "Traceback" not in output, output
    last = output.splitlines()[-1]
    assert last.startswith(f"error: {folder / 'runs' / 'store'}: the store was deleted") and "run the same command again" in last, output


def test_a_part_of_a_store_that_is_deleted_under_a_run_is_computed_again(trained: Path, tmp_path: Path) -> None:
    process = stopped_at("score", tmp_path, *TRAINING)
    shutil.rmtree(tmp_path / "runs" / "store" / "collect")
    output = process.end()
    assert process.process.exitcode == 0, output
    assert model_bytes(tmp_path) == model_bytes(trained)

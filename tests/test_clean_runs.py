"""``mode=clean`` and ``store.keep=records``: what no kept run needs goes, and nothing that a run needs is lost."""

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_cases import computed, directory, model_bytes, report_of, run, stopped_at, stored, tasks
from warm import orchestrate

from orchestrator import cleaning
from orchestrator.allocation.latency_table import TABLE
from orchestrator.claims import Claims
from orchestrator.config import Clean
from orchestrator.store import Store
from workers.files import finish, write_tensors
from workers.records import KINDS, Destination, ImportedModel

HALF = "pruner.target.sparsity=0.5"
INTERMEDIATE = ("collect", "score", "solve")


def clean(folder: Path, *settings: str) -> str:
    ended = orchestrate("mode=clean", "output=runs", *settings, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_size for path in (folder / "runs").rglob("*") if path.is_file() and "locks" not in path.parts}


def results(folder: Path) -> set[str]:
    """The beginnings of the fingerprints of all results."""
    return {path.parent.parent.name + path.parent.name for path in (folder / "runs" / "store").rglob("record.json")}


def needs(run_directory: Path) -> set[str]:
    return {line["fingerprint"][:18] for line in tasks(run_directory)}


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 75 % called ``tiny``, and one of 50 % called ``half``."""
    folder = tmp_path_factory.mktemp("two")
    run(folder)
    run(folder, HALF, "name=half")
    return folder


@pytest.fixture
def folder(two_runs: Path, tmp_path: Path) -> Iterator[Path]:
    """The two runs, which are as they were after the test. Their names depend on where the checkpoint is."""
    shutil.copytree(two_runs / "runs", tmp_path / "runs")
    yield two_runs
    shutil.rmtree(two_runs / "runs")
    shutil.copytree(tmp_path / "runs", two_runs / "runs")


def half(folder: Path) -> Path:
    (found,) = (folder / "runs").glob("half-*")
    return found


def test_nothing_is_freed_without_being_asked_for_and_nothing_that_a_run_needs(folder: Path) -> None:
    before = files(folder)
    assert "There is nothing to free." in clean(folder, "clean.free=true")
    said = clean(folder, "clean.keep=[tiny]")
    assert "clean.free=true frees 13 results" in said, "solutions of 8 layers, counts, model, rise, outputs and metrics"
    assert files(folder) == before


@pytest.mark.parametrize("keep", ["clean.keep=[tiny]", "clean.keep=[FINGERPRINT]", "clean.keep=['t*']"])
def test_what_no_kept_run_needs_is_freed_with_its_records_and_computed_again_when_it_is_needed(folder: Path, keep: str) -> None:
    kept, freed = needs(directory(folder)), needs(half(folder)) - needs(directory(folder))
    assert results(folder) == kept | freed and freed
    assert f"Freed {len(freed)} results" in clean(folder, keep.replace("FINGERPRINT", directory(folder).name[-8:-3]), "clean.free=true")
    assert results(folder) == kept
    assert {path for path in (folder / "runs" / "store").glob("*/??/*") if not (path / "record.json").exists()} == set()
    before = computed(folder)
    run(folder)
    assert computed(folder) == before, "the kept run has all of its results"
    os.unlink(half(folder) / "tasks.jsonl")
    run(folder, HALF, "name=half")
    assert {line["fingerprint"][:18] for line in tasks(half(folder)) if line["computed"]} == freed


def test_results_of_deleted_run_directories_are_freed(folder: Path) -> None:
    shutil.rmtree(half(folder))
    clean(folder, "clean.free=true")
    assert results(folder) == needs(directory(folder))


def test_the_longest_unused_are_freed_first_and_only_until_the_size_is_reached(folder: Path) -> None:
    store, long_ago = folder / "runs" / "store", time.time() - 1e6
    freed = sorted(
        path for path in store.glob("solve/??/*") if path.parent.name + path.name in needs(half(folder)) - needs(directory(folder))
    )
    old = freed[:2]
    for path in (*old, *(inside for each in old for inside in each.iterdir())):
        os.utime(path, (long_ago, long_ago))
    total = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    sizes = [sum(inside.stat().st_size for inside in path.iterdir()) for path in old]
    size_gb = (total - sum(sizes) + 1) / 1e9  # one of the two is not enough
    clean(folder, "clean.keep=[tiny]", f"clean.size_gb={size_gb:.12f}", "clean.free=true")
    assert [path for path in freed if not path.exists()] == old
    said = clean(folder, "clean.keep=[tiny]", "clean.size_gb=0", "clean.free=true")
    assert "remain, more than clean.size_gb=0, because runs need them" in " ".join(said.split())
    assert results(folder) == needs(directory(folder))


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (
            ("clean.keep=[tinny]",),
            "error: clean.keep: expected names of run directories, got 'tinny', which matches none of 2; there is tiny-",
        ),
        (("clean.size_gb=-1",), "error: clean.size_gb: expected 0 or more, or null, got -1.0"),
        (("output=elsewhere",), "error: output: expected a folder with a store, got 'elsewhere'"),
    ],
)
def test_what_cannot_be_cleaned_is_refused_in_one_line(folder: Path, settings: tuple[str, ...], error: str) -> None:
    before = files(folder)
    ended = orchestrate("mode=clean", "output=runs", *settings, cwd=folder)
    assert ended.returncode == 2 and ended.stderr.startswith(error) and ended.stderr.count("\n") == 1
    assert files(folder) == before


def test_results_of_a_running_driver_stay_whatever_is_kept(folder: Path) -> None:
    """It has read what the two runs share, and is stopped before it solves."""
    shutil.rmtree(half(folder))
    process = stopped_at("join", folder, HALF, "name=half")
    there = needs(half(folder))
    said = clean(folder, "clean.keep=[tiny]", "clean.free=true")
    assert "running" in said and there <= results(folder)
    output = process.end()
    assert process.process.exitcode == 0, output
    assert "damaged" not in output


def stored_in(root: Path, **inputs: object) -> Destination:
    to = Store(root).destination("import", **inputs)
    write_tensors(to.directory / "model.safetensors", {})
    finish(to, ImportedModel([]), 0.0, None)
    return to


def test_results_that_a_driver_holds_or_has_found_since_they_were_listed_stay(tmp_path: Path) -> None:
    held, found, neither = (stored_in(tmp_path, a=number) for number in range(3))
    store = Store(tmp_path)
    to_free = cleaning.survey(store, Clean([], None, True)).unneeded()
    assert {result.directory for result in to_free} == {held.directory, found.directory, neither.directory}
    other = Claims(tmp_path)
    with other.opened("theirs"):
        other.take([held])
        os.utime(found.directory, (time.time() + 5,) * 2)  # as finding it does
        assert [result.directory for result in cleaning.free_results(store, to_free)] == [neither.directory]
    assert held.directory.exists() and found.directory.exists() and not neither.directory.exists()


def test_an_unfinished_training_stays_as_long_as_a_kept_run_may_resume_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    checkpoint = store.directory("train", "ab" * 32) / "checkpoints" / "epoch1.json"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("{}")
    interrupted = tmp_path / "pets-12345678"
    interrupted.mkdir()
    (interrupted / "tasks.jsonl").write_text('{"fingerprint": "' + "cd" * 32 + '", "verb": "import"}\n{"half a li')
    everything = Clean([], None, False)
    assert cleaning.survey(store, everything).unneeded() == []
    (interrupted / "report.json").write_text("{}")
    assert [result.directory for result in cleaning.survey(store, everything).unneeded()] == [checkpoint.parent.parent]


def test_the_table_of_latencies_has_the_name_that_cleaning_looks_for() -> None:
    assert cleaning.LATENCY_TABLE == TABLE


# --- store.keep=records


def test_with_records_only_the_same_run_computes_nothing_again_and_another_what_it_needs(two_runs: Path, tmp_path: Path) -> None:
    assert "of intermediate results from the store" in run(tmp_path, "store.keep=records")
    store = tmp_path / "runs" / "store"
    assert {verb for verb in KINDS if list((store / verb).rglob("*.safetensors"))} == {"import", "join", "evaluate"}
    assert all(len(stored(tmp_path, verb)) == count for verb, count in (("collect", 16), ("score", 8), ("solve", 8)))
    assert all(KINDS[verb].intermediate for verb in INTERMEDIATE)
    before = computed(tmp_path)
    assert "intermediate results" not in run(tmp_path, "store.keep=records")
    assert computed(tmp_path) == before

    run(tmp_path, HALF, "name=half")
    done = Counter(line["verb"] for line in tasks(half(tmp_path)) if line["computed"])
    assert {verb: done[verb] for verb in ("import", "collect", "score", "solve")} == {"import": 0, "collect": 16, "score": 8, "solve": 8}
    assert (half(tmp_path) / "model.safetensors").read_bytes() == (half(two_runs) / "model.safetensors").read_bytes()
    run(tmp_path)
    assert model_bytes(tmp_path) == model_bytes(two_runs) and report_of(tmp_path)["warnings"] == []


def test_a_ranking_that_was_freed_is_computed_again_for_another_target(tmp_path: Path) -> None:
    units = ("pruner=taylor", "store.keep=records")
    run(tmp_path, *units, "pruner.target.removed=0.5", "name=first")
    run(tmp_path, *units, "pruner.target.removed=0.3")
    done = Counter(line["verb"] for line in tasks(directory(tmp_path)) if line["computed"])
    assert done["collect_units"] == 2 and done["rank"] == 1 and done["choose"] == 1
    (tmp_path / "fresh").mkdir()
    run(tmp_path / "fresh", "pruner=taylor", "pruner.target.removed=0.3")
    assert model_bytes(tmp_path) == model_bytes(tmp_path / "fresh")


def test_intermediate_files_stay_as_long_as_another_driver_that_runs_has_read_them(two_runs: Path, tmp_path: Path) -> None:
    process = stopped_at("allocate", tmp_path, HALF, "name=half")
    run(tmp_path, "store.keep=records")
    output = process.end()
    assert process.process.exitcode == 0, output
    assert not any(line["computed"] for line in tasks(directory(tmp_path)) if line["verb"] in ("collect", "score"))
    assert Counter(line["verb"] for line in tasks(half(tmp_path)))["collect"] == 16, "the pipeline was not repeated"
    assert (half(tmp_path) / "model.safetensors").read_bytes() == (half(two_runs) / "model.safetensors").read_bytes()

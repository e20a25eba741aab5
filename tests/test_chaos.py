"""The script that lets runs fall finds what breaks the promise, and the promise holds."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from workers.errors import SecateurError
from workers.files import write_text

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

from chaos import Outcome, broken_by, broken_results, figures, outcome_of, plain, seeds_of  # noqa: E402
from failing_disk import Disk  # noqa: E402
from falling import DISK_KINDS, STAGES, Fall, Kind, Part, draw  # noqa: E402

KILLED = Fall(Kind.KILL, Part.DRIVER, "collect", 0.1)
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
FALLING_DISKS = pytest.param(["100-107"], marks=(pytest.mark.slow, NEEDS_ROOT))
WAITS = "collect: waiting for 1 result that host:1 computes; end that process to compute it here\n"
BEING_STARTED = """Traceback (most recent call last):
  File "<string>", line 1, in <module>
  File "/lib/python3.11/multiprocessing/spawn.py", line 122, in spawn_main
    exitcode = _main(fd, parent_sentinel)
               ^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/lib/python3.11/multiprocessing/spawn.py", line 130, in _main
    preparation_data = reduction.pickle.load(from_parent)
                       ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
EOFError: Ran out of input
"""
INTERRUPTED = Fall(Kind.INTERRUPT, Part.DRIVER, "collect", 0.1)


def results(folder: Path, weights: bytes = b"weights", top1: float = 0.5, seconds: float = 1.0, computed: int = 1) -> Path:
    """A folder as a run leaves it."""
    run = folder / "runs" / "chaos-1"
    run.mkdir(parents=True)
    (run / "model.safetensors").write_bytes(weights)
    lines = [{"epoch": 1, "step": 4, "loss": seconds}, {"epoch": 1, "step": 8, "loss": 0.5}][seconds > 1 :]
    report = {"stages": [{"name": "dense", "metrics": {"top1": top1, "images_per_second": seconds}}], "curves": {"dense": lines}}
    (run / "report.json").write_text(json.dumps(report | {"stage_seconds": {"collect": seconds}}))
    (run / "tasks.jsonl").write_text((json.dumps({"fingerprint": "a", "computed": True}) + "\n") * computed)
    return folder


def compared(folder: Path, **changes: object) -> tuple[list[str], int]:
    outcome = Outcome(0, "local", "weights")
    found = list(broken_results(results(folder / "run", **changes), results(folder / "undisturbed"), outcome))  # type: ignore[arg-type]
    return found, outcome.bytes_compared


def test_results_that_differ_in_nothing_but_times_are_equal(tmp_path: Path) -> None:
    assert compared(tmp_path, seconds=2.0) == ([], len(b"weights"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": b"weightz"}, "other bytes: runs/chaos-1/model.safetensors"),
        ({"top1": 0.6}, "other numbers in the report"),
        ({"computed": 2}, "computed twice: ['a']"),
    ],
    ids=["bytes", "numbers", "tasks"],
)
def test_other_bytes_or_numbers_and_repeated_tasks_are_found(changes: dict, said: str, tmp_path: Path) -> None:
    assert compared(tmp_path, **changes)[0] == [said]


def start(status: int, said: str = "", left: tuple[str, ...] = ()) -> SimpleNamespace:
    return SimpleNamespace(status=status, said=said, stage="collect", left=lambda seconds: list(left), end=lambda: None)


@pytest.mark.parametrize(
    ("ended", "fall", "broken"),
    [
        (start(0), KILLED, []),
        (start(-9), KILLED, []),
        (start(130, "error: interrupted; run it again\n"), INTERRUPTED, []),
        (start(1), INTERRUPTED, ["exit status 1 with 0 lines of error"]),
        (start(1, "error: a\nerror: b\n"), INTERRUPTED, ["exit status 1 with 2 lines of error"]),
        (start(1, "Traceback (most recent call last):\nerror: a\n"), INTERRUPTED, ["a traceback"]),
        (start(-9, 'Traceback (most recent call last):\n  File "run.py"\nKeyError: 1\n'), KILLED, ["a traceback"]),
        (start(-9, BEING_STARTED), KILLED, []),
        (start(-9, BEING_STARTED.replace("spawn_main", "run")), KILLED, ["a traceback"]),
        (start(-9, BEING_STARTED.replace("reduction.pickle.load(from_parent)", "read(file)")), KILLED, ["a traceback"]),
        (start(1, BEING_STARTED + "error: a\n"), INTERRUPTED, ["a traceback"]),
        (start(0, WAITS), KILLED, ["it waited for a process that had fallen"]),
        (start(-9, left=("12 raylet",)), KILLED, ["left running: 12 raylet"]),
        (SimpleNamespace(status=None, stage="collect", end=lambda: None), KILLED, ["it hung at collect"]),
    ],
)
def test_a_start_ends_well_or_in_one_line_and_leaves_nothing(ended: SimpleNamespace, fall: Fall, broken: list[str]) -> None:
    assert list(broken_by(ended, [fall], {})) == broken  # type: ignore[arg-type]


def test_a_record_that_was_written_again_is_found(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    record.touch()
    written = record.stat().st_mtime_ns
    assert list(broken_by(start(0), [KILLED], {record: written})) == []  # type: ignore[arg-type]
    assert list(broken_by(start(0), [KILLED], {record: written - 1})) == [f"finished work was repeated: {[str(record)]}"]  # type: ignore[arg-type]


def test_fifty_seeds_fall_at_every_stage_in_every_way_and_a_seed_draws_the_same_again() -> None:
    falls = [fall for seed in range(50) for fall in draw(random.Random(seed), seed, "weights")]
    assert {fall.stage for fall in falls} == set(STAGES["weights"].split(","))
    assert {fall.kind for fall in falls} == set(Kind) - set(DISK_KINDS)
    assert {fall.part for fall in falls} == set(Part) - {Part.ALL, Part.DISK}
    assert draw(random.Random(7), 7, "units") == draw(random.Random(7), 7, "units")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        made = Disk(tmp_path / "disk")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"nothing can be mounted here: {error}")
    yield made
    made.remove()


@pytest.mark.parametrize(
    ("fails", "said"), [(Disk.fill, "got no space left"), (Disk.fail, "got read-only file system")], ids=["full", "read-only"]
)
def test_a_disk_takes_nothing_until_it_is_mended_and_keeps_what_it_had(fails: Callable[[Disk], None], said: str, disk: Disk) -> None:
    write_text(disk.directory / "kept", "kept")
    fails(disk)
    with pytest.raises(SecateurError, match=said):
        write_text(disk.directory / "more", "more" * 2**10)
    disk.mend()
    write_text(disk.directory / "more", "more" * 2**10)
    assert (disk.directory / "kept").read_text() == "kept"


def test_a_frozen_disk_takes_what_waited_once_it_is_thawed(disk: Disk) -> None:
    (disk.directory / "kept").write_bytes(b"kept")
    disk.freeze()
    with ThreadPoolExecutor(1) as threads:
        written = threads.submit(write_text, disk.directory / "more", "more")
        with pytest.raises(TimeoutError):
            written.result(0.5)
        assert (disk.directory / "kept").read_bytes() == b"kept"
        disk.thaw()
        written.result(60)
    assert (disk.directory / "more").read_text() == "more"


def test_a_disk_can_fall_again_before_it_is_mended(disk: Disk) -> None:
    for fall in (disk.freeze, disk.freeze, disk.fill, disk.freeze, disk.fail, disk.fail, disk.freeze, disk.mend):
        fall()
    write_text(disk.directory / "more", "more")


def test_outcomes_are_read_as_they_were_written() -> None:
    outcome = Outcome(3, "ray", "units", [KILLED], 2, 30.0, 20.0, 100, ["error: a"], ["a traceback"])
    assert outcome_of(json.loads(json.dumps(plain(outcome)))) == outcome
    found = figures([outcome, Outcome(4, "local", "units", [], 1, 20.0, 20.0, 100)])
    assert found["broken"] == [3] and found["seconds_lost"] == 10.0 and found["falls_by_part"] == {"driver": 1}


def test_seeds_are_single_ones_and_ranges() -> None:
    assert seeds_of("0-2,8") == [0, 1, 2, 8] and seeds_of("17") == [17]


@pytest.mark.parametrize(
    "seeds", [["3,8,18", "--reference", "local"], pytest.param(["0-49"], marks=pytest.mark.slow), FALLING_DISKS], ids=lambda seeds: seeds[0]
)
def test_runs_that_fall_keep_the_promise(seeds: list[str], tmp_path: Path) -> None:
    """Each is compared with an undisturbed run: on the same cluster, or for the short test without Ray."""
    command = [sys.executable, str(SCRIPTS / "chaos.py"), "--seeds", *seeds, "--folder", str(tmp_path)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr

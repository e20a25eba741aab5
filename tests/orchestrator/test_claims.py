"""Claims between processes: one holder at a time, lost by those that die and kept by those that are stopped."""

import contextlib
import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from tiny import tiny_overrides
from warm import server

from orchestrator import claims
from orchestrator.claims import Claims
from orchestrator.composing import experiment_of
from orchestrator.launch import plan_experiment
from orchestrator.progress import Progress
from orchestrator.run import Run
from orchestrator.store import Store
from orchestrator.tracking.files import FileTracker
from workers.files import finish
from workers.records import Destination, ImportedModel, Record

HOLD = """
import sys
from pathlib import Path
from orchestrator.claims import Claims
from workers.records import Destination
claims = Claims(Path(sys.argv[1]))
with claims.opened("theirs"):
    print(len(claims.take([Destination(key, Path()) for key in sys.argv[2:]])), flush=True)
    sys.stdin.readline()
"""


def destinations(count: int, root: Path = Path()) -> list[Destination]:
    keys = [sha256(str(number).encode()).hexdigest() for number in range(count)]
    return [Destination(key, root / "import" / key[:2] / key[2:18]) for key in keys]


@contextlib.contextmanager
def held(root: Path, wanted: list[Destination]) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the claims on ``wanted``."""
    command = [sys.executable, "-c", HOLD, str(root), *(to.fingerprint for to in wanted)]
    process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == f"{len(wanted)}\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Claims]:
    claims = Claims(tmp_path)
    with claims.opened("mine"):
        yield claims


def test_a_claim_has_one_holder_until_it_is_given_back(tmp_path: Path, mine: Claims) -> None:
    wanted = destinations(3)
    with held(tmp_path, wanted[:2]) as other:
        assert mine.take(wanted) == wanted[2:], "only what the other does not hold"
        assert not mine.any_free(wanted[:2]) and mine.has_driver("theirs") and not mine.has_driver("nobody's")
        found = mine.holder(wanted[0])
        assert found is not None and (found.run, found.pid, found.host) == ("theirs", other.pid, os.uname().nodename)
        assert abs(found.since - time.time()) < 3600 and mine.holder(wanted[2]) is None
        other.communicate("go on\n")
        assert mine.take(wanted) == wanted and not mine.has_driver("theirs")


def test_a_killed_process_loses_its_claims_and_a_stopped_one_keeps_them(tmp_path: Path, mine: Claims) -> None:
    wanted = destinations(2)
    with held(tmp_path, wanted) as other:
        other.send_signal(signal.SIGSTOP)
        os.waitpid(other.pid, os.WUNTRACED)
        assert not mine.take(wanted)
        other.kill()
        other.wait()
        assert mine.take(wanted) == wanted


def test_claims_outlive_another_descriptor_of_the_file(tmp_path: Path, mine: Claims) -> None:
    """Locks of a process, as ``fcntl.lockf`` makes them, would be lost here."""
    wanted = mine.take(destinations(2))
    (tmp_path / claims.FOLDER / claims.FILE).read_bytes()
    with held(tmp_path, []):
        other = Claims(tmp_path)
        with other.opened("theirs"):
            assert not other.take(wanted)


def test_thousands_of_claims_take_one_descriptor_and_leave_one_file(tmp_path: Path) -> None:
    mine, before = Claims(tmp_path), len(os.listdir("/proc/self/fd"))
    with mine.opened("mine"):
        wanted = destinations(5000)
        assert len(mine.take(wanted)) == 5000 and len(os.listdir("/proc/self/fd")) <= before + 1
        mine.release(wanted[7].fingerprint)
        assert mine.any_free(wanted[6:8]) and not any(mine._held.get(to.fingerprint[: claims.DIGITS]) for to in wanted[7:8])
    assert [path.name for path in (tmp_path / claims.FOLDER).iterdir()] == [claims.FILE]
    assert (tmp_path / claims.FOLDER / claims.FILE).stat().st_size == 0


def test_notes_of_killed_drivers_are_removed_by_the_next_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    wanted = destinations(2)
    with held(tmp_path, wanted[:1]) as living:
        with held(tmp_path, wanted[1:]):
            pass
        names = {path.name.split(".")[-3] for path in (tmp_path / claims.FOLDER).glob("*.json")}
        assert len(names) == 2
        with Claims(tmp_path).opened("mine"):
            names = {path.name.split(".")[-3] for path in (tmp_path / claims.FOLDER).glob("*.json")}
            assert names == {str(living.pid)}


def test_guarding_a_result_that_is_claimed_here_does_not_give_the_claim_back(tmp_path: Path, mine: Claims) -> None:
    (wanted,) = mine.take(destinations(1))
    with mine.guarded(wanted.fingerprint) as guarded:
        assert guarded
    other = Claims(tmp_path)
    with other.opened("theirs"):
        with other.guarded(wanted.fingerprint) as guarded:
            assert not guarded
        assert not other.take([wanted])


@pytest.mark.parametrize("again", [False, True])
def test_a_deleted_store_is_noticed_even_if_there_is_a_new_one(tmp_path: Path, again: bool) -> None:
    mine = Claims(tmp_path / "store")
    with mine.opened("mine"):
        assert not mine.is_gone()
        (tmp_path / "store").rename(tmp_path / "deleted")
        other = Claims(tmp_path / "store")
        with other.opened("theirs") if again else contextlib.nullcontext():
            assert mine.is_gone()


def test_a_file_system_without_locks_grants_every_claim_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(claims.NO_LOCKS[0], "no locks")

    monkeypatch.setattr(fcntl, "fcntl", no_locks)
    for _ in range(2):
        mine = Claims(tmp_path)
        with mine.opened("mine"):
            assert not mine.supported and mine.take(destinations(2)) == destinations(2) and mine.any_free(destinations(2))


# --- what runs do with them


@dataclass(frozen=True)
class Noted:
    """A task that writes a line into a file when it is carried out."""

    log: Path
    to: Destination
    waits_for: Path | None = None


def work(worker: object, task: Noted) -> Record[ImportedModel]:
    with task.log.open("a", encoding="utf-8") as file:
        file.write(f"{task.to.fingerprint}\n")
    while task.waits_for is not None and not task.waits_for.exists():
        time.sleep(0.01)
    time.sleep(0.001)
    return finish(task.to, ImportedModel([str(os.getpid())]), time.monotonic())


def carry_out(folder: Path, name: str, wanted: list[Destination], waits_for: Path | None = None) -> None:
    """A driver that needs ``wanted``, and leaves what it got and what it said."""
    with (folder / f"{name}.txt").open("w", encoding="utf-8") as said, Progress(said, live=False) as progress:
        experiment, store = experiment_of(tiny_overrides(folder)), Store(folder / "store")
        plan = plan_experiment(experiment)
        (folder / name).mkdir()
        tracker = FileTracker(name, name, folder / name)
        run = Run(experiment, plan, store, folder / name, progress, tracker, plan.profile)
        experiment.cluster.start(1)
        with store.claims.opened(name):
            records = run.map("work", work, [Noted(folder / "log", to, waits_for) for to in wanted])
        (folder / f"{name}.got").write_text("\n".join(record.fingerprint for record in records), encoding="utf-8")


def driver(*arguments: object) -> BaseProcess:
    process = server().Process(target=carry_out, args=arguments)
    process.start()
    return process


def wait_until(folder: Path, name: str, words: str) -> None:
    path = folder / name
    while not (path.exists() and words in path.read_text(encoding="utf-8")):
        time.sleep(0.01)


def test_three_drivers_with_overlapping_needs_in_different_orders_compute_each_result_once(tmp_path: Path) -> None:
    tiny_overrides(tmp_path)
    everything, draw = destinations(60, tmp_path / "store"), random.Random(0)
    needs = {name: draw.sample(everything, 45) for name in ("a", "b", "c")}
    processes = [driver(tmp_path, name, wanted) for name, wanted in needs.items()]
    for process in processes:
        process.join(3600)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    done = Counter((tmp_path / "log").read_text(encoding="utf-8").split())
    assert done == Counter({to.fingerprint: 1 for to in everything if any(to in wanted for wanted in needs.values())})
    for name, wanted in needs.items():
        assert (tmp_path / f"{name}.got").read_text(encoding="utf-8").split() == [to.fingerprint for to in wanted]


def test_a_driver_waits_for_one_that_is_stopped_and_says_so_and_goes_on_when_it_has_finished(tmp_path: Path) -> None:
    tiny_overrides(tmp_path)
    wanted = destinations(2, tmp_path / "store")
    first = driver(tmp_path, "first", wanted[:1], tmp_path / "go on")
    wait_until(tmp_path, "log", wanted[0].fingerprint)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGSTOP)
    second = driver(tmp_path, "second", wanted)
    wait_until(tmp_path, "second.txt", "waiting for 1 result that process")
    said = (tmp_path / "second.txt").read_text(encoding="utf-8")
    assert f"work: waiting for 1 result that process {first.pid} on {os.uname().nodename} (run first, since 20" in said
    (tmp_path / "go on").touch()
    os.kill(first.pid, signal.SIGCONT)
    for process in (first, second):
        process.join(3600)
    assert (first.exitcode, second.exitcode) == (0, 0)
    assert Counter((tmp_path / "log").read_text(encoding="utf-8").split()) == {to.fingerprint: 1 for to in wanted}


def test_a_driver_takes_over_from_one_that_is_killed_while_it_computes(tmp_path: Path) -> None:
    tiny_overrides(tmp_path)
    wanted = destinations(3, tmp_path / "store")
    first = driver(tmp_path, "first", wanted, tmp_path / "never")
    wait_until(tmp_path, "log", wanted[0].fingerprint)
    second = driver(tmp_path, "second", wanted)
    wait_until(tmp_path, "second.txt", "waiting for 3 results that process")
    first.kill()
    second.join(3600)
    first.join()
    assert second.exitcode == 0
    done = Counter((tmp_path / "log").read_text(encoding="utf-8").split())
    assert done == {wanted[0].fingerprint: 2, wanted[1].fingerprint: 1, wanted[2].fingerprint: 1}, "what was begun is begun again"


def test_a_result_whose_task_fails_is_free_again(tmp_path: Path) -> None:
    tiny_overrides(tmp_path)
    (wanted,) = destinations(1, tmp_path / "store")
    experiment, store = experiment_of(tiny_overrides(tmp_path)), Store(tmp_path / "store")
    plan = plan_experiment(experiment)
    with Progress(live=False) as progress, store.claims.opened("mine"):
        run = Run(experiment, plan, store, tmp_path, progress, FileTracker("a", "a", tmp_path), plan.profile)
        experiment.cluster.start(1)

        def fails(worker: object, task: Noted) -> Record[ImportedModel]:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            run.map("work", fails, [Noted(tmp_path / "log", wanted)])
        other = Claims(tmp_path / "store")
        with other.opened("theirs"):
            assert other.take([wanted]) == [wanted]


def test_the_offset_of_a_result_follows_from_its_fingerprint_and_from_its_directory(tmp_path: Path) -> None:
    """So whoever deletes directories claims the results in them."""
    store = Store(tmp_path)
    to = replace(store.destination("import", a=1))
    assert (to.directory.parent.name + to.directory.name)[: claims.DIGITS] == to.fingerprint[: claims.DIGITS]

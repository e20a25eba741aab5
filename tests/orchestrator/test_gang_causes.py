"""What a run says about a gang that failed: the error of a rank, or that a process died."""

import errno
from pathlib import Path

import pytest

from orchestrator.cluster.gang import cause
from workers import disks
from workers.errors import SecateurError

HERE = Path(__file__).parent


class Died(Exception):
    """Stands for Ray's errors of processes that have died."""


class GangFailed(Exception):
    """Stands for the error of Ray Train, with the errors of ranks by their numbers."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__("the gang failed")
        self.worker_failures = failures


def wrapped(error: Exception) -> Exception:
    outer = RuntimeError("a task failed")
    outer.__cause__ = error
    return outer


def test_the_error_of_a_rank_comes_before_the_death_of_another() -> None:
    ours = SecateurError("the data went away")
    assert cause(GangFailed({0: Died("rank 0 died"), 1: wrapped(ours)}), Died, HERE) is ours


def test_what_the_disk_refused_to_a_rank_comes_before_the_death_of_another() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/results/store")
    found = cause(GangFailed({0: wrapped(full), 1: Died("rank 1 died")}), Died, HERE)
    assert isinstance(found, SecateurError) and str(found).startswith("/results/store: expected room on the disk")


def test_a_process_that_died_is_one_line_with_a_remedy() -> None:
    for error in (Died("it died\nat length"), GangFailed({1: Died("it died")})):
        found = cause(error, Died, HERE)
        assert isinstance(found, SecateurError) and "(it died)" in str(found) and "run the same command again" in str(found)
        assert len(str(found).splitlines()) == 1


def test_a_full_disk_is_told_instead_of_a_process_that_died_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disks, "NO_ROOM", 2**80)  # less is free
    ours = SecateurError("the data went away")
    assert str(cause(Died("it died"), Died, HERE)).startswith(f"{HERE}: expected room on the disk")
    assert cause(GangFailed({0: Died("it died"), 1: wrapped(ours)}), Died, HERE) is ours


def test_an_error_that_nobody_expected_stays_as_it_is() -> None:
    error = GangFailed({0: ValueError("a mistake")})
    assert cause(error, Died, HERE) is error

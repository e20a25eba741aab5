"""What a killed driver had started ends, also if it is stopped; nothing else does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from orchestrator.cluster import watch

HERE = Path(__file__).parent.parent.parent
needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")

DRIVER = """
import os, signal, subprocess, sys, time
from orchestrator.cluster.watch import delete_if_killed, watched

def started(*command, **options):
    return subprocess.Popen([*command, "600"], **options).pid

others = [started("sleep")]
with watched():
    delete_if_killed("session")
    mine = [started("sleep"), started("sleep", start_new_session=True)]
    shell = subprocess.run(["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True)  # its parent is gone
    mine.append(int(shell.stdout))
    forked = os.fork()
    if not forked:
        time.sleep(600)
    mine.append(forked)
    for pid in mine:
        os.kill(pid, signal.SIGSTOP)
    print(*mine, flush=True)
    if sys.argv[1] == "killed":
        time.sleep(600)
others.append(started("sleep"))
print(*others, flush=True)
"""


def driver(folder: Path, how: str) -> subprocess.Popen[str]:
    (folder / "session" / "logs").mkdir(parents=True)
    command = [sys.executable, "-c", DRIVER, how]
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def processes(line: str) -> list[psutil.Process]:
    return [psutil.Process(int(pid)) for pid in line.split()]


@needs_proc
def test_stopped_orphaned_and_forked_processes_of_a_killed_driver_end_and_its_folder_is_deleted(tmp_path: Path) -> None:
    process = driver(tmp_path, "killed")
    assert process.stdout is not None and process.stderr is not None
    mine = processes(process.stdout.readline())
    outside = [child for child in psutil.Process(process.pid).children() if child not in mine and child.name() == "sleep"]
    unrelated = subprocess.Popen(["sleep", "600"], env=os.environ | {watch.MARK: "another"})
    try:
        process.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(mine, timeout=3600)
        assert len(mine) == 4 and not alive
        said = process.stderr.readline()
        assert said == (
            f"error: the driver (process {process.pid}) died and what it left running was ended (processes: 4); "
            "run the same command again to continue: finished work is kept\n"
        )
        assert not (tmp_path / "session").exists()
        assert len(outside) == 1 and outside[0].is_running() and unrelated.poll() is None
    finally:
        for other in (*outside, unrelated):
            other.kill()
        process.wait()
        unrelated.wait()


@needs_proc
def test_when_a_driver_ends_by_itself_only_what_it_started_in_the_context_ends_and_nothing_is_said(tmp_path: Path) -> None:
    process = driver(tmp_path, "ended")
    assert process.stdout is not None and process.stderr is not None
    mine, others = processes(process.stdout.readline()), processes(process.stdout.readline())
    forked = mine.pop()
    try:
        _, alive = psutil.wait_procs(mine, timeout=3600)
        assert not alive
        assert len(others) == 2 and all(other.is_running() for other in (forked, *others))
        assert (tmp_path / "session").exists()
    finally:
        for other in (forked, *others):
            other.kill()
    assert process.communicate()[1] == ""


@needs_proc
def test_the_processes_of_a_point_have_the_marks_of_the_sweep_and_of_the_point() -> None:
    def inner() -> str:
        with watch.watched():
            return os.environ[watch.MARK]

    before = os.environ.get(watch.MARK)
    with watch.watched():
        outer = os.environ[watch.MARK]
        child = subprocess.run([sys.executable, "-c", f"import os; print(os.environ[{watch.MARK!r}])"], capture_output=True, text=True)
        assert child.stdout.strip() == outer
        assert inner().split()[: len(outer.split())] == outer.split()
    assert os.environ.get(watch.MARK) == before


def test_where_the_system_has_no_descriptors_of_processes_a_run_has_no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    monkeypatch.setattr(watch, "_watch", watch._watch.__wrapped__)
    with watch.watched():
        assert watch.MARK not in os.environ or os.environ[watch.MARK]
    watch.delete_if_killed("folder")

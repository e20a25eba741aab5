"""Ends what a driver started and left behind: a small process of its own, the watch, outlives the driver and kills the rest.

A driver that is killed cannot stop its workers. Most of them notice and end by themselves, but not those that are stopped (SIGSTOP), and
some of Ray's processes take minutes. The watch waits for the end of the driver, lets its processes end for ``GRACE_SECONDS``, kills those
that are left, deletes the folders that the driver left to it, and says so in one line.

It finds the processes by a mark: a random word in the variable ``SECATEUR_RUN`` of their environment, which a process inherits from the one
that starts it, and which ``/proc`` shows. Processes that are forked from the driver itself, such as those that decode images, show the
environment of the driver before it was marked; they have the driver's end of the pipe to the watch. Workers on a cluster that the driver
only joined have neither. The words of a run within a sweep are those of the sweep and one more.

Where a system has no ``/proc`` or no descriptors of processes (Linux 5.3), there is no watch.
"""

from __future__ import annotations

import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

MARK = "SECATEUR_RUN"
GRACE_SECONDS = 3.0  # in which processes may end by themselves
LIMIT_SECONDS = 30.0  # a process that is still there then cannot be killed: it waits for a disk, for example
BEGIN, END, DELETE = "begin", "end", "delete "  # lines that a driver writes to its watch


@contextmanager
def watched() -> Iterator[None]:
    """A context in which this process is a driver: what it starts in the context does not outlive it, however it ends."""
    watch, before = _watch(os.getpid()), os.environ.get(MARK)
    if watch is None:
        yield
        return
    os.environ[MARK] = watch.mark if before is None else f"{before} {watch.mark}"
    watch.tell(BEGIN)
    try:
        yield
    finally:
        watch.tell(END)
        os.environ.pop(MARK)
        if before is not None:
            os.environ[MARK] = before


def delete_if_killed(folder: str) -> None:
    """Leaves a folder of this driver to the watch, which deletes it if the driver is killed."""
    watch = _watch(os.getpid())
    if watch is not None:
        watch.tell(DELETE + os.path.abspath(folder))


class Watch:
    """The driver's side of its watch."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(8)
        command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), self.mark]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd="/", start_new_session=True)

    def tell(self, line: str) -> None:
        """Writes a line to the watch, if it is still there."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(os.fsencode(line) + b"\n")
            self._process.stdin.flush()


@cache
def _watch(pid: int) -> Watch | None:
    """The watch of this process, whose number is ``pid``: a forked process has one of its own. None where the system does not allow it."""
    try:
        os.close(os.pidfd_open(pid))
    except (AttributeError, OSError):
        return None
    return Watch() if os.path.exists("/proc/self/environ") else None


# --- the watch itself


def main(driver: int, mark: str) -> None:
    """Waits until the process ``driver`` has ended, and then ends what it left."""
    lines = [os.fsdecode(line) for line in _told_until_end(driver).splitlines()]
    busy = lines.count(BEGIN) > lines.count(END)
    ended = end_processes(mark, _pipe(0) if busy else None)
    if not busy:
        return
    for folder in [line.removeprefix(DELETE) for line in lines if line.startswith(DELETE)]:
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        left = f" and what it left running was ended (processes: {ended})" if ended else ""
        print(
            f"error: the driver (process {driver}) died{left}; run the same command again to continue: finished work is kept",
            file=sys.stderr,
        )


def _told_until_end(driver: int) -> bytes:
    """Waits for the end of a process, and returns what it wrote to the pipe. Its forked processes may keep the pipe open."""
    told, sources = b"", [0]
    with suppress(ProcessLookupError):  # it has ended already
        process = os.pidfd_open(driver)
        while process not in select.select([process, *sources], [], [])[0]:
            told += (read := os.read(0, 4096))
            sources = sources if read else []
    os.set_blocking(0, False)
    return told + (sys.stdin.buffer.read() or b"")


def end_processes(mark: str, pipe: str | None) -> int:
    """Kills every process with the mark, or with the pipe, that does not end in time; returns how many were killed."""
    begun, killed = time.monotonic(), set[int]()
    while (found := list(_marked(mark, pipe))) and time.monotonic() - begun < LIMIT_SECONDS:
        if time.monotonic() - begun >= GRACE_SECONDS:
            for pid in found:
                _kill(pid, mark, pipe)
            killed.update(found)
        time.sleep(0.1)
    return len(killed)


def _marked(mark: str, pipe: str | None) -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid() and _is_marked(int(name), mark, pipe):
            yield int(name)


def _is_marked(pid: int, mark: str, pipe: str | None) -> bool:
    """Whether a process has the mark or the pipe. One that has ended, or belongs to another user, has neither."""
    with suppress(OSError):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        marks = [words.split() for variable in variables for key, _, words in [variable.partition(b"=")] if key == MARK.encode()]
        if any(mark.encode() in words for words in marks):
            return True
        return pipe is not None and any(_pipe(number, pid) == pipe for number in os.listdir(f"/proc/{pid}/fd"))
    return False


def _pipe(number: int | str, pid: int | str = "self") -> str | None:
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/fd/{number}")
    return None


def _kill(pid: int, mark: str, pipe: str | None) -> None:
    """Kills a process, unless its number belongs to another one by now."""
    with suppress(OSError):
        process = os.pidfd_open(pid)
        try:
            if _is_marked(pid, mark, pipe):
                signal.pidfd_send_signal(process, signal.SIGKILL)
        finally:
            os.close(process)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

"""Claims on results: of several drivers that use one store at once, only the one that holds the claim computes a result.

A claim is a lock on one byte of the file ``<store>/locks/claims``, at an offset that the fingerprint gives. The system drops the locks of
a process when it ends, however it ends. So one open file serves any number of results, a driver that was killed leaves nothing behind, and
a driver that is stopped keeps what it holds. The byte of a run's directory is locked (shared) as long as a driver works for the run.

The locks belong to the open file (``F_OFD_SETLK``, see fcntl(2)). Those of ``fcntl.lockf`` belong to the process and end when it closes
any other descriptor of the file, and ``flock`` can only lock whole files. On NFS they are locks on the server, for all machines; NFS 4 ties
them to the leases of its clients, so those of a machine that went down end after the lease time (90 seconds by default). Lustre has to be
mounted with ``flock``. Where a file system has no locks, ``supported`` is False and every claim is granted.

Each driver also leaves a note beside the file, which says what it holds since when. Notes are for people; no decision depends on them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from workers.disks import writing
from workers.records import Destination

FOLDER, FILE = "locks", "claims"
WAIT_SECONDS = 0.2  # between looks at claims of others
QUIET_SECONDS, SAY_SECONDS = 1.0, 60.0  # before it is first said who holds them, and again
DIGITS = 15  # of a fingerprint that make the offset of its byte: 60 bits
FLOCK = "hhqqi4x"  # struct flock of Linux on 64 bits: l_type, l_whence, l_start, l_len, l_pid
TAKEN = (errno.EAGAIN, errno.EACCES)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Holder:
    """A driver, and since when (seconds since the epoch) it computes a result."""

    run: str
    host: str
    pid: int
    since: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (run {self.run}, since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.since))})"


class Claims:
    """The claims of one driver in a store. Forked processes that keep its files open keep them, too."""

    def __init__(self, store: Path) -> None:
        self.folder = store / FOLDER
        self.supported = sys.platform == "linux"
        self._held: dict[str, float] = {}  # the digits of fingerprints, and since when
        self._run = ""
        self._note = self.folder / f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}.json"

    @contextmanager
    def opened(self, run: str) -> Iterator[None]:
        """The claims as those of a driver that works for the run with the directory ``run``. At the end all are given back."""
        self._run = run
        self._lock(fcntl.F_RDLCK, _digits(run))
        self._lock(fcntl.F_WRLCK, _digits(self._note.name))
        self._remove_old_notes()
        try:
            yield
        finally:
            with suppress(OSError):  # of a disk that has become read-only, for example: the run itself says so
                self._note.unlink(missing_ok=True)
            self._file.close()
            del self._file
            self._held = {}

    def take(self, wanted: Iterable[Destination]) -> list[Destination]:
        """Claims those of ``wanted`` that nobody has claimed, and returns them. Does not wait."""
        now, mine = time.time(), [to for to in wanted if self._lock(fcntl.F_WRLCK, to.fingerprint[:DIGITS])]
        self._held |= dict.fromkeys((to.fingerprint[:DIGITS] for to in mine), now)
        if mine:
            self._write_note()
        return mine

    def release(self, fingerprint: str) -> None:
        """Gives a claim back, if it is held."""
        if self._held.pop(fingerprint[:DIGITS], None) is not None:
            self._lock(fcntl.F_UNLCK, fingerprint[:DIGITS])

    @contextmanager
    def taken(self, wanted: Iterable[Destination]) -> Iterator[list[Destination]]:
        """A context in which those of ``wanted`` are claimed that nobody had claimed; those are its value."""
        mine = self.take(wanted)
        try:
            yield mine
        finally:
            for to in mine:
                self.release(to.fingerprint)

    @contextmanager
    def guarded(self, fingerprint: str) -> Iterator[bool]:
        """A context in which nobody else computes or deletes a result, or False. Without a note; the result may be claimed here already."""
        digits = fingerprint[:DIGITS]
        mine = digits not in self._held and self._lock(fcntl.F_WRLCK, digits)
        try:
            yield mine or digits in self._held
        finally:
            if mine:
                self._lock(fcntl.F_UNLCK, digits)

    def any_free(self, wanted: Sequence[Destination]) -> bool:
        """Returns whether somebody could claim one of ``wanted`` now."""
        return any(self._is_free(to.fingerprint[:DIGITS]) for to in wanted)

    def waiting(self, wanted: Sequence[Destination]) -> Iterator[Holder | None]:
        """Ends when one of ``wanted`` can be claimed, or the store is gone. Until then, yields from time to time who holds the first."""
        say_at = time.monotonic() + QUIET_SECONDS
        while True:
            now = time.monotonic()
            if self.any_free(wanted) or self.is_gone():
                return
            if now >= say_at:
                yield self.holder(wanted[0])
                say_at = now + SAY_SECONDS
            time.sleep(max(WAIT_SECONDS, 10 * (time.monotonic() - now)))  # it takes long to ask for very many

    def has_driver(self, run: str) -> bool:
        """Returns whether another driver works for the run with the directory ``run``."""
        return not self._is_free(_digits(run))

    def holder(self, to: Destination) -> Holder | None:
        """Returns who holds the claim on a result, or None if there is no note of it (yet)."""
        holders = []
        for path in self.folder.glob("*.json"):
            try:
                note = json.loads(path.read_text(encoding="utf-8"))
                since = note["held"].get(to.fingerprint[:DIGITS])
                if since is not None and path != self._note:
                    holders.append(Holder(note["run"], note["host"], note["pid"], since))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):  # it was removed a moment ago, or is damaged
                continue
        return max(holders, key=lambda holder: holder.since, default=None)

    def is_gone(self) -> bool:
        """Returns whether the store was deleted since these claims were opened; another driver may have made a new one."""
        opened = os.fstat(self._file.fileno())
        try:
            there = (self.folder / FILE).stat()
        except OSError:
            return True
        return (opened.st_dev, opened.st_ino) != (there.st_dev, there.st_ino)

    @cached_property
    def _file(self) -> BinaryIO:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            return (self.folder / FILE).open("a+b")  # for writing, which write locks need, and closed when this process starts another

    def _lock(self, kind: int, digits: str) -> bool:
        """Sets, or removes, the lock on a byte, if no other driver has it."""
        if not self.supported:
            return True
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _flock(kind, digits))
        except OSError as error:
            if error.errno in NO_LOCKS:
                self.supported = False
            elif error.errno in TAKEN:
                return False
            else:
                raise
        return True

    def _is_free(self, digits: str) -> bool:
        if not self.supported:
            return True
        found = fcntl.fcntl(self._file, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, digits))
        return struct.unpack(FLOCK, found)[0] == fcntl.F_UNLCK

    def _write_note(self) -> None:
        note = {"run": self._run, "host": socket.gethostname(), "pid": os.getpid(), "held": self._held}
        temporary = self._note.with_suffix(".tmp")
        with suppress(OSError):  # of a full disk, for example: results say so
            temporary.write_text(json.dumps(note), encoding="utf-8")
            temporary.replace(self._note)

    def _remove_old_notes(self) -> None:
        """Removes the notes of drivers that were killed. A name is never used again, so none of them can be a living driver's."""
        for path in (*self.folder.glob("*.json"), *self.folder.glob("*.tmp")):
            if path.stem != self._note.stem and self._is_free(_digits(f"{path.stem}.json")):
                path.unlink(missing_ok=True)


def _digits(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:DIGITS]


def _flock(kind: int, digits: str) -> bytes:
    return struct.pack(FLOCK, kind, os.SEEK_SET, int(digits, 16), 1, 0)

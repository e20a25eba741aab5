"""What the system says when a file or a folder cannot be written, as one line with a remedy."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.errors import SecateurError, first_line

NO_ROOM = 1 << 16  # bytes: torch does not say why a file could not be written, and a disk with less free space is the reason
TORCH = ("inline_container", "iostream error", "PytorchStreamWriter")  # in its errors of files that cannot be written
AGAIN = "run the same command again: finished work is kept"
ANOTHER = "set output to another folder"
CAUSES = {  # what was expected, and the remedy
    errno.ENOSPC: ("room on the disk", "free space (mode=plan says how much a run stores), or set output to another disk"),
    errno.EDQUOT: ("room within the quota of the disk", "free space (mode=plan says how much a run stores), or set output to another disk"),
    errno.EFBIG: ("a file of any size to be allowed", f"raise the limit (ulimit -f), or {ANOTHER}"),
    errno.EROFS: ("a disk that can be written", "mount it for writing, or set output to another disk"),
    errno.EACCES: ("permission", f"change the permissions, or {ANOTHER}"),
    errno.EPERM: ("permission", f"change the permissions, or {ANOTHER}"),
    errno.ENAMETOOLONG: ("a path that the file system allows", "shorten output or name"),
    errno.ENOTDIR: ("a folder", f"remove the file that is in its place, or {ANOTHER}"),
    errno.EEXIST: ("a folder", f"remove the file that is in its place, or {ANOTHER}"),
    errno.EISDIR: ("a file", f"remove the folder that is in its place, or {ANOTHER}"),
    errno.EIO: ("a disk that works", "check the disk"),
    errno.ESTALE: ("a disk that is connected", "check the connection to its server"),
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A context in which ``path``, or something in it, is written. Raises: SecateurError if the disk does not take it."""
    try:
        yield
    except SecateurError:
        raise
    except Exception as error:  # libraries raise errors of their own for those of the system
        causes = _of_disk(error)
        number = _number(causes[0]) if causes else None
        if number is None and _is_full(path):
            number = errno.ENOSPC
        if number is not None:
            raise _told(path, number) from error
        if not any(words in str(error) for words in TORCH):
            raise
        raise SecateurError(
            f"{path}: expected a disk that takes the file, got an error that hides the reason ({first_line(error)}); check the room, "
            f"the quota, the permissions and the limits (ulimit -f), then {AGAIN}"
        ) from error


def refusal(error: BaseException, otherwise: Path | None = None) -> SecateurError | None:
    """Returns in one line what keeps a file from being written; None if ``error`` comes from elsewhere.

    ``otherwise`` is the place to name if the error names none.
    """
    known = [cause for cause in _of_disk(error) if isinstance(cause, OSError)]
    if not known:
        return None
    named = next((cause for cause in known if cause.filename is not None), known[0])
    return _told(otherwise if named.filename is None else Path(os.fsdecode(named.filename)), named.errno or 0)


def full(path: Path) -> SecateurError | None:
    """Returns in one line that the disk that ``path`` is on is full; None if it is not. For errors that do not say why."""
    return _told(path, errno.ENOSPC) if _is_full(path) else None


def _told(path: Path | None, number: int) -> SecateurError:
    expected, remedy = CAUSES[number]
    free = _free(path) if path is not None and number in (errno.ENOSPC, errno.EDQUOT) else None
    room = "" if free is None else f", {free / 1e6:.3g} MB free"
    return SecateurError(f"{path or 'output'}: expected {expected}, got {os.strerror(number).lower()}{room}; {remedy}, then {AGAIN}")


def _of_disk(error: BaseException) -> list[BaseException]:
    """Returns those of an error, and the errors that led to it, that are known."""
    return [cause for cause in _causes(error) if _number(cause) in CAUSES]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and those that led to it. Ray keeps the error of a task as ``cause``."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        inner = getattr(error, "cause", None)
        error = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__


def _number(error: BaseException) -> int | None:
    """Returns the number of an error of the system, which libraries written in Rust only have in their text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found.group(1)) if found else None


def _is_full(path: Path) -> bool:
    free = _free(path)
    return free is not None and free < NO_ROOM


def _free(path: Path) -> int | None:
    """Returns the free bytes of the disk that a path, which need not exist, is on."""
    for place in (path, *path.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None

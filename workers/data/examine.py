"""Examination of image files before a run starts. It finds all broken files at once, and examines an unchanged file only once."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from workers.data.listing import DANGLING, SPECIAL, first_few, printable
from workers.errors import ConfigError, SecateurError

BUCKETS = 1024  # parts of a folder, by the hash of names; a part is examined again if a file in it changes
THREADS = 16  # reading the ends of files is mostly waiting for the disk
LISTED = 20  # broken files that a message names; if there are more, a file lists all of them
TAIL = 64  # bytes
ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}


class Broken(Enum):
    """What happens to image files that cannot be read."""

    ERROR = "error"  # the run ends with an error that lists all of them
    SKIP = "skip"  # they are left out, and the report says so


class Examine(Enum):
    """How much of each file is read before a run starts."""

    ENDS = "ends"  # the header, and the end of a JPEG or PNG file; a file of another type, or with an unusual end, is decoded
    DECODE = "decode"  # the whole file is decoded


@dataclass(frozen=True)
class Examined:
    """The result of the examination, which is fixed for the whole run."""

    left_out: dict[str, frozenset[str]]  # by split: names of broken files
    names: dict[str, str]  # by split: a digest of the classes and of the files that are used
    content: str  # of both splits
    remarks: list[str]


def broken_files(
    folder: Path, names: list[str], examine: Examine, cache: Path, advance: Callable[[int], None] = lambda count: None
) -> dict[str, str]:
    """Returns the files of ``folder`` that cannot be read, by name, with the reason.

    Results are kept in the folder ``cache``: files that were examined before, and have the same size and time, are not opened again.
    """
    members: dict[int, list[str]] = defaultdict(list)
    for name in names:
        members[zlib.crc32(os.fsencode(name)) % BUCKETS].append(name)
    path = cache / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]}-{examine.value}.json"
    code, known = _code(), _read(path)
    lasting: dict[str, dict[str, str]] = {}
    broken: dict[str, str] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for bucket in members.values():
            key = _state(folder, bucket, code)
            if key in known:
                lasting[key] = known[key]
            else:
                faults = dict(zip(bucket, pool.map(lambda name: _fault(folder / name, examine), bucket), strict=True))
                known[key] = {name: fault.why for name, fault in faults.items() if fault}
                if all(fault is None or fault.lasting for fault in faults.values()):
                    lasting[key] = known[key]
            broken |= known[key]
            advance(len(bucket))
    _write(path, lasting)
    return broken


class _Fault(NamedTuple):
    why: str
    lasting: bool  # a fault of the file itself, not of the system that reads it


def refuse_broken(where: str, folders: dict[Path, dict[str, str]], cache: Path) -> None:
    """Raises ``ConfigError`` that names the broken files, if there are any. A long list is also written to a file in ``cache``."""
    reasons = {os.path.join(folder, name): why for folder, broken in folders.items() for name, why in broken.items()}
    if not reasons:
        return
    lines = [f"{printable(path)}: {why}" for path, why in reasons.items()]
    more = ""
    if len(lines) > LISTED:
        cache.mkdir(parents=True, exist_ok=True)
        (cache / "broken.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        more = f" and {len(lines) - LISTED} more, all listed in {cache / 'broken.txt'}"
    raise ConfigError(
        f"{where}: expected images that can be read, got {len(lines)} that cannot: {', '.join(lines[:LISTED])}{more}; "
        "remove or replace them, or set data.broken=skip to leave them out"
    )


def left_out_remarks(broken: Iterable[dict[str, str]]) -> list[str]:
    """Returns a sentence for the report about files that were left out; nothing if there are none."""
    reasons = {name: why for part in broken for name, why in part.items()}
    if not reasons:
        return []
    files = first_few([f"{name} ({why})" for name, why in reasons.items()], LISTED)
    return [f"data.broken=skip left out {len(reasons)} files that cannot be read: {files}"]


def digest_of_names(names: Iterable[str]) -> str:
    total = hashlib.sha256()
    for name in names:
        total.update(os.fsencode(name) + b"\0")
    return total.hexdigest()


def digest_of_states(folder: Path, names: Iterable[str]) -> str:
    """Returns a digest of names, sizes and modification times. Raises: ConfigError if a file is missing."""
    total = hashlib.sha256()
    for name in names:
        try:
            status = os.stat(folder / name)
        except OSError as error:
            path = printable(folder / name)
            raise ConfigError(f"data.root: cannot read {path}: {error.strerror}; check that the folder does not change") from error
        total.update(os.fsencode(name) + f" {status.st_size} {status.st_mtime_ns}\n".encode())
    return total.hexdigest()


def check_same(where: Path, names: Iterable[str], before: str) -> None:
    """Raises ``SecateurError`` if ``names`` are not those that the run started with: the folder changed, or another machine has another."""
    if digest_of_names(names) != before:
        raise SecateurError(
            f"data.root: expected the images that the run started with, got others in {printable(where)}; do not change the folder during "
            "a run, and keep it the same on all machines"
        )


def _code() -> str:
    """Returns a digest of the code that examines files."""
    import PIL

    sources = [Path(__file__).read_bytes(), Path(__file__).with_name("rgb.py").read_bytes()]
    return hashlib.sha256(b"".join([*sources, PIL.__version__.encode()])).hexdigest()


def _state(folder: Path, names: list[str], code: str) -> str:
    try:
        states = digest_of_states(folder, names)
    except ConfigError:
        states = os.urandom(8).hex()  # matches no known state
    return hashlib.sha256(f"{code} {states}".encode()).hexdigest()


def _fault(path: Path, examine: Examine) -> _Fault | None:
    """Returns why a file cannot be read; None if it can."""
    from PIL import Image

    from workers.data.rgb import FORMATS, Reading, read_rgb, reason

    if not path.is_file():
        return _Fault(SPECIAL if path.exists() else DANGLING if path.is_symlink() else "no such file", False)
    try:
        with Image.open(path, formats=FORMATS) as image, path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            tail = file.read().rstrip(b"\0")
        ends = ENDS.get(image.format or "")
        complete = ends is not None and (ends in tail if image.format == "PNG" else tail.endswith(ends))
        if examine is Examine.DECODE or not complete:
            read_rgb(str(path), Reading((0, 0, 0), False))
        return None
    except Exception as error:  # of many kinds, as in read_rgb
        cause = error.__cause__ if isinstance(error, SecateurError) and isinstance(error.__cause__, Exception) else error
        return _Fault(reason(cause), not isinstance(cause, MemoryError) and not getattr(cause, "errno", None))


def _read(path: Path) -> dict[str, dict[str, str]]:
    from workers.files import read_sealed

    try:
        return read_sealed(path)
    except (OSError, ValueError):  # there is none, or it is damaged
        return {}


def _write(path: Path, broken_by_state: dict[str, dict[str, str]]) -> None:
    from workers.files import write_sealed

    write_sealed(path, broken_by_state)

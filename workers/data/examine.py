"""Looking at image files before a run begins: those that cannot be read are found all at once, and each file is looked at once."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from workers.data.listing import DANGLING, SPECIAL, shown, some
from workers.errors import ConfigError, SecateurError

BUCKETS = 1024  # parts of a folder, by the hash of names, that are examined anew if a file in them changes
THREADS = 16  # reading the ends of files is mostly waiting
LISTED = 20  # broken files that an error names; a file beside the run's results names all
TAIL = 64  # bytes
ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}


class Broken(Enum):
    """What is done with image files that cannot be read."""

    ERROR = "error"  # the run does not start; all of them are listed
    SKIP = "skip"  # they are left out, which the report tells


class Examine(Enum):
    """How much of each file is read before a run begins."""

    ENDS = "ends"  # the header, and whether it ends as JPEG and PNG files do; of other types, and where there is doubt, all
    DECODE = "decode"  # all of it


@dataclass(frozen=True)
class Examined:
    """What a run knows of its files once it has begun."""

    left_out: dict[str, frozenset[str]]  # by split: names of broken files
    names: dict[str, str]  # by split: a digest of the classes and of the files that are used
    content: str  # of both splits
    remarks: list[str]


def broken_files(
    folder: Path, names: list[str], examine: Examine, cache: Path, advance: Callable[[int], None] = lambda count: None
) -> dict[str, str]:
    """Which files of ``folder`` cannot be read, by name, with the reason. Files that were examined before and have the size and time that
    they had then are not opened again: what was found lies in ``cache``."""
    members: dict[int, list[str]] = defaultdict(list)
    for name in names:
        members[zlib.crc32(os.fsencode(name)) % BUCKETS].append(name)
    path = cache / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]}-{examine.value}.json"
    by, known = _code(), _read(path)
    lasting: dict[str, dict[str, str]] = {}
    broken: dict[str, str] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for bucket in members.values():
            key = _state(folder, bucket, by)
            if key in known:
                lasting[key] = known[key]
            else:
                looked = dict(zip(bucket, pool.map(lambda name: _fault(folder / name, examine), bucket), strict=True))
                known[key] = {name: fault.why for name, fault in looked.items() if fault}
                if all(fault is None or fault.lasting for fault in looked.values()):
                    lasting[key] = known[key]
            broken |= known[key]
            advance(len(bucket))
    _write(path, lasting)
    return broken


class _Fault(NamedTuple):
    why: str
    lasting: bool  # of the file itself, not of the system that reads it


def refuse(where: str, folders: dict[Path, dict[str, str]], cache: Path) -> None:
    """Raise ``ConfigError`` that names the broken files, if there are any. All of them, a line for each, are also written to a file."""
    every = {os.path.join(folder, name): why for folder, broken in folders.items() for name, why in broken.items()}
    if not every:
        return
    lines = [f"{shown(path)}: {why}" for path, why in every.items()]
    more = ""
    if len(lines) > LISTED:
        cache.mkdir(parents=True, exist_ok=True)
        (cache / "broken.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        more = f" and {len(lines) - LISTED} more, all of them in {cache / 'broken.txt'}"
    raise ConfigError(
        f"{where}: expected images that can be read, got {len(lines)} that cannot: {', '.join(lines[:LISTED])}{more}; "
        "remove or replace them, or set data.broken=skip to leave them out"
    )


def told(broken: Iterable[dict[str, str]]) -> list[str]:
    """A sentence for the report on files that were left out."""
    every = {name: why for part in broken for name, why in part.items()}
    if not every:
        return []
    return [f"data.broken=skip left out {len(every)} files that cannot be read: {some([f'{n} ({w})' for n, w in every.items()], LISTED)}"]


def digest_of_names(names: Iterable[str]) -> str:
    total = hashlib.sha256()
    for name in names:
        total.update(os.fsencode(name) + b"\0")
    return total.hexdigest()


def digest_of_states(folder: Path, names: Iterable[str]) -> str:
    """Of names, sizes and modification times. Raises: ConfigError if a file is gone."""
    total = hashlib.sha256()
    for name in names:
        try:
            status = os.stat(folder / name)
        except OSError as error:
            raise ConfigError(f"data.root: {shown(folder / name)} cannot be read: {error.strerror}; did the folder change?") from error
        total.update(os.fsencode(name) + f" {status.st_size} {status.st_mtime_ns}\n".encode())
    return total.hexdigest()


def check_same(where: Path, names: Iterable[str], before: str) -> None:
    """Raise ``SecateurError`` if ``names`` are not those that the run began with: the folder changed, or is another one on this machine."""
    if digest_of_names(names) != before:
        raise SecateurError(
            f"data.root: {shown(where)} does not hold the images that the run began with; keep it as it is while a run lasts, and equal on "
            "all machines"
        )


def _code() -> str:
    """What decides beside the files themselves."""
    import PIL

    sources = [Path(__file__).read_bytes(), Path(__file__).with_name("rgb.py").read_bytes()]
    return hashlib.sha256(b"".join([*sources, PIL.__version__.encode()])).hexdigest()


def _state(folder: Path, names: list[str], by: str) -> str:
    try:
        states = digest_of_states(folder, names)
    except ConfigError:
        states = os.urandom(8).hex()  # known by nothing
    return hashlib.sha256(f"{by} {states}".encode()).hexdigest()


def _fault(path: Path, examine: Examine) -> _Fault | None:
    """Why a file cannot be read."""
    from PIL import Image

    from workers.data.rgb import Reading, read_rgb, reason

    if not path.is_file():
        return _Fault(SPECIAL if path.exists() else DANGLING if path.is_symlink() else "no such file", False)
    try:
        with Image.open(path) as image, path.open("rb") as file:
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
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write(path: Path, found: dict[str, dict[str, str]]) -> None:
    from workers.files import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found))

"""Files that can be trusted: tensors in safetensors, written to a temporary name and moved into place, checked by digest when read.

A result is a directory of files plus ``record.json``, which is written last: a result without a record does not exist. The record has the
digests of the files, and one of all that it says itself.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from workers.disks import writing
from workers.errors import DamagedResult, SecateurError
from workers.memory import peak_so_far
from workers.records import KINDS, Destination, Numbers, Record

if TYPE_CHECKING:
    from torch import Tensor

RECORD = "record.json"
SEAL = "sha256"  # the entry of a sealed file with the digest of all others
Kind = TypeVar("Kind", bound=Numbers)


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A context with a temporary name to write to, which becomes ``path`` at the end: readers see the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """The same, and ``path`` is on the disk at the end: the whole file is there, or nothing.

    Raises: SecateurError if the disk does not take it.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as temporary:
            yield temporary
            flush(temporary)
        flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk. Raises: SecateurError if the disk does not take it."""
    with writing(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that do not flush directories
                raise
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file or nothing."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_lines(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Append JSON objects to a file, one on a line. Half a line at its end, of a killed run or a full disk, is ended first."""
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    with writing(path), path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            text = text if file.read(1) == b"\n" else "\n" + text
        file.write(text.encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects that ``append_lines`` wrote; none if there is no file. Skips lines that are damaged."""
    return parsed_lines(path.read_bytes()) if path.exists() else []


def parsed_lines(text: bytes) -> list[dict[str, Any]]:
    """The JSON objects on the lines of ``text``. Skips lines that are none."""
    entries = []
    for line in text.splitlines():
        with suppress(ValueError, RecursionError):
            entries.append(json.loads(line))
    return [entry for entry in entries if isinstance(entry, dict)]


def write_sealed(path: Path, entries: Mapping[str, Any]) -> None:
    """Write a JSON object with the digest of what it says, which ``read_sealed`` checks."""
    plain = json.loads(json.dumps(entries, default=str))
    write_text(path, json.dumps(plain | {SEAL: _seal(plain)}, indent=1))


def read_sealed(path: Path) -> dict[str, Any]:
    """A JSON object without its digest. Raises: ValueError if it is not what was written; OSError."""
    try:
        entries = json.loads(path.read_bytes())
        seal = entries.pop(SEAL, None)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path.name} is unreadable ({error})") from error
    if seal != _seal(entries):
        raise ValueError(f"{path.name} does not match its checksum")
    return entries


def _seal(entries: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def copy_file(source: Path, path: Path) -> None:
    """Copy a whole file or nothing."""
    with whole(path) as temporary:
        shutil.copyfile(source, temporary)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    """Write a whole safetensors file or nothing; returns its digest."""
    from safetensors.torch import save_file

    with whole(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        return digest(temporary)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises: SecateurError if it is not one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise SecateurError(f"{path}: expected a readable safetensors file, got: {error}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """The header's text entries of a safetensors file. Raises: SecateurError if it is not one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise SecateurError(f"{path}: expected a readable safetensors file, got: {error}") from error


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file that is read in parts: memory is only what is asked for."""

    path: Path

    def shape(self, name: str) -> tuple[int, ...]:
        with self._open() as file:
            return tuple(file.get_slice(name).get_shape())

    def part(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of a tensor."""
        with self._open() as file:
            return file.get_slice(name)[start:stop]

    def whole(self, name: str) -> Tensor:
        with self._open() as file:
            return file.get_tensor(name)

    def names(self) -> set[str]:
        with self._open() as file:
            return set(file.keys())

    def _open(self) -> Any:
        from safetensors import safe_open

        return safe_open(self.path, framework="pt")


def read_result(record: Record[Numbers]) -> dict[str, Tensor]:
    """Tensors of a stored result. Raises: DamagedResult if its bytes are not those that were written."""
    _check(record.file, record.files[record.numbers.file])
    return read_tensors(record.file)


def verified(record: Record[Numbers]) -> TensorFile:
    """The tensors of a stored result, to be read in parts; checked as a whole, once in each process. Raises: DamagedResult."""
    _check_once(record.file, record.files[record.numbers.file])
    return TensorFile(record.file)


def _check(path: Path, expected: str) -> None:
    if not path.exists():
        raise DamagedResult(path.parent, f"{path.name} is missing")
    if digest(path) != expected:
        raise DamagedResult(path.parent, f"{path.name} does not match its checksum")


_check_once = lru_cache(maxsize=4096)(_check)


def finish(to: Destination, numbers: Kind, started: float, written: str | None = None) -> Record[Kind]:
    """Write a result's record, which makes the result exist.

    ``started`` is ``time.monotonic()`` at the start of the work, so that a clock that is set meanwhile does not count; ``written`` is the
    digest of the result's file, if it has one.
    """
    seconds = time.monotonic() - started
    record = Record(
        fingerprint=to.fingerprint,
        directory=to.directory,
        files={} if written is None else {numbers.file: written},
        numbers=numbers,
        worker=worker_name(),
        started=time.time() - seconds,
        seconds=seconds,
        peak_bytes=peak_so_far(),
    )
    _write_record(record)
    return record


def _write_record(record: Record[Any]) -> None:
    entries = {key: value for key, value in asdict(record).items() if key not in ("directory", "computed")}
    write_sealed(record.directory / RECORD, {"verb": record.verb} | entries)


def free(record: Record[Any]) -> int:
    """Delete the files of a result and keep its record, which says so first; returns how many bytes they were."""
    _write_record(replace(record, freed=True))
    freed = 0
    for name in record.files:
        path = record.directory / name
        freed += path.stat().st_size if path.exists() else 0
        path.unlink(missing_ok=True)
    return freed


def delete_result(directory: Path) -> None:
    """Delete a result, its record first: what is left if this is interrupted is no result."""
    (directory / RECORD).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def read_record(directory: Path) -> Record[Any] | None:
    """The result stored in ``directory``, or None if there is none. Raises: DamagedResult if its record cannot be used."""
    try:
        entries = read_sealed(directory / RECORD)
        numbers = KINDS[entries.pop("verb")](**entries.pop("numbers"))
        record = Record(**entries, numbers=numbers, directory=directory, computed=False)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedResult(directory, str(error)) from error
    except (TypeError, KeyError) as error:  # of another version
        raise DamagedResult(directory, f"{RECORD} has other entries ({error})") from error
    missing = [name for name in record.files if not (directory / name).exists()]
    if missing and not record.freed:
        raise DamagedResult(directory, f"{', '.join(missing)} missing")
    return record


def worker_name() -> str:
    """This process, as records and the time line name it."""
    return os.environ.get("SECATEUR_WORKER", f"{socket.gethostname()}:{os.getpid()}")

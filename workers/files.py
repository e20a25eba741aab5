"""Files that can be trusted: tensors in safetensors, written to a temporary name and moved into place, checked by digest when read.

A result is a directory of files plus ``record.json``, which is written last: a result without a record does not exist.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from workers.errors import DamagedResult, SecateurError
from workers.memory import peak_so_far
from workers.records import KINDS, Destination, Numbers, Record

if TYPE_CHECKING:
    from torch import Tensor

RECORD = "record.json"
Kind = TypeVar("Kind", bound=Numbers)


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _move_into_place(temporary: Path, path: Path) -> None:
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def _temporary(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")


def write_text(path: Path, text: str) -> None:
    """Write a whole text file or nothing."""
    temporary = _temporary(path)
    temporary.write_text(text, encoding="utf-8")
    _move_into_place(temporary, path)


def copy_file(source: Path, path: Path) -> None:
    """Copy a whole file or nothing."""
    temporary = _temporary(path)
    shutil.copyfile(source, temporary)
    _move_into_place(temporary, path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    """Write a whole safetensors file or nothing; returns its digest."""
    from safetensors.torch import save_file

    temporary = _temporary(path)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)
    written = digest(temporary)
    _move_into_place(temporary, path)
    return written


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
    write_text(record.directory / RECORD, json.dumps({"verb": record.verb} | entries, indent=1, default=str))


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
        entries = json.loads((directory / RECORD).read_text(encoding="utf-8"))
        numbers = KINDS[entries.pop("verb")](**entries.pop("numbers"))
        record = Record(**entries, numbers=numbers, directory=directory, computed=False)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedResult(directory, f"{RECORD} is unreadable ({error})") from error
    missing = [name for name in record.files if not (directory / name).exists()]
    if missing and not record.freed:
        raise DamagedResult(directory, f"{', '.join(missing)} missing")
    return record


def worker_name() -> str:
    """This process, as records and the time line name it."""
    return os.environ.get("SECATEUR_WORKER", f"{socket.gethostname()}:{os.getpid()}")

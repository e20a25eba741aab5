"""Stores results under fingerprints of everything that they depend on, which lets runs resume and share work."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from copy import copy
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from orchestrator.claims import Claims
from orchestrator.identity.sources import classes_of, code_version
from workers.errors import DamagedResult, SecateurError
from workers.files import delete_result, digest, read_record
from workers.records import MODEL, Destination, Record


class Store:
    """A directory of results that outlives runs, shared by all runs and workers.

    ``components`` are dotted names of the classes that results come from beside their verbs (see ``sources.classes_of``).
    """

    def __init__(self, root: Path, components: Iterable[str] = ()) -> None:
        self.root = root.resolve()
        self.components = tuple(sorted(set(components)))
        self.claims = Claims(self.root)
        self._verified: set[str] = set()
        self._needed: set[str] = set()  # fingerprints of results whose freed files a task has to read

    def made_by(self, components: Iterable[str]) -> Store:
        """The same store, for results of other components."""
        other = copy(self)
        other.components = tuple(sorted(set(components)))
        return other

    def destination(self, verb: str, **inputs: Any) -> Destination:
        """Where the result of ``verb`` on ``inputs`` belongs. The class of an input is one of the components."""
        named = {name for value in inputs.values() if _is_component(value) for name in classes_of(value)}
        key = fingerprint(verb, code=code_version(verb, tuple(sorted(named.union(self.components)))), **inputs)
        return Destination(key, self.directory(verb, key))

    def directory(self, verb: str, key: str) -> Path:
        """The directory of the result of ``verb`` with the fingerprint ``key``."""
        return self.root / verb / key[:2] / key[2:18]

    def find(self, to: Destination) -> Record[Any] | None:
        """The finished result at ``to``, or None. Raises: DamagedResult.

        Model files are verified here, once per driver; all other files where a worker reads them. A result whose files were freed is found
        as long as no task has to read them (see ``need``). The time of the directory is when its result was last found.
        """
        record = read_record(to.directory)
        if record is None or (record.freed and record.fingerprint in self._needed):
            return None
        if record.fingerprint != to.fingerprint:
            raise DamagedResult(to.directory, "its record belongs to other inputs")
        if MODEL in record.files and record.fingerprint not in self._verified:
            if digest(record.file) != record.files[MODEL]:
                raise DamagedResult(to.directory, f"{MODEL} does not match its checksum")
            self._verified.add(record.fingerprint)
        with suppress(OSError):  # the store of somebody else may be read-only
            os.utime(to.directory)
        return record

    def need(self, records: Iterable[Record[Any]]) -> None:
        """Let results whose files were freed be computed again."""
        self._needed |= {record.fingerprint for record in records}

    def discard(self, damaged: DamagedResult) -> bool:
        """Forget a result so that it is computed again; returns whether it was damaged.

        It may not be any more, because another driver is computing it again or has done so, or because its files were freed on purpose.
        """
        if self.root not in damaged.directory.parents:
            raise ValueError(f"{damaged.directory} is not inside the store {self.root}")
        with self.claims.guarded(damaged.directory.parent.name + damaged.directory.name) as mine:
            if not mine or not self._is_damaged(damaged.directory):
                return False
            delete_result(damaged.directory)
            return True

    def _is_damaged(self, directory: Path) -> bool:
        try:
            record = read_record(directory)
        except DamagedResult:
            return True
        if record is None:
            return False
        if record.freed:
            self.need([record])
            return False
        is_other = self.directory(record.verb, record.fingerprint) != directory
        return is_other or any(digest(directory / name) != written for name, written in record.files.items())

    def check(self) -> None:
        """Raises: SecateurError if the store was deleted since it was opened."""
        if self.claims.is_gone():
            raise SecateurError(
                f"{self.root}: the store was deleted while this run used it; run the same command again, which computes what is missing"
            )


def fingerprint(*parts: Any, **inputs: Any) -> str:
    """SHA-256 of any nesting of plain values, enums, paths, dataclasses, records (by their own fingerprint) and destinations."""
    text = json.dumps(_hashable([*parts, inputs]), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def settings_of(component: Any, without: tuple[str, ...] = (), only: tuple[str, ...] | None = None) -> dict[str, Any]:
    """A component's type and those of its fields that matter to a result."""
    fields = {name: value for name, value in asdict(component).items() if name not in without and (only is None or name in only)}
    return {"type": f"{type(component).__module__}.{type(component).__qualname__}", **fields}


def _is_component(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type | Record | Destination)


def _hashable(value: Any) -> Any:
    if isinstance(value, Record | Destination):
        return value.fingerprint
    if _is_component(value):
        return _hashable(settings_of(value))
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): _hashable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_hashable(entry) for entry in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"cannot fingerprint {type(value).__name__}")

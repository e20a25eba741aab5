"""Results as the store keeps them, and where they go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """A finished result. Its files lie beside ``record.json`` in ``directory``; ``files`` maps their names to SHA-256 digests.

    ``started`` is in seconds since the epoch; ``seconds`` is wall time; ``numbers`` is what the driver needs of the result; ``peak_bytes``
    is the most memory that its worker held (see ``workers.memory``), None if that was not watched.
    """

    verb: str
    fingerprint: str
    directory: Path
    files: dict[str, str]
    numbers: dict[str, Any]
    worker: str
    started: float
    seconds: float
    peak_bytes: int | None = None
    computed: bool = True  # False when it was read from the store instead

    def path(self, name: str) -> Path:
        return self.directory / name


@dataclass(frozen=True)
class Destination:
    """Where a result goes: a directory of the store and the fingerprint of everything the result depends on."""

    fingerprint: str
    directory: Path

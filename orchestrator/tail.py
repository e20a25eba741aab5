"""Reads a jsonl file while another process writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Tail:
    """Reads each complete line of a growing jsonl file once, as a dict. Starts over if the file became shorter."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """Returns the lines completed since the last call, or none while the file does not exist. Skips lines that are not JSON objects."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                complete = file.read().rpartition(b"\n")
        except FileNotFoundError:
            self._offset = 0
            return []
        self._offset += len(complete[0]) + len(complete[1])
        return [line for line in map(_parsed, complete[0].splitlines()) if line is not None]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None

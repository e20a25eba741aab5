"""Reading a jsonl file that another process is writing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Tail:
    """Complete lines of a growing jsonl file, each as a dict, each once. A file that became shorter was begun anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """Lines completed since the last call; none while the file does not exist. What is not a JSON object is passed over."""
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
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None

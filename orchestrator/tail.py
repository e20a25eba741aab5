"""Reads a jsonl file while another process writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workers.files import parsed_lines


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
        return parsed_lines(complete[0])

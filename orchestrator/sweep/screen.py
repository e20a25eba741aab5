"""Shows the progress of several points: a live row for each on a terminal, lines that begin with the number of the point elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text


class Screen:
    """Used as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stdout)
        self._rows: dict[int, tuple[str, str]] = {}  # of the points that run: what they override, and their last line
        self._live = Live(console=self._console, refresh_per_second=5, transient=True) if self._console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, number: int, text: str) -> None:
        """Prints a line of the sweep about a point."""
        line = f"[{number}] {text}"
        if self._live is None:
            print(line, file=self._console.file, flush=True)
        else:
            self._console.print(Text(line))

    def show(self, number: int, words: str, line: str) -> None:
        """Shows a line that a point printed."""
        if self._live is None:
            self.say(number, line)
            return
        self._rows[number] = (words, line or self._rows.get(number, ("", ""))[1])
        self._live.update(self._table())

    def ended(self, number: int, text: str) -> None:
        """Says how a point ended."""
        self._rows.pop(number, None)
        if self._live is not None:
            self._live.update(self._table())
        self.say(number, text)

    def _table(self) -> Table:
        table = Table("point", "settings", "last line", box=None, header_style="dim", expand=True)
        for number, (words, line) in sorted(self._rows.items()):
            table.add_row(Text(str(number)), Text(words, overflow="ellipsis", no_wrap=True), Text(line, overflow="ellipsis", no_wrap=True))
        return table

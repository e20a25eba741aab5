"""Shows the progress of a run: live bars on a terminal, lines of text elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from orchestrator.quantities import count, duration
from orchestrator.tail import Tail

POLL_SECONDS = 0.2
LINE_SECONDS = 10.0  # without a terminal: a line after this time, or after a tenth of the stage, but at most one per second
LINE_FRACTION = 0.1
LEAST_STEPS, LEAST_FRACTION = 3, 0.1  # no estimate of the remaining time before so many steps, and this part of the stage, are done
LEAST_SHARE = 0.25
AT_ONCE_SECONDS = 0.1  # steps that end so soon after the start of the stage were read from the store


class Watcher(Protocol):
    """Learns of the stages of a run, beside the display."""

    def entered(self, stage: str, done: int = 0, total: int | None = None) -> None: ...

    def moved(self, stage: str, done: int, total: int | None) -> None: ...


class Stage:
    """One row of the display, used as a context manager. Entering a stage again continues it: totals add up.

    ``total`` is None while it is unknown, and ``planned_seconds`` if there is no plan. An exception marks the stage as failed and
    propagates.
    """

    def __init__(self, name: str, display: Display, clock: Callable[[], float], watcher: Watcher | None = None) -> None:
        self.name = name
        self.total: int | None = None
        self.planned_seconds: float | None = None
        self.done = 0
        self.note = ""
        self.state = "waiting"  # waiting, running, done, failed
        self._display = display
        self._clock = clock
        self._watcher = watcher
        self._started = 0.0
        self._before = 0.0
        self._first: tuple[float, int] | None = None  # when the first step that took time had ended, and how many were done then
        self._lock = threading.RLock()

    @property
    def seconds(self) -> float:
        return self._before + (self._clock() - self._started if self.state == "running" else 0.0)

    @property
    def remaining_seconds(self) -> float | None:
        """The remaining time at the mean speed so far, or None if that is unknown.

        The first step is left out, because it often compiles kernels or loads files for all others. Steps on other workers often end soon
        after it, so the time since then has to be ``LEAST_SHARE`` of the time before.
        """
        if self._first is None or not self.total or not max(LEAST_STEPS, LEAST_FRACTION * self.total) <= self.done < self.total:
            return None
        when, done = self._first
        since = self.seconds - when
        return since / (self.done - done) * (self.total - self.done) if self.done > done and since >= LEAST_SHARE * when else None

    def expect(self, total: int | None, planned_seconds: float | None = None) -> None:
        """Adds ``total`` steps to the stage, which are planned to take ``planned_seconds``."""
        self.total = None if total is None else (self.total or 0) + total
        self.planned_seconds = planned_seconds

    def __enter__(self) -> Self:
        self.state, self._started = "running", self._clock()
        if self._watcher is not None:
            self._watcher.entered(self.name, self.done, self.total)
        self._display.started(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._before, self.state = self.seconds, "failed" if error else "done"
            self._display.ended(self, error)

    def advance(self, n: int = 1, note: str = "") -> None:
        """Marks ``n`` more steps as done. ``note`` describes the last one."""
        with self._lock:
            self.reach(self.done + n, self.total, note)

    def reach(self, done: int, total: int | None, note: str = "") -> None:
        """Sets the number of steps that are done, and the total."""
        with self._lock:
            self.done, self.total, self.note = done, total, note
            if self._first is None and self.seconds > AT_ONCE_SECONDS:
                self._first = (self.seconds, done)
            if self._watcher is not None:
                self._watcher.moved(self.name, done, total)
            self._display.moved(self)

    @contextmanager
    def follow(self, path: Path) -> Iterator[None]:
        """Follows the progress file of a training, whose lines hold ``step``, ``steps``, ``epoch``, ``loss`` and more.

        The file need not exist yet. When the block has ended, all lines written before have been read.
        """
        tail, stop = Tail(path), threading.Event()

        def read() -> None:
            for line in tail.read():
                self.reach(int(line.get("step", self.done)), line.get("steps", self.total), training_note(line))

        def watch() -> None:
            while not stop.wait(POLL_SECONDS):
                read()

        thread = threading.Thread(target=watch, name=f"follow {path.name}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            read()


def training_note(line: dict[str, Any]) -> str:
    """Returns a summary of a progress line."""
    parts = (
        (f"{name} {line[name]:.4g}" if name == "loss" else f"{name} {line[name]}")
        for name in ("epoch", "loss")
        if line.get(name) is not None
    )
    speed = line.get("images_per_second")
    return ", ".join([*parts, *([f"{speed:,.0f} images/s"] if speed is not None else [])])


class Progress:
    """The display of a run: ``with Progress() as progress: with progress.stage("collect", 12) as stage: stage.advance(1, "blocks.0")``."""

    def __init__(
        self,
        stream: TextIO | None = None,
        live: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
        watcher: Watcher | None = None,
    ) -> None:
        """Shows bars if ``live``, else lines. By default, bars if ``stream`` (standard output) is a terminal."""
        stream = stream or sys.stdout
        live = stream.isatty() if live is None else live
        self._display: Display = Bars(stream) if live else Lines(stream, clock)
        self._clock = clock
        self._watcher = watcher
        self._stages: dict[str, Stage] = {}

    def __enter__(self) -> Self:
        self._display.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._display.close()

    def stage(self, name: str, total: int | None, planned_seconds: float | None = None) -> Stage:
        """Returns the stage called ``name``, with ``total`` more steps. Enter it as a context manager.

        ``planned_seconds``, the time that the plan predicts, is shown until the stage itself allows an estimate.
        """
        stage = self._stages.setdefault(name, Stage(name, self._display, self._clock, self._watcher))
        stage.expect(total, planned_seconds)
        return stage

    def entered(self, stage: str) -> None:
        """Says to the watcher that work begins which has no row of its own."""
        if self._watcher is not None:
            self._watcher.entered(stage)

    def note(self, text: str) -> None:
        self._display.say(text, warning=False)

    def warn(self, text: str) -> None:
        self._display.say(text, warning=True)


class Display(ABC):
    """How stages are shown."""

    @abstractmethod
    def open(self) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def started(self, stage: Stage) -> None: ...

    @abstractmethod
    def moved(self, stage: Stage) -> None: ...

    @abstractmethod
    def ended(self, stage: Stage, error: BaseException | None) -> None: ...

    @abstractmethod
    def say(self, text: str, warning: bool) -> None: ...


class Lines(Display):
    """Prints a line when a stage starts, from time to time while it runs, and when it ends."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._last = (0.0, 0)  # when the stage's last line was printed, and how many steps were done

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def started(self, stage: Stage) -> None:
        self._last = (self._clock(), stage.done)
        if stage.done == 0:
            parts = ["started", count(stage.total, "task") if stage.total else "", _planned(stage)]
            self._print(f"{stage.name}: {_listed(parts)}")

    def moved(self, stage: Stage) -> None:
        when, done = self._last
        waited, tenth = self._clock() - when, stage.total is not None and stage.done - done >= LINE_FRACTION * stage.total
        if stage.done == stage.total or not (waited >= LINE_SECONDS or (tenth and waited >= 1)):
            return
        self._last = (self._clock(), stage.done)
        remaining = stage.remaining_seconds
        parts = [_counted(stage), duration(stage.seconds), "" if remaining is None else f"about {duration(remaining)} left", stage.note]
        self._print(f"{stage.name}: {_listed(parts)}")

    def ended(self, stage: Stage, error: BaseException | None) -> None:
        how = "done" if error is None else f"failed ({type(error).__name__})"
        self._print(f"{stage.name}: {_listed([f'{how} in {duration(stage.seconds)}', _counted(stage), stage.note])}")

    def say(self, text: str, warning: bool) -> None:
        self._print(f"warning: {text}" if warning else text)

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


def _counted(stage: Stage) -> str:
    if not stage.total:
        return f"{stage.done} so far" if stage.done else ""
    return f"{stage.done}/{stage.total} ({100 * stage.done / stage.total:.0f} %)"


def _planned(stage: Stage) -> str:
    return "" if stage.planned_seconds is None or stage.planned_seconds < 1 else f"planned {duration(stage.planned_seconds)}"


def _listed(parts: list[str]) -> str:
    return ", ".join(part for part in parts if part)


class TimeColumn(ProgressColumn):
    """Shows the elapsed and the remaining time of a stage; the planned time while the remaining is not known."""

    def render(self, task: Task) -> Text:
        stage: Stage = task.fields["stage"]
        if stage.state != "running":
            return Text(duration(stage.seconds), style="cyan")
        remaining = stage.remaining_seconds
        left = _planned(stage) if remaining is None else f"{duration(remaining)} left"
        return Text(duration(stage.seconds), style="cyan") + Text(f", {left}" if left else "", style="dim")


class Bars(Display):
    """Shows a live row for each of the last ``ROWS`` stages, since a terminal cuts off more: mark, name, bar, count, times, last note."""

    ROWS = 20
    MARKS: ClassVar = {"waiting": " ", "running": "›", "done": "[green]✓[/green]", "failed": "[red]✗[/red]"}

    def __init__(self, stream: TextIO) -> None:
        self._rich = RichProgress(
            TextColumn("{task.fields[mark]}"),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", markup=False, style="dim", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=Console(file=stream, force_terminal=True),
            refresh_per_second=5,
        )
        self._rows: dict[str, TaskID] = {}

    def open(self) -> None:
        self._rich.start()

    def close(self) -> None:
        self._rich.stop()

    def started(self, stage: Stage) -> None:
        if stage.name not in self._rows:
            if len(self._rows) >= self.ROWS:
                self._rich.remove_task(self._rows.pop(self._oldest_ended()))
            self._rows[stage.name] = self._rich.add_task(stage.name, mark="", note="", stage=stage, total=stage.total)
        self.moved(stage)

    def _oldest_ended(self) -> str:
        """Prints the oldest stage that has ended as a line above the bars, and returns its name."""
        stages = {task.fields["stage"].name: task.fields["stage"] for task in self._rich.tasks}
        name = next((name for name, stage in stages.items() if stage.state != "running"), next(iter(stages)))
        self._rich.console.print(Text(f"{name}: {_listed([stages[name].state, duration(stages[name].seconds)])}", style="dim"))
        return name

    def moved(self, stage: Stage) -> None:
        row = self._rows[stage.name]
        self._rich.update(row, completed=stage.done, total=stage.total, mark=self.MARKS[stage.state], note=stage.note)

    def ended(self, stage: Stage, error: BaseException | None) -> None:
        self.moved(stage)
        if error is None and stage.total is None:  # a bar without a total would keep pulsing
            self._rich.update(self._rows[stage.name], total=stage.done)

    def say(self, text: str, warning: bool) -> None:
        self._rich.console.print(Text(f"warning: {text}", style="yellow") if warning else Text(text))

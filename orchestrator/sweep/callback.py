"""Hydra's callback that writes the page of a sweep after each point, and ends the command with the exit status of all points."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from orchestrator.sweep.records import Point, read_points, write_command
from workers.errors import first_line


class SweepPage(Callback):
    """Writes ``sweep.html`` and ``sweep.json``. Does nothing in a single run.

    Hydra copies it into the processes of points. It keeps nothing of them but their folders: what the page shows is read from files.
    """

    def __init__(self) -> None:
        self.folders: set[Path] = set()  # more than one if the points differ in ``output``

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        from orchestrator.command import command

        folder = folder_of(config)
        self.folders = {folder}
        write_command(folder, command(), list(config.hydra.overrides.task))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if config.hydra.mode is RunMode.MULTIRUN:
            self.folders.add(folder_of(config))
            write(folder_of(config))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        folders = {folder: read_points(folder) for folder in sorted(self.folders)}
        pages = [page for folder in folders if (page := write(folder)) is not None]
        for page in pages:
            print(f"sweep:  {page}")
        points = [point for found in folders.values() for point in found]
        failed = [point for point in points if point.has_failed]
        if failed:
            where = ", ".join(str(page) for page in pages or folders)
            print(f"{len(failed)} of {len(points)} points failed; see {where}", file=sys.stderr)
            sys.exit(status_of(failed))


def folder_of(config: DictConfig) -> Path:
    """The directory of a sweep."""
    return Path(str(config.hydra.sweep.dir)).resolve()


def status_of(failed: list[Point]) -> int:
    """The exit status of a sweep: 2 if all that failed had bad settings, else 1."""
    return 2 if all(point.status == 2 for point in failed) else 1


def write(folder: Path) -> Path | None:
    """Writes the page of the points so far; None if they have nothing to show, as with mode=plan, or if it cannot be written.

    Whatever goes wrong here is a warning: it must neither end a sweep nor change its exit status.
    """
    from orchestrator.sweep.gather import compared_points
    from orchestrator.sweep.page import write_page

    try:
        compared = compared_points(folder)
        return write_page(compared, folder) if compared.runs or compared.failures else None
    except Exception as error:
        print(f"warning: {folder}: the page of the sweep was not written: {type(error).__name__}: {first_line(error)}", file=sys.stderr)
        return None

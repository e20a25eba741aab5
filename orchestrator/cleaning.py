"""Frees space in a store: what no kept run needs, or at the end of a run its intermediate files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path

from orchestrator.config import Clean
from orchestrator.quantities import listed
from orchestrator.report.write import REPORT_FILES
from orchestrator.store import Store
from workers.checks import Phrase, require
from workers.errors import DamagedResult
from workers.files import RECORD, delete_result, free, read_lines, read_record
from workers.records import KINDS

TASKS = "tasks.jsonl"
LATENCY_TABLE = "latency.parquet"  # as in allocation.latency_table, which imports torch
KEY = 18  # digits of a fingerprint in the path of a result


@dataclass(frozen=True)
class Stored:
    """The directory of a result: its place, the beginning of its fingerprint, its bytes, and when it was last written or found.

    A result without a record is not finished; it may be a training to resume.
    """

    directory: Path
    verb: str
    key: str
    bytes: int
    used: float
    is_finished: bool


@dataclass(frozen=True)
class RunDirectory:
    """A directory of a run: the results that it read or computed, when it last did so, and whether a driver works for it now."""

    name: str
    needs: frozenset[str]
    used: float
    is_finished: bool
    is_running: bool
    is_kept: bool


@dataclass(frozen=True)
class Survey:
    """What a store holds, and for which runs. ``other_bytes`` are of files that are no results, such as modules and samples."""

    results: tuple[Stored, ...]
    runs: tuple[RunDirectory, ...]
    other_bytes: int

    @property
    def bytes(self) -> int:
        return self.other_bytes + sum(result.bytes for result in self.results)

    def unneeded(self) -> list[Stored]:
        """Results that no kept run needs, the longest unused first. A kept run that is not finished may need any unfinished result."""
        kept = [run for run in self.runs if run.is_kept]
        needed = frozenset[str]().union(*(run.needs for run in kept))
        resumed = any(not run.is_finished for run in kept)
        free = [result for result in self.results if result.key not in needed and (result.is_finished or not resumed)]
        return sorted(free, key=lambda result: result.used)

    def to_free(self, clean: Clean) -> list[Stored]:
        """The unneeded results to free until the store has the size that ``clean`` asks for."""
        chosen, left = [], self.bytes
        for result in self.unneeded():
            if clean.size_gb is not None and left <= clean.size_gb * 1e9:
                break
            chosen.append(result)
            left -= result.bytes
        return chosen


def survey(store: Store, clean: Clean) -> Survey:
    """What the store and the directories beside it hold. Raises: ConfigError if a name in ``clean.keep`` matches no run."""
    results = tuple(_results(store.root))
    runs = sorted((path.parent for path in store.root.parent.glob(f"*/{TASKS}")), key=lambda path: path.name)
    for pattern in clean.keep:
        names = [path.name for path in runs]
        near = get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
        found = Phrase(f"{pattern!r}, which matches none of {len(names)}")
        require(any(_matches(name, pattern) for name in names), "clean.keep", "names of run directories", found, f"there is {listed(near)}")
    others = {*store.root.iterdir()} - {store.root / result.verb for result in results}
    return Survey(results, tuple(_run(path, store, clean) for path in runs), sum(_measure(path)[0] for path in others))


def free_results(store: Store, results: Iterable[Stored]) -> list[Stored]:
    """Deletes results and returns those that it deleted: not those that a driver holds, or has written or found since the survey."""
    freed = []
    for result in results:
        with store.claims.guarded(result.key) as mine:
            if mine and _measure(result.directory)[1] <= result.used:
                delete_result(result.directory)
                freed.append(result)
    return freed


def free_intermediate(store: Store, directory: Path) -> int:
    """Deletes the intermediate files of the results of a run, except those that other running drivers have read; returns how many bytes."""
    others = [path.parent for path in directory.parent.glob(f"*/{TASKS}") if path.parent != directory]
    used = frozenset[str]().union(*(frozenset(_noted(path)) for path in others if store.claims.has_driver(path.name)))
    freed = 0
    for key, verb in _noted(directory).items():
        if key in used or verb not in KINDS or not KINDS[verb].intermediate:
            continue
        with store.claims.guarded(key) as mine:
            try:
                record = read_record(store.directory(verb, key))
            except DamagedResult:  # a run that needs it says so
                continue
            if mine and record is not None and not record.freed:
                freed += free(record)
    return freed


def _noted(run: Path) -> dict[str, str]:
    """The beginning of the fingerprint, and the verb, of each result that a run read or computed."""
    noted = {}
    for entry in read_lines(run / TASKS):
        key, verb = entry.get("fingerprint"), entry.get("verb")
        if isinstance(key, str) and isinstance(verb, str):
            noted[key[:KEY]] = verb
    return noted


def _run(path: Path, store: Store, clean: Clean) -> RunDirectory:
    used, running = (path / TASKS).stat().st_mtime, store.claims.has_driver(path.name)
    ends = [end.stat().st_mtime for end in (path / REPORT_FILES[-1], path / LATENCY_TABLE) if end.exists()]
    return RunDirectory(
        name=path.name,
        needs=frozenset(_noted(path)),
        used=used,
        is_finished=max(ends, default=0.0) >= used,
        is_running=running,
        is_kept=running or not clean.keep or any(_matches(path.name, pattern) for pattern in clean.keep),
    )


def _matches(name: str, pattern: str) -> bool:
    first, _, last = name.rpartition("-")
    return fnmatch(name, pattern) or first == pattern or (bool(pattern) and last.startswith(pattern))


def _results(root: Path) -> Iterator[Stored]:
    for directory in root.glob("*/??/*"):
        key = directory.parent.name + directory.name
        if re.fullmatch(f"[0-9a-f]{{{KEY}}}", key) and directory.is_dir():
            size, used = _measure(directory)
            yield Stored(directory, directory.parent.parent.name, key, size, used, (directory / RECORD).exists())


def _measure(directory: Path) -> tuple[int, float]:
    """The bytes of all files in a directory, and the latest time of it, a folder or a file in it. What disappears meanwhile is left out."""
    total, latest = 0, 0.0
    for path in (directory, *directory.rglob("*")):
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        total += 0 if path.is_dir() else found.st_size
        latest = max(latest, found.st_mtime)
    return total, latest


def by_verb(results: Sequence[Stored]) -> dict[str, list[Stored]]:
    """Results by their verb, or as unfinished."""
    found: dict[str, list[Stored]] = {}
    for result in sorted(results, key=lambda result: (not result.is_finished, result.verb)):
        found.setdefault(result.verb if result.is_finished else "unfinished", []).append(result)
    return found

"""Prints what a store holds, which runs need it, and what is freed."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table

from orchestrator.cleaning import RunDirectory, Stored, Survey, by_verb
from orchestrator.config import Clean
from orchestrator.quantities import count, size


def clean_table(found: Survey, to_free: Sequence[Stored], clean: Clean) -> RenderableType:
    """Returns the results by verb, the runs, and a sentence on what would be freed."""
    freed = sum(result.bytes for result in to_free)
    sentences = [] if to_free else ["There is nothing to free."]
    if to_free and not clean.free:
        sentences = [f"clean.free=true frees {count(len(to_free), 'result')}, {size(freed)}."]
    return Group(_results(found, to_free), _runs(found), *sentences, *_shortfall(found.bytes - freed, clean))


def _results(found: Survey, to_free: Sequence[Stored]) -> Table:
    table = Table(title="The store", title_justify="left")
    for column in ("results", "number", "size", "to free", "size", "oldest use", "last use"):
        table.add_column(column, justify="left" if column == "results" else "right", no_wrap=True)
    chosen = by_verb(to_free)
    for verb, results in by_verb(found.results).items():
        used = [result.used for result in results]
        table.add_row(verb, *_amount(results), *_amount(chosen.get(verb, [])), _day(min(used)), _day(max(used)))
    if found.other_bytes:
        table.add_row("other files", "", size(found.other_bytes), "", "", "", "")
    freed = sum(result.bytes for result in to_free)
    table.add_row("all", f"{len(found.results):,}", size(found.bytes), f"{len(to_free):,}", size(freed), "", "", style="bold")
    return table


def _runs(found: Survey) -> Table:
    table = Table(title="Runs", title_justify="left")
    for column in ("run", "state", "results", "size", "last use", "kept"):
        table.add_column(column, justify="left" if column in ("run", "state", "kept") else "right", overflow="fold")
    bytes_of = {result.key: result.bytes for result in found.results}
    for run in found.runs:
        there = [bytes_of[key] for key in run.needs if key in bytes_of]
        table.add_row(run.name, _state(run), f"{len(there):,}", size(sum(there)), _day(run.used), "yes" if run.is_kept else "no")
    return table


def _state(run: RunDirectory) -> str:
    return "running" if run.is_running else "finished" if run.is_finished else "interrupted"


def _shortfall(left: int, clean: Clean) -> list[str]:
    if clean.size_gb is None or left <= clean.size_gb * 1e9:
        return []
    remedy = "name fewer runs in clean.keep" if clean.keep else "name the runs to keep in clean.keep"
    return [f"{size(left)} remain, more than clean.size_gb={clean.size_gb:g}, because runs need them; {remedy}."]


def _amount(results: Sequence[Stored]) -> tuple[str, str]:
    return (f"{len(results):,}", size(sum(result.bytes for result in results))) if results else ("", "")


def _day(when: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(when))

"""Collects runs to compare: the points of a sweep from their records, or any reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.sweep.comparison import Comparison, Failure, compare
from orchestrator.sweep.records import Point, State, is_sweep, read_command, read_points, swept
from orchestrator.sweep.reports import REPORT, Json, is_number, read_report
from orchestrator.sweep.settings import Run
from workers.errors import ConfigError

UNENDED = "it has not ended: it is still running, or its process was killed"


def compared_points(sweep: Path) -> Comparison:
    """Returns the comparison of the points of a sweep, as far as they have got."""
    command, overrides = read_command(sweep)
    runs, failures = points_of(sweep, overrides)
    return compare(runs, f"sweep of {sweep.resolve().name}", command, failures)


def points_of(sweep: Path, overrides: Sequence[str]) -> tuple[list[Run], list[Failure]]:
    """Returns the points of a sweep that have a report, and those that failed. ``overrides`` are those of the whole sweep."""
    runs, failures = [], []
    for point in read_points(sweep):
        if point.state is not State.DONE:
            failures.append(_failure(sweep, point, point.error or UNENDED, overrides))
        elif point.report is not None:
            try:
                file = sweep / point.report / REPORT
                runs.append(Run(read_report(file), file, point.seconds, point.number, tuple(point.overrides)))
            except ConfigError as error:
                failures.append(_failure(sweep, point, str(error), overrides))
    return runs, failures


def _failure(sweep: Path, point: Point, error: str, overrides: Sequence[str]) -> Failure:
    trace = None if point.traceback is None else sweep / point.traceback
    return Failure(point.number, tuple(point.overrides), " ".join(swept(point.overrides, list(overrides))), error, trace)


def compared_reports(places: Sequence[Path]) -> tuple[Comparison, list[str]]:
    """Returns the comparison of reports, directories of runs and directories of sweeps, and a line for each place without a report.

    Raises: ConfigError if no place has a report.
    """
    if len(places) == 1 and is_sweep(places[0]):
        return compared_points(places[0]), []
    runs: dict[Path, Run] = {}
    failures: list[Failure] = []
    skipped: list[str] = []
    for place in places:
        if is_sweep(place):
            points, failed = points_of(place, read_command(place)[1])
            runs |= {run.file.resolve(): run for run in points}
            failures += failed
            continue
        file = place / REPORT if place.is_dir() else place
        if place.is_dir() and not file.exists():
            skipped.append(f"{place}: it has no {REPORT}")
            continue
        try:
            report = read_report(file)
        except ConfigError as error:
            skipped.append(str(error))
            continue
        runs.setdefault(file.resolve(), Run(report, file, _seconds(report)))
    if not runs and not failures:
        raise ConfigError(skipped[0] if len(skipped) == 1 else f"none of {len(skipped)} places has the {REPORT} of a run; {skipped[0]}")
    return compare(list(runs.values()), "comparison", "", failures), skipped


def _seconds(report: Json) -> float | None:
    """The time of all stages of a run."""
    stages = report.get("stage_seconds")
    known = [seconds for seconds in stages.values() if is_number(seconds)] if isinstance(stages, dict) else []
    return sum(known) if known else None

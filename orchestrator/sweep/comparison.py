"""Many runs beside each other: rows of runs that differ only in the seed, the columns that vary, and the fronts of every two of them."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from statistics import mean, pstdev

from orchestrator.sweep.columns import Column, columns_of, values_of
from orchestrator.sweep.pareto import front
from orchestrator.sweep.settings import Run, axes_of, axis_text, seed_of, settings_but_seed


@dataclass(frozen=True)
class Value:
    """The mean of ``count`` runs and their standard deviation, which is 0 for a single run."""

    mean: float
    spread: float
    count: int


@dataclass(frozen=True)
class Row:
    """Runs that differ only in the seed. ``place`` are their texts on the axes, ``values`` their numbers by the keys of columns."""

    place: list[str]
    runs: list[Run]
    values: dict[str, Value]

    def mean(self, key: str) -> float | None:
        return self.values[key].mean if key in self.values else None


@dataclass(frozen=True)
class Failure:
    """A point without a result, and why. ``overrides`` are all that it was composed with, ``settings`` those that the sweep does not share.

    ``traceback`` is the file with the trace of an unexpected error.
    """

    number: int
    overrides: tuple[str, ...]
    settings: str
    error: str
    traceback: Path | None = None


@dataclass(frozen=True)
class Comparison:
    """``columns`` are those that at least one run has a value for."""

    title: str
    command: str
    axes: list[str]
    columns: list[Column]
    rows: list[Row]
    failures: list[Failure]

    @property
    def runs(self) -> list[Run]:
        return [run for row in self.rows for run in row.runs]

    @cached_property
    def varying(self) -> list[Column]:
        """The columns that differ between runs; of a single run, all of them."""
        return [column for column in self.columns if len(self.rows) == 1 or not self._is_constant(column)]

    @cached_property
    def constant(self) -> list[Column]:
        """The columns with the same value in every run."""
        return [column for column in self.columns if column not in self.varying]

    def _is_constant(self, column: Column) -> bool:
        means = {row.mean(column.key) for row in self.rows}
        return len(means) == 1 and None not in means and not any(row.values[column.key].spread for row in self.rows)

    @cached_property
    def fronts(self) -> dict[str, list[int]]:
        """For every two columns that vary, by "FIRST SECOND" in their order, the places of the rows on their Pareto front."""
        return {f"{first.key} {second.key}": self._front(first, second) for first, second in combinations(self.varying, 2)}

    def _front(self, first: Column, second: Column) -> list[int]:
        points = []
        for index, row in enumerate(self.rows):
            one, other = row.mean(first.key), row.mean(second.key)
            if one is not None and other is not None:
                points.append((index, (one if first.rises else -one, other if second.rises else -other)))
        return [index for (index, _), held in zip(points, front([point for _, point in points]), strict=True) if held]


def compare(runs: Sequence[Run], title: str, command: str = "", failures: Sequence[Failure] = ()) -> Comparison:
    """Returns the comparison of runs, and of the points of their sweep that failed."""
    axes = axes_of(runs, [failure.overrides for failure in failures])
    alike: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        alike[json.dumps([[axis_text(run, axis) for axis in axes], settings_but_seed(run.settings)], sort_keys=True)].append(run)
    known = columns_of([run.report for run in runs])
    rows = [_row(members, axes, known) for members in alike.values()]
    rows.sort(key=lambda row: [natural(text) for text in row.place])
    columns = [column for column in known if any(column.key in row.values for row in rows)]
    return Comparison(title, command, axes, columns, rows, list(failures))


def _row(runs: list[Run], axes: Sequence[str], columns: Sequence[Column]) -> Row:
    ordered = sorted(runs, key=lambda run: natural(seed_of(run)))
    measured = [values_of(run) for run in ordered]
    collected = {column.key: [values[column.key] for values in measured if column.key in values] for column in columns}
    values = {key: Value(mean(numbers), pstdev(numbers), len(numbers)) for key, numbers in collected.items() if numbers}
    return Row([axis_text(ordered[0], axis) for axis in axes], ordered, values)


def natural(text: str) -> list[tuple[int, float, str]]:
    """Returns the key to sort texts by, in which numbers count as numbers: ``9 %`` before ``10 %``, and ``0.5`` before ``cap``."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", text)
    return [(0, float(part), "") if index % 2 else (1, 0.0, part) for index, part in enumerate(parts) if part]

"""The settings in which runs differ: the axes of a sweep, and which runs differ only in their seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.identity.fingerprints import NO_RESULT
from orchestrator.sweep.reports import Json

TARGET = "._target_"


@dataclass(frozen=True)
class Run:
    """A finished run to compare.

    ``file`` is its report. ``number`` and ``overrides`` are those of the point of a sweep; None and () for other runs.
    """

    report: Json
    file: Path
    seconds: float | None
    number: int | None = None
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.file.resolve().parent.name

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings by their dotted keys."""
        return flat_settings(self.report["experiment"])


def flat_settings(node: Any, prefix: str = "") -> dict[str, Any]:
    """Returns settings by their dotted keys. Lists and empty sections are values."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    entries = (flat_settings(value, f"{prefix}.{key}".lstrip(".")) for key, value in node.items())
    return {key: value for entry in entries for key, value in entry.items()}


def is_seed(key: str) -> bool:
    return key.rpartition(".")[2] == "seed"


def is_result(key: str) -> bool:
    """Whether a setting can change a result, seeds aside."""
    return not is_seed(key) and key.partition(".")[0] not in NO_RESULT


def settings_but_seed(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns flat settings without the seeds and what changes no result. Runs that differ in them are not averaged."""
    return {key: value for key, value in settings.items() if is_result(key)}


def override_values(overrides: Sequence[str]) -> dict[str, str]:
    """Returns the values of overrides by their keys: ``+experiment=digits`` as ``{"experiment": "digits"}``."""
    pairs = (override.partition("=") for override in overrides)
    return {key.lstrip("+"): value for key, _, value in pairs}


def axes_of(runs: Sequence[Run], failed: Sequence[Sequence[str]] = ()) -> list[str]:
    """Returns the keys of the settings in which runs differ, seeds aside.

    Where all runs are points of a sweep, these are the overrides that differ, also from those of points that ``failed``. A further setting
    is an axis only if runs that agree in these overrides differ in it. Other runs are compared by their settings: those of a component
    that is an axis itself, such as the pruner, are axes only if runs with the same component differ in them.
    """
    settings = [settings_but_seed(run.settings) for run in runs]
    keys = dict.fromkeys(key for given in settings for key in given)
    columns = {key: [_text(given.get(key)) for given in settings] for key in keys}
    differing = {key: column for key, column in columns.items() if len(set(column)) > 1}
    if all(run.overrides for run in runs):
        swept = _differing_overrides([*(run.overrides for run in runs), *failed])
        return swept + _undecided(runs, swept, list(differing))
    axes: list[str] = []
    for key in sorted(differing, key=lambda key: (key != "name", not key.endswith(TARGET))):  # components before their settings
        if not any(_explains(axis, differing[axis], key, differing[key]) for axis in axes):
            axes.append(key)
    return axes


def _differing_overrides(points: Sequence[Sequence[str]]) -> list[str]:
    values = [override_values(overrides) for overrides in points if overrides]
    keys = dict.fromkeys(key for given in values for key in given)
    return [key for key in keys if not is_seed(key) and len({given.get(key) for given in values}) > 1]


def _undecided(runs: Sequence[Run], axes: list[str], candidates: list[str]) -> list[str]:
    """The candidates that differ between runs which agree in the axes before."""
    found: list[str] = []
    for key in candidates:
        seen: dict[tuple[str, ...], str] = {}
        for run in runs:
            place, value = tuple(axis_text(run, axis) for axis in (*axes, *found)), axis_text(run, key)
            if seen.setdefault(place, value) != value:
                found.append(key)
                break
    return found


def _explains(axis: str, axis_column: list[str], key: str, column: list[str]) -> bool:
    """Whether a setting says nothing beside an axis: it repeats it, or it belongs to the component that the axis chooses."""
    if column == axis_column:
        return True
    if not axis.endswith(TARGET) or not key.startswith(axis.removesuffix(TARGET) + "."):
        return False
    seen: dict[str, str] = {}
    return all(seen.setdefault(choice, value) == value for choice, value in zip(axis_column, column, strict=True))


def axis_value(run: Run, axis: str) -> Any:
    """Returns the value of a run on an axis: its setting, or the override that chose it; None if it has neither."""
    if axis in run.settings:
        value = run.settings[axis]
        return str(value).rpartition(".")[2] if axis.endswith(TARGET) else value
    return override_values(run.overrides).get(axis)


def axis_text(run: Run, axis: str) -> str:
    return shown(axis_value(run, axis))


def shown(value: Any) -> str:
    """Returns a setting as text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def axis_title(axis: str) -> str:
    return axis.removesuffix(TARGET)


def seed_of(run: Run) -> str:
    """Returns the seed of a run, or all of them if they differ."""
    seeds = {key: value for key, value in run.settings.items() if is_seed(key)}
    main = seeds.get("seed")
    others = [f"{key}={shown(value)}" for key, value in seeds.items() if value != main and key != "seed" and value is not None]
    return ", ".join([shown(main), *others]) if main is not None else ", ".join(others) or "–"


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)

"""Tables over many reports, in Markdown: accuracy by experiment, target and pruner, with mean and spread over seeds."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from statistics import mean, pstdev
from typing import Any

from orchestrator.sweep.reports import Json, headline, metrics_of, number_at, pruners, setting, target
from orchestrator.sweep.settings import flat_settings, settings_but_seed, shown
from workers.checks import require

STAGES = {"dense": "dense", "one_shot": "one-shot", "recovered": "recovered"}


def spread(values: Sequence[float]) -> str:
    """Returns ``mean ± standard deviation (n)`` in percent."""
    text = f"{100 * mean(values):.1f}"
    return f"{text} ± {100 * pstdev(values):.1f} ({len(values)})" if len(values) > 1 else text


def sort_key(text: str) -> tuple[bool, str, list[float]]:
    """Returns the key to sort targets by: patterns last, each kind by its fractions."""
    return ":" in text, re.sub(r"[\d.]+%", "", text), [float(number) for number in re.findall(r"([\d.]+)%", text)]


def table(reports: Sequence[Json]) -> str:
    """Returns a table with a row for each experiment, metric, target and pruner."""
    rows: dict[tuple[str, str, str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for report in reports:
        metric = headline(report) or ""
        settings = json.dumps(settings_but_seed(flat_settings(report["experiment"])), sort_keys=True)
        cells = rows[report["name"], metric, target(report), pruners(report), settings]
        for stage in STAGES:
            value = metrics_of(report, stage).get(metric)
            if value is not None:
                cells[stage].append(value)
    lines = [f"| experiment | metric | target | pruner | {' | '.join(STAGES.values())} |", "|---" * (4 + len(STAGES)) + "|"]
    for row in sorted(rows, key=lambda row: (*row[:2], sort_key(row[2]), *row[3:])):
        values = [spread(rows[row][stage]) if rows[row].get(stage) else "" for stage in STAGES]
        lines.append(f"| {' | '.join(row[:4])} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def table_by_settings(reports: Sequence[Json], keys: Sequence[str]) -> str:
    """Returns a table with a row for each value of the settings ``keys`` (dotted): one-shot accuracy and loss increase.

    Raises: ConfigError if none of the runs has a setting of such a name.
    """
    for key in keys:
        known = any(setting(report, key) is not None for report in reports)
        require(known, "--by", "settings of the runs, such as pruner.target.sparsity", key)
    rows: dict[tuple[Any, ...], list[Json]] = defaultdict(list)
    for report in reports:
        rows[tuple(_hashable(setting(report, key)) for key in keys)].append(report)
    lines = ["| " + " | ".join([*keys, "dense", "one-shot", "loss increase", "predicted"]) + " |", "|---" * (len(keys) + 4) + "|"]
    for values, runs in sorted(rows.items(), key=lambda row: [_ordered(value) for value in row[0]]):
        cells = [shown(value) for value in values]
        for stage in ("dense", "one_shot"):
            known_values = [value for report in runs if (value := metrics_of(report, stage).get(headline(report) or "")) is not None]
            cells.append(spread(known_values) if known_values else "")
        for kind in ("measured", "predicted"):
            rises = [rise for report in runs if (rise := number_at(report, "loss_increase", kind)) is not None]
            cells.append(f"{mean(rises):.2g}" if rises else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _hashable(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value


def _ordered(value: Any) -> tuple[int, float, str]:
    """Sorts numbers before texts, and what is absent first."""
    if value is None:
        return 0, 0.0, ""
    return (1, float(value), "") if isinstance(value, int | float) else (2, 0.0, str(value))


def grid(reports: Sequence[Json]) -> str:
    """Returns a table of one-shot accuracy for each experiment: a row per pruner, a column per target, the best means in bold."""
    cells: dict[str, dict[str, dict[str, dict[Any, float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for report in reports:
        metric, seed = headline(report), report["experiment"].get("seed")
        if metric is None:
            continue
        column = str(report["asked"].get("pattern") or target(report))
        rows = cells[f"{report['name']} ({metric})"]
        for stage, row in (("one_shot", pruners(report)), ("dense", "dense")):
            value = metrics_of(report, stage).get(metric)
            if value is not None:
                rows[row][column][seed] = value
    return "\n\n".join(_one_grid(title, rows) for title, rows in sorted(cells.items()))


def _one_grid(title: str, rows: dict[str, dict[str, dict[Any, float]]]) -> str:
    """Returns one table: the dense model first, then the pruners by their mean over all columns."""
    columns = sorted({column for row in rows.values() for column in row}, key=sort_key)
    means = {name: {column: mean(values.values()) for column, values in row.items()} for name, row in rows.items()}
    best = {
        column: max((row[column] for name, row in means.items() if name != "dense" and column in row), default=None) for column in columns
    }
    lines = [f"| {title} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in sorted(rows, key=lambda name: (name != "dense", -mean(means[name].values()))):
        texts = []
        for column in columns:
            text = spread(list(rows[name][column].values())) if column in rows[name] else ""
            texts.append(f"**{text}**" if text and name != "dense" and means[name].get(column) == best[column] else text)
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)

"""One table over many runs: accuracy by experiment, target and pruner, mean and spread over seeds.

    python scripts/compare_runs.py runs/*/report.json              a row per experiment, target and pruner
    python scripts/compare_runs.py --grid runs/*/report.json       one-shot only: pruners down, targets across
    python scripts/compare_runs.py --by pruner.block_size pruner.dampening -- runs/*/report.json      a row per value of these settings

A target is a sparsity ("75%"), a part of the model that is taken out whole ("50% of macs"), or both, where rounds do both. Reads what
the runs measured; computes nothing but means.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from orchestrator.report.result import ACCURACIES


def headline(report: dict[str, Any]) -> str:
    """Labels on 20 photos say little, so small test sets are judged by agreement with the dense model."""
    metrics = report["stages"][0]["metrics"]
    known = [name for name in ACCURACIES if metrics.get(name) is not None]
    return known[0] if metrics.get("test_samples", 0) >= 100 else "agreement"


def goals(report: dict[str, Any]) -> dict[str, float]:
    """What was asked for last, by what it is a fraction of."""
    if report.get("rounds"):
        return {part.get("asked_of", "weights"): part["asked"] for part in report["rounds"]}
    asked = report["asked"]
    return {asked["of"]: asked["removed"]} if "removed" in asked else {"weights": asked["sparsity"]}


def target(report: dict[str, Any]) -> str:
    """``75%`` for a run that masks weights, else what of: ``50% of macs``, ``50% of macs, 75% of weights``."""
    found = goals(report)
    texts = {of: f"{round(100 * asked, 6):g}%" for of, asked in found.items()}
    return texts["weights"] if list(found) == ["weights"] else ", ".join(f"{text} of {of}" for of, text in texts.items())


def in_order(text: str) -> tuple[bool, str, list[float]]:
    """Key to sort targets by: patterns last, each kind by its fractions."""
    return ":" in text, re.sub(r"[\d.]+%", "", text), [float(number) for number in re.findall(r"([\d.]+)%", text)]


def pruners(report: dict[str, Any]) -> str:
    """Names of the methods, those of rounds in their order."""
    if report.get("rounds"):
        return ", ".join(dict.fromkeys(part["pruner"] for part in report["rounds"]))
    return str(report["experiment"]["pruner"]["_target_"].rpartition(".")[2])


def settings_but_seed(report: dict[str, Any]) -> str:
    """What a run did, apart from its seed and from where it was done: runs that differ here are not averaged."""
    settings = {key: value for key, value in report["experiment"].items() if key not in ("seed", "output", "cluster", "tracking")}
    settings["data"] = {key: value for key, value in settings["data"].items() if key != "seed"}
    return json.dumps(settings, sort_keys=True)


def spread(values: list[float]) -> str:
    """``mean ± standard deviation (n)`` in percent."""
    text = f"{100 * mean(values):.1f}"
    return f"{text} ± {100 * pstdev(values):.1f} ({len(values)})" if len(values) > 1 else text


def table(reports: list[dict[str, Any]]) -> str:
    """Markdown: a row per experiment, metric, target and pruner."""
    rows: dict[tuple[str, str, str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for report in reports:
        metric = headline(report)
        cells = rows[report["name"], metric, target(report), pruners(report), settings_but_seed(report)]
        for stage in report["stages"]:
            value = stage["metrics"].get(metric)
            if value is not None:
                cells[stage["name"]].append(value)
    lines = ["| experiment | metric | target | pruner | dense | one-shot | recovered |", "|---|---|---|---|---|---|---|"]
    for name, metric, asked, pruner, same in sorted(rows, key=lambda row: (*row[:2], in_order(row[2]), *row[3:])):
        cells = rows[name, metric, asked, pruner, same]
        values = [spread(cells[stage]) if cells.get(stage) else "" for stage in ("dense", "one_shot", "recovered")]
        lines.append(f"| {name} | {metric} | {asked} | {pruner} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def by(reports: list[dict[str, Any]], keys: list[str]) -> str:
    """Markdown: a row per value of the settings ``keys`` (dotted), one-shot: accuracy, and how much the calibration loss rose."""
    rows: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for report in reports:
        rows[tuple(setting(report["experiment"], key) for key in keys)].append(report)
    lines = ["| " + " | ".join([*keys, "dense", "one-shot", "loss increase", "predicted"]) + " |", "|---" * (len(keys) + 4) + "|"]
    for values, found in sorted(rows.items()):
        stages = [{stage["name"]: stage["metrics"][headline(report)] for stage in report["stages"]} for report in found]
        rises = [report["loss_increase"] for report in found]
        cells = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
        cells += [spread([stage[name] for stage in stages]) for name in ("dense", "one_shot")]
        for kind in ("measured", "predicted"):
            known = [rise[kind] for rise in rises if rise[kind] is not None]
            cells.append(f"{mean(known):.2g}" if known else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def setting(node: Any, key: str) -> Any:
    """Value of a dotted key."""
    for name in key.split("."):
        node = node[name]
    return node


def grid(reports: list[dict[str, Any]]) -> str:
    """Markdown: for each experiment a row per pruner and a column per target, one-shot accuracy; the best mean of a column is bold."""
    cells: dict[str, dict[str, dict[str, dict[int, float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for report in reports:
        metric, seed, name = headline(report), report["experiment"]["seed"], pruners(report)
        column = report["asked"].get("pattern") or target(report)
        by_stage = {stage["name"]: stage["metrics"].get(metric) for stage in report["stages"]}
        rows = cells[f"{report['name']} ({metric})"]
        rows[name][column][seed] = by_stage["one_shot"]
        rows["dense"][column][seed] = by_stage["dense"]
    return "\n\n".join(_one_grid(title, rows) for title, rows in sorted(cells.items()))


def _one_grid(title: str, rows: dict[str, dict[str, dict[int, float]]]) -> str:
    """The dense model first, then pruners by their mean over all columns."""
    columns = sorted({column for row in rows.values() for column in row}, key=in_order)
    means = {name: {column: mean(values.values()) for column, values in row.items()} for name, row in rows.items()}
    best = {column: max(row[column] for name, row in means.items() if name != "dense" and column in row) for column in columns}
    lines = [f"| {title} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in sorted(rows, key=lambda name: (name != "dense", -mean(means[name].values()))):
        texts = []
        for column in columns:
            text = spread(list(rows[name][column].values())) if column in rows[name] else ""
            texts.append(f"**{text}**" if name != "dense" and means[name].get(column) == best[column] else text)
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path)
    parser.add_argument("--grid", action="store_true", help="one-shot accuracy: pruners down, targets across")
    parser.add_argument("--by", nargs="+", metavar="KEY", help="one-shot only: a row per value of these settings, e.g. pruner.block_size")
    options = parser.parse_args()
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in options.reports]
    print(by(reports, options.by) if options.by else grid(reports) if options.grid else table(reports))


if __name__ == "__main__":
    main()

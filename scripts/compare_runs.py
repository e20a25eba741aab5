"""Compare many runs in one table: accuracy by experiment, target and pruner, with mean and spread over seeds.

    python scripts/compare_runs.py runs/*/report.json              a row per experiment, target and pruner
    python scripts/compare_runs.py --grid runs/*/report.json       one-shot only: a row per pruner, a column per target
    python scripts/compare_runs.py --by pruner.block_size pruner.dampening -- runs/*/report.json      a row per value of these settings

A target is a sparsity ("75%"), a fraction of a cost that is removed with units ("50% of macs"), or both for rounds that do both. Reads the
reports of the runs and computes means.
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
    """Returns the metric to compare: agreement with the dense model for small test sets, on which accuracy says little."""
    metrics = report["stages"][0]["metrics"]
    known = [name for name in ACCURACIES if metrics.get(name) is not None]
    return known[0] if metrics.get("test_samples", 0) >= 100 else "agreement"


def goals(report: dict[str, Any]) -> dict[str, float]:
    """Returns the last target of each kind: the fraction, by the cost that it is a fraction of."""
    if report.get("rounds"):
        return {part.get("asked_of", "weights"): part["asked"] for part in report["rounds"]}
    asked = report["asked"]
    return {asked["of"]: asked["removed"]} if "removed" in asked else {"weights": asked["sparsity"]}


def target(report: dict[str, Any]) -> str:
    """Returns ``75%`` for a run that only masks weights, else ``50% of macs`` or ``50% of macs, 75% of weights``."""
    texts = {of: f"{round(100 * fraction, 6):g}%" for of, fraction in goals(report).items()}
    return texts["weights"] if list(texts) == ["weights"] else ", ".join(f"{text} of {of}" for of, text in texts.items())


def sort_key(text: str) -> tuple[bool, str, list[float]]:
    """Returns the key to sort targets by: patterns last, each kind by its fractions."""
    return ":" in text, re.sub(r"[\d.]+%", "", text), [float(number) for number in re.findall(r"([\d.]+)%", text)]


def pruners(report: dict[str, Any]) -> str:
    """Returns the names of the pruners, in the order of the rounds, and whether kept weights are fitted in sequence."""
    if report.get("rounds"):
        return ", ".join(dict.fromkeys(part["pruner"] for part in report["rounds"]))
    pruner = report["experiment"]["pruner"]
    return pruner["_target_"].rpartition(".")[2] + (", sequential" if pruner.get("refit", {}).get("order") == "sequential" else "")


def settings_but_seed(report: dict[str, Any]) -> str:
    """Returns the settings of a run without its seed and its machine. Runs that differ in them are not averaged."""
    settings = {key: value for key, value in report["experiment"].items() if key not in ("seed", "output", "cluster", "tracking")}
    settings["data"] = {key: value for key, value in settings["data"].items() if key != "seed"}
    return json.dumps(settings, sort_keys=True)


def spread(values: list[float]) -> str:
    """Returns ``mean ± standard deviation (n)`` in percent."""
    text = f"{100 * mean(values):.1f}"
    return f"{text} ± {100 * pstdev(values):.1f} ({len(values)})" if len(values) > 1 else text


def table(reports: list[dict[str, Any]]) -> str:
    """Returns a Markdown table with a row for each experiment, metric, target and pruner."""
    rows: dict[tuple[str, str, str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for report in reports:
        metric = headline(report)
        cells = rows[report["name"], metric, target(report), pruners(report), settings_but_seed(report)]
        for stage in report["stages"]:
            value = stage["metrics"].get(metric)
            if value is not None:
                cells[stage["name"]].append(value)
    lines = ["| experiment | metric | target | pruner | dense | one-shot | recovered |", "|---|---|---|---|---|---|---|"]
    for name, metric, goal, pruner, settings in sorted(rows, key=lambda row: (*row[:2], sort_key(row[2]), *row[3:])):
        cells = rows[name, metric, goal, pruner, settings]
        values = [spread(cells[stage]) if cells.get(stage) else "" for stage in ("dense", "one_shot", "recovered")]
        lines.append(f"| {name} | {metric} | {goal} | {pruner} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def table_by_settings(reports: list[dict[str, Any]], keys: list[str]) -> str:
    """Returns a Markdown table with a row for each value of the settings ``keys`` (dotted): one-shot accuracy and loss increase."""
    rows: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for report in reports:
        rows[tuple(setting(report["experiment"], key) for key in keys)].append(report)
    lines = ["| " + " | ".join([*keys, "dense", "one-shot", "loss increase", "predicted"]) + " |", "|---" * (len(keys) + 4) + "|"]
    for values, runs in sorted(rows.items()):
        stages = [{stage["name"]: stage["metrics"][headline(report)] for stage in report["stages"]} for report in runs]
        rises = [report["loss_increase"] for report in runs]
        cells = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
        cells += [spread([stage[name] for stage in stages]) for name in ("dense", "one_shot")]
        for kind in ("measured", "predicted"):
            known = [rise[kind] for rise in rises if rise[kind] is not None]
            cells.append(f"{mean(known):.2g}" if known else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def setting(node: Any, key: str) -> Any:
    """Returns the value of a dotted key."""
    for name in key.split("."):
        node = node[name]
    return node


def grid(reports: list[dict[str, Any]]) -> str:
    """Returns a Markdown table of one-shot accuracy for each experiment: a row per pruner, a column per target, the best means in bold."""
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
    """Returns one table: the dense model first, then the pruners by their mean over all columns."""
    columns = sorted({column for row in rows.values() for column in row}, key=sort_key)
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
    parser.add_argument("--grid", action="store_true", help="one-shot accuracy: a row per pruner, a column per target")
    parser.add_argument("--by", nargs="+", metavar="KEY", help="one-shot only: a row per value of these settings, e.g. pruner.block_size")
    options = parser.parse_args()
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in options.reports]
    print(table_by_settings(reports, options.by) if options.by else grid(reports) if options.grid else table(reports))


if __name__ == "__main__":
    main()

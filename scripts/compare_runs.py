"""One table over many runs: accuracy by experiment, sparsity and pruner, mean and spread over seeds.

    python scripts/compare_runs.py runs/*/report.json

Reads what the runs measured; computes nothing but means.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

ACCURACIES = ("top1", "knn", "agreement")  # the first that a run measured speaks for it


def headline(report: dict[str, Any]) -> str:
    """Labels on 20 photos say little, so small test sets are judged by agreement with the dense model."""
    metrics = report["stages"][0]["metrics"]
    known = [name for name in ACCURACIES if metrics.get(name) is not None]
    return known[0] if metrics.get("test_samples", 0) >= 100 else "agreement"


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
    """Markdown: a row per experiment, metric, sparsity and pruner."""
    rows: dict[tuple[str, str, float, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for report in reports:
        metric, pruner = headline(report), report["experiment"]["pruner"]["_target_"].rpartition(".")[2]
        cells = rows[report["name"], metric, report["asked"]["sparsity"], pruner, settings_but_seed(report)]
        for stage in report["stages"]:
            value = stage["metrics"].get(metric)
            if value is not None:
                cells[stage["name"]].append(value)
    lines = ["| experiment | metric | sparsity | pruner | dense | one-shot | recovered |", "|---|---|---|---|---|---|---|"]
    for (name, metric, sparsity, pruner, _), cells in sorted(rows.items()):
        values = [spread(cells[stage]) if cells.get(stage) else "" for stage in ("dense", "one_shot", "recovered")]
        lines.append(f"| {name} | {metric} | {sparsity:.0%} | {pruner} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path)
    paths = parser.parse_args().reports
    print(table([json.loads(path.read_text(encoding="utf-8")) for path in paths]))


if __name__ == "__main__":
    main()

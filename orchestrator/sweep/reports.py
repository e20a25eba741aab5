"""Reads reports of finished runs, also those of earlier versions, and says what each run was asked for."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.report.result import ACCURACIES
from workers.errors import ConfigError

Json = dict[str, Any]
BULKY = ("layers", "groups", "timeline", "curves", "predicted_stage_seconds", "sentences", "warnings")  # parts that no comparison reads
FEW_IMAGES = 100  # with fewer test images, accuracy says little
REPORT = "report.json"


def read_report(path: Path) -> Json:
    """Returns the content of a report file without its bulky parts.

    Metrics that are not finite numbers are absent. Do not change the result: it is read once and shared. Raises: ConfigError.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise ConfigError(f"{path}: expected the {REPORT} of a run, got: {error.strerror}") from error
    return _read(path.resolve(), state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4096)
def _read(path: Path, changed_ns: int, size: int) -> Json:
    """Reads a file again only if it changed."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected the {REPORT} of a run, got a damaged file ({' '.join(str(error).split())})") from error
    complaint = _complaint(report)
    if complaint:
        raise ConfigError(f"{path}: expected the {REPORT} of a run, got a file {complaint}")
    stages = [{"name": stage["name"], "metrics": _finite(stage["metrics"])} for stage in report["stages"]]
    return {name: value for name, value in report.items() if name not in BULKY} | {"stages": stages}


def _complaint(report: Any) -> str:
    """What makes a JSON value no report; "" if it is one."""
    if not isinstance(report, dict):
        return "without a JSON object"
    expected = {"name": str, "experiment": dict, "asked": dict, "stages": list}
    for name, kind in expected.items():
        if not isinstance(report.get(name), kind):
            return f'without "{name}"'
    stages = [stage if isinstance(stage, dict) else {} for stage in report["stages"]]
    if not all(isinstance(stage.get("name"), str) and isinstance(stage.get("metrics"), dict) for stage in stages):
        return 'whose "stages" are none'
    rounds = report.get("rounds") or []
    if not isinstance(rounds, list) or not all(isinstance(part, dict) and is_number(part.get("asked")) for part in rounds):
        return 'whose "rounds" are none'
    return ""


def _finite(metrics: Json) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if is_number(value)}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number_at(report: Json, *keys: str) -> float | None:
    """Returns the finite number at a path into a report; None if there is none."""
    node: Any = report
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return float(node) if is_number(node) else None


def metrics_of(report: Json, stage: str) -> dict[str, float]:
    """Returns the metrics of a stage; {} if the report has no such stage."""
    return next((entry["metrics"] for entry in report["stages"] if entry["name"] == stage), {})


def headline(report: Json) -> str | None:
    """Returns the metric to compare; None if no accuracy was measured.

    For small test sets, on which accuracy says little, it is the agreement with the dense model where that was measured.
    """
    measured = {name for stage in report["stages"] for name in stage["metrics"]}
    known = [name for name in ACCURACIES if name in measured]
    images = max((stage["metrics"].get("test_samples", 0) for stage in report["stages"]), default=0)
    return "agreement" if images < FEW_IMAGES and "agreement" in known else next(iter(known), None)


def goals(report: Json) -> dict[str, float]:
    """Returns the last target of each kind: the fraction, by the cost that it is a fraction of."""
    if report.get("rounds"):
        return {str(part.get("asked_of", "weights")): part["asked"] for part in report["rounds"]}
    asked = report["asked"]
    found = {str(asked.get("of", "weights")): asked["removed"]} if "removed" in asked else {"weights": asked.get("sparsity")}
    return {of: fraction for of, fraction in found.items() if is_number(fraction)}


def target(report: Json) -> str:
    """Returns ``75%`` for a run that only masks weights, else ``50% of macs`` or ``50% of macs, 75% of weights``."""
    texts = {of: f"{round(100 * fraction, 6):g}%" for of, fraction in goals(report).items()}
    return texts["weights"] if list(texts) == ["weights"] else ", ".join(f"{text} of {of}" for of, text in texts.items())


def pruners(report: Json) -> str:
    """Returns the names of the pruners, in the order of the rounds, and whether kept weights are fitted in sequence."""
    if report.get("rounds"):
        return ", ".join(dict.fromkeys(str(part.get("pruner", "")) for part in report["rounds"]))
    pruner = report["experiment"].get("pruner")
    if not isinstance(pruner, dict) or "_target_" not in pruner:
        return str(report.get("pruner", ""))
    refit = pruner.get("refit")
    sequential = isinstance(refit, dict) and refit.get("order") == "sequential"
    return str(pruner["_target_"]).rpartition(".")[2] + (", sequential" if sequential else "")


def setting(report: Json, key: str) -> Any:
    """Returns the setting at a dotted key; None if the run has none."""
    node: Any = report["experiment"]
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node

"""What a search found: what the reports of its points say, and the best of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from orchestrator.quantities import count
from orchestrator.report.result import ACCURACIES
from orchestrator.sweep.reports import REPORT, metrics_of, read_report
from orchestrator.sweep.side_by_side import experiment_of_point
from workers.errors import ConfigError, SecateurError
from workers.files import write_text

if TYPE_CHECKING:
    from optuna import Study

BEST = "best.json"  # in the directory of the sweep


def report_of(composed: DictConfig) -> dict[str, Any]:
    """Returns what the report of a point says: its directory, the one-shot accuracy if it was measured, and whether the run stopped early.

    Nothing if there is no report.
    """
    from orchestrator.identity.fingerprints import run_directory

    try:
        directory = run_directory(experiment_of_point(composed))
        report = read_report(directory / REPORT)
    except ConfigError:
        return {}
    metrics = metrics_of(report, "one_shot")
    accuracy = next((metrics[key] for key in ACCURACIES if key in metrics), None)
    known = {} if accuracy is None else {"one_shot_accuracy": accuracy}
    return {"directory": str(directory), "stopped": report.get("stopped_below") is not None} | known


def print_best(study: Study, objectives: Sequence[str], folder: Path) -> None:
    """Prints the best point, or with several objectives those that no other point surpasses in all of them, and writes ``best.json``.

    Raises: SecateurError if no point has results.
    """
    from optuna.trial import TrialState

    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state is TrialState.COMPLETE]
    stopped = sum(bool(trial.user_attrs.get("stopped")) for trial in ended)
    if not ended:
        raise SecateurError(f"hydra/sweeper=search: no point of the search in {folder} has the numbers {', '.join(objectives)}")
    early = f", of which {stopped} stopped early" if stopped else ""
    print(f"best of {count(len(ended), 'point')}{early}:")
    lines = []
    for trial in sorted(study.best_trials, key=lambda trial: trial.number):
        numbers, directory = dict(zip(objectives, trial.values, strict=True)), trial.user_attrs.get("directory", "")
        lines.append({"point": trial.number, "settings": trial.params, "directory": directory} | numbers)
        settings = " ".join(f"{name}={_short(value)}" for name, value in trial.params.items())
        reached = ", ".join(f"{name} {_short(value)}" for name, value in numbers.items())
        print(f"point {trial.number}: {settings}: {reached}; {directory}")
    write_text(folder / BEST, json.dumps(lines, indent=1))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

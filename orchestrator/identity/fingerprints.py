"""Computes the fingerprint of a run from all settings except those that no result depends on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config import Experiment
from orchestrator.store import fingerprint
from orchestrator.times import conditions
from orchestrator.times import identity as timing_identity

if TYPE_CHECKING:
    from orchestrator.cluster.base import Resources

# Fields of an experiment that change no result. A run continues in the same directory when they change.
NO_RESULT = {
    "mode": "It says what to do with an experiment, and each mode writes files of its own.",
    "output": "It says where results are written.",
    "cluster": "It says where results are computed. Device and threads may change their last bits and count where something is timed.",
    "tracking": "It says where numbers are sent.",
    "objectives": "They say what a search is told of the results.",
    "onnx": "It writes the same model to one more file.",
    "store": "It says what of a finished run stays in the store.",
    "clean": "It says what mode=clean frees.",
}
# Fields that do not count as they are.
ELSEWHERE = {
    "latency": "It counts only where something is timed.",
    "stop_below": "It counts only where it is set.",
    "rounds": "The schedule that they describe counts instead.",
    "pruner": "It counts as part of the schedule.",
    "steps": "They count as part of the schedule.",
    "recovery": "It counts as part of the schedule.",
}


def run_fingerprint(experiment: Experiment) -> str:
    """Returns the fingerprint in the name of the run's directory, so that the same settings continue an earlier run."""
    settings = {name: value for name, value in vars(experiment).items() if name not in NO_RESULT and name not in ELSEWHERE}
    if experiment.stop_below is not None:
        settings["stop_below"] = experiment.stop_below
    if experiment.is_timed:
        settings |= {"latency": experiment.latency, "here": conditions(experiment.latency, experiment.cluster.resources())}
    return fingerprint(settings, [[name, *vars(part).values()] for name, part in experiment.schedule.items()])


def run_directory(experiment: Experiment) -> Path:
    """Returns the directory of a run, where its report is."""
    return Path(experiment.output).resolve() / f"{experiment.name}-{run_fingerprint(experiment)[:8]}"


def latency_fingerprint(experiment: Experiment, streams: bool, here: Resources) -> str:
    """Returns the fingerprint in the name of the directory of a latency table."""
    latency = experiment.latency
    return fingerprint(experiment.model, experiment.data.input_shape, streams, latency.widths, timing_identity(latency, here))

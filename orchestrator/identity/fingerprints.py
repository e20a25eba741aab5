"""What a run is called by: everything that was asked for, but for what no result depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.config import Experiment
from orchestrator.store import fingerprint
from orchestrator.times import conditions
from orchestrator.times import identity as timing_identity

if TYPE_CHECKING:
    from orchestrator.cluster.base import Resources

# Fields of an experiment that change no result: with another value it is the same run, which continues in the same directory.
NO_RESULT = {
    "mode": "what is done with an experiment, not what it is; each mode leaves files of its own",
    "output": "where results go",
    "cluster": "where they are computed; device and threads, which may change last bits, are left to the user, but for what is timed",
    "tracking": "where numbers go",
    "onnx": "the same model in one more file",
    "latency": "counts only where something is timed",
    "rounds": "how the schedule is written; what it amounts to counts",
    "pruner": "as part of the schedule",
    "steps": "as part of the schedule",
    "recovery": "as part of the schedule",
}


def run_fingerprint(experiment: Experiment) -> str:
    """Names the run's directory: the same request continues there, another one gets another."""
    asked = {name: value for name, value in vars(experiment).items() if name not in NO_RESULT}
    if is_timed(experiment):
        asked |= {"latency": experiment.latency, "here": conditions(experiment.latency, experiment.cluster.resources())}
    return fingerprint(asked, [[name, *vars(part).values()] for name, part in experiment.schedule.items()])


def is_timed(experiment: Experiment) -> bool:
    """Whether measured times are among the results, or decide about them."""
    return experiment.int8 or any(part.pruner.is_timed for part in experiment.schedule.values())


def latency_fingerprint(experiment: Experiment, streams: bool, here: Resources) -> str:
    """Names the directory of a table of latencies."""
    latency = experiment.latency
    return fingerprint(experiment.model, experiment.data.input_shape, streams, latency.widths, timing_identity(latency, here))

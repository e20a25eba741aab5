"""Run one cell of the calibration grid, score and solve its layers, and compare time and memory with the plan.

    python scripts/one_wave.py +experiment=NAME [overrides] [--portion INDEX] [--load hardware.yaml]

Runs in this process with the threads of one worker, by default for the costliest portion. Masks half of each layer's weights. If the
checkpoint or the images are missing, random ones are used instead. The planned memory is touched once before, since a virtual machine may
get it from its host only then, at a rate that has nothing to do with the work. Everything that was written is deleted at the end.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml
from rich.console import Console
from rich.table import Table
from stand_ins import images, model_file

from orchestrator.cluster.base import Hardware
from orchestrator.composing import experiment_of
from orchestrator.config import Experiment
from orchestrator.launch import plan_experiment
from orchestrator.planning.costs import PlannedLayer, cost_model
from orchestrator.planning.footprint import footprint
from orchestrator.planning.plan import Plan
from orchestrator.quantities import count, duration, size
from workers.files import _check_once
from workers.memory import peak_bytes
from workers.messages import CollectTask, ScoreTask, SolveTask
from workers.records import Destination, Record
from workers.worker import Worker


@dataclass(frozen=True)
class Line:
    """One row of the table: seconds and bytes, predicted and measured."""

    what: str
    predicted_seconds: float
    seconds: float
    predicted_bytes: int
    bytes: int


def costliest(plan: Plan, experiment: Experiment) -> int:
    """Returns the index of the portion that takes longest to collect."""
    costs, named = cost_model(experiment, plan.profile, plan.resources), {planned.layer.name: planned for planned in plan.layers}
    seconds = [costs.collect([named[name] for name in portion]) for portion in plan.portions]
    return seconds.index(max(seconds))


def wave(experiment: Experiment, plan: Plan, portion: Sequence[PlannedLayer], folder: Path) -> list[Line]:
    """Loads, collects, scores and solves as a worker would."""
    one_shard = replace(experiment.data, shards=1, calibration_batches=-(-experiment.data.calibration_batches // experiment.data.shards))
    experiment = replace(experiment, data=one_shard)
    costs, needs = cost_model(experiment, plan.profile, plan.resources), footprint(experiment, plan.profile, plan.resources)
    worker = Worker(plan.resources.device, plan.resources.threads)
    model = model_file(experiment, worker, folder)
    lines = [_loaded(worker, model, costs.load(), needs.held)]
    statistic = experiment.pruner.statistic
    partials: list[Record] = []
    if statistic is not None:
        to = tuple(Destination(f"collect{index}", folder / f"collect{index}") for index in range(len(portion)))
        layers = tuple(planned.layer for planned in portion)
        task = CollectTask(model, images(experiment)[0], statistic, layers, experiment.loss, experiment.precision, 0, experiment.seed, to)
        started = time.perf_counter()
        partials = worker.collect(task)
        seconds, peak = time.perf_counter() - started, max(record.peak_bytes or 0 for record in partials)
        lines.append(Line(f"collect {count(len(portion), 'layer')}", costs.collect(portion), seconds, needs.collect(portion), peak))
    scored, solved = [], []
    for index, planned in enumerate(portion):
        _check_once.cache_clear()  # in a run, another worker may solve what this one scored
        parts = tuple(partials[index : index + 1])
        to_score, to_solve = (Destination(f"{verb}{index}", folder / f"{verb}{index}") for verb in ("score", "solve"))
        scored.append(worker.score(ScoreTask(model, experiment.pruner, planned.layer, parts, to_score)))
        _check_once.cache_clear()
        half = scored[-1].numbers.tiles // 2
        solved.append(worker.solve(SolveTask(model, experiment.pruner, planned.layer, parts, scored[-1], half, to_solve)))
    scoring = [costs.score(planned, 1) for planned in portion]
    solving = [costs.solve(planned, 1) for planned in portion]
    lines.append(_line("score", scoring, scored, max(needs.score(planned) for planned in portion)))
    lines.append(_line("solve", solving, solved, max(needs.solve(planned) for planned in portion)))
    return lines


def _loaded(worker: Worker, model: Path, seconds: float, needed: int) -> Line:
    started = time.perf_counter()
    with peak_bytes(worker.device) as peak:
        worker.kept.model(model)
    return Line("load the model", seconds, time.perf_counter() - started, needed, peak.bytes or 0)


def _line(verb: str, predicted: Sequence[float], records: Sequence[Record], needed: int) -> Line:
    seconds, peak = sum(record.seconds for record in records), max(record.peak_bytes or 0 for record in records)
    return Line(f"{verb} {count(len(records), 'layer')}", sum(predicted), seconds, needed, peak)


def touch(needed: int) -> float:
    """Touches memory and frees it. Returns the seconds."""
    started = time.perf_counter()
    blocks = [torch.ones(2**26) for _ in range(needed // 2**28)]
    del blocks
    return time.perf_counter() - started


def table(lines: Sequence[Line]) -> Table:
    printed = Table()
    for column in ("", "predicted", "measured", "measured / predicted", "plan's bytes", "peak", "peak / plan"):
        printed.add_column(column, justify="right" if column else "left")
    for line in lines:
        ratios = f"{line.seconds / line.predicted_seconds:.2f}", f"{line.bytes / line.predicted_bytes:.2f}"
        seconds = duration(line.predicted_seconds), duration(line.seconds)
        printed.add_row(line.what, *seconds, ratios[0], size(line.predicted_bytes), size(line.bytes), ratios[1])
    return printed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--portion", type=int)
    parser.add_argument("--load", type=Path, help="rates that scripts/measure_hardware.py wrote")
    options = parser.parse_args()
    experiment = experiment_of(options.overrides)
    if options.load is not None:
        experiment.cluster.hardware = Hardware(**yaml.safe_load(options.load.read_text(encoding="utf-8"))["cluster"]["hardware"])
    plan, console = plan_experiment(experiment), Console()
    index = options.portion if options.portion is not None else costliest(plan, experiment) if plan.portions else 0
    names = plan.portions[index] if plan.portions else tuple(planned.layer.name for planned in plan.layers)
    portion = [planned for planned in plan.layers if planned.layer.name in names]
    data = experiment.data
    console.print(
        f"Portion {index} of {len(plan.portions)} ({names[0]} to {names[-1]}), {data.calibration_batches // data.shards} gradients of "
        f"{count(data.calibration_batch_size, 'image')}; {count(plan.resources.threads, 'thread')}, "
        f"{size(plan.resources.memory_bytes)} for a worker; rates: {experiment.cluster.hardware.name}."
    )
    if experiment.model.checkpoint is None:
        console.print("There is no checkpoint, so random initial weights are used.")
    if not images(experiment)[1]:
        console.print("The data is missing, so random images are used.")
    if plan.resources.device == "cpu":
        console.print(f"Memory was touched in {duration(touch(plan.worker_bytes))} before.")
    with tempfile.TemporaryDirectory(dir=_created(experiment.output)) as folder:
        experiment.data = images(experiment)[0]
        console.print(table(wave(experiment, plan, portion, Path(folder))))


def _created(folder: str) -> str:
    Path(folder).mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    main()

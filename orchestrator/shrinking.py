"""Taking units out, one line per stage: measure -> rank -> choose -> shrink."""

from __future__ import annotations

import time

from orchestrator.choose import choose_for, sweep
from orchestrator.outcome import UnitStep
from orchestrator.run import Run, data_identity
from orchestrator.store import MODEL, settings
from workers.files import finish, read_result, write_tensors
from workers.messages import MeasureTask, RankTask, Record, ShrinkTask
from workers.worker import Worker

MEASURED = ("calibration_batches", "calibration_batch_size", "shards")  # what of the data the sums depend on

SWEEP = tuple(step / 20 for step in range(1, 20))  # fractions of the dense model, to see which groups give least


def take_out(run: Run, model: Record) -> UnitStep:
    """One step towards the target of its round."""
    sums = measure(run, model)
    ranking = rank(run, model, sums)
    chosen = choose_units(run, model, ranking)
    return UnitStep(sums, ranking, chosen, shrink(run, model, chosen))


def measure(run: Run, model: Record) -> list[Record]:
    """Sums over the units, one result per shard; for a method that reads no data, one."""
    experiment, pruner = run.experiment, run.experiment.unit_pruner
    shards = experiment.data.shards if pruner.reads_data else 1
    reads = {"model": model, "pruner": settings(pruner, without=("target",)), "input_shape": experiment.data.input_shape}
    if pruner.reads_data:
        reads |= {"data": data_identity(run, MEASURED), "loss": experiment.loss, "seed": experiment.seed}
    tasks = []
    for shard in range(shards):
        to = run.store.destination("measure", **reads, shard=shard)
        tasks.append(MeasureTask(model.path(MODEL), experiment.data, pruner, experiment.loss, shard, shards, experiment.seed, to))
    return run.map("measure", Worker.measure, tasks)


def rank(run: Run, model: Record, sums: list[Record]) -> Record:
    """The order in which units go."""
    experiment, pruner = run.experiment, run.experiment.unit_pruner
    to = run.store.destination("rank", model=model, pruner=settings(pruner, without=("target",)), sums=sums)
    record = run.map("rank", Worker.rank, [RankTask(model.path(MODEL), experiment.data.input_shape, pruner, tuple(sums), to)])[0]
    if record.numbers["notes"].get("vanishing") == 1.0:
        run.warn(f"{run.prefix}the saliency of every unit is within rounding of zero, so the ranking is noise; try another loss or pruner")
    return record


def choose_units(run: Run, model: Record, ranking: Record) -> Record:
    """Which units stay, decided here: down the ranking until this step's share of the target is reached."""
    experiment, pruner = run.experiment, run.experiment.unit_pruner
    family = run.family_of(model)
    to = run.store.destination("choose", target=pruner.target, ranking=ranking, steps_left=run.steps_left)
    record = run.find(to)
    if record is None:
        started = time.time()
        order_S = read_result(ranking, "ranking.safetensors")["order_S"].tolist()
        kept = choose_for(pruner, family, experiment.data.input_shape, order_S, run.steps_left)
        written = write_tensors(to.directory / "kept.safetensors", kept)
        swept = sweep(pruner, family, experiment.data.input_shape, order_S, SWEEP)
        numbers = {"kept": {name: int(stays.sum()) for name, stays in kept.items()}, "swept": swept}
        record = finish(to, "choose", {"kept.safetensors": written}, numbers, started)
    run.note("choose", record)
    return record


def shrink(run: Run, model: Record, chosen: Record) -> Record:
    """The smaller model."""
    experiment = run.experiment
    to = run.store.destination("shrink", model=model, chosen=chosen)
    task = ShrinkTask(model.path(MODEL), experiment.data.input_shape, experiment.unit_pruner, chosen, to)
    return run.map("shrink", Worker.shrink, [task])[0]

"""Taking units out, one line per stage: measure -> rank -> choose -> shrink."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from orchestrator.choose import Question, Times, answer, limit, question, sweep
from orchestrator.outcome import UnitStep
from orchestrator.run import Run, data_identity
from orchestrator.store import MODEL, settings
from orchestrator.times import measure_times, time_model
from workers.files import finish, read_result, write_tensors
from workers.messages import MeasureTask, RankTask, Record, ShrinkTask
from workers.pruners.units import Of
from workers.worker import Worker

MEASURED = ("calibration_batches", "calibration_batch_size", "shards")  # what of the data the sums depend on

CORRECTIONS = 5
SWEEP = tuple(step / 20 for step in range(1, 20))  # fractions of the dense model, to see which groups give least


def take_out(run: Run, model: Record) -> UnitStep:
    """One step towards the target of its round."""
    sums = measure(run, model)
    ranking = rank(run, model, sums)
    if run.experiment.unit_pruner.target.of is Of.LATENCY:
        return within_time(run, model, sums, ranking)
    chosen = choose_units(run, model, ranking)
    return UnitStep(sums, ranking, chosen, shrink(run, model, chosen))


def within_time(run: Run, model: Record, sums: list[Record], ranking: Record) -> UnitStep:
    """A step towards a target of latency: choose by the table, measure the smaller model, and if asked for correct the budget and choose
    again, at most ``CORRECTIONS`` times. The last choice whose measured time is within the budget is taken, else the fastest.
    """
    target, times = run.experiment.unit_pruner.target, measure_times(run, model)
    tried: list[UnitStep] = []
    correction = 1.0
    for _ in range(1 if target.within is None else CORRECTIONS):
        chosen = choose_units(run, model, ranking, times, correction)
        smaller = shrink(run, model, chosen)
        tried.append(UnitStep(sums, ranking, chosen, smaller, time_model(run, run.family_of(smaller))))
        off = tried[-1].measured_ms / tried[-1].budget_ms - 1
        if (
            target.within is None
            or abs(off) <= target.within
            or (off < 0 and tried[-1].model.fingerprint in {step.model.fingerprint for step in tried[:-1]})
        ):
            break
        correction /= 1 + off
    if target.within is not None and abs(off) > target.within:
        tried.sort(key=lambda step: (step.measured_ms > step.budget_ms, abs(step.measured_ms - step.budget_ms)), reverse=True)
        run.warn(
            f"{run.prefix}the measured time is {tried[-1].measured_ms:.3g} ms where {tried[-1].budget_ms:.3g} ms were asked for, more than "
            f"{target.within:.0%} off, after {len(tried)} corrections of the budget; a table with more latency.widths is finer"
        )
    return replace(tried[-1], corrections=len(tried) - 1)


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


def choose_units(run: Run, model: Record, ranking: Record, times: Times | None = None, correction: float = 1.0) -> Record:
    """Which units stay, decided here, so that the cost is at most this step's share of the target (times ``correction``)."""
    experiment, pruner = run.experiment, run.experiment.unit_pruner
    reads: dict[str, Any] = {"target": replace(pruner.target, within=None), "ranking": ranking, "steps_left": run.steps_left}
    if times is not None:
        reads |= {"times": [times.dense_ms, times.table.model_ms, *times.table.measured], "correction": correction}
    to = run.store.destination("choose", **reads)
    record = run.find(to)
    if record is None:
        started = time.time()
        found = read_result(ranking, "ranking.safetensors")
        order_S, score_S = found["order_S"].tolist(), found["score_S"].tolist()

        def ask() -> Question:
            return question(pruner, run.family_of(model), experiment.data.input_shape, times)

        asked = ask()
        budget = limit(asked.target, asked.dense, asked.cost.total, run.steps_left)
        kept = answer(asked, order_S, score_S, [budget * correction])[0]
        written = write_tensors(to.directory / "kept.safetensors", kept)
        widths = {name: int(stays.sum()) for name, stays in kept.items()}
        numbers = {"kept": widths, "swept": sweep(ask(), order_S, score_S, SWEEP), "dense": asked.dense, "budget": budget}
        if times is not None:
            numbers |= {"predicted": sum(part.value(widths) for part in times.table.parts()), "table": times.table.summary()}
        record = finish(to, "choose", {"kept.safetensors": written}, numbers, started)
    run.note("choose", record)
    return record


def shrink(run: Run, model: Record, chosen: Record) -> Record:
    """The smaller model."""
    experiment = run.experiment
    to = run.store.destination("shrink", model=model, chosen=chosen)
    task = ShrinkTask(model.path(MODEL), experiment.data.input_shape, experiment.unit_pruner, chosen, to)
    return run.map("shrink", Worker.shrink, [task])[0]

"""Taking units out, one line per stage: measure -> rank -> choose -> shrink."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from orchestrator.allocation.reach import sentences, storable, unreached
from orchestrator.allocation.units import Times, UnitProblem, budget_after_step, select_within, unit_problem, widths_at_fractions
from orchestrator.outcome import UnitStep
from orchestrator.quantities import count, percent
from orchestrator.run import Run, data_identity
from orchestrator.store import MODEL, settings
from orchestrator.structure_table import left_out_sentences
from orchestrator.times import measure_times, time_beside_dense
from workers.files import finish, read_result, write_tensors
from workers.messages import CollectUnitsTask, RankTask, ShrinkTask
from workers.models.structures.find import find_structure
from workers.pruners.units import Of
from workers.records import Record
from workers.worker import Worker

MEASURED = ("calibration_batches", "calibration_batch_size", "shards")  # what of the data the sums depend on

CORRECTIONS = 5
LARGEST_CORRECTION = 1.5  # at a time
DISTURBED = 2.0  # a model and its operations are seldom farther apart on an idle machine
SWEEP = tuple(step / 20 for step in range(1, 20))  # fractions of the dense model, to see which groups give least


def take_out(run: Run, model: Record) -> UnitStep:
    """One step towards the target of its round."""
    warn_of_left_out(run, model)
    sums = collect_units(run, model)
    ranking = rank(run, model, sums)
    if run.experiment.unit_pruner.target.of is Of.LATENCY:
        return within_time(run, model, sums, ranking)
    chosen = choose_units(run, model, ranking)
    warn_of_floors(run, chosen)
    return UnitStep(sums, ranking, chosen, shrink(run, model, chosen))


def warn_of_left_out(run: Run, model: Record) -> None:
    """Say once which groups of the model do not hold, and why."""
    for text in left_out_sentences(find_structure(run.family_of(model), run.experiment.data.input_shape).left_out):
        if text not in run.warnings:
            run.warn(text)


def within_time(run: Run, model: Record, sums: list[Record], ranking: Record) -> UnitStep:
    """A step towards a target of latency: choose by the table, measure the smaller model in turn with the dense one, and if asked for
    correct the budget by that and choose again, at most ``CORRECTIONS`` times. A reading that fits may fit by chance, so it is forgotten
    and another one decides. Of all choices that are at most ``within`` over the budget the nearest to it is taken, else the nearest of all.
    """
    within, times = run.experiment.unit_pruner.target.within, measure_times(run, model)
    if not 1 / DISTURBED < times.table.scale < DISTURBED:
        run.warn(
            f"{run.prefix}the model took {times.table.scale:.2f} times what its operations take by themselves, so something else was at "
            f"work when one of them was timed; for times to trust, delete {run.store.root / 'time'} and run again on an idle machine"
        )
    tried: dict[float, UnitStep] = {}  # by what the budget was multiplied with
    correction = 1.0
    for _ in range(1 if within is None else 1 + CORRECTIONS):
        chosen = choose_units(run, model, ranking, times, correction)
        smaller = shrink(run, model, chosen)
        family = run.family_of(smaller)
        step = UnitStep(sums, ranking, chosen, smaller, time_beside_dense(run, family))
        if within is not None and abs(step.off) <= within:
            step = replace(step, timed=time_beside_dense(run, family, reading=2))
        known = any(chosen.numbers["kept"] == other.chosen.numbers["kept"] for other in tried.values())
        tried[correction] = step
        if within is None or known or abs(step.off) <= within or (step.off > 0 and chosen.numbers["reach"]):
            break
        correction = next_correction({factor: 1 + step.off for factor, step in tried.items()})
    best = min(tried.values(), key=lambda step: (step.off > (within or 0), abs(step.off)))
    if best.off > (within or 0.0):
        warn_of_floors(run, best.chosen)
    if within is not None and abs(best.off) > within:
        finer = "no more can go" if best.off > 0 and best.chosen.numbers["reach"] else "more latency.widths make a finer table"
        run.warn(
            f"{run.prefix}{best.measured_ms:.3g} ms were measured where {best.budget_ms:.3g} ms were asked for, "
            f"{percent(abs(best.off))} {'more' if best.off > 0 else 'less'}, after {count(len(tried) - 1, 'correction')}; {finer}"
        )
    return replace(best, corrections=len(tried) - 1)


def warn_of_floors(run: Run, chosen: Record) -> None:
    """Say what is in the way of a target that a choice does not reach."""
    for sentence in sentences(chosen.numbers["reach"]):
        if run.prefix + sentence not in run.warnings:
            run.warn(run.prefix + sentence)


def next_correction(ratios: Mapping[float, float]) -> float:
    """What to multiply the budget with, from measured times over the budget by what it was multiplied with before.

    Between a choice that was too slow and one that was fast enough, by the line through the two; else by the last one's ratio.
    """
    slow = [(factor, ratio) for factor, ratio in ratios.items() if ratio > 1]
    fast = [(factor, ratio) for factor, ratio in ratios.items() if ratio <= 1]
    last = list(ratios)[-1]
    if slow and fast:
        (high, above), (low, below) = min(slow), max(fast)
        if low < high:
            return low + (high - low) * (1 - below) / (above - below)
    return last / min(max(ratios[last], 1 / LARGEST_CORRECTION), LARGEST_CORRECTION)


def collect_units(run: Run, model: Record) -> list[Record]:
    """Sums over the units, one result per shard; for a method that reads no data, one."""
    experiment, pruner = run.experiment, run.experiment.unit_pruner
    shards = experiment.data.shards if pruner.reads_data else 1
    reads = {"model": model, "pruner": settings(pruner, without=("target",)), "input_shape": experiment.data.input_shape}
    if pruner.reads_data:
        reads |= {"data": data_identity(run, MEASURED), "loss": experiment.loss, "seed": experiment.seed}
    tasks = []
    for shard in range(shards):
        to = run.store.destination("collect_units", **reads, shard=shard)
        tasks.append(CollectUnitsTask(model.path(MODEL), experiment.data, pruner, experiment.loss, shard, shards, experiment.seed, to))
    return run.map("collect", Worker.collect_units, tasks)


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
    shape, target = experiment.data.input_shape, replace(pruner.target, within=None)
    reads: dict[str, Any] = {"target": target, "ranking": ranking, "input_shape": shape, "steps_left": run.steps_left}
    if times is not None:
        measured = [times.dense_ms, times.table.model_ms, *times.table.measured]
        reads |= {"times": measured, "widths": experiment.latency.widths, "correction": correction}
    to = run.store.destination("choose", **reads)
    record = run.find(to)
    if record is None:
        started = time.time()
        found = read_result(ranking, "ranking.safetensors")
        order_S, score_S = found["order_S"].tolist(), found["score_S"].tolist()

        def pose() -> UnitProblem:
            return unit_problem(pruner, run.family_of(model), shape, times)

        problem = pose()
        budget = budget_after_step(problem.target, problem.dense, problem.cost.total, run.steps_left)
        kept = select_within(problem, order_S, score_S, [budget * correction], run.steps_left)[0]
        written = write_tensors(to.directory / "kept.safetensors", kept)
        widths = {name: int(stays.sum()) for name, stays in kept.items()}
        before = pose()
        limits = [budget * correction, *(other.after_step(run.steps_left) for other in before.others)]
        numbers = {"kept": widths, "dense": problem.dense, "budget": budget, "reach": storable(unreached(before, widths, limits))}
        numbers["swept"] = widths_at_fractions(before, order_S, score_S, SWEEP)
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

"""Removing units, one line per stage: collect -> rank -> choose -> shrink."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from orchestrator.allocation.reach import sentences, storable, unreached
from orchestrator.allocation.units import Times, UnitProblem, budget_after_step, select_within, unit_problem, widths_at_fractions
from orchestrator.outcome import RemovalStep, TimedStep
from orchestrator.quantities import count, percent
from orchestrator.run import Run, data_identity
from orchestrator.store import settings_of
from orchestrator.structure_table import left_out_sentences
from orchestrator.times import measure_times, time_beside_dense
from workers.files import finish, read_result, write_tensors
from workers.messages import CollectUnitsTask, RankTask, ShrinkTask
from workers.models.structures.find import find_structure
from workers.pruners.units import UnitPruner
from workers.records import ChosenUnits, ModelNumbers, ModelTime, OperationTime, PartialSums, Record, SmallerModel, UnitRanking
from workers.worker import Worker

COLLECTED_DATA = ("calibration_batches", "calibration_batch_size", "shards")  # the settings of the data that the sums depend on

CORRECTIONS = 5
LARGEST_CORRECTION = 1.5  # at a time
DISTURBED = 2.0  # on an idle machine, a model and its operations seldom differ by a larger factor
SWEEP = tuple(step / 20 for step in range(1, 20))  # fractions of the dense model, to see which groups lose least


def remove_once(run: Run, pruner: UnitPruner, model: Record[ModelNumbers]) -> RemovalStep:
    """One step towards the target of its round."""
    warn_of_left_out(run, model)
    sums = collect_units(run, pruner, model)
    ranking = rank(run, pruner, model, sums)
    if pruner.is_timed:
        return remove_within_latency(run, pruner, model, sums, ranking)
    chosen = choose_units(run, pruner, model, ranking)
    warn_of_floors(run, chosen)
    return RemovalStep(sums, ranking, chosen, shrink(run, pruner, model, chosen))


def warn_of_left_out(run: Run, model: Record[ModelNumbers]) -> None:
    """Warn of the groups of the model that are not offered, with the reasons."""
    for sentence in left_out_sentences(find_structure(run.family_of(model), run.experiment.data.input_shape).left_out):
        run.warn(sentence)


def remove_within_latency(
    run: Run, pruner: UnitPruner, model: Record[ModelNumbers], sums: list[Record[PartialSums]], ranking: Record[UnitRanking]
) -> RemovalStep:
    """A step towards a latency target: choose by the table of operations, and time the smaller model in turn with the dense one."""
    within, times = pruner.target.within, measure_times(run, pruner, model)
    if not 1 / DISTURBED < times.table.scale < DISTURBED:
        run.warn(
            f"{run.prefix}the model took {times.table.scale:.2f} times as long as its operations by themselves, so something else probably "
            f"ran while one of them was timed; to get reliable times, delete {run.store.root / OperationTime.verb} and "
            f"{run.store.root / ModelTime.verb}, and run again on an idle machine"
        )

    def attempt(correction: float) -> RemovalStep:
        chosen = choose_units(run, pruner, model, ranking, times, correction)
        smaller = shrink(run, pruner, model, chosen)
        comparison = time_beside_dense(run, run.family_of(smaller)).numbers
        return RemovalStep(sums, ranking, chosen, smaller, TimedStep(chosen.numbers, comparison))

    def time_again(step: RemovalStep) -> TimedStep:
        return TimedStep(step.chosen.numbers, time_beside_dense(run, run.family_of(step.model), reading=2).numbers)

    best = meet_budget(attempt, time_again, within)
    for sentence in missed_budget(best, within):
        run.warn(run.prefix + sentence)
    return best


def meet_budget(
    attempt: Callable[[float], RemovalStep], time_again: Callable[[RemovalStep], TimedStep], within: float | None
) -> RemovalStep:
    """Choose, time, and correct the budget by what was measured, at most ``CORRECTIONS`` times; without ``within``, choose once.

    ``attempt`` takes the factor of the budget. A reading within the tolerance may be chance, so it is discarded and ``time_again`` decides.
    Returns: of the steps that exceed the budget by at most ``within`` the one nearest to it; else the nearest of all.
    """
    tried: dict[float, RemovalStep] = {}  # by the factor of the budget
    correction = 1.0
    for _ in range(1 if within is None else 1 + CORRECTIONS):
        step = attempt(correction)
        if within is not None and abs(step.excess) <= within:
            step = replace(step, timed=time_again(step))
        repeated = any(step.chosen.numbers.kept == other.chosen.numbers.kept for other in tried.values())
        tried[correction] = step
        if within is None or repeated or abs(step.excess) <= within or (step.excess > 0 and step.chosen.numbers.out_of_reach):
            break
        correction = next_correction({factor: 1 + step.excess for factor, step in tried.items()})
    best = min(tried.values(), key=lambda step: (step.excess > (within or 0), abs(step.excess)))
    assert best.timed is not None
    return replace(best, timed=replace(best.timed, corrections=len(tried) - 1))


def missed_budget(step: RemovalStep, within: float | None) -> list[str]:
    """Sentences on a step that misses its latency budget: what keeps it from meeting it, and by how much it misses."""
    timed, out_of_reach = step.timed, step.chosen.numbers.out_of_reach
    assert timed is not None
    missed = sentences(out_of_reach) if timed.excess > (within or 0.0) else []
    if within is not None and abs(timed.excess) > within:
        remedy = "no more units can be removed" if timed.excess > 0 and out_of_reach else "raise latency.widths for a finer table"
        missed.append(
            f"the model takes {timed.measured_ms:.3g} ms, {percent(abs(timed.excess))} {'more' if timed.excess > 0 else 'less'} than the "
            f"target of {timed.budget_ms:.3g} ms, after {count(timed.corrections, 'correction')}; {remedy}"
        )
    return missed


def warn_of_floors(run: Run, chosen: Record[ChosenUnits]) -> None:
    """Warn of what keeps a choice from meeting its target."""
    for sentence in sentences(chosen.numbers.out_of_reach):
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


def collect_units(run: Run, pruner: UnitPruner, model: Record[ModelNumbers]) -> list[Record[PartialSums]]:
    """Sums for all units, one result per shard; a single one for a method that reads no data."""
    experiment = run.experiment
    shards = experiment.data.shards if pruner.reads_data else 1
    reads = {"model": model, "pruner": settings_of(pruner, without=("target",)), "input_shape": experiment.data.input_shape}
    if pruner.reads_data:
        reads |= {"data": data_identity(run, COLLECTED_DATA), "loss": experiment.loss, "seed": experiment.seed}
    tasks = []
    for shard in range(shards):
        to = run.store.destination("collect_units", **reads, shard=shard)
        tasks.append(CollectUnitsTask(model.file, experiment.data, pruner, experiment.loss, shard, shards, experiment.seed, to))
    return run.map("collect", Worker.collect_units, tasks)


def rank(run: Run, pruner: UnitPruner, model: Record[ModelNumbers], sums: list[Record[PartialSums]]) -> Record[UnitRanking]:
    """The order in which units are removed."""
    to = run.store.destination("rank", model=model, pruner=settings_of(pruner, without=("target",)), sums=sums)
    record = run.map("rank", Worker.rank, [RankTask(model.file, run.experiment.data.input_shape, pruner, tuple(sums), to)])[0]
    if record.numbers.notes.get("vanishing") == 1.0:
        run.warn(f"{run.prefix}the saliency of every unit is zero within rounding, so the ranking is noise; try another loss or pruner")
    return record


def choose_units(
    run: Run,
    pruner: UnitPruner,
    model: Record[ModelNumbers],
    ranking: Record[UnitRanking],
    times: Times | None = None,
    correction: float = 1.0,
) -> Record[ChosenUnits]:
    """The units that are kept, so that the cost is at most this step's share of the target (times ``correction``)."""
    experiment = run.experiment
    shape, target = experiment.data.input_shape, replace(pruner.target, within=None)
    reads: dict[str, Any] = {"target": target, "ranking": ranking, "input_shape": shape, "steps_left": run.steps_left}
    if times is not None:
        timed = [times.dense_ms, times.table.model_ms, *times.table.measured]
        reads |= {"times": timed, "widths": experiment.latency.widths, "correction": correction}
    to = run.store.destination("choose", **reads)

    def make() -> Record[ChosenUnits]:
        started = time.monotonic()
        run.need([ranking])
        ranked = read_result(ranking)
        order_S, score_S = ranked["order_S"].tolist(), ranked["score_S"].tolist()

        def problem() -> UnitProblem:
            return unit_problem(pruner, run.family_of(model), shape, times)

        solved, before = problem(), problem()  # selecting units uses a problem up
        budget = budget_after_step(solved.target, solved.dense, solved.cost.total, run.steps_left)
        limits = [budget * correction, *(other.after_step(run.steps_left) for other in before.others)]
        kept = select_within(solved, order_S, score_S, limits[:1], run.steps_left)[0]
        widths = {name: int(is_kept.sum()) for name, is_kept in kept.items()}
        numbers = ChosenUnits(
            kept=widths,
            dense=before.dense,
            budget=budget,
            out_of_reach=storable(unreached(before, widths, limits)),
            swept=widths_at_fractions(before, order_S, score_S, SWEEP),
            predicted=None if times is None else sum(part.value(widths) for part in times.table.parts()),
            table=None if times is None else times.table.summary(),
        )
        return finish(to, numbers, started, write_tensors(to.directory / ChosenUnits.file, kept))

    record = run.once("choose", to, make)
    run.note("choose", record)
    return record


def shrink(run: Run, pruner: UnitPruner, model: Record[ModelNumbers], chosen: Record[ChosenUnits]) -> Record[SmallerModel]:
    """The model without the units that are not kept."""
    to = run.store.destination("shrink", model=model, chosen=chosen)
    return run.map("shrink", Worker.shrink, [ShrinkTask(model.file, run.experiment.data.input_shape, pruner, chosen, to)])[0]

"""A budget of latency for masked weights: the sparsity of each layer, chosen by measured times and predicted losses.

Every layer is timed at several sparsities, with random zeros, and a knapsack chooses those with the least loss within the budget. The model
with the masks of these sparsities is then timed as a whole, before any weight is fitted, and the budget is corrected until it is met.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from numpy import ndarray

from orchestrator.allocation.sparsities import OFFERED, TIMED, Options, offered_ms
from orchestrator.outcome import TimedStep
from orchestrator.planning.costs import PlannedLayer
from orchestrator.quantities import milliseconds, percent
from orchestrator.run import Run
from orchestrator.shrinking import CORRECTIONS, next_correction
from orchestrator.store import settings_of
from orchestrator.times import identity
from workers.errors import SecateurError
from workers.files import finish
from workers.messages import PredictTask, TimeLayersTask, TimeSparseTask
from workers.models.base import Layer
from workers.pruners.base import WeightPruner
from workers.records import FittedCounts, LayerScores, LayerTimes, ModelNumbers, Record, SparseComparison
from workers.worker import Worker

SURE = 0.5  # a budget is met well if the measured time is within this part of the tolerance


def fit_to_budget(
    run: Run,
    pruner: WeightPruner,
    layers: Sequence[PlannedLayer],
    model: Record[ModelNumbers],
    dense: Record[ModelNumbers],
    scores: Mapping[str, Record[LayerScores]],
) -> Record[FittedCounts]:
    """How many more tiles each layer loses, so that the sparse runtime takes the time of the target. Raises: SecateurError if it cannot."""
    assert pruner.target.removed is not None
    budget, within, pruned = 1 - pruner.target.removed, pruner.target.within, [planned.layer for planned in layers]
    times = time_layers(run, layers)
    as_it_is = time_sparse(run, pruner, model, dense)
    here = identity(run.experiment.latency, run.plan.resources)
    to = run.store.destination("fit", budget=budget, within=within, scores=list(scores.values()), times=[times, as_it_is], **here)

    def make() -> Record[FittedCounts]:
        started = time.monotonic()
        options = Options(offered_ms(times.numbers.ms), predicted_losses(run, layers, scores), as_it_is.numbers.beside_ms)
        tried: dict[float, tuple[dict[str, int], float]] = {}  # by the factor of the budget: the choice and its measured share
        factor = 1.0
        for _ in range(1 + CORRECTIONS):
            choice = options.choose(budget * factor)
            if choice is None or (tried and not any(choice.values())):  # out of reach, or dense again
                break
            masks = [(layer, scores[layer.name], _more(scores[layer.name].numbers, OFFERED[choice[layer.name]])) for layer in pruned]
            tried[factor] = choice, time_sparse(run, pruner, model, dense, masks).numbers.ratio
            if abs(tried[factor][1] / budget - 1) <= SURE * within:
                break
            factor = next_correction({each: measured / budget for each, (_, measured) in tried.items()})
        if not tried:
            least, most = options.least_share, percent(OFFERED[-1], 0)
            raise SecateurError(
                f"pruner.target.removed: expected at most {1 - least:.2f}, got {1 - budget:g}; with {most} zeros in every layer, the model "
                f"still takes about {percent(least)} of its time"
            )
        choice, measured = min(tried.values(), key=lambda each: abs(each[1] - budget))
        counts = {layer.name: _more(scores[layer.name].numbers, OFFERED[choice[layer.name]]) for layer in pruned}
        dense_ms, alone = options.dense_ms, times.numbers.ms
        numbers = FittedCounts(
            tiles=counts,
            sparsities={name: OFFERED[option] for name, option in choice.items()},
            dense=dense_ms,
            budget=budget * dense_ms,
            predicted=options.share(choice) * dense_ms,
            measured=measured * dense_ms,
            corrections=len(tried) - 1,
            table={
                "scale": dense_ms / sum(times_ms[0] for times_ms in alone.values()),
                "measured_sizes": times.numbers.measured,
                "table_sizes": len(TIMED) * len(alone),
            },
        )
        return finish(to, numbers, started)

    record = run.once("fit", to, make)
    run.note("fit", record)
    return record


def time_layers(run: Run, layers: Sequence[PlannedLayer]) -> Record[LayerTimes]:
    """The time of each layer at the ``TIMED`` sparsities."""
    latency, shape, names = run.experiment.latency, run.experiment.data.input_shape, tuple(planned.layer.name for planned in layers)
    here = identity(latency, run.plan.resources)
    reads = {"model": run.experiment.model.stored, "input_shape": shape, "layers": names, "sparsities": TIMED}
    task = TimeLayersTask(run.experiment.model, shape, names, TIMED, latency, run.store.destination("time_layers", **reads, **here))
    return run.map("time layers", Worker.time_layers, [task], alone=True)[0]


def time_sparse(
    run: Run,
    pruner: WeightPruner,
    model: Record[ModelNumbers],
    dense: Record[ModelNumbers],
    masks: Sequence[tuple[Layer, Record[LayerScores], int]] = (),
) -> Record[SparseComparison]:
    """The time of a model in the sparse runtime in turn with that of the dense one: as it is, or with masks (see ``TimeSparseTask``)."""
    latency, shape = run.experiment.latency, run.experiment.data.input_shape
    here, masked = identity(latency, run.plan.resources), [(scores, tiles) for _, scores, tiles in masks]
    reads = {"pruner": settings_of(pruner, without=("target", "refit")), "pattern": pruner.target.pattern, "masks": masked}
    to = run.store.destination("time_sparse", model=model, beside=dense, input_shape=shape, **reads, **here)
    task = TimeSparseTask(model.file, dense.file, shape, pruner, tuple(masks), latency, to)
    return run.map("time model", Worker.time_sparse, [task], alone=True)[0]


def predicted_losses(run: Run, layers: Sequence[PlannedLayer], scores: Mapping[str, Record[LayerScores]]) -> dict[str, ndarray]:
    """The predicted rise of the loss of each layer at the ``OFFERED`` sparsities."""
    names = [planned.layer.name for planned in layers]
    tasks = [PredictTask(scores[name], tuple(_more(scores[name].numbers, sparsity) for sparsity in OFFERED)) for name in names]
    return {name: losses.numpy() for name, losses in zip(names, run.compute("allocate", Worker.predict, tasks), strict=True)}


def _more(numbers: LayerScores, sparsity: float) -> int:
    """Returns how many more tiles of a layer are removed for a sparsity."""
    masked = numbers.tiles - numbers.removable
    return min(numbers.removable, max(0, round(sparsity * numbers.tiles) - masked))


def time_masked(
    run: Run, pruner: WeightPruner, model: Record[ModelNumbers], dense: Record[ModelNumbers], fitted: Record[FittedCounts]
) -> TimedStep:
    """How the masked model meets the budget, with a warning if it does not."""
    timed = TimedStep(fitted.numbers, time_sparse(run, pruner, model, dense).numbers, fitted.numbers.corrections)
    if abs(timed.excess) > pruner.target.within:
        found = f"{milliseconds(timed.measured_ms)}, {percent(abs(timed.excess))} {'more' if timed.excess > 0 else 'less'}"
        run.warn(f"in the sparse runtime the model takes {found} than the target of {milliseconds(timed.budget_ms)}")
    return timed

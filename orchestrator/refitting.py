"""Fitting kept weights in the order of the forward pass: for each part of the model, collect pairs of inputs -> refit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from orchestrator.cells import compute_cells
from orchestrator.planning.costs import PlannedLayer, cost_model
from orchestrator.planning.sequence import cut_stages, fitting_portions, samples_of_shard
from orchestrator.run import Run, data_identity
from workers.messages import CollectPairsTask, RefitTask
from workers.models.base import Layer
from workers.pruners.base import WeightPruner
from workers.records import Destination, LayerSolution, ModelNumbers, PairedInputs, Record
from workers.worker import Worker

DATA = ("calibration_batches", "calibration_batch_size", "shards", "eval_batch_size")  # the settings of the data that the sums depend on


def refit_in_order(
    run: Run,
    pruner: WeightPruner,
    layers: Sequence[PlannedLayer],
    dense: Record[ModelNumbers],
    solutions: dict[str, Record[LayerSolution]],
) -> dict[str, Record[LayerSolution]]:
    """Solutions with the same masks, each fitted to the inputs that it gets when the layers before it are pruned and fitted.

    ``dense`` is the model that the round started from: its outputs are what layers are fitted to.
    """
    fitted: dict[str, Record[LayerSolution]] = {}
    for stage in cut_stages(layers, run.profile, pruner.refit.stages):
        within = {planned.layer.name: solutions[planned.layer.name] for planned in stage}  # which layers of the stage read from each other
        pairs = collect_pairs(run, pruner, stage, dense, [*fitted.values(), *within.values()])
        fitted |= refit(run, pruner, stage, dense, pairs, solutions)
    return fitted


def collect_pairs(
    run: Run,
    pruner: WeightPruner,
    layers: Sequence[PlannedLayer],
    dense: Record[ModelNumbers],
    solved: Sequence[Record[LayerSolution]],
) -> dict[str, list[Record[PairedInputs]]]:
    """Inputs of layers in the dense model, beside those in the model with the solutions ``solved``: a list over shards for each layer."""
    experiment, data = run.experiment, data_identity(run, DATA)
    loss, precision = experiment.loss, experiment.precision
    samples = samples_of_shard(experiment, pruner.refit)

    def destination(layer: Layer, shard: int) -> Destination:
        passes = {"data": data, "samples": samples, "loss": loss, "precision": precision}
        return run.store.destination("collect_pairs", model=dense, solutions=list(solved), **passes, layer=asdict(layer), shard=shard)

    def cut(missing: list[PlannedLayer]) -> list[list[PlannedLayer]]:
        return fitting_portions(experiment, run.profile, run.plan.resources, missing)

    def task(layers: tuple[Layer, ...], shard: int, to: tuple[Destination, ...]) -> CollectPairsTask:
        return CollectPairsTask(dense.file, tuple(solved), experiment.data, samples, layers, loss, precision, shard, to)

    return compute_cells(run, "collect pairs", Worker.collect_pairs, layers, destination, cut, task)


def refit(
    run: Run,
    pruner: WeightPruner,
    layers: Sequence[PlannedLayer],
    dense: Record[ModelNumbers],
    pairs: dict[str, list[Record[PairedInputs]]],
    solutions: dict[str, Record[LayerSolution]],
) -> dict[str, Record[LayerSolution]]:
    """The kept weights of each layer, fitted to its pairs of inputs."""
    costs, shards = cost_model(run.experiment, run.profile, run.plan.resources), run.experiment.data.shards
    settings = {"dense_share": pruner.refit.dense_share, "dampening": pruner.refit.dampening}
    tasks = []
    for planned in layers:
        layer, parts, solution = planned.layer, tuple(pairs[planned.layer.name]), solutions[planned.layer.name]
        to = run.store.destination("refit", model=dense, pairs=parts, solution=solution, **settings)
        tasks.append(RefitTask(dense.file, pruner, layer, parts, solution, to))
    records = run.map("refit", Worker.refit, tasks, [costs.refit(planned, shards) for planned in layers])
    return {record.numbers.layer: record for record in records}

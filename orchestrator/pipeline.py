"""The algorithm, one line per stage: in rounds, collect -> merge, score -> allocate -> solve -> recover, with evaluations in between.

A sequential ``refit`` fits the solved layers once more, one after another (``orchestrator/refitting.py``). With a target of latency,
measured times choose the sparsities in the place of ``allocate`` (``orchestrator/sparse_budget.py``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from orchestrator.allocation.weights import Tiles, allocate
from orchestrator.cells import compute_cells
from orchestrator.config import Round
from orchestrator.outcome import Increase, Masking, MaskingStep, Outcome, Removal, RemovalStep, RoundOutcome
from orchestrator.planning.costs import PlannedLayer, cost_model
from orchestrator.planning.plan import cut_grid, on_unfit, plan_layers
from orchestrator.refitting import refit_in_order
from orchestrator.rounds import toward
from orchestrator.run import Run, data_identity
from orchestrator.shrinking import remove_once
from orchestrator.sparse_budget import fit_to_budget, time_masked
from orchestrator.store import settings_of
from orchestrator.times import identity as timing_identity
from orchestrator.times import on_onnxruntime
from workers.files import finish
from workers.losses import Loss
from workers.messages import (
    AssessTask,
    CollectTask,
    CompareTask,
    CountTask,
    EvaluateTask,
    ImportTask,
    JoinTask,
    QuantiseTask,
    ScoreTask,
    SolveTask,
    TrainTask,
)
from workers.models.base import Layer, Output
from workers.pruners.base import WeightPruner
from workers.pruners.units import UnitPruner
from workers.records import (
    Destination,
    ImportedModel,
    Int8Model,
    JoinedModel,
    LayerCounts,
    LayerScores,
    LayerSolution,
    Metrics,
    ModelNumbers,
    Outputs,
    PartialMoment,
    Record,
    TrainedModel,
)
from workers.training.settings import Distill, Training
from workers.worker import Worker

if TYPE_CHECKING:
    from torch import Tensor

CALIBRATION = ("calibration_batches", "calibration_batch_size")  # read by collect, with shards, and by compare
EVALUATION = ("eval_batch_size",)


def prune(run: Run, imported: Record[ModelNumbers]) -> Outcome:
    """Prune a model in rounds. Every line reads its result from the store if it is there."""
    experiment, trained = run.experiment, None
    if experiment.model.checkpoint is None and experiment.training is not None:
        trained = train(run, "train dense", imported, experiment.training, dense=None)
    dense = trained or imported
    outputs = evaluate(run, "evaluate dense", dense)
    assessed = assess(run, "dense", outputs, outputs)

    rounds: list[RoundOutcome] = []
    for name in experiment.schedule:
        before = rounds[-1].model if rounds else dense
        rounds.append(prune_and_recover(run.of_round(name, before), before, dense, outputs))
        if rounds[-1].stopped:
            return Outcome(dense, trained, assessed, rounds)
    quantised = quantise(run, rounds[-1].model, outputs["test"]) if experiment.int8 else None
    return Outcome(dense, trained, assessed, rounds, quantised)


def prune_and_recover(
    run: Run, before: Record[ModelNumbers], dense: Record[ModelNumbers], outputs: dict[str, list[Record[Outputs]]]
) -> RoundOutcome:
    """One round: prune to its target in steps, then train. ``outputs`` are those of the dense model."""
    settings, trained, recovered = Round(run.experiment.pruner, run.experiment.steps, run.experiment.recovery), None, None
    match settings.pruner:
        case WeightPruner() as pruner:
            pruned: Masking | Removal = mask_weights(run, pruner, before)
        case UnitPruner() as pruner:
            pruned = Removal(pruner, remove_units(run, pruner, before))
        case _:
            raise TypeError(f"expected a pruner of weights or of units, got {type(settings.pruner).__name__}")
    smaller = pruned.steps[-1].model

    increase = measure_increase(run, before, smaller, dense)
    one_shot = assess(run, "one_shot", evaluate(run, "evaluate one-shot", smaller, dense), outputs)
    stopped = settings.recovery is not None and run.is_hopeless(one_shot.numbers.metrics)
    if settings.recovery is not None and not stopped:
        trained = train(run, "recover", smaller, settings.recovery, dense)
        recovered = assess(run, "recovered", evaluate(run, "evaluate recovered", trained, dense), outputs)
    return RoundOutcome(run.round, settings, pruned, run.family_of(smaller), increase, one_shot, trained, recovered, stopped)


def mask_weights(run: Run, pruner: WeightPruner, model: Record[ModelNumbers]) -> Masking:
    """Mask weights to the target of a round, in steps."""
    layers, unfit = plan_layers(pruner, run.profile), tuple(pruner.unfit(run.profile.layers))
    if unfit:
        run.warn(f"{run.prefix}{on_unfit(unfit, run.profile)}")
    steps: list[MaskingStep] = []
    for part in run.steps():
        steps.append(mask_once(part, pruner, layers, steps[-1].model if steps else model, model))
    warn_of_zeros(run, pruner, layers, steps)
    return Masking(pruner, layers, unfit, steps)


def mask_once(
    run: Run, pruner: WeightPruner, layers: Sequence[PlannedLayer], model: Record[ModelNumbers], dense: Record[ModelNumbers]
) -> MaskingStep:
    """One step towards the target of its round, which started from ``dense``. Weights of ``model`` that are zero count as pruned."""
    partials = collect(run, pruner, layers, model)
    scores = score(run, pruner, layers, model, partials)
    fitted = fit_to_budget(run, pruner, layers, model, dense, scores) if pruner.is_timed else None
    counts = allocate_layers(run, pruner, layers, scores) if fitted is None else fitted.numbers.tiles
    solutions = solve(run, pruner, layers, model, partials, scores, counts)
    if pruner.refit.is_sequential:
        solutions = refit_in_order(run, pruner, layers, dense, solutions)
    joined = join(run, model, solutions)
    timed = None if fitted is None else time_masked(run, pruner, joined, dense, fitted)
    return MaskingStep(partials, scores, solutions, joined, timed)


def remove_units(run: Run, pruner: UnitPruner, model: Record[ModelNumbers]) -> list[RemovalStep]:
    """Remove units to the target of a round, in steps."""
    steps: list[RemovalStep] = []
    for part in run.steps():
        steps.append(remove_once(part, pruner, steps[-1].model if steps else model))
    return steps


def import_model(run: Run) -> Record[ImportedModel]:
    """Bring the checkpoint, or fresh weights, into the store. Done by the driver itself: a checkpoint that does not fit costs no worker."""
    family, fresh = run.experiment.model, run.experiment.model.checkpoint is None
    source = run.experiment.seed if fresh else family.weights_fingerprint()
    to = run.store.destination("import", family=settings_of(family, without=(*family.selects, "checkpoint")), source=source)
    with run.timed("import"):
        worker, task = Worker("cpu", run.plan.resources.threads), ImportTask(family, fresh, run.experiment.seed, to)
        record = run.once("import", to, lambda: worker.import_model(task))
    for note in record.numbers.notes:
        run.warn(note)
    run.note("import", record)
    return record


def train(
    run: Run, stage: str, start: Record[ModelNumbers], training: Training, dense: Record[ModelNumbers] | None
) -> Record[TrainedModel]:
    """A gang trains a model from ``start``, its zeros held, taught by ``dense`` if the recipe distills."""
    data, seed = run.experiment.data, run.experiment.seed
    identity = data_identity(run, data.training_only)
    teacher = dense if training.distill is not Distill.NONE else None
    to = run.store.destination("train", model=start, teacher=teacher, data=identity, training=training, seed=seed)
    taught_by = None if teacher is None else teacher.file
    return run.train(stage, TrainTask(start.file, taught_by, data, training, seed, to.directory / "progress.jsonl", to))


def evaluate(
    run: Run, stage: str, model: Record[ModelNumbers], dense: Record[ModelNumbers] | None = None
) -> dict[str, list[Record[Outputs]]]:
    """Outputs on the test split, and on the bank if the model has no classifier and the labels are classes; parts of both in one map.

    The first part also measures the speed of the model, in turn with that of ``dense``.
    """
    data, precision = run.experiment.data, run.experiment.precision
    splits = ["test", "bank"] if run.experiment.model.output is Output.FEATURES and data.classes else ["test"]
    identity = data_identity(run, (*EVALUATION, *data.evaluation_only))
    tasks = []
    for split in splits:
        parts = data.evaluation_parts(split)
        for part in range(parts):
            timed = (split, part) == ("test", 0)
            beside = dense if timed else None
            passes = {"model": model, "beside": beside, "data": identity, "precision": precision}
            to = run.store.destination("evaluate", **passes, split=split, shard=part)
            tasks.append(EvaluateTask(model.file, data, precision, split, part, parts, timed, None if beside is None else beside.file, to))
    records = run.map(stage, Worker.evaluate, tasks)
    return {split: [record for record, task in zip(records, tasks, strict=True) if task.split == split] for split in splits}


def assess(run: Run, name: str, outputs: dict[str, list[Record[Outputs]]], dense: dict[str, list[Record[Outputs]]]) -> Record[Metrics]:
    """Accuracy of model ``name``, and its agreement with the dense one."""
    output = run.experiment.model.output
    to = run.store.destination("assess", outputs=outputs, dense=dense["test"], output=output)
    task = AssessTask({s: tuple(r) for s, r in outputs.items()}, {"test": tuple(dense["test"])}, output, to)
    record = run.map(f"assess {name}", Worker.assess, [task])[0]
    run.tracker.log(f"{run.round}/{name}" if run.round else name, record.numbers.metrics)
    return record


def quantise(run: Run, model: Record[ModelNumbers], dense: list[Record[Outputs]]) -> Record[Int8Model]:
    """The model in 8 bits, judged on the test split and timed, on a machine that does nothing else."""
    data, latency = run.experiment.data, run.experiment.latency
    identity = data_identity(run, (*CALIBRATION, *EVALUATION, *data.evaluation_only))
    to = run.store.destination(
        "quantise", model=model, data=identity, dense=dense, **timing_identity(*on_onnxruntime(latency, run.plan.resources))
    )
    record = run.map("quantise", Worker.quantise, [QuantiseTask(model.file, data, latency, tuple(dense), to)], alone=True)[0]
    run.tracker.log("int8", record.numbers.metrics)
    return record


def collect(
    run: Run, pruner: WeightPruner, layers: Sequence[PlannedLayer], model: Record[ModelNumbers]
) -> dict[str, list[Record[PartialMoment]]]:
    """Partial statistics, a list over shards for each layer. Only cells of the grid that are not stored are computed."""
    experiment, statistic = run.experiment, pruner.statistic
    if statistic is None:
        return {planned.layer.name: [] for planned in layers}
    data, loss, seed = data_identity(run, (*CALIBRATION, "shards")), experiment.loss, experiment.seed
    passes = {"model": model, "data": data, "precision": experiment.precision}

    def destination(layer: Layer, shard: int) -> Destination:
        return run.store.destination("collect", **passes, statistic=statistic.identity(layer, loss, seed), layer=asdict(layer), shard=shard)

    def cut(missing: list[PlannedLayer]) -> list[list[PlannedLayer]]:
        return cut_grid(experiment, run.profile, run.plan.resources, missing)

    def task(layers: tuple[Layer, ...], shard: int, to: tuple[Destination, ...]) -> CollectTask:
        return CollectTask(model.file, experiment.data, statistic, layers, loss, experiment.precision, shard, seed, to)

    costs = cost_model(experiment, run.profile, run.plan.resources)
    return compute_cells(run, "collect", Worker.collect, layers, destination, cut, task, costs.collect)


def score(
    run: Run,
    pruner: WeightPruner,
    layers: Sequence[PlannedLayer],
    model: Record[ModelNumbers],
    partials: dict[str, list[Record[PartialMoment]]],
) -> dict[str, Record[LayerScores]]:
    """Merge each layer's statistics in shard order and find what its weights are worth."""
    costs, shards = cost_model(run.experiment, run.profile, run.plan.resources), run.experiment.data.shards
    tasks = []
    for planned in layers:
        name, parts = planned.layer.name, tuple(partials[planned.layer.name])
        reads = {
            "pruner": settings_of(pruner, without=("target", "refit")),
            "pattern": pruner.target.pattern,
            "partials": parts,
            "layer": name,
        }
        tasks.append(ScoreTask(model.file, pruner, planned.layer, parts, run.store.destination("score", model=model, **reads)))
    records = run.map("score", Worker.score, tasks, [costs.score(planned, shards) for planned in layers])
    if records and all(record.numbers.notes.get("vanishing") for record in records):
        run.warn(f"{run.prefix}the statistic of every layer is zero, so weights were ranked by their size; check the loss and the images")
    return {record.numbers.layer: record for record in records}


def allocate_layers(
    run: Run, pruner: WeightPruner, layers: Sequence[PlannedLayer], scores: dict[str, Record[LayerScores]]
) -> dict[str, int]:
    """How many more tiles each layer loses, from histograms of the scores."""
    pruned, numbers = [planned.layer for planned in layers], {name: record.numbers for name, record in scores.items()}
    tiles = {name: Tiles(each.tiles, each.removable) for name, each in numbers.items()}
    target = toward(pruner.target, pruned, {name: each.zeros for name, each in numbers.items()}, run.steps_left)
    to = run.store.destination("allocate", target=target, scores=list(scores.values()))

    def histograms(high_bin: int | None) -> list[Tensor]:
        return run.compute("allocate", Worker.count, [CountTask(scores[layer.name], high_bin) for layer in pruned])

    def make() -> Record[LayerCounts]:
        started = time.monotonic()
        return finish(to, LayerCounts(allocate(target, pruned, tiles, histograms)), started)

    record = run.once("allocate", to, make)
    run.note("allocate", record)
    return record.numbers.tiles


def solve(
    run: Run,
    pruner: WeightPruner,
    layers: Sequence[PlannedLayer],
    model: Record[ModelNumbers],
    partials: dict[str, list[Record[PartialMoment]]],
    scores: dict[str, Record[LayerScores]],
    counts: dict[str, int],
) -> dict[str, Record[LayerSolution]]:
    """Masks and re-fitted weights."""
    costs, shards = cost_model(run.experiment, run.profile, run.plan.resources), run.experiment.data.shards
    tasks = []
    for planned in layers:
        layer, scored, count = planned.layer, scores[planned.layer.name], counts[planned.layer.name]
        to = run.store.destination("solve", scores=scored, pruned=count)
        tasks.append(SolveTask(model.file, pruner, layer, tuple(partials[layer.name]), scored, count, to))
    records = run.map("solve", Worker.solve, tasks, [costs.solve(planned, shards) for planned in layers])
    return {record.numbers.layer: record for record in records}


def join(run: Run, model: Record[ModelNumbers], solutions: dict[str, Record[LayerSolution]]) -> Record[JoinedModel]:
    """The model with its solved layers."""
    to = run.store.destination("join", model=model, solutions=list(solutions.values()))
    return run.map("join", Worker.join, [JoinTask(model.file, tuple(solutions.values()), to)])[0]


def warn_of_zeros(run: Run, pruner: WeightPruner, layers: Sequence[PlannedLayer], steps: Sequence[MaskingStep]) -> None:
    """Warn if the model of a round had as many zeros as the target asks for, or more."""
    if pruner.is_timed:
        return
    target, weights = pruner.target.overall([planned.layer for planned in layers]), sum(planned.layer.weights for planned in layers)
    before = sum(record.numbers.zeros for record in steps[0].scores.values())
    after = sum(record.numbers.zeros for record in steps[-1].solutions.values())
    if before > round(target * weights):
        run.warn(f"{run.prefix}the model already had more zeros than the target of {target:.1%}")
    elif before == after:
        run.warn(f"{run.prefix}nothing was pruned: the model already had the zeros that the target of {target:.1%} asks for")


def measure_increase(run: Run, before: Record[ModelNumbers], after: Record[ModelNumbers], dense: Record[ModelNumbers]) -> Increase:
    """The real rise of the calibration loss over the pruning of a round, to hold the prediction against."""
    data, loss, precision = run.experiment.data, run.experiment.loss, run.experiment.precision
    passes, tasks = {"data": data_identity(run, CALIBRATION), "loss": loss, "precision": precision}, []
    for part in range(data.comparison_parts if run.experiment.compare else 0):
        to = run.store.destination("compare", before=before, after=after, **passes, shard=part)
        tasks.append(CompareTask(before.file, after.file, data, loss, precision, part, data.comparison_parts, to))
    records = run.map("compare", Worker.compare, tasks) if tasks else []
    samples = sum(record.numbers.samples for record in records)
    detector = run.experiment.model.output is Output.BOXES and loss is Loss.LABELS
    words = DETECTION if detector else LOSSES[loss].format("dense model" if before.fingerprint == dense.fingerprint else "model before")
    return Increase(sum(record.numbers.total for record in records) / samples if samples else None, words)


LOSSES = {
    Loss.LABELS: "cross-entropy per calibration sample",
    Loss.SAMPLED: "KL divergence from the {} per calibration sample",
    Loss.FEATURES: "half the mean squared feature error per calibration sample",
}
DETECTION = "detection loss per calibration sample"

"""The algorithm, one line per stage: in rounds, collect -> merge, score -> allocate -> solve -> recover, with evaluations in between."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict

from orchestrator.allocation.weights import Allocation, Tiles, allocate, asked_sparsity
from orchestrator.outcome import Outcome, RoundOutcome, Step, UnitStep
from orchestrator.planning.costs import PlannedLayer, cost_model
from orchestrator.planning.plan import cut_grid, on_unfit
from orchestrator.rounds import toward
from orchestrator.run import Run, data_identity
from orchestrator.shrinking import take_out
from orchestrator.store import MODEL, settings
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
from workers.models.base import Output
from workers.pruners.base import WeightPruner
from workers.records import Destination, Record
from workers.training.settings import Distill, Training
from workers.worker import Worker

CALIBRATION = ("calibration_batches", "calibration_batch_size")  # read by collect, with shards, and by compare
EVALUATION = ("eval_batch_size",)


def prune(run: Run, imported: Record) -> Outcome:
    """Prune a model in rounds. Every line reads its result from the store if it is there."""
    experiment, trained = run.experiment, None
    if experiment.model.checkpoint is None and experiment.training is not None:
        trained = train(run, "train dense", imported, experiment.training, dense=None)
    dense = trained or imported
    outputs = evaluate(run, "evaluate dense", dense)
    assessed = assess(run, "dense", outputs, outputs)

    rounds: list[RoundOutcome] = []
    for part in run.rounds():
        before = rounds[-1].model if rounds else dense
        rounds.append(prune_and_recover(part.on(before), before, dense, outputs))
    quantised = quantise(run, rounds[-1].model, outputs["test"]) if experiment.int8 else None
    return Outcome(dense, trained, assessed, rounds, quantised)


def prune_and_recover(run: Run, before: Record, dense: Record, outputs: dict[str, list[Record]]) -> RoundOutcome:
    """One round: to its target in steps, then its training. ``outputs`` are those of the dense model."""
    recovery, trained, recovered = run.experiment.recovery, None, None
    steps = mask_weights(run, before) if isinstance(run.experiment.pruner, WeightPruner) else take_units_out(run, before)
    pruned = steps[-1].model

    measured, unit = measure_increase(run, before, pruned, dense)
    one_shot = assess(run, "one_shot", evaluate(run, "evaluate one-shot", pruned), outputs)
    if recovery is not None:
        trained = train(run, "recover", pruned, recovery, dense)
        recovered = assess(run, "recovered", evaluate(run, "evaluate recovered", trained), outputs)
    return RoundOutcome(run, steps, measured, unit, one_shot, trained, recovered)


def mask_weights(run: Run, model: Record) -> list[Step]:
    """To the target in steps."""
    if run.plan.unfit:
        run.warn(f"{run.prefix}{on_unfit(run.plan)}")
    steps: list[Step] = []
    for part in run.steps():
        steps.append(prune_once(part, steps[-1].model if steps else model))
    warn_of_zeros(run, steps)
    return steps


def take_units_out(run: Run, model: Record) -> list[UnitStep]:
    """To the target in steps."""
    steps: list[UnitStep] = []
    for part in run.steps():
        steps.append(take_out(part, steps[-1].model if steps else model))
    return steps


def prune_once(run: Run, model: Record) -> Step:
    """One step towards the target of its round. Zeros of ``model`` count as pruned already."""
    partials = collect(run, model)
    scores = score(run, model, partials)
    allocation = allocate_layers(run, scores)
    solutions = solve(run, model, partials, scores, allocation)
    return Step(partials, scores, solutions, join(run, model, solutions))


def import_model(run: Run) -> Record:
    """Bring the checkpoint, or fresh weights, into the store. Done by the driver itself: a checkpoint that does not fit costs no worker."""
    family, fresh = run.experiment.model, run.experiment.model.checkpoint is None
    source = run.experiment.seed if fresh else family.weights_fingerprint()
    to = run.store.destination("import", family=settings(family, without=(*family.selects, "checkpoint")), source=source)
    with run.timed("import"):
        worker = Worker("cpu", run.plan.resources.threads)
        record = run.find(to) or worker.import_model(ImportTask(family, fresh, run.experiment.seed, to))
    for note in record.numbers.get("notes", []):
        run.warn(note)
    run.note("import", record)
    return record


def train(run: Run, stage: str, start: Record, recovery: Training, dense: Record | None) -> Record:
    """A gang trains a model from ``start``, its zeros held, taught by ``dense`` if the recipe distills."""
    data, seed = run.experiment.data, run.experiment.seed
    identity = data_identity(run, data.training_only)
    teacher = dense if recovery.distill is not Distill.NONE else None
    to = run.store.destination("train", model=start, teacher=teacher, data=identity, recovery=recovery, seed=seed)
    taught_by = None if teacher is None else teacher.path(MODEL)
    return run.gang(stage, TrainTask(start.path(MODEL), taught_by, data, recovery, seed, to.directory / "progress.jsonl", to))


def evaluate(run: Run, stage: str, model: Record) -> dict[str, list[Record]]:
    """Outputs on the test split, and on the labelled bank if the model has no classifier; parts of both in one map."""
    data, splits = run.experiment.data, ["test", "bank"] if run.experiment.model.output is Output.FEATURES else ["test"]
    identity = data_identity(run, (*EVALUATION, *data.evaluation_only))
    tasks = []
    for split in splits:
        parts = data.evaluation_parts(split)
        for part in range(parts):
            to = run.store.destination("evaluate", model=model, data=identity, split=split, shard=part)
            tasks.append(EvaluateTask(model.path(MODEL), data, split, part, parts, (split, part) == ("test", 0), to))
    records = run.map(stage, Worker.evaluate, tasks)
    return {split: [record for record, task in zip(records, tasks, strict=True) if task.split == split] for split in splits}


def assess(run: Run, name: str, outputs: dict[str, list[Record]], dense: dict[str, list[Record]]) -> Record:
    """Accuracy of model ``name``, and its agreement with the dense one."""
    output = run.experiment.model.output
    to = run.store.destination("assess", outputs=outputs, dense=dense["test"], output=output)
    task = AssessTask({s: tuple(r) for s, r in outputs.items()}, {"test": tuple(dense["test"])}, output, to)
    record = run.map(f"assess {name}", Worker.assess, [task])[0]
    run.tracked.log(f"{run.round}/{name}" if run.round else name, record.numbers["metrics"])
    return record


def quantise(run: Run, model: Record, dense: list[Record]) -> Record:
    """The model in 8 bits, judged on the test split and timed, on a machine that does nothing else."""
    data, latency = run.experiment.data, run.experiment.latency
    identity = data_identity(run, (*CALIBRATION, *EVALUATION, *data.evaluation_only))
    to = run.store.destination("quantise", model=model, data=identity, dense=dense, **timing_identity(*on_onnxruntime(run)))
    record = run.map("quantise", Worker.quantise, [QuantiseTask(model.path(MODEL), data, latency, tuple(dense), to)], alone=True)[0]
    run.tracked.log("int8", record.numbers["metrics"])
    return record


def collect(run: Run, model: Record) -> dict[str, list[Record]]:
    """Partial statistics, a list over shards for each layer. Only cells of the grid that are not stored are computed."""
    experiment, plan = run.experiment, run.plan
    statistic = experiment.weight_pruner.statistic
    if statistic is None:
        return {planned.layer.name: [] for planned in plan.layers}
    data, loss, seed = data_identity(run, (*CALIBRATION, "shards")), experiment.loss, experiment.seed
    grid: dict[tuple[str, int], Destination] = {}
    for planned in plan.layers:
        reads = {"model": model, "statistic": statistic.identity(planned.layer, loss, seed), "data": data, "layer": asdict(planned.layer)}
        grid |= {(planned.layer.name, shard): run.store.destination("collect", **reads, shard=shard) for shard in range(plan.shards)}
    found = {cell: record for cell, to in grid.items() if (record := run.find(to)) is not None}
    costs = cost_model(experiment, plan.profile, plan.resources)
    tasks: list[tuple[float, CollectTask]] = []
    for shard in range(plan.shards):
        missing = [planned for planned in plan.layers if (planned.layer.name, shard) not in found]
        for portion in cut_grid(experiment, plan.profile, plan.resources, missing):
            layers = tuple(planned.layer for planned in portion)
            to = tuple(grid[layer.name, shard] for layer in layers)
            task = CollectTask(model.path(MODEL), experiment.data, statistic, layers, loss, shard, seed, to)
            tasks.append((costs.collect(portion), task))
    tasks.sort(key=lambda task: -task[0])  # longest first
    for records in run.compute("collect", Worker.collect, [task for _, task in tasks], list(found.values())):
        found |= {(record.numbers["layer"], record.numbers["shard"]): record for record in records}
    return {planned.layer.name: [found[planned.layer.name, shard] for shard in range(plan.shards)] for planned in plan.layers}


def score(run: Run, model: Record, partials: dict[str, list[Record]]) -> dict[str, Record]:
    """Merge each layer's statistics in shard order and find what its weights are worth."""
    pruner, costs = run.experiment.weight_pruner, cost_model(run.experiment, run.plan.profile, run.plan.resources)
    tasks = []
    for planned in run.plan.layers:
        name, parts = planned.layer.name, tuple(partials[planned.layer.name])
        to = run.store.destination(
            "score", model=model, pruner=settings(pruner, without=("target",)), pattern=pruner.target.pattern, partials=parts, layer=name
        )
        tasks.append(ScoreTask(model.path(MODEL), pruner, planned.layer, parts, to))
    records = run.map("score", Worker.score, tasks, [costs.score(planned, run.plan.shards) for planned in run.plan.layers])
    return _by_layer(run.plan.layers, records)


def allocate_layers(run: Run, scores: dict[str, Record]) -> Allocation:
    """How many weights each layer loses, from histograms of the scores."""
    layers = [planned.layer for planned in run.plan.layers]
    counted = {layer.name: Tiles(scores[layer.name].numbers["units"], scores[layer.name].numbers["removable"]) for layer in layers}
    already = {layer.name: scores[layer.name].numbers["already_pruned"] for layer in layers}
    target = toward(run.experiment.weight_pruner.target, layers, already, run.steps_left)
    to = run.store.destination("allocate", target=target, scores=list(scores.values()))

    def histograms(high_bin: int | None) -> list:
        return run.compute("allocate", Worker.count, [CountTask(scores[layer.name], high_bin) for layer in layers])

    record = run.find(to)
    if record is None:
        started = time.time()
        pruned = allocate(target, layers, counted, histograms)
        record = finish(to, "allocate", {}, {"pruned": pruned}, started)
    run.note("allocate", record)
    return dict(record.numbers["pruned"])


def solve(
    run: Run, model: Record, partials: dict[str, list[Record]], scores: dict[str, Record], allocation: Allocation
) -> dict[str, Record]:
    """Masks and re-fitted weights."""
    costs = cost_model(run.experiment, run.plan.profile, run.plan.resources)
    tasks = []
    for planned in run.plan.layers:
        layer, scored, count = planned.layer, scores[planned.layer.name], allocation[planned.layer.name]
        to = run.store.destination("solve", scores=scored, pruned=count)
        tasks.append(SolveTask(model.path(MODEL), run.experiment.weight_pruner, layer, tuple(partials[layer.name]), scored, count, to))
    records = run.map("solve", Worker.solve, tasks, [costs.solve(planned, run.plan.shards) for planned in run.plan.layers])
    return _by_layer(run.plan.layers, records)


def join(run: Run, model: Record, solutions: dict[str, Record]) -> Record:
    """The model with its layers pruned."""
    to = run.store.destination("join", model=model, solutions=list(solutions.values()))
    return run.map("join", Worker.join, [JoinTask(model.path(MODEL), tuple(solutions.values()), to)])[0]


def warn_of_zeros(run: Run, steps: Sequence[Step]) -> None:
    """Say so if a round found more zeros than it was to leave, or just as many."""
    layers = [planned.layer for planned in run.plan.layers]
    asked = asked_sparsity(run.experiment.weight_pruner.target, layers)
    found = sum(record.numbers["already_pruned"] for record in steps[0].scores.values())
    left = sum(record.numbers["pruned"] for record in steps[-1].solutions.values())
    if found > round(asked * sum(layer.weights for layer in layers)):
        run.warn(f"{run.prefix}the model had more zeros than the target asks for ({asked:.1%})")
    elif found == left:
        run.warn(f"{run.prefix}nothing was pruned, since the model had the zeros that the target asks for ({asked:.1%})")


def measure_increase(run: Run, before: Record, pruned: Record, dense: Record) -> tuple[float | None, str]:
    """Real rise of the calibration loss over the pruning of a round, to hold the prediction against, and its unit."""
    data, loss, identity = run.experiment.data, run.experiment.loss, data_identity(run, CALIBRATION)
    tasks = []
    for part in range(data.comparison_parts if run.experiment.compare else 0):
        to = run.store.destination("compare", before=before, after=pruned, data=identity, loss=loss, shard=part)
        tasks.append(CompareTask(before.path(MODEL), pruned.path(MODEL), data, loss, part, data.comparison_parts, to))
    records = run.map("compare", Worker.compare, tasks) if tasks else []
    samples = sum(record.numbers["samples"] for record in records)
    detector = run.experiment.model.output is Output.BOXES and loss is Loss.LABELS
    unit = DETECTION if detector else UNITS[loss].format("dense model" if before.fingerprint == dense.fingerprint else "model before")
    return (sum(record.numbers["total"] for record in records) / samples if samples else None), unit


UNITS = {
    Loss.LABELS: "cross-entropy per calibration sample",
    Loss.SAMPLED: "KL divergence from the {} per calibration sample",
    Loss.FEATURES: "half the mean squared feature error per calibration sample",
}
DETECTION = "detection loss per calibration sample"


def _by_layer(layers: Sequence[PlannedLayer], records: Sequence[Record]) -> dict[str, Record]:
    return {planned.layer.name: record for planned, record in zip(layers, records, strict=True)}

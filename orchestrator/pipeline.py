"""The algorithm, one line per stage: collect -> merge, score -> allocate -> solve -> recover, with evaluations in between."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from orchestrator.allocate import Allocation, Units, allocate, asked_sparsity
from orchestrator.costs import PlannedLayer, cost_model
from orchestrator.plan import fixed_bytes, portions
from orchestrator.run import Run
from orchestrator.store import MODEL, settings
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
    Record,
    RecoverTask,
    ScoreTask,
    SolveTask,
)
from workers.recovery import Distill, Recovery
from workers.worker import Worker

CALIBRATION = ("calibration_batches", "calibration_batch_size", "shards")  # read by collect and compare
EVALUATION = ("eval_batch_size", "shards")


@dataclass(frozen=True)
class Outcome:
    """Everything a report is made of: records of each stage."""

    models: dict[str, Record]  # dense, one_shot, recovered
    metrics: dict[str, Record]
    training: dict[str, Record]
    partials: dict[str, list[Record]]
    scores: dict[str, Record]
    solutions: dict[str, Record]
    measured: float | None
    measured_unit: str

    @property
    def final(self) -> Record:
        return list(self.models.values())[-1]


def prune(run: Run, imported: Record) -> Outcome:
    """Prune a model and recover it. Every line reads its result from the store if it is there."""
    experiment = run.experiment
    training: dict[str, Record] = {}

    dense = imported
    if experiment.model.checkpoint is None and experiment.training is not None:
        dense = training["dense"] = train(run, "train dense", imported, experiment.training, dense=None)
    outputs = evaluate(run, "evaluate dense", dense)
    metrics = {"dense": assess(run, "dense", outputs, outputs)}

    partials = collect(run, dense)
    scores = score(run, dense, partials)
    allocation = allocate_layers(run, scores)
    solutions = solve(run, dense, partials, scores, allocation)
    one_shot = join(run, dense, solutions)

    measured, unit = measure_increase(run, dense, one_shot)
    metrics["one_shot"] = assess(run, "one_shot", evaluate(run, "evaluate one-shot", one_shot), outputs)
    models = {"dense": dense, "one_shot": one_shot}
    if experiment.recovery is not None:
        recovered = training["recovery"] = train(run, "recover", one_shot, experiment.recovery, dense)
        metrics["recovered"] = assess(run, "recovered", evaluate(run, "evaluate recovered", recovered), outputs)
        models["recovered"] = recovered
    return Outcome(models, metrics, training, partials, scores, solutions, measured, unit)


def import_model(run: Run) -> Record:
    """Bring the checkpoint, or fresh weights, into the store. Done by the driver itself: a checkpoint that does not fit costs no worker."""
    family, fresh = run.experiment.model, run.experiment.model.checkpoint is None
    source = run.experiment.seed if fresh else family.weights_fingerprint()
    to = run.store.destination("import", family=settings(family, without=(*family.selects, "checkpoint")), source=source)
    with run.timed("import"):
        worker = Worker("cpu", run.plan.resources.threads)
        record = run.find(to) or worker.import_model(ImportTask(family, fresh, run.experiment.seed, to))
    run.note("import", record)
    return record


def train(run: Run, stage: str, start: Record, recovery: Recovery, dense: Record | None) -> Record:
    """A gang trains a model from ``start``, its zeros held, taught by ``dense`` if the recipe distills."""
    data, seed = run.experiment.data, run.experiment.seed
    identity = data_identity(run, data.training_only)
    teacher = dense if recovery.distill is not Distill.NONE else None
    to = run.store.destination("recover", model=start, teacher=teacher, data=identity, recovery=recovery, seed=seed)
    taught_by = None if teacher is None else teacher.path(MODEL)
    return run.gang(stage, RecoverTask(start.path(MODEL), taught_by, data, recovery, seed, to.directory / "progress.jsonl", to))


def evaluate(run: Run, stage: str, model: Record) -> dict[str, list[Record]]:
    """Outputs on the test split, and on the labelled bank if the model has no classifier; shards of both in one map."""
    data, splits = run.experiment.data, ["test"] if run.experiment.model.is_classifier else ["test", "bank"]
    identity = data_identity(run, (*EVALUATION, *data.evaluation_only))
    tasks = []
    for split in splits:
        for shard in range(data.shards):
            to = run.store.destination("evaluate", model=model, data=identity, split=split, shard=shard)
            tasks.append(EvaluateTask(model.path(MODEL), data, split, shard, data.shards, to))
    records = run.map(stage, Worker.evaluate, tasks)
    return {split: records[index * data.shards : (index + 1) * data.shards] for index, split in enumerate(splits)}


def assess(run: Run, name: str, outputs: dict[str, list[Record]], dense: dict[str, list[Record]]) -> Record:
    """Accuracy of model ``name``, and its agreement with the dense one."""
    classifier = run.experiment.model.is_classifier
    to = run.store.destination("assess", outputs=outputs, dense=dense["test"], classifier=classifier)
    task = AssessTask({s: tuple(r) for s, r in outputs.items()}, {"test": tuple(dense["test"])}, classifier, to)
    record = run.map(f"assess {name}", Worker.assess, [task])[0]
    run.tracked.log(name, record.numbers["metrics"])
    return record


def collect(run: Run, dense: Record) -> dict[str, list[Record]]:
    """Partial statistics, a list over shards for each layer. Only cells of the grid that are not stored are computed."""
    experiment, plan = run.experiment, run.plan
    statistic = experiment.pruner.statistic
    if statistic is None:
        return {planned.layer.name: [] for planned in plan.layers}
    identity = statistic.identity(experiment.loss, experiment.seed)
    data, seed = data_identity(run, CALIBRATION), experiment.seed
    grid = {
        (planned.layer.name, shard): run.store.destination(
            "collect", model=dense, statistic=identity, data=data, layer=asdict(planned.layer), shard=shard
        )
        for planned in plan.layers
        for shard in range(plan.shards)
    }
    found = {cell: record for cell, to in grid.items() if (record := run.find(to)) is not None}
    room = plan.resources.memory_bytes - fixed_bytes(experiment, plan.profile)
    tasks = []
    for shard in range(plan.shards):
        missing = [planned for planned in plan.layers if (planned.layer.name, shard) not in found]
        for portion in portions(missing, room, -(-plan.resources.workers // plan.shards)) if missing else []:
            layers = tuple(planned.layer for planned in portion)
            to = tuple(grid[layer.name, shard] for layer in layers)
            tasks.append(CollectTask(dense.path(MODEL), experiment.data, statistic, layers, experiment.loss, shard, seed, to))
    for records in run.compute("collect", Worker.collect, tasks, list(found.values())):
        found |= {(record.numbers["layer"], record.numbers["shard"]): record for record in records}
    return {planned.layer.name: [found[planned.layer.name, shard] for shard in range(plan.shards)] for planned in plan.layers}


def score(run: Run, dense: Record, partials: dict[str, list[Record]]) -> dict[str, Record]:
    """Merge each layer's statistics in shard order and find what its weights are worth."""
    pruner, costs = run.experiment.pruner, cost_model(run.experiment, run.plan.profile, run.plan.resources)
    tasks = []
    for planned in run.plan.layers:
        name, parts = planned.layer.name, tuple(partials[planned.layer.name])
        to = run.store.destination("score", model=dense, pruner=settings(pruner, without=("target",)), partials=parts, layer=name)
        tasks.append(ScoreTask(dense.path(MODEL), pruner, planned.layer, parts, to))
    records = run.map("score", Worker.score, tasks, [costs.score(planned, run.plan.shards) for planned in run.plan.layers])
    return _by_layer(run.plan.layers, records)


def allocate_layers(run: Run, scores: dict[str, Record]) -> Allocation:
    """How many weights each layer loses, from histograms of the scores."""
    layers = [planned.layer for planned in run.plan.layers]
    target, pattern = run.experiment.pruner.target, run.experiment.pruner.pattern
    counted = {layer.name: Units(scores[layer.name].numbers["units"], scores[layer.name].numbers["removable"]) for layer in layers}
    to = run.store.destination("allocate", target=target, scores=list(scores.values()))

    def histograms(high_bin: int | None) -> list:
        return run.compute("allocate", Worker.count, [CountTask(scores[layer.name], high_bin) for layer in layers])

    record = run.find(to)
    if record is None:
        started = time.time()
        pruned = allocate(target, layers, counted, histograms)
        record = finish(to, "allocate", {}, {"pruned": pruned}, started)
    run.note("allocate", record)
    asked, units = asked_sparsity(target, layers), sum(each.total for each in counted.values())
    if not pattern.bucket and units - sum(each.removable for each in counted.values()) > round(asked * units):
        run.warn(f"the model had more zeros than the target asks for ({asked:.1%})")
    return dict(record.numbers["pruned"])


def solve(
    run: Run, dense: Record, partials: dict[str, list[Record]], scores: dict[str, Record], allocation: Allocation
) -> dict[str, Record]:
    """Masks and re-fitted weights."""
    costs = cost_model(run.experiment, run.plan.profile, run.plan.resources)
    tasks = []
    for planned in run.plan.layers:
        layer, scored, count = planned.layer, scores[planned.layer.name], allocation[planned.layer.name]
        to = run.store.destination("solve", scores=scored, pruned=count)
        tasks.append(SolveTask(dense.path(MODEL), run.experiment.pruner, layer, tuple(partials[layer.name]), scored, count, to))
    records = run.map("solve", Worker.solve, tasks, [costs.solve(planned, run.plan.shards) for planned in run.plan.layers])
    return _by_layer(run.plan.layers, records)


def join(run: Run, dense: Record, solutions: dict[str, Record]) -> Record:
    """The one-shot pruned model."""
    to = run.store.destination("join", model=dense, solutions=list(solutions.values()))
    return run.map("join", Worker.join, [JoinTask(dense.path(MODEL), tuple(solutions.values()), to)])[0]


def measure_increase(run: Run, dense: Record, pruned: Record) -> tuple[float | None, str]:
    """Real rise of the calibration loss, to hold the prediction against."""
    data, loss = run.experiment.data, run.experiment.loss
    tasks = []
    for shard in range(data.shards):
        identity = data_identity(run, CALIBRATION)
        to = run.store.destination("compare", dense=dense, pruned=pruned, data=identity, loss=loss, shard=shard)
        tasks.append(CompareTask(dense.path(MODEL), pruned.path(MODEL), data, loss, shard, to))
    records = run.map("compare", Worker.compare, tasks)
    samples = sum(record.numbers["samples"] for record in records)
    return (sum(record.numbers["total"] for record in records) / samples if samples else None), UNITS[loss]


UNITS = {
    Loss.LABELS: "cross-entropy per calibration sample",
    Loss.SAMPLED: "KL divergence from the dense model per calibration sample",
    Loss.FEATURES: "half the mean squared feature error per calibration sample",
}


def data_identity(run: Run, reads: tuple[str, ...]) -> dict:
    """What of the data a verb depends on: its content and preprocessing, and the named fields."""
    data = run.experiment.data
    return {"content": data.fingerprint(), "seed": data.seed, **{name: getattr(data, name) for name in reads}}


def _by_layer(layers: Sequence[PlannedLayer], records: Sequence[Record]) -> dict[str, Record]:
    return {planned.layer.name: record for planned, record in zip(layers, records, strict=True)}

"""What will be computed where, how long it takes and what it weighs. Pure: no GPU, no data, no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.allocate import asked_sparsity
from orchestrator.cluster.base import Hardware, Resources
from orchestrator.config import Experiment
from orchestrator.costs import SCORED_BYTES, SOLVED_BYTES, PlannedLayer, cost_model
from orchestrator.footprint import Footprint, check_memory, footprint
from orchestrator.grid import makespan, portions
from workers.data.base import TASK_SAMPLES
from workers.models.profile import ModelProfile
from workers.recovery import Distill, Recovery

HOST_FLOPS = 2e11  # of the CPU beside a GPU, where metrics are computed
HISTOGRAM_READS = 2  # of all scores, to find one threshold exactly


@dataclass(frozen=True)
class Estimate:
    """One stage: its tasks, wall seconds on all workers, and seconds of one device in all."""

    tasks: int
    seconds: float
    device_seconds: float
    durations: tuple[float, ...] = ()  # of the tasks; of a gang, the same for each rank


@dataclass(frozen=True)
class Plan:
    """The whole run before it starts."""

    layers: tuple[PlannedLayer, ...]
    portions: tuple[tuple[str, ...], ...]  # layers that are collected together; the grid is portions x shards
    shards: int
    resources: Resources
    hardware: Hardware
    profile: ModelProfile
    stages: dict[str, Estimate]
    stage_bytes: dict[str, int]  # of a worker, at its worst
    store_bytes: int

    @property
    def worker_bytes(self) -> int:
        return max(self.stage_bytes.values())

    @property
    def waves(self) -> int:
        """Rounds of collecting: grid cells over workers."""
        return -(-len(self.portions) * self.shards // self.resources.workers)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages.values())

    @property
    def device_hours(self) -> float:
        return sum(stage.device_seconds for stage in self.stages.values()) / 3600


def plan_layers(experiment: Experiment, profile: ModelProfile) -> tuple[PlannedLayer, ...]:
    statistic, found = experiment.pruner.statistic, zip(profile.layers, profile.depths, strict=True)
    if statistic is None:
        return tuple(PlannedLayer(layer, depth, 0, 0) for layer, depth in found)
    by_gradients = statistic.by_gradients
    return tuple(
        PlannedLayer(layer, depth, *statistic.shape(layer), statistic.working_bytes(layer), by_gradients) for layer, depth in found
    )


def cut_grid(
    experiment: Experiment, profile: ModelProfile, resources: Resources, layers: Sequence[PlannedLayer]
) -> list[list[PlannedLayer]]:
    """Portions of ``layers`` (all, or those whose statistics are missing). Raises: ConfigError if one does not fit a worker's memory."""
    if not layers or experiment.pruner.statistic is None:
        return []
    costs, bytes_of = cost_model(experiment, profile, resources), footprint(experiment, profile, resources)
    return portions(layers, costs, bytes_of, resources.memory_bytes, resources.workers, experiment.data.shards)


def make_plan(experiment: Experiment, profile: ModelProfile, resources: Resources) -> Plan:
    """Raises: ConfigError if the model, or a layer, cannot fit a worker's memory."""
    layers = plan_layers(experiment, profile)
    bytes_of = footprint(experiment, profile, resources)
    needs = _needs(experiment, bytes_of)
    check_memory(resources.memory_bytes, needs)
    stage_bytes = {stage: needed for stage, needed, _ in needs}
    cut = cut_grid(experiment, profile, resources, layers)
    if cut:
        stage_bytes["collecting"] = max(bytes_of.collect(portion) for portion in cut)
    stage_bytes["scoring"] = max(bytes_of.score(planned) for planned in layers)
    stage_bytes["solving"] = max(bytes_of.solve(planned) for planned in layers)
    return Plan(
        layers=layers,
        portions=tuple(tuple(planned.layer.name for planned in portion) for portion in cut),
        shards=experiment.data.shards,
        resources=resources,
        hardware=experiment.cluster.hardware,
        profile=profile,
        stages=_stages(experiment, profile, resources, layers, cut),
        stage_bytes=stage_bytes,
        store_bytes=_store_bytes(experiment, profile, layers),
    )


def _needs(experiment: Experiment, bytes_of: Footprint) -> list[tuple[str, int, str]]:
    """What has to fit whatever the cut: work, bytes, remedy."""
    data, target = experiment.data, experiment.pruner.target
    sparsity = 0.0 if experiment.steps > 1 else asked_sparsity(target, bytes_of.profile.layers)
    fewer = "lower {0}, or use workers with more memory"
    needs = [
        ("joining the solved layers", bytes_of.join(sparsity), fewer.format("cluster.workers if they share a machine")),
        (
            "evaluating",
            bytes_of.evaluate(data.eval_batch_size, min(data.size("test"), TASK_SAMPLES), models=2),
            fewer.format("data.eval_batch_size"),
        ),
        (
            "comparing two models on a calibration batch",
            bytes_of.evaluate(data.calibration_batch_size, 0, models=2),
            fewer.format("data.calibration_batch_size"),
        ),
    ]
    dense = experiment.training if experiment.model.checkpoint is None else None
    for what, recipe in (("training", dense), ("recovery", experiment.recovery)):
        if recipe is not None:
            remedy = f"raise {what}.ranks or {what}.zero_stage, lower {what}.batch_size"
            needs.append((f"{what} of {recipe.batch_size // recipe.ranks} samples per rank", bytes_of.train(recipe), remedy))
    return needs


def _store_bytes(experiment: Experiment, profile: ModelProfile, layers: Sequence[PlannedLayer]) -> int:
    """Statistics of all shards, scores and solutions, three models, and a training's checkpoints while it lasts."""
    shards, weights = experiment.data.shards, profile.prunable_weights
    statistics = sum(shards * planned.stored_bytes for planned in layers)
    checkpoints = 2 * 3 * profile.model_bytes if experiment.recovery is not None else 0
    return statistics + int((SCORED_BYTES + SOLVED_BYTES) * weights) + 3 * profile.model_bytes + checkpoints


def _stages(
    experiment: Experiment,
    profile: ModelProfile,
    resources: Resources,
    layers: Sequence[PlannedLayer],
    cut: Sequence[Sequence[PlannedLayer]],
) -> dict[str, Estimate]:
    """Predicted seconds of each stage, in the order of the pipeline."""
    data, hardware, costs = experiment.data, experiment.cluster.hardware, cost_model(experiment, profile, resources)
    shards, training, recovery, model = data.shards, experiment.training, experiment.recovery, profile.model_bytes

    def mapped(seconds: Sequence[float]) -> Estimate:
        return Estimate(len(seconds), makespan(seconds, resources.workers), sum(seconds), tuple(seconds))

    def gang(recipe: Recovery) -> Estimate:
        taught = recipe.distill is not Distill.NONE
        wall = costs.training(recipe, data.size("train"), taught) + hardware.gang_seconds
        return Estimate(recipe.ranks, wall, wall * recipe.ranks, (wall,) * recipe.ranks)

    bank = 0 if experiment.model.is_classifier else data.size("bank")
    metrics = mapped([2.0 * data.size("test") * bank * profile.outputs / (HOST_FLOPS if costs.gpu else costs.flops)])

    def passed(samples: int, parts: int) -> list[float]:
        return [costs.network(samples / parts)] * parts

    splits = ["test", "bank"] if bank else ["test"]
    evaluation = mapped([seconds for split in splits for seconds in passed(data.size(split), data.evaluation_parts(split))])
    compared = 2 * data.calibration_batches * data.calibration_batch_size  # by the model before and after
    stages = {"import": mapped([costs.read(model) + costs.write(model)])}
    if training is not None and experiment.model.checkpoint is None:
        stages["train dense"] = gang(training)
    stages["start workers"] = Estimate(resources.workers, hardware.start_seconds, resources.workers * hardware.start_seconds)
    stages |= {"evaluate dense": evaluation, "assess dense": metrics}
    if cut:
        stages["collect"] = mapped([costs.collect(portion) for portion in cut for _ in range(shards)])
    stages["score"] = mapped([costs.score(planned, shards) for planned in layers])
    stages["allocate"] = mapped([HISTOGRAM_READS * costs.read(SCORED_BYTES * planned.layer.weights) for planned in layers])
    stages["solve"] = mapped([costs.solve(planned, shards) for planned in layers])
    stages["join"] = mapped([costs.read(model + SOLVED_BYTES * profile.prunable_weights) + costs.write(model)])
    stages["compare"] = mapped(passed(compared, data.comparison_parts))
    stages |= {"evaluate one-shot": evaluation, "assess one_shot": metrics}
    if recovery is not None:
        stages["recover"] = gang(recovery)
        stages |= {"evaluate recovered": evaluation, "assess recovered": metrics}
    return stages | {"export": mapped([costs.write(model)])}

"""What will be computed where, how long it takes and what it weighs. Pure: no GPU, no data, no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.cluster.base import Hardware, Resources
from orchestrator.config import Experiment
from orchestrator.costs import PlannedLayer, cost_model
from workers.errors import ConfigError
from workers.models.profile import ModelProfile
from workers.recovery import Distill, Recovery


@dataclass(frozen=True)
class Estimate:
    """One stage: its tasks, wall seconds on all workers, and seconds of one device in all."""

    tasks: int
    seconds: float
    device_seconds: float


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
    worker_bytes: int
    store_bytes: int

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
    statistic = experiment.pruner.statistic
    if statistic is None:
        return tuple(PlannedLayer(layer, 0, 0) for layer in profile.layers)
    return tuple(PlannedLayer(layer, *statistic.shape(layer), statistic.working_bytes(layer)) for layer in profile.layers)


def fixed_bytes(experiment: Experiment, profile: ModelProfile) -> int:
    """What a collecting worker holds besides statistics: the weights, and the activations of one batch."""
    return profile.model_bytes + profile.activation_bytes * experiment.data.calibration_batch_size


def portions(layers: Sequence[PlannedLayer], room_bytes: int, at_least: int) -> list[list[PlannedLayer]]:
    """Cut layers into portions that fit ``room_bytes``, and into ``at_least`` as many so that no worker idles. Longest first, balanced.

    A cut changes which layers share a backward pass, never a byte of a statistic.
    Raises: ConfigError if one layer does not fit, with what to change.
    """
    for planned in layers:
        needed = max(planned.collect_bytes, planned.score_bytes)
        if needed > room_bytes:
            raise ConfigError(
                f"{planned.layer.name}: its statistic and gradients need {needed / 1e9:.1f} GB, a worker has "
                f"{room_bytes / 1e9:.1f} GB for them; lower pruner.block_size (memory grows with it), or raise cluster.memory_gb"
            )
    total = sum(planned.collect_bytes for planned in layers)
    count = max(1, min(at_least, len(layers)), -(-total // room_bytes))
    count = min(len(layers), -(-count // at_least) * at_least)  # whole waves
    while True:
        bins: list[list[PlannedLayer]] = [[] for _ in range(count)]
        for planned in sorted(layers, key=lambda planned: -planned.collect_bytes):
            min(bins, key=lambda chosen: sum(p.collect_bytes for p in chosen)).append(planned)
        if all(sum(p.collect_bytes for p in chosen) <= room_bytes for chosen in bins):
            return [chosen for chosen in bins if chosen]
        count += 1


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Wall seconds of independent tasks, started longest first on whichever worker is free."""
    busy = [0.0] * workers
    for duration in sorted(seconds, reverse=True):
        busy[busy.index(min(busy))] += duration
    return max(busy)


def make_plan(experiment: Experiment, profile: ModelProfile, resources: Resources) -> Plan:
    """Raises: ConfigError if the model, or a layer, cannot fit a worker's memory."""
    layers, fixed = plan_layers(experiment, profile), fixed_bytes(experiment, profile)
    room = resources.memory_bytes - fixed
    if room <= 0:
        raise ConfigError(
            f"cluster.memory_gb: the model and one calibration batch need {fixed / 1e9:.1f} GB, a worker has "
            f"{resources.memory_bytes / 1e9:.1f} GB; lower data.calibration_batch_size or use larger devices"
        )
    shards = experiment.data.shards
    cut = portions(layers, room, -(-resources.workers // shards)) if experiment.pruner.statistic else []
    collecting = [fixed + sum(planned.collect_bytes for planned in portion) for portion in cut]
    scoring = [profile.model_bytes + planned.score_bytes for planned in layers]
    return Plan(
        layers=layers,
        portions=tuple(tuple(planned.layer.name for planned in portion) for portion in cut),
        shards=shards,
        resources=resources,
        hardware=experiment.cluster.hardware,
        profile=profile,
        stages=_stages(experiment, profile, resources, layers, cut),
        worker_bytes=max(collecting + scoring),
        store_bytes=sum(shards * p.stored_bytes + 10 * p.entries for p in layers) + 6 * profile.model_bytes,
    )


def _stages(
    experiment: Experiment,
    profile: ModelProfile,
    resources: Resources,
    layers: Sequence[PlannedLayer],
    cut: Sequence[Sequence[PlannedLayer]],
) -> dict[str, Estimate]:
    """Predicted seconds of each stage, in the order of the pipeline."""
    data, hardware, costs = experiment.data, experiment.cluster.hardware, cost_model(experiment, profile, resources)
    shards, training, recovery = data.shards, experiment.training, experiment.recovery

    def mapped(seconds: Sequence[float]) -> Estimate:
        return Estimate(len(seconds), makespan(seconds, resources.workers), sum(seconds))

    def gang(recipe: Recovery) -> Estimate:
        taught = recipe.distill is not Distill.NONE
        wall = costs.training(recipe, data.size("train"), taught) + hardware.gang_seconds
        return Estimate(recipe.ranks, wall, wall * recipe.ranks)

    tested = data.size("test") + (0 if experiment.model.is_classifier else data.size("bank"))
    evaluation = mapped([costs.network(tested / shards, backward=False)] * shards)
    calibration = data.calibration_batches * data.calibration_batch_size
    stages: dict[str, Estimate] = {}
    if training is not None and experiment.model.checkpoint is None:
        stages["train dense"] = gang(training)
    stages["start workers"] = Estimate(resources.workers, hardware.start_seconds, resources.workers * hardware.start_seconds)
    stages["evaluate dense"] = evaluation
    if cut:
        stages["collect"] = mapped([costs.collect(portion) for portion in cut for _ in range(shards)])
    stages["score"] = mapped([costs.score(planned, shards) for planned in layers])
    stages["solve"] = mapped([costs.solve(planned, shards) for planned in layers])
    stages["compare"] = mapped([costs.network(2 * calibration / shards, backward=False)] * shards)
    stages["evaluate one-shot"] = evaluation
    if recovery is not None:
        stages["recover"] = gang(recovery)
        stages["evaluate recovered"] = evaluation
    return stages

"""What will be computed where, how long it takes and what it weighs. Pure: no GPU, no data, no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.cluster.base import Hardware, Resources
from orchestrator.config import Experiment
from workers.errors import ConfigError
from workers.models.base import Layer
from workers.models.profile import ModelProfile
from workers.recovery import Distill, Recovery

INVERT, ELIMINATE, SOLVE = 2.0, 2 / 3, 1.0  # flops over d B^2 (see docstring of CostModel.obs_seconds)


@dataclass(frozen=True)
class PlannedLayer:
    """A layer, its blocks, and the bytes of its statistic (one shard)."""

    layer: Layer
    blocks: int
    block_size: int

    @property
    def statistic_bytes(self) -> int:
        return 4 * self.blocks * self.block_size**2

    @property
    def collect_bytes(self) -> int:
        """The statistic, a chunk of gradients at half its size, and the gradient itself."""
        return self.statistic_bytes + max(self.statistic_bytes // 2, 64 * self.layer.weights) + 4 * self.layer.weights

    @property
    def score_bytes(self) -> int:
        """Two partial statistics while they merge, order, losses and scores, and the slice in work."""
        return 2 * self.statistic_bytes + 10 * self.blocks * self.block_size + 2**29


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


@dataclass(frozen=True)
class CostModel:
    """Predicted seconds on one worker. Used for the plan, and to start the longest tasks first."""

    profile: ModelProfile
    hardware: Hardware
    threads: int
    samples_per_gradient: int
    gradients_per_shard: int

    @property
    def flops(self) -> float:
        """Matrix-product rate of a worker, flop/s; ``hardware.matmul_gflops`` is per GPU or per CPU thread."""
        return 1e9 * self.hardware.matmul_gflops * self.threads

    def disk(self, size: float) -> float:
        return size / (1e9 * self.hardware.disk_gbs)

    def network(self, samples: float, backward: bool) -> float:
        """Forward, and a backward of twice that."""
        return samples * self.profile.forward_flops * (3 if backward else 1) / (self.flops * self.hardware.model_efficiency)

    def gradients(self) -> float:
        """All gradients of one shard."""
        return self.network(self.gradients_per_shard * self.samples_per_gradient, backward=True)

    def collect(self, layers: Sequence[PlannedLayer]) -> float:
        """One cell of the grid: gradients once, ``2 N d B`` flops of outer products, and writing the statistics."""
        outer = sum(2.0 * self.gradients_per_shard * planned.blocks * planned.block_size**2 for planned in layers)
        written = sum(planned.statistic_bytes for planned in layers)
        return self.gradients() + outer / (self.flops * self.hardware.collect_efficiency) + self.disk(written)

    def score(self, planned: PlannedLayer, shards: int) -> float:
        """Merge the shards; ``2 d B^2`` flops of factor and inverse and ``2/3 d B^2`` of elimination."""
        return self._obs(planned, INVERT + ELIMINATE) + self.disk(shards * planned.statistic_bytes)

    def solve(self, planned: PlannedLayer, shards: int) -> float:
        """Merge the shards; about ``d B^2`` flops."""
        return self._obs(planned, SOLVE) + self.disk(shards * planned.statistic_bytes)

    def _obs(self, planned: PlannedLayer, per_dBB: float) -> float:
        flops = per_dBB * planned.blocks * planned.block_size**3
        return flops / (self.flops * self.hardware.obs_efficiency)

    def training(self, recovery: Recovery, samples: int, teacher: bool) -> float:
        """Wall seconds of a gang."""
        one_pass = self.network(samples, backward=True) + (self.network(samples, backward=False) if teacher else 0.0)
        return recovery.epochs * one_pass / recovery.ranks


def plan_layers(experiment: Experiment, profile: ModelProfile) -> tuple[PlannedLayer, ...]:
    return tuple(PlannedLayer(layer, *experiment.pruner.statistic_shape(layer)) for layer in profile.layers)


def cost_model(experiment: Experiment, profile: ModelProfile, resources: Resources) -> CostModel:
    data = experiment.data
    gradients = -(-data.calibration_batches // data.shards)
    threads = resources.threads if resources.device == "cpu" else 1
    return CostModel(profile, experiment.cluster.hardware, threads, data.calibration_batch_size, gradients)


def fixed_bytes(experiment: Experiment, profile: ModelProfile) -> int:
    """What a collecting worker holds besides statistics: the weights, and the activations of one batch."""
    return profile.model_bytes + profile.activation_bytes * experiment.data.calibration_batch_size


def portions(layers: Sequence[PlannedLayer], room_bytes: int, at_least: int) -> list[list[PlannedLayer]]:
    """Cut layers into portions that fit ``room_bytes``, and into ``at_least`` as many so that no worker idles. Longest first, balanced.

    A cut changes which layers share a backward pass, never a byte of a statistic.
    Raises: ConfigError if one layer does not fit, with what to change.
    """
    for planned in layers:
        if planned.collect_bytes > room_bytes:
            raise ConfigError(
                f"{planned.layer.name}: its statistic and gradients need {planned.collect_bytes / 1e9:.1f} GB, a worker has {room_bytes / 1e9:.1f} GB "
                f"for them; lower pruner.block_size (memory grows with it), or raise cluster.memory_gb"
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
    """Raises: ConfigError if a layer cannot fit a worker's memory."""
    data, pruner, workers = experiment.data, experiment.pruner, resources.workers
    layers, costs = plan_layers(experiment, profile), cost_model(experiment, profile, resources)
    fixed = fixed_bytes(experiment, profile)
    collected = layers if pruner.collects else ()
    room = resources.memory_bytes - fixed
    if room <= 0:
        raise ConfigError(
            f"cluster.memory_gb: the model and one calibration batch need {fixed / 1e9:.1f} GB, a worker has {resources.memory_bytes / 1e9:.1f} GB; "
            "lower data.calibration_batch_size or use larger devices"
        )
    cut = portions(collected, room, -(-workers // data.shards)) if collected else []
    cells = [costs.collect(portion) for portion in cut for _ in range(data.shards)]

    stages: dict[str, Estimate] = {}

    def estimate(stage: str, seconds: Sequence[float]) -> None:
        stages[stage] = Estimate(len(seconds), makespan(seconds, workers), sum(seconds))

    def gang(stage: str, recovery: Recovery, teacher: bool) -> None:
        wall = costs.training(recovery, data.size("train"), teacher) + experiment.cluster.hardware.gang_seconds
        stages[stage] = Estimate(recovery.ranks, wall, wall * recovery.ranks)

    def evaluations(stage: str) -> None:
        samples = data.size("test") + (0 if experiment.model.is_classifier else data.size("bank"))
        estimate(stage, [costs.network(samples / data.shards, backward=False)] * data.shards)

    if experiment.training is not None and experiment.model.checkpoint is None:
        gang("train dense", experiment.training, teacher=False)
    stages["start workers"] = Estimate(workers, experiment.cluster.hardware.start_seconds, workers * experiment.cluster.hardware.start_seconds)
    evaluations("evaluate dense")
    if cells:
        estimate("collect", cells)
    estimate("score", [costs.score(planned, data.shards) for planned in layers])
    estimate("solve", [costs.solve(planned, data.shards) for planned in layers])
    evaluations("evaluate one-shot")
    if experiment.recovery is not None:
        gang("recover", experiment.recovery, teacher=experiment.recovery.distill is not Distill.NONE)
        evaluations("evaluate recovered")
    statistic_bytes = data.shards * sum(planned.statistic_bytes for planned in layers)
    score_bytes = sum(10 * planned.blocks * planned.block_size for planned in layers)
    per_worker = [fixed + sum(p.collect_bytes for p in portion) for portion in cut] + [profile.model_bytes + p.score_bytes for p in layers]
    return Plan(
        layers=layers,
        portions=tuple(tuple(planned.layer.name for planned in portion) for portion in cut),
        shards=data.shards,
        resources=resources,
        hardware=experiment.cluster.hardware,
        profile=profile,
        stages=stages,
        worker_bytes=max(per_worker, default=fixed),
        store_bytes=statistic_bytes + score_bytes + 6 * profile.model_bytes,
    )


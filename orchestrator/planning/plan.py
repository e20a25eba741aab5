"""Plans a run: its tasks, their time and their memory. Needs no GPU, no data and no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.allocation.reach import reaches
from orchestrator.allocation.units import countable_target, select_for_step, unit_problem
from orchestrator.cluster.base import Hardware, Resources
from orchestrator.config import Experiment
from orchestrator.planning.costs import SCORED_BYTES, SOLVED_BYTES, CostModel, PlannedLayer, cost_model
from orchestrator.planning.estimate import Estimate
from orchestrator.planning.footprint import Footprint, check_memory, footprint
from orchestrator.planning.grid import makespan, portions
from orchestrator.planning.sequence import refit_bytes, refit_seconds, refit_store_bytes
from orchestrator.planning.timing import timing_of_layers, timing_of_units
from orchestrator.quantities import count, percent
from workers.checks import require
from workers.data.base import TASK_SAMPLES
from workers.int8 import RANGE_IMAGES
from workers.latency import MODEL_PATIENCE, Runtime
from workers.models.base import Layer, ModelFamily, Output
from workers.models.profile import ModelProfile
from workers.models.profile import profile as model_profile
from workers.models.shrunk import shrunk
from workers.models.structures.find import find_groups
from workers.models.structures.groups import take
from workers.pruners.base import WeightPruner
from workers.pruners.units import UnitPruner
from workers.training.settings import Distill, Training

HOST_FLOPS = 2e11  # assumed rate of the CPU beside a GPU, where metrics are computed
GRAPH_SECONDS = 5.0  # to write a model as ONNX and to quantise its graph, about
RANGE_PASSES = 4  # to find the ranges of 8 bits, in forward passes over the images that they come from, about
HISTOGRAM_READS = 2  # passes over all scores to find one threshold exactly


@dataclass(frozen=True)
class Plan:
    """A run before it starts."""

    layers: tuple[PlannedLayer, ...]
    portions: tuple[tuple[str, ...], ...]  # names of the layers that are collected together; the grid is portions x shards
    shards: int
    resources: Resources
    hardware: Hardware
    profile: ModelProfile
    stages: dict[str, Estimate]
    stage_bytes: dict[str, int]  # peak memory of a worker
    store_bytes: int
    family: ModelFamily  # of the pruned model, as far as it is known before the data is read
    unfit: tuple[Layer, ...] = ()  # layers that are kept dense because they cannot follow the pattern
    after: ModelProfile | None = None  # of ``family``, if units are removed
    out_of_reach: tuple[str, ...] = ()  # sentences on targets that cannot be reached

    @property
    def worker_bytes(self) -> int:
        return max(self.stage_bytes.values())

    @property
    def waves(self) -> int:
        """How many times each worker collects a cell of the grid, at most."""
        return -(-len(self.portions) * self.shards // self.resources.workers)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages.values())

    @property
    def device_hours(self) -> float:
        return sum(stage.device_seconds for stage in self.stages.values()) / 3600


def plan_layers(pruner: WeightPruner, profile: ModelProfile) -> tuple[PlannedLayer, ...]:
    """Returns the layers to prune: all but those that are kept dense because they cannot follow the pattern."""
    statistic, dense = pruner.statistic, {layer.name for layer in pruner.unfit(profile.layers)}
    layers = [(layer, depth) for layer, depth in zip(profile.layers, profile.depths, strict=True) if layer.name not in dense]
    if statistic is None:
        return tuple(PlannedLayer(layer, depth, 0, 0) for layer, depth in layers)
    kind = statistic.by_gradients, statistic.shared
    return tuple(PlannedLayer(layer, depth, *statistic.shape(layer), statistic.working_bytes(layer), *kind) for layer, depth in layers)


def on_unfit(unfit: Sequence[Layer], profile: ModelProfile) -> str:
    """Returns a sentence on the layers that are kept dense because they cannot follow the pattern, and on their share of the model."""
    share = percent(sum(layer.weights for layer in unfit) / profile.prunable_weights)
    names = ", ".join(layer.name for layer in unfit)
    what = f"{len(unfit)} of {count(len(profile.layers), 'layer')}, {share} of their weights, cannot follow the pattern"
    return f"{what} and are kept dense (pruner.target.unfit=dense), so the target applies to the other layers: {names}"


def cut_grid(
    experiment: Experiment, profile: ModelProfile, resources: Resources, layers: Sequence[PlannedLayer]
) -> list[list[PlannedLayer]]:
    """Cuts ``layers`` (all, or those whose statistics are missing) into portions.

    Raises: ConfigError if a layer does not fit a worker's memory.
    """
    if not layers or experiment.pruner.statistic is None:
        return []
    costs, bytes_of = cost_model(experiment, profile, resources), footprint(experiment, profile, resources)
    return portions(layers, costs, bytes_of, resources.memory_bytes, resources.workers, experiment.data.shards)


def make_plan(experiment: Experiment, profile: ModelProfile, resources: Resources) -> Plan:
    """Returns the plan of one round.

    Raises: ConfigError if the model, a layer, or the sums over units do not fit a worker's memory.
    """
    match experiment.pruner:
        case WeightPruner() as pruner:
            return plan_masking(experiment, pruner, profile, resources)
        case UnitPruner() as pruner:
            return plan_removal(experiment, pruner, profile, resources)
        case _:
            raise TypeError(f"expected a pruner of weights or of units, got {type(experiment.pruner).__name__}")


def plan_masking(experiment: Experiment, pruner: WeightPruner, profile: ModelProfile, resources: Resources) -> Plan:
    """Returns the plan of a round that masks weights."""
    if pruner.is_timed:
        runtime = "eager with a budget for masked weights, which the sparse runtime of torch is timed for"
        require(experiment.latency.runtime is Runtime.EAGER, "latency.runtime", runtime, experiment.latency.runtime.value)
        cpu = "cpu with a budget for masked weights, since the sparse runtime skips zeros on CPUs alone"
        require(resources.device == "cpu", "cluster.device", cpu, resources.device, "set pruner.target.of=weights")
    layers = plan_layers(pruner, profile)
    pruned = replace(profile, layers=tuple(planned.layer for planned in layers), depths=tuple(planned.depth for planned in layers))
    bytes_of = footprint(experiment, pruned, resources)
    sparsity = 0.0 if experiment.steps > 1 else pruner.target.overall(pruned.layers)
    fewer = "lower cluster.workers if they share a machine, or use workers with more memory"
    needs = [("joining the solved layers", bytes_of.join(sparsity), fewer), *_needs(experiment, bytes_of, sparsity)]
    if pruner.refit.is_sequential:
        remedy = "lower data.eval_batch_size, set pruner.refit.order=parallel, or use workers with more memory"
        in_order = refit_bytes(experiment, pruned, resources, layers, pruner.refit)
        needs += [(work, needed, remedy) for work, needed in in_order.items()]
    check_memory(resources.memory_bytes, needs)
    stage_bytes = {stage: needed for stage, needed, _ in needs}
    cut = cut_grid(experiment, pruned, resources, layers)
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
        unfit=tuple(pruner.unfit(profile.layers)),
        stages=_stages(experiment, pruned, pruned, resources, _masking(experiment, pruner, pruned, resources, layers, cut)),
        stage_bytes=stage_bytes,
        store_bytes=_stored_statistics(experiment, pruner, layers) + _stored_models(experiment, pruned),
        family=experiment.model,
    )


def plan_removal(experiment: Experiment, pruner: UnitPruner, profile: ModelProfile, resources: Resources) -> Plan:
    """Returns the plan of a round that removes units. Which units depends on the data; the plan removes them in a random order."""
    family = with_random_units_removed(experiment.model, pruner, experiment.data.input_shape)
    after = model_profile(family, experiment.data.input_shape)
    bytes_of = footprint(experiment, profile, resources)
    groups = find_groups(experiment.model, experiment.data.input_shape, pruner.streams)
    collecting = bytes_of.collect_units(pruner.sum_bytes(sum(group.units for group in groups), profile.parameters), pruner.reads_data)
    remedy = "lower data.calibration_batch_size, choose another pruner, or use workers with more memory"
    needs = [("collecting sums of units", collecting, remedy), *_needs(experiment, bytes_of)]
    check_memory(resources.memory_bytes, needs)
    return Plan(
        layers=(),
        portions=(),
        shards=experiment.data.shards if pruner.reads_data else 1,
        resources=resources,
        hardware=experiment.cluster.hardware,
        profile=profile,
        stages=_stages(experiment, profile, after, resources, _removal(experiment, pruner, profile, resources)),
        stage_bytes={stage: needed for stage, needed, _ in needs},
        store_bytes=_stored_models(experiment, profile),
        family=family,
        after=after,
        out_of_reach=out_of_reach(experiment.model, pruner, experiment.data.input_shape),
    )


def out_of_reach(family: ModelFamily, pruner: UnitPruner, input_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Returns a sentence for each cost whose target the floors of the groups keep out of reach; none for costs that must be measured."""
    if pruner.is_timed:
        return ()
    return tuple(reach.sentence() for reach in reaches(unit_problem(pruner, family, input_shape)) if reach.asked > reach.most + 1e-9)


def with_random_units_removed(family: ModelFamily, pruner: UnitPruner, input_shape: tuple[int, int, int]) -> ModelFamily:
    """Returns the family of the pruned model as far as it is known before the data is read: units are removed in a random order."""
    import torch

    groups = find_groups(family, input_shape, pruner.streams)
    order_S = torch.randperm(sum(group.units for group in groups), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.device("meta"):
        state = family.build().state_dict()
    problem = unit_problem(replace(pruner, target=countable_target(pruner.target)), family, input_shape)
    kept = select_for_step(problem, order_S, [])
    return shrunk(family, state, take(state, groups, kept), groups, kept)


def _needs(experiment: Experiment, bytes_of: Footprint, sparsity: float | None = None) -> list[tuple[str, int, str]]:
    """Returns what has to fit in memory however the grid is cut: the work, its bytes, and the remedy. ``sparsity`` of masked weights."""
    data = experiment.data
    fewer = "lower {0}, or use workers with more memory"
    needs = [
        (
            "evaluating",
            bytes_of.evaluate(data.eval_batch_size, min(data.size("test"), TASK_SAMPLES), models=2, sparsity=sparsity),
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
            again = "" if recipe.recompute else f", set {what}.recompute=true"
            remedy = f"raise {what}.ranks or {what}.zero_stage, lower {what}.batch_size{again}"
            needs.append((f"{what} of {recipe.batch_size // recipe.ranks} samples per rank", bytes_of.train(recipe), remedy))
    return needs


def _stored_statistics(experiment: Experiment, pruner: WeightPruner, layers: Sequence[PlannedLayer]) -> int:
    """Returns the bytes of the statistics of all shards, scores and solutions."""
    statistics = sum(experiment.data.shards * planned.stored_bytes for planned in layers)
    in_order = refit_store_bytes(layers, experiment.data.shards) if pruner.refit.is_sequential else 0
    return statistics + in_order + int((SCORED_BYTES + SOLVED_BYTES) * sum(planned.layer.weights for planned in layers))


def _stored_models(experiment: Experiment, profile: ModelProfile) -> int:
    """Returns the bytes of three models, and of a training's checkpoints while it runs."""
    return 3 * profile.model_bytes + (2 * 3 * profile.model_bytes if experiment.recovery is not None else 0)


def _mapped(seconds: Sequence[float], resources: Resources) -> Estimate:
    return Estimate(len(seconds), makespan(seconds, resources.workers), sum(seconds), tuple(seconds))


def _in_turn(parts: Sequence[Sequence[float]], resources: Resources) -> Estimate:
    """Returns the time of lists of tasks, where each list begins when the one before has ended."""
    walls, tasks = [makespan(part, resources.workers) for part in parts], [seconds for part in parts for seconds in part]
    return Estimate(len(tasks), sum(walls), sum(tasks), tuple(tasks), tuple(len(part) for part in parts))


def _masking(
    experiment: Experiment,
    pruner: WeightPruner,
    profile: ModelProfile,
    resources: Resources,
    layers: Sequence[PlannedLayer],
    cut: Sequence[Sequence[PlannedLayer]],
) -> dict[str, Estimate]:
    """Returns the stages that mask weights."""
    shards, costs, model = experiment.data.shards, cost_model(experiment, profile, resources), profile.model_bytes
    collected = [costs.collect(portion) for portion in cut for _ in range(shards)]
    joined = costs.read(model + SOLVED_BYTES * profile.prunable_weights) + costs.write(model)
    seconds = {"collect": collected} if cut else {}
    seconds |= {
        "score": [costs.score(planned, shards) for planned in layers],
        "allocate": [HISTOGRAM_READS * costs.read(SCORED_BYTES * planned.layer.weights) for planned in layers],
        "solve": [costs.solve(planned, shards) for planned in layers],
    }
    estimates = {stage: _mapped(durations, resources) for stage, durations in seconds.items()}
    if pruner.refit.is_sequential:
        in_order = refit_seconds(experiment, profile, resources, layers, pruner.refit)
        estimates |= {stage: _in_turn(durations, resources) for stage, durations in in_order.items()}
    estimates["join"] = _mapped([joined], resources)
    return estimates | (timing_of_layers(experiment, layers, costs) if pruner.is_timed else {})


def _removal(experiment: Experiment, pruner: UnitPruner, profile: ModelProfile, resources: Resources) -> dict[str, Estimate]:
    """Returns the stages that remove units."""
    costs, model = cost_model(experiment, profile, resources), profile.model_bytes
    shards = experiment.data.shards if pruner.reads_data else 1
    collected = [costs.load() + costs.collect_units(pruner, experiment.loss) for _ in range(shards)]
    seconds = {"collect": collected, "rank": [0.0], "choose": [0.0], "shrink": [costs.read(model) + costs.write(model)]}
    return {stage: _mapped(durations, resources) for stage, durations in seconds.items()} | timing_of_units(experiment, pruner, costs)


def _stages(
    experiment: Experiment, profile: ModelProfile, after: ModelProfile, resources: Resources, pruning: dict[str, Estimate]
) -> dict[str, Estimate]:
    """Returns the predicted time of each stage, in the order of the pipeline. ``after`` is the profile of the pruned model."""
    data, hardware, training, recovery = experiment.data, experiment.cluster.hardware, experiment.training, experiment.recovery
    costs, costs_after = cost_model(experiment, profile, resources), cost_model(experiment, after, resources)

    def gang(recipe: Training, costs: CostModel) -> Estimate:
        has_teacher = recipe.distill is not Distill.NONE
        wall = costs.training(recipe, data.size("train"), has_teacher) + hardware.gang_seconds
        return Estimate(recipe.ranks, wall, wall * recipe.ranks, (wall,) * recipe.ranks)

    bank = data.size("bank") if experiment.model.output is Output.FEATURES and data.classes else 0
    rate = HOST_FLOPS if costs.gpu else costs.flops
    metrics = _mapped([2.0 * data.size("test") * bank * profile.outputs / rate], resources)
    splits = ["test", "bank"] if bank else ["test"]

    def evaluation(costs: CostModel) -> Estimate:
        parts = [(data.size(split), data.evaluation_parts(split)) for split in splits]
        return _mapped([costs.passes(samples / count) for samples, count in parts for _ in range(count)], resources)

    compared, parts = data.calibration_batches * data.calibration_batch_size, data.comparison_parts
    stages = {"import": _mapped([costs.read(profile.model_bytes) + costs.write(profile.model_bytes)], resources)}
    if training is not None and experiment.model.checkpoint is None:
        stages["train dense"] = gang(training, costs)
    stages["start workers"] = Estimate(resources.workers, hardware.start_seconds, resources.workers * hardware.start_seconds)
    stages |= {"evaluate dense": evaluation(costs), "assess dense": metrics} | pruning
    if experiment.compare:
        stages["compare"] = _mapped([costs.passes(compared / parts) + costs_after.passes(compared / parts)] * parts, resources)
    stages |= {"evaluate one-shot": evaluation(costs_after), "assess one_shot": metrics}
    if recovery is not None:
        stages["recover"] = gang(recovery, costs_after)
        stages |= {"evaluate recovered": evaluation(costs_after), "assess recovered": metrics}
    if experiment.int8:
        fixed = GRAPH_SECONDS + 2 * MODEL_PATIENCE * experiment.latency.seconds
        ranges = RANGE_PASSES * costs_after.network(min(compared, RANGE_IMAGES))
        stages["quantise"] = _mapped([fixed + ranges + costs_after.network(data.size("test"))], resources)
    return stages | {"export": _mapped([costs_after.write(after.model_bytes)], resources)}

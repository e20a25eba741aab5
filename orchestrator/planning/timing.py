"""The stages of a plan that measure latency: one task at a time, on one machine, if nothing is stored."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.allocation.latency_table import sizes
from orchestrator.allocation.sparsities import TIMED
from orchestrator.config import Experiment
from orchestrator.planning.costs import CostModel, PlannedLayer
from orchestrator.planning.estimate import Estimate
from workers.latency import MODEL_PATIENCE, Runtime
from workers.models.operations import find_operations
from workers.models.structures.find import find_groups
from workers.pruners.units import UnitPruner
from workers.timing import FEWEST, WARM_UPS

# About how long each runtime takes to prepare an operation at one size.
PREPARE_SECONDS = {Runtime.EAGER: 0.003, Runtime.ONNXRUNTIME: 0.45, Runtime.COMPILE: 1.2}
RUNS = WARM_UPS + FEWEST


def timing_of_units(experiment: Experiment, pruner: UnitPruner, costs: CostModel) -> dict[str, Estimate]:
    """Returns the stages that time the operations of a model at all widths, if no plateau is found.

    Each operation is assumed to take an equal share of the dense model's forward pass at all of its widths.
    """
    if not pruner.is_timed:
        return {}
    latency, input_shape = experiment.latency, experiment.data.input_shape
    groups = find_groups(experiment.model, input_shape, pruner.streams)
    operations = find_operations(experiment.model, input_shape, latency.batch_size, groups)
    forward = costs.network(latency.batch_size)
    operation = PREPARE_SECONDS[latency.runtime] + RUNS * forward / len(operations)
    model = max(RUNS * forward, MODEL_PATIENCE * latency.seconds)
    seconds = {"time operations": [operation] * sizes(operations, latency.widths), "time model": [model] * 2}
    return {stage: _alone(tasks) for stage, tasks in seconds.items()}


def timing_of_layers(experiment: Experiment, layers: Sequence[PlannedLayer], costs: CostModel) -> dict[str, Estimate]:
    """Returns the stages that time layers with zeros, and the model with the sparsities that were chosen.

    Layers of the same shape are assumed to get inputs of the same shape, and share their times.
    """
    latency = experiment.latency
    kinds = {(planned.layer.rows, planned.layer.columns, planned.layer.kernel, planned.layer.groups) for planned in layers}
    model = max(2 * RUNS * costs.network(latency.batch_size), 2 * MODEL_PATIENCE * latency.seconds)
    return {"time layers": _alone([latency.seconds * len(kinds) * len(TIMED)]), "time model": _alone([model] * 3)}


def _alone(tasks: Sequence[float]) -> Estimate:
    return Estimate(len(tasks), sum(tasks), sum(tasks), tuple(tasks))

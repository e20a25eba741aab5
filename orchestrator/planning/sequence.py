"""The parts of a model that a sequential re-fit fits one after another, and what they take."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from orchestrator.cluster.base import Resources
from orchestrator.config import Experiment
from orchestrator.planning.costs import SOLVED_BYTES, PlannedLayer, cost_model
from orchestrator.planning.footprint import footprint
from orchestrator.planning.grid import runs
from workers.models.profile import ModelProfile
from workers.pruners.refit import Refit


def cut_stages(layers: Sequence[PlannedLayer], profile: ModelProfile, stages: int) -> list[list[PlannedLayer]]:
    """Cuts layers, in the order of the forward pass, into at most ``stages`` runs of neighbours of about equal flops."""
    if len(layers) <= stages:
        return [[planned] for planned in layers]
    parts = groupby(layers, key=lambda planned: stages * planned.depth.weighted_before // max(1, profile.weighted_flops))
    return [list(run) for _, run in parts]


def samples_of_shard(experiment: Experiment, refit: Refit) -> int:
    """Returns how many samples of each shard a re-fit uses."""
    data = experiment.data
    return min(-(-refit.samples // data.shards), -(-data.calibration_batches // data.shards) * data.calibration_batch_size)


def fitting_portions(
    experiment: Experiment, profile: ModelProfile, resources: Resources, layers: Sequence[PlannedLayer]
) -> list[list[PlannedLayer]]:
    """Cuts the layers of a stage into the fewest runs whose pairs of inputs fit a worker's memory. A single layer is always a run."""
    bytes_of = footprint(experiment, profile, resources)
    spans = runs(len(layers), lambda start, stop: bytes_of.collect_pairs(layers[start:stop]), resources.memory_bytes)
    return [list(layers[start:stop]) for start, stop in spans]


def refit_seconds(
    experiment: Experiment, profile: ModelProfile, resources: Resources, layers: Sequence[PlannedLayer], refit: Refit
) -> dict[str, list[list[float]]]:
    """Returns the predicted seconds of each task of a sequential re-fit, a list for each stage, by kind of work."""
    costs, shards = cost_model(experiment, profile, resources), experiment.data.shards
    samples = samples_of_shard(experiment, refit)
    pairs, fits = [], []
    for stage in cut_stages(layers, profile, refit.stages):
        portions = fitting_portions(experiment, profile, resources, stage)
        pairs.append([costs.collect_pairs(portion, samples) for portion in portions for _ in range(shards)])
        fits.append([costs.refit(planned, shards) for planned in stage])
    return {"collect pairs": pairs, "refit": fits}


def refit_bytes(
    experiment: Experiment, profile: ModelProfile, resources: Resources, layers: Sequence[PlannedLayer], refit: Refit
) -> dict[str, int]:
    """Returns the predicted peak memory of a worker, by kind of work."""
    bytes_of = footprint(experiment, profile, resources)
    cut = cut_stages(layers, profile, refit.stages)
    portions = [portion for stage in cut for portion in fitting_portions(experiment, profile, resources, stage)]
    return {
        "collecting pairs of inputs": max(bytes_of.collect_pairs(portion) for portion in portions),
        "re-fitting": max(bytes_of.refit(planned) for planned in layers),
    }


def refit_store_bytes(layers: Sequence[PlannedLayer], shards: int) -> int:
    """Returns the bytes that a sequential re-fit stores: pairs of inputs of all shards, and the fitted layers."""
    return int(sum(shards * planned.stored_pair_bytes + SOLVED_BYTES * planned.layer.weights for planned in layers))

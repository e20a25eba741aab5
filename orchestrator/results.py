"""Makes the report of a run from the records of its stages."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orchestrator.allocation.units import cost_of, dense_family, floors
from orchestrator.cluster.base import Resources, cores_here, processor
from orchestrator.config import Experiment
from orchestrator.outcome import Masking, MaskingStep, Outcome, Removal, RoundOutcome, removals
from orchestrator.planning.plan import Plan
from orchestrator.report.parts import (
    FileSizes,
    GroupResult,
    LayerResult,
    LossIncrease,
    ModelSize,
    RoundResult,
    StageResult,
)
from orchestrator.report.result import Report
from orchestrator.run import Log
from orchestrator.stages import whose
from orchestrator.structure_table import shapes_of, unit_weights
from orchestrator.timed_results import int8_of, latency_of
from workers.files import read_lines
from workers.models.profile import ModelProfile, profile
from workers.models.structures.find import find_groups
from workers.pruners.units import Of, UnitPruner
from workers.records import Metrics, Record, TrainedModel


def make_report(
    experiment: Experiment,
    plan: Plan,
    log: Log,
    outcome: Outcome,
    config: dict[str, Any],
    command: str,
    fingerprint: str,
    files: dict[str, Any],
) -> Report:
    """The report of a finished run. Layers, target and stages are those of its last round; ``rounds`` describes all of them."""
    last, masked = outcome.rounds[-1], [part.pruned for part in outcome.rounds if isinstance(part.pruned, Masking)]
    layers = layer_results(masked[-1], experiment.data.calibration_batch_size) if masked else []
    final = profile(last.family, experiment.data.input_shape)
    return Report(
        name=experiment.name,
        fingerprint=fingerprint,
        command=command,
        experiment=config,
        pruner=type(last.settings.pruner).__name__,
        asked=asked_of(last),
        stages=[_stage("dense", outcome.assessed, dense_speed(outcome)), *_stages(last, dense_speed(outcome))],
        layers=layers,
        prunable_weights=sum(layer.weights for layer in layers),
        pruned_weights=sum(layer.zeros for layer in layers),
        model_weights=plan.profile.parameters,
        groups=group_results(experiment, outcome.rounds),
        dense_size=model_size(plan.profile),
        final_size=model_size(final),
        latency=latency_of(experiment, plan.resources, outcome.rounds),
        int8=int8_of(experiment, plan.resources, outcome.quantised),
        memory_removed=memory_of(experiment, outcome.rounds),
        loss_increase=LossIncrease(_predicted(layers), last.increase.measured, last.increase.loss),
        rounds=[round_result(experiment, plan, log, outcome, part) for part in outcome.rounds if part.name],
        sizes=FileSizes(outcome.dense.file.stat().st_size, outcome.model.file.stat().st_size),
        timeline=log.timeline,
        stage_seconds=log.stage_seconds,
        predicted_stage_seconds={name: stage.seconds for name, stage in plan.stages.items()},
        curves={name: training_curve(record) for name, record in _trainings(outcome).items()},
        skipped=_skipped(outcome),
        warnings=log.warnings + experiment.cluster.warnings,
        environment=environment(plan.resources),
        files=files,
        stopped_below=experiment.stop_below if last.stopped else None,
    )


def asked_of(part: RoundOutcome) -> dict[str, Any]:
    """The target of a round, and in how many steps it was reached."""
    asked = asked_weights(part.pruned) if isinstance(part.pruned, Masking) else asked_units(part.pruned.pruner)
    return asked | ({"steps": part.settings.steps} if part.settings.steps > 1 else {})


def asked_weights(masking: Masking) -> dict[str, Any]:
    target = masking.pruner.target
    asked: dict[str, Any] = {"scope": target.scope.value}
    if masking.pruner.is_timed:
        asked |= {"of": target.of.value, "removed": target.removed}
    else:
        asked |= {"sparsity": target.overall([planned.layer for planned in masking.layers])}
    if not masking.pruner.pattern.is_free:
        asked["pattern"] = target.pattern
    if masking.pruner.refit.is_sequential:
        asked["refit"] = masking.pruner.refit.order.value
    if masking.unfit:
        asked["left_dense"] = [layer.name for layer in masking.unfit]
    if target.per_layer:
        asked["per_layer"] = target.per_layer
    return asked


def asked_units(pruner: UnitPruner) -> dict[str, Any]:
    target = pruner.target
    asked: dict[str, Any] = {"removed": target.removed, "of": target.of.value, "min_units": target.min_units}
    if target.min_fraction:
        asked["min_fraction"] = target.min_fraction
    if target.round_to > 1:
        asked["round_to"] = target.round_to
    if target.also:
        asked["also"] = target.also
    return asked | ({"streams": True} if pruner.streams else {})


def round_result(experiment: Experiment, plan: Plan, log: Log, outcome: Outcome, part: RoundOutcome) -> RoundResult:
    """A round in numbers."""
    layers = layer_results(part.pruned, experiment.data.calibration_batch_size) if isinstance(part.pruned, Masking) else []
    goal = part.settings.pruner.goal(plan.profile.layers) if isinstance(part.pruned, Removal) else None
    weights = sum(layer.weights for layer in layers)
    size = model_size(profile(part.family, experiment.data.input_shape))
    after_pruning, *after_recovery = _stages(part, dense_speed(outcome))
    return RoundResult(
        name=part.name,
        pruner=type(part.settings.pruner).__name__,
        steps=part.settings.steps,
        epochs=0 if part.settings.recovery is None or part.stopped else part.settings.recovery.epochs,
        asked=asked_of(part)["sparsity"] if goal is None else goal.fraction,
        asked_of="weights" if goal is None else goal.of,
        sparsity=sum(layer.zeros for layer in layers) / weights if weights else 0.0,
        removed=removed_of(experiment, plan, outcome.rounds[: outcome.rounds.index(part) + 1], size),
        size=size,
        after_pruning=after_pruning,
        after_recovery=after_recovery[0] if after_recovery else None,
        loss_increase=LossIncrease(_predicted(layers), part.increase.measured, part.increase.loss),
        seconds=sum(seconds for stage, seconds in log.stage_seconds.items() if whose(stage) == part.name),
    )


def model_size(model: ModelProfile) -> ModelSize:
    """A multiply-add is two flops of torch's counter."""
    return ModelSize(model.parameters, model.forward_flops // 2)


def removed_of(experiment: Experiment, plan: Plan, rounds: list[RoundOutcome], size: ModelSize) -> dict[str, float]:
    """Fractions of the dense model that are removed after ``rounds``; empty if none of them removed units."""
    groups, dense = group_results(experiment, rounds), model_size(plan.profile)
    if not groups:
        return {}
    kept = sum(group.kept for group in groups) / sum(group.units for group in groups)
    removed = {"macs": 1 - size.macs / dense.macs, "parameters": 1 - size.parameters / dense.parameters, "structures": 1 - kept}
    latency, memory = latency_of(experiment, plan.resources, rounds), memory_of(experiment, rounds)
    return removed | ({} if latency is None else {"latency": latency.removed}) | ({} if memory is None else {"memory": memory})


def memory_of(experiment: Experiment, rounds: list[RoundOutcome]) -> float | None:
    """The removed fraction of the memory, if the last of ``rounds`` that removed units had a target for it."""
    removed = removals(rounds)
    if not removed or Of.MEMORY.value not in (removed[-1].pruner.target.of.value, *removed[-1].pruner.target.also):
        return None
    families = (dense_family(experiment.model), rounds[-1].family)
    before, after = (cost_of(Of.MEMORY, family, [], experiment.data.input_shape).total for family in families)
    return 1 - after / before


def group_results(experiment: Experiment, rounds: list[RoundOutcome]) -> list[GroupResult]:
    """Groups of the dense model, how many of their units are kept after ``rounds``, and what a sweep of targets would have kept."""
    removed = removals(rounds)
    if not removed:
        return []
    dense, streams = dense_family(experiment.model), any(part.pruner.streams for part in removed)
    groups, shapes = find_groups(dense, experiment.data.input_shape, streams), shapes_of(dense)
    units = {group.name: group.units for group in groups}
    kept = dict(units)
    for part in removed:
        for step in part.steps:
            kept |= step.chosen.numbers.kept
    swept, least = removed[0].steps[0].chosen.numbers.swept, floors(removed[-1].pruner.target, groups, units)
    return [
        GroupResult(
            name=group.name,
            kind=group.kind.value,
            units=group.units,
            kept=kept[group.name],
            weights=unit_weights(group, shapes),
            least=least[group.name],
            swept=[count / group.units for count in swept.get(group.name, [])],
        )
        for group in groups
    ]


def layer_results(masking: Masking, batch_size: int) -> list[LayerResult]:
    """For each layer, its zeros and the predicted cost of this round's, per calibration sample, added up over the steps."""
    results = []  # a gradient is a mean over a batch, so its moment is smaller by the batch size than that of samples
    for planned in masking.layers:
        name, last = planned.layer.name, masking.steps[-1]
        costs = [step.solutions[name].numbers.predicted_loss for step in masking.steps]
        known = [cost for cost in costs if cost is not None]
        spent = batch_size * sum(known[: len(costs) - 1])
        scored = last.scores[name].numbers
        before = scored.zeros / planned.layer.weights
        results.append(
            LayerResult(
                name=name,
                rows=planned.layer.rows,
                columns=planned.layer.columns,
                block_size=planned.block_size,
                weights=planned.layer.weights,
                zeros=last.solutions[name].numbers.zeros,
                predicted_loss_increase=batch_size * sum(known) if len(known) == len(costs) else None,
                curve=[(before + more, spent + batch_size * loss) for more, loss in scored.curve],
                notes=_notes(masking, name),
            )
        )
    return results


def _notes(masking: Masking, name: str) -> dict[str, float]:
    """The pruner's notes on a layer: the largest of each over the steps, so that no trouble goes unreported."""
    notes = [step.scores[name].numbers.notes for step in masking.steps]
    return {key: max(each.get(key, 0.0) for each in notes) for key in dict.fromkeys(key for each in notes for key in each)}


def dense_speed(outcome: Outcome) -> float:
    """Images per second of the dense model, as measured in turn with the model that the run leaves."""
    last = outcome.rounds[-1].recovered or outcome.rounds[-1].one_shot
    return last.numbers.metrics["dense_images_per_second"]


def _stages(part: RoundOutcome, dense_speed: float) -> list[StageResult]:
    """The model of a round before and after its training."""
    records = {"one_shot": part.one_shot, "recovered": part.recovered}
    return [_stage(name, record, dense_speed) for name, record in records.items() if record is not None]


def _stage(name: str, record: Record[Metrics], dense_speed: float) -> StageResult:
    """The metrics of a model. Its speed is ``dense_speed`` times the ratio to the dense model that was measured in turn with it.

    So the speeds of all stages compare, also where they were measured at different times, or read from the store.
    """
    metrics: dict[str, float | None] = dict(record.numbers.metrics)
    beside = metrics.pop("dense_images_per_second", None)
    for key in ("images_per_second", "sparse_images_per_second"):
        speed = metrics.get(key)
        if speed is not None:
            metrics[key] = dense_speed if beside is None else speed / beside * dense_speed
    return StageResult(name, metrics, record.numbers.seconds)


def _trainings(outcome: Outcome) -> dict[str, Record[TrainedModel]]:
    """Trainings by the name of their curve: "dense", "recovery", or "to_60/recovery" in rounds."""
    trainings = {"dense": outcome.trained}
    trainings |= {f"{part.name}/recovery".removeprefix("/"): part.trained for part in outcome.rounds}
    return {name: record for name, record in trainings.items() if record is not None}


def environment(resources: Resources) -> dict[str, Any]:
    """Where and with what the run was measured."""
    packages = ("torch", "timm", "ray", "deepspeed", "numba")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "secateur": version("secateur"),
        "commit": _commit(),
        "machine": platform.machine(),
        "processor": processor(),
        "device": resources.device,
        "cores": cores_here(),
        "workers": resources.workers,
        "threads": resources.threads,
    }


def _predicted(layers: list[LayerResult]) -> float | None:
    known = [layer.predicted_loss_increase for layer in layers if layer.predicted_loss_increase is not None]
    return sum(known) if layers and len(known) == len(layers) else None


def training_curve(record: Record[TrainedModel]) -> list[dict[str, Any]]:
    """Progress lines of a training, as its rank 0 wrote them."""
    return read_lines(record.directory / "progress.jsonl")


def _skipped(outcome: Outcome) -> dict[str, int]:
    """Batches left out of the worst sum of a layer (every step reads the same batches), and steps left out of trainings."""
    worst = 0
    for part in outcome.rounds:
        for step in part.pruned.steps:
            sums: list[list[Record[Any]]] = list(step.partials.values()) if isinstance(step, MaskingStep) else [list(step.sums)]
            worst = max([worst, *(sum(record.numbers.skipped for record in records) for records in sums)])
    skipped = {"calibration batches with non-finite values": worst}
    for name, record in _trainings(outcome).items():
        skipped[f"steps of {name} training with non-finite values"] = record.numbers.skipped_steps
    return {what: count for what, count in skipped.items() if count}


def _commit() -> str:
    try:
        where = Path(__file__).parent
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=where, capture_output=True, text=True, timeout=10, check=True
        )
        return described.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"

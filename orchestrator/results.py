"""From the records of a run to its report."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orchestrator.allocation.units import cost_of, dense_family, floors
from orchestrator.allocation.weights import asked_sparsity
from orchestrator.cluster.base import cores_here, processor
from orchestrator.config import Experiment
from orchestrator.outcome import Outcome, RoundOutcome
from orchestrator.planning.plan import Plan
from orchestrator.report.result import (
    FileSizes,
    GroupResult,
    Int8Result,
    LatencyResult,
    LayerResult,
    LossIncrease,
    ModelSize,
    Report,
    RoundResult,
    StageResult,
)
from orchestrator.run import Run
from orchestrator.stages import whose
from orchestrator.store import MODEL
from orchestrator.structure_table import shapes_of, unit_weights
from orchestrator.times import conditions, on_onnxruntime
from workers.models.base import ModelFamily
from workers.models.profile import ModelProfile, profile
from workers.models.structures.find import find_groups
from workers.pruners.base import WeightPruner
from workers.pruners.units import Of, UnitPruner
from workers.records import Record


def make_report(run: Run, outcome: Outcome, config: dict[str, Any], command: str, fingerprint: str, files: dict[str, Any]) -> Report:
    """Everything a reader may ask of the run. Layers, target and stages are those of its last round; ``rounds`` tells of all."""
    last, masked = outcome.rounds[-1], next((part for part in reversed(outcome.rounds) if part.masks), None)
    layers = [] if masked is None else layer_results(masked)
    dense, final = model_profile(run.experiment, run.experiment.model), model_profile(run.experiment, run.family_of(outcome.model))
    return Report(
        name=run.experiment.name,
        fingerprint=fingerprint,
        command=command,
        experiment=config,
        asked=asked_of(last),
        stages=[_stage("dense", outcome.assessed), *_stages(last)],
        layers=layers,
        prunable_weights=sum(layer.weights for layer in layers),
        pruned_weights=sum(layer.zeros for layer in layers),
        model_weights=dense.parameters,
        groups=group_results(outcome.rounds),
        dense_size=model_size(dense),
        final_size=model_size(final),
        latency=latency_of(outcome.rounds),
        int8=int8_of(run, outcome.quantised),
        memory_removed=memory_of(outcome.rounds),
        loss_increase=LossIncrease(_predicted(layers), last.measured, last.measured_unit),
        rounds=[round_result(run, outcome, part) for part in outcome.rounds if part.run.round],
        sizes=FileSizes(outcome.dense.path(MODEL).stat().st_size, outcome.model.path(MODEL).stat().st_size),
        timeline=run.timeline,
        stage_seconds=run.stage_seconds,
        predicted_stage_seconds={name: stage.seconds for name, stage in run.plan.stages.items()},
        curves={name: training_curve(record) for name, record in _trainings(outcome).items()},
        skipped=_skipped(outcome),
        warnings=run.warnings + run.experiment.cluster.warnings,
        environment=environment(run),
        files=files,
    )


def asked_of(part: RoundOutcome) -> dict[str, Any]:
    """The target of a round, and in how many steps it was reached."""
    experiment = part.run.experiment
    asked = asked_units(experiment.unit_pruner) if not part.masks else asked_weights(experiment.weight_pruner, part.run.plan)
    return asked | ({"steps": experiment.steps} if experiment.steps > 1 else {})


def asked_weights(pruner: WeightPruner, plan: Plan) -> dict[str, Any]:
    target = pruner.target
    asked: dict[str, Any] = {"sparsity": asked_sparsity(target, [planned.layer for planned in plan.layers]), "scope": target.scope.value}
    if not pruner.pattern.is_free:
        asked["pattern"] = target.pattern
    if plan.unfit:
        asked["left_dense"] = [layer.name for layer in plan.unfit]
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


def round_result(run: Run, outcome: Outcome, part: RoundOutcome) -> RoundResult:
    """A round in numbers."""
    experiment, asked = part.run.experiment, asked_of(part)
    layers = layer_results(part) if part.masks else []
    weights = sum(layer.weights for layer in layers)
    pruned, *recovered = _stages(part)
    size = model_size(model_profile(run.experiment, run.family_of(part.model)))
    dense = model_size(model_profile(run.experiment, run.experiment.model))
    return RoundResult(
        name=part.run.round,
        pruner=type(experiment.pruner).__name__,
        steps=experiment.steps,
        epochs=0 if experiment.recovery is None else experiment.recovery.epochs,
        asked=asked["sparsity"] if part.masks else asked["removed"],
        asked_of="weights" if part.masks else asked["of"],
        sparsity=sum(layer.zeros for layer in layers) / weights if weights else 0.0,
        removed=removed_of(outcome.rounds[: outcome.rounds.index(part) + 1], dense, size),
        size=size,
        after_pruning=pruned,
        after_recovery=recovered[0] if recovered else None,
        loss_increase=LossIncrease(_predicted(layers), part.measured, part.measured_unit),
        seconds=sum(seconds for stage, seconds in run.stage_seconds.items() if whose(stage) == part.run.round),
    )


def model_profile(experiment: Experiment, family: ModelFamily) -> ModelProfile:
    return profile(family, experiment.data.input_shape)


def model_size(found: ModelProfile) -> ModelSize:
    """A multiply-add is two flops of torch's counter."""
    return ModelSize(found.parameters, found.forward_flops // 2)


def removed_of(rounds: list[RoundOutcome], dense: ModelSize, size: ModelSize) -> dict[str, float]:
    """Fractions of the dense model that are gone after ``rounds``; empty if none of them took units out."""
    groups = group_results(rounds)
    if not groups:
        return {}
    kept, timed = sum(group.kept for group in groups) / sum(group.units for group in groups), latency_of(rounds)
    found = {"macs": 1 - size.macs / dense.macs, "parameters": 1 - size.parameters / dense.parameters, "structures": 1 - kept}
    memory = memory_of(rounds)
    return found | ({} if timed is None else {"latency": timed.removed}) | ({} if memory is None else {"memory": memory})


def memory_of(rounds: list[RoundOutcome]) -> float | None:
    """The fraction of the memory that is gone, if the last of ``rounds`` that took units out had a target of it."""
    last = next((part.run for part in reversed(rounds) if not part.masks), None)
    if last is None or Of.MEMORY.value not in (last.experiment.unit_pruner.target.of.value, *last.experiment.unit_pruner.target.also):
        return None
    dense, input_shape = dense_family(last.experiment.model), last.experiment.data.input_shape
    before, after = (cost_of(Of.MEMORY, family, [], input_shape).total for family in (dense, last.family_of(rounds[-1].model)))
    return 1 - after / before


def latency_of(rounds: list[RoundOutcome]) -> LatencyResult | None:
    """How the last of ``rounds`` that took units out met its target of latency; None if it had another."""
    last = next((part for part in reversed(rounds) if not part.masks), None)
    if last is None or (timed := last.unit_steps[-1].timed) is None:
        return None
    step, numbers = last.unit_steps[-1], last.unit_steps[-1].chosen.numbers
    return LatencyResult(
        **conditions(last.run.experiment.latency, last.run.plan.resources),
        dense_ms=step.dense_ms,
        budget_ms=step.budget_ms,
        predicted_ms=step.predicted_ms,
        measured_ms=step.measured_ms,
        spread=timed.numbers["spread"],
        corrections=step.corrections,
        **numbers["table"],
    )


def int8_of(run: Run, quantised: Record | None) -> Int8Result | None:
    if quantised is None:
        return None
    numbers = quantised.numbers
    return Int8Result(
        **conditions(*on_onnxruntime(run)),
        metrics=numbers["metrics"],
        bytes=numbers["bytes"],
        float_bytes=numbers["float_bytes"],
        ms=numbers["ratio"] * numbers["beside_ms"],
        float_ms=numbers["beside_ms"],
        spread=numbers["spread"],
    )


def group_results(rounds: list[RoundOutcome]) -> list[GroupResult]:
    """Groups of the dense model, how many of their units are left after ``rounds``, and what a sweep of targets would have left."""
    shrinking = [part for part in rounds if not part.masks]
    if not shrinking:
        return []
    last, first = shrinking[-1].run.experiment, shrinking[0].unit_steps[0].chosen.numbers["swept"]
    dense, streams = dense_family(last.model), any(part.run.experiment.unit_pruner.streams for part in shrinking)
    groups, shapes = find_groups(dense, last.data.input_shape, streams), shapes_of(dense)
    kept = {group.name: group.units for group in groups}
    for part in shrinking:
        for step in part.unit_steps:
            kept |= step.chosen.numbers["kept"]
    least = floors(last.unit_pruner.target, groups, {group.name: group.units for group in groups})
    return [
        GroupResult(
            name=group.name,
            kind=group.kind.value,
            units=group.units,
            kept=kept[group.name],
            weights=unit_weights(group, shapes),
            least=least[group.name],
            swept=[count / group.units for count in first.get(group.name, [])],
        )
        for group in groups
    ]


def layer_results(part: RoundOutcome) -> list[LayerResult]:
    """Per layer: what is pruned, and what that was predicted to cost per calibration sample in this round, its steps added up."""
    scale = part.run.experiment.data.calibration_batch_size  # a gradient is a mean over so many samples, so its moment is smaller
    results = []
    for planned in part.run.plan.layers:
        name = planned.layer.name
        costs = [step.solutions[name].numbers["predicted_loss"] for step in part.weight_steps]
        known = [cost for cost in costs if cost is not None]
        spent = scale * sum(known[: len(costs) - 1])
        scored = part.weight_steps[-1].scores[name].numbers
        gone = scored["already_pruned"] / planned.layer.weights
        results.append(
            LayerResult(
                name=name,
                rows=planned.layer.rows,
                columns=planned.layer.columns,
                block_size=planned.block_size,
                weights=planned.layer.weights,
                zeros=part.weight_steps[-1].solutions[name].numbers["pruned"],
                predicted_loss_increase=scale * sum(known) if len(known) == len(costs) else None,
                curve=[(gone + more, spent + scale * loss) for more, loss in scored["curve"]],
                notes=_notes(part, name),
            )
        )
    return results


def _notes(part: RoundOutcome, name: str) -> dict[str, float]:
    """The pruner's notes on a layer: the largest of each over the steps, so that no trouble goes unreported."""
    found = [step.scores[name].numbers["notes"] for step in part.weight_steps]
    return {key: max(notes.get(key, 0.0) for notes in found) for key in dict.fromkeys(key for notes in found for key in notes)}


def _stages(part: RoundOutcome) -> list[StageResult]:
    """The model of a round before and after its training."""
    return [_stage(name, record) for name, record in (("one_shot", part.one_shot), ("recovered", part.recovered)) if record is not None]


def _stage(name: str, record: Record) -> StageResult:
    return StageResult(name, record.numbers["metrics"], record.numbers["seconds"])


def _trainings(outcome: Outcome) -> dict[str, Record]:
    """Trainings by the name of their curve: "dense", "recovery", or "to_60/recovery" in rounds."""
    found = {"dense": outcome.trained}
    found |= {f"{part.run.round}/recovery".removeprefix("/"): part.trained for part in outcome.rounds}
    return {name: record for name, record in found.items() if record is not None}


def environment(run: Run) -> dict[str, Any]:
    """Where and with what the run was measured."""
    packages = ("torch", "timm", "ray", "deepspeed", "numba")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "secateur": version("secateur"),
        "commit": _commit(),
        "machine": platform.machine(),
        "processor": processor(),
        "device": run.plan.resources.device,
        "cores": cores_here(),
        "workers": run.plan.resources.workers,
        "threads": run.plan.resources.threads,
    }


def _predicted(layers: list[LayerResult]) -> float | None:
    known = [layer.predicted_loss_increase for layer in layers if layer.predicted_loss_increase is not None]
    return sum(known) if layers and len(known) == len(layers) else None


def training_curve(record: Record) -> list[dict[str, Any]]:
    """Progress lines of a training, as its rank 0 wrote them."""
    path = record.path("progress.jsonl")
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def _skipped(outcome: Outcome) -> dict[str, int]:
    """Batches left out of the worst sum of a layer (every step reads the same batches), and steps left out of trainings."""
    sums = [records for part in outcome.rounds for step in part.weight_steps for records in step.partials.values()]
    sums += [step.sums for part in outcome.rounds for step in part.unit_steps]
    worst = max((sum(record.numbers["skipped"] for record in records) for records in sums), default=0)
    found = {"calibration batches with non-finite values": worst}
    for name, record in _trainings(outcome).items():
        found[f"steps of {name} training with non-finite values"] = record.numbers.get("skipped_steps", 0)
    return {what: count for what, count in found.items() if count}


def _commit() -> str:
    try:
        where = Path(__file__).parent
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=where, capture_output=True, text=True, timeout=10, check=True
        )
        return found.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"

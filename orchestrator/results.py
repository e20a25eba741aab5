"""From the records of a run to its report."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orchestrator.allocate import asked_sparsity
from orchestrator.cluster.base import cores_here
from orchestrator.pipeline import Outcome
from orchestrator.report import FileSizes, LayerResult, LossIncrease, Report, StageResult
from orchestrator.run import Run
from orchestrator.store import MODEL
from workers.messages import Record


def make_report(run: Run, outcome: Outcome, config: dict[str, Any], command: str, fingerprint: str, files: dict[str, Any]) -> Report:
    """Everything a reader may ask of the run."""
    plan, target = run.plan, run.experiment.pruner.target
    layers = layer_results(run, outcome)
    asked: dict[str, Any] = {"sparsity": asked_sparsity(target, [planned.layer for planned in plan.layers]), "scope": target.scope.value}
    if target.per_layer:
        asked["per_layer"] = target.per_layer
    return Report(
        name=run.experiment.name,
        fingerprint=fingerprint,
        command=command,
        experiment=config,
        asked=asked,
        stages=[StageResult(name, record.numbers["metrics"], record.numbers["seconds"]) for name, record in outcome.metrics.items()],
        layers=layers,
        prunable_weights=plan.profile.prunable_weights,
        pruned_weights=sum(layer.pruned for layer in layers),
        model_weights=plan.profile.parameters,
        loss_increase=LossIncrease(_predicted(layers), outcome.measured, outcome.measured_unit),
        sizes=FileSizes(outcome.models["dense"].path(MODEL).stat().st_size, outcome.final.path(MODEL).stat().st_size),
        timeline=run.timeline,
        stage_seconds=run.stage_seconds,
        predicted_stage_seconds={name: stage.seconds for name, stage in plan.stages.items()},
        curves={name: training_curve(record) for name, record in outcome.training.items()},
        skipped=_skipped(outcome),
        warnings=run.warnings + run.experiment.cluster.warnings,
        environment=environment(run),
        files=files,
    )


def layer_results(run: Run, outcome: Outcome) -> list[LayerResult]:
    """Per layer: what was pruned, and what that was predicted to cost per calibration sample."""
    results = []
    for planned in run.plan.layers:
        name, scored, solved = planned.layer.name, outcome.scores[planned.layer.name].numbers, outcome.solutions[planned.layer.name].numbers
        scale = (
            run.experiment.data.calibration_batch_size
        )  # a gradient is a mean over this many samples, so its moment is that much smaller
        predicted = solved["predicted_loss"]
        results.append(
            LayerResult(
                name=name,
                rows=planned.layer.rows,
                columns=planned.layer.columns,
                block_size=planned.block_size,
                weights=planned.layer.weights,
                pruned=solved["pruned"],
                predicted_loss_increase=None if predicted is None else scale * predicted,
                curve=[(sparsity, scale * loss) for sparsity, loss in scored["curve"]],
                notes=scored["notes"],
            )
        )
    return results


def environment(run: Run) -> dict[str, Any]:
    """Where and with what the run was measured."""
    packages = ("torch", "timm", "ray", "deepspeed", "numba")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "secateur": version("secateur"),
        "commit": _commit(),
        "machine": platform.machine(),
        "processor": _processor(),
        "device": run.plan.resources.device,
        "cores": cores_here(),
        "workers": run.plan.resources.workers,
        "threads": run.plan.resources.threads,
    }


def _predicted(layers: list[LayerResult]) -> float | None:
    known = [layer.predicted_loss_increase for layer in layers if layer.predicted_loss_increase is not None]
    return sum(known) if len(known) == len(layers) else None


def training_curve(record: Record) -> list[dict[str, Any]]:
    """Progress lines of a training, as its rank 0 wrote them."""
    path = record.path("progress.jsonl")
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def _skipped(outcome: Outcome) -> dict[str, int]:
    worst = max((sum(r.numbers["skipped"] for r in records) for records in outcome.partials.values()), default=0)
    found = {"calibration batches with non-finite values": worst}
    for name, record in outcome.training.items():
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


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or os.uname().machine

"""From settings to a finished run: check everything that can be checked, plan, carry out, report."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config import Experiment, check_request
from orchestrator.identity.fingerprints import latency_fingerprint, run_fingerprint
from orchestrator.planning.plan import Plan
from orchestrator.quantities import size
from orchestrator.report.result import Report, round_lines
from orchestrator.report.write import write_report
from orchestrator.results import make_report
from orchestrator.rounds import check_targets, plan_rounds
from orchestrator.store import Store
from workers.checks import require
from workers.errors import DamagedResult, SecateurError
from workers.losses import Loss
from workers.models.base import Output
from workers.onnx_export import ONE_FILE_BYTES, check_packages, export_onnx, first_images
from workers.records import MODEL, Int8Model
from workers.training.settings import check

if TYPE_CHECKING:
    from orchestrator.allocation.latency_table import LatencyTable
    from orchestrator.outcome import Outcome
    from orchestrator.progress import Progress
    from orchestrator.run import Run
    from workers.models.profile import ModelProfile

ONNX = "model.onnx"
DAMAGED_RESULTS = 20  # after that many in one run, the disk is the problem


def plan_experiment(experiment: Experiment) -> Plan:
    """What the run would take. Needs no weights, no data and no device. Raises: ConfigError."""
    from workers.models.profile import profile

    found = profile(experiment.model, experiment.data.input_shape)
    check_together(experiment, found)
    check_targets(experiment, found.layers)
    return plan_rounds(experiment, found, experiment.cluster.resources())


def check_together(experiment: Experiment, profile: ModelProfile) -> None:
    """Settings that are fine alone and not together. Raises: ConfigError."""
    output, loss, labelled = experiment.model.output, experiment.loss, experiment.data.classes > 0
    headless = output is Output.FEATURES
    require(not headless or loss is Loss.FEATURES, "loss", "features, since the model has no classifier", loss.value, "loss=features")
    require(labelled or loss is not Loss.LABELS, "loss", "sampled or features, since the data has no labels", loss.value, "loss=sampled")
    if output is Output.BOXES:
        check_detector(experiment, profile)
    else:
        boxes = "images with classes: its labels are objects in boxes, which only a detector learns from"
        require(not experiment.data.has_boxes, "data", boxes, type(experiment.data).__name__, "choose model=ssdlite")
    require(
        experiment.model.has_features or loss is not Loss.FEATURES,
        "loss",
        "labels or sampled, since models of this family do not tell their features (forward_features)",
        loss.value,
        "loss=sampled needs no labels",
    )
    if output is Output.LOGITS:
        experiment.data.check_outputs(profile.outputs)
    if experiment.training is not None and experiment.model.checkpoint is None:
        check(experiment.training, experiment.data, output, taught=False, where="training")
    for name, part in experiment.schedule.items():
        if part.recovery is not None:
            where = f"rounds.{name}.recovery" if name else "recovery"
            check(part.recovery, experiment.data, output, taught=True, where=where, features=experiment.model.has_features)


def check_detector(experiment: Experiment, profile: ModelProfile) -> None:
    """That images are as large as the default boxes are made for, labels are boxes of classes that the model knows, and losses and pruners
    are of what a detector says."""
    loss, data, shape, size = experiment.loss, experiment.data, experiment.data.input_shape, experiment.model.fixed_size
    require(shape == (3, size, size), "data.image_size", f"{size}, which the model's default boxes are made for, and 3 channels", shape)
    require(loss is not Loss.SAMPLED, "loss", "labels or features, since a detector's output is no distribution", loss.value)
    with_boxes, instead = data.has_boxes or data.classes == 0, "choose data=coco, or a folder of images without classes and loss=features"
    require(with_boxes, "data", "images with objects in boxes, or without labels", type(data).__name__, instead)
    classes = f"at least {data.classes + 1}: the classes of the data and the background"
    require(data.classes + 5 <= profile.outputs, "model.arguments.num_classes", classes, profile.outputs - 4)
    for name, part in experiment.schedule.items():
        where = f"rounds.{name}.pruner" if name else "pruner"
        require(not part.pruner.needs_logits, where, "one that suits detectors", type(part.pruner).__name__, "sosp_h and taylor do")


def run_experiment(experiment: Experiment, config: dict[str, Any], command: str) -> tuple[Report, Path]:
    """Carry out a run; returns its report and its directory. Raises: SecateurError, ConfigError before any worker starts."""
    from orchestrator.progress import Progress
    from orchestrator.run import Run

    check_request(experiment)
    experiment.model.check()
    experiment.data.check()
    if experiment.onnx or experiment.int8:
        check_packages()
    plan = plan_experiment(experiment)
    bytes_ = plan.profile.model_bytes
    require(not experiment.int8 or bytes_ < ONE_FILE_BYTES, "int8", f"false for a model of {size(bytes_)}, whose ONNX is no one file", True)
    identity = run_fingerprint(experiment)
    directory = Path(experiment.output).resolve() / f"{experiment.name}-{identity[:8]}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    with Progress() as progress:
        warn_of_a_full_disk(plan, directory, progress)
        experiment = settle_data(experiment, plan.profile, progress)
        tracker = experiment.tracking.start(experiment.name, identity[:8], config, directory, progress.warn)
        run = Run(experiment, plan, Store(Path(experiment.output) / "store"), directory, progress, tracker, plan.profile)
        for remark in experiment.data.remarks(told_apart(experiment, plan.profile)):
            run.warn(remark)
        try:
            outcome = _carry_out(run)
            with run.timed("export"):
                exported = export(outcome, directory, experiment)
            report = make_report(experiment, plan, run.log, outcome, config, command, identity, exported)
            page = write_report(report, directory)
        except BaseException:
            tracker.finish(None, [], "failed")
            raise
        for name, lines in (report.curves | {"rounds": round_lines(report)}).items():
            tracker.curve(name, lines)
        tracker.layers(report.layers)
        tracker.finish(report, [page, page.with_suffix(".json"), directory / MODEL], "finished")
    return report, directory


def measure_latency(experiment: Experiment) -> tuple[LatencyTable, dict[str, Any], Path]:
    """Time the model and its operations at all widths; returns the table, what it was measured with, and the directory that it is in.

    Needs no weights and no data. What an earlier call measured is read from the store. Raises: SecateurError.
    """
    from orchestrator.progress import Progress
    from orchestrator.run import Run
    from orchestrator.times import conditions, time_model, time_operations
    from orchestrator.track import FileTracker

    experiment.model.check()
    plan, streams = plan_experiment(experiment), experiment.pruner.removes_streams
    here = conditions(experiment.latency, plan.resources)
    name = f"{experiment.name}-latency-{latency_fingerprint(experiment, streams, plan.resources)[:8]}"
    directory = Path(experiment.output).resolve() / name
    with Progress() as progress:
        tracker = FileTracker(experiment.name, name, directory)
        run = Run(experiment, plan, Store(Path(experiment.output) / "store"), directory, progress, tracker, plan.profile)
        try:
            experiment.cluster.start(1)
            model_ms = time_model(run, experiment.model).numbers.ms
            return time_operations(run, experiment.model, streams, model_ms), here, directory
        finally:
            experiment.cluster.stop()


def settle_data(experiment: Experiment, profile: ModelProfile, progress: Progress) -> Experiment:
    """The experiment with everything decided that the settings of its data leave to the files and to the model. Raises: ConfigError."""
    data, cache = experiment.data, Path(experiment.output).resolve() / "store" / "examined"
    outputs, files = told_apart(experiment, profile), data.to_examine
    if not files:
        return replace(experiment, data=data.settled(outputs, cache, lambda count: None))
    with progress.stage("examine images", files) as bar:
        return replace(experiment, data=data.settled(outputs, cache, bar.advance))


def told_apart(experiment: Experiment, profile: ModelProfile) -> int | None:
    """How many classes the model tells apart; None where it has no classifier."""
    match experiment.model.output:
        case Output.LOGITS:
            return profile.outputs
        case Output.BOXES:
            return profile.outputs - 5  # four offsets and the background
        case Output.FEATURES:
            return None


def warn_of_a_full_disk(plan: Plan, directory: Path, progress: Progress) -> None:
    """What is stored already, and quotas, are not known here: so this is no error."""
    free = shutil.disk_usage(directory).free
    if free < plan.store_bytes:
        progress.warn(f"{directory.parent} has {size(free)} free, a run from the beginning may store {size(plan.store_bytes)}")


def _carry_out(run: Run) -> Outcome:
    """Import here, start the cluster, and go through the pipeline until nothing that it reads is damaged."""
    from orchestrator.pipeline import import_model, prune

    experiment = run.experiment
    imported = import_model(run)
    recipes = [part.recovery for part in experiment.schedule.values()]
    recipes.append(experiment.training if experiment.model.checkpoint is None else None)
    try:
        with run.timed("start workers"):
            experiment.cluster.start(max((recipe.ranks for recipe in recipes if recipe is not None), default=1))
        for _ in range(DAMAGED_RESULTS):
            try:
                return prune(run, imported)
            except DamagedResult as damaged:
                run.discard(damaged)
        raise SecateurError(f"{run.store.root}: {DAMAGED_RESULTS} stored results were damaged in one run; check the disk")
    finally:
        experiment.cluster.stop()


def export(outcome: Outcome, directory: Path, experiment: Experiment) -> dict[str, Any]:
    """Copy the final model into the run's directory, and its spec and, if asked for, the same as ONNX beside it."""
    from workers.export import read_spec
    from workers.files import write_text

    target = directory / MODEL
    shutil.copyfile(outcome.model.file, target)
    write_text(directory / "model.json", json.dumps(read_spec(target), indent=1))
    for former in (*directory.glob(f"{ONNX}*"), *directory.glob(Int8Model.file)):
        former.unlink()
    files: dict[str, Any] = {"model": MODEL, "spec": "model.json"}
    if outcome.quantised is not None:
        shutil.copyfile(outcome.quantised.file, directory / Int8Model.file)
        files["int8"] = Int8Model.file
    return files | ({"onnx": export_onnx(target, directory / ONNX, first_images(experiment.data))} if experiment.onnx else {})

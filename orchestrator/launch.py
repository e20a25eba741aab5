"""From an experiment to a finished run: check, plan, carry out, export and report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.checks import check_together, class_count
from orchestrator.config import Experiment, check_request
from orchestrator.identity.fingerprints import latency_fingerprint, run_directory, run_fingerprint
from orchestrator.planning.plan import Plan
from orchestrator.quantities import size
from orchestrator.report.result import Report, round_lines
from orchestrator.report.write import write_report
from orchestrator.results import make_report
from orchestrator.rounds import check_targets, plan_rounds
from orchestrator.store import Store
from workers.checks import require
from workers.errors import ConfigError, DamagedResult, SecateurError
from workers.onnx_export import ONE_FILE_BYTES, check_packages, export_onnx, first_images
from workers.records import MODEL, Int8Model

if TYPE_CHECKING:
    from orchestrator.allocation.latency_table import LatencyTable
    from orchestrator.outcome import Outcome
    from orchestrator.progress import Progress
    from orchestrator.run import Run
    from workers.models.profile import ModelProfile

ONNX = "model.onnx"
DAMAGED_RESULTS = 20  # a run with more of them ends: the disk is damaged


def plan_experiment(experiment: Experiment) -> Plan:
    """Predict the seconds and bytes of a run. Needs no weights, no data and no device. Raises: ConfigError."""
    from workers.models.profile import profile

    dense = profile(experiment.model, experiment.data.input_shape)
    check_together(experiment, dense)
    check_targets(experiment, dense.layers)
    return plan_rounds(experiment, dense, experiment.cluster.resources())


def prerequisites(experiment: Experiment) -> tuple[Callable[[], None], ...]:
    """Checks of what a run needs and a plan does not: a checkpoint or a recipe, and files. Each raises ConfigError."""
    return partial(check_request, experiment), experiment.model.check, experiment.data.check


def missing(experiment: Experiment) -> list[str]:
    """The errors with which a run of this experiment would end here, because checkpoints or data are not there yet."""
    refusals = []
    for check in prerequisites(experiment):
        try:
            check()
        except ConfigError as error:
            refusals.append(str(error))
    return refusals


def run_experiment(experiment: Experiment, config: dict[str, Any], command: str) -> tuple[Report, Path]:
    """Carry out a run; returns its report and its directory. Raises: SecateurError, ConfigError before any worker starts."""
    from orchestrator.progress import Progress
    from orchestrator.run import Run

    for check in prerequisites(experiment):
        check()
    if experiment.onnx or experiment.int8:
        check_packages()
    plan = plan_experiment(experiment)
    if experiment.int8:
        model_bytes = plan.profile.model_bytes
        require(model_bytes < ONE_FILE_BYTES, "int8", f"false, since a model of {size(model_bytes)} needs several ONNX files", True)
    identity = run_fingerprint(experiment)
    directory = run_directory(experiment)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    with Progress() as progress:
        warn_of_full_disk(plan, directory, progress)
        experiment = settle_data(experiment, plan.profile, progress)
        tracker = experiment.tracking.start(experiment.name, identity[:8], config, directory, progress.warn)
        run = Run(experiment, plan, Store(Path(experiment.output) / "store"), directory, progress, tracker, plan.profile)
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
    """Time the model and its operations at all widths.

    Returns: the table, the conditions of the measurement, and the directory of the table. Needs no weights and no data. What an earlier
    call measured is read from the store. Raises: SecateurError.
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
    """The experiment once its data has decided what the settings leave to the files and to the model. Raises: ConfigError."""
    data, cache = experiment.data, Path(experiment.output).resolve() / "store" / "examined"
    outputs, files = class_count(experiment, profile), data.to_examine
    if not files:
        return replace(experiment, data=data.settled(outputs, cache, lambda count: None))
    with progress.stage("examine images", files) as bar:
        return replace(experiment, data=data.settled(outputs, cache, bar.advance))


def warn_of_full_disk(plan: Plan, directory: Path, progress: Progress) -> None:
    """Warn if the disk may be too small. No error, since results that are stored already and quotas are not known here."""
    free = shutil.disk_usage(directory).free
    if free < plan.store_bytes:
        progress.warn(f"{directory.parent} has {size(free)} free; a run from the beginning may store {size(plan.store_bytes)}")


def _carry_out(run: Run) -> Outcome:
    """Import the model, start the cluster, and repeat the pipeline until none of the stored results that it reads is damaged."""
    from orchestrator.pipeline import import_model, prune

    experiment = run.experiment
    imported = import_model(run)
    for remark in experiment.data.remarks(class_count(experiment, run.plan.profile)):  # a checkpoint of other classes was refused before
        run.warn(remark)
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
    """Copy the final model and its spec into the run's directory, and write the model as ONNX if the experiment asks for it."""
    from workers.export import read_spec
    from workers.files import write_text

    model = directory / MODEL
    shutil.copyfile(outcome.model.file, model)
    write_text(directory / "model.json", json.dumps(read_spec(model), indent=1))
    for stale in (*directory.glob(f"{ONNX}*"), *directory.glob(Int8Model.file)):
        stale.unlink()
    files: dict[str, Any] = {"model": MODEL, "spec": "model.json"}
    if outcome.quantised is not None:
        shutil.copyfile(outcome.quantised.file, directory / Int8Model.file)
        files["int8"] = Int8Model.file
    return files | ({"onnx": export_onnx(model, directory / ONNX, first_images(experiment.data))} if experiment.onnx else {})

"""From an experiment to a finished run: check, plan, carry out, export and report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.checks import check_together, class_count
from orchestrator.cleaning import free_intermediate
from orchestrator.cluster.watch import watched
from orchestrator.config import Experiment, Keep, check_request
from orchestrator.identity.fingerprints import latency_fingerprint, run_directory, run_fingerprint
from orchestrator.planning.plan import Plan
from orchestrator.quantities import COSTS, number, size
from orchestrator.report.result import Report, round_lines
from orchestrator.report.write import write_report
from orchestrator.results import make_report
from orchestrator.rounds import check_targets, plan_rounds
from orchestrator.store import Store
from orchestrator.tracking.base import Result, TrackedRun
from workers.checks import require
from workers.disks import refusal, writing
from workers.errors import ConfigError, DamagedResult, SecateurError
from workers.files import copy_file, write_text
from workers.onnx_export import ONE_FILE_BYTES, check_packages, export_onnx, first_images
from workers.records import MODEL, Int8Model

if TYPE_CHECKING:
    from orchestrator.allocation.latency_table import LatencyTable
    from orchestrator.outcome import Outcome
    from orchestrator.progress import Progress
    from orchestrator.run import Run
    from workers.models.profile import ModelProfile

ONNX = "model.onnx"
MISSING = ("No such file or directory", "does not exist")  # how errors of Python, torch and safetensors say so
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
    return partial(check_request, experiment), experiment.model.check, experiment.data.check, experiment.tracking.check


def missing(experiment: Experiment) -> list[str]:
    """The errors with which a run of this experiment would end here, because checkpoints or data are not there yet."""
    refusals = []
    for check in prerequisites(experiment):
        try:
            check()
        except ConfigError as error:
            refusals.append(str(error))
    return refusals


def run_experiment(experiment: Experiment, config: dict[str, Any], command: str, sweep: str | None = None) -> tuple[Report, Path]:
    """Carry out a run, a point of ``sweep``; returns its report and its directory.

    Raises: SecateurError, ConfigError before any worker starts.
    """
    from orchestrator.progress import Progress
    from orchestrator.run import Run
    from orchestrator.status.live import LiveState

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
    write_text(directory / "config.json", json.dumps(config, indent=1))
    store = Store(Path(experiment.output) / "store")
    planned = {name: stage.seconds for name, stage in plan.stages.items()}
    live = LiveState(directory, experiment.name, prunes(experiment, plan), planned)
    with watched(), live, Progress(watcher=live) as progress, shared(store, directory, progress):
        warn_of_full_disk(plan, directory, progress)
        experiment = settle_data(experiment, plan.profile, progress)
        tracker = experiment.tracking.start(tracked(experiment, identity, config, directory, sweep), progress.warn)
        run = Run(experiment, plan, store, directory, progress, tracker, plan.profile)
        try:
            outcome = _carry_out(run)
            with run.alone_in_directory():
                with run.timed("export"):
                    exported = export(outcome, directory, experiment)
                progress.entered("report")
                report = make_report(experiment, plan, run.log, outcome, config, command, identity, exported)
                page = write_report(report, directory)
            if experiment.store.keep is Keep.RECORDS:
                freed = free_intermediate(store, directory)
                if freed:
                    progress.note(f"deleted {size(freed)} of intermediate results from the store (store.keep=records)")
        except BaseException:
            with suppress(SecateurError):  # that the disk is full, for example, which is why the run failed
                tracker.finish(None)
            raise
        for name, lines in (report.curves | {"rounds": round_lines(report)}).items():
            tracker.curve(name, lines)
        tracker.layers(report.layers)
        live.achieved(report)
        files, dense = (page, page.with_suffix(".json")), outcome.dense
        tracker.finish(Result(report, files, directory / MODEL, dense.file, dense.files[MODEL], run.log.times))
    return report, directory


def measure_latency(experiment: Experiment) -> tuple[LatencyTable, dict[str, Any], Path]:
    """Time the model and its operations at all widths.

    Returns: the table, the conditions of the measurement, and the directory of the table. Needs no weights and no data. What an earlier
    call measured is read from the store. Raises: SecateurError.
    """
    from orchestrator.progress import Progress
    from orchestrator.run import Run
    from orchestrator.status.live import LiveState
    from orchestrator.times import conditions, time_model, time_operations
    from orchestrator.tracking.files import FileTracker

    experiment.model.check()
    plan, streams = plan_experiment(experiment), experiment.pruner.removes_streams
    here = conditions(experiment.latency, plan.resources)
    name = f"{experiment.name}-latency-{latency_fingerprint(experiment, streams, plan.resources)[:8]}"
    directory = Path(experiment.output).resolve() / name
    store = Store(Path(experiment.output) / "store")
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    live = LiveState(directory, experiment.name, "mode=latency")
    with watched(), live, Progress(watcher=live) as progress, shared(store, directory, progress):
        tracker = FileTracker(experiment.name, name, directory)
        run = Run(experiment, plan, store, directory, progress, tracker, plan.profile)
        try:
            experiment.cluster.start(1)
            model_ms = time_model(run, experiment.model).numbers.ms
            return time_operations(run, experiment.model, streams, model_ms), here, directory
        finally:
            experiment.cluster.stop()


@contextmanager
def shared(store: Store, directory: Path, progress: Progress) -> Iterator[None]:
    """A context in which a run uses a store, perhaps beside other runs.

    Raises: SecateurError if the store, or a file of the run, was deleted meanwhile or cannot be written.
    """
    with store.claims.opened(directory.name):
        if not store.claims.supported:
            progress.warn(f"the file system of {store.root} has no locks, so run only one command at a time with this output")
        try:
            yield
        except Exception as error:
            store.check()
            missing = any(words in str(error) for words in MISSING) and any(str(place) in str(error) for place in (store.root, directory))
            if missing and not isinstance(error, ConfigError):
                where = f"{directory.parent}: files were deleted while this run used them"
                raise SecateurError(f"{where}; run the same command again, which computes what is missing") from error
            refused = None if isinstance(error, SecateurError) else refusal(error, directory.parent)
            if refused is None:
                raise
            raise refused from error


def tracked(experiment: Experiment, identity: str, config: dict[str, Any], directory: Path, sweep: str | None) -> TrackedRun:
    """What a tracker is told about a run at its start. The points of a sweep are a group."""
    methods = [type(part.pruner).__name__.lower() for part in experiment.schedule.values()]
    group = None if sweep is None else f"{experiment.name} {sweep}"
    return TrackedRun(experiment.name, identity[:8], config, directory, group, tuple(dict.fromkeys([*methods, experiment.name])))


def prunes(experiment: Experiment, plan: Plan) -> str:
    """What a run prunes, in a few words, to tell it from others."""
    rounds = list(experiment.schedule.values())
    goal = rounds[-1].pruner.goal(plan.profile.layers)
    methods = ", then ".join(dict.fromkeys(type(part.pruner).__name__ for part in rounds))
    many = f" in {len(rounds)} rounds" if len(rounds) > 1 else ""
    return f"{methods}, {number(100 * goal.fraction)} % of the {COSTS[goal.of]}{many}, seed {experiment.seed}"


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
    from orchestrator.run import FilesFreed

    experiment = run.experiment
    imported = import_model(run)
    for remark in experiment.data.remarks(class_count(experiment, run.plan.profile)):  # a checkpoint of other classes was refused before
        run.warn(remark)
    recipes = [part.recovery for part in experiment.schedule.values()]
    recipes.append(experiment.training if experiment.model.checkpoint is None else None)
    try:
        with run.timed("start workers"):
            experiment.cluster.start(max((recipe.ranks for recipe in recipes if recipe is not None), default=1))
        discarded = 0
        while discarded < DAMAGED_RESULTS:
            try:
                return prune(run, imported)
            except FilesFreed:
                continue
            except DamagedResult as damaged:
                run.discard(damaged)
                discarded += 1
        raise SecateurError(f"{run.store.root}: {DAMAGED_RESULTS} stored results were damaged in one run; check the disk")
    finally:
        experiment.cluster.stop()


def export(outcome: Outcome, directory: Path, experiment: Experiment) -> dict[str, Any]:
    """Copy the final model and its spec into the run's directory, and write the model as ONNX if the experiment asks for it."""
    from workers.model_files import read_spec

    model = directory / MODEL
    copy_file(outcome.model.file, model)
    write_text(directory / "model.json", json.dumps(read_spec(model), indent=1))
    for stale in (*directory.glob(f"{ONNX}*"), *directory.glob(Int8Model.file)):
        stale.unlink()
    files: dict[str, Any] = {"model": MODEL, "spec": "model.json"}
    if outcome.quantised is not None:
        copy_file(outcome.quantised.file, directory / Int8Model.file)
        files["int8"] = Int8Model.file
    return files | ({"onnx": export_onnx(model, directory / ONNX, first_images(experiment.data))} if experiment.onnx else {})

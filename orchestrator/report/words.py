"""The report in sentences. Every one follows from the numbers of the report."""

from __future__ import annotations

from itertools import groupby

from orchestrator.quantities import COSTS, count, listed, number, percent, points
from orchestrator.report.noise import ERRORS, Pairs, error_between, error_from_dense, images_behind, pairs_of
from orchestrator.report.parts import StageResult
from orchestrator.report.result import Report
from orchestrator.report.size import about_int8, about_latency, about_size_and_speed, about_units, removed_words, speed_words
from orchestrator.report.terms import ACCURACY_NAMES, METRICS, measured_metrics, model_name

FACTOR = 3  # a prediction of the loss that is off by more is no forecast
FAR_OFF = 100  # beyond this the factor itself says nothing
HIGHER_LOSS = 1.05  # a test loss that rose by this factor makes a model worse
WAITING = 0.2  # of the time of an evaluation; less is not worth a word
AUGMENTATIONS = ("augmentation", "max_shift", "flip")  # settings of data sets


def verdict(report: Report) -> str:
    """One sentence: how much was pruned, what the model can still do, and, if units were removed, whether it is faster."""
    clauses = [_pruned_words(report), _accuracy_words(report), speed_words(report)]
    return "; ".join(clause for clause in clauses if clause) + "."


def sentences(report: Report) -> list[str]:
    """What a reader must know to judge the run."""
    parts = (
        about_units,
        _about_zeros,
        _about_rounds,
        _about_accuracy,
        _about_harm,
        _about_loss,
        about_latency,
        about_size_and_speed,
        about_int8,
        _about_loading,
        _about_missing_metrics,
        _about_numerics,
        _about_the_store,
    )
    return [sentence for part in parts for sentence in part(report)]


def _pruned_words(report: Report) -> str:
    """How much was pruned, in the order of the rounds."""
    share, masked = percent(report.sparsity), f"masked{_by(report.pruners(masks=True))}"
    removed = f"{removed_words(report)} removed{_by(report.pruners(masks=False))}" if report.removes_units else ""
    if not report.removes_units:
        pruned = f"{share} of the prunable weights {masked}"
    elif not report.masks_weights:
        pruned = removed
    elif report.masks_last:
        pruned = f"{removed}, then {share} of the remaining prunable weights {masked}"
    else:
        pruned = f"{share} of the prunable weights {masked}, then {removed}"
    if not report.rounds:
        return pruned
    several = len(report.pruners()) > 1 or (report.masks_weights and report.removes_units)
    return f"{pruned}{',' if several else ''} in {count(len(report.rounds), 'round')}"


def _by(pruners: list[str]) -> str:
    return f" by {', then '.join(pruners)}" if pruners else ""


def _accuracy_words(report: Report) -> str:
    key = report.headline_metric
    if key is None:
        return "accuracy was not measured"
    told = {stage.name: stage.metrics.get(key) for stage in report.stages if key != "agreement" or stage.name != "dense"}
    told = {name: value for name, value in told.items() if value is not None}
    if not told.keys() - {"dense"}:
        return f"{ACCURACY_NAMES[key]} of the pruned model was not measured"
    earlier = any(part.after_recovery for part in report.rounds)
    without = "" if "recovered" in told else " (no recovery in the last round)" if earlier else " (no recovery)"
    without = without if report.stopped_below is None else " (stopped early)"
    return f"{ACCURACY_NAMES[key]} {', '.join(f'{percent(value)} {model_name(report, name)}' for name, value in told.items())}{without}"


def _about_zeros(report: Report) -> list[str]:
    if not report.masks_weights:
        return []
    zeros, prunable, share = f"{report.pruned_weights:,}", f"{report.prunable_weights:,}", percent(report.sparsity, 2)
    if not report.removes_units:
        of_model = f"{percent(report.pruned_weights / report.model_weights)} of all {report.model_weights:,} parameters"
        told = [f"{zeros} of {prunable} prunable weights ({share}) are zero, which is {of_model}."]
    elif report.masks_last:
        told = [f"{zeros} of the {prunable} prunable weights that are left ({share}) are zero."]
    else:
        told = [
            f"{zeros} of {prunable} prunable weights ({share}) were zero before units were removed; "
            "how many of these zeros were removed with the units is not known."
        ]
    if report.misses_sparsity:
        told.append(f"The target was missed: a sparsity of {percent(report.weight_goal, 2)} was requested, {share} was reached.")
    return told


def _about_rounds(report: Report) -> list[str]:
    """How the run got to where it ended; neighbouring rounds with targets of one kind share its name."""
    if not report.rounds:
        return []
    ways = [
        f"{listed([percent(part.reached) for part in parts])} of the {COSTS[of]} {'masked' if of == 'weights' else 'removed'}"
        for of, parts in groupby(report.rounds, key=lambda part: part.asked_of)
    ]
    text = f"The model was pruned in {count(len(report.rounds), 'round')}: {', then '.join(ways)}"
    recovered = [part for part in report.rounds if part.after_recovery is not None]
    if not recovered:
        return [f"{text}. No round included recovery."]
    epochs = f"recovery in {count(len(recovered), 'round')} ({count(sum(part.epochs for part in recovered), 'epoch')} in all)"
    return [f"{text}, with {epochs}. Each recovery began with a new optimizer and its own learning rate."]


def _about_accuracy(report: Report) -> list[str]:
    key = report.headline_metric
    if key is None:
        return ["Accuracy was not measured: nothing is known about what the pruned model can still do."]
    told, dense = [], report.stage("dense")
    for stage in report.stages:
        if key != "agreement" and stage.name != "dense" and dense is not None:
            told += _compared(f"The {model_name(report, stage.name)} model's {ACCURACY_NAMES[key]}", key, dense, stage)
    if report.stopped_below is not None:
        why = f"its accuracy is below stop_below, {percent(report.stopped_below)}"
        told.append(f"The run was stopped early: the {model_name(report, 'one_shot')} model was not recovered, since {why}.")
    elif report.stage("recovered") is None:
        when = "the last pruning" if report.rounds else "pruning"
        told.append(f"There was no recovery (training) after {when}: the {model_name(report, 'one_shot')} model is the result.")
    return told


def _compared(what: str, key: str, dense: StageResult, stage: StageResult) -> list[str]:
    """An accuracy beside the dense model's, and whether the difference is more than noise."""
    before, after = dense.metrics.get(key), stage.metrics.get(key)
    if before is None or after is None:
        return []
    if before == after:
        return [f"{what} equals the dense model's."]
    difference = f"{what} is {points(after - before)} {'below' if after < before else 'above'} the dense model's"
    error, samples = error_from_dense(dense, stage, key), images_behind(stage)
    if error is None or samples is None:
        return [f"{difference}; whether that is more than noise is not known, because the number of test images is not known."]
    base = f"two standard errors of such a difference are {points(ERRORS * error)} with {samples:,.0f} test images"
    base += _pairs_words(pairs_of(stage, key))
    noise = abs(after - before) <= ERRORS * error
    return [f"{difference}, which is noise: {base}." if noise else f"{difference}; {base}."]


def _pairs_words(pairs: Pairs | None) -> str:
    if pairs is None:
        return ""
    return f" ({pairs.lost:,.0f} are answered correctly by the dense model only, {pairs.gained:,.0f} by this model only)"


def _about_harm(report: Report) -> list[str]:
    """Whether the recovery made the model worse, and what to do then."""
    pruned, recovered, key = report.stage("one_shot"), report.stage("recovered"), report.headline_metric
    if pruned is None or recovered is None or key is None:
        return []
    before, after = pruned.metrics.get(key), recovered.metrics.get(key)
    rise = 0.0 if before is None or after is None else after - before
    noise = ERRORS * (error_between(pruned, recovered, key) or 0.0)
    loss_before, loss_after = pruned.metrics.get("loss"), recovered.metrics.get("loss")
    higher_loss = loss_before is not None and loss_after is not None and loss_after > HIGHER_LOSS * loss_before
    if rise > noise or not (rise < -noise or higher_loss):
        return []
    told = []
    if rise < 0:
        within = " (within noise)" if rise >= -noise else ""
        told.append(f"its {ACCURACY_NAMES[key]} is {percent(after)} instead of {percent(before)}{within}")
    if higher_loss:
        told.append(f"its test loss is {number(loss_after)} instead of {number(loss_before)}")
    return [f"The recovered model is worse than the {model_name(report, 'one_shot')} model: {listed(told)}. {_remedy(report)}"]


def _remedy(report: Report) -> str:
    """What to do about a recovery that made the model worse."""
    data = report.experiment.get("data") or {}
    augmentations = [f"data.{name}" for name in AUGMENTATIONS if name in data]
    checks = f"check {listed(augmentations)}, " if augmentations else ""
    settings = f"{f'rounds.{report.rounds[-1].name}.' if report.rounds else ''}recovery"
    longer = f"Train longer ({settings}.epochs) or with a smaller {settings}.lr"
    return f"{longer}, {checks}or set {settings}={'null' if report.rounds else 'none'} to keep the {model_name(report, 'one_shot')} model."


def _about_loss(report: Report) -> list[str]:
    predicted, measured, loss = report.loss_increase.predicted, report.loss_increase.measured, report.loss_increase.loss
    if measured is None:
        guess = "no increase was predicted" if predicted is None else f"the predicted increase was {number(predicted)}"
        return [f"The increase of the calibration loss was not measured; {guess}."]
    subject = "The pruning of the last round" if report.rounds else "Pruning"
    did = f"lowered the calibration loss by {number(-measured)}" if measured < 0 else f"raised the calibration loss by {number(measured)}"
    text = f"{subject} {did}{f' ({loss})' if loss else ''}"
    if predicted is None:
        return [f"{text}; no increase was predicted."]
    text = f"{text}; the predicted increase was {number(predicted)}"
    if not (predicted > 0 and measured > 0):
        return [f"{text}."]
    ratio = max(measured / predicted, predicted / measured)
    if ratio < FACTOR:
        return [f"{text}, which is right to a factor of {number(ratio)}."]
    what = "weights" if "scope" in report.asked else "units"
    factor = number(ratio) if ratio <= FAR_OFF else f"more than {FAR_OFF}"
    return [
        f"{text}, which is {factor} times too {'low' if measured > predicted else 'high'}. This does not mean that something failed: the "
        f"pruner uses its quadratic model to rank {what}, not to forecast the loss."
    ]


def _about_loading(report: Report) -> list[str]:
    """Whether images were decoded as fast as the model computes."""
    metrics = report.stages[-1].metrics if report.stages else {}
    waiting, rate = metrics.get("waiting"), metrics.get("loaded_images_per_second")
    decoders = (report.experiment.get("data") or {}).get("decoders")
    if waiting is None or rate is None or decoders is None or waiting < WAITING:
        return []
    processes = count(decoders, "process", "processes")
    return [
        f"The evaluation waited for images {percent(waiting)} of the time: {rate:,.0f} images/s were decoded by {processes} of each worker "
        "and evaluated. More of them (data.decoders) may help."
    ]


def _about_missing_metrics(report: Report) -> list[str]:
    told = []
    for key in measured_metrics(report):
        lacking = [model_name(report, stage.name) for stage in report.stages if stage.metrics.get(key) is None]
        if lacking and not (key in ("agreement", "sparse_images_per_second") and lacking == ["dense"]):
            told.append(f"Not measured: {METRICS[key]} of the {listed(lacking)} model{'s' if len(lacking) > 1 else ''}.")
    return told


def _about_numerics(report: Report) -> list[str]:
    told = [f"Skipped: {how_many:,} {what}." for what, how_many in report.skipped.items() if how_many]
    if damped := report.damped:
        worst = max(damped, key=lambda name: damped[name])
        blocks, layers = count(sum(damped.values()), "block"), count(len(damped), "layer")
        told.append(
            f"The Fisher matrix of {blocks} in {layers} (most of them in {worst}) was not positive definite with the configured dampening. "
            "Dampening was raised there until it was, which makes the pruning of these blocks more like magnitude pruning."
        )
    return told


def _about_the_store(report: Report) -> list[str]:
    computed = len(report.computed)
    read = len(report.timeline) - computed
    if not read:
        return []
    results = f"{count(read, 'result')} from an earlier run {'was' if read == 1 else 'were'} read from the store"
    return [f"{results} and {computed:,} computed now; times are those of this run only."]

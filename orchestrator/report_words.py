"""The report in words: a verdict, honest sentences, and the table printed at the end of a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from orchestrator.quantities import count, duration, number, percent, points, size
from orchestrator.report_bottlenecks import on_bottlenecks
from orchestrator.report_groups import on_groups
from orchestrator.report_int8 import on_int8
from orchestrator.report_latency import on_latency
from orchestrator.report_metrics import ACCURACIES, METRICS, STAGE_NAMES, measured_metrics, metric_text, stage_name
from orchestrator.report_rounds import on_rounds, round_table
from orchestrator.report_size import (
    OF,
    fractions,
    masks_last,
    on_size_and_speed,
    on_units,
    pruned_words,
    speed_words,
    unit_goal,
    weight_goal,
)
from orchestrator.stages import over_rounds

if TYPE_CHECKING:
    from rich.table import Table

    from orchestrator.report import Report, StageResult


def standard_error(first: float, second: float, samples: float) -> float:
    r"""Standard error of the difference of two accuracies over ``samples`` images each, were they equal.

        sqrt(2 p (1 - p) / n),  p = (first + second) / 2

    The usual pooled two-proportion estimate. Both stages see the same images, so the true one is smaller: this errs towards "noise".
    """
    pooled = (first + second) / 2
    return math.sqrt(2 * pooled * (1 - pooled) / samples)


def verdict(report: Report) -> str:
    """One sentence: how much went, what the model still can do, and, where units went, whether it is faster."""
    return "; ".join(clause for clause in (pruned_words(report), _accuracy_words(report), speed_words(report)) if clause) + "."


def _accuracy_words(report: Report) -> str:
    key = report.headline_metric
    if key is None:
        return "no accuracy was measured"
    values = {stage.name: stage.metrics.get(key) for stage in report.stages}
    dense, one_shot, recovered = (values.get(name) for name in STAGE_NAMES)
    untrained = " before any recovery of the last round" if any(part.recovered for part in report.rounds) else " without recovery"
    final, how = (recovered, " after recovery") if recovered is not None else (one_shot, untrained)
    if final is None:
        return f"{ACCURACIES[key]} of the pruned model was not measured"
    if dense is None or key == "agreement":
        return f"{ACCURACIES[key]} is {percent(final)}{how}"
    before = "before it" if report.rounds else "one-shot"
    direct = f" ({percent(one_shot)} {before})" if recovered is not None and one_shot is not None else ""
    return f"{ACCURACIES[key]} {percent(dense)} dense, {percent(final)}{how}{direct}"


def sentences(report: Report) -> list[str]:
    """What a reader must know to judge the run. Every sentence follows from the report's numbers."""
    parts = (
        on_units,
        on_groups,
        on_bottlenecks,
        _on_weights,
        on_rounds,
        _on_accuracy,
        _on_loss,
        on_latency,
        on_size_and_speed,
        on_int8,
        _on_missing_measurements,
        _on_numerics,
        _on_store,
    )
    return [sentence for part in parts for sentence in part(report)]


def _on_weights(report: Report) -> list[str]:
    if not report.masked_weights:
        return []
    zeros = f"{report.pruned_weights:,} of {report.prunable_weights:,} prunable weights"
    share = percent(report.sparsity, 2)
    if not report.took_units:
        of_model = percent(report.pruned_weights / report.model_weights)
        whole = f"; the model has {report.model_weights:,} parameters in all, so this is {of_model} of it"
        found = [f"{zeros} are exactly zero ({share}){whole}."]
    elif masks_last(report):
        found = [f"{zeros} that are left are exactly zero ({share})."]
    else:
        found = [f"{zeros} were exactly zero ({share}) before units were taken out; how many of these zeros went along is not known."]
    asked = weight_goal(report)
    if asked is not None and abs(asked * report.prunable_weights - report.pruned_weights) > 1 + len(report.layers):
        found.append(f"The target was missed: {percent(asked, 2)} was asked for, {share} was reached.")
    return found


def _on_accuracy(report: Report) -> list[str]:
    key = report.headline_metric
    if key is None:
        return ["Accuracy was not measured: nothing is known about what the pruned model can still do."]
    found = []
    dense = report.stage("dense")
    if key != "agreement" and dense is not None:
        found = [
            _compared(stage, stage_name(report, stage.name), dense, key)
            for stage in report.stages
            if stage.name != "dense" and stage.metrics.get(key) is not None
        ]
    if report.stage("recovered") is None:
        which = stage_name(report, "one_shot")
        after = "the last pruning" if report.rounds else "pruning"
        found.append(f"The pruned model was not recovered (no training after {after}): the {which} model is the result.")
    return [sentence for sentence in found if sentence]


def _compared(stage: StageResult, name: str, dense: StageResult, key: str) -> str:
    before, after, samples = dense.metrics.get(key), stage.metrics.get(key), stage.metrics.get("test_samples")
    if before is None or after is None:
        return ""
    name, what = name.capitalize(), ACCURACIES[key]
    if before == after:
        return f"{name} {what} equals that of the dense model."
    which = "lower" if after < before else "higher"
    difference = f"{name} {what} is {points(after - before)} {which} than dense"
    if samples is None:
        return f"{difference}; the number of test images is not known, so it cannot be said whether that is more than noise."
    error = standard_error(before, after, samples)
    if abs(after - before) <= error:
        return f"{difference}, which is noise: one standard error of such a difference is {points(error)} with {samples:,.0f} test images."
    return f"{difference} (one standard error: {points(error)} with {samples:,.0f} test images)."


def _on_loss(report: Report) -> list[str]:
    predicted, measured = report.loss_increase.predicted, report.loss_increase.measured
    what, unit = "The last round's pruning" if report.rounds else "Pruning", report.loss_increase.unit
    if measured is None:
        nothing = "; nothing was predicted" if predicted is None else ""
        return [f"The true rise of the calibration loss was not measured{nothing}."]
    if predicted is None:
        return [f"{what} raised the calibration loss by {number(measured)} ({unit}); nothing was predicted."]
    text = f"{what} was predicted to raise the calibration loss by {number(predicted)} and raised it by {number(measured)} ({unit})"
    if predicted > 0 and measured > 0:
        ratio = max(measured / predicted, predicted / measured)
        side = "more" if measured > predicted else "less"
        if ratio >= 3:
            ranked = "units" if "removed" in report.asked else "weights"
            return [f"{text}, {number(ratio)} times {side}: here the quadratic model ranks {ranked}, but its numbers are no forecast."]
        return [f"{text}: the prediction was right to a factor of {number(ratio)}."]
    return [f"{text}."]


def _on_missing_measurements(report: Report) -> list[str]:
    found = []
    for key in measured_metrics(report):
        lacking = [stage_name(report, stage.name) for stage in report.stages if stage.metrics.get(key) is None]
        if lacking and not (key == "agreement" and lacking == ["dense"]):
            found.append(f"Not measured: {METRICS[key]} of the {' and '.join(lacking)} model.")
    return found


def _on_numerics(report: Report) -> list[str]:
    found = [f"Left out: {how_many:,} {what}." for what, how_many in report.skipped.items() if how_many]
    damped = {
        layer.name: int(layer.notes["blocks_with_raised_dampening"])
        for layer in report.layers
        if layer.notes.get("blocks_with_raised_dampening")
    }
    if damped:
        total, worst = sum(damped.values()), max(damped, key=lambda name: damped[name])
        found.append(
            f"The Fisher matrix of {count(total, 'block')} in {count(len(damped), 'layer')} was not positive definite as asked "
            f"(most in {worst}); dampening was raised there until it was, so these blocks are pruned more like by magnitude."
        )
    return found


def _on_store(report: Report) -> list[str]:
    read = sum(not task.computed for task in report.timeline)
    if not read:
        return []
    computed = len(report.timeline) - read
    were = "was" if read == 1 else "were"
    return [f"{count(read, 'result')} of an earlier run {were} read from the store, {computed:,} computed now; times are of this run only."]


def summary_table(report: Report) -> Table:
    """The run on half a screen."""
    from rich.table import Table

    whole = Table.grid(padding=(0, 0))
    whole.title, whole.title_style, whole.title_justify = report.name, "bold", "left"
    rounds = [round_table(report)] if report.rounds else []
    for part in (_stage_table(report), *rounds, _fact_table(report), _seconds_table(report)):
        whole.add_row(part)
    return whole


def _stage_table(report: Report) -> Table:
    from rich.table import Table

    keys = measured_metrics(report)
    table = Table(header_style="bold")
    table.add_column("model")
    for key in keys:
        table.add_column(METRICS[key], justify="right")
    for stage in report.stages:
        values = [metric_text(key, stage.metrics.get(key)) if stage.metrics.get(key) is not None else "–" for key in keys]
        table.add_row(stage_name(report, stage.name), *values)
    return table


def _fact_table(report: Report) -> Table:
    from rich.table import Table

    table = Table(header_style="bold")
    for title, where in (("", "left"), ("asked / predicted", "right"), ("reached / true", "right")):
        table.add_column(title, justify=where)  # type: ignore[arg-type]
    goal = unit_goal(report)
    for key, value in fractions(report).items() if report.took_units else ():
        table.add_row(f"{OF[key]} taken out", percent(goal[0], 2) if goal and goal[1] == key else "–", percent(value, 2))
    if report.masked_weights:
        table.add_row("sparsity", percent(weight_goal(report), 2), percent(report.sparsity, 2))
    table.add_row("loss increase", number(report.loss_increase.predicted), number(report.loss_increase.measured))
    if report.sizes is not None:
        table.add_row("file", f"{size(report.sizes.dense_bytes)} dense", size(report.sizes.file_bytes))
    return table


def _seconds_table(report: Report) -> Table:
    from rich.table import Table

    table = Table(header_style="bold")
    table.add_column("stage")
    for title in ("predicted", "measured"):
        table.add_column(title, justify="right")
    every = over_rounds(report.predicted_stage_seconds)
    for stage, seconds in over_rounds(report.stage_seconds).items():
        predicted = every.get(stage)
        table.add_row(stage, "–" if predicted is None else duration(predicted), duration(seconds))
    return table

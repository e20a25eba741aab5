"""The report as tables of text, for the console and the page alike."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.quantities import COSTS, NOT_MEASURED, duration, macs, milliseconds, number, percent, size
from orchestrator.report.parts import GroupResult, LatencyResult, StageResult
from orchestrator.report.result import Report
from orchestrator.report.terms import METRICS, UNITS, measured_metrics, metric_text, model_name
from orchestrator.stages import over_rounds

SHORT = COSTS | {"macs": "MACs"}


@dataclass(frozen=True)
class Table:
    """The first column names the row."""

    head: list[str]
    rows: list[list[str]]


def models(report: Report) -> Table:
    """The metrics of every model. Speed in 8 bits is not measured as the others are, so a sentence gives it."""
    keys = measured_metrics(report)
    rows = [
        [model_name(report, stage.name), *(metric_text(key, stage.metrics.get(key)) for key in keys), duration(stage.seconds)]
        for stage in report.stages
    ]
    if report.int8 is not None:
        rows.append(["in 8 bits", *(metric_text(key, report.int8.metrics.get(key)) for key in keys), "–"])
    return Table(["model", *(METRICS[key] for key in keys), "evaluated in"], rows)


def targets(report: Report) -> Table:
    """What was asked for and what was reached, each with the numbers behind it; then the other settings of the target."""
    rows = _removals(report) if report.removes_units else []
    if report.masks_weights:
        zeros = f"{report.pruned_weights:,} of {report.prunable_weights:,} weights are zero"
        rows.append(["sparsity", _asked(report.weight_goal), percent(report.sparsity, 2), zeros])
    if report.latency is not None and not report.removes_units:
        rows.append(
            ["latency removed", _asked(report.asked.get("removed")), percent(report.latency.removed, 2), _latency_left(report.latency)]
        )
    if report.masks_weights and not report.removes_units:
        of_model = percent(report.pruned_weights / report.model_weights, 2)
        rows.append(["zeros in the model", "–", of_model, f"of {report.model_weights:,} parameters"])
    if report.nonzero_left is not None and report.dense_size is not None and report.removes_units:
        of_dense = percent(report.nonzero_left / report.dense_size.parameters, 2)
        rows.append(["left and not zero", "–", of_dense, f"{report.nonzero_left:,} parameters"])
    predicted, measured, loss = report.loss_increase.predicted, report.loss_increase.measured, report.loss_increase.loss
    guess = "not predicted" if predicted is None else f"{number(predicted)} predicted"
    rows.append(["loss increase", "–", number(measured), f"{guess}; {loss}" if loss else guess])
    if report.sizes is not None:
        rows.append(["exported file", "–", size(report.sizes.file_bytes), f"{size(report.sizes.dense_bytes)} dense"])
    method = {"pruner": ", then ".join(report.pruners())} if report.pruners() else {}
    settings = method | {name: value for name, value in report.asked.items() if name not in ("sparsity", "removed", "of", "also")}
    return Table(["", "asked", "reached", ""], rows + [[name.replace("_", " "), "", "", flat(value)] for name, value in settings.items()])


def flat(value: object) -> str:
    """A setting, or a fact about the run, on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {flat(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(flat(item) for item in value)
    return NOT_MEASURED if value is None else str(value)


def _removals(report: Report) -> list[list[str]]:
    dense, final, timed = report.dense_size, report.final_size, report.latency
    left = {"structures": f"{report.units_left:,} of {report.units:,} left"}
    if dense is not None and final is not None:
        left["macs"] = f"{macs(final.macs)} of {macs(dense.macs)} left"
        left["parameters"] = f"{final.parameters:,} of {dense.parameters:,} left"
    if timed is not None:
        left["latency"] = _latency_left(timed)
    goals = dict(report.asked.get("also", {})) | ({report.unit_goal.of: report.unit_goal.fraction} if report.unit_goal else {})
    return [
        [f"{COSTS[of]} removed", _asked(goals.get(of)), percent(report.removed.get(of), 2), left.get(of, "")]
        for of in dict.fromkeys([*report.main_removals, *goals, *report.removed])
    ]


def _latency_left(timed: LatencyResult) -> str:
    budget = f"budget {milliseconds(timed.budget_ms)}, predicted {milliseconds(timed.predicted_ms)}"
    return f"{milliseconds(timed.measured_ms)} of {milliseconds(timed.dense_ms)} left; {budget}"


def _asked(fraction: float | None) -> str:
    return "–" if fraction is None else percent(fraction, 2)


def seconds(report: Report, each_round: bool = False) -> Table:
    """Predicted and measured times of the stages; those of all rounds and steps added up, unless ``each_round``."""
    measured, predicted = report.stage_seconds, report.predicted_stage_seconds
    if not each_round:
        measured, predicted = over_rounds(measured), over_rounds(predicted)
    rows = [[stage, duration(predicted[stage]) if stage in predicted else "–", duration(spent)] for stage, spent in measured.items()]
    return Table(["stage", "predicted", "measured"], rows)


def rounds(report: Report, sizes: bool = False) -> Table:
    """A row for each round: target, accuracy before and after its recovery, increase of the loss by its pruning, time of its stages.

    ``sizes`` adds parameters and multiply-adds of the model that each round leaves.
    """
    key = report.headline_metric
    accuracy = METRICS[key] if key else "accuracy"
    kinds = {part.asked_of for part in report.rounds}

    def reached_accuracy(stage: StageResult | None) -> str:
        return metric_text(key, stage.metrics.get(key)) if stage is not None and key is not None else "–"

    head = ["round", "asked", "reached", f"{accuracy} pruned", "recovered", "loss increase", "predicted", "s"]
    if kinds == {"weights"}:
        head[2] = "sparsity"
    elif len(kinds) == 1:
        head[2] = f"{SHORT[next(iter(kinds))]} removed"
    rows = []
    for part in report.rounds:
        rise = part.loss_increase
        row = [
            part.name,
            percent(part.asked),
            percent(part.reached) + (f" of {SHORT[part.asked_of]}" if len(kinds) > 1 else ""),
            reached_accuracy(part.after_pruning),
            reached_accuracy(part.after_recovery),
            *("–" if value is None else f"{value:+.2g}" for value in (rise.measured, rise.predicted)),
            f"{part.seconds:,.0f}",
        ]
        if sizes:
            row += ["–", "–"] if part.size is None else [f"{part.size.parameters:,}", macs(part.size.macs)]
        rows.append(row)
    return Table(head + (["parameters", "MACs"] if sizes else []), rows)


def groups(report: Report) -> Table:
    least = {group.name for group in report.least_lost}
    rows = [
        [
            group.name,
            UNITS[group.kind],
            f"{group.units:,}",
            f"{group.kept:,}",
            percent(group.share),
            f"{group.weights:,}",
            f"{group.weights * (group.units - group.kept):,}",
            ", ".join(_notes(group, group.name in least)) or "–",
        ]
        for group in report.groups
    ]
    return Table(["group", "unit", "units", "kept", "share", "weights per unit", "weights removed", "notes"], rows)


def _notes(group: GroupResult, lost_least: bool) -> list[str]:
    bound = ["removed entirely"] if not group.kept else ["at its minimum"] if group.kept <= group.least else []
    return (["lost the least"] if lost_least else []) + bound


def layers(report: Report) -> Table:
    rows = [
        [
            layer.name,
            f"{layer.rows:,} × {layer.columns:,}",
            str(layer.block_size),
            f"{layer.weights:,}",
            f"{layer.zeros:,}",
            percent(layer.sparsity, 2),
            number(layer.predicted_loss_increase),
            ", ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in layer.notes.items() if value) or "–",
        ]
        for layer in report.layers
    ]
    return Table(["layer", "rows × columns", "block", "weights", "zeros", "sparsity", "predicted loss increase", "notes"], rows)

"""The report as one HTML page: its style, its script and its data are inside, so that it opens offline and loads nothing."""

from __future__ import annotations

import json
from collections import Counter
from html import escape
from typing import TYPE_CHECKING, Any

from orchestrator.quantities import NOT_MEASURED, count, duration, number, percent, size
from orchestrator.report_bottlenecks import sweep
from orchestrator.report_figures import Figure, accuracy, loss_increase, seconds, timeline, training
from orchestrator.report_groups import group_section, kept_units
from orchestrator.report_html import bullets, pairs, place, section, table
from orchestrator.report_int8 import int8_row
from orchestrator.report_layer_figures import loss_curves, sparsity
from orchestrator.report_metrics import ACCURACIES, METRICS, measured_metrics, metric_text, stage_name
from orchestrator.report_rounds import joined_curves, round_columns, round_rows, round_sizes, rounds
from orchestrator.report_size import masks_last
from orchestrator.report_style import SCRIPT, STYLE
from orchestrator.report_target import asked_pairs, pruned_tiles, reached_pairs, speed_tile

if TYPE_CHECKING:
    from orchestrator.report import LayerResult, Report


def page(report: Report, verdict: str, sentences: list[str], plotly_js: str) -> str:
    """The whole document."""
    drawn = figures(report)
    sections = (
        _head(report, verdict),
        _tiles(report),
        _result(report, drawn),
        _rounds(report, drawn),
        section("What to know", bullets(sentences)),
        section("Warnings", bullets(report.warnings)) if report.warnings else "",
        _target(report, drawn),
        group_section(report, drawn),
        _layers(report, drawn),
        _training(report, drawn),
        _work(report, drawn),
        _measured_how(report),
        section(
            "Configuration",
            f"<details><summary>The experiment as it ran</summary><pre>{escape(_outline(report.experiment))}</pre></details>",
        ),
    )
    # "<" is the one character that could end a script element early.
    data = json.dumps(drawn, allow_nan=False).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(report.name)} – secateur</title>\n<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n</head>\n'
        f"<body><main>\n{''.join(sections)}</main>\n"
        f'<script type="application/json" id="figures">{data}</script>\n'
        f"<script>{plotly_js}</script>\n<script>{SCRIPT}</script>\n</body></html>\n"
    )


def figures(report: Report) -> dict[str, Figure]:
    """Every figure that the report has data for, by the name of its place on the page. Numbers that JSON lacks become gaps."""
    drawn = {
        "accuracy": accuracy(report),
        "rounds": rounds(report),
        "loss_increase": loss_increase(report),
        "kept_units": kept_units(report),
        "sweep": sweep(report),
        "sparsity": sparsity(report),
        "loss_curves": loss_curves(report),
        "timeline": timeline(report),
        "seconds": seconds(report),
    }
    drawn |= {f"training_{index}": training(lines) for index, lines in enumerate(joined_curves(report).values())}
    found: dict[str, Figure] = json.loads(json.dumps(drawn), parse_constant=lambda _: None)
    return {name: figure for name, figure in found.items() if figure is not None}


def _head(report: Report, verdict: str) -> str:
    return f'<header><p class="brand">secateur · pruning report · {escape(report.name)}</p><h1>{escape(verdict)}</h1></header>\n'


def _tiles(report: Report) -> str:
    """A few numbers to take away."""
    tiles = pruned_tiles(report)
    key, last = report.headline_metric, report.stages[-1] if report.stages else None
    if key is not None and last is not None:
        dense = report.metric("dense", key)
        beside = f"{percent(dense)} dense" if dense is not None and key != "agreement" else stage_name(report, last.name)
        tiles.append((percent(last.metrics.get(key)), f"{ACCURACIES[key]}, {stage_name(report, last.name)}", beside))
    tiles += speed_tile(report)
    if report.sizes is not None:
        tiles.append((size(report.sizes.file_bytes), "exported file", f"{size(report.sizes.dense_bytes)} dense"))
    total = sum(report.stage_seconds.values())
    workers = len({task.worker for task in report.timeline if task.computed})
    tiles.append((duration(total), "in all stages", count(workers, "worker") if workers else "everything read from the store"))
    cells = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span><small>{escape(beside)}</small></div>'
        for value, what, beside in tiles
    )
    return f'<div class="tiles{" six" if len(tiles) == 6 else ""}">{cells}</div>\n'


def _result(report: Report, drawn: dict[str, Any]) -> str:
    keys = measured_metrics(report)

    def cell(key: str, stage_name: str) -> str:
        value = report.metric(stage_name, key)
        return "–" if value is None and key == "agreement" and stage_name == "dense" else metric_text(key, value)

    rows = [[stage_name(report, stage.name), *(cell(key, stage.name) for key in keys), duration(stage.seconds)] for stage in report.stages]
    rows += int8_row(report, keys)
    numbers = table(["model", *(METRICS[key] for key in keys), "evaluated in"], rows)
    samples = next((stage.metrics["test_samples"] for stage in report.stages if stage.metrics.get("test_samples")), None)
    note = f"Measured on {samples:,.0f} test images." if samples else ""
    return section(
        "Result", numbers + place(drawn, "accuracy", f"Accuracy of the dense, {stage_name(report, 'one_shot')} and recovered model"), note
    )


def _rounds(report: Report, drawn: dict[str, Any]) -> str:
    if not report.rounds:
        return ""
    what = "What was pruned by then" if report.took_units else "Sparsity"
    note = f"{what}, accuracy before and after the training of the round, and the rise of the calibration loss over its pruning."
    head, cells = round_sizes(report)
    rows = [[*row, *more] for row, more in zip(round_rows(report), cells, strict=True)]
    picture = place(drawn, "rounds", "Accuracy and sparsity over the rounds")
    return section("Rounds", table(round_columns(report) + head, rows) + picture, note)


def _target(report: Report, drawn: dict[str, Any]) -> str:
    reached = reached_pairs(report)
    if report.sizes is not None:
        reached.append(("exported file", f"{size(report.sizes.file_bytes)} instead of {size(report.sizes.dense_bytes)}"))
    loss = report.loss_increase
    both = ((loss.predicted, "predicted"), (loss.measured, "measured"))
    when = ", last round" if report.rounds else ""
    rise = ", ".join("not " + how if value is None else f"{number(value)} {how}" for value, how in both)
    reached.append((f"loss increase{when}", f"{rise} ({loss.unit})" if loss.unit else rise))
    columns = f'<div class="columns"><div><h3>Asked</h3>{pairs(asked_pairs(report))}</div><div><h3>Reached</h3>{pairs(reached)}</div></div>'
    picture = place(drawn, "loss_increase", "Predicted and measured increase of the loss")
    body = columns + (f"<h3>Loss increase, predicted and true</h3>{picture}" if picture else "")
    return section("Asked and reached", body)


def _layers(report: Report, drawn: dict[str, Any]) -> str:
    if not report.layers:
        return ""
    bars = place(drawn, "sparsity", "Sparsity of every layer")
    curves = place(drawn, "loss_curves", "Predicted loss increase of every layer against its sparsity")
    head = ["layer", "rows × columns", "block", "weights", "pruned", "sparsity", "predicted loss increase", "notes"]
    numbers = table(head, (_layer_row(layer) for layer in report.layers))
    explained = (
        "Each line is one layer pruned alone, more and more; the mark is where it ended. A layer with a low line gives more weights."
    )
    if report.rounds or report.asked.get("steps", 1) > 1:
        explained += " Lines begin where the last step found the layers."
    note = f"Weights pruned in each layer; the dotted line is the whole: {percent(report.sparsity)}."
    if report.took_units:
        note += f" Layers are those of the model {'without the units that were' if masks_last(report) else 'before units were'} taken out."
    return section(
        f"Layers ({len(report.layers)})",
        f"{bars}"
        + (f'<h3>Loss against sparsity</h3><p class="note">{explained}</p>{curves}' if curves else "")
        + f"<details><summary>All layers in numbers</summary>{numbers}</details>",
        note,
    )


def _layer_row(layer: LayerResult) -> list[str]:
    notes = ", ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in layer.notes.items() if value)
    return [
        layer.name,
        f"{layer.rows:,} × {layer.columns:,}",
        str(layer.block_size),
        f"{layer.weights:,}",
        f"{layer.pruned:,}",
        percent(layer.sparsity, 2),
        number(layer.predicted_loss_increase),
        notes or "–",
    ]


def _training(report: Report, drawn: dict[str, Any]) -> str:
    parts = []
    for index, (name, lines) in enumerate(joined_curves(report).items()):
        picture = place(drawn, f"training_{index}", f"Loss and learning rate of {name}")
        if picture:
            last = lines[-1]
            said = f"{last.get('step', len(lines))} steps, last loss {number(last.get('loss'))}"
            parts.append(f'<div><h3>{escape(name.replace("_", " ").capitalize())}</h3><p class="note">{escape(said)}</p>{picture}</div>')
    return section("Training", f'<div class="columns">{"".join(parts)}</div>') if parts else ""


def _work(report: Report, drawn: dict[str, Any]) -> str:
    if not report.timeline and not report.stage_seconds:
        return ""
    computed = [task for task in report.timeline if task.computed]
    read = Counter(task.verb for task in report.timeline if not task.computed)
    workers = len({task.worker for task in computed})
    note = f"{count(len(computed), 'task')} on {count(workers, 'worker')}." if computed else "Nothing was computed in this run."
    stored = (
        f"Read from the store, computed by an earlier run and not drawn: {', '.join(f'{many} × {verb}' for verb, many in read.items())}."
        if read
        else ""
    )
    stages = [
        [
            stage,
            duration(report.predicted_stage_seconds[stage]) if stage in report.predicted_stage_seconds else "not predicted",
            duration(measured),
        ]
        for stage, measured in report.stage_seconds.items()
    ]
    body = place(drawn, "timeline", "Tasks of every worker over time")
    body += f'<p class="note">{escape(stored)}</p>' if stored else ""
    if stages:
        title = "Seconds of each stage, predicted and measured"
        body += f"<h3>{title}</h3>{place(drawn, 'seconds', title)}"
        body += f"<details><summary>In numbers</summary>{table(['stage', 'predicted', 'measured'], stages)}</details>"
    return section("Work", body, note)


def _measured_how(report: Report) -> str:
    accuracy = (
        "Accuracies are fractions of the test images; agreement is the fraction on which a model gives the dense model's answer. "
        "k-NN accuracy labels a test image by its nearest training images in feature space. "
        "The predicted loss increase is the pruner's quadratic model, summed over all removed weights; the true one is the loss on the "
        "calibration data after pruning, less the loss before. Seconds are wall time. "
        "Images per second are those of the model alone on one worker of the run; loading is not included."
    )
    if report.took_units:
        accuracy += " Multiply-adds (MACs) are those of a forward pass of one sample, as torch counts them: half of its FLOPs."
    facts = [("command", report.command), ("fingerprint", report.fingerprint)]
    facts += [(str(name), _flat(value)) for name, value in report.environment.items()]
    facts += [(f"file: {name}", _flat(value)) for name, value in report.files.items()]
    return section("How this was measured", f"<p>{escape(accuracy)}</p>{pairs(facts)}")


def _flat(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_flat(item)}" for name, item in value.items())
    return NOT_MEASURED if value is None else str(value)


def _outline(value: Any, indent: int = 0) -> str:
    """Nested dictionaries in the look of the yaml files they came from."""
    if not isinstance(value, dict):
        return str(value)
    lines = []
    for key, item in value.items():
        deeper = isinstance(item, dict) and item
        lines.append(f"{'  ' * indent}{key}:" + (f"\n{_outline(item, indent + 1)}" if deeper else f" {'null' if item is None else item}"))
    return "\n".join(lines)

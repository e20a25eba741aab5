"""The report as one HTML page: its style, its script and its data are inside, so that it opens offline and loads nothing."""

from __future__ import annotations

import json
from collections import Counter
from html import escape
from typing import TYPE_CHECKING, Any

from orchestrator.report_figures import Figure, accuracy, loss_increase, seconds, timeline, training
from orchestrator.report_layer_figures import loss_curves, sparsity
from orchestrator.report_metrics import ACCURACIES, METRICS, measured_metrics, metric_text, stage_name
from orchestrator.report_rounds import joined_curves, round_columns, round_rows, rounds
from orchestrator.report_style import SCRIPT, STYLE
from orchestrator.units import NOT_MEASURED, count, duration, number, percent, size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.report import LayerResult, Report


def page(report: Report, verdict: str, sentences: list[str], plotly_js: str) -> str:
    """The whole document."""
    drawn = figures(report)
    sections = (
        _head(report, verdict),
        _tiles(report),
        _result(report, drawn),
        _rounds(report, drawn),
        _section("What to know", _bullets(sentences)),
        _section("Warnings", _bullets(report.warnings)) if report.warnings else "",
        _target(report, drawn),
        _layers(report, drawn),
        _training(report, drawn),
        _work(report, drawn),
        _measured_how(report),
        _section(
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
        "sparsity": sparsity(report),
        "loss_curves": loss_curves(report),
        "timeline": timeline(report),
        "seconds": seconds(report),
    }
    drawn |= {f"training_{index}": training(lines) for index, lines in enumerate(joined_curves(report).values())}
    found: dict[str, Figure] = json.loads(json.dumps(drawn), parse_constant=lambda _: None)
    return {name: figure for name, figure in found.items() if figure is not None}


def _section(title: str, body: str, note: str = "") -> str:
    remark = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{remark}{body}</section>\n"


def _figure(drawn: dict[str, Any], name: str, label: str) -> str:
    """Room for a figure of known height, so that the page does not jump when it is drawn."""
    if name not in drawn:
        return ""
    height = drawn[name]["layout"]["height"]
    return f'<div class="figure" id="figure-{name}" role="img" aria-label="{escape(label)}" style="min-height:{height}px"></div>'


def _bullets(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A table whose first column names the row; every cell is escaped here."""
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    lines = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'


def _pairs(items: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>' for name, value in items)}</dl>"


def _head(report: Report, verdict: str) -> str:
    return f'<header><p class="brand">secateur · pruning report · {escape(report.name)}</p><h1>{escape(verdict)}</h1></header>\n'


def _tiles(report: Report) -> str:
    """Four numbers to take away."""
    tiles = [(percent(report.sparsity), "of the prunable weights removed", f"{percent(report.asked.get('sparsity'))} asked")]
    key, last = report.headline_metric, report.stages[-1] if report.stages else None
    if key is not None and last is not None:
        dense = report.metric("dense", key)
        beside = f"{percent(dense)} dense" if dense is not None and key != "agreement" else stage_name(report, last.name)
        tiles.append((percent(last.metrics.get(key)), f"{ACCURACIES[key]}, {stage_name(report, last.name)}", beside))
    if report.sizes is not None:
        tiles.append((size(report.sizes.file_bytes), "exported file", f"{size(report.sizes.dense_bytes)} dense"))
    total = sum(report.stage_seconds.values())
    workers = len({task.worker for task in report.timeline if task.computed})
    tiles.append((duration(total), "in all stages", count(workers, "worker") if workers else "everything read from the store"))
    cells = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span><small>{escape(beside)}</small></div>'
        for value, what, beside in tiles
    )
    return f'<div class="tiles">{cells}</div>\n'


def _result(report: Report, drawn: dict[str, Any]) -> str:
    keys = measured_metrics(report)

    def cell(key: str, stage_name: str) -> str:
        value = report.metric(stage_name, key)
        return "–" if value is None and key == "agreement" and stage_name == "dense" else metric_text(key, value)

    rows = [[stage_name(report, stage.name), *(cell(key, stage.name) for key in keys), duration(stage.seconds)] for stage in report.stages]
    table = _table(["model", *(METRICS[key] for key in keys), "evaluated in"], rows)
    samples = next((stage.metrics["test_samples"] for stage in report.stages if stage.metrics.get("test_samples")), None)
    note = f"Measured on {samples:,.0f} test images." if samples else ""
    return _section(
        "Result", table + _figure(drawn, "accuracy", f"Accuracy of the dense, {stage_name(report, 'one_shot')} and recovered model"), note
    )


def _rounds(report: Report, drawn: dict[str, Any]) -> str:
    if not report.rounds:
        return ""
    note = "Sparsity, accuracy before and after the training of the round, and the rise of the calibration loss over its pruning."
    picture = _figure(drawn, "rounds", "Accuracy and sparsity over the rounds")
    return _section("Rounds", _table(round_columns(report), round_rows(report)) + picture, note)


def _target(report: Report, drawn: dict[str, Any]) -> str:
    asked = [(str(name), percent(value, 2) if name == "sparsity" else str(value)) for name, value in report.asked.items()]
    reached = [
        ("sparsity", f"{percent(report.sparsity, 2)} of the prunable weights"),
        ("zeros", f"{report.pruned_weights:,} of {report.prunable_weights:,} prunable weights"),
        ("of the whole model", f"{percent(report.pruned_weights / report.model_weights, 2)} of {report.model_weights:,} parameters"),
    ]
    if report.sizes is not None:
        reached.append(("exported file", f"{size(report.sizes.file_bytes)} instead of {size(report.sizes.dense_bytes)}"))
    loss = report.loss_increase
    when = ", last round" if report.rounds else ""
    reached.append((f"loss increase{when}", f"{number(loss.predicted)} predicted, {number(loss.measured)} true ({loss.unit})"))
    columns = f'<div class="columns"><div><h3>Asked</h3>{_pairs(asked)}</div><div><h3>Reached</h3>{_pairs(reached)}</div></div>'
    picture = _figure(drawn, "loss_increase", "Predicted and measured increase of the loss")
    body = columns + (f"<h3>Loss increase, predicted and true</h3>{picture}" if picture else "")
    return _section("Asked and reached", body)


def _layers(report: Report, drawn: dict[str, Any]) -> str:
    if not report.layers:
        return ""
    bars = _figure(drawn, "sparsity", "Sparsity of every layer")
    curves = _figure(drawn, "loss_curves", "Predicted loss increase of every layer against its sparsity")
    head = ["layer", "rows × columns", "block", "weights", "pruned", "sparsity", "predicted loss increase", "notes"]
    table = _table(head, (_layer_row(layer) for layer in report.layers))
    explained = (
        "Each line is one layer pruned alone, more and more; the mark is where it ended. A layer with a low line gives more weights."
    )
    if report.rounds or report.asked.get("steps", 1) > 1:
        explained += " Lines begin where the last step found the layers."
    return _section(
        f"Layers ({len(report.layers)})",
        f"{bars}"
        + (f'<h3>Loss against sparsity</h3><p class="note">{explained}</p>{curves}' if curves else "")
        + f"<details><summary>All layers in numbers</summary>{table}</details>",
        f"Weights pruned in each layer; the dotted line is the whole: {percent(report.sparsity)}.",
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
        picture = _figure(drawn, f"training_{index}", f"Loss and learning rate of {name}")
        if picture:
            last = lines[-1]
            said = f"{last.get('step', len(lines))} steps, last loss {number(last.get('loss'))}"
            parts.append(f'<div><h3>{escape(name.replace("_", " ").capitalize())}</h3><p class="note">{escape(said)}</p>{picture}</div>')
    return _section("Training", f'<div class="columns">{"".join(parts)}</div>') if parts else ""


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
    body = _figure(drawn, "timeline", "Tasks of every worker over time")
    body += f'<p class="note">{escape(stored)}</p>' if stored else ""
    if stages:
        title = "Seconds of each stage, predicted and measured"
        body += f"<h3>{title}</h3>{_figure(drawn, 'seconds', title)}"
        body += f"<details><summary>In numbers</summary>{_table(['stage', 'predicted', 'measured'], stages)}</details>"
    return _section("Work", body, note)


def _measured_how(report: Report) -> str:
    accuracy = (
        "Accuracies are fractions of the test images; agreement is the fraction on which a model gives the dense model's answer. "
        "k-NN accuracy labels a test image by its nearest training images in feature space. "
        "The predicted loss increase is the pruner's quadratic model, summed over all removed weights; the true one is the loss on the "
        "calibration data after pruning, less the loss before. Seconds are wall time. "
        "Images per second are those of the model alone on one worker of the run; loading is not included."
    )
    facts = [("command", report.command), ("fingerprint", report.fingerprint)]
    facts += [(str(name), _flat(value)) for name, value in report.environment.items()]
    facts += [(f"file: {name}", _flat(value)) for name, value in report.files.items()]
    return _section("How this was measured", f"<p>{escape(accuracy)}</p>{_pairs(facts)}")


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

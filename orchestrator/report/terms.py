"""What the report calls metrics, models and units."""

from __future__ import annotations

from orchestrator.quantities import count, percent
from orchestrator.report.parts import SPARSE
from orchestrator.report.result import Report

METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    "knn": "k-NN",
    "map": "mAP",
    "map50": "mAP at 0.5",
    "agreement": "agreement",
    "loss": "loss",
    "images_per_second": "images/s",
    "sparse_images_per_second": "images/s, sparse",
    "loaded_images_per_second": "images/s with loading",
}
SPEEDS = ("images_per_second", "sparse_images_per_second", "loaded_images_per_second")
FRACTIONS = ("top1", "top5", "knn", "map", "map50", "agreement")
ACCURACY_NAMES = {"top1": "top-1 accuracy", "knn": "k-NN accuracy", "map": "mAP", "agreement": "agreement with the dense model"}
UNITS = {"channel": "channel", "neuron": "neuron", "head": "head", "stream": "stream channel"}
RUNTIMES = {"eager": "torch", "compile": "torch.compile", "onnxruntime": "onnxruntime", SPARSE: "the sparse runtime"}
VERB_NAMES = {
    "collect_units": "collect",
    "collect_pairs": "collect",
    "time_operation": "time",
    "time_model": "time",
    "compare_time": "time",
    "time_layers": "time",
    "time_sparse": "time",
    "fit": "allocate",
}


def verb_name(verb: str) -> str:
    """What the work of a verb is called; verbs that do the same to different things share a name."""
    return VERB_NAMES.get(verb, verb)


def model_name(report: Report, stage: str) -> str:
    """What the model of a stage is called: one that was pruned in rounds is not one-shot."""
    return {"dense": "dense", "one_shot": "pruned" if report.rounds else "one-shot", "recovered": "recovered"}[stage]


def metric_text(key: str, value: float | None) -> str:
    """A metric in a table; a dash if it was not measured."""
    if value is None:
        return "–"
    return percent(value) if key in FRACTIONS else f"{value:,.0f}" if key in SPEEDS else f"{value:.4g}"


def measured_metrics(report: Report) -> list[str]:
    """Keys of the metrics that at least one stage has, in the order of the tables."""
    return [key for key in METRICS if key in report.measured]


def timed_with(runtime: str, batch_size: int, threads: int, device: str) -> str:
    """What a time was measured with."""
    on = f"{count(threads, 'thread')} of {device}" if threads else device
    return f"{RUNTIMES[runtime]}, {count(batch_size, 'image')} at a time, {on}"

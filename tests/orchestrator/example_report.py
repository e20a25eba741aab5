"""A report of a small run, for tests: 2 of 8 layers damped, one stored result, 360 test images."""

import math
from dataclasses import replace
from typing import Any

from orchestrator.report import FileSizes, LayerResult, LossIncrease, Report, StageResult, TaskRun, sentences

KINDS = {"attn.qkv": (96, 32), "attn.proj": (32, 32), "mlp.fc1": (128, 32), "mlp.fc2": (32, 128)}


def layer(block: int, kind: str, sparsity: float = 0.75) -> LayerResult:
    rows, columns = KINDS[kind]
    curve = [(step / 10, 0.01 * math.expm1(4 * step / 10)) for step in range(11)]
    pruned = round(sparsity * rows * columns)
    return LayerResult(f"blocks.{block}.{kind}", rows, columns, 32, rows * columns, pruned, 0.01 * math.expm1(4 * sparsity), curve)


def metrics(top1: float, **others: float | None) -> dict[str, float | None]:
    return {"top1": top1, "top5": 0.99, "agreement": 0.95, "loss": 0.2, "images_per_second": 900.0, "test_samples": 360} | others


def example(blocks: int = 2, **changes: Any) -> Report:
    layers = [layer(block, kind) for block in range(blocks) for kind in KINDS]
    prunable = sum(found.weights for found in layers)
    progress = [{"epoch": 0, "step": step, "steps": 40, "loss": 1 / step, "lr": 1e-3, "images_per_second": 800.0} for step in range(1, 41)]
    report = Report(
        name="digits",
        fingerprint="0123456789abcdef",
        command="python -m orchestrator pruner.target.sparsity=0.75",
        experiment={"pruner": {"block_size": 32, "target": {"sparsity": 0.75}}, "recovery": None},
        asked={"sparsity": 0.75, "scope": "global"},
        stages=[
            StageResult("dense", metrics(0.97, agreement=1.0), 1.0),
            StageResult("one_shot", metrics(0.90), 1.1),
            StageResult("recovered", metrics(0.965), 1.2),
        ],
        layers=layers,
        prunable_weights=prunable,
        pruned_weights=sum(found.pruned for found in layers),
        model_weights=prunable + 1000,
        loss_increase=LossIncrease(0.2, 0.3, "cross-entropy"),
        sizes=FileSizes(dense_bytes=4 * prunable, file_bytes=prunable + prunable // 8),
        timeline=[
            TaskRun("collect", "shard 0", "worker-0", 1000.0, 2.0, True),
            TaskRun("collect", "shard 1", "worker-1", 1000.5, 1.5, True),
            TaskRun("recover", "3 epochs", "worker-0", 1003.0, 9.0, True),
            TaskRun("evaluate", "dense", "worker-0", 10.0, 1.0, False),
        ],
        stage_seconds={"collect": 2.1, "recover": 9.2, "export": 0.1},
        predicted_stage_seconds={"collect": 1.5, "recover": 12.0},
        curves={"recovery": progress},
        environment={"python": "3.11", "device": "cpu (2 threads)", "commit": "abc"},
        files={"model": "model.safetensors"},
    )
    return replace(report, **changes)


def said(report, *words: str) -> str:
    """The only sentence with all these words."""
    (found,) = [sentence for sentence in sentences(report) if all(word in sentence for word in words)]
    return found


def stages(dense: dict, one_shot: dict, recovered: dict | None = None) -> list[StageResult]:
    named = {"dense": dense, "one_shot": one_shot} | ({"recovered": recovered} if recovered else {})
    return [StageResult(name, values, 1.0) for name, values in named.items()]


MISSING = {
    "everything": example(),
    "160 layers": example(blocks=40),
    "no recovery": example(stages=stages(metrics(0.9), metrics(0.8)), curves={}),
    "headless": example(
        stages=stages({"knn": 0.9, "agreement": 1.0, "loss": 0.0, "test_samples": 100}, {"knn": 0.8, "agreement": 0.7, "loss": 0.1})
    ),
    "no metrics": example(stages=stages({}, {})),
    "no stages": example(stages=[]),
    "no layers": example(layers=[], prunable_weights=0, pruned_weights=0),
    "no curves of layers": example(layers=[replace(layer(0, "mlp.fc1"), curve=[])]),
    "only zeros in a curve": example(layers=[replace(layer(0, "mlp.fc1"), curve=[(0.0, 0.0), (1.0, 0.0)], predicted_loss_increase=0.0)]),
    "no predictions": example(
        layers=[replace(layer(0, "mlp.fc1"), predicted_loss_increase=None)], loss_increase=LossIncrease(None, None, "")
    ),
    "no file": example(sizes=None),
    "no work": example(timeline=[], stage_seconds={}, predicted_stage_seconds={}),
    "all from the store": example(timeline=[replace(task, computed=False) for task in example().timeline]),
    "not finite": example(
        stages=stages(metrics(math.nan, loss=math.nan), metrics(0.1, loss=math.inf)),
        loss_increase=LossIncrease(math.inf, math.nan, "cross-entropy"),
        curves={"recovery": [{"step": 1, "loss": math.nan}, {"step": 2}, {"step": 3, "loss": "nan"}]},
    ),
    "nothing known": example(environment={}, files={}, asked={}, experiment={}, command="", curves={"recovery": []}),
}

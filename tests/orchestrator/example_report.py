"""Reports of small runs, for tests: one that masks weights, one that removes units, one that does both in rounds; 360 test images.

The model has 2 blocks of width 32, with 4 heads and 128 hidden neurons each: 25,576 parameters, 24,576 of them in prunable layers.
"""

import math
import re
from dataclasses import replace
from typing import Any

from orchestrator.report.parts import FileSizes, GroupResult, LayerResult, LossIncrease, ModelSize, RoundResult, StageResult, TaskRun
from orchestrator.report.result import Report
from orchestrator.report.words import sentences, verdict

KINDS = {"attn.qkv": (96, 32), "attn.proj": (32, 32), "mlp.fc1": (128, 32), "mlp.fc2": (32, 128)}


def layer(block: int, kind: str, sparsity: float = 0.75) -> LayerResult:
    return layer_of(f"blocks.{block}.{kind}", *KINDS[kind], sparsity)


def layer_of(name: str, rows: int, columns: int, sparsity: float) -> LayerResult:
    curve = [(step / 10, 0.01 * math.expm1(4 * step / 10)) for step in range(11)]
    pruned = round(sparsity * rows * columns)
    return LayerResult(name, rows, columns, 32, rows * columns, pruned, 0.01 * math.expm1(4 * sparsity), curve)


def metrics(top1: float, **others: float | None) -> dict[str, float | None]:
    return {"top1": top1, "top5": 0.99, "agreement": 0.95, "loss": 0.2, "images_per_second": 900.0, "test_samples": 360} | others


def example(blocks: int = 2, **changes: Any) -> Report:
    layers = [layer(block, kind) for block in range(blocks) for kind in KINDS]
    prunable = sum(shown.weights for shown in layers)
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
        pruned_weights=sum(shown.zeros for shown in layers),
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
        environment={"python": "3.11", "device": "cpu (2 threads)", "commit": "abc", "workers": 2},
        files={"model": "model.safetensors"},
        pruner="CAP",
    )
    return replace(report, **changes)


# Of a head: 24 rows of qkv with their biases, 8 columns of proj. Of a neuron: a row of fc1 with its bias, a column of fc2.
HEAD, NEURON = 24 * 33 + 8 * 32, 33 + 32
GROUPS = [
    GroupResult("blocks.0.attn", "head", units=4, kept=4, weights=HEAD, least=1),
    GroupResult("blocks.0.mlp", "neuron", units=128, kept=64, weights=NEURON, least=1),
    GroupResult("blocks.1.attn", "head", units=4, kept=2, weights=HEAD, least=1),
    GroupResult("blocks.1.mlp", "neuron", units=128, kept=32, weights=NEURON, least=1),
]
DENSE = ModelSize(25_576, 500_000)
SMALL = ModelSize(25_576 - 2 * HEAD - (64 + 96) * NEURON, 249_000)  # 13,080 parameters
REMOVED = {"macs": 0.502, "parameters": 1 - 13_080 / 25_576, "structures": 1 - 102 / 264}
LEFT = {"0.attn.qkv": (96, 32), "0.attn.proj": (32, 32), "0.mlp.fc1": (64, 32), "0.mlp.fc2": (32, 64)} | {
    "1.attn.qkv": (48, 32),
    "1.attn.proj": (32, 16),
    "1.mlp.fc1": (32, 32),
    "1.mlp.fc2": (32, 32),
}


def structured(**changes: Any) -> Report:
    """Half of the multiply-adds removed: 2 of 8 heads, 160 of 256 neurons."""
    without_layers = {"layers": [], "prunable_weights": 0, "pruned_weights": 0}
    sizes = {"groups": GROUPS, "dense_size": DENSE, "final_size": SMALL, "sizes": FileSizes(dense_bytes=102_304, file_bytes=52_320)}
    asked = {"asked": {"removed": 0.5, "of": "macs", "min_units": 1, "min_fraction": 0.0}}
    measured = {
        "stages": stages(metrics(0.97), metrics(0.90, images_per_second=1250.0), metrics(0.965, images_per_second=1260.0)),
        "loss_increase": LossIncrease(None, 0.3, "cross-entropy"),
        "pruner": "SOSP",
    }
    return example(**without_layers | sizes | asked | measured | changes)


def part(name: str, asked: float, pruned: float, recovered: float | None, **changes: Any) -> RoundResult:
    """A round that masks weights."""
    made = RoundResult(
        name=name,
        pruner="CAP",
        steps=1,
        epochs=0 if recovered is None else 4,
        asked=asked,
        sparsity=asked,
        after_pruning=StageResult("one_shot", metrics(pruned), 1.0),
        after_recovery=None if recovered is None else StageResult("recovered", metrics(recovered), 1.0),
        loss_increase=LossIncrease(0.1, 0.2, "cross-entropy"),
        seconds=75.0,
    )
    return replace(made, **changes)


def unit_part(name: str, asked: float, pruned: float, recovered: float | None, **changes: Any) -> RoundResult:
    """A round that removes units, to what ``GROUPS`` are left with."""
    removed = {"pruner": "SOSP", "sparsity": 0.0, "asked_of": "macs", "removed": REMOVED, "size": SMALL}
    return part(name, asked, pruned, recovered, **removed | changes)


def mixed(*rounds: RoundResult, **changes: Any) -> Report:
    """Half of the multiply-adds removed, then three of four of the remaining weights masked."""
    rounds = rounds or (unit_part("small", 0.5, 0.93, 0.96), part("sparse", 0.75, 0.90, 0.965, removed=REMOVED, size=SMALL))
    layers = [layer_of(f"blocks.{name}", *shape, 0.75) for name, shape in LEFT.items()]
    weights = {"layers": layers, "prunable_weights": 12_288, "pruned_weights": 9_216}
    ended = [stage for stage in (rounds[-1].after_pruning, rounds[-1].after_recovery) if stage is not None]
    last = [replace(stage, metrics=stage.metrics | {"images_per_second": 1260.0}) for stage in ended]
    asked = {"sparsity": 0.75, "scope": "global"} if rounds[-1].masks else structured().asked
    curves = {f"{done.name}/recovery": example().curves["recovery"] for done in rounds if done.after_recovery}
    told = {"rounds": list(rounds), "stages": [example().stages[0], *last], "asked": asked, "curves": curves}
    return structured(**weights | told | changes)


def said(report, *words: str) -> str:
    """The only sentence with all these words."""
    (sentence,) = [sentence for sentence in sentences(report) if all(word in sentence for word in words)]
    return sentence


def says(report, *words: str) -> bool:
    """Whether a sentence, or the verdict, has one of these words."""
    return any(word in sentence for word in words for sentence in [*sentences(report), verdict(report)])


def numbers(text: str) -> list[str]:
    """The numbers in a text, in their order: ``["1,250", "3.6"]``; those inside names (``top-1``, ``blocks.0``) do not count."""
    return re.findall(r"(?<![\w.-])-?\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?", text)


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
    "units": structured(),
    "units, 80 groups": structured(groups=[replace(group, name=f"{index}.{group.name}") for index in range(20) for group in GROUPS]),
    "units, one group": structured(groups=GROUPS[1:2]),
    "units, sizes not counted": structured(dense_size=None, final_size=None),
    "units, no speed": structured(stages=stages(metrics(0.9, images_per_second=None), metrics(0.8))),
    "units, speed not finite": structured(stages=stages(metrics(0.9, images_per_second=math.nan), metrics(0.8))),
    "units, no stages": structured(stages=[]),
    "units, no file": structured(sizes=None),
    "units, asked for nothing known": structured(asked={}),
    "units, nothing removed": structured(groups=[replace(group, kept=group.units) for group in GROUPS], final_size=DENSE),
    "units, a group removed": structured(groups=[replace(GROUPS[0], kept=0, least=0), *GROUPS[1:]]),
    "units in rounds": structured(rounds=[unit_part("a", 0.25, 0.9, 0.95, removed={}, size=None), unit_part("b", 0.5, 0.9, 0.95)]),
    "mixed": mixed(),
    "mixed, sizes not counted": mixed(dense_size=None, final_size=None),
    "mixed, masked first": mixed(part("sparse", 0.75, 0.93, 0.96), unit_part("small", 0.5, 0.90, None)),
    "mixed, no metrics": mixed(
        replace(unit_part("small", 0.5, 0.9, None), after_pruning=StageResult("one_shot", {}, 1.0)), stages=stages({}, {})
    ),
    "nothing known": example(environment={}, files={}, asked={}, experiment={}, command="", curves={"recovery": []}),
}

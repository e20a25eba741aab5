"""How far the sum of operations is from a whole model, and how well it predicts the model with half of all units.

    python scripts/bench_latency.py resnet50:224 mobilenetv2_100:224 vit_small_patch16_224:224 [--runtime onnxruntime] [--threads 1]

Models of timm, by name and size of the image, with random weights, one image at a time. For the half, the sum is scaled by what the dense
model takes over its own sum, as a run does it, or has the difference of the two added as a constant. Run it on an idle machine.
"""

from __future__ import annotations

import argparse

import torch

from orchestrator.cluster.base import processor
from workers.latency import Latency, Runtime
from workers.memory import keep_freed_memory
from workers.models.operations import Operation, find_operations
from workers.models.shrunk import shrunk
from workers.models.structures.find import find_groups
from workers.models.structures.groups import take
from workers.models.timm import TimmModel
from workers.timing import realised, time_model, time_operation

CPU = torch.device("cpu")


def total_ms(operations: list[Operation], units: dict[str, int], settings: Latency, known: dict[str, float]) -> float:
    """Of all operations with so many units left, each timed once."""
    total = 0.0
    for operation in operations:
        case = operation.at([sum(units[name] for name in axis.groups) for axis in operation.axes])
        if case.text not in known:
            known[case.text] = time_operation(case.module, case.inputs, settings, CPU).ms
        total += known[case.text]
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="NAME:PIXELS")
    parser.add_argument("--runtime", choices=[runtime.value for runtime in Runtime], default="eager")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    keep_freed_memory()
    settings = Latency(Runtime(options.runtime), 1, options.threads, 16, 0.01, 0.1)
    print(f"{options.runtime}, one image, {options.threads} thread(s) of {processor()}, torch {torch.__version__}\n")
    print("| model | whole ms | whole / sum | half ms | scaled / measured | with a constant / measured |\n|---|---|---|---|---|---|")
    for model in options.models:
        name, _, pixels = model.partition(":")
        family, shape = TimmModel(name=name, arguments={}, checkpoint=None, include=["*"], exclude=[]), (3, int(pixels), int(pixels))
        groups, image = find_groups(family, shape, streams=False), torch.randn(1, *shape)
        operations, known = find_operations(family, shape, 1, groups), {}
        whole = time_model(realised(family.build(), CPU), image, settings).ms
        summed = total_ms(operations, {group.name: group.units for group in groups}, settings, known)
        half = {group.name: max(1, group.units // 2) for group in groups}
        kept = {group.name: torch.arange(group.units) < half[group.name] for group in groups}
        with torch.device("meta"):
            state = family.build().state_dict()
        smaller = shrunk(family, state, take(state, groups, kept), groups, kept)
        measured, told = (
            time_model(realised(smaller.build(), CPU), image, settings).ms,
            total_ms(operations, half, settings, known),
        )
        scaled, constant = told * whole / summed / measured, (told + whole - summed) / measured
        print(f"| {model} | {whole:.2f} | {whole / summed:.2f} | {measured:.2f} | {scaled:.2f} | {constant:.2f} |", flush=True)


if __name__ == "__main__":
    main()

"""Compare the time of models with the sum of their operations, and with its prediction for half of all units.

    python scripts/bench_latency.py resnet50:224 mobilenetv2_100:224 vit_small_patch16_224:224 [--runtime onnxruntime] [--threads 1]

Models of timm are given by name and image size. Weights are random, and the batch is one image. The prediction for half of the units is the
sum of their operations, either scaled by the ratio of the dense model's time to its sum (as a run does) or with the difference of the two
added as a constant. Run it on an idle machine.
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


def total_ms(operations: list[Operation], units: dict[str, int], settings: Latency, timed: dict[str, float]) -> float:
    """Returns the time of all operations with ``units`` of each group; each size is timed once."""
    total = 0.0
    for operation in operations:
        case = operation.at([sum(units[name] for name in axis.groups) for axis in operation.axes])
        if case.text not in timed:
            timed[case.text] = time_operation(case.module, case.inputs, settings, CPU).ms
        total += timed[case.text]
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
        operations, timed = find_operations(family, shape, 1, groups), {}
        whole = time_model(realised(family.build(), CPU), image, settings).ms
        summed = total_ms(operations, {group.name: group.units for group in groups}, settings, timed)
        half = {group.name: max(1, group.units // 2) for group in groups}
        kept = {group.name: torch.arange(group.units) < half[group.name] for group in groups}
        with torch.device("meta"):
            state = family.build().state_dict()
        smaller = shrunk(family, state, take(state, groups, kept), groups, kept)
        measured = time_model(realised(smaller.build(), CPU), image, settings).ms
        half_sum = total_ms(operations, half, settings, timed)
        scaled, constant = half_sum * whole / summed / measured, (half_sum + whole - summed) / measured
        print(f"| {model} | {whole:.2f} | {whole / summed:.2f} | {measured:.2f} | {scaled:.2f} | {constant:.2f} |", flush=True)


if __name__ == "__main__":
    main()

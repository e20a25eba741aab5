"""Measure the rates of this machine for an experiment's own model, images and blocks, as ``cluster.hardware`` for its plan.

    python scripts/measure_hardware.py [+experiment=NAME] [overrides] [--write rates.yaml]

Prints yaml. Rates of collecting, scoring and solving are measured if the pruner has a block Fisher, so choose ``pruner=cap``; plans of
other pruners use the same rates. With ``--write my/rates/here.yaml``, ``--config-dir my +rates=here`` plans with these rates, and
``scripts/one_wave.py --load`` reads them. Takes a minute or two on an otherwise idle machine. Rates that one worker cannot measure (the
start of workers and gangs, the links between ranks, bfloat16) are copied from the experiment.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import torch
import yaml
from stand_ins import images, model_file

from kernels.scores import loss_curve
from kernels.second_moment import SecondMoment
from orchestrator.cluster.base import Hardware, processor
from orchestrator.composing import experiment_of
from orchestrator.config import Experiment
from orchestrator.launch import plan_experiment
from orchestrator.planning.costs import CostModel, PlannedLayer, cost_model
from orchestrator.planning.plan import Plan
from workers.collect import moments
from workers.collect.base import chunk_size
from workers.collect.block_fisher import GradientSum
from workers.files import finish
from workers.losses import calibration_loss, forward
from workers.models.base import Layer
from workers.records import Destination, PartialMoment
from workers.worker import Worker

SECONDS = 5.0  # per rate
SAMPLE_BYTES = 256 * 2**20  # of the statistics that kernels and disk are measured with
MEMORY_BYTES = 2**31


def usual_seconds(work: Callable[[], object], device: torch.device, fewest: int = 3) -> float:
    """Returns the median time of several repetitions, after one to warm up."""
    work()
    taken: list[float] = []
    while len(taken) < fewest or (sum(taken) < SECONDS and len(taken) < 50):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        taken.append(time.perf_counter() - start)
    return median(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_product(device: torch.device) -> float:
    """Returns the flops per second of a matrix product."""
    square = torch.randn(2048, 2048, device=device)
    return 2 * 2048**3 / usual_seconds(lambda: square @ square, device)


def network(experiment: Experiment, plan: Plan, worker: Worker, model: Path) -> float:
    """Returns the flops per second of passes through the model, back to the start of its first portion."""
    costs, named = cost_model(experiment, plan.profile, plan.resources), {planned.layer.name: planned for planned in plan.layers}
    layers = [named[name] for name in plan.portions[0]] if plan.portions else list(plan.layers)
    module = worker.kept.model(model).requires_grad_(False)
    weights = [module.get_parameter(f"{planned.layer.name}.weight").requires_grad_(True) for planned in layers]
    batch = next(iter(images(experiment)[0].calibration(0, experiment.data.shards)))

    def work() -> None:
        outputs = forward(experiment.loss, module, batch.images_NCHW.to(worker.device))
        torch.autograd.grad(calibration_loss(experiment.loss, module, outputs, batch.labels.to(worker.device), 0), weights)

    flops = len(batch.images_NCHW) * (plan.profile.forward_flops + costs.backward_flops(layers))
    return flops / usual_seconds(work, worker.device)


def sample(plan: Plan) -> PlannedLayer | None:
    """Returns a part of the largest layer: as many of its rows as fit into the sample, or None without a block Fisher."""
    planned = max(plan.layers, key=lambda planned: planned.statistic_bytes)
    if not planned.blocks or not planned.by_gradients or planned.shared:
        return None
    rows = max(1, min(planned.layer.rows, SAMPLE_BYTES * planned.layer.rows // planned.statistic_bytes))
    blocks = planned.blocks // planned.layer.rows * rows
    return replace(planned, layer=Layer("sample", rows, planned.layer.columns, planned.layer.kernel), blocks=blocks)


def collecting(planned: PlannedLayer, costs: CostModel, device: torch.device) -> float:
    """Returns the flops per second of sums of outer products of gradients."""
    total = GradientSum(planned.layer, planned.block_size, device)
    gradient_RC = torch.randn(planned.layer.rows, planned.layer.columns, device=device)
    gradients = chunk_size(planned.block_size)

    def work() -> None:
        for _ in range(gradients):
            total.add(gradient_RC)

    return replace(costs, gradients_per_shard=gradients).outer_flops(planned) / usual_seconds(work, device)


def problem(planned: PlannedLayer, device: torch.device) -> tuple[torch.Tensor, SecondMoment]:
    """Returns weights, and a well-conditioned second moment of as many gradients as a block has weights."""
    size, generator = planned.block_size, torch.Generator().manual_seed(0)
    vectors_nKB = torch.randn(planned.blocks, size, size, generator=generator)
    sum_nBB = (vectors_nKB.mT @ vectors_nKB).to(device)
    return torch.randn(planned.layer.rows, planned.layer.columns, generator=generator).to(device), SecondMoment(sum_nBB, size)


def pruning(experiment: Experiment, planned: PlannedLayer, device: torch.device) -> tuple[float, float]:
    """Returns the flops per second of scoring, including sorting and the loss curve, and of solving for half of the weights."""
    weight_RC, moment = problem(planned, device)
    keep_RC = torch.rand(weight_RC.shape, generator=torch.Generator().manual_seed(1)).to(device) < 0.5
    pruner = experiment.pruner

    def score() -> None:
        loss_curve(pruner.score(weight_RC, planned.layer, moment).loss_nG, planned.layer.weights)

    flops = pruner.flops(planned.layer)
    solving = usual_seconds(lambda: pruner.solve(weight_RC, planned.layer, moment, keep_RC), device)
    return flops[0] / usual_seconds(score, device), flops[1] / solving


def memory() -> float:
    """Returns the bytes per second of touching memory that is new to the process but not to the machine."""

    def work() -> None:
        torch.ones(MEMORY_BYTES // 4)

    return MEMORY_BYTES / usual_seconds(work, torch.device("cpu"))


def disk(planned: PlannedLayer, memory_rate: float, folder: Path) -> tuple[float, float]:
    """Returns the bytes per second of writing and of reading statistics, without touching memory, which the plan counts apart."""
    device, to = torch.device("cpu"), Destination("disk", folder / "disk")
    _, moment = problem(planned, device)
    moments.write_moment(to, SecondMoment(torch.ones(2, 2, 2), 1))  # compiles kernels on first use
    begun = time.perf_counter()
    written = moments.write_moment(to, moment)
    record = finish(to, PartialMoment("", 0, moment.count, 0), begun, written)
    writing = time.perf_counter() - begun
    stored = moments.stored([record], device)
    assert stored is not None
    begun = time.perf_counter()
    stored.mean_nBB()
    reading = time.perf_counter() - begun - planned.statistic_bytes / memory_rate
    return planned.stored_bytes / writing, planned.stored_bytes / max(reading, 1e-3)


def measure(experiment: Experiment, plan: Plan, folder: Path) -> Hardware:
    """Returns the experiment's hardware with the measured rates."""
    here, hardware = plan.resources, experiment.cluster.hardware
    worker = Worker(here.device, here.threads)
    costs, planned = cost_model(experiment, plan.profile, here), sample(plan)
    threads, device = costs.threads, worker.device
    rate = matrix_product(device)
    rates = replace(hardware, name=_named(worker), matmul_gflops=_round(rate / threads / 1e9))
    rates = replace(rates, model_efficiency=_round(network(experiment, plan, worker, model_file(experiment, worker, folder)) / rate))
    if here.device == "cpu":
        rates = replace(rates, memory_gbs=_round(memory() / 1e9))
    if planned is not None:
        writing, reading = disk(planned, 1e9 * rates.memory_gbs, folder)
        scoring, solving = pruning(experiment, planned, device)
        rates = replace(
            rates,
            collect_efficiency=_round(collecting(planned, costs, device) / rate),
            score_efficiency=_round(scoring / rate) or hardware.score_efficiency,  # 0: a method that computes nothing
            solve_efficiency=_round(solving / rate) or hardware.solve_efficiency,
            disk_gbs=_round(writing / 1e9),
            read_gbs=_round(reading / 1e9),
        )
    return rates


def _named(worker: Worker) -> str:
    machine = worker.describe()
    return processor() if machine.device == "cpu" else f"{machine.device} beside {platform.machine()}"


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    experiment = experiment_of(options.overrides)
    plan = plan_experiment(experiment)
    Path(experiment.output).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=experiment.output) as folder:
        rates = measure(experiment, plan, Path(folder))
    text = "# @package _global_\n" + yaml.safe_dump({"cluster": {"hardware": asdict(rates)}}, sort_keys=False)
    print(text, end="")
    if options.write is not None:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

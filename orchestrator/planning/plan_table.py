"""Prints a plan."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table

from orchestrator.planning.costs import PlannedLayer
from orchestrator.planning.estimate import Estimate
from orchestrator.planning.plan import Plan, on_unfit
from orchestrator.quantities import count, duration, size
from orchestrator.stages import kind


def plan_table(plan: Plan) -> RenderableType:
    """Returns what to print: layers, stages, the grid, memory, and the rates that the predictions assume."""
    return Group(*([_layers(plan)] if plan.layers else []), _stages(plan), *_sentences(plan))


def _layers(plan: Plan) -> Table:
    table = Table(title="Prunable layers (equal ones in one row)", title_justify="left")
    for column in ("first", "layers", "rows x columns", "block", "weights", "statistic"):
        table.add_column(column, justify="left" if column == "first" else "right")
    kinds: dict[tuple, list[PlannedLayer]] = {}
    for planned in plan.layers:
        kinds.setdefault((planned.layer.name.rpartition(".")[2], planned.layer.rows, planned.layer.columns, planned.block_size), []).append(
            planned
        )
    for (_, rows, columns, block), group in kinds.items():
        weights, statistic = sum(p.layer.weights for p in group), sum(p.statistic_bytes for p in group)
        table.add_row(group[0].layer.name, str(len(group)), f"{rows} x {columns}", str(block or "-"), f"{weights:,}", size(statistic))
    return table


def _stages(plan: Plan) -> Table:
    """Returns a row for each kind of stage, summed over all rounds and steps."""
    table = Table(title="Stages (predicted)", title_justify="left")
    for column in ("stage", "times", "tasks", "wall time", "device-hours"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    kinds: dict[str, list[Estimate]] = {}
    for name, stage in plan.stages.items():
        kinds.setdefault(kind(name), []).append(stage)
    for name, stages in kinds.items():
        hours = sum(stage.device_seconds for stage in stages) / 3600
        wall = duration(sum(stage.seconds for stage in stages))
        table.add_row(name, str(len(stages)), str(sum(stage.tasks for stage in stages)), wall, f"{hours:,.3f}")
    table.add_row("all", "", "", duration(plan.seconds), f"{plan.device_hours:,.3f}", style="bold")
    return table


def _sentences(plan: Plan) -> list[str]:
    rates, resources, gpu = plan.hardware, plan.resources, plan.resources.device == "cuda"
    kind = "GPU" if gpu else "CPU worker"
    portions = [len(portion) for portion in plan.portions]
    cut = f" ({'+'.join(map(str, portions))} layers)" if len(portions) > 1 else ""
    grid = f"{len(portions)} x {plan.shards}{cut}" if portions else "none (this pruner reads no data)"
    cells = f"Grid of layer portions x shards: {grid}; {count(plan.waves, 'wave')} on {count(resources.workers, kind)}."
    return [
        f"{plan.profile.prunable_weights:,} of {plan.profile.parameters:,} weights are prunable, in {len(plan.profile.layers)} layers; a "
        f"forward pass takes {plan.profile.forward_flops / 1e9:,.3g} GFLOP per sample.",
        *([f"{on_unfit(plan.unfit, plan.profile)}."] if plan.unfit else []),
        *([cells] if plan.layers else []),
        *_on_units(plan),
        f"A worker needs up to {size(plan.worker_bytes)} of its {size(resources.memory_bytes)} of memory; "
        f"the store grows by up to {size(plan.store_bytes)}.",
        f"Assumed rates per {'GPU' if gpu else 'thread'} ({rates.name}): {rates.matmul_gflops:,.0f} GFLOP/s for float32 matrix products, "
        f"of which the model reaches {rates.model_efficiency:.0%}, collecting {rates.collect_efficiency:.0%}, "
        f"scoring {rates.score_efficiency:.1%} and solving {rates.solve_efficiency:.1%}; "
        f"the disk writes {rates.disk_gbs:g} GB/s and reads {rates.read_gbs:g} GB/s.",
        f"The run takes about {duration(plan.seconds)}, {plan.device_hours:,.2f} {'GPU' if gpu else 'worker'}-hours.",
    ]


def _on_units(plan: Plan) -> list[str]:
    if plan.after is None:
        return []
    return [
        *(f"Out of reach: {sentence}." for sentence in plan.out_of_reach),
        f"The plan removes units in a random order, the run by the data. In the plan {plan.after.parameters:,} weights and "
        f"{plan.after.forward_flops / 1e9:,.3g} GFLOP per sample remain.",
    ]

"""Cuts the layers into portions that are collected together, and schedules tasks on workers."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf

from orchestrator.planning.costs import CostModel, PlannedLayer
from orchestrator.planning.footprint import Footprint
from workers.errors import ConfigError

WAVES = 3  # numbers of waves that are tried, from the fewest on


@dataclass(frozen=True)
class Span:
    """A task on the timeline."""

    task: int
    worker: int
    start: float
    end: float


def schedule(seconds: Sequence[float], workers: int) -> list[Span]:
    """Schedules independent tasks as ``Run.map`` does: the longest first, each on the first worker that is free."""
    free_at = [(0.0, worker) for worker in range(workers)]
    spans = []
    for task in sorted(range(len(seconds)), key=lambda task: -seconds[task]):
        start, worker = heapq.heappop(free_at)
        spans.append(Span(task, worker, start, start + seconds[task]))
        heapq.heappush(free_at, (spans[-1].end, worker))
    return spans


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Returns the wall time of ``schedule`` in seconds."""
    return max((span.end for span in schedule(seconds, workers)), default=0.0)


def portions(
    layers: Sequence[PlannedLayer], costs: CostModel, footprint: Footprint, memory_bytes: int, workers: int, shards: int
) -> list[list[PlannedLayer]]:
    """Cuts layers (in the order of the forward pass) into portions that fit a worker's memory and take the least wall time on all workers.

    A backward pass ends at the earliest layer of a portion, so portions are runs of neighbours, and late portions are cheap. For a given
    number of portions, the longest takes as little time as possible (any part of a run that fits also fits, and takes no longer). The
    number is the fewest that fit, or as many as fill the waves that these take, or one or two waves more. Cuts do not change statistics.
    Raises: ConfigError, with a remedy, if a layer does not fit.
    """
    for planned in layers:
        needed = max(footprint.collect([planned]), footprint.score(planned), footprint.solve(planned))
        if needed > memory_bytes:
            raise ConfigError(
                f"{planned.layer.name}: this layer needs {needed / 1e9:.1f} GB ({footprint.held / 1e9:.1f} GB of it for the model and the "
                f"process), a worker has {memory_bytes / 1e9:.1f} GB; lower pruner.block_size or data.calibration_batch_size, or raise "
                "cluster.memory_gb"
            )

    @cache
    def seconds(start: int, stop: int) -> float:
        portion = layers[start:stop]
        return costs.collect(portion) if footprint.collect(portion) <= memory_bytes else inf

    fewest = len(runs(len(layers), seconds, inf))
    waves = -(-fewest * shards // workers)
    counts = {fewest} | {min(len(layers), (waves + more) * workers // shards) for more in range(WAVES)}
    cuts = [best_cut(len(layers), seconds, count) for count in sorted(counts) if count >= fewest]
    best = min(cuts, key=lambda cut: makespan([seconds(*run) for run in cut for _ in range(shards)], workers))
    return [list(layers[start:stop]) for start, stop in best]


def runs(length: int, cost: Callable[[int, int], float], limit: float) -> list[tuple[int, int]]:
    """Returns the fewest runs (start, stop) that cover ``length`` items, each at a finite cost of at most ``limit``.

    Each run is as long as possible. ``cost`` must not fall when a run grows at either end. A single item is a run at any cost.
    """
    spans, start = [], 0
    while start < length:
        low, high = start + 1, length
        while low < high:
            middle = (low + high + 1) // 2
            if cost(start, middle) <= limit and cost(start, middle) < inf:
                low = middle
            else:
                high = middle - 1
        spans.append((start, low))
        start = low
    return spans


def best_cut(length: int, cost: Callable[[int, int], float], count: int) -> list[tuple[int, int]]:
    """Returns at most ``count`` runs whose largest cost is minimal, to one part in a million. ``count`` runs must suffice."""
    low = max(cost(index, index + 1) for index in range(length))
    high = max(cost(*run) for run in runs(length, cost, inf))
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        if len(runs(length, cost, middle)) <= count:
            high = middle
        else:
            low = middle
    return runs(length, cost, high if len(runs(length, cost, low)) > count else low)

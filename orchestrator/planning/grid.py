"""Cutting the layers into portions that are collected together, and who works when."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf

from orchestrator.planning.costs import CostModel, PlannedLayer
from orchestrator.planning.footprint import Footprint
from workers.errors import ConfigError

WAVES = 3  # how many waves beyond the fewest are tried


@dataclass(frozen=True)
class Span:
    """A task on the time line."""

    task: int
    worker: int
    start: float
    end: float


def schedule(seconds: Sequence[float], workers: int) -> list[Span]:
    """Independent tasks, started longest first on whichever worker is free: what a run's ``map`` does."""
    free = [(0.0, worker) for worker in range(workers)]
    spans = []
    for task in sorted(range(len(seconds)), key=lambda task: -seconds[task]):
        start, worker = heapq.heappop(free)
        spans.append(Span(task, worker, start, start + seconds[task]))
        heapq.heappush(free, (spans[-1].end, worker))
    return spans


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Wall seconds of ``schedule``."""
    return max((span.end for span in schedule(seconds, workers)), default=0.0)


def portions(
    layers: Sequence[PlannedLayer], costs: CostModel, footprint: Footprint, memory_bytes: int, workers: int, shards: int
) -> list[list[PlannedLayer]]:
    """Cut layers (in the order of the forward pass) into runs that fit a worker's memory and are done soonest on all workers.

    A backward pass ends at the earliest layer of a portion, so a portion is a run of neighbours, and late ones are cheap. For a number of
    portions, the cut is the one whose longest takes least (every part of a run that fits also fits, and takes no longer). The number is the
    fewest that fit, or as many as fill the waves that these take, or one or two waves more. A cut never changes a byte of a statistic.
    Raises: ConfigError if one layer does not fit, with what to change.
    """
    for planned in layers:
        needed = max(footprint.collect([planned]), footprint.score(planned), footprint.solve(planned))
        if needed > memory_bytes:
            raise ConfigError(
                f"{planned.layer.name}: to collect and prune it takes {needed / 1e9:.1f} GB (the model and the worker itself "
                f"{footprint.held / 1e9:.1f} GB of these), a worker has {memory_bytes / 1e9:.1f} GB; lower pruner.block_size (memory grows "
                "with it) or data.calibration_batch_size, or raise cluster.memory_gb"
            )

    @cache
    def seconds(start: int, stop: int) -> float:
        part = layers[start:stop]
        return costs.collect(part) if footprint.collect(part) <= memory_bytes else inf

    fewest = len(runs(len(layers), seconds, inf))
    waves = -(-fewest * shards // workers)
    counts = {fewest} | {min(len(layers), (waves + more) * workers // shards) for more in range(WAVES)}
    cuts = [best_cut(len(layers), seconds, count) for count in sorted(counts) if count >= fewest]
    best = min(cuts, key=lambda cut: makespan([seconds(*run) for run in cut for _ in range(shards)], workers))
    return [list(layers[start:stop]) for start, stop in best]


def runs(length: int, cost: Callable[[int, int], float], limit: float) -> list[tuple[int, int]]:
    """The fewest runs (start, stop) that cover ``length`` things, each of finite cost up to ``limit``: as long as possible, one by one.

    ``cost`` must not fall when a run grows at either end. A single thing is a run at any cost.
    """
    found, start = [], 0
    while start < length:
        low, high = start + 1, length
        while low < high:
            middle = (low + high + 1) // 2
            if cost(start, middle) <= limit and cost(start, middle) < inf:
                low = middle
            else:
                high = middle - 1
        found.append((start, low))
        start = low
    return found


def best_cut(length: int, cost: Callable[[int, int], float], count: int) -> list[tuple[int, int]]:
    """At most ``count`` runs whose costliest costs least, to one part in a million; ``count`` must suffice."""
    low = max(cost(index, index + 1) for index in range(length))
    high = max(cost(*run) for run in runs(length, cost, inf))
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        if len(runs(length, cost, middle)) <= count:
            high = middle
        else:
            low = middle
    return runs(length, cost, high if len(runs(length, cost, low)) > count else low)

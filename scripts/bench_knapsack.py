"""The knapsack over widths: seconds at the sizes of a ResNet-50, against the machine's own additions, and how far HALP's own way is off.

python scripts/bench_knapsack.py
"""

from __future__ import annotations

import time
from itertools import product

import numpy as np

from kernels.knapsack import BINS, exact, greedy
from orchestrator.cluster.base import processor

UNITS = [64] * 8 + [128] * 8 + [256] * 12 + [512] * 6  # of 34 groups
BUDGETS = 20
INSTANCES = 300


def groups(random: np.random.Generator, counts: list[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Importances of prefixes of units, and times that mostly rise."""
    values = [np.concatenate([[0.0], np.cumsum(np.sort(random.exponential(size=count - 1))[::-1])]) for count in counts]
    costs = [np.round(np.clip(np.sort(random.uniform(0, 10, size=count)) + random.normal(0, 0.5, count), 0, None)) for count in counts]
    return values, costs


def seconds(work: object, repeats: int = 3) -> float:
    """The best of several runs, after one that compiles."""
    found = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()  # type: ignore[operator]
        found.append(time.perf_counter() - started)
    return min(found[1:])


def gap(random: np.random.Generator) -> float | None:
    """How much less HALP's own way is worth than the best of all choices; None if nothing is to be chosen."""
    values, costs = groups(random, [int(random.integers(1, 6)) for _ in range(random.integers(1, 5))])
    budget = float(random.integers(0, 30))
    theirs = greedy(values, costs, budget)
    every = product(*(range(len(value)) for value in values))
    fits = (choice for choice in every if sum(cost[at] for cost, at in zip(costs, choice, strict=True)) <= budget)
    best = max((sum(value[at] for value, at in zip(values, choice, strict=True)) for choice in fits), default=0.0)
    if theirs is None or not best:
        return None
    return 1 - sum(value[at] for value, at in zip(values, theirs, strict=True)) / best


def main() -> None:
    random = np.random.default_rng(0)
    values, costs = groups(random, UNITS)
    budgets = list(np.linspace(30, 150, BUDGETS))
    additions = np.zeros(BINS)
    rate = BINS / seconds(lambda: additions.__iadd__(1.0), 1000)
    took = seconds(lambda: exact(values, costs, budgets))
    print(f"{processor()}: {BUDGETS} budgets, {len(UNITS)} groups, {sum(UNITS):,} options, {BINS:,} bins: {took:.3f} s, ", end="")
    print(f"{BINS * sum(UNITS) / took / rate:.2f} of the rate of additions in the cache ({rate / 1e9:.1f} G/s)")
    gaps = np.array([found for _ in range(INSTANCES) if (found := gap(random)) is not None])
    worse = gaps > 1e-9
    print(f"HALP's own way on {len(gaps)} small instances: worse than the best in {worse.mean():.0%}, then by {gaps[worse].mean():.0%}")


if __name__ == "__main__":
    main()

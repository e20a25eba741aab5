"""Time the knapsack over widths at the sizes of a ResNet-50, and compare the greedy solver of HALP with the optimum.

Prints the seconds, and the rate as a fraction of this machine's additions in the cache.

    python scripts/bench_knapsack.py
"""

from __future__ import annotations

import time
from itertools import product

import numpy as np

from kernels.knapsack import BINS, exact, greedy
from orchestrator.cluster.base import processor

UNITS = [64] * 8 + [128] * 8 + [256] * 12 + [512] * 6  # in each of 34 groups
BUDGETS = 20
INSTANCES = 300


def random_groups(random: np.random.Generator, counts: list[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns the importance of each number of units, and times that mostly rise with it."""
    values = [np.concatenate([[0.0], np.cumsum(np.sort(random.exponential(size=count - 1))[::-1])]) for count in counts]
    costs = [np.round(np.clip(np.sort(random.uniform(0, 10, size=count)) + random.normal(0, 0.5, count), 0, None)) for count in counts]
    return values, costs


def seconds(work: object, repeats: int = 3) -> float:
    """Returns the time of the fastest of several runs, after one that compiles."""
    taken = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()  # type: ignore[operator]
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def gap(random: np.random.Generator) -> float | None:
    """Returns how much less importance HALP's greedy solver keeps than the optimum, as a fraction, or None if nothing can be chosen."""
    values, costs = random_groups(random, [int(random.integers(1, 6)) for _ in range(random.integers(1, 5))])
    budget = float(random.integers(0, 30))
    picks = greedy(values, costs, budget)
    combinations = product(*(range(len(value)) for value in values))
    fits = (choice for choice in combinations if sum(cost[pick] for cost, pick in zip(costs, choice, strict=True)) <= budget)
    best = max((sum(value[pick] for value, pick in zip(values, choice, strict=True)) for choice in fits), default=0.0)
    if picks is None or not best:
        return None
    return 1 - sum(value[pick] for value, pick in zip(values, picks, strict=True)) / best


def main() -> None:
    random = np.random.default_rng(0)
    values, costs = random_groups(random, UNITS)
    budgets = list(np.linspace(30, 150, BUDGETS))
    additions = np.zeros(BINS)
    rate = BINS / seconds(lambda: additions.__iadd__(1.0), 1000)
    exact_seconds = seconds(lambda: exact(values, costs, budgets))
    print(f"{processor()}: {BUDGETS} budgets, {len(UNITS)} groups, {sum(UNITS):,} options, {BINS:,} bins: {exact_seconds:.3f} s, ", end="")
    print(f"{BINS * sum(UNITS) / exact_seconds / rate:.2f} of the rate of additions in the cache ({rate / 1e9:.1f} G/s)")
    gaps = np.array([difference for _ in range(INSTANCES) if (difference := gap(random)) is not None])
    worse = gaps > 1e-9
    print(f"HALP's greedy solver, {len(gaps)} instances: below the optimum in {worse.mean():.0%}, on average by {gaps[worse].mean():.0%}")


if __name__ == "__main__":
    main()

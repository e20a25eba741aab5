"""The Pareto front of points in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Returns which points are on the Pareto front, where more is better in both numbers.

    A point is on it unless another one is at least as good in both numbers and better in one. Equal points are on it together.
    """
    on_front = [False] * len(points)
    ordered = sorted(range(len(points)), key=lambda index: points[index], reverse=True)
    best = float("-inf")  # of the second number, among all points with a larger first one
    for _, members in groupby(ordered, key=lambda index: points[index][0]):
        alike = list(members)
        highest = points[alike[0]][1]
        for index in alike:
            on_front[index] = points[index][1] == highest > best
        best = max(best, highest)
    return on_front

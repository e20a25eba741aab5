"""Cutting the grid, and the scheduling the plan and the cluster share."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.costs import PlannedLayer
from orchestrator.plan import makespan, portions
from workers.errors import ConfigError
from workers.models.base import Layer


def planned(index: int, blocks: int, block_size: int = 64) -> PlannedLayer:
    return PlannedLayer(Layer(f"l{index}", blocks, block_size), blocks, block_size)


@given(sizes=st.lists(st.integers(1, 200), min_size=1, max_size=30), at_least=st.integers(1, 8), spare=st.floats(1.0, 4.0))
def test_portions_hold_every_layer_once_and_fit_the_memory(sizes: list[int], at_least: int, spare: float) -> None:
    layers = [planned(index, size) for index, size in enumerate(sizes)]
    room = int(spare * max(max(layer.collect_bytes, layer.score_bytes) for layer in layers))
    cut = portions(layers, room, at_least)
    assert sorted(layer.layer.name for portion in cut for layer in portion) == sorted(layer.layer.name for layer in layers)
    assert all(sum(layer.collect_bytes for layer in portion) <= room for portion in cut)
    assert len(cut) >= min(at_least, len(layers))


def test_a_layer_that_cannot_fit_is_refused_with_its_name_and_a_remedy() -> None:
    with pytest.raises(ConfigError, match=r"l1: .* GB.*lower pruner.block_size"):
        portions([planned(0, 1), planned(1, 5000)], 10_000_000, 1)


@given(seconds=st.lists(st.floats(0.1, 10), min_size=1, max_size=6), workers=st.integers(1, 3))
def test_longest_first_is_within_four_thirds_of_the_best_schedule(seconds: list[float], workers: int) -> None:
    """Graham 1969: longest processing time first is at most (4/3 - 1/3m) of the optimum, found here by trying all."""
    best = min(
        max(sum(s for s, w in zip(seconds, choice, strict=True) if w == worker) for worker in range(workers))
        for choice in itertools.product(range(workers), repeat=len(seconds))
    )
    assert best <= makespan(seconds, workers) * (1 + 1e-9) and makespan(seconds, workers) <= best * (4 / 3 - 1 / (3 * workers)) * (1 + 1e-9)

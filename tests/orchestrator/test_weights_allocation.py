"""Allocation against sorting everything in one place."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import select
from orchestrator.allocation.weights import Tiles, allocate
from workers.errors import ConfigError
from workers.models.base import Layer
from workers.pruners.base import Scope, Target


def histograms_of(scores: list[torch.Tensor]):
    return lambda high_bin: [select.high_histogram(s) if high_bin is None else select.low_histogram(s, high_bin) for s in scores]


def layers_of(scores: list[torch.Tensor]) -> list[Layer]:
    return [Layer(f"layer{index}", 1, len(score)) for index, score in enumerate(scores)]


def untouched(layers: list[Layer]) -> dict[str, Tiles]:
    return {layer.name: Tiles(layer.weights, layer.weights) for layer in layers}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), sparsity=st.floats(0, 0.99), kinds=st.integers(1, 50), already=st.integers(0, 5))
def test_global_masks_the_lowest_scores_of_all_layers_and_ties_in_order(seed: int, sparsity: float, kinds: int, already: int) -> None:
    rng = np.random.default_rng(seed)
    scores = [torch.tensor(rng.integers(0, kinds, size), dtype=torch.float32) for size in rng.integers(6, 80, 4)]
    for score in scores:
        score[:already] = torch.inf
    layers = layers_of(scores)
    tiles = {layer.name: Tiles(layer.weights, layer.weights - already) for layer in layers}
    counts = allocate(Target(sparsity, Scope.GLOBAL), layers, tiles, histograms_of(scores))
    total = sum(layer.weights for layer in layers)
    wanted = max(0, round(sparsity * total) - 4 * already)
    owners = np.concatenate([np.full(len(score), index) for index, score in enumerate(scores)])
    order = np.argsort(np.concatenate([score.numpy() for score in scores]), kind="stable")[:wanted]
    assert list(counts.values()) == [int((owners[order] == index).sum()) for index in range(4)]


@pytest.mark.parametrize("sparsity", [0.0, 0.333, 0.5, 0.77])
def test_uniform_reaches_the_total_exactly_and_every_layer_to_within_one_weight(sparsity: float) -> None:
    layers = [Layer("a", 3, 7), Layer("b", 5, 11), Layer("c", 2, 2)]
    counts = allocate(Target(sparsity, Scope.UNIFORM), layers, untouched(layers), histograms_of([]))
    assert sum(counts.values()) == round(sum(sparsity * layer.weights for layer in layers))
    assert all(abs(counts[layer.name] - sparsity * layer.weights) < 1 for layer in layers)


def test_a_per_layer_target_leaves_unmatched_layers_dense_and_refuses_a_pattern_without_a_layer() -> None:
    layers = [Layer("blocks.0.fc1", 2, 50), Layer("blocks.0.fc2", 1, 50)]
    counts = allocate(Target(0.0, Scope.PER_LAYER, {"*.fc1": 0.3}), layers, untouched(layers), histograms_of([]))
    assert counts == {"blocks.0.fc1": 30, "blocks.0.fc2": 0}
    with pytest.raises(ConfigError, match=r"per_layer.*'\*\.fc3' matches none of the 2 layers"):
        allocate(Target(0.0, Scope.PER_LAYER, {"*.fc3": 0.3}), layers, untouched(layers), histograms_of([]))


def test_a_pattern_of_buckets_masks_every_tile_that_is_removable() -> None:
    layers = [Layer("a", 2, 8), Layer("b", 1, 8)]
    target = Target(0.5, Scope.GLOBAL, pattern="2:4")
    assert allocate(target, layers, {"a": Tiles(16, 8), "b": Tiles(8, 3)}, histograms_of([])) == {"a": 8, "b": 3}


def test_groups_of_weights_are_counted_as_one_tile() -> None:
    layers = [Layer("a", 1, 40), Layer("b", 1, 40)]
    scores = [torch.arange(10.0), torch.arange(10.0) + 0.5]
    target = Target(0.25, Scope.GLOBAL, pattern="groups:4")
    assert allocate(target, layers, {"a": Tiles(10, 10), "b": Tiles(10, 10)}, histograms_of(scores)) == {"a": 3, "b": 2}

"""The sparsity of each layer for a budget of latency."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from orchestrator.allocation.sparsities import OFFERED, TIMED, Options, offered_ms


def options(layers: int, choices: int, seed: int, dense_ms: float = 100.0) -> Options:
    """Layers whose time falls and whose loss rises with sparsity."""
    random = np.random.default_rng(seed)
    ms = {f"layer {i}": np.sort(random.uniform(1, 20, choices))[::-1] for i in range(layers)}
    losses = {name: np.concatenate([[0.0], np.cumsum(random.exponential(size=choices - 1))]) for name in ms}
    return Options(ms, losses, dense_ms)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_the_choice_has_the_least_loss_of_all_that_fit(seed: int, share: float) -> None:
    """By brute force over all combinations, with the time of the model that the times of layers predict."""
    found = options(4, 5, seed)

    def loss(choice: dict[str, int]) -> float:
        return sum(losses[choice[name]] for name, losses in found.losses.items())

    combinations = [dict(zip(found.ms, picks, strict=True)) for picks in product(range(5), repeat=4)]
    fitting = [choice for choice in combinations if found.share(choice) <= share]
    chosen = found.choose(share)
    if not fitting:
        assert chosen is None and found.least_share > share
        return
    assert chosen is not None and found.share(chosen) <= share + 1e-9
    assert loss(chosen) == pytest.approx(min(map(loss, fitting)))


def test_a_share_is_that_of_the_dense_time_less_what_the_layers_save() -> None:
    found = Options({"a": np.array([4.0, 1.0]), "b": np.array([6.0, 5.0])}, {}, 20.0)
    assert found.scale == 1.0 and found.share({"a": 0, "b": 0}) == 1.0
    assert found.share({"a": 1, "b": 0}) == pytest.approx(17 / 20) and found.least_share == pytest.approx(16 / 20)


def test_layers_that_take_longer_alone_than_the_whole_model_are_scaled_down() -> None:
    found = Options({"a": np.array([40.0, 0.0])}, {}, 20.0)
    assert found.share({"a": 1}) == pytest.approx(0.05)


def test_layers_without_a_time_can_save_none() -> None:
    found = Options({"a": np.zeros(2)}, {"a": np.array([0.0, 1.0])}, 20.0)
    assert found.least_share == 1.0 and found.choose(0.9) is None and found.choose(1.0) == {"a": 0}


def test_times_between_measured_sparsities_are_on_the_line_through_them_and_never_above_dense() -> None:
    timed = [10.0] + [20 * (1 - sparsity) for sparsity in TIMED[1:]]
    offered = offered_ms({"a": timed})["a"]
    assert offered[0] == 10.0
    for sparsity, ms in zip(OFFERED[1:], offered[1:], strict=True):
        assert ms == pytest.approx(min(10.0, 20 * (1 - sparsity)))
    slow = offered_ms({"a": [1.0] + [5.0] * (len(TIMED) - 1)})["a"]
    assert (slow == 1.0).all()

"""Dampened inverses against numpy, and the ways in which a matrix can fail to have one."""

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.linalg import RAISES, NotPositiveDefinite, dampened_inverse


def _moment(blocks: int, size: int, samples: int, seed: int = 0) -> Tensor:
    g = torch.randn(samples, blocks, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.einsum("knb,knc->nbc", g, g) / samples


def test_inverse_is_that_of_the_alive_entries_and_dead_ones_decouple() -> None:
    mean_nBB = _moment(5, 9, 20)
    alive_nB = torch.rand(5, 9, generator=torch.Generator().manual_seed(1)) > 0.3
    inverse_nBB, dampening_n = dampened_inverse(mean_nBB, alive_nB, 1e-3, relative=False)
    for block in range(5):
        alive = alive_nB[block].numpy()
        truth = np.eye(9)
        truth[np.ix_(alive, alive)] = np.linalg.inv(mean_nBB[block].numpy()[np.ix_(alive, alive)] + 1e-3 * np.eye(alive.sum()))
        np.testing.assert_allclose(inverse_nBB[block].numpy(), truth, rtol=1e-9, atol=1e-9)
    assert (dampening_n == 1e-3).all()


def test_relative_dampening_is_a_fraction_of_the_layers_mean_alive_diagonal() -> None:
    mean_nBB = torch.stack([torch.diag(torch.tensor([1.0, 3.0])), torch.diag(torch.tensor([100.0, 8.0]))])
    alive_nB = torch.tensor([[True, True], [False, True]])
    _, dampening_n = dampened_inverse(mean_nBB, alive_nB, 0.5, relative=True)
    assert dampening_n.tolist() == [2.0, 2.0]


def test_only_the_blocks_that_fail_are_dampened_more_and_say_so() -> None:
    indefinite = torch.diag(torch.tensor([1.0, -5e-3], dtype=torch.float64))
    inverse_nBB, dampening_n = dampened_inverse(torch.stack([torch.eye(2), indefinite]), torch.ones(2, 2, dtype=torch.bool), 1e-4, False)
    np.testing.assert_allclose(dampening_n.numpy(), [1e-4, 1e-2])
    np.testing.assert_allclose(inverse_nBB[1].numpy(), np.diag([1 / 1.01, 1 / 5e-3]), atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), -1.0])
def test_hopeless_blocks_are_counted_in_the_error(bad: float) -> None:
    mean_nBB = torch.eye(3).repeat(4, 1, 1)
    mean_nBB[1:3, 2, 2] = bad
    with pytest.raises(NotPositiveDefinite) as caught:
        dampened_inverse(mean_nBB, torch.ones(4, 3, dtype=torch.bool), 1e-8, False)
    assert caught.value.blocks == 2
    assert caught.value.dampening == pytest.approx(1e-8 * 10**RAISES)
    assert not caught.value.smallest_pivot > 0
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_pivot_that_is_zero_within_rounding_is_refused() -> None:
    """Rank one and no dampening: the second pivot is zero or noise, never taken for a number."""
    v = torch.tensor([1.0, 1 / 3], dtype=torch.float64)
    with pytest.raises(NotPositiveDefinite):
        dampened_inverse(torch.outer(v, v)[None], torch.ones(1, 2, dtype=torch.bool), 0.0, False)

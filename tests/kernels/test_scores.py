"""Scores against scikit-learn, the definition of the hull, and the optimality that they claim."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference import pairwise_hull_slopes
from sklearn.isotonic import isotonic_regression

from kernels.scores import accumulated, hull, marginal

losses = arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=st.floats(0, 1e6, width=32))


@given(losses)
def test_hull_is_the_isotonic_regression(loss_nB: np.ndarray) -> None:
    score_nB = hull(torch.from_numpy(loss_nB)).numpy()
    for row in range(len(loss_nB)):
        np.testing.assert_allclose(score_nB[row], isotonic_regression(loss_nB[row].astype(np.float64)), rtol=1e-6, atol=1e-30)


@given(losses)
def test_hull_is_the_slope_of_the_lower_convex_hull_of_the_cumulative_loss(loss_nB: np.ndarray) -> None:
    score_nB = hull(torch.from_numpy(loss_nB)).numpy()
    for row in range(len(loss_nB)):
        np.testing.assert_allclose(score_nB[row], pairwise_hull_slopes(loss_nB[row].astype(np.float64)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("score", [hull, accumulated])
@given(loss_nB=losses, tail=st.integers(0, 3))
def test_scores_never_decrease_and_keep_the_infinite_tail(score, loss_nB: np.ndarray, tail: int) -> None:
    padded_nB = np.concatenate([loss_nB, np.full((len(loss_nB), tail), np.inf, dtype=np.float32)], axis=1)
    score_nB = score(torch.from_numpy(padded_nB))
    assert score_nB.dtype == torch.float32
    assert (score_nB[:, 1:] >= score_nB[:, :-1]).all()
    assert torch.equal(score_nB.isinf(), torch.from_numpy(padded_nB).isinf())
    assert torch.equal(score_nB[:, : loss_nB.shape[1]], score(torch.from_numpy(loss_nB)))


def test_long_rows_do_not_decrease_after_rounding() -> None:
    loss_nB = torch.rand(50, 999, generator=torch.Generator().manual_seed(0)) * torch.logspace(-8, 0, 999)
    assert (hull(loss_nB).diff(dim=1) >= 0).all()


def test_accumulated_is_the_running_sum_and_marginal_the_loss() -> None:
    loss_nB = torch.tensor([[1.0, 3.0, 2.0]])
    assert accumulated(loss_nB).tolist() == [[1.0, 4.0, 6.0]]
    assert marginal(loss_nB).tolist() == [[1.0, 3.0, 2.0]]


def test_no_choice_of_prefixes_beats_the_hull_where_its_threshold_falls_between_segments() -> None:
    """Against the exact dynamic programme over all ways to spread k removals over the blocks."""
    rng = np.random.default_rng(0)
    checked = 0
    for _ in range(20):
        loss_nB = rng.exponential(size=(4, 6)).astype(np.float32)
        score_nB = hull(torch.from_numpy(loss_nB)).numpy()
        total_nB = np.concatenate([np.zeros((4, 1)), np.cumsum(loss_nB.astype(np.float64), axis=1)], axis=1)
        best = {0: 0.0}
        for block in range(4):
            nxt: dict[int, float] = {}
            for k, cost in best.items():
                for taken in range(7):
                    nxt[k + taken] = min(nxt.get(k + taken, np.inf), cost + total_nB[block, taken])
            best = nxt
        for threshold in np.unique(score_nB):
            counts = (score_nB <= threshold).sum(axis=1)
            cost = total_nB[np.arange(4), counts].sum()
            assert cost <= best[counts.sum()] + 1e-6
            checked += 1
    assert checked > 100

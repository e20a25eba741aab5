"""Sums over units, curvature between them and greedy orders, against their definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import saliency
from kernels.saliency import add_gauss_newton_, greedy_order, unit_products, vanishing


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 17])
@pytest.mark.parametrize(("shape", "dim"), [((8,), 0), ((8, 3), 0), ((3, 8), 1), ((8, 2, 3, 3), 0), ((2, 5, 8), 2)])
def test_products_are_summed_over_all_entries_of_a_unit(shape, dim, chunk, monkeypatch) -> None:
    """Entry by entry; unit 0 is positions 6 and 1, unit 1 is 0 and 3, and the others belong to none."""
    monkeypatch.setattr(saliency, "CHUNK", chunk)
    left, right = normal(*shape, seed=1), normal(*shape, seed=2)
    unit_at = {6: 0, 1: 0, 0: 1, 3: 1}
    expected = [0.0, 0.0]
    for place in np.ndindex(*shape):
        if place[dim] in unit_at:
            expected[unit_at[place[dim]]] += float(left[place]) * float(right[place])
    found_U = unit_products(left, right, dim, torch.tensor([[6, 1], [0, 3]]))
    np.testing.assert_allclose(found_U.numpy(), expected, rtol=1e-12)


def test_terms_that_cancel_keep_their_digits() -> None:
    """Terms of 1e4 in float32 that add up to 1: summing in float32 would leave nothing of it."""
    left = torch.cat([torch.full((50_000,), 1e4), torch.full((50_000,), -1e4), torch.ones(1)])[None]
    left_shuffled = left[:, torch.randperm(left.numel(), generator=torch.Generator().manual_seed(0))]
    assert float(unit_products(left_shuffled, torch.ones_like(left), 0, torch.tensor([[0]]))) == 1.0


@pytest.mark.parametrize("samples", [1, 5])
def test_gauss_newton_is_the_sum_of_projected_softmax_curvatures(samples: int) -> None:
    jacobian_NDS, probability_ND = normal(samples, 4, 6), normal(samples, 4, seed=1).softmax(1)
    before_SS = normal(6, 6, seed=2)
    found_SS = before_SS.clone()
    add_gauss_newton_(found_SS, jacobian_NDS, probability_ND)
    expected = before_SS.numpy().copy()
    for jacobian, p in zip(jacobian_NDS.numpy(), probability_ND.numpy(), strict=True):
        expected += jacobian.T @ (np.diag(p) - np.outer(p, p)) @ jacobian
    np.testing.assert_allclose(found_SS.numpy(), expected, rtol=1e-12, atol=1e-13)


@given(size=st.integers(1, 9), seed=st.integers(0, 1000))
def test_the_greedy_order_has_the_least_increase_of_the_quadratic_form_in_each_step(size: int, seed: int) -> None:
    """Each step against all choices, each worth what ``1_M^T Q 1_M`` rises by."""
    root = np.random.default_rng(seed).normal(size=(size, size))
    quadratic = np.abs(root @ root.T)
    order_S, paid_S = greedy_order(torch.from_numpy(quadratic))
    removed: list[int] = []
    worth = 0.0
    for unit, paid in zip(order_S.tolist(), paid_S.tolist(), strict=True):
        remaining = [other for other in range(size) if other not in removed]
        rises = {other: quadratic[np.ix_([*removed, other], [*removed, other])].sum() - worth for other in remaining}
        assert unit in remaining and rises[unit] == pytest.approx(min(rises.values()), rel=1e-9, abs=1e-12)
        assert paid == pytest.approx(rises[unit], rel=1e-9, abs=1e-12)
        removed, worth = [*removed, unit], worth + rises[unit]
    assert sorted(removed) == list(range(size)) and worth == pytest.approx(quadratic.sum())


def test_units_that_do_not_interact_are_removed_by_their_own_cost() -> None:
    order_S, paid_S = greedy_order(torch.diag(torch.tensor([3.0, 1.0, 2.0, 1.0])))
    assert order_S.tolist() == [1, 3, 2, 0] and paid_S.tolist() == [1.0, 1.0, 2.0, 3.0]


def test_of_two_equal_units_the_second_is_removed_late() -> None:
    """Each costs little alone and much beside the other: a sum over all others would put both last."""
    quadratic_SS = torch.tensor([[1.0, 5.0, 0.0], [5.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    assert greedy_order(quadratic_SS)[0].tolist() == [0, 2, 1]


def test_the_share_of_vanishing_scores_depends_on_the_size_of_the_terms_that_cancel() -> None:
    scale_S = torch.tensor([1e3, 1e-3, 0.0, 1.0])
    assert vanishing(torch.tensor([1e-4, 1e-4, 0.0, 0.5]), scale_S) == 0.5

"""Second moments add up, and blocks cut a matrix without loss."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.statistics import SecondMoment, add_outer_, cut_blocks, existing_nB, join_blocks, zeros

sizes = st.integers(1, 9)


@given(rows=sizes, columns=sizes, block_size=sizes)
def test_joining_undoes_cutting_and_padding_is_marked(rows: int, columns: int, block_size: int) -> None:
    weight_RC = torch.arange(1.0, rows * columns + 1).reshape(rows, columns)
    blocks_nB = cut_blocks(weight_RC, block_size)
    assert blocks_nB.shape == (rows * -(-columns // block_size), block_size)
    assert torch.equal(join_blocks(blocks_nB, rows, columns), weight_RC)
    assert torch.equal(existing_nB(rows, columns, block_size), blocks_nB != 0)


def test_no_block_holds_entries_of_two_rows() -> None:
    row_of_entry_nB = cut_blocks(torch.arange(1.0, 5).repeat_interleave(7).reshape(4, 7), 3)
    assert all(len(set(block.tolist()) - {0.0}) == 1 for block in row_of_entry_nB)


def _outer_sum(vectors_KnB: np.ndarray) -> np.ndarray:
    return np.stack([sum(np.outer(v, v) for v in vectors_KnB[:, block]) for block in range(vectors_KnB.shape[1])])


@pytest.mark.parametrize(("samples", "blocks", "block_size"), [(1, 1, 1), (5, 3, 4), (40, 2, 33)])
def test_sum_of_chunks_is_the_literal_sum_of_outer_products(samples: int, blocks: int, block_size: int) -> None:
    vectors_KnB = torch.randn(samples, blocks, block_size, generator=torch.Generator().manual_seed(0))
    sum_nBB = zeros(blocks, block_size).sum_nBB
    for chunk_KnB in vectors_KnB.split(7):
        add_outer_(sum_nBB, chunk_KnB)
    np.testing.assert_allclose(sum_nBB.numpy(), _outer_sum(vectors_KnB.double().numpy()), rtol=1e-5, atol=1e-5)
    assert torch.equal(sum_nBB, sum_nBB.mT)


def test_outer_products_are_taken_of_views_and_keep_the_callers_precision_setting() -> None:
    gradients_KC = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    sum_nBB = torch.zeros(4, 5, 5)
    torch.set_float32_matmul_precision("medium")
    try:
        add_outer_(sum_nBB, gradients_KC.view(6, 4, 5))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    np.testing.assert_allclose(sum_nBB.numpy(), _outer_sum(gradients_KC.view(6, 4, 5).double().numpy()), rtol=1e-5, atol=1e-6)


@given(st.lists(st.integers(0, 6), min_size=3, max_size=3))
def test_merging_is_associative_and_equals_one_pass(counts: list[int]) -> None:
    generator = torch.Generator().manual_seed(sum(counts))
    parts, everything = [], []
    for count in counts:  # small whole numbers: float32 sums of them are exact, so that equality is
        vectors_KnB = torch.randint(-3, 4, (count, 2, 3), generator=generator).float()
        moment = zeros(2, 3)
        add_outer_(moment.sum_nBB, vectors_KnB)
        parts.append(SecondMoment(moment.sum_nBB, count))
        everything.append(vectors_KnB)
    a, b, c = parts
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    assert torch.equal(left.sum_nBB, right.sum_nBB)
    assert left.count == right.count == sum(counts)
    np.testing.assert_array_equal(left.sum_nBB.numpy(), _outer_sum(torch.cat(everything).numpy()) if sum(counts) else np.zeros((2, 3, 3)))


def test_the_mean_divides_by_the_count_and_needs_one() -> None:
    assert torch.equal(SecondMoment(torch.full((1, 2, 2), 6.0), 3).mean_nBB(), torch.full((1, 2, 2), 2.0))
    with pytest.raises(ValueError, match="at least one sample"):
        zeros(1, 2).mean_nBB()


def test_moments_of_different_blocks_do_not_merge() -> None:
    with pytest.raises(ValueError, match="shapes"):
        zeros(1, 2).merge(zeros(2, 2))

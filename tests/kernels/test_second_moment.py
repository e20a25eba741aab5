"""Second moments add up, and blocks cut a matrix without loss."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.second_moment import SecondMoment, add_outer_, add_packed_, cut_blocks, existing_nB, join_blocks, mirror_, pack_lower, zeros

sizes = st.integers(1, 9)


@given(rows=sizes, columns=sizes, block_size=sizes)
def test_joining_undoes_cutting_and_padding_is_marked(rows: int, columns: int, block_size: int) -> None:
    weight_RC = torch.arange(1.0, rows * columns + 1).reshape(rows, columns)
    blocks_nB = cut_blocks(weight_RC, block_size)
    assert blocks_nB.shape == (rows * -(-columns // block_size), block_size)
    assert torch.equal(join_blocks(blocks_nB, rows, columns), weight_RC)
    assert torch.equal(existing_nB(rows, columns, block_size), blocks_nB != 0)


def test_no_block_contains_entries_of_two_rows() -> None:
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
    mirror_(sum_nBB)
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
    mirror_(sum_nBB)
    np.testing.assert_allclose(sum_nBB.numpy(), _outer_sum(gradients_KC.view(6, 4, 5).double().numpy()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block_size", [1, 7, 16, 33, 64])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_block_size_and_number_of_threads_gives_the_literal_sum(block_size: int, threads: int) -> None:
    vectors_KnB = torch.randint(-4, 5, (21, 70, block_size), generator=torch.Generator().manual_seed(1)).float()  # sums are exact
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        sum_nBB = zeros(70, block_size).sum_nBB
        add_outer_(sum_nBB, vectors_KnB)
        mirror_(sum_nBB)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(sum_nBB.numpy(), _outer_sum(vectors_KnB.numpy()))


def test_packed_triangles_add_up_to_the_matrices_they_came_from() -> None:
    sums = [torch.randint(-9, 9, (5, 6, 6), generator=torch.Generator().manual_seed(seed)).float() for seed in range(2)]
    symmetric = [each + each.mT for each in sums]
    total_nBB = torch.zeros(5, 6, 6)
    for each in symmetric:
        packed_nL = pack_lower(each.clone())
        assert packed_nL.shape == (5, 21)
        add_packed_(total_nBB, packed_nL)
    assert torch.equal(total_nBB, symmetric[0] + symmetric[1])


def test_the_mean_divides_by_the_count_and_needs_one() -> None:
    assert torch.equal(SecondMoment(torch.full((1, 2, 2), 6.0), 3).mean_nBB(), torch.full((1, 2, 2), 2.0))
    with pytest.raises(ValueError, match="at least one sample"):
        zeros(1, 2).mean_nBB()

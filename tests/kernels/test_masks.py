"""Masks as bits and as prefixes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kernels.masks import pack_bits, prefix_mask, unpack_bits, zeros

masks = arrays(bool, st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple))


@given(masks)
def test_bits_are_those_of_numpy_and_come_back(mask: np.ndarray) -> None:
    packed = pack_bits(torch.from_numpy(mask))
    np.testing.assert_array_equal(packed.numpy(), np.packbits(mask.ravel(), bitorder="little"))
    np.testing.assert_array_equal(unpack_bits(packed, mask.shape).numpy(), mask)


def test_bits_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 2 bytes"):
        unpack_bits(torch.zeros(1, dtype=torch.uint8), (3, 3))


def test_the_first_entries_of_the_order_are_removed() -> None:
    order_nB = torch.tensor([[2, 0, 1], [1, 2, 0], [0, 1, 2]], dtype=torch.int16)
    removed_nB = prefix_mask(order_nB, torch.tensor([2, 0, 3]))
    assert removed_nB.tolist() == [[True, False, True], [False, False, False], [True, True, True]]


def test_zeros_are_counted() -> None:
    assert zeros(torch.tensor([[0.0, -0.0, 1e-30], [1.0, float("nan"), 0.0]])) == 3

"""The radix threshold against a full sort."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kernels.select import (
    BINS,
    count_below,
    find_bin,
    high_histogram,
    low_histogram,
    select_smallest,
    threshold_over,
    threshold_value,
)

plain = st.floats(0, np.float32(3e38), width=32)
tied = st.sampled_from([0.0, -0.0, 1e-45, 0.25, 1.0, np.inf])


def _matrices(elements: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 8)), elements=elements)


@given(st.lists(_matrices(plain) | _matrices(tied), min_size=1, max_size=4), st.data())
def test_threshold_over_many_tensors_is_the_kth_of_their_concatenation(scores: list[np.ndarray], data: st.DataObject) -> None:
    everything = np.concatenate([score.ravel() for score in scores])
    finite = np.sort(everything[np.isfinite(everything)])
    if len(finite) == 0:
        return
    k = data.draw(st.integers(1, len(finite)))
    tensors = [torch.from_numpy(score) for score in scores]
    threshold = threshold_over(tensors, k)
    assert threshold == np.partition(finite, k - 1)[k - 1]
    below, equal = np.array([count_below(tensor, threshold) for tensor in tensors]).sum(axis=0)
    assert below < k <= below + equal


@given(_matrices(plain) | _matrices(tied), st.data())
def test_exactly_k_are_selected_with_ties_in_row_major_order(score_nB: np.ndarray, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, int(np.isfinite(score_nB).sum())))
    chosen = np.argsort(score_nB.ravel() + 0.0, kind="stable")[:k]
    truth = np.zeros(score_nB.size, dtype=bool)
    truth[chosen] = True
    np.testing.assert_array_equal(select_smallest(torch.from_numpy(score_nB), k).numpy(), truth.reshape(score_nB.shape))


def test_a_million_scores_of_which_most_are_tied() -> None:
    generator = torch.Generator().manual_seed(0)
    score_nB = torch.randint(0, 4, (5000, 200), generator=generator).float() / 3
    for k in (0, 1, 249_999, 500_000, 1_000_000):
        mask_nB = select_smallest(score_nB, k)
        assert int(mask_nB.sum()) == k
        order = np.argsort(score_nB.numpy().ravel(), kind="stable")
        assert mask_nB.reshape(-1).numpy()[order[:k]].all()


def test_histograms_of_parts_add_up_and_lead_to_the_value() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.rand(1000, generator=generator).exp() for _ in range(3)]
    high = sum(high_histogram(part) for part in parts)
    assert torch.equal(high, high_histogram(torch.cat(parts)))
    high_bin, before = find_bin(high, 1234)
    low = sum(low_histogram(part, high_bin) for part in parts)
    low_bin, _ = find_bin(low, 1234 - before)
    assert len(high) == len(low) == BINS
    assert threshold_value(high_bin, low_bin) == float(torch.cat(parts).sort().values[1233])


def test_more_than_the_finite_scores_cannot_be_selected() -> None:
    score_nB = torch.tensor([[1.0, 2.0, np.inf]])
    assert select_smallest(score_nB, 2).tolist() == [[True, True, False]]
    with pytest.raises(ValueError, match="cannot select 3 of 2"):
        select_smallest(score_nB, 3)


def test_negative_scores_are_refused_and_negative_zero_is_zero() -> None:
    assert high_histogram(torch.tensor([-0.0]))[0] == 1
    with pytest.raises(ValueError, match="negative"):
        high_histogram(torch.tensor([-1.0]))

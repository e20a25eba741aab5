"""Labels of positions follow views as numbers do, and decisions about products are those that a model can follow."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.models.structures.labels import FROZEN, Factor, Ties


def spread_out(labels, shape):
    """Of each position of a tensor the atoms of all factors, written out."""
    return [np.broadcast_to(factor.spread(range(len(shape))), shape) for factor in labels]


@st.composite
def views(draw):
    """A shape, another one with as many positions, and the labelled dimensions of the first."""
    primes = draw(st.lists(st.sampled_from([1, 2, 2, 3, 5]), min_size=2, max_size=6))

    def cut(sizes):
        marks = [draw(st.booleans()) for _ in sizes[1:]]
        shape = [sizes[0]]
        for size, joined in zip(sizes[1:], marks, strict=True):
            shape[-1:] = [shape[-1] * size] if joined else [shape[-1], size]
        return tuple(shape)

    old, new = cut(primes), cut(primes)
    labelled = [dim for dim, size in enumerate(old) if size > 1 and draw(st.booleans())]
    return old, new, labelled[:1]


@given(views())
@settings(max_examples=200, deadline=None)
def test_a_view_moves_atoms_as_it_moves_numbers(view):
    """The atoms of all positions, reshaped by NumPy, are those of the labels after the view."""
    old, new, labelled = view
    ties = Ties()
    labels = tuple(Factor((dim,), ties.fresh(old[dim])) for dim in labelled)
    after = ties.reshaped(labels, old, new)
    expected = [whole_.reshape(new) for whole_ in spread_out(labels, old)]
    actual = spread_out(after, new)
    assert len(actual) == len(expected) and all(np.array_equal(one, other) for one, other in zip(actual, expected, strict=True))
    assert all(math.prod(factor.atoms_.shape) > 1 for factor in after)


def test_heads_are_split_and_put_together_again():
    ties = Ties()
    (split,) = ties.reshaped((Factor((1,), ties.fresh(24)),), (5, 24), (5, 3, 2, 4))
    assert split.dims == (1, 2, 3) and split.atoms_.shape == (3, 2, 4)
    (again,) = ties.reshaped((split,), (5, 3, 2, 4), (5, 24))
    assert again.dims == (1,) and np.array_equal(again.atoms_, np.arange(1, 25))


def test_a_fixed_size_freezes_labels():
    ties = Ties()
    factor = Factor((0,), ties.fresh(4))
    ties.fix([factor], 0)
    assert all(FROZEN in pair for left, right in ties.pairs for pair in zip(left.tolist(), right.tolist(), strict=True))
    assert ties.free((factor,)) == ()


def test_inside_a_head_a_fixed_size_ties_and_heads_are_not_frozen():
    """A table of rotations has all positions inside a head: units are heads then."""
    ties = Ties()
    heads = Factor((1, 2), ties.fresh(6).reshape(2, 3))
    ties.fix([heads], 2)
    tied = {frozenset(pair) for left, right in ties.pairs for pair in zip(left.tolist(), right.tolist(), strict=True)}
    assert tied == {frozenset(pair) for pair in ((1, 2), (1, 3), (4, 5), (4, 6))}

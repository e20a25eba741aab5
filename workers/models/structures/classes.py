"""The classes of atoms from all ties of a forward pass. If a product of dimensions can be cut in several ways, the ties decide."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from workers.models.structures.labels import FROZEN, Atoms, Factor, Ties


def classes(ties: Ties) -> Atoms:
    """Returns the class of each atom, after deciding along which dimension the units of each product of dimensions are."""
    steps = (_decided, _along_the_outer, _along_the_inner, _cut)
    class_ = _connected(ties)
    step = 0
    while step < len(steps):
        pairs = len(ties.pairs)
        steps[step](ties, class_)
        step = 0 if len(ties.pairs) > pairs else step + 1
        if step == 0:
            class_ = _connected(ties)
    return class_


def _connected(ties: Ties) -> Atoms:
    left_, right_ = (np.concatenate([np.zeros(1, np.int64), *(pair[index] for pair in ties.pairs)]) for index in (0, 1))
    ties.pairs[:] = [(left_, right_)]
    graph = coo_array((np.ones(len(left_), np.int8), (left_, right_)), shape=(ties.atoms, ties.atoms))
    return connected_components(graph, directed=False)[1]


def _varies(class_: Atoms, axes: Iterable[int]) -> bool:
    return any(bool((class_ != class_.take([0], axis)).any()) for axis in axes)


def _axes(larger: Factor, smaller: Factor) -> tuple[list[int], list[int]]:
    """Returns the axes of the larger factor that the smaller one has too, and the others."""
    shared = [axis for axis, dim in enumerate(larger.dims) if dim in smaller.dims]
    return shared, [axis for axis in range(len(larger.dims)) if axis not in shared]


def _decided(ties: Ties, class_: Atoms) -> None:
    """Ties both factors if units are along dimensions of the smaller one; freezes the smaller one if they are along the others."""
    for larger, smaller in ties.meetings:
        classes_, (shared, rest) = class_[larger.atoms_], _axes(larger, smaller)
        if not _varies(classes_, shared):
            if (class_[smaller.atoms_] != class_[FROZEN]).any():
                ties.freeze([smaller])
        elif not _varies(classes_, rest) and (class_[smaller.spread(larger.dims)] != classes_).any():
            ties.tie(larger.atoms_, smaller.spread(larger.dims))


def _along_the_outer(ties: Ties, class_: Atoms) -> None:
    """If undecided, units are along the dimensions of a smaller factor without the innermost dimension, such as heads."""
    for larger, smaller in ties.meetings:
        classes_, (shared, rest) = class_[larger.atoms_], _axes(larger, smaller)
        if smaller.dims[-1] < larger.dims[-1] and _varies(classes_, shared) and _varies(classes_, rest):
            ties.tie(larger.atoms_, smaller.spread(larger.dims))


def _along_the_inner(ties: Ties, class_: Atoms) -> None:
    """If still undecided, a smaller factor is the same for all units, such as the scale of a norm inside each head."""
    for larger, smaller in ties.meetings:
        classes_, (shared, rest) = class_[larger.atoms_], _axes(larger, smaller)
        if _varies(classes_, shared) and _varies(classes_, rest):
            larger.tied_along([larger.dims[axis] for axis in shared], ties)
            return


def _cut(ties: Ties, class_: Atoms) -> None:
    """Cuts remaining products along one dimension, the one with the most units."""
    for factor in ties.products:
        classes_ = class_[factor.atoms_]
        varying = [axis for axis in range(classes_.ndim) if _varies(classes_, [axis])]
        if len(varying) > 1:
            kept = max(varying, key=lambda axis: classes_.shape[axis])
            factor.tied_along([dim for axis, dim in enumerate(factor.dims) if axis != kept], ties)

"""Labels of tensors: which positions have to be removed together, followed through views and products.

An atom is a position along one dimension of a parameter or buffer. Operations tie atoms: tensors that are added have to keep the same
positions. The ties of a forward pass define classes of atoms, and the atoms of a class can only be removed together (``traced.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FROZEN = 0  # the atom that is always kept, and with it every atom that is tied to it
MOST_POSITIONS = 4_000_000  # largest factor that is followed through a reshape; larger ones are frozen

Atoms = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Factor:
    """The atoms of all positions in the product of ``dims`` (sorted).

    Most factors have one dimension. A factor has several after one dimension was split, such as the outputs of a layer into heads and the
    channels of a head. Which of them contains the units is decided later.
    """

    dims: tuple[int, ...]
    atoms_: Atoms

    def without(self, dim: int, ties: Ties) -> Factor | None:
        """Ties the positions that differ in ``dim`` alone, and returns the factor without that dimension; None if it was the only one."""
        merged = self.tied_along([dim], ties)
        if len(self.dims) == 1:
            return None
        axis = self.dims.index(dim)
        return Factor(tuple(other for other in self.dims if other != dim), merged.atoms_.take([0], axis).squeeze(axis))

    def tied_along(self, dims: Iterable[int], ties: Ties) -> Factor:
        """Ties the positions that differ in ``dims`` alone, unless the factor has no other dimension. Returns the factor."""
        within = [dim for dim in dims if dim in self.dims]
        if len(within) < len(self.dims):
            for dim in within:
                axis = self.dims.index(dim)
                ties.tie(self.atoms_, self.atoms_.take([0], axis))
        return self

    def only(self, dims: Iterable[int], ties: Ties) -> Factor:
        """Returns the factor over those of its dimensions that are among ``dims``, with positions along the others tied."""
        kept = set(dims)
        factor: Factor = self
        for dim in self.dims:
            if dim not in kept:
                factor = factor.without(dim, ties) or factor
        return factor

    def moved(self, to: Mapping[int, int]) -> Factor:
        """Returns the factor with its dimensions renumbered."""
        dims = [to[dim] for dim in self.dims]
        order = np.argsort(dims)
        return Factor(tuple(dims[index] for index in order), self.atoms_.transpose(order))

    def spread(self, dims: Sequence[int]) -> Atoms:
        """Returns the atoms with an axis for each of ``dims``, of length 1 for those that are not dimensions of the factor."""
        shape = iter(self.atoms_.shape)
        return self.atoms_.reshape([next(shape) if dim in self.dims else 1 for dim in dims])


Labels = tuple[Factor, ...]  # of one tensor; no two factors share a dimension


@dataclass
class Ties:
    """Pairs of atoms that have to be removed together, and factors that are decided when all pairs are known."""

    atoms: int = 1  # number of atoms so far; the first is FROZEN
    pairs: list[tuple[Atoms, Atoms]] = field(default_factory=list)
    meetings: list[tuple[Factor, Factor]] = field(default_factory=list)  # a larger factor, and one over some of its dimensions
    products: list[Factor] = field(default_factory=list)  # factors of several dimensions
    frozen: Atoms = field(default_factory=lambda: np.zeros(1, np.int64))  # 1 for each atom that was frozen itself

    def fresh(self, count: int) -> Atoms:
        self.atoms += count
        if self.atoms > len(self.frozen):
            self.frozen = np.concatenate([self.frozen, np.zeros(max(count, len(self.frozen)), np.int64)])
        return np.arange(self.atoms - count, self.atoms, dtype=np.int64)

    def tie(self, left_: Atoms, right_: Atoms) -> None:
        left_, right_ = np.broadcast_arrays(left_, right_)
        differ = left_ != right_
        if differ.any():
            self.pairs.append((left_[differ], right_[differ]))

    def freeze(self, factors: Iterable[Factor]) -> None:
        for factor in factors:
            self.tie(np.unique(factor.atoms_), np.array([FROZEN], np.int64))
            self.frozen[factor.atoms_] = 1

    def fix(self, factors: Iterable[Factor], dim: int) -> None:
        """Ensures that units are not along ``dim``, whose positions are all needed. They may be along other dimensions."""
        for factor in factors:
            if len(factor.dims) == 1:
                self.freeze([factor])
            else:
                factor.tied_along([dim], self)

    def free(self, labels: Labels) -> Labels:
        """Returns the labels without factors that are completely frozen, which need not be followed any further."""
        return tuple(factor for factor in labels if not self.frozen[factor.atoms_].all())

    def meet(self, larger: Factor, smaller: Factor) -> None:
        """Records that both factors label the same positions, ``smaller`` over some of the dimensions only."""
        if larger.dims == smaller.dims:
            self.tie(larger.atoms_, smaller.atoms_)
        else:
            self.meetings.append((larger, smaller))

    def combine(self, factors: Iterable[Factor]) -> Labels:
        """Returns the labels of a tensor that has to follow all ``factors`` (over its own dimensions)."""
        combined: list[Factor] = []
        for together in _overlapping(list(factors)):
            dims = set().union(*(factor.dims for factor in together))
            base = max(together, key=lambda factor: len(factor.dims))
            if len(base.dims) < len(dims):  # no factor has all dimensions: use those that all of them share
                shared = set.intersection(*(set(factor.dims) for factor in together))
                if not shared:
                    self.freeze(together)
                    continue
                together = [factor.only(shared, self) for factor in together]
                base = together[0]
            for factor in together:
                if factor is not base:
                    self.meet(base, factor)
            combined.append(base)
        return tuple(sorted(combined, key=lambda factor: factor.dims))

    def reshaped(self, labels: Labels, old: Sequence[int], new: Sequence[int]) -> Labels:
        """Returns the labels after a view of shape ``old`` as ``new``.

        If two factors become one dimension, such as heads and the values that all of them share, the units are those of the outer one.
        """
        blocks = list(_blocks(old, new))
        used: set[int] = set()
        reshaped: list[Factor] = []
        for factor in labels:
            affected = [index for index, (before, _) in enumerate(blocks) if any(dim in factor.dims for dim in before)]
            if used & set(affected) or math.prod(old[dim] for index in affected for dim in blocks[index][0]) > MOST_POSITIONS:
                self.freeze([factor])
                continue
            used |= set(affected)
            before = [dim for index in affected for dim in blocks[index][0]]
            after = [dim for index in affected for dim in blocks[index][1]]
            atoms_ = np.broadcast_to(factor.spread(before), [old[dim] for dim in before]).reshape([new[dim] for dim in after])
            varying = _varying(after, atoms_)
            if varying is not None:
                reshaped.append(varying)
                if len(varying.dims) > 1:
                    self.products.append(varying)
        return tuple(sorted(reshaped, key=lambda factor: factor.dims))


def factor_of(labels: Labels, dim: int) -> Factor | None:
    """Returns the factor that contains ``dim``; None if no factor does."""
    return next((factor for factor in labels if dim in factor.dims), None)


def _varying(dims: Sequence[int], atoms_: Atoms) -> Factor | None:
    """Returns the factor without dimensions along which the atoms are the same; None if none remains."""
    kept = list(dims)
    for dim in dims:
        axis = kept.index(dim)
        first_ = atoms_.take([0], axis)
        if atoms_.shape[axis] == 1 or bool((atoms_ == first_).all()):
            atoms_ = first_.squeeze(axis)
            kept.remove(dim)
    return Factor(tuple(kept), atoms_) if kept else None


def _overlapping(factors: list[Factor]) -> Iterator[list[Factor]]:
    """Yields sets of factors that share dimensions, directly or through others."""
    while factors:
        together = more = [factors.pop(0)]
        while more:
            dims = {dim for factor in together for dim in factor.dims}
            more = [factor for factor in factors if dims & set(factor.dims)]
            factors = [factor for factor in factors if not dims & set(factor.dims)]
            together = together + more
        yield together


def _blocks(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Yields the shortest runs of dimensions of both shapes that contain the same positions."""
    before: list[int] = []
    after: list[int] = []
    left, right = 1, 1
    next_old, next_new = 0, 0
    while next_old < len(old) or next_new < len(new):
        if next_old < len(old) and (left <= right or next_new == len(new)):
            before.append(next_old)
            left *= old[next_old]
            next_old += 1
        elif next_new < len(new):
            after.append(next_new)
            right *= new[next_new]
            next_new += 1
        if left == right and before and after:
            yield before, after
            before, after, left, right = [], [], 1, 1
    if before or after:
        yield before, after

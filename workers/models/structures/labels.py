"""Which positions of a tensor go together: atoms along its dimensions, followed through views and products.

An atom is a position along one dimension of a parameter or buffer. Operations tie atoms: what is added has to keep the same positions. The
ties of a whole forward pass make classes, and a class is what can be taken out at once (``structures_traced.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FROZEN = 0  # the atom that stays, and with it every other that is tied to it
MOST_POSITIONS = 4_000_000  # of one factor: beyond it, what is reshaped stays

Atoms = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Factor:
    """Atoms of all positions in ``dims`` (sorted) together: one number for each position of their product.

    Most factors have one dimension. Several come from splitting one, such as the outputs of a layer into heads and what is inside a head;
    which of the dimensions units are taken from is seen later.
    """

    dims: tuple[int, ...]
    atoms_: Atoms

    def without(self, dim: int, ties: Ties) -> Factor | None:
        """Positions that differ in ``dim`` alone tied, and that dimension gone; None if it was the only one."""
        merged = self.tied_along([dim], ties)
        if len(self.dims) == 1:
            return None
        axis = self.dims.index(dim)
        return Factor(tuple(other for other in self.dims if other != dim), merged.atoms_.take([0], axis).squeeze(axis))

    def tied_along(self, dims: Iterable[int], ties: Ties) -> Factor:
        """Positions that differ in ``dims`` alone tied; a factor with no other dimension stays as it is."""
        within = [dim for dim in dims if dim in self.dims]
        if len(within) < len(self.dims):
            for dim in within:
                axis = self.dims.index(dim)
                ties.tie(self.atoms_, self.atoms_.take([0], axis))
        return self

    def only(self, dims: Iterable[int], ties: Ties) -> Factor:
        """Over those of its dimensions that are among ``dims``; the others are tied along."""
        kept = set(dims)
        found: Factor = self
        for dim in self.dims:
            if dim not in kept:
                found = found.without(dim, ties) or found
        return found

    def moved(self, to: Mapping[int, int]) -> Factor:
        """Under other names of its dimensions."""
        dims = [to[dim] for dim in self.dims]
        order = np.argsort(dims)
        return Factor(tuple(dims[index] for index in order), self.atoms_.transpose(order))

    def spread(self, dims: Sequence[int]) -> Atoms:
        """Its atoms with an axis for each of ``dims``, of length 1 for those that are not its own."""
        shape = iter(self.atoms_.shape)
        return self.atoms_.reshape([next(shape) if dim in self.dims else 1 for dim in dims])


Labels = tuple[Factor, ...]  # of a tensor; no two share a dimension


@dataclass
class Ties:
    """Pairs of atoms that go together, and what is to be decided when all are known."""

    atoms: int = 1  # so far; the first is FROZEN
    pairs: list[tuple[Atoms, Atoms]] = field(default_factory=list)
    meetings: list[tuple[Factor, Factor]] = field(default_factory=list)  # of a larger factor and one over some of its dimensions
    products: list[Factor] = field(default_factory=list)  # factors of several dimensions
    stays: Atoms = field(default_factory=lambda: np.zeros(1, np.int64))  # 1 for each atom that was frozen itself

    def fresh(self, count: int) -> Atoms:
        self.atoms += count
        self.stays = (
            np.concatenate([self.stays, np.zeros(max(count, len(self.stays)), np.int64)]) if self.atoms > len(self.stays) else self.stays
        )
        return np.arange(self.atoms - count, self.atoms, dtype=np.int64)

    def tie(self, left_: Atoms, right_: Atoms) -> None:
        left_, right_ = np.broadcast_arrays(left_, right_)
        differ = left_ != right_
        if differ.any():
            self.pairs.append((left_[differ], right_[differ]))

    def freeze(self, factors: Iterable[Factor]) -> None:
        for factor in factors:
            self.tie(np.unique(factor.atoms_), np.array([FROZEN], np.int64))
            self.stays[factor.atoms_] = 1

    def fix(self, factors: Iterable[Factor], dim: int) -> None:
        """Units are not along ``dim``: something else has all of its positions. Along others they may still be."""
        for factor in factors:
            if len(factor.dims) == 1:
                self.freeze([factor])
            else:
                factor.tied_along([dim], self)

    def free(self, labels: Labels) -> Labels:
        """Without factors of which all is frozen: nothing more is to be learned of them."""
        return tuple(factor for factor in labels if not self.stays[factor.atoms_].all())

    def meet(self, larger: Factor, smaller: Factor) -> None:
        """Both label the same positions, ``smaller`` over some of the dimensions only, the same for all positions in the others."""
        if larger.dims == smaller.dims:
            self.tie(larger.atoms_, smaller.atoms_)
        else:
            self.meetings.append((larger, smaller))

    def combine(self, factors: Iterable[Factor]) -> Labels:
        """Labels of a tensor that has to follow all ``factors`` (over its own dimensions)."""
        found: list[Factor] = []
        for together in _overlapping(list(factors)):
            dims = set().union(*(factor.dims for factor in together))
            base = max(together, key=lambda factor: len(factor.dims))
            if len(base.dims) < len(dims):  # each has dimensions of its own: only what all of them share is left
                shared = set.intersection(*(set(factor.dims) for factor in together))
                if not shared:
                    self.freeze(together)
                    continue
                together = [factor.only(shared, self) for factor in together]
                base = together[0]
            for factor in together:
                if factor is not base:
                    self.meet(base, factor)
            found.append(base)
        return tuple(sorted(found, key=lambda factor: factor.dims))

    def reshaped(self, labels: Labels, old: Sequence[int], new: Sequence[int]) -> Labels:
        """After a view of shape ``old`` as ``new``.

        Of two factors that become one dimension, such as heads and the values that all of them share, the outer one tells the units.
        """
        blocks = list(_blocks(old, new))
        seen: set[int] = set()
        found: list[Factor] = []
        for factor in labels:
            touched = [index for index, (before, _) in enumerate(blocks) if any(dim in factor.dims for dim in before)]
            if seen & set(touched) or math.prod(old[dim] for index in touched for dim in blocks[index][0]) > MOST_POSITIONS:
                self.freeze([factor])
                continue
            seen |= set(touched)
            before = [dim for index in touched for dim in blocks[index][0]]
            after = [dim for index in touched for dim in blocks[index][1]]
            whole = np.broadcast_to(factor.spread(before), [old[dim] for dim in before]).reshape([new[dim] for dim in after])
            made = _varying(after, whole)
            if made is not None:
                found.append(made)
                if len(made.dims) > 1:
                    self.products.append(made)
        return tuple(sorted(found, key=lambda factor: factor.dims))


def whole(labels: Labels, dim: int) -> Factor | None:
    """The factor that ``dim`` belongs to."""
    return next((factor for factor in labels if dim in factor.dims), None)


def _varying(dims: Sequence[int], atoms_: Atoms) -> Factor | None:
    """Without dimensions along which the atoms are the same."""
    left = list(dims)
    for dim in dims:
        axis = left.index(dim)
        first_ = atoms_.take([0], axis)
        if atoms_.shape[axis] == 1 or bool((atoms_ == first_).all()):
            atoms_ = first_.squeeze(axis)
            left.remove(dim)
    return Factor(tuple(left), atoms_) if left else None


def _overlapping(factors: list[Factor]) -> Iterator[list[Factor]]:
    """Factors that share dimensions, directly or through others."""
    while factors:
        together = more = [factors.pop(0)]
        while more:
            dims = {dim for factor in together for dim in factor.dims}
            more = [factor for factor in factors if dims & set(factor.dims)]
            factors = [factor for factor in factors if not dims & set(factor.dims)]
            together = together + more
        yield together


def _blocks(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The shortest runs of dimensions of both shapes that hold the same positions."""
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

"""Spreads a sparsity target over the layers, from counts and histograms of scores, whatever the pruner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernels.patterns import parse
from workers.models.base import Layer
from workers.pruners.base import Scope, Target

if TYPE_CHECKING:
    from torch import Tensor

# Returns a histogram of the scores of each layer: of their high 16 bits, or of the low 16 bits inside one high bin.
Histograms = Callable[[int | None], Sequence["Tensor"]]
Allocation = dict[str, int]  # for each layer, the tiles to mask beyond those that are masked already


@dataclass(frozen=True)
class Tiles:
    """The tiles (single weights, or groups of weights that are masked together) of a layer, and those that can still be masked."""

    total: int
    removable: int


def allocate(target: Target, layers: Sequence[Layer], tiles: Mapping[str, Tiles], histograms: Histograms) -> Allocation:
    """Spreads a target over the layers, so that exactly ``round(s * d)`` of ``d`` tiles are masked (more only if more were before).

    Scope ``global`` masks the lowest scores of all layers; equal scores are masked in the order of the layers, then of their positions.
    An N:M pattern leaves no choice: every bucket masks what it can.
    """
    names = [layer.name for layer in layers]
    if parse(target.pattern).bucket:
        return {name: tiles[name].removable for name in names}
    masked = {name: tiles[name].total - tiles[name].removable for name in names}
    if target.scope is Scope.GLOBAL:
        missing = max(0, round(target.sparsity * sum(tiles[name].total for name in names)) - sum(masked.values()))
        return dict(zip(names, _lowest(missing, histograms), strict=True))
    return {name: max(0, count - masked[name]) for name, count in _fixed(target, layers, tiles).items()}


def _lowest(count: int, histograms: Histograms) -> list[int]:
    """Returns how many of the ``count`` lowest scores are in each layer: exact, from two passes over the histograms."""
    from kernels.select import find_bin

    high = histograms(None)
    if count == 0:
        return [0] * len(high)
    high_bin, before_high = find_bin(sum(high[1:], start=high[0]), count)
    low = histograms(high_bin)
    low_bin, before_low = find_bin(sum(low[1:], start=low[0]), count - before_high)
    counts = [int(top[:high_bin].sum() + bottom[:low_bin].sum()) for top, bottom in zip(high, low, strict=True)]
    ties = count - before_high - before_low
    for index, histogram in enumerate(low):
        tied = min(ties, int(histogram[low_bin]))
        counts[index] += tied
        ties -= tied
    return counts


def _fixed(target: Target, layers: Sequence[Layer], tiles: Mapping[str, Tiles]) -> dict[str, int]:
    """Returns the tiles to mask in each layer for given sparsities; rounding is spread so that the total is exact."""
    sparsities = target.by_layer(layers)
    exact = {layer.name: sparsities[layer.name] * tiles[layer.name].total for layer in layers}
    counts = {name: int(amount) for name, amount in exact.items()}
    missing = round(sum(exact.values())) - sum(counts.values())
    for name in sorted(exact, key=lambda name: counts[name] - exact[name])[:missing]:
        counts[name] += 1
    return counts

"""How much each layer loses: central, and ignorant of pruners. It sees counts and histograms, never scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from kernels.patterns import parse
from workers.errors import ConfigError
from workers.models.base import Layer
from workers.pruners.base import Scope, Target

if TYPE_CHECKING:
    from torch import Tensor

Histograms = Callable[[int | None], Sequence["Tensor"]]  # of all layers in order: high 16 bits, or the low ones inside a high bin


Allocation = dict[str, int]  # tiles to prune in each layer, beyond those that are gone already


@dataclass(frozen=True)
class Tiles:
    """How many tiles (single weights, or groups that go together) a layer has, and how many of them can still be removed."""

    total: int
    removable: int


def allocate(target: Target, layers: Sequence[Layer], tiles: Mapping[str, Tiles], histograms: Histograms) -> Allocation:
    """Spread a target over the layers so that exactly ``round(s * d)`` of ``d`` tiles end up pruned (more only if more were already).

    ``global``: the lowest scores of all layers, equal ones in the order of layers, then of their position in the layer.
    N:M leaves no choice: every bucket gives what it can.
    """
    names = [layer.name for layer in layers]
    if parse(target.pattern).bucket:
        return {name: tiles[name].removable for name in names}
    gone = {name: tiles[name].total - tiles[name].removable for name in names}
    if target.scope is Scope.GLOBAL:
        wanted = max(0, round(target.sparsity * sum(tiles[name].total for name in names)) - sum(gone.values()))
        return dict(zip(names, _lowest(wanted, histograms), strict=True))
    return {name: max(0, count - gone[name]) for name, count in _fixed(target, layers, tiles).items()}


def _lowest(wanted: int, histograms: Histograms) -> list[int]:
    """How many of the ``wanted`` lowest scores lie in each layer: exact, from two rounds of histograms."""
    from kernels.select import find_bin

    high = histograms(None)
    if wanted == 0:
        return [0] * len(high)
    high_bin, before_high = find_bin(sum(high[1:], start=high[0]), wanted)
    low = histograms(high_bin)
    low_bin, before_low = find_bin(sum(low[1:], start=low[0]), wanted - before_high)
    counts = [int(top[:high_bin].sum() + bottom[:low_bin].sum()) for top, bottom in zip(high, low, strict=True)]
    ties_left = wanted - before_high - before_low
    for index, histogram in enumerate(low):
        taken = min(ties_left, int(histogram[low_bin]))
        counts[index] += taken
        ties_left -= taken
    return counts


def asked_sparsity(target: Target, layers: Sequence[Layer]) -> float:
    """The fraction of all prunable weights that a target amounts to."""
    if target.scope is not Scope.PER_LAYER:
        return target.sparsity
    sparsities = layer_sparsities(target, layers)
    return sum(sparsities[layer.name] * layer.weights for layer in layers) / sum(layer.weights for layer in layers)


def _fixed(target: Target, layers: Sequence[Layer], tiles: Mapping[str, Tiles]) -> dict[str, int]:
    """Tiles pruned per layer when sparsities are given; rounding is spread so that the total is exact."""
    sparsities = layer_sparsities(target, layers)
    exact = {layer.name: sparsities[layer.name] * tiles[layer.name].total for layer in layers}
    counts = {name: int(amount) for name, amount in exact.items()}
    short = round(sum(exact.values())) - sum(counts.values())
    for name in sorted(exact, key=lambda name: counts[name] - exact[name])[:short]:
        counts[name] += 1
    return counts


def layer_sparsities(target: Target, layers: Sequence[Layer]) -> dict[str, float]:
    """Sparsity of each layer for scopes ``uniform`` and ``per_layer`` (unmatched layers stay dense).

    Raises: ConfigError if a pattern matches no layer.
    """
    if target.scope is Scope.UNIFORM:
        return {layer.name: target.sparsity for layer in layers}
    for pattern in target.per_layer:
        if not any(fnmatchcase(layer.name, pattern) for layer in layers):
            names = ", ".join(layer.name for layer in layers[:3])
            raise ConfigError(f"pruner.target.per_layer: {pattern!r} matches none of the {len(layers)} layers ({names}, …)")
    return {layer.name: next((s for pattern, s in target.per_layer.items() if fnmatchcase(layer.name, pattern)), 0.0) for layer in layers}

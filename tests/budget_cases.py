"""Times that follow from zeros alone, for runs with a budget of latency on machines that are not idle."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from workers import sparse_times
from workers.latency import Comparison, Timing
from workers.sparse import RowsProduct, SparseLayer

PART = 0.8  # of the dense model's time that its layers have


def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is timed as ever, and then a layer takes a microsecond for each weight that is left."""
    clocked, time_in_turn = sparse_times.clocked, sparse_times.time_in_turn

    def by_weights(run: Callable[[], object], *settings: Any) -> Timing:
        (product,) = (cell.cell_contents for cell in run.__closure__ if isinstance(cell.cell_contents, nn.Module | RowsProduct))  # type: ignore[union-attr]
        left = len(product.rows.values) if isinstance(product, RowsProduct) else product.weight.numel()
        return replace(clocked(run, *settings), ms=1e-3 * left)

    def by_zeros(models: Sequence[nn.Module], beside: nn.Module, *settings: Any) -> list[Comparison]:
        pruned = {layer.weight for layer in beside.modules() if isinstance(layer, nn.Linear)} - {beside.get_submodule("head").weight}
        layers = [layer for layer in models[0].modules() if isinstance(layer, SparseLayer)]
        saved = sum(layer.zeros * layer.weight.numel() for layer in layers) / sum(weight.numel() for weight in pruned)
        dense_ms = 1e-3 * sum(weight.numel() for weight in pruned) / PART
        (measured,) = time_in_turn(models, beside, *settings)
        return [replace(measured, ratio=1 - PART * saved, beside_ms=dense_ms)]

    monkeypatch.setattr(sparse_times, "clocked", by_weights)
    monkeypatch.setattr(sparse_times, "time_in_turn", by_zeros)

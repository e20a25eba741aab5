"""Staircases: few measurements tell all sizes, equal layers share theirs, and predictions are sums of entries."""

from types import SimpleNamespace

import pytest
import torch

from orchestrator.allocation.latency_table import build_table, fill
from workers.models.operations import find_operations
from workers.models.structures.find import find_groups
from workers.models.timm import TimmModel

SHAPE = (3, 32, 32)


def resnet():
    return TimmModel(checkpoint=None, name="resnet18", arguments={"num_classes": 10}, include=["*"], exclude=[])


def measured(shape, time):
    """Fill a table by measuring what it asks for; returns it and how many sizes were measured."""
    ms_at, asked = {}, 1
    while asked:
        found, missing = fill(shape, ms_at, 0.0)
        asked = len(missing)
        ms_at |= {cell: time(*cell) for cell in missing}
    return found, len(ms_at)


@pytest.mark.parametrize("step", [1, 4, 8, 16])
def test_a_staircase_is_found_whole_and_plateaus_cost_few_measurements(step):
    found, count = measured((64,), lambda at: 1.0 + at // step)
    assert all(found[at,] == 1.0 + at // step for at in range(64))
    assert count <= min(64, 5 * 64 // step)


def test_a_flat_table_takes_two_measurements():
    assert measured((16, 16), lambda first, second: 2.0) == ({(a, b): 2.0 for a in range(16) for b in range(16)}, 2)


def test_products_are_measured_at_every_size():
    found, count = measured((8, 8), lambda first, second: float((first + 1) * (second + 1)))
    assert count == 64 and found[3, 5] == 24.0


def test_what_was_not_measured_is_never_told_faster_than_the_end_of_its_plateau():
    found, _ = measured((32,), lambda at: 10.0 + 0.004 * at)
    assert all(found[at,] >= 10.0 + 0.004 * at for at in range(32))


def table_of(family, price, widths=8):
    groups = find_groups(family, SHAPE, streams=False)
    operations = find_operations(family, SHAPE, 1, groups)
    asked = []

    def measure(wanted):
        asked.extend(wanted)
        prices = [price(operations[number].at(units)) for number, units in wanted]
        return [SimpleNamespace(numbers={"ms": found}, fingerprint=str(case)) for case, found in zip(wanted, prices, strict=True)]

    total = sum(price(operation.at([axis.units for axis in operation.axes])) for operation in operations)
    return groups, operations, build_table(operations, widths, 2 * total, measure), asked


def weights(case):
    """A price that can be checked: weights of the convolutions and linear layers of an operation."""
    found = 0
    for module in case.module.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            found += module.weight.numel()
    return float(found)


def test_the_parts_of_a_model_sum_to_its_time_and_narrower_ones_to_what_their_layers_cost():
    """With weights for milliseconds: at half of all units, the weights of the shrunk layers, scaled as the dense model."""
    groups, operations, table, _ = table_of(resnet(), weights)
    parts = table.parts()
    assert sum(part.value({group.name: group.units for group in groups}) for part in parts) == pytest.approx(2 * table.total_ms)
    half = {group.name: group.units // 2 for group in groups}
    expected = sum(weights(operation.at([sum(half[name] for name in axis.groups) for axis in operation.axes])) for operation in operations)
    assert sum(part.value(half) for part in parts) == pytest.approx(2 * expected, rel=0.03)


def test_equal_layers_are_measured_once():
    _, operations, table, asked = table_of(resnet(), weights)
    texts = [operations[number].at(units).text for number, units in asked]
    assert len(set(texts)) > 0.8 * len(texts)
    assert len(asked) < 0.75 * table.asked


def test_a_layer_without_units_takes_no_time():
    groups, _, table, _ = table_of(resnet(), weights)
    gone = {group.name: 0 for group in groups}
    assert all(part.value(gone) == 0 for part in table.parts() if part.groups)

"""Staircases: few measurements give the times of all sizes, equal layers share them, and predictions are sums of entries."""

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
    """Returns a table that is filled by measuring the missing cells, and how many cells were measured."""
    ms_at, missing = {}, [()]
    while missing:
        filled, missing = fill(shape, ms_at, 0.0)
        ms_at |= {cell: time(*cell) for cell in missing}
    return filled, len(ms_at)


@pytest.mark.parametrize("step", [1, 4, 8, 16])
def test_a_staircase_is_complete_and_plateaus_take_few_measurements(step):
    times, count = measured((64,), lambda cell: 1.0 + cell // step)
    assert all(times[cell,] == 1.0 + cell // step for cell in range(64))
    assert count <= min(64, 5 * 64 // step)


def test_a_flat_table_takes_two_measurements():
    assert measured((16, 16), lambda first, second: 2.0) == ({(a, b): 2.0 for a in range(16) for b in range(16)}, 2)


def test_products_are_measured_at_every_size():
    times, count = measured((8, 8), lambda first, second: float((first + 1) * (second + 1)))
    assert count == 64 and times[3, 5] == 24.0


def test_a_size_that_was_not_measured_is_as_slow_as_the_end_of_its_plateau():
    times, _ = measured((32,), lambda cell: 10.0 + 0.004 * cell)
    assert all(times[cell,] >= 10.0 + 0.004 * cell for cell in range(32))


def table_of(family, price, widths=8):
    groups = find_groups(family, SHAPE, streams=False)
    operations = find_operations(family, SHAPE, 1, groups)
    measured_cases = []

    def measure(cases):
        measured_cases.extend(cases)
        prices = [price(operations[number].at(units)) for number, units in cases]
        return [SimpleNamespace(numbers=SimpleNamespace(ms=ms), fingerprint=str(case)) for case, ms in zip(cases, prices, strict=True)]

    total = sum(price(operation.at([axis.units for axis in operation.axes])) for operation in operations)
    return groups, operations, build_table(operations, widths, 2 * total, measure), measured_cases


def weights(case):
    """A price that can be checked: the weights of the convolutions and linear layers of an operation."""
    count = 0
    for module in case.module.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            count += module.weight.numel()
    return float(count)


def test_the_parts_of_a_model_sum_to_its_time_and_those_of_a_narrower_model_to_that_of_its_layers():
    """Weights stand for milliseconds: at half of all units, those of the smaller layers, scaled like the dense model."""
    groups, operations, table, _ = table_of(resnet(), weights)
    parts = table.parts()
    assert sum(part.value({group.name: group.units for group in groups}) for part in parts) == pytest.approx(2 * table.total_ms)
    half = {group.name: group.units // 2 for group in groups}
    expected = sum(weights(operation.at([sum(half[name] for name in axis.groups) for axis in operation.axes])) for operation in operations)
    assert sum(part.value(half) for part in parts) == pytest.approx(2 * expected, rel=0.03)


def test_equal_layers_are_measured_once():
    _, operations, table, measured_cases = table_of(resnet(), weights)
    texts = [operations[number].at(units).text for number, units in measured_cases]
    assert len(set(texts)) > 0.8 * len(texts)
    assert len(measured_cases) < 0.75 * table.all_sizes


def test_a_layer_without_units_takes_no_time():
    groups, _, table, _ = table_of(resnet(), weights)
    no_units = {group.name: 0 for group in groups}
    assert all(part.value(no_units) == 0 for part in table.parts() if part.groups)

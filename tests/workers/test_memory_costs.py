"""The memory cost after units are removed is that of the smaller model."""

import pytest
import torch
from structure_cases import FAMILIES, family, half, on_meta
from torch import nn

from workers.models.memory_costs import Memory, written
from workers.models.shrunk import shrunk
from workers.models.structures.groups import take

ALIKE = [pytest.param(name, marks=pytest.mark.slow) for name in ("efficientnet_b0", "mobilenetv3_small_100")]
CHECKED = ("resnet18", "convnext_atto", "vit_giant_patch14_dinov2", *ALIKE)


def test_written_numbers_are_counted_as_by_hand():
    """Eight maps of 4 x 4 by a convolution and again by its norm, nothing in place, their means, no view of these, ten numbers, twice."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(8, 10), nn.Sigmoid()).eval()
    assert written(model, torch.randn(1, 3, 4, 4)) == 2 * 8 * 16 + 8 + 10 + 10


@pytest.mark.parametrize("name", CHECKED)
def test_memory_falls_to_that_of_the_smaller_model(name):
    """Removing half of the units of all groups one by one equals the sum of parts, except for a copy that a single head does not need."""
    arguments, size = FAMILIES[name]
    made = family(name, **arguments)
    groups = on_meta(made, size)
    cost, kept = Memory(made, groups, (3, size, size)), {group.name: half(group.units) for group in groups}
    parts, units = cost.parts(groups), {name: int(kept_U.sum()) for name, kept_U in kept.items()}
    assert sum(part.value({group.name: group.units for group in groups}) for part in parts) == cost.total
    by_parts = sum(part.value(units) for part in parts)
    for group in groups:
        for _ in range(int((~kept[group.name]).sum())):
            cost.take(group)
    with torch.device("meta"):
        state, image_1CHW = made.build().state_dict(), torch.empty(1, 3, size, size)
    after = shrunk(made, state, take(state, groups, kept), groups, kept)
    with torch.device("meta"):
        small = after.build().eval()
    held = 4 * (sum(parameter.numel() for parameter in small.parameters()) + written(small, image_1CHW))
    assert cost.total == by_parts == pytest.approx(held, rel=0 if "vit" not in name else 0.005)

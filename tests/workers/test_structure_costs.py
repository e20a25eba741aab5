"""What a model costs as units go is what torch itself counts of the smaller model."""

import pytest
import torch
from structure_cases import forward_flops, half, on_meta
from test_structure import FAMILIES, family

from workers import structure_costs
from workers.models.shrunk import shrunk
from workers.structure import take


@pytest.mark.parametrize("name", FAMILIES)
def test_costs_fall_to_what_torch_counts_of_the_smaller_model(name):
    """Multiply-adds by torch's counter, parameters by their number; before and after units went one by one."""
    arguments, size = FAMILIES[name]
    made = family(name, **arguments)
    groups = on_meta(made, size)
    with torch.device("meta"):
        model, image_1CHW = made.build().eval(), torch.empty(1, 3, size, size)
    macs, parameters, units = structure_costs.macs(model, image_1CHW), structure_costs.parameters(model), structure_costs.Count(groups)
    assert 2 * macs.total == forward_flops(model, image_1CHW)
    assert parameters.total == sum(parameter.numel() for parameter in model.parameters())
    torch.manual_seed(0)
    kept = {group.name: half(group.units) for group in groups}
    for group in groups:
        for _ in range(int((~kept[group.name]).sum())):
            for cost in (macs, parameters, units):
                cost.take(group)
    state = take(model.state_dict(), groups, kept)
    with torch.device("meta"):
        small = shrunk(made, model.state_dict(), state).build().eval()
    assert 2 * macs.total == forward_flops(small, image_1CHW)
    assert parameters.total == sum(parameter.numel() for parameter in small.parameters())
    assert units.total == sum(int(stays.sum()) for stays in kept.values())

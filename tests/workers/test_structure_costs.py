"""The costs after units are removed are those that torch counts for the smaller model."""

import pytest
import torch
from structure_cases import FAMILIES, family, forward_flops, half, on_meta

from workers.models import structure_costs
from workers.models.shrunk import shrunk
from workers.models.structures.find import find_groups
from workers.models.structures.groups import take
from workers.models.torchvision import TorchvisionModel

ALIKE = ("densenet121", "mobilenetv2_100", "efficientnet_b0", "resnet50d", "convnext_atto", "deit_tiny_distilled_patch16_224")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in FAMILIES])
def test_costs_fall_to_those_that_torch_counts_for_the_smaller_model(name):
    """Multiply-adds by torch's counter, parameters by their number; before and after units went one by one."""
    arguments, size = FAMILIES[name]
    made = family(name, **arguments)
    groups = on_meta(made, size)
    with torch.device("meta"):
        model, image_1CHW = made.build().eval(), torch.empty(1, 3, size, size)
    macs, parameters, units = (
        structure_costs.macs(model, image_1CHW, groups),
        structure_costs.parameters(model),
        structure_costs.Count(groups),
    )
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
        small = shrunk(made, model.state_dict(), state, groups, kept).build().eval()
    assert 2 * macs.total == forward_flops(small, image_1CHW)
    assert parameters.total == sum(parameter.numel() for parameter in small.parameters())
    assert units.total == sum(int(stays.sum()) for stays in kept.values())


def test_attention_outside_of_all_units_is_counted_too():
    """torchvision's ViT, whose heads stay: neurons are a fraction of all of it, not of the layers that are seen alone."""
    made = TorchvisionModel(
        checkpoint=None, name="vit_b_32", arguments={"image_size": 64, "num_classes": 10}, include=["*"], exclude=[], stem_and_head=False
    )
    with torch.device("meta"):
        model, image_1CHW = made.build().eval(), torch.empty(1, 3, 64, 64)
    groups = find_groups(made, (3, 64, 64), streams=False)
    macs, (group, *_) = structure_costs.macs(model, image_1CHW, groups), groups
    assert 2 * macs.total == forward_flops(model, image_1CHW)
    before = macs.total
    macs.take(group)
    assert before - macs.total == 2 * 768 * 5  # a row and a column of the embedding's width, for each of 5 tokens

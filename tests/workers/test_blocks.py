"""Blocks of models: which modules they are, and what computing them again changes: memory, and no gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from workers.models.base import ModelFamily
from workers.models.blocks import find_blocks, recompute
from workers.models.profile import profile
from workers.models.timm import TimmModel
from workers.models.torchvision import TorchvisionModel

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 6, "num_heads": 2}


def family(kind: type, name: str, **arguments: object) -> ModelFamily:
    return kind(name=name, arguments={"num_classes": 10} | arguments, checkpoint=None, include=["*"], exclude=[], stem_and_head=True)


@pytest.mark.parametrize(
    ("made", "expected", "count"),
    [
        (family(TimmModel, "vit_tiny_patch16_224", **VIT), "Block", 6),
        (family(TimmModel, "convnext_atto"), "ConvNeXtBlock", 12),
        (family(TimmModel, "swin_tiny_patch4_window7_224"), "SwinTransformerBlock", 12),
        (family(TorchvisionModel, "swin_t"), "SwinTransformerBlock", 12),
        (family(TimmModel, "resnet18"), "", 0),  # batch norms would see every batch twice
        (family(TorchvisionModel, "alexnet"), "", 0),  # nothing repeats
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_blocks_are_what_people_call_blocks(made: ModelFamily, expected: str, count: int) -> None:
    with torch.device("meta"):
        blocks = find_blocks(made.build())
    assert [type(block).__name__ for block in blocks] == [expected] * count


def test_blocks_within_blocks_are_not_counted() -> None:
    class Pair(nn.Sequential): ...

    inner = [Pair(nn.Linear(4, 4), nn.ReLU()) for _ in range(4)]
    outer = [Pair(*inner[:2]), Pair(*inner[2:])]
    assert find_blocks(nn.ModuleList(outer)) == outer


def test_gradients_are_equal_and_the_bytes_kept_fall_as_predicted() -> None:
    """What a forward pass leaves allocated, by torch's profiler: activations that are kept, without the block that is computed again."""
    made = family(TimmModel, "vit_tiny_patch16_224", **VIT)
    torch.manual_seed(0)
    model, images_NCHW = made.build().train(), torch.randn(8, 3, 32, 32)
    again = recompute(copy.deepcopy(model))

    sizes = profile(made, (3, 32, 32))
    kept, kept_again = allocated(model, images_NCHW), allocated(again, images_NCHW)
    assert kept == pytest.approx(8 * sizes.activation_bytes, rel=0.1)
    one_block = (sizes.activation_bytes - sizes.recomputed_bytes) / 5  # all blocks are alike; one of the six is there at a time
    assert kept_again + 8 * one_block == pytest.approx(8 * sizes.recomputed_bytes, rel=0.2)

    for each in (model, again):
        each.zero_grad()
        each(images_NCHW).square().sum().backward()
    assert all(torch.equal(mine.grad, its.grad) for mine, its in zip(model.parameters(), again.parameters(), strict=True))


def allocated(model: nn.Module, images_NCHW: torch.Tensor) -> int:
    """Bytes that a forward pass allocates and does not give back while its output lives."""
    model(images_NCHW)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        output = model(images_NCHW)
    assert output.requires_grad
    return sum(event.self_cpu_memory_usage for event in profiler.events())

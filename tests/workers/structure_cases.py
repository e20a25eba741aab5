"""Models in float64, choices of their units, and the comparison of a model without units with the silenced one."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from workers.models.shrunk import shrunk
from workers.models.structures.find import find_structure
from workers.models.structures.groups import mask_, take
from workers.models.timm import TimmModel

VIT = {"img_size": 28, "depth": 2, "embed_dim": 48, "num_heads": 4}
FAMILIES = {
    "vit_tiny_patch16_224": (VIT | {"img_size": 32, "qkv_bias": False}, 32),
    "deit_tiny_distilled_patch16_224": (VIT | {"img_size": 32}, 32),
    "vit_small_patch14_reg4_dinov2": (VIT, 28),  # LayerScale and registers
    "vit_giant_patch14_dinov2": (VIT, 28),  # both halves of a SwiGLU in one matrix
    "vit_little_patch16_reg4_gap_256": (VIT | {"img_size": 32}, 32),
    "eva02_tiny_patch14_224": (VIT, 28),  # rotary positions; both halves of a SwiGLU in one matrix
    "vit_small_plus_patch16_dinov3": (VIT | {"img_size": 32}, 32),  # ... in two
    "resnet18": ({}, 32),
    "resnet50d": ({}, 32),
    "densenet121": ({}, 32),  # concatenations: several groups in one input
    "mobilenetv2_100": ({}, 32),
    "mobilenetv3_small_100": ({}, 64),
    "efficientnet_b0": ({}, 32),
    "tf_efficientnet_lite0": ({}, 32),
    "regnety_002": ({}, 32),  # grouped convolutions, whose channels stay
    "convnext_atto": ({}, 32),
    "convnext_tiny": ({"dims": [16, 32, 64, 96], "depths": [1, 1, 2, 1]}, 64),
    "mixer_s32_224": ({"img_size": 64}, 64),
}


def family(name, **arguments):
    return TimmModel(name=name, arguments={"num_classes": 10} | arguments, checkpoint=None, include=["*"], exclude=[])


def on_meta(made, size, channels=3):
    return find_structure(made, (channels, size, size)).groups


def trained_looking(made, seed=0):
    """In float64 and eval mode, with no zeros, ones or equal numbers where initial weights have them."""
    torch.manual_seed(seed)
    model = made.build().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.8, 1.5)
    return model


def half(units):
    kept = torch.rand(units) < 0.5
    kept[int(torch.randint(units, (1,)))] = True
    return kept


def one(units):
    return torch.arange(units) == int(torch.randint(units, (1,)))


def forward_flops(model, images_NCHW):
    model.requires_grad_(False)  # torch's counter fails on expanded parameters that require gradients, as CaiT's class token
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images_NCHW)
    return counter.get_total_flops()


def silenced(made, state, groups, kept):
    model = made.build().double().eval()
    model.load_state_dict(state)
    mask_(dict(model.named_parameters()), groups, kept)
    return model


def smaller(made, model, groups, kept):
    state = take(model.state_dict(), groups, kept)
    reduced = shrunk(made, model.state_dict(), state, groups, kept)
    built = reduced.build().double().eval()
    built.load_state_dict(state)
    return reduced, built


def assert_the_same_without_units(made, size, choose):
    """Without the units that ``choose`` leaves out the model is the one with them silenced: in float64 to rounding, with fewer weights,
    and fewer flops by torch's own count.
    """
    groups, model = on_meta(made, size), trained_looking(made)
    assert groups
    kept = {group.name: choose(group.units) for group in groups}
    masked = silenced(made, model.state_dict(), groups, kept)
    _, small = smaller(made, model, groups, kept)
    images_NCHW = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        expected, actual, before = masked(images_NCHW), small(images_NCHW), model(images_NCHW)
    assert not torch.allclose(before, expected, rtol=1e-6)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert forward_flops(small, images_NCHW) < forward_flops(model, images_NCHW)

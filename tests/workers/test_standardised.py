"""Convolutions of timm that standardise their weights: ordinary ones here, with the same outputs to the last bit."""

import pytest
import timm
import torch
from torch import nn

from workers.export import load_pruned, save_model
from workers.models.timm import TimmModel

CASES = {  # side of the image by architecture: each of timm's four kinds
    "resnetv2_50x1_bit": 64,  # StdConv2d
    "vit_tiny_r_s16_p8_224": 224,  # StdConv2dSame
    "test_nfnet": 64,  # ScaledStdConv2d
    "dm_nfnet_f0": 64,  # ScaledStdConv2dSame
    "nf_regnet_b0": 64,
}


def family(name, checkpoint=None):
    return TimmModel(name=name, arguments={"num_classes": 10}, checkpoint=checkpoint and str(checkpoint), include=["*"], exclude=[])


def released(name):
    """timm's own, with weights of a kind that are not standardised, and gains of their own."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 4 and not key.endswith("gain"):
                parameter.mul_(3).add_(0.1)
            elif key.endswith("gain"):
                parameter.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_checkpoint_of_timm_gives_timms_outputs_by_plain_convolutions(name, tmp_path):
    theirs, image = released(name), torch.randn(2, 3, CASES[name], CASES[name])
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "w.pth")
    made = family(name, tmp_path / "w.pth")
    ours = made.build().eval()
    ours.load_state_dict(made.pretrained_state(), strict=True)
    assert torch.equal(ours(image), theirs(image)) and theirs(image).std() > 0
    kinds = {type(module).__name__ for module in ours.modules() if isinstance(module, nn.Conv2d)}
    assert kinds <= {"Conv2d", "Conv2dSame"}
    standardised = [module for module in theirs.modules() if "StdConv" in type(module).__name__]
    assert any(f"{len(standardised)} convolutions of {name} standardise their weights" in note for note in made.pretrained_notes())


@torch.no_grad()
def test_initial_weights_are_those_that_timm_would_use(tmp_path):
    torch.manual_seed(3)
    theirs = timm.create_model("resnetv2_50x1_bit", num_classes=10).eval()
    torch.manual_seed(3)
    ours = family("resnetv2_50x1_bit").build().eval()
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(ours(image), theirs(image))


@pytest.mark.parametrize("name", ["resnetv2_50x1_bit", "test_nfnet"])
@torch.no_grad()
def test_zeros_remain_and_an_exported_model_is_not_standardised_again(name, tmp_path):
    made, image = family(name), torch.randn(2, 3, 64, 64)
    torch.manual_seed(0)
    state = made.build().state_dict()
    layer = made.layers(made.build())[3].name
    keep = torch.rand(state[f"{layer}.weight"].shape) < 0.5
    state[f"{layer}.weight"] *= keep
    path = tmp_path / "model.safetensors"
    save_model(path, made, state, {layer: keep})
    pruned, again = load_pruned(path), family(name, path)
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.pretrained_state().items())
    seen = []
    pruned.get_submodule(layer).register_forward_hook(lambda module, inputs, output: seen.append((module, inputs[0], output)))
    pruned(image)
    module, entering, leaving = seen[0]
    truth = nn.functional.conv2d(entering, state[f"{layer}.weight"], module.bias, module.stride, module.padding, 1, module.groups)
    assert not truth.isnan().any() and torch.equal(leaving, truth)

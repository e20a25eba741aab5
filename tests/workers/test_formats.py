"""Pruned models in the formats of other libraries, loaded by these libraries alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from own_cases import SmallNet
from safetensors.torch import load_file
from torch import Tensor, nn

from orchestrator.convert import convert
from workers.errors import ConfigError, SecateurError
from workers.export import load_pruned, save_model
from workers.models.base import ModelFamily
from workers.models.shrunk import ShrunkModel
from workers.models.timm import TimmModel
from workers.models.torchvision import TorchvisionModel

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def timm_family(name: str = "resnet10t", **arguments: Any) -> TimmModel:
    return TimmModel(name=name, arguments={"num_classes": 10} | arguments, checkpoint=None, include=["*"], exclude=[])


def stored(folder: Path, family: ModelFamily, layer: str) -> Path:
    """A model file of ``family`` with every other weight of ``layer`` masked."""
    torch.manual_seed(0)
    model = family.build().eval()
    weight = model.get_parameter(f"{layer}.weight")
    keep = torch.arange(weight.numel()).reshape(weight.shape) % 2 == 0
    weight.data *= keep
    folder.mkdir(exist_ok=True)
    save_model(folder / "model.safetensors", family, model.state_dict(), {layer: keep})
    return folder / "model.safetensors"


def same(model: nn.Module, path: Path) -> None:
    with torch.no_grad():
        assert torch.equal(model.eval()(IMAGES), load_pruned(path)(IMAGES))


def test_timm_loads_the_state_dict_and_the_folder(tmp_path: Path) -> None:
    path = stored(tmp_path / "run", timm_family(), "layer1.0.conv1")
    convert("state", path, tmp_path / "model.timm.safetensors")
    model = timm.create_model("resnet10t", num_classes=10, checkpoint_path=str(tmp_path / "model.timm.safetensors"))
    same(model, path)
    convert("folder", path, tmp_path / "folder")
    same(timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True), path)
    assert not model.layer1[0].conv1.weight.flatten()[1::2].any()


def test_torchvision_loads_the_state_dict(tmp_path: Path) -> None:
    from torchvision import models

    family = TorchvisionModel(name="resnet18", arguments={"num_classes": 10}, checkpoint=None, include=["*"], exclude=[])
    path = stored(tmp_path / "run", family, "layer1.0.conv1")
    convert("state", path, tmp_path / "state.safetensors")
    model = models.resnet18(num_classes=10)
    model.load_state_dict(load_file(tmp_path / "state.safetensors"))
    same(model, path)


def test_transformers_loads_the_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from workers.models.transformers import TransformersModel

    entries = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "num_labels": 3}
    common: dict[str, Any] = {"checkpoint": None, "include": ["*"], "exclude": [], "stem_and_head": False, "classifier": True}
    path = stored(tmp_path / "run", TransformersModel(name="vit", arguments=entries, **common), "vit.layers.0.mlp.fc1")
    convert("folder", path, tmp_path / "folder")
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "folder").eval()
    with torch.no_grad():
        assert torch.equal(model(IMAGES).logits, load_pruned(path)(IMAGES))
    assert "AutoModelForImageClassification.from_pretrained" in (tmp_path / "folder" / "README.md").read_text(encoding="utf-8")


def test_a_program_runs_for_any_number_of_images_without_the_project(tmp_path: Path) -> None:
    path = stored(tmp_path / "run", timm_family("vit_tiny_patch16_224", img_size=32), "blocks.0.mlp.fc1")
    convert("pt2", path, tmp_path / "model.pt2", (3, 32, 32))
    program = torch.export.load(tmp_path / "model.pt2").module()
    for images in (IMAGES, IMAGES[:1], torch.cat([IMAGES] * 3)):
        torch.testing.assert_close(program(images), load_pruned(path)(images))


REPORT: dict[str, Any] = {
    "name": "pets",
    "pruner": "Guided",
    "pruned_weights": 75,
    "prunable_weights": 100,
    "command": "python -m orchestrator name=pets",
    "stages": [
        {"name": "dense", "metrics": {"top1": 0.9, "agreement": 1.0, "test_samples": 360.0}},
        {"name": "one_shot", "metrics": {"top1": 0.88, "agreement": 0.97, "test_samples": 360.0}},
    ],
    "warnings": ["the data have 3 broken files"],
}


def test_the_card_says_what_the_report_says(tmp_path: Path) -> None:
    path = stored(tmp_path / "run", timm_family(), "layer1.0.conv1")
    path.with_name("report.json").write_text(json.dumps(REPORT), encoding="utf-8")
    convert("folder", path, tmp_path / "folder")
    card = (tmp_path / "folder" / "README.md").read_text(encoding="utf-8")
    for words in (
        "# pets, pruned",
        "75.0 % of its prunable weights are zero",
        "| one-shot | 88.0",
        "97.0",
        "360 test images",
        "name=pets",
    ):
        assert words in card, words
    assert "3 broken files" in card and 'library_name: "timm"' in card


def test_what_another_library_cannot_load_is_refused(tmp_path: Path) -> None:
    dense = timm_family()
    smaller = dense.build().state_dict() | {"fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}
    shapes = {"fc.weight": [7, 512], "fc.bias": [7]}
    family = ShrunkModel(None, "workers.models.timm.TimmModel", vars(dense), shapes)
    save_model(tmp_path / "shrunk.safetensors", family, smaller, {})
    with pytest.raises(ConfigError, match="units were removed"):
        convert("state", tmp_path / "shrunk.safetensors", tmp_path / "state.safetensors")
    convert("folder", tmp_path / "shrunk.safetensors", tmp_path / "folder")
    assert load_pruned(tmp_path / "folder" / "model.safetensors").fc.weight.shape == (7, 512)
    folded = stored(tmp_path / "bit", timm_family("resnetv2_50x1_bit"), "stages.0.blocks.0.conv1")
    with pytest.raises(ConfigError, match="standardises"):
        convert("state", folded, tmp_path / "state.safetensors")
    assert not (tmp_path / "state.safetensors").exists()
    with pytest.raises(ConfigError, match=r"model: expected the model\.safetensors of a run"):
        convert("state", tmp_path / "nothing.safetensors", tmp_path / "state.safetensors")
    with pytest.raises(ConfigError, match="--shape"):
        convert("pt2", folded, tmp_path / "model.pt2")


def test_a_module_of_the_users_own_takes_the_state_dict_once_its_function_is_permitted(tmp_path: Path) -> None:
    from workers.models import permitted
    from workers.models.own import OwnModel

    permitted.permit({"own_cases.build": None})
    common: dict[str, Any] = {"checkpoint": None, "include": ["*"], "exclude": [], "stem_and_head": False, "classifier": True}
    path = stored(tmp_path / "run", OwnModel(target="own_cases.build", arguments={}, stem_and_heads=[], **common), "second")
    permitted.forbid("own_cases.build")
    with pytest.raises(SecateurError, match=r"own_cases\.build"):
        convert("state", path, tmp_path / "state.safetensors")
    try:
        convert("state", path, tmp_path / "state.safetensors", permit=["own_cases.build"])
        state: dict[str, Tensor] = load_file(tmp_path / "state.safetensors")
        model = SmallNet()
        model.load_state_dict(state)
        assert not model.second.weight.flatten()[1::2].any()
        convert("folder", path, tmp_path / "folder", permit=["own_cases.build"])
        assert "build=own_cases.build)" in (tmp_path / "folder" / "README.md").read_text(encoding="utf-8")
    finally:
        permitted.forbid("own_cases.build")


@pytest.mark.parametrize("checkpoint", ["pretrained", "hf-hub:timm/resnet10t.c3_in1k"])
def test_released_weights_are_those_of_timms_file(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is replaced by a local file; that the right file of the right repository is asked for is part of the test."""
    torch.manual_seed(3)
    theirs = timm.create_model("resnet10t")
    from safetensors.torch import save_file

    save_file(theirs.state_dict(), tmp_path / "released.safetensors")
    asked: list[tuple[str, str]] = []

    def fetch(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(tmp_path / "released.safetensors")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    from workers.models import hub

    hub.weights.cache_clear()
    family = TimmModel(name="resnet10t.c3_in1k", arguments={}, checkpoint=checkpoint, include=["*"], exclude=[])
    family.check()
    state = family.pretrained_state()
    assert state is not None and all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in state.items())
    assert set(asked) == {("timm/resnet10t.c3_in1k", "model.safetensors")} and len(family.weights_fingerprint()) == 64
    hub.weights.cache_clear()


def test_released_weights_without_a_network_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"model\.checkpoint: 'timm/resnet18.a1_in1k' is no file .* where there is a network") as refused:
        TimmModel(name="resnet18.a1_in1k", arguments={}, checkpoint="pretrained", include=["*"], exclude=[]).check()
    assert "\n" not in str(refused.value)

"""The family of a model that a run exported: the one in the file. Damaged and other files are refused."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from model_file_cases import inside, rewritten
from structure_cases import half

from workers.errors import ConfigError
from workers.export import load_family, load_pruned, save_model
from workers.files import read_metadata, read_tensors, write_tensors
from workers.models.exported import Exported
from workers.models.shrunk import ShrunkModel, shrunk
from workers.models.structures.find import find_groups
from workers.models.structures.groups import take
from workers.models.timm import TimmModel
from workers.models.torchvision import TorchvisionModel
from workers.models.widened import WidenedModel

SHAPE = (3, 32, 32)
RESNET = TorchvisionModel(name="resnet18", arguments={"num_classes": 10}, checkpoint=None, include=["layer4.*"], exclude=[])
VIT = TimmModel(
    name="vit_tiny_patch16_224",
    arguments={"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10},
    checkpoint=None,
    include=["*"],
    exclude=[],
)
NARROW = {name: value for name, value in asdict(VIT).items() if name != "checkpoint"}
WIDE = WidenedModel(None, "workers.models.timm.TimmModel", NARROW, {"blocks.1.mlp": 2.0}, list(SHAPE))
FAMILIES = {"vit": VIT, "resnet": RESNET, "wide": WIDE}


def written(path: Path, family) -> dict[str, torch.Tensor]:
    """Half of the units removed, then half of the weights of one layer masked."""
    groups, before = find_groups(family, SHAPE, streams=False), family.build().state_dict()
    kept = {group.name: half(group.units) for group in groups}
    state = take(before, groups, kept)
    small = shrunk(family, before, state, groups, kept)
    layer = small.layers(small.build())[-1].name
    keep = torch.rand(state[f"{layer}.weight"].shape) < 0.5
    state[f"{layer}.weight"] = state[f"{layer}.weight"] * keep
    save_model(path, small, state, {layer: keep})
    return state


def exported(path: Path, include: tuple[str, ...] = ("*",)) -> Exported:
    return Exported(str(path), list(include), [])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_model_in_the_file_is_the_dense_model_of_the_next_run(name: str, tmp_path: Path) -> None:
    """Imported, shrunk again and loaded: the outputs are those of the file, and ``dense`` of the smaller one has the file's shapes."""
    path, image = tmp_path / "model.safetensors", torch.randn(2, *SHAPE)
    state = written(path, FAMILIES[name])
    family = exported(path)
    imported, masks = family.pretrained_state(), family.pretrained_masks()
    assert all(torch.equal(imported[key], tensor) for key, tensor in state.items()) and len(masks) == 1
    save_model(tmp_path / "imported.safetensors", family, imported, masks)
    assert torch.equal(load_pruned(tmp_path / "imported.safetensors")(image), load_pruned(path)(image))

    groups = find_groups(family, SHAPE, streams=False)
    kept = {group.name: half(group.units) for group in groups}
    smaller = take(imported, groups, kept)
    again = shrunk(load_family(tmp_path / "imported.safetensors"), imported, smaller, groups, kept)
    assert again == shrunk(family, imported, smaller, groups, kept), "planned as it is carried out"
    save_model(tmp_path / "smaller.safetensors", again, smaller, {})
    load_pruned(tmp_path / "smaller.safetensors")
    read = load_family(tmp_path / "smaller.safetensors")
    assert isinstance(read, ShrunkModel)
    assert {key: tensor.shape for key, tensor in read.dense.build().state_dict().items()} == {key: t.shape for key, t in imported.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_chosen_anew(name: str, tmp_path: Path) -> None:
    written(tmp_path / "model.safetensors", FAMILIES[name])
    every = exported(tmp_path / "model.safetensors")
    pattern = "layer1.*" if name == "resnet" else "*.fc1"
    some = exported(tmp_path / "model.safetensors", (pattern,))
    names = [layer.name for layer in some.layers(some.build())]
    assert names == [n for n in (layer.name for layer in every.layers(every.build())) if n.startswith("layer1.") or n.endswith(".fc1")]
    with pytest.raises(ConfigError, match=r"model.include.*'layer9.*' matches none"):
        wrong = exported(tmp_path / "model.safetensors", ("layer9.*",))
        wrong.layers(wrong.build())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def without_spec(path: Path) -> None:
    write_tensors(path, read_tensors(path), {})


def half_a_spec(path: Path) -> None:
    write_tensors(path, read_tensors(path), {"secateur": read_metadata(path)["secateur"][:40]})


DAMAGE = {
    "cut off": (cut, "readable safetensors"),
    "no spec": (without_spec, "model=timm model.name=NAME"),
    "half a spec": (half_a_spec, "spec is damaged"),
    "no family": (lambda path: rewritten(path, spec=lambda spec: {"format": spec["format"], "layers": {}}), "expected family"),
    "another format": (lambda path: rewritten(path, spec=lambda spec: spec | {"format": "secateur/9"}), "secateur/9"),
    "code from elsewhere": (
        lambda path: rewritten(path, spec=inside(family="subprocess.Popen", settings={"args": "x"})),
        "secateur builds",
    ),
    "no class of ours": (lambda path: rewritten(path, spec=inside(family="workers.models.checkpoints.check")), "expected a model family"),
    "unknown settings": (lambda path: rewritten(path, spec=inside(colour="red")), "colour"),
    "unknown tensors": (lambda path: rewritten(path, spec=inside(shapes={"tail.weight": [3]})), "tail"),
    "missing tensors": (lambda path: rewritten(path, lambda entries: {k: t for k, t in entries.items() if k != "fc.bias"}), "fc.bias"),
    "missing values": (lambda path: rewritten(path, lambda entries: {k: t for k, t in entries.items() if "values" not in k}), "values"),
    "other shapes": (lambda path: rewritten(path, lambda entries: entries | {"fc.bias": torch.zeros(3)}), "fc.bias"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_foreign_file_is_refused_in_one_line(damage: str, tmp_path: Path) -> None:
    path, (spoil, words) = tmp_path / "model.safetensors", DAMAGE[damage]
    written(path, RESNET)
    spoil(path)
    with pytest.raises(ConfigError, match=words) as refused:
        family = exported(path)
        family.check()
        family.build()
        family.pretrained_state()
    assert str(refused.value).startswith("model.checkpoint: ") and "\n" not in str(refused.value)


@pytest.mark.parametrize("made", [lambda path: exported(path / "nowhere.safetensors").check(), lambda path: Exported(None, ["*"], [])])
def test_a_file_has_to_be_there(made, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.checkpoint: expected"):
        made(tmp_path)


def test_as_a_checkpoint_of_its_dense_family_it_is_refused_with_the_remedy(tmp_path: Path) -> None:
    written(tmp_path / "model.safetensors", RESNET)
    as_checkpoint = TorchvisionModel(**asdict(RESNET) | {"checkpoint": str(tmp_path / "model.safetensors")})
    with pytest.raises(ConfigError, match=r"other shapes.*model=exported model.checkpoint=.*model.safetensors"):
        as_checkpoint.pretrained_state()

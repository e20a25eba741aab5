"""Model files: what is read back, what is refused, and how much memory reading takes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_file_cases import rewritten

from workers.errors import ConfigError, SecateurError
from workers.export import load_model, load_pruned, load_state, load_weight, save_model
from workers.kept_models import KEPT_MODELS
from workers.memory import give_back, peak_bytes
from workers.models.base import Layer
from workers.models.timm import TimmModel
from workers.worker import Worker

WIDE = {"img_size": 16, "patch_size": 8, "in_chans": 1, "num_classes": 10, "embed_dim": 512, "depth": 12, "num_heads": 8}


def family() -> TimmModel:
    return TimmModel(
        name="vit_tiny_patch16_224", arguments=WIDE, checkpoint=None, include=["blocks.*.fc*"], exclude=[], stem_and_head=False
    )


def written(path: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    """A model half of whose MLP weights are pruned, in a file; its state."""
    torch.manual_seed(seed)
    model = family().build()
    masks = {layer.name: torch.rand(layer.rows, layer.columns) < 0.5 for layer in family().layers(model)}
    state = model.state_dict()
    for name, keep in masks.items():
        state[f"{name}.weight"] *= keep
    save_model(path, family(), state, masks)
    return {name: tensor.clone() for name, tensor in state.items()}


def test_a_model_comes_back_bit_for_bit_with_its_masks(tmp_path: Path) -> None:
    state = written(tmp_path / "model")
    model, masks = load_model(tmp_path / "model")
    assert {name for name, _ in model.named_parameters()} == set(state) and not model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(keep, state[f"{name}.weight"] != 0) for name, keep in masks.items()) and len(masks) == 24
    assert all(torch.equal(tensor, state[name]) for name, tensor in load_state(tmp_path / "model")[0].items())


def test_one_layer_is_read_alone_and_bit_for_bit(tmp_path: Path) -> None:
    """Masked and dense layers, against what the whole model has; memory holds one layer of the twelve blocks, not the file."""
    state = written(tmp_path / "model")
    for name in ("blocks.3.mlp.fc1", "blocks.3.attn.qkv", "head"):
        assert torch.equal(load_weight(tmp_path / "model", name), state[f"{name}.weight"])
    give_back()
    with peak_bytes() as peak:
        before = peak.bytes
        load_weight(tmp_path / "model", "blocks.3.mlp.fc1")
    size = (tmp_path / "model").stat().st_size
    assert before is None or peak.bytes - before < size / 4, "the whole file is not read into memory"


def test_a_worker_that_scores_a_layer_loads_no_model(tmp_path: Path) -> None:
    written(tmp_path / "model")
    worker = Worker("cpu", 1)
    weight_RC = worker.kept.weight(tmp_path / "model", Layer("blocks.0.mlp.fc1", 2048, 512))
    assert weight_RC.shape == (2048, 512) and not worker.kept.loaded
    worker.kept.model(tmp_path / "model")
    assert torch.equal(worker.kept.weight(tmp_path / "model", Layer("blocks.0.mlp.fc1", 2048, 512)), weight_RC)


def test_layers_that_are_used_twice_are_stored_once_and_pruned_in_all_their_places(tmp_path: Path) -> None:
    """CoaT hands one convolution to several blocks, whose state dict names it once for each. From import to join, and as a checkpoint."""
    coat = TimmModel(name="coat_tiny", arguments={"num_classes": 10}, checkpoint=None, include=["*"], exclude=[])
    theirs = coat.build().state_dict()
    torch.save(theirs, tmp_path / "theirs.pth")
    loaded = replace(coat, checkpoint=str(tmp_path / "theirs.pth")).pretrained_state()
    assert loaded is not None and all(torch.equal(loaded[name], tensor) for name, tensor in theirs.items())
    save_model(tmp_path / "dense", coat, loaded, {})
    state, masks = load_state(tmp_path / "dense")
    names = [layer.name for layer in coat.layers(coat.build())]
    first, second = "cpe1.proj", "serial_blocks1.1.cpe.proj"
    assert first in names and second not in names and f"{second}.weight" in theirs and f"{second}.weight" not in state
    keep = torch.rand(state[f"{first}.weight"].shape) < 0.5
    state[f"{first}.weight"] *= keep
    save_model(tmp_path / "pruned.safetensors", coat, state, masks | {first: keep})
    model = load_pruned(tmp_path / "pruned.safetensors")
    assert model.get_submodule(first) is model.get_submodule(second)
    assert torch.equal(model.get_parameter(f"{second}.weight") != 0, keep)
    again = replace(coat, checkpoint=str(tmp_path / "pruned.safetensors")).pretrained_state()
    assert again is not None and all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_one_tensor_with_two_different_values_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    coat = TimmModel(name="coat_tiny", arguments={"num_classes": 10}, checkpoint=str(tmp_path / "w.pth"), include=["*"], exclude=[])
    state = {name: tensor.clone() for name, tensor in coat.build().state_dict().items()}
    state["serial_blocks1.1.cpe.proj.bias"] += 1
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"model.checkpoint: .*serial_blocks1.1.cpe.proj.bias and cpe1.proj.bias"):
        coat.pretrained_state()


@pytest.mark.parametrize("damage", ["missing", "shape", "unknown"])
def test_a_file_whose_tensors_are_not_those_of_its_architecture_is_refused_by_name(damage: str, tmp_path: Path) -> None:
    changes = {"shape": {"head.bias": torch.zeros(11)}, "unknown": {"tail.bias": torch.zeros(3)}, "missing": {}}
    written(tmp_path / "model")
    rewritten(
        tmp_path / "model",
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "head.bias" or damage != "missing"} | changes[damage],
    )
    with pytest.raises(SecateurError, match="tail.bias" if damage == "unknown" else "head.bias"):
        load_pruned(tmp_path / "model")


def test_loading_holds_the_model_once_and_a_worker_never_more_than_the_models_it_keeps(tmp_path: Path) -> None:
    """The plan counts on it: a pruned file is unpacked a layer at a time, and room is made before the next model."""
    files = [tmp_path / str(seed) for seed in range(KEPT_MODELS + 2)]
    size = sum(tensor.nbytes for tensor in written(files[0]).values())
    for seed, file in enumerate(files[1:], start=1):
        written(file, seed)
    load_model(files[0])  # whatever is set up once
    give_back()
    worker = Worker("cpu", torch.get_num_threads())
    with peak_bytes() as peak:
        start = peak.bytes
        for file in files:
            worker.kept.model(file)
    assert start is not None and peak.bytes is not None
    assert peak.bytes - start < (KEPT_MODELS + 0.5) * size, "the models, and a few copies of one of 24 pruned layers"
    assert list(worker.kept.loaded) == files[-KEPT_MODELS:]

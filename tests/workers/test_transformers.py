"""Models of transformers, with tiny configurations in local folders, against transformers itself."""

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.composing import experiment_of
from workers.errors import ConfigError
from workers.export import load_pruned, save_model
from workers.models.base import Output
from workers.models.profile import profile
from workers.models.structures.find import find_groups
from workers.models.transformers import TransformersModel

transformers = pytest.importorskip("transformers")
SHAPE = (3, 32, 32)
VIT: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
TINY: dict[str, dict[str, Any]] = {
    "vit": VIT | {"intermediate_size": 64, "patch_size": 8},
    "dinov2": VIT | {"patch_size": 8},
    "swin": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "image_size": 32, "patch_size": 4, "window_size": 4},
    "convnext": {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "image_size": 32},
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]},
}


def family(checkpoint: Path | str | None = None, classifier: bool = True, **changes: Any) -> TransformersModel:
    settings = {"name": None, "arguments": {}, "checkpoint": None if checkpoint is None else str(checkpoint)}
    return TransformersModel(**{**settings, "include": ["*"], "exclude": [], "stem_and_head": False, "classifier": classifier, **changes})


def saved(kind: str, folder: Path, classifier: bool = True) -> Any:
    torch.manual_seed(0)
    configuration = transformers.AutoConfig.for_model(kind, num_labels=10, **TINY[kind])
    auto = transformers.AutoModelForImageClassification if classifier else transformers.AutoModel
    model = auto.from_config(configuration).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("classifier", [True, False], ids=["classifier", "backbone"])
@pytest.mark.parametrize("kind", TINY)
def test_a_folder_gives_the_model_of_transformers_and_a_file_that_needs_no_folder(kind: str, classifier: bool, tmp_path: Path) -> None:
    theirs, images = saved(kind, tmp_path / "folder", classifier), torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    ours = family(tmp_path / "folder", classifier)
    ours.check()
    save_model(tmp_path / "model.safetensors", ours, ours.pretrained_state() or {}, {})
    for path in (tmp_path / "folder").iterdir():
        path.unlink()
    loaded = load_pruned(tmp_path / "model.safetensors")
    with torch.no_grad():
        outputs, expected = loaded(images), theirs(images)
    assert torch.equal(outputs, expected.logits if classifier else expected.pooler_output.flatten(1))


@pytest.mark.parametrize("kind", TINY)
def test_stem_and_classifier_remain_dense_and_units_are_found(kind: str, tmp_path: Path) -> None:
    model = saved(kind, tmp_path)
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]
    counted = profile(family(tmp_path), SHAPE)
    assert {layer.name for layer in counted.layers} == set(names[1:-1]) and names[-1].startswith("classifier")
    assert counted.parameters == sum(parameter.numel() for parameter in model.parameters()) and counted.outputs == 10
    assert find_groups(family(tmp_path), SHAPE, streams=False)


def test_a_model_is_trained_from_its_type_and_entries_alone() -> None:
    vit = family(name="vit", arguments=TINY["vit"] | {"num_labels": 7, "num_channels": 1})
    vit.check()
    assert vit.pretrained_state() is None and vit.output is Output.LOGITS
    assert vit.build()(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_the_fingerprint_follows_weights_and_configuration(tmp_path: Path) -> None:
    saved("vit", tmp_path)
    before = family(tmp_path).weights_fingerprint()
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    (tmp_path / "config.json").write_text(text.replace('"layer_norm_eps": 1e-12', '"layer_norm_eps": 1e-6'), encoding="utf-8")
    assert family(tmp_path).weights_fingerprint() != before


def refusals(tmp_path: Path) -> dict[str, tuple[TransformersModel, str]]:
    saved("vit", tmp_path / "backbone", classifier=False)
    saved("vit", tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"no tensors")
    (tmp_path / "empty").mkdir()
    return {
        "a classifier from a backbone": (family(tmp_path / "backbone"), "classifier.weight; a backbone has no classifier"),
        "damaged weights": (family(tmp_path / "damaged"), "cannot be read"),
        "an empty folder": (family(tmp_path / "empty"), "transformers has no configuration"),
        "an unknown type": (family(name="vitt"), "did you mean vit"),
        "an entry of the wrong type": (family(name="vit", arguments={"hidden_size": "wide"}), "vit"),
        "a name of the hub without a network": (family("nobody/nothing"), "where there is a network, or set"),
        "no name at all": (family("what is this?"), "'what is this?' is no file or folder here, and it could not be fetched (Repo id must"),
    }


CASES = (
    "a classifier from a backbone",
    "damaged weights",
    "an empty folder",
    "an unknown type",
    "an entry of the wrong type",
    "a name of the hub without a network",
    "no name at all",
)


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_loaded_is_said_in_one_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model, words = refusals(tmp_path)[case]
    with pytest.raises(ConfigError) as refused:
        model.check()
        model.build()
        model.pretrained_state()
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_neither_a_name_nor_a_checkpoint_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.name: expected a type of transformers"):
        experiment_of(["model=transformers"])


def test_a_repository_brings_no_code_along(tmp_path: Path) -> None:
    """Configurations with code of their own are refused, and nothing of it is imported."""
    saved("vit", tmp_path)
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    (tmp_path / "config.json").write_text(
        text.replace('"model_type": "vit"', '"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}'), encoding="utf-8"
    )
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    with pytest.raises(ConfigError):
        family(tmp_path).check()
    assert not (tmp_path / "ran").exists()

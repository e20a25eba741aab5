"""Patterns on a model with layers that cannot follow them: all of these are named, or left dense as if they had been excluded."""

import json
from pathlib import Path

import pytest
import timm
import torch
from run_cases import directory, run
from safetensors.torch import load_file, save_file
from warm import orchestrate

from orchestrator.composing import experiment_of
from orchestrator.launch import plan_experiment
from workers.errors import ConfigError

ARGUMENTS = {"in_chans": 1, "num_classes": 10, "depths": [1, 1, 2, 1], "dims": [16, 32, 64, 128], "patch_size": 2}
DEPTHWISE = ["stages.0.blocks.0.conv_dw", "stages.1.blocks.0.conv_dw", "stages.2.blocks.0.conv_dw"]
DEPTHWISE += ["stages.2.blocks.1.conv_dw", "stages.3.blocks.0.conv_dw"]
TWO_OF_FOUR = ["pruner.target.sparsity=0.5", "pruner.target.pattern='2:4'"]


@pytest.fixture(scope="module")
def convnet(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("convnet") / "convnet.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("convnext_tiny", **ARGUMENTS).state_dict(), path)
    return ["model=digits_convnext", f"model.checkpoint={path}", "data.image_size=32", "compare=false"]


def report_of(folder: Path) -> dict:
    return json.loads((directory(folder) / "report.json").read_text(encoding="utf-8"))


def test_all_layers_that_cannot_follow_a_pattern_are_named_at_once(convnet: list[str], tmp_path: Path) -> None:
    found = orchestrate(*convnet, *TWO_OF_FOUR, "mode=plan", cwd=tmp_path)
    (line,) = found.stderr.strip().splitlines()
    assert found.returncode == 2 and "pruner.target.pattern" in line and "5 of 19" in line and "unfit=dense" in line
    assert all(name in line for name in DEPTHWISE)


@pytest.mark.parametrize(
    "target", [TWO_OF_FOUR, ["pruner.target.sparsity=0.75", "pruner.target.pattern=groups:4"]], ids=["2:4", "groups:4"]
)
def test_leaving_them_dense_is_the_run_that_excludes_them(convnet: list[str], target: list[str], tmp_path: Path) -> None:
    said = run(tmp_path / "unfit", *convnet, *target, "pruner.target.unfit=dense")
    run(tmp_path / "excluded", *convnet, *target, "model.exclude=['*conv_dw']")
    here, there = (load_file(directory(tmp_path / name) / "model.safetensors") for name in ("unfit", "excluded"))
    assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)
    assert all(f"{name}.weight" in here and f"{name}.weight.mask" not in here for name in DEPTHWISE)

    told, other = report_of(tmp_path / "unfit"), report_of(tmp_path / "excluded")
    for key in ("prunable_weights", "pruned_weights", "model_weights"):
        assert told[key] == other[key], key
    assert told["pruned_weights"] == round(float(target[0].partition("=")[2]) * told["prunable_weights"])
    assert told["asked"]["left_dense"] == DEPTHWISE
    page = (directory(tmp_path / "unfit") / "report.html").read_text(encoding="utf-8")
    for text in (" ".join(said.split()), " ".join(told["warnings"]), page):
        assert "5 of 19 layers" in text and all(name in text for name in DEPTHWISE)
    assert not other["warnings"]


def test_the_plan_of_a_later_round_without_a_pattern_has_all_layers(convnet: list[str]) -> None:
    rounds = ["+rounds.all.pruner.target={sparsity:0.6,pattern:unstructured,unfit:error}"]
    first = ["+rounds.some.pruner.target={sparsity:0.5,pattern:'2:4',unfit:dense}"]
    plan = plan_experiment(experiment_of([*convnet, *first, *rounds]))
    assert [layer.name for layer in plan.unfit] == DEPTHWISE and len(plan.profile.layers) == 19
    alone = plan_experiment(experiment_of([*convnet, *TWO_OF_FOUR, "pruner.target.unfit=dense"]))
    assert len(alone.layers) == 14 and not {planned.layer.name for planned in alone.layers} & {*DEPTHWISE}


def test_a_pattern_that_no_layer_can_follow_is_refused(convnet: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"pruner\.target\.pattern: .*all 5 layers.*choose another pattern"):
        plan_experiment(experiment_of([*convnet, *TWO_OF_FOUR, "pruner.target.unfit=dense", "model.include=['*conv_dw']"]))

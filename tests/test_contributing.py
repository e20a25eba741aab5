"""The examples of CONTRIBUTING.md work as they are written there."""

import re
import sys
import types
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from orchestrator.config import _typed
from workers.models.base import Layer
from workers.pruners.base import Scope, Target

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python|yaml)\n(.*?)```", TEXT, flags=re.DOTALL)
EXAMPLES = {"Random": "workers.pruners.random", "Perceptron": "workers.models.perceptron", "Halves": "workers.data.halves"}


def block(language: str, part: str) -> str:
    return next(code for kind, code in BLOCKS if kind == language and part in code)


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The Python files of the examples, as modules where they belong."""
    for name, place in EXAMPLES.items():
        module = types.ModuleType(place)
        monkeypatch.setitem(sys.modules, place, module)
        exec(compile(block("python", f"class {name}"), "CONTRIBUTING.md", "exec"), module.__dict__)
    yield


def made(name: str, part: str, **changed: Any) -> Any:
    """An example's class with the settings of its yaml file, of which every field is listed there."""
    given = OmegaConf.to_container(
        OmegaConf.create("seed: 3\nhere:\n  " + block("yaml", EXAMPLES[name]).replace("\n", "\n  ")), resolve=True
    )
    settings = given["here"]
    assert settings.pop("_target_") == f"{EXAMPLES[name]}.{name}"
    example = getattr(sys.modules[EXAMPLES[name]], name)
    assert set(settings) == {field.name for field in fields(example)}
    return _typed(example, settings | changed, part)


def test_the_example_pruner_passes_its_own_test() -> None:
    names: dict[str, Any] = {}
    exec(block("python", "def test_random"), names)
    names["test_random_pruning_takes_large_weights_as_often_as_small_ones"]()


def test_the_example_pruner_follows_a_pattern() -> None:
    pruner = made("Random", "pruner")
    assert set(vars(pruner.target)) == set(vars(Target(0.5, Scope.GLOBAL)))
    pruner.target.pattern = "2:4"
    assert int(torch.isfinite(pruner.score(torch.randn(4, 8), Layer("fc", 4, 8), None).score_nG).sum()) == 16


def test_the_example_family_is_pruned_in_the_layer_that_it_names(tmp_path: Path) -> None:
    family = made("Perceptron", "model", pixels=12, width=8)
    family.check()
    model = family.build()
    assert model(torch.randn(5, 3, 2, 2)).shape == (5, 10)
    for layer in family.layers(model):
        assert model.get_submodule(layer.name).weight.shape == (layer.rows, layer.columns)
    torch.save(model.state_dict(), tmp_path / "perceptron.pt")
    family.checkpoint = str(tmp_path / "perceptron.pt")
    state = family.pretrained_state()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_the_example_data_tell_their_classes() -> None:
    data = made("Halves", "data")
    data.check()
    assert (data.size("train"), data.size("test"), data.input_shape) == (800, 200, (1, 32, 32))
    images_NCHW, labels_N = next(iter(data.evaluation("test", 0, 1)))
    brighter_N = images_NCHW[..., 16:].mean(dim=(1, 2, 3)) > images_NCHW[..., :16].mean(dim=(1, 2, 3))
    assert torch.equal(brighter_N.long(), labels_N)

"""What CONTRIBUTING.md tells people to write works as it stands there."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch

from orchestrator.config import _typed
from workers.models.base import Layer
from workers.pruners.base import Scope, Target, WeightPruner

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python|yaml)\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture
def random_pruner() -> type[WeightPruner]:
    """The class of the example, as a module of its own."""
    source = next(code for language, code in BLOCKS if language == "python" and "class Random" in code)
    module = types.ModuleType("random_pruner_of_contributing")
    sys.modules[module.__name__] = module
    exec(compile(source, "CONTRIBUTING.md", "exec"), module.__dict__)
    yield module.Random
    del sys.modules[module.__name__]


def test_the_example_pruner_passes_its_own_test(random_pruner: type[WeightPruner]) -> None:
    source = next(code for language, code in BLOCKS if language == "python" and "def test_random" in code)
    names = {"Random": random_pruner, "Target": Target, "Scope": Scope, "Layer": Layer, "torch": torch}
    exec(source, names)
    names["test_random_pruning_takes_large_weights_as_often_as_small_ones"]()


def test_the_example_yaml_lists_every_setting_of_the_example_pruner(random_pruner: type[WeightPruner]) -> None:
    from omegaconf import OmegaConf

    given = OmegaConf.to_container(OmegaConf.create(next(code for language, code in BLOCKS if language == "yaml")))
    assert given.pop("_target_") == "workers.pruners.random.Random"
    assert set(given) == {"target", "seed"} and set(given["target"]) == set(vars(Target(0.5, Scope.GLOBAL)))
    given["seed"] = 3
    made = _typed(random_pruner, given, "pruner")
    weight_RC = torch.randn(4, 8)
    made.target.pattern = "2:4"
    assert int(torch.isfinite(made.score(weight_RC, Layer("fc", 4, 8), None).score_nG).sum()) == 16

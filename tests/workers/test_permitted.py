"""Model files of somebody else run no code, unless the user permits the name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from model_file_cases import inside, rewritten
from own_cases import SmallNet, build
from torch import nn

from workers.errors import ConfigError, SecateurError
from workers.export import load_pruned, save_model
from workers.models import permitted
from workers.models.own import OwnModel
from workers.models.shrunk import ShrunkModel

NAME = "own_cases.build"


def own(**arguments: int) -> OwnModel:
    choice: dict[str, Any] = {"include": ["*"], "exclude": [], "stem_and_head": False, "classifier": True, "stem_and_heads": []}
    return OwnModel(target=NAME, arguments=arguments, checkpoint=None, **choice)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    permitted.permit({NAME: None})
    torch.manual_seed(0)
    model = build(8)
    save_model(tmp_path / "model.safetensors", own(width=8), model.state_dict(), {"hidden": model.hidden.weight != 0})
    permitted.forbid(NAME)
    return tmp_path / "model.safetensors"


def test_a_file_of_an_own_model_loads_with_its_function_only(stored: Path) -> None:
    with pytest.raises(SecateurError, match=r"own_cases.build.*build=") as refused:
        load_pruned(stored)
    assert "\n" not in str(refused.value)
    model = load_pruned(stored, build=build)
    torch.manual_seed(0)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in build(8).state_dict().items())
    assert load_pruned(stored, build=SmallNet).first.weight.shape[0] == 8, "the function gets the arguments in the file"
    with pytest.raises(SecateurError):
        load_pruned(stored)


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "builtins.exec", "own_cases.trained", "workers.models.timm.TimmModel"])
def test_a_file_cannot_choose_another_function(name: str, stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the user permits one: the file's arguments then go to that one, and no other name is looked up."""
    imported: list[str] = []
    monkeypatch.setattr(permitted, "imported", lambda _, name: imported.append(name))
    path = rewritten(stored, spec=inside(target=name))
    with pytest.raises(SecateurError):
        load_pruned(path)
    permitted.permit({NAME: build})
    try:
        with pytest.raises(SecateurError):
            load_pruned(path)
    finally:
        permitted.forbid(NAME)
    assert not imported


def test_the_family_inside_a_shrunk_model_needs_permission_too(stored: Path) -> None:
    def shrunk(spec: dict[str, Any]) -> dict[str, Any]:
        settings = {"checkpoint": None, "family": spec["family"], "settings": spec["settings"]}
        return spec | {"family": "workers.models.shrunk.ShrunkModel", "settings": settings}

    path = rewritten(stored, spec=shrunk)
    with pytest.raises(SecateurError, match=NAME):
        load_pruned(path)
    assert isinstance(load_pruned(path, build=build), SmallNet)


def test_a_function_that_returns_something_else_or_refuses_its_arguments_is_refused() -> None:
    permitted.permit({NAME: lambda **_: 3})
    try:
        with pytest.raises(ConfigError, match="a function that returns a torch module, got 'int'"):
            own().build()
        permitted.permit({NAME: build})
        with pytest.raises(ConfigError, match="unexpected keyword argument 'colour'"):
            own(colour=1).build()
        assert isinstance(ShrunkModel(None, "workers.models.own.OwnModel", vars(own(width=4)), {}).build(), nn.Module)
    finally:
        permitted.forbid(NAME)

"""The identity of a module that a script defines: it follows everything that the script's definitions refer to."""

import inspect
import runpy
import shutil
import sys
from dataclasses import fields
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from orchestrator.api import Call, prune
from orchestrator.identity.own import installed

SCRIPT = """
import copy
import helpers
from torch import nn
from orchestrator.identity.given import given_identity

SCALE = 2.0
WIDTHS = [3, 4]


def twice(x):
    return SCALE * x


def unused(x):
    return x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTHS[0], WIDTHS[1])

    def forward(self, x):
        return helpers.shifted(twice(self.layer(x)))


def loss(outputs, labels):
    return (outputs - labels).square().mean()


model = Net()
digest = given_identity(model, copy.deepcopy(model).to("meta"), loss)
"""
HELPERS = "def shifted(x):\n    return x + 1\n"


def digest(folder: Path, script: str = SCRIPT, helpers: str = HELPERS) -> str:
    from orchestrator.identity import own

    (folder / "helpers.py").write_text(helpers, encoding="utf-8")
    (folder / "script.py").write_text(script, encoding="utf-8")
    sys.modules.pop("helpers", None)
    own.own_code.cache_clear()
    return runpy.run_path(str(folder / "script.py"), run_name="__main__")["digest"]


@pytest.mark.slow
def test_whatever_a_module_refers_to_in_its_script_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    before = digest(tmp_path)
    assert digest(tmp_path) == before and digest(tmp_path, SCRIPT + "\nother = 3\n") == before
    for old, new in (
        ("SCALE = 2.0", "SCALE = 3.0"),
        ("WIDTHS = [3, 4]", "WIDTHS = [3, 4, 5]"),
        ("return SCALE * x", "return SCALE * x + 0"),
        (".square().mean()", ".abs().mean()"),
        ("super().__init__()\n", "super().__init__()\n        self.eps = 1e-3\n"),
    ):
        assert old in SCRIPT and digest(tmp_path, SCRIPT.replace(old, new)) != before, old
    assert digest(tmp_path, helpers=HELPERS.replace("+ 1", "+ 2")) != before, "a file that the script imports"
    assert digest(tmp_path, SCRIPT.replace("    return x\n\n\nclass", "    return -x\n\n\nclass")) == before, "nothing refers to it"


def test_what_cannot_be_followed_equals_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    script = SCRIPT.replace("SCALE = 2.0", "SCALE = (number for number in range(3))")
    assert digest(tmp_path, script) != digest(tmp_path, script)


def test_a_package_is_known_from_when_it_is_installed_until_it_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert installed("freshly") == [] and installed("torch") == packages_distributions()["torch"]
    metadata = tmp_path / "fresh_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: fresh-package\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "top_level.txt").write_text("freshly\n", encoding="utf-8")
    assert installed("freshly") == ["fresh-package"]
    shutil.rmtree(metadata)
    assert installed("freshly") == []


def test_prune_and_plan_have_the_same_defaults() -> None:
    parameters = inspect.signature(prune).parameters
    declared = {name: parameter.default for name, parameter in parameters.items() if name not in ("model", "batches")}
    assert {field.name: field.default for field in fields(Call)} == {"model": _EMPTY, "batches": _EMPTY} | declared | {"test": _EMPTY}


_EMPTY = fields(Call)[0].default

"""Models, pruners and yaml files of the user's own, from the command line, in a package outside of the project."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
NETS = """from torch import nn

from .blocks import Block


def build(width=16, classes=10):
    stem, head = nn.Conv2d(1, width, 3, padding=1), nn.Linear(4 * width, classes)
    return nn.Sequential(stem, Block(width), nn.AdaptiveAvgPool2d(2), nn.Flatten(), head)


def no_module():
    return 3
"""
BLOCKS = """from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(width, 2 * width, 3, padding=1), nn.Conv2d(2 * width, width, 3, padding=1)

    def forward(self, maps):
        return maps + self.narrow(self.wide(maps).relu())
"""
QUICK = ["cluster=local", "recovery=none", "compare=false", "data.image_size=8", "data.train_size=256"]
QUICK += ["data.calibration_batches=16", "training.epochs=3"]
MODEL = ["model=module", "model.target=mine.nets.build"]


def block(language: str, part: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", CONTRIBUTING, flags=re.DOTALL)
    return next(code for code in found if part in code)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with a model, with the example pruner of CONTRIBUTING.md, and with its yaml file."""
    folder = tmp_path / "mine"
    (folder / "conf" / "pruner").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "nets.py").write_text(NETS, encoding="utf-8")
    (folder / "blocks.py").write_text(BLOCKS, encoding="utf-8")
    (folder / "random_order.py").write_text(block("python", "class Random"), encoding="utf-8")
    settings = block("yaml", "workers.pruners.random").replace("workers.pruners.random.Random", "mine.random_order.Random")
    (folder / "conf" / "pruner" / "random.yaml").write_text(settings, encoding="utf-8")
    return tmp_path


def orchestrate(folder: Path, *overrides: str, path: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator", *overrides]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *([path] if path else [])])}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=3600)


def computed(folder: Path) -> list[str]:
    """The verbs that the last run of a folder computed."""
    reports = sorted(folder.glob("runs/*/report.json"), key=lambda path: path.stat().st_mtime)
    return [task["verb"] for task in json.loads(reports[-1].read_text(encoding="utf-8"))["timeline"] if task["computed"]]


@pytest.mark.slow
def test_a_model_and_a_pruner_of_the_users_own_run_and_are_in_the_report(package: Path) -> None:
    ended = orchestrate(package, "--config-dir", "mine/conf", *MODEL, "pruner=random", "pruner.target.sparsity=0.75", *QUICK)
    assert ended.returncode == 0, ended.stderr
    (report,) = package.glob("runs/*/report.json")
    content = json.loads(report.read_text(encoding="utf-8"))
    assert content["pruner"] == "Random" and content["experiment"]["model"]["target"] == "mine.nets.build"
    assert {layer["name"] for layer in content["layers"]} == {"1.wide", "1.narrow"}
    assert "collect" not in computed(package), "this pruner reads no data"
    assert orchestrate(package, "--config-dir", "mine/conf", *MODEL, "pruner=random", "pruner.target.sparsity=0.75", *QUICK).returncode == 0
    assert computed(package) == [], "nothing has changed"
    blocks = package / "mine" / "blocks.py"
    blocks.write_text(blocks.read_text(encoding="utf-8") + "\n# another text\n", encoding="utf-8")
    assert orchestrate(package, "--config-dir", "mine/conf", *MODEL, "pruner=random", "pruner.target.sparsity=0.75", *QUICK).returncode == 0
    assert {"train", "score", "solve"} <= set(computed(package)), "a file that the model imports has changed"


@pytest.mark.slow
def test_workers_and_ranks_in_other_processes_build_the_users_model(package: Path) -> None:
    few = [setting for setting in QUICK if not setting.startswith("cluster")]
    more = ["cluster.workers=1", "cluster.threads=1", "training.ranks=2"]
    ended = orchestrate(package, *MODEL, "pruner=magnitude", *few, *more)
    assert ended.returncode == 0, ended.stderr
    model = next(iter(package.glob("runs/*/model.safetensors")))
    again = ["model=exported", f"model.checkpoint={model}", "pruner=magnitude", "pruner.target.sparsity=0.95", *QUICK]
    refused = orchestrate(package, *again)
    assert refused.returncode == 2 and "model.permit" in refused.stderr and len(refused.stderr.splitlines()) == 1
    allowed = orchestrate(package, *again, "model.permit=[mine.nets.build]")
    assert allowed.returncode == 0, allowed.stderr


def test_a_package_brings_its_yaml_files_by_an_entry_point(package: Path) -> None:
    installed = package / "site"
    shutil.copytree(package / "mine", installed / "mine")
    (installed / "mine" / "conf" / "__init__.py").touch()
    (installed / "mine-1.0.dist-info").mkdir()
    (installed / "mine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n", encoding="utf-8")
    (installed / "mine-1.0.dist-info" / "entry_points.txt").write_text("[secateur.conf]\nmine = mine.conf\n", encoding="utf-8")
    (package / "elsewhere").mkdir()
    planned = orchestrate(package / "elsewhere", "pruner=random", "mode=plan", "cluster=local", path=str(installed))
    assert planned.returncode == 0 and "The run takes about" in planned.stdout, planned.stderr
    unknown = orchestrate(package / "elsewhere", "pruner=random", "mode=plan", "cluster=local")
    assert unknown.returncode == 2 and "there is no such pruner" in unknown.stderr


WRONG = {
    "no such module": (
        ["model=module", "model.target=nowhere.build"],
        "run from the folder that contains nowhere",
    ),
    "no such function": (["model=module", "model.target=mine.nets.built"], "mine.nets does not define built"),
    "no dotted name": (["model=module", "model.target=build"], "expected a dotted name"),
    "no module returned": (["model=module", "model.target=mine.nets.no_module"], "a function that returns a torch module, got 'int'"),
    "an unknown argument": ([*MODEL, "+model.arguments.depth=3"], "unexpected keyword argument 'depth'"),
    "no such head": ([*MODEL, "model.stem_and_heads=[tail]"], "names of modules of mine.nets.build, got 'tail'"),
    "a class of something else": (["model._target_=mine.blocks.Block"], "a dataclass derived from workers.models.base.ModelFamily"),
    "a module that fails": (["model=module", "model.target=mine.broken.build"], "importing mine.broken failed: ZeroDivisionError"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_the_users_own_code_is_said_in_one_line(case: str, package: Path) -> None:
    overrides, words = WRONG[case]
    (package / "mine" / "broken.py").write_text("1 / 0\n", encoding="utf-8")
    ended = orchestrate(package, *overrides, *QUICK)
    assert ended.returncode == 2 and words in ended.stderr and len(ended.stderr.splitlines()) == 1, ended.stderr

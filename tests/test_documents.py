"""README.md, CONTRIBUTING.md and docs/: code that runs, commands that compose, links that lead somewhere.

Blocks of a page are carried out in order, in a folder of their own. ``text`` blocks are pictures and output. A block that cannot be carried
out here has a comment above it that says why: ``<!-- not run: REASON -->``.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from document_blocks import GENERATED, PAGES, ROOT, Block, anchors, blocks, commands, links, paths
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig
from PIL import Image
from tiny import tiny_overrides
from warm import orchestrate

from orchestrator import compare
from orchestrator.__main__ import carry_out
from orchestrator.composing import CONF
from orchestrator.config import load
from workers.models.permitted import imported

WITH_CODE = [page for page in PAGES if page.name != "CONTRIBUTING.md" and any(block.language != "text" for block in blocks(page))]
PROJECT = ("conf", "kernels", "orchestrator", "workers")
# What a page's own component is tried with: a real run, but a short one.
SHORT = (
    "training.epochs=1",
    "training.warmup_epochs=0",
    "training.ranks=1",
    "recovery=none",
    "data.calibration_batches=16",
    "cluster=local",
    "cluster.threads=1",
)

# Runs in the copy that CONTRIBUTING's examples are written to: each command, or file of tests, in a fork of one process that has imported.
CARRY_OUT = """
import json, os, runpy, sys
sys.path.insert(0, os.getcwd())
from orchestrator import __main__, launch
from workers import worker
for arguments in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        if arguments[0].endswith(".py"):
            [test() for name, test in runpy.run_path(arguments[0]).items() if name.startswith("test_")]
        else:
            sys.argv = ["orchestrator", *arguments]
            __main__.main()
        sys.stdout.flush()
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"failed: {arguments}")
"""


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model file of a run."""
    folder = tmp_path_factory.mktemp("exported")
    settings = [given for given in tiny_overrides(folder) if not given.startswith("pruner.block_size=")]
    ended = orchestrate("pruner=magnitude", *settings, cwd=folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return next(folder.glob("runs/tiny-*/model.safetensors"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Path) -> Iterator[Path]:
    """A folder with what pages take for granted: a model file, photographs in folders, rates of this machine."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(exported, tmp_path / "model.safetensors")
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for i in range(10):
                Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(tmp_path / "pets" / split / name / f"{i}.png")
    rates = yaml.safe_load((ROOT / "conf" / "cluster" / "ray.yaml").read_text(encoding="utf-8"))["hardware"]
    (tmp_path / "my" / "rates").mkdir(parents=True)
    (tmp_path / "my" / "rates" / "here.yaml").write_text("# @package cluster.hardware\n" + yaml.safe_dump(rates), encoding="utf-8")
    yield tmp_path


def composed(overrides: list[str], directory: str | None = None) -> DictConfig:
    """As Hydra composes it for a command line with ``--config-dir directory``."""
    beside = [f"hydra.searchpath=[file://{Path(directory).resolve()}]"] if directory else []
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", overrides=[*overrides, *beside])


def swept(override: Override) -> list[str]:
    """The values of a sweep; of an interval, its ends."""
    value = override.value()
    return [str(value.start), str(value.end)] if isinstance(value, IntervalSweep) else list(override.sweep_string_iterator())


def points(overrides: list[str]) -> list[list[str]]:
    """The first and the last point of a sweep; of what is none, the command line itself."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    if not any(override.is_sweep_override() for override in parsed):
        return [overrides]
    values = [swept(override) if override.is_sweep_override() else [None] for override in parsed]
    return [
        [
            given if value[end] is None else f"{override.get_key_element()}={value[end]}"
            for given, override, value in zip(overrides, parsed, values, strict=True)
        ]
        for end in (0, -1)
    ]


def orchestrator_command(words: list[str]) -> None:
    """Compose and check what ``python -m orchestrator`` is told; carry out a plan."""
    flags: dict[str, str] = {}
    overrides = list(words)
    while overrides and overrides[0].startswith("--"):
        flag = overrides.pop(0)
        assert flag in ("--multirun", "--help", "--cfg", "--package", "--config-dir"), f"unknown flag {flag}"
        flags[flag] = overrides.pop(0) if flag in ("--cfg", "--package", "--config-dir") else ""
    for point in points(overrides) if "--multirun" in flags else [overrides]:
        found = composed(point, flags.get("--config-dir"))
        assert "--package" not in flags or flags["--package"] in found
        if found.get("mode") == "plan":
            carry_out(found)
        else:
            load(found)


def script_command(script: str, words: list[str]) -> None:
    """That a script is there, knows the options and the variables it is given, and that settings in its arguments compose."""
    path = ROOT / script
    source = path.read_text(encoding="utf-8")
    for option in (word for word in words if word.startswith("--") and word != "--"):
        assert option in source, f"{script} has no {option}"
    overrides = [word for word in words if re.match(r"[+~]*[\w@./]+=", word)]
    if "experiment_of" in source or "-m orchestrator" in source:
        for point in points(overrides) if "--multirun" in words else [overrides]:
            load(composed(point))


def python_words(words: list[str]) -> bool:
    return words[0] in ("python", ".venv/bin/python", "python3.11")


def shell(words: list[str], created: Collection[str] = ()) -> None:
    """Check one command of a page. ``created`` are files that the page writes."""
    variables = []
    while re.match(r"[A-Z_]+=", words[0]):
        variables.append(words.pop(0).partition("=")[0])
    if python_words(words) and words[1:3] == ["-m", "orchestrator"]:
        return orchestrator_command(words[3:])
    if python_words(words) and words[1:3] == ["-m", "orchestrator.compare"]:
        compare.parser().parse_args(words[3:])
        return None
    script = next((word for word in words[:4] if word.startswith("scripts/")), None)
    if script and (python_words(words) or words[0] in ("bash", "sh", "sbatch")):
        assert all(name in (ROOT / script).read_text(encoding="utf-8") for name in variables)
        return script_command(script, words[words.index(script) + 1 :])
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert next(word for word in words[1:] if "=" not in word) in targets
        return None
    if python_words(words) and words[1:4] == ["-m", "pytest", *words[3:4]]:
        files = [word.partition("::")[0] for word in words[3:] if word.startswith("tests/")]
        assert all(file in created or (ROOT / file).exists() for file in files)
        return None
    if words[:2] == ["pip", "install"] or (python_words(words) and words[1:4] == ["-m", "pip", "install"]):
        known = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert all(word in known for word in words[words.index("install") + 1 :])
        return None
    pytest.fail(f"{words[0]} cannot be tried here: change the command, or say why above the block: <!-- not run: REASON -->")


def yaml_block(block: Block) -> None:
    """A component lists every setting of its class; an experiment is composed by the command that names it, or here."""
    content = yaml.safe_load(block.code)
    assert isinstance(content, dict)
    if "_target_" in content:
        kind = imported(block.file, content["_target_"])
        assert set(content) == {field.name for field in fields(kind)} | {"_target_"}
    elif "@package _global_" in block.code:
        load(composed([f"+experiment={Path(block.file).stem}"], block.file.split("/")[0]))


def run_blocks(page: Path, here: Path, write: Callable[[Block], None]) -> None:
    names: dict[str, Any] = {"__name__": "document"}
    for block in blocks(page):
        if block.excused or block.language == "text":
            continue
        place = f"{named(page)}, line {block.line}"
        try:
            if block.file:
                write(block)
            if block.language == "python" and not block.file:
                exec(compile(block.code, place, "exec"), names)
            elif block.language == "yaml":
                yaml_block(block)
            elif block.language == "bash":
                for words in commands(block.code):
                    shell(words)
            else:
                assert block.language == "python", "a block says its language: python, yaml, bash, or text for what is none"
        except BaseException as error:
            error.add_note(f"in {place}")
            raise


@pytest.mark.parametrize("page", WITH_CODE, ids=named)
def test_the_code_of_a_page_runs(page: Path, folder: Path) -> None:
    def write(block: Block) -> None:
        (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
        (folder / block.file).write_text(block.code, encoding="utf-8")

    run_blocks(page, folder, write)


@pytest.mark.slow
def test_the_examples_of_contributing_run(tmp_path: Path) -> None:
    """In a copy of the project: files are written where the page says, and each command is run, with a short training."""
    for name in PROJECT:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    runs: list[list[str]] = []
    page = list(blocks(ROOT / "CONTRIBUTING.md"))
    for block in page:
        if block.excused or block.language == "text":
            continue
        if block.file:
            file = tmp_path / block.file
            assert not file.exists() or file.read_text(encoding="utf-8") == block.code, "an example is a new file"
            (tmp_path / block.file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.file).write_text(block.code, encoding="utf-8")
        if block.file.startswith("tests/"):
            runs.append([block.file])
        elif block.language == "bash":
            for words in commands(block.code):
                if python_words(words) and words[1:3] == ["-m", "orchestrator"]:
                    pruner = [] if any(word.startswith("pruner=") for word in words) else ["pruner=magnitude"]
                    runs.append([*words[3:], *SHORT, *pruner, f"name=run{len(runs)}"])
                else:
                    shell(words, {block.file for block in page})
        else:
            assert block.file, f"line {block.line}: what file is this?"
    ended = subprocess.run([sys.executable, "-c", CARRY_OUT, json.dumps(runs)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(list(tmp_path.glob("runs/*/report.html"))) == 3  # of a pruner, a model family and a data set


@pytest.mark.parametrize("page", [*PAGES, GENERATED], ids=named)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: there is no such file"
        assert not anchor or anchor in anchors(target), f"{link}: there is no such heading"


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "decisions"], ids=named)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    created = {block.file for block in blocks(page)}
    for name in paths(page) - created:
        assert list(ROOT.glob(name.rstrip("/"))), f"there is no {name}"


def test_the_configuration_reference_is_up_to_date() -> None:
    ended = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "write_configuration_reference.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr

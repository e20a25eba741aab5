"""The sources of a verb, found by reading the code, against the files whose functions run."""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from budget_cases import steady
from tiny import tiny_overrides

from orchestrator.composing import experiment_of
from orchestrator.identity import names, sources
from orchestrator.identity.sources import CANNOT_MATTER, NO_VERSION, VERBS, code_version, package_version
from orchestrator.run import classes

ROOT = names.ROOT
CONF = ROOT / "conf"
TARGETS = sorted(
    {
        line.split()[1]
        for path in CONF.rglob("*.yaml")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("_target_: workers.")
    }
)
VIT = ("workers.models.timm.TimmModel", "workers.data.digits.Digits")
CAP = (*VIT, "workers.pruners.cap.CAP", "workers.collect.statistic.BlockFisher")
SOSP = (*VIT, "workers.pruners.sosp.SOSPH")
FOLDER = ("workers.models.timm.TimmModel", "workers.data.imagefolder.ImageFolder")
COMPONENTS = {verb: SOSP if verb in ("collect_units", "rank", "choose", "shrink") else CAP for verb in VERBS}


def files(verb: str, components: tuple[str, ...] = CAP) -> set[str]:
    return set(sources.sources(verb, components).files)


# --- against what runs

UNITS = ["recovery=none", "pruner.target.removed=0.3"]
CONVNET = ["model=digits_convnext", "model.checkpoint=null", "recovery@training=convnext_scratch", "training.epochs=1", "training.ranks=1"]
BUDGET = ["pruner.target.of=latency", "pruner.target.removed=0.5", "latency.seconds=0.001", "latency.spread=0.5"]
RUNS = {
    "cap": ["pruner=cap", "pruner.block_size=16", "recovery=adamw", "recovery.epochs=1", "recovery.ranks=1"],
    "obc 2:4": ["pruner=obc", "recovery=none", "pruner.target.sparsity=0.5", "pruner.target.pattern='2:4'"],
    "guided": ["pruner=guided", "recovery=none", "pruner.refit.order=sequential"],
    "budget": ["pruner=cap", "recovery=none", *BUDGET],
    "sosp_i": ["pruner=sosp_i", *UNITS],
    "halp": ["pruner=halp", *UNITS, "pruner.target.within=null", "latency.seconds=0.001", "latency.widths=2", "latency.spread=0.5"],
    "magnitude": ["pruner=magnitude", "recovery=none", "loss=features"],
    "taylor": ["pruner=taylor", *UNITS, "pruner.streams=true", "pruner.target.solver=exact", "pruner.target.of=memory"],
}


class Ran(defaultdict):
    """By verb, the files of the project with a function that ran while the verb was carried out."""

    watching = False


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ran]:
    ran = Ran(set)
    verbs: list[str] = []

    def look(frame: FrameType, event: str, _: object) -> None:
        path = frame.f_code.co_filename
        if verbs and event == "call" and path.startswith(str(ROOT)) and frame.f_code.co_name != "<module>":
            ran[verbs[-1]].add(Path(path).relative_to(ROOT).as_posix())

    def watched(verb: str, function: Callable) -> Callable:
        def carry_out(*arguments: Any, **more: Any) -> Any:
            if not ran.watching:
                return function(*arguments, **more)
            verbs.append(verb)
            threading.setprofile(look)
            sys.setprofile(look)
            try:
                return function(*arguments, **more)
            finally:
                verbs.pop()
                if not verbs:
                    sys.setprofile(None)
                    threading.setprofile(None)  # type: ignore[arg-type]

        return carry_out

    for verb, entries in VERBS.items():
        for entry in entries:
            place, _, name = entry.rpartition(".")
            owner: Any = import_module(place.rpartition(".")[0]).Worker if place.endswith(".Worker") else import_module(place)
            monkeypatch.setattr(owner, name, watched(verb, getattr(owner, name)))
    yield ran


# Files that the driver calls to name a result.
READ_BEFORE = {"choose": ("workers/data/",)}  # for the shape of images


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in ("taylor", "sosp_i") else name for name in RUNS])
def test_every_file_that_runs_is_among_the_sources_or_cannot_matter(
    name: str, ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.launch import run_experiment

    steady(monkeypatch)
    base = [override for override in tiny_overrides(tmp_path) if not override.startswith(("recovery=", "pruner."))]
    experiment = experiment_of(base + RUNS[name])
    run_experiment(experiment, {}, "")  # compiles what is compiled once, so that the compiler is not watched
    ran.watching = True
    shutil.rmtree(tmp_path / "runs")
    run_experiment(experiment, {}, "")
    assert {"import", "evaluate", "assess", "compare"} < ran.keys()
    made_by = tuple(sorted(set(classes(experiment))))
    models = files("import", made_by) | files(
        "shrink", (*made_by, "workers.models.shrunk.ShrunkModel")
    )  # the name of a model depends on these
    for verb, executed in ran.items():
        known = files(verb, made_by) | (set() if verb == "import" else models)
        missing = {path for path in executed - known if path.startswith(names.PACKAGES)}
        assert not {path for path in missing if not path.startswith((*CANNOT_MATTER, *READ_BEFORE.get(verb, ())))}, verb


# --- the sources of the verbs


def all_files(verb: str) -> set[str]:
    """The sources of a verb with every class that a yaml can choose."""
    return files(verb, (*TARGETS, "workers.models.shrunk.ShrunkModel", "workers.collect.statistic.LayerHessian"))


@pytest.mark.parametrize(
    ("verb", "paths"),
    [
        (
            "choose",
            [
                "orchestrator/allocation/joint.py",
                "orchestrator/shrinking.py",
                "orchestrator/allocation/latency_table.py",
                "kernels/knapsack.py",
            ],
        ),
        ("import", ["workers/worker.py", "workers/models/checkpoints.py", "workers/models/timm.py"]),
        ("train", ["workers/export.py", "workers/numbers.py", "workers/training/deepspeed.py", "workers/data/digits.py"]),
        ("collect_units", ["workers/numbers.py", "workers/collect/unit_saliency.py", "workers/models/structures/views.py"]),
        ("score", ["kernels/obs/cpu.py", "kernels/scores.py", "workers/pruners/obs.py", "workers/collect/moments.py"]),
        ("collect", ["kernels/outer.py", "workers/losses.py", "workers/data/sampling.py"]),
        ("allocate", ["kernels/select.py", "orchestrator/rounds.py", "workers/worker.py"]),
        ("assess", ["workers/average_precision.py"]),
    ],
)
def test_what_a_verb_uses_is_found(verb: str, paths: list[str]) -> None:
    assert set(paths) <= files(verb, COMPONENTS[verb])


def test_reports_are_no_source_and_elimination_is_no_source_of_an_evaluation() -> None:
    for verb in VERBS:
        assert not {path for path in all_files(verb) if "report" in path or path.startswith(("scripts/", "tests/"))}, verb
    for verb in ("import", "evaluate", "assess", "compare", "join", "train", "time_operation", "time_model", "compare_time", "quantise"):
        assert not {path for path in all_files(verb) if path.startswith("kernels/obs/")}, verb
    assert not any(path.startswith("workers/models/structures") for path in files("import") | files("evaluate") | files("train"))


def test_only_the_components_that_settings_chose_count() -> None:
    for verb in VERBS:
        paths = files(verb)
        assert not paths & {"workers/data/coco.py", "workers/pruners/obc.py", "workers/models/torchvision.py"}, verb
    assert "workers/pruners/cap.py" in files("score") and "workers/pruners/cap.py" not in files("collect") | files("evaluate")
    assert files("evaluate", FOLDER) - files("evaluate") >= {"workers/data/imagefolder.py", "workers/data/decode.py"}
    assert "PIL" in sources.sources("evaluate", FOLDER).packages and "PIL" not in sources.sources("evaluate", CAP).packages


def test_a_family_that_settings_name_counts_too() -> None:
    experiment = experiment_of(["+experiment=digits_convnext_expand"])
    assert {"workers.models.widened.WidenedModel", "workers.models.timm.TimmModel"} <= set(classes(experiment))


def test_every_verb_that_is_stored_has_an_entry_and_every_entry_is_stored() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "orchestrator").rglob("*.py"))
    assert set(re.findall(r'store\.destination\(\s*"(\w+)"', text)) == set(VERBS)


def test_every_class_that_a_yaml_can_choose_is_a_source_of_some_verb() -> None:
    for target in TARGETS:
        path = target.rpartition(".")[0].replace(".", "/") + ".py"
        assert any(path in files(verb, (target,)) for verb in VERBS), target


def test_versions_of_packages_that_change_results_are_found_without_importing_them() -> None:
    assert {"torch", "timm", "numpy"} <= set(sources.sources("evaluate", CAP).packages)
    assert "torchvision" in sources.sources("evaluate", ("workers.models.torchvision.TorchvisionModel",)).packages
    assert "deepspeed" in sources.sources("train", CAP).packages
    for verb in VERBS:
        used = set(sources.sources(verb, tuple(TARGETS)).packages)
        assert all(package_version(package) for package in used), used
        assert not used & {"rich", "hydra", "omegaconf", "ray", "wandb", "plotly", *NO_VERSION}, verb
    import PIL
    import torch

    assert (package_version("torch"), package_version("PIL")) == (torch.__version__.partition("+")[0], PIL.__version__)


def test_another_version_of_a_package_changes_the_version_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {verb: code_version.__wrapped__(verb, CAP) for verb in VERBS}
    monkeypatch.setattr(sources, "package_version", lambda name: "9" if name == "timm" else package_version(name))
    after = {verb: code_version.__wrapped__(verb, CAP) for verb in VERBS}
    changed = {verb for verb in VERBS if before[verb] != after[verb]}
    assert changed == {verb for verb in VERBS if "timm" in sources.sources(verb, CAP).packages} and {"import", "train"} <= changed
    assert "assess" not in changed and "allocate" not in changed


# --- in a copy of the project, elsewhere

SAY = """
import json, sys
from orchestrator.identity.sources import VERBS, code_version
components = json.loads(sys.argv[1])
print(json.dumps({verb: code_version(verb, tuple(components[verb])) for verb in VERBS}), "torch" in sys.modules)
"""


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[], dict[str, str]]:
    """Returns the versions of all verbs in a copy of the project in ``tmp_path``, which is not installed."""
    for package in names.PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))

    def versions() -> dict[str, str]:
        command = [sys.executable, "-c", SAY, json.dumps(COMPONENTS)]
        process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=3600, check=True)
        text, imported = process.stdout.rsplit(maxsplit=1)
        assert imported == "False", "it imports torch"
        return json.loads(text)

    return versions


def test_editing_a_file_changes_the_verbs_that_use_it_wherever_the_project_is(copy: Callable, tmp_path: Path) -> None:
    first = copy()
    assert first == {verb: code_version(verb, COMPONENTS[verb]) for verb in VERBS}
    for path, changed in {
        "orchestrator/report/result.py": set(),
        "workers/messages.py": set(),
        "workers/pruners/obc.py": set(),
        "kernels/obs/cpu.py": {"score", "solve", "refit"},
        "workers/losses.py": {"collect", "collect_pairs", "compare", "collect_units", "train"},
        "workers/worker.py": set(VERBS) - {"train", "choose"},
    }.items():
        with (tmp_path / path).open("a", encoding="utf-8") as file:
            file.write("\n")
        after = copy()
        assert {verb for verb in VERBS if after[verb] != first[verb]} == changed, path
        first = after

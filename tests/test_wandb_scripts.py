"""The sweep of W&B runs commands that compose, and the dashboard shows what runs log."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from orchestrator.composing import experiment_of
from orchestrator.tracking.numbers import PARETO, summary

ROOT = Path(__file__).parent.parent
SWEEP = yaml.safe_load((ROOT / "scripts" / "wandb_sweep.yaml").read_text(encoding="utf-8"))
DASHBOARD = [sys.executable, str(ROOT / "scripts" / "wandb_dashboard.py")]


def agent_command(values: dict) -> list[str]:
    """What W&B's agent would run for a point, by W&B's own functions; only the interpreter's environment is left out."""
    variables = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}}) | {"env": ["/usr/bin/env"]}
    words: list[str] = []
    for part in create_sweep_command(SWEEP["command"]):
        macro = re.fullmatch(r"\$\{(\w+)\}", str(part))
        words += variables[macro[1]] if macro else [str(part)]
    return words


def sweep_points() -> list[dict]:
    names = list(SWEEP["parameters"])
    return [dict(zip(names, values, strict=True)) for values in product(*(SWEEP["parameters"][name]["values"] for name in names))]


@pytest.mark.parametrize("values", sweep_points(), ids=str)
def test_the_agent_of_a_sweep_runs_a_command_that_composes_to_its_point(values: dict) -> None:
    env, python, flag, module, *settings = agent_command(values)
    assert (env, python, flag, module) == ("/usr/bin/env", "python", "-m", "orchestrator")
    experiment = experiment_of(settings)
    assert type(experiment.pruner).__name__.lower() == values["pruner"]
    assert experiment.pruner.target.sparsity == values["pruner.target.sparsity"] and experiment.seed == values["seed"]
    assert type(experiment.tracking).__name__ == "WandB"


def test_what_a_sweep_optimises_is_logged(example_report) -> None:
    assert SWEEP["metric"]["name"] in summary(example_report)


@pytest.fixture
def example_report(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "orchestrator"))
    from example_report import DENSE, SMALL, example, structured

    from orchestrator.report.parts import LatencyResult

    timed = LatencyResult("eager", 1, 1, "cpu", 20.0, 14.0, 13.5, 14.2, 0.006, 2, 1.13, 30, 120)
    sparse = [stage for stage in structured().stages]
    sparse[-1].metrics["sparse_images_per_second"] = 2000.0
    seconds = dict.fromkeys(("collect", "score", "solve", "recover"), 1.0)
    return example(stages=sparse, dense_size=DENSE, final_size=SMALL, latency=timed, stage_seconds=seconds)


@pytest.mark.skipif(find_spec("wandb_workspaces") is None, reason="needs the extra dashboard")
def test_the_dashboard_has_its_sections_and_every_number_in_it_is_one_that_runs_log(tmp_path: Path, example_report) -> None:
    file = tmp_path / "spec.json"
    done = subprocess.run([*DASHBOARD, "--project", "p", "--spec", str(file)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    view = json.loads(file.read_text())
    sections = {section["name"]: section["panels"] for section in view["spec"]["section"]["panelBankConfig"]["sections"]}
    assert view["project"] == "p" and list(sections) == ["Accuracy", "Layers", "Time", "Workers"]
    assert all(sections.values())

    logged = set(summary(example_report))
    curves = {f"{curve}_curve/{key}" for curve in ("dense", "recovery") for key in ("step", "loss")}
    for panel in (panel for panels in sections.values() for panel in panels):
        config = panel["config"]
        match panel["viewType"]:
            case "Run History Line Plot":
                assert {config["xAxis"], *config["metrics"]} <= curves
            case "Bar Chart":
                assert set(config["metrics"]) <= logged
            case "Scatter Plot":
                assert {config[axis].removeprefix("summary:") for axis in ("xAxis", "yAxis")} <= logged
            case "Vega2":
                fields = set(config["fieldSettings"].values())
                table = re.search(r"(\w+)_table", json.dumps(config))
                assert table is not None and table[1] in ("worker_utilisation", "accuracy_against_size", "staircase_lines")
                assert fields <= {*PARETO, "process", "busy", "step", "lineKey", "lineVal"}
            case "Weave":
                assert re.search(r'"val": "(layers|workers)"', json.dumps(config))
            case other:
                pytest.fail(f"a panel that is not checked: {other}")


def test_the_dashboard_asks_for_credentials_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    done = subprocess.run(DASHBOARD, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: W&B needs credentials") and len(done.stderr.splitlines()) == 1

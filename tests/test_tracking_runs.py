"""Trackers in whole runs: the points of a sweep are a group, and no secret of the environment is written or printed anywhere."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from run_cases import arguments, run

SECRETS = {
    "WANDB_API_KEY": "5ec4e700" * 5,
    "AWS_SECRET_ACCESS_KEY": "aws/Secret+0123456789/abcdefghijklmnopqr",
    "HF_TOKEN": "hf_secretsecretsecretsecretsecretse",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-hunter2-secret",
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep of two points with secrets in its environment, and what it said. Everything that it can write to is in the folder."""
    folder = tmp_path_factory.mktemp("sweep")
    home = folder / "home"
    home.mkdir()
    places = {name: str(home / name.lower()) for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "TMPDIR")}
    (home / "tmpdir").mkdir()
    settings = ["--multirun", "tracking=wandb", "tracking.mode=offline", "pruner=magnitude", "pruner.target.sparsity=0.5,0.7"]
    command = [sys.executable, "-m", "orchestrator", *arguments(folder, *settings)]
    environment = os.environ | SECRETS | places | {"HOME": str(home)}
    ended = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, timeout=3600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder, ended.stdout + ended.stderr


def test_no_secret_of_the_environment_is_in_any_file_or_on_the_console(sweep: tuple[Path, str]) -> None:
    folder, said = sweep
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"report.html", "report.json", "metrics.jsonl", "tasks.jsonl", "state.json", "index.html", "record.json"} <= names
    assert any(path.suffix == ".wandb" for path in files)
    for name, secret in SECRETS.items():
        assert secret not in said, name
        assert not [str(path) for path in files if secret.encode() in path.read_bytes()], name


def test_the_points_of_a_sweep_are_runs_of_one_group_with_tags(sweep: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "orchestrator"))
    import offline_wandb

    folder, _ = sweep
    files = sorted((folder / "runs").glob("tiny-*/wandb/offline-run-*/*.wandb"))
    runs = [next(record.run for record in offline_wandb.records(path) if record.HasField("run")) for path in files]
    assert len(runs) == 2 and runs[0].run_id != runs[1].run_id
    assert {run.run_id for run in runs} == {path.name.removeprefix("tiny-") for path in (folder / "runs").glob("tiny-*")}
    (started,) = (folder / "runs" / "sweeps").iterdir()
    assert {run.run_group for run in runs} == {f"tiny {started.name}"}
    assert all(list(run.tags) == ["magnitude", "tiny"] for run in runs)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_run_without_the_package_of_its_tracker_is_refused_before_it_starts_and_with_it_is_tracked(name: str, tmp_path: Path) -> None:
    from warm import orchestrate

    if find_spec(name) is None:
        ended = orchestrate(*arguments(tmp_path, f"tracking={name}", "pruner=magnitude"), cwd=tmp_path)
        assert ended.returncode == 2 and ended.stderr.startswith("error: tracking: ") and f"secateur[{name}]" in ended.stderr
        assert not list((tmp_path / "runs").glob("tiny-*"))
        return
    said = run(tmp_path, f"tracking={name}", "pruner=magnitude")
    assert "warning" not in said
    written = {"tensorboard": "tiny-*/tensorboard/events.*", "mlflow": "mlruns/*/*/metrics/summary/accuracy"}[name]
    assert len(list((tmp_path / "runs").glob(written))) == 1

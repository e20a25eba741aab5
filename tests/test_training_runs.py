"""Runs that train: the dense model from scratch and its recovery, through the command line, and what W&B is told of them."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "orchestrator"))
import offline_wandb
from run_cases import ON_RAY, begin, computed, directory, kill_at, model_bytes, run
from watch import Watch

from workers.export import load_state

RECOVERY = ["recovery=adamw", "recovery.epochs=2", "recovery.batch_size=32"]
TRAINING = [
    "model.checkpoint=null",
    "data.train_size=128",
    "training.epochs=2",
    "training.batch_size=32",
    "training.warmup_epochs=0.0",
    *RECOVERY,
]
ONE_RANK = ["training.ranks=1", "recovery.ranks=1"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run(folder, *TRAINING, *ONE_RANK, "tracking=wandb", "tracking.mode=offline")
    return folder


@pytest.mark.parametrize("stage", ["train dense", "recover", pytest.param("evaluate recovered", marks=pytest.mark.slow)])
def test_a_driver_killed_while_training_continues_to_equal_bytes(stage: str, undisturbed: Path, tmp_path: Path) -> None:
    kill_at(stage, tmp_path, *TRAINING, *ONE_RANK)
    run(tmp_path, *TRAINING, *ONE_RANK)
    assert model_bytes(tmp_path) == model_bytes(undisturbed)
    assert max(computed(tmp_path).values()) == 1


@pytest.mark.slow
def test_a_gang_of_two_on_ray_equals_a_gang_of_two_processes(tmp_path: Path) -> None:
    for cluster in ((), ON_RAY):
        folder = tmp_path / ("ray" if cluster else "local")
        folder.mkdir()
        process = begin(folder, *RECOVERY, "data.train_size=128", "recovery.ranks=2", "recovery.zero_stage=2", *cluster)
        with Watch(process.pid) as watch:
            said = process.end()
        assert process.process.exitcode == 0, said
        assert len(watch.listening) > bool(cluster) and not watch.open_to_others, "ranks, too, listen on this machine alone"
    assert model_bytes(tmp_path / "local") == model_bytes(tmp_path / "ray")
    state, masks = load_state(directory(tmp_path / "ray") / "model.safetensors")
    assert sum(int((state[f"{name}.weight"] == 0).sum()) for name in masks) == round(0.75 * sum(mask.numel() for mask in masks.values()))


def test_wandb_is_told_the_configuration_the_metrics_the_layers_and_the_files(undisturbed: Path) -> None:
    found = offline_wandb.records(offline_wandb.the_file(directory(undisturbed)))
    report = json.loads((directory(undisturbed) / "report.json").read_text())
    assert offline_wandb.config(found)["pruner"]["block_size"] == 16
    history = offline_wandb.history(found)
    for stage in report["stages"]:
        assert any(row.get(f"{stage['name']}/top1") == stage["metrics"]["top1"] for row in history)
    assert [row["recovery_curve/step"] for row in history if "recovery_curve/step" in row] == [
        line["step"] for line in report["curves"]["recovery"]
    ]
    summary = offline_wandb.summary(found)
    for which in ("dense", "final"):
        counted = {name: summary[f"size/{which}_{name}"] for name in ("parameters", "macs")}
        assert counted == report[f"{which}_size"] and summary[f"speed/{which}_images_per_second"] > 0
    sent = {entry.path for artifact in offline_wandb.artifacts(found).values() for entry in artifact.manifest.contents}
    assert {"report.html", "report.json", "model.safetensors"} <= sent

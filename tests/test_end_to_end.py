"""The whole program from the command line: equal bytes however it is carried out, and no finished work repeated."""

import json
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch
from run_cases import ON_RAY, begin, computed, directory, kill_at, model_bytes, run, start
from safetensors.torch import load_file, save_file
from tiny import tiny_overrides
from watch import REFUSED, Watch

from orchestrator.composing import experiment_of
from orchestrator.launch import plan_experiment
from orchestrator.planning.footprint import footprint
from workers.export import load_pruned, load_state

STAGES = ("evaluate dense", "collect", "score", "allocate", "solve", "join", "compare", "evaluate one-shot")
SLOW = ("evaluate dense", "allocate", "join", "compare", "evaluate one-shot")  # to be killed at: as the others, in `make test-all`


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder)
    return folder


@pytest.mark.parametrize("workers", [*(pytest.param(count, marks=pytest.mark.slow) for count in (1, 2)), 3])
def test_any_number_of_ray_workers_gives_the_bytes_of_one_process(workers: int, undisturbed: Path, tmp_path: Path) -> None:
    """Meanwhile, nobody from outside gets in."""
    process = begin(tmp_path, *ON_RAY, f"cluster.workers={workers}")
    with Watch(process.pid, knocks=True) as watch:
        said = process.end()
    assert process.process.exitcode == 0, said
    assert model_bytes(tmp_path) == model_bytes(undisturbed)
    assert {"gcs_server", "raylet"} <= watch.answers.keys() and any(name.startswith("ray::Worker") for name in watch.listening)
    assert not watch.open_to_others, "only this machine reaches them"
    assert set().union(*watch.answers.values()) == {REFUSED}, "and only with the token of this run"
    ((file, secret),) = watch.secrets.items()
    assert len(secret) == 64 and not watch.readable and not watch.shown
    assert not file.parent.exists(), "what Ray wrote is deleted"
    assert secret not in said and not [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_many_waves_give_the_bytes_of_one(undisturbed: Path, tmp_path: Path) -> None:
    """With memory for hardly more than the largest layer each worker collects a few at a time."""
    small = "data.eval_batch_size=8"
    experiment = experiment_of([*tiny_overrides(tmp_path), small])
    plan = plan_experiment(experiment)
    needs = footprint(experiment, plan.profile, plan.resources)
    run(tmp_path, small, f"cluster.memory_gb={1.00001e-9 * max(needs.collect([planned]) for planned in plan.layers)}")
    assert model_bytes(tmp_path) == model_bytes(undisturbed)
    tasks = [json.loads(line) for line in (directory(tmp_path) / "tasks.jsonl").read_text().splitlines()]
    assert len({line["started"] for line in tasks if line["verb"] == "collect"}) > 2, "more cells than the two shards"


@pytest.mark.parametrize("verb", [pytest.param("collect", marks=pytest.mark.slow), "solve"])
def test_a_killed_worker_is_replaced_and_changes_no_byte(verb: str, undisturbed: Path, tmp_path: Path) -> None:
    process = start(tmp_path, *ON_RAY, "cluster.workers=2", "data.calibration_batches=24")
    victim = None
    while process.poll() is None and victim is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if "".join(child.cmdline()[:1]).startswith(f"ray::Worker.{verb}"):
                    child.send_signal(signal.SIGKILL)
                    victim = child
                    break
            except psutil.Error:
                continue
        time.sleep(0.001)
    output, _ = process.communicate(timeout=3600)
    assert victim is not None, "no worker was caught at work"
    assert process.returncode == 0, output
    assert model_bytes(tmp_path) == model_bytes(undisturbed)
    report = json.loads((directory(tmp_path) / "report.json").read_text())
    assert any("died" in warning and verb in warning for warning in report["warnings"]), report["warnings"]


@pytest.mark.parametrize("stage", [pytest.param(s, marks=[pytest.mark.slow] if s in SLOW else []) for s in STAGES])
def test_a_killed_driver_continues_where_it_was(stage: str, undisturbed: Path, tmp_path: Path) -> None:
    kill_at(stage, tmp_path)
    run(tmp_path)
    assert model_bytes(tmp_path) == model_bytes(undisturbed)
    assert max(computed(tmp_path).values()) == 1, "finished work was repeated"


def test_a_finished_run_computes_nothing_again(tmp_path: Path) -> None:
    run(tmp_path)
    before = computed(tmp_path)
    run(tmp_path)
    assert computed(tmp_path) == before


def test_a_sweep_over_sparsity_collects_and_eliminates_once(tmp_path: Path) -> None:
    run(tmp_path, "--multirun", "pruner.target.sparsity=0.5,0.7,0.9")
    reports = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("tiny-*/report.json")]
    assert sorted(round(r["pruned_weights"] / r["prunable_weights"], 3) for r in reports) == [0.5, 0.7, 0.9]
    done = Counter(task["verb"] for r in reports for task in r["timeline"] if task["computed"])
    assert done["collect"] == 8 * 2 and done["score"] == 8 and done["solve"] == 3 * 8


@pytest.mark.parametrize(("pruner", "collected"), [("magnitude", 0), ("sparsegpt", 8 * 2), ("cap", 8 * 2)])
def test_patterns_share_statistics_and_never_scores(tmp_path: Path, pruner: str, collected: int) -> None:
    """In one store: unstructured, then 2:4 and groups, of layers that are all Linear and so need no other order of columns."""
    buckets = {"2:4": (4, {2}), "1:2": (2, {1}), "groups:4": (4, {0, 4})}
    patterns = ["unstructured", *(pattern for pattern in buckets if pruner != "sparsegpt" or pattern != "groups:4")]
    run(tmp_path, "--multirun", "pruner.target.sparsity=0.5", f"pruner={pruner}", f"pruner.target.pattern={','.join(patterns)}")
    reports = []
    for path in (tmp_path / "runs").glob("tiny-*/report.json"):
        reports.append(json.loads(path.read_text()))
        pattern, (_, masks) = reports[-1]["experiment"]["pruner"]["target"]["pattern"], load_state(path.parent / "model.safetensors")
        if pattern in buckets:
            length, counts = buckets[pattern]
            assert {int(n) for keep in masks.values() for n in keep.reshape(-1, length).sum(1).unique()} == counts, pattern
    assert len(reports) == len(patterns)
    done = Counter(task["verb"] for report in reports for task in report["timeline"] if task["computed"])
    assert done["collect"] == collected and done["score"] == 8 * len(patterns)


def test_settings_that_calibration_does_not_read_leave_it_alone(tmp_path: Path) -> None:
    run(tmp_path)
    run(tmp_path, "data.test_size=100", "data.max_shift=1")
    reports = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("tiny-*/report.json")]
    done = Counter(task["verb"] for report in reports for task in report["timeline"] if task["computed"])
    assert done["collect"] == 8 * 2 and done["solve"] == 8 and done["evaluate"] == 2 * 2


def test_a_model_without_a_head_is_judged_by_its_features_and_large_splits_are_cut_into_parts(tmp_path: Path) -> None:
    """1,437 labelled images that vote are three tasks of at most 512, whatever the shards; the 360 of the test are one."""
    (checkpoint,) = [o.partition("=")[2] for o in tiny_overrides(tmp_path) if o.startswith("model.checkpoint=")]
    body = {name: tensor for name, tensor in load_file(checkpoint).items() if not name.startswith("head.")}
    save_file(body, tmp_path / "body.safetensors")
    headless = ["model.arguments.num_classes=0", f"++model.checkpoint={tmp_path / 'body.safetensors'}", "loss=features", "data.shards=1"]
    run(tmp_path, *headless)
    report = json.loads((directory(tmp_path) / "report.json").read_text())
    assert Counter(task["verb"] for task in report["timeline"])["evaluate"] == 2 * (3 + 1)
    dense, one_shot = (stage["metrics"] for stage in report["stages"])
    assert dense["agreement"] == pytest.approx(1) and 0.5 < one_shot["agreement"] < 1 and 0.2 < dense["knn"] <= 1
    assert report["loss_increase"]["measured"] > 0


def test_the_exported_model_is_the_evaluated_one_and_shrinks(undisturbed: Path) -> None:
    """Weights bit for bit, exactly round(0.75 d) zeros, and a file about as small as 1 bit + a quarter of 32 bits per weight."""
    path = directory(undisturbed) / "model.safetensors"
    model, (state, masks) = load_pruned(path), load_state(path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    weights = {name: model.get_parameter(f"{name}.weight") for name in masks}
    total = sum(weight.numel() for weight in weights.values())
    assert len(masks) == 8 and sum(int((weight == 0).sum()) for weight in weights.values()) == round(0.75 * total)
    assert all(torch.equal(weights[name] != 0, masks[name]) for name in masks)
    dense = sum(4 * tensor.numel() for tensor in state.values())
    assert path.stat().st_size < dense - 4 * total + total * (1 / 8 + 4 / 4) + 8000 + 120 * len(state | masks)  # digests, by name
    logits = json.loads((directory(undisturbed) / "report.json").read_text())
    assert logits["sizes"]["file_bytes"] == path.stat().st_size


@pytest.mark.parametrize("verb", ["collect", "import", *(pytest.param(v, marks=pytest.mark.slow) for v in ("score", "solve", "evaluate"))])
def test_a_damaged_result_is_computed_again_with_a_warning(verb: str, undisturbed: Path, tmp_path: Path) -> None:
    run(tmp_path)
    record = sorted((tmp_path / "runs" / "store" / verb).glob("*/*/record.json"))[0]
    (damaged,) = (path for path in record.parent.iterdir() if path.suffix == ".safetensors")
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 0xFF
    damaged.write_bytes(content)
    for later in (
        "join",
        "compare",
        "assess",
        "allocate",
        *(("solve",) if verb in ("collect", "score") else ()),
        *(("score",) if verb == "collect" else ()),
    ):
        for path in (tmp_path / "runs" / "store" / later).glob("*/*/record.json"):
            path.unlink()
    output = run(tmp_path)
    assert "damaged" in output and "computed again" in output
    assert model_bytes(tmp_path) == model_bytes(undisturbed)


def test_a_batch_with_nan_is_skipped_counted_and_reported(tmp_path: Path) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.random((96, 16, 16, 1), dtype=np.float32)
    images[5] = np.nan
    labels = np.arange(96) % 10
    np.savez(tmp_path / "data.npz", train_images=images, train_labels=labels, test_images=images[8:28], test_labels=labels[8:28])
    overrides = [
        "data=arrays",
        f"data.path={tmp_path / 'data.npz'}",
        "data.channels=1",
        "data.image_size=16",
        "data.calibration_batch_size=4",
    ]
    overrides += ["data.calibration_batches=24", "data.mean=[0.5]", "data.std=[0.5]"]
    run(tmp_path, *overrides)
    report = json.loads((directory(tmp_path) / "report.json").read_text())
    assert report["skipped"] == {"calibration batches with non-finite values": 1}
    images[:] = np.nan
    np.savez(tmp_path / "data.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    process = start(tmp_path, *overrides)
    output, _ = process.communicate(timeout=3600)
    assert process.returncode == 1 and "evaluate: expected finite outputs" in output and "Traceback" not in output

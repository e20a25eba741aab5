"""A detector through the whole program: its own loss ranks and recovers it, and its average precision is what the report says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from run_cases import directory, report_of, run
from sklearn.datasets import load_digits

from orchestrator.composing import experiment_of
from orchestrator.launch import plan_experiment
from workers import average_precision
from workers.data.scenes import Rules, compose
from workers.errors import ConfigError
from workers.export import load_pruned, load_state
from workers.models.detector import Detector
from workers.onnx_export import open_session

MODEL = ("model=fashion_ssdlite", "data=arrays", "data.image_size=64", "data.channels=3", "data.mean=[0.5]")
SHORT = ("data.calibration_batches=4", "data.calibration_batch_size=4", "pruner.target.removed=0.4", "pruner.target.of=macs")
RECOVERY = ("recovery=detector", "recovery.epochs=1", "recovery.batch_size=8", "recovery.ranks=1")


@pytest.fixture(scope="module")
def digits_laid_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of scikit-learn's digits, with boxes."""
    digits, path = load_digits(), tmp_path_factory.mktemp("scenes") / "scenes.npz"
    images_NHWC = (digits.images * 15).astype(np.uint8)[..., None]
    rules = Rules(64, 3, 16, 32)
    parts = {split: compose(images_NHWC, digits.target, count, count, rules) for split, count in (("train", 64), ("test", 16))}
    arrays = {f"{split}_{name}": array for split, pair in parts.items() for name, array in zip(("images", "boxes"), pair, strict=True)}
    np.savez(path, **arrays)
    return path


@pytest.mark.slow
def test_a_detector_is_ranked_shrunk_recovered_and_judged(digits_laid_out: Path, tmp_path: Path) -> None:
    """The average precision of the file that is left, computed anew, is the report's."""
    where = f"data.path={digits_laid_out}"
    training = ("recovery@training=detector_scratch", "training.epochs=2", "training.ranks=1", "training.batch_size=8")
    output = run(tmp_path, *MODEL, where, *SHORT, "pruner=taylor", *training, *RECOVERY)
    said, model = report_of(tmp_path), load_pruned(directory(tmp_path) / "model.safetensors")
    assert isinstance(model, Detector) and "mAP" in output
    assert said["final_size"]["macs"] < 0.6 * said["dense_size"]["macs"]
    assert said["loss_increase"]["loss"] == "detection loss per calibration sample"
    data = experiment_of([*MODEL, where]).data
    batches = list(data.evaluation("test", 0, 1))
    with torch.no_grad():
        found_ND6 = torch.cat([model.detections(model(batch.images_NCHW)) for batch in batches])
    expected = average_precision.precision(found_ND6, torch.cat([batch.labels for batch in batches]))
    last = said["stages"][-1]
    assert last["name"] == "recovered" and {name: last["metrics"][name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert set(expected) == {"map", "map50"}


@pytest.mark.slow
def test_weights_of_a_detector_are_pruned_without_labels_and_recovered_by_what_the_dense_one_says(
    digits_laid_out: Path, tmp_path: Path
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    training = ("recovery@training=detector_scratch", "training.epochs=2", "training.ranks=1", "training.batch_size=8")
    features = (*RECOVERY, "recovery.distill=features", "recovery.distill_weight=1")
    pruner = ("pruner=cap", "pruner.target.sparsity=0.5", "pruner.block_size=16", "loss=features", "onnx=true", "int8=true")
    run(tmp_path, *MODEL, f"data.path={digits_laid_out}", *SHORT[:2], *pruner, *training, *features)
    said, folder = report_of(tmp_path), directory(tmp_path)
    pruned, weights = (sum(layer[name] for layer in said["layers"]) for name in ("zeros", "weights"))
    assert pruned / weights == pytest.approx(0.5, abs=1e-3) and said["int8"]["metrics"]["map"] >= 0
    images_NCHW = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        expected = load_pruned(folder / "model.safetensors")(images_NCHW)
    (found,) = open_session(folder / "model.onnx").run(["outputs"], {"images": images_NCHW.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_weights_of_a_detector_are_pruned_by_its_own_loss_and_fitted_layer_after_layer(digits_laid_out: Path, tmp_path: Path) -> None:
    """Heads that every level uses are layers with several products in a pass."""
    training = ("recovery@training=detector_scratch", "training.epochs=2", "training.ranks=1", "training.batch_size=8")
    for order in ("parallel", "sequential"):
        pruner = ("pruner=guided", "pruner.target.sparsity=0.6", f"pruner.refit.order={order}", "recovery=none")
        run(tmp_path, *MODEL, f"data.path={digits_laid_out}", *SHORT[:2], *pruner, *training)
    reports = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/report.json")]
    zeros = {sum(layer["zeros"] for layer in report["layers"]) for report in reports}
    assert len(reports) == 2 and zeros == {round(0.6 * sum(layer["weights"] for layer in reports[0]["layers"]))}
    assert all("map" in report["stages"][-1]["metrics"] for report in reports)
    first, second = (load_state(path) for path in (tmp_path / "runs").glob("*/model.safetensors"))
    assert all(torch.equal(keep, second[1][name]) for name, keep in first[1].items())
    assert any(not torch.equal(first[0][f"{name}.weight"], second[0][f"{name}.weight"]) for name in first[1])


def planned(*overrides: str, recovery: str = "none") -> None:
    given = {override.partition("=")[0] for override in overrides}
    base = [override for override in MODEL if not {override.partition("=")[0], override.partition(".")[0]} & given]
    plan_experiment(experiment_of([*base, f"recovery={recovery}", *overrides]))


@pytest.mark.slow
def test_what_does_not_go_together_is_refused_before_any_work(digits_laid_out: Path) -> None:
    where = f"data.path={digits_laid_out}"
    planned(where, "pruner=sosp_h", "pruner.target.removed=0.5")
    for overrides, said in (
        ((where, "data.image_size=96"), r"data.image_size: expected 64 .*3 channels"),
        ((where, "loss=sampled"), r"loss: expected labels or features"),
        ((where, "pruner=sosp_i", "pruner.target.removed=0.5"), r"pruner: expected .*detectors, got 'SOSPI'"),
        (
            (where, "model.arguments.num_classes=10"),
            r"num_classes: expected at least 11: the classes of the data and the background, got 10",
        ),
        (("data=digits", "data.image_size=64", "data.channels=3"), r"data: expected images with objects in boxes, or without labels"),
        ((where, "model=torchvision", "model.name=resnet18"), r"data: expected images with one class.* got 'Arrays'"),
    ):
        with pytest.raises(ConfigError, match=said):
            planned(*overrides)
    with pytest.raises(ConfigError, match=r"recovery.label_smoothing: expected 0"):
        planned(where, "recovery.label_smoothing=0.1", recovery="detector")
    with pytest.raises(ConfigError, match=r"recovery.distill: expected none or features"):
        planned(where, recovery="fashion")

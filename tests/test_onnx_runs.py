"""Runs that also leave an ONNX file."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_overrides

from orchestrator.composing import experiment_of
from orchestrator.launch import run_experiment
from workers.errors import ConfigError
from workers.export import load_pruned


def test_a_run_leaves_the_pruned_model_as_onnx_and_its_report_says_how_well_it_agrees(tmp_path: Path) -> None:
    onnxruntime, _ = (pytest.importorskip(package) for package in ("onnxruntime", "onnxscript"))
    experiment = experiment_of([*tiny_overrides(tmp_path), "onnx=true"])
    _, directory = run_experiment(experiment, {}, "")
    told = json.loads((directory / "report.json").read_text())["files"]["onnx"]
    assert told["files"] == ["model.onnx"] and told["images"] == 32 and told["onnxruntime"] == onnxruntime.__version__
    assert 0 <= told["max_difference"] <= 1e-5 < told["tolerance"]
    (images_NCHW, _), *_ = experiment.data.evaluation("test", 0, 1)
    session = onnxruntime.InferenceSession(directory / "model.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected_ND = load_pruned(directory / "model.safetensors")(images_NCHW)
    found_ND = torch.from_numpy(session.run(["outputs"], {"images": images_NCHW.numpy()})[0])
    torch.testing.assert_close(found_ND, expected_ND, rtol=0, atol=1e-5 * float(expected_ND.abs().max()))


def test_a_run_that_lacks_the_packages_is_refused_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = experiment_of([*tiny_overrides(tmp_path), "onnx=true"])
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None if name == "onnxruntime" else found("json"))
    with pytest.raises(ConfigError, match=r"onnx: .*\(onnxruntime\); run: pip install"):
        run_experiment(experiment, {}, "")
    assert not Path(experiment.output).exists()

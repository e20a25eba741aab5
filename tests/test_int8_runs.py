"""Runs that also leave a model in 8 bits."""

from pathlib import Path

import pytest
from run_cases import directory, report_of, run


def test_a_run_leaves_a_model_in_8_bits_and_tells_its_accuracy_size_and_time(tmp_path: Path) -> None:
    """And the same command again makes nothing anew."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    run(tmp_path, "int8=true")
    told, file = report_of(tmp_path), directory(tmp_path) / "model.int8.onnx"
    assert told["int8"]["bytes"] == file.stat().st_size < told["int8"]["float_bytes"]
    assert told["files"]["int8"] == file.name and 0 <= told["int8"]["metrics"]["top1"] <= 1
    assert any("8 bits" in sentence and "top-1 accuracy" in sentence for sentence in told["sentences"])
    assert "in 8 bits" in (directory(tmp_path) / "report.html").read_text(encoding="utf-8")
    assert "quantise" in told["predicted_stage_seconds"] and told["stage_seconds"]["quantise"] > 0
    run(tmp_path, "int8=true")
    again = [task for task in report_of(tmp_path)["timeline"] if task["verb"] == "quantise"]
    assert [task["computed"] for task in again] == [False]

"""Runs with a target of latency, from the command line: measured where they say, corrected, resumed, and told as they were."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from run_cases import arguments, directory, report_of, run, stored

from orchestrator.composing import experiment_of
from orchestrator.launch import plan_experiment
from orchestrator.planning.estimate import Estimate
from orchestrator.planning.timing import PREPARE_SECONDS
from workers.export import load_family, load_pruned
from workers.files import read_tensors
from workers.latency import Runtime
from workers.models.structures.find import find_groups

HALP = (
    "pruner=halp",
    "pruner.target.removed=0.2",
    "latency.widths=4",
    "latency.batch_size=256",
    "latency.seconds=0.02",
    "latency.spread=0.05",
)
WITHIN = "pruner.target.within={}"


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("halved")
    run(folder, *HALP, WITHIN.format("null"))
    return folder


def test_the_plan_of_timing_grows_with_the_work_of_a_run_and_not_with_patience(tmp_path: Path) -> None:
    """Ten times the images are ten times the time beyond preparing an operation; the longest that one may take changes nothing."""

    def of_timing(*settings: str) -> Estimate:
        planned = plan_experiment(experiment_of(arguments(tmp_path, "pruner=halp", "pruner.target.removed=0.2", *settings)))
        return planned.stages["time operations"]

    once, ten = of_timing("latency.batch_size=100"), of_timing("latency.batch_size=1000")
    fixed = once.tasks * PREPARE_SECONDS[Runtime.EAGER]
    assert once.tasks == ten.tasks and ten.seconds - fixed == pytest.approx(10 * (once.seconds - fixed))
    assert of_timing("latency.batch_size=100", "latency.seconds=9").seconds == once.seconds


def test_what_was_predicted_is_the_sum_of_the_table_and_within_the_budget(halved: Path) -> None:
    """From the files of the run alone: times of its operations at the widths that were chosen, scaled as the dense model's."""
    from workers.models.operations import find_operations

    said = report_of(halved)["latency"]
    (chosen,), (dense,) = stored(halved, "choose"), stored(halved, "import")
    kept = {name: int(stays.sum()) for name, stays in read_tensors(chosen / "kept.safetensors").items()}
    family = load_family(dense / "model.safetensors")
    operations = find_operations(family, (1, 16, 16), 256, find_groups(family, (1, 16, 16), streams=False))
    rows = pyarrow.parquet.read_table(directory(halved) / "latency.parquet").to_pylist()
    ms = {row["operation"]: row["ms"] for row in rows}

    def total(units: dict[str, int] | None) -> float:
        left = [[axis.units if units is None else units[axis.groups[0]] for axis in operation.axes] for operation in operations]
        return sum(told(operation, each) for operation, each in zip(operations, left, strict=True))

    def told(operation, left: list[int]) -> float:
        """As measured, or as at the end of the plateau: the next size that was."""
        return next(found for more in range(128) if (found := ms.get(operation.at([units + more for units in left]).text)) is not None)

    (alone,) = stored(halved, "time_model")
    assert said["scale"] == pytest.approx(numbers(alone)["ms"] / total(None))
    assert said["predicted_ms"] / said["dense_ms"] == pytest.approx(total(kept) / total(None))
    assert said["predicted_ms"] <= said["budget_ms"] == pytest.approx(0.8 * said["dense_ms"])
    assert len(rows) == said["measured_sizes"] < said["table_sizes"]
    assert {row["threads"] for row in rows} == {"1"} and all(row["repeats"] >= 7 for row in rows)


def test_the_report_tells_the_measured_time_not_the_predicted(halved: Path) -> None:
    said, (timed,) = report_of(halved), [numbers(path) for path in stored(halved, "compare_time")]
    assert said["latency"]["dense_ms"] == timed["beside_ms"] and said["latency"]["corrections"] == 0
    assert said["latency"]["measured_ms"] == pytest.approx(timed["ratio"] * timed["beside_ms"])
    assert any("budget" in sentence and "forward pass" in sentence for sentence in said["sentences"])
    page = (directory(halved) / "report.html").read_text(encoding="utf-8")
    assert "latency" in page


def numbers(path: Path) -> dict:
    return json.loads((path / "record.json").read_text(encoding="utf-8"))["numbers"]


def test_the_model_is_smaller_and_computes(halved: Path) -> None:
    model = load_pruned(directory(halved) / "model.safetensors")
    with torch.no_grad():
        assert torch.isfinite(model(torch.randn(2, 1, 16, 16))).all()
    assert report_of(halved)["final_size"]["macs"] < report_of(halved)["dense_size"]["macs"]


def timed_operations(folder: Path) -> int:
    return len(list(stored(folder, "time_operation")))


def test_another_budget_measures_no_operation_again(halved: Path, tmp_path: Path) -> None:
    """The table of one run answers the next one with the same model and settings."""
    shutil.copytree(halved / "runs" / "store", tmp_path / "runs" / "store")
    before = timed_operations(tmp_path)
    run(tmp_path, *HALP, WITHIN.format("null"), "pruner.target.removed=0.3")
    assert timed_operations(tmp_path) == before > 5
    assert report_of(tmp_path)["latency"]["budget_ms"] == pytest.approx(0.7 * report_of(tmp_path)["latency"]["dense_ms"])


def test_a_budget_is_corrected_by_what_was_measured(tmp_path: Path) -> None:
    """At most five times, and what is left is told: either it is met, or there is a warning."""
    run(tmp_path, *HALP, WITHIN.format("0.1"))
    said = report_of(tmp_path)
    met = abs(said["latency"]["measured_ms"] / said["latency"]["budget_ms"] - 1) <= 0.1
    assert met or any("were measured where" in warning for warning in said["warnings"])
    assert said["latency"]["corrections"] <= 5


def test_mode_latency_needs_no_weights_and_leaves_a_table_and_a_picture(tmp_path: Path) -> None:
    shown = run(tmp_path, *HALP, "mode=latency", "model.checkpoint=null")
    assert "end to end" in shown and "blocks.0.attn" in shown
    folder = directory(tmp_path)
    assert pyarrow.parquet.read_table(folder / "latency.parquet").num_rows > 5
    assert "plotly" in (folder / "latency.html").read_text(encoding="utf-8").lower()

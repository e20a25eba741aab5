"""The script that compares accuracy and measured time: the Pareto front, and real models with a line each."""

import subprocess
import sys
from pathlib import Path

import pytest
from run_cases import directory, run

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from compare_latency import Model, accuracy, front, lines_of, method, table  # noqa: E402


def test_a_point_that_no_other_beats_is_on_the_front() -> None:
    points = [(1.0, 0.5), (2.0, 0.9), (3.0, 0.8), (1.0, 0.4)]
    assert front(points) == [True, True, False, False]


def test_seeds_share_a_line_with_their_mean_and_spread() -> None:
    """Two seeds of one method, and one of another method that is slower and less accurate and was not recovered."""
    models = [
        Model(Path(), "a", "50%", 0.5, 0.8, 0.9),
        Model(Path(), "b", "50%", 0.4, 0.7, None),
        Model(Path(), "a", "50%", 0.6, 0.6, 0.94),
    ]
    _, _, first, second = table(lines_of(models, [0.4, 0.8, 0.6])).splitlines()
    assert first == "| a | 50% | 55.0 ± 5.0 (2) | 50.0 ± 10.0 (2) | 70.0 ± 10.0 (2) * | 92.0 ± 2.0 (2) * |"
    assert second == "| b | 50% | 40.0 | 80.0 | 70.0 | – |"


@pytest.mark.slow
def test_models_of_runs_are_timed_and_listed_with_their_accuracy(tmp_path: Path) -> None:
    """One model of a run, and one of another script."""
    run(tmp_path, "pruner=taylor", "pruner.target.removed=0.5")
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes((directory(tmp_path) / "model.safetensors").read_bytes())
    (other / "result.json").write_text('{"method": "theirs", "asked": "50% of macs", "macs": 0.5, "one_shot": 0.25, "recovered": null}')
    command = [
        sys.executable,
        str(ROOT / "scripts" / "compare_latency.py"),
        str(directory(tmp_path)),
        str(other),
        "--shape",
        "1",
        "16",
        "16",
    ]
    output = subprocess.run([*command, "--page", str(tmp_path / "page.html")], capture_output=True, text=True, check=True).stdout
    (ours,) = [line for line in output.splitlines() if line.startswith("| UnitTaylor by macs, ranking | 50% of macs |")]
    (theirs,) = [line for line in output.splitlines() if line.startswith("| theirs | 50% of macs | 50.0 |")]
    assert float(ours.split("|")[4]) > 0 and theirs.split("|")[5].strip(" *") == "25.0" and (tmp_path / "page.html").exists()


def test_few_photos_are_compared_by_agreement_and_not_by_their_labels() -> None:
    stages = [{"name": "dense", "metrics": {"top1": 0.9, "agreement": 1.0, "test_samples": 20}}]
    stages.append({"name": "one_shot", "metrics": {"top1": 0.85, "agreement": 0.95, "test_samples": 20}})
    assert accuracy({"stages": stages}, "one_shot") == 0.95 and accuracy({"stages": stages}, "recovered") is None


def test_methods_are_named_by_their_target_and_how_it_is_spread() -> None:
    masks = {"of": "latency", "removed": 0.5, "sparsity": 0.9, "scope": "global"}
    units = {"of": "latency", "removed": 0.5, "solver": "exact", "min_fraction": 0.2}
    names = [method({"experiment": {"pruner": {"_target_": "a.B", "target": target}}}) for target in (masks, units)]
    assert names == ["B by latency, global", "B by latency, exact, floor 20%"]

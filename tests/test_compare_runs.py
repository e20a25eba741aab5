"""The table over many runs says what their reports say."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "compare_runs.py"


@pytest.fixture(scope="module")
def compare():
    spec = importlib.util.spec_from_file_location("compare_runs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(pruner: str, seed: int, sparsity: float, one_shot: float, pattern: str = "unstructured") -> dict:
    target = {"sparsity": sparsity, "pattern": pattern}
    stages = [("dense", 0.9 + seed / 100), ("one_shot", one_shot)]
    return {
        "name": "case",
        "experiment": {"pruner": {"_target_": f"workers.pruners.x.{pruner}", "target": target}, "seed": seed},
        "stages": [{"name": name, "metrics": {"top1": value, "test_samples": 500}} for name, value in stages],
    }


def test_a_grid_has_means_over_seeds_counts_the_dense_model_once_a_seed_and_marks_the_best(compare) -> None:
    reports = [
        *[report("A", seed, 0.5, value) for seed, value in enumerate((0.8, 0.84))],
        *[report("B", seed, 0.5, value) for seed, value in enumerate((0.7, 0.7))],
        report("B", 0, 0.5, 0.6, "2:4"),
    ]
    assert compare.grid(reports).splitlines() == [
        "| case (top1) | 50% | 2:4 |",
        "|---|---|---|",
        "| dense | 90.5 ± 0.5 (2) | 90.0 |",
        "| A | **82.0 ± 2.0 (2)** |  |",
        "| B | 70.0 ± 0.0 (2) | **60.0** |",
    ]

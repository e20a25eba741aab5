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


def test_rows_by_settings_average_over_seeds_and_show_losses_as_measured_and_predicted(compare) -> None:
    runs = []
    for size, seed, accuracy in ((16, 0, 0.8), (16, 1, 0.9), (64, 0, 0.85)):
        run = report("CAP", seed, 0.5, accuracy) | {
            "loss_increase": {"measured": 0.1 * (1 + seed), "predicted": None if size == 64 else 0.5}
        }
        run["experiment"]["pruner"] |= {"block_size": size, "dampening": 1e-3}
        runs.append(run)
    assert compare.by(runs, ["pruner.block_size", "pruner.dampening"]).splitlines() == [
        "| pruner.block_size | pruner.dampening | dense | one-shot | loss increase | predicted |",
        "|---|---|---|---|---|---|",
        "| 16 | 0.001 | 90.5 ± 0.5 (2) | 85.0 ± 5.0 (2) | 0.15 | 0.5 |",
        "| 64 | 0.001 | 90.0 | 85.0 | 0.1 |  |",
    ]

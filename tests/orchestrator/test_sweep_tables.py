"""The tables over many runs agree with their reports."""

import pytest

from orchestrator.sweep.tables import grid, table, table_by_settings
from workers.errors import ConfigError


def report(pruner: str, seed: int, sparsity: float, one_shot: float, pattern: str = "unstructured") -> dict:
    """A report in the form from before units could be removed."""
    target = {"sparsity": sparsity, "pattern": pattern}
    stages = [("dense", 0.9 + seed / 100), ("one_shot", one_shot)]
    return {
        "name": "case",
        "asked": {"sparsity": sparsity} | ({} if pattern == "unstructured" else {"pattern": pattern}),
        "experiment": {"pruner": {"_target_": f"workers.pruners.x.{pruner}", "target": target}, "data": {"seed": seed}, "seed": seed},
        "stages": [{"name": name, "metrics": {"top1": value, "test_samples": 500}} for name, value in stages],
    }


def test_a_grid_has_means_over_seeds_one_dense_model_per_seed_and_the_best_in_bold() -> None:
    reports = [
        *[report("A", seed, 0.5, value) for seed, value in enumerate((0.8, 0.84))],
        *[report("B", seed, 0.5, value) for seed, value in enumerate((0.7, 0.7))],
        report("B", 0, 0.5, 0.6, "2:4"),
    ]
    assert grid(reports).splitlines() == [
        "| case (top1) | 50% | 2:4 |",
        "|---|---|---|",
        "| dense | 90.5 ± 0.5 (2) | 90.0 |",
        "| A | **82.0 ± 2.0 (2)** |  |",
        "| B | 70.0 ± 0.0 (2) | **60.0** |",
    ]


def test_rows_by_settings_average_over_seeds_and_show_measured_and_predicted_losses() -> None:
    runs = []
    for size, seed, accuracy in ((16, 0, 0.8), (16, 1, 0.9), (64, 0, 0.85)):
        run = report("CAP", seed, 0.5, accuracy) | {
            "loss_increase": {"measured": 0.1 * (1 + seed), "predicted": None if size == 64 else 0.5}
        }
        run["experiment"]["pruner"] |= {"block_size": size, "dampening": 1e-3}
        runs.append(run)
    assert table_by_settings(runs, ["pruner.block_size", "pruner.dampening"]).splitlines() == [
        "| pruner.block_size | pruner.dampening | dense | one-shot | loss increase | predicted |",
        "|---|---|---|---|---|---|",
        "| 16 | 0.001 | 90.5 ± 0.5 (2) | 85.0 ± 5.0 (2) | 0.15 | 0.5 |",
        "| 64 | 0.001 | 90.0 | 85.0 | 0.1 |  |",
    ]


def removing_units(pruner: str, seed: int, removed: float, one_shot: float, of: str = "macs") -> dict:
    unit_report = report(pruner, seed, 0.0, one_shot) | {"asked": {"removed": removed, "of": of, "min_units": 1}, "rounds": []}
    unit_report["experiment"]["pruner"]["target"] = {"removed": removed, "of": of, "min_units": 1, "min_fraction": 0.0}
    return unit_report


def in_rounds(*asked: tuple[str, str | None, float], one_shot: float) -> dict:
    """Rounds of (pruner, cost, fraction); None is a report that does not name the cost."""
    rounds = [{"pruner": pruner, "asked": goal} | ({"asked_of": of} if of else {}) for pruner, of, goal in asked]
    return report("Magnitude", 0, 0.1, one_shot) | {"rounds": rounds, "asked": {"sparsity": asked[-1][2]}}


def test_a_grid_has_a_column_for_each_target_of_units_in_numeric_order() -> None:
    reports = [
        removing_units("SOSP", 0, 0.25, 0.8),
        removing_units("SOSP", 1, 0.25, 0.82),
        removing_units("SOSP", 0, 0.05, 0.89),
        removing_units("SOSP", 0, 0.125, 0.85),
        removing_units("Uniform", 0, 0.25, 0.7),
        removing_units("SOSP", 0, 0.25, 0.6, "parameters"),
    ]
    assert grid(reports).splitlines() == [
        "| case (top1) | 5% of macs | 12.5% of macs | 25% of macs | 25% of parameters |",
        "|---|---|---|---|---|",
        "| dense | 90.0 | 90.0 | 90.5 ± 0.5 (2) | 90.0 |",
        "| SOSP | **89.0** | **85.0** | **81.0 ± 1.0 (2)** | **60.0** |",
        "| Uniform |  |  | 70.0 |  |",
    ]


def test_a_table_names_every_kind_of_target_and_reads_older_reports_of_weights() -> None:
    reports = [
        report("CAP", 0, 0.75, 0.8),
        removing_units("SOSP", 0, 0.5, 0.7),
        in_rounds(("SOSP", "macs", 0.25), ("SOSP", "macs", 0.5), ("CAP", "weights", 0.75), one_shot=0.6),
        in_rounds(("CAP", None, 0.5), ("CAP", None, 0.9), one_shot=0.5),
    ]
    assert table(reports).splitlines() == [
        "| experiment | metric | target | pruner | dense | one-shot | recovered |",
        "|---|---|---|---|---|---|---|",
        "| case | top1 | 75% | CAP | 90.0 | 80.0 |  |",
        "| case | top1 | 90% | CAP | 90.0 | 50.0 |  |",
        "| case | top1 | 50% of macs | SOSP | 90.0 | 70.0 |  |",
        "| case | top1 | 50% of macs, 75% of weights | SOSP, CAP | 90.0 | 60.0 |  |",
    ]


def test_rows_by_settings_of_units() -> None:
    runs = [
        removing_units("SOSP", 0, removed, value) | {"loss_increase": {"measured": 0.1, "predicted": None}}
        for removed, value in ((0.25, 0.8), (0.5, 0.7))
    ]
    assert [line.split(" | ")[:3] for line in table_by_settings(runs, ["pruner.target.removed"]).splitlines()[2:]] == [
        ["| 0.25", "90.0", "80.0"],
        ["| 0.5", "90.0", "70.0"],
    ]


def test_rows_by_a_setting_that_no_run_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--by: expected settings of the runs, such as pruner\.target\.sparsity, got 'pruner.blok_size'"):
        table_by_settings([report("CAP", 0, 0.5, 0.8)], ["pruner.blok_size"])


def test_runs_that_differ_in_the_seeds_of_all_their_parts_are_averaged() -> None:
    """A pruner with a seed of its own, which repeats that of the run."""
    runs = [report("Random", seed, 0.5, value) for seed, value in enumerate((0.8, 0.84))]
    for run in runs:
        run["experiment"]["pruner"]["seed"] = run["experiment"]["seed"]
    assert table(runs).splitlines()[2:] == ["| case | top1 | 50% | Random | 90.5 ± 0.5 (2) | 82.0 ± 2.0 (2) |  |"]


def test_tables_of_reports_without_metrics_are_empty_where_nothing_was_measured() -> None:
    bare = report("CAP", 0, 0.5, 0.8) | {"stages": []}
    assert table([bare]).splitlines()[2:] == ["| case |  | 50% | CAP |  |  |  |"]
    assert grid([bare]) == ""
    assert table_by_settings([bare], ["pruner.target.sparsity"]).splitlines()[2:] == ["| 0.5 |  |  |  |  |"]

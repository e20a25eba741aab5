"""What trackers show of a report, against counts by hand."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from example_report import DENSE, SMALL, example, mixed, part, structured

from orchestrator.allocation.latency_table import LatencyTable, OperationTable
from orchestrator.report.parts import LatencyResult, ModelSize, TaskRun
from orchestrator.report.result import Report
from orchestrator.tracking.base import Result
from orchestrator.tracking.numbers import pareto_rows, result_tables, staircase_rows, summary, worker_rows
from orchestrator.tracking.wandb import charts

TIMED = LatencyResult("eager", 1, 1, "cpu", 20.0, 14.0, 13.5, 14.2, 0.006, 2, 1.13, 30, 120)


def models(report: Report) -> dict[str, dict]:
    table = pareto_rows(report)
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_a_worker_is_busy_while_it_has_a_task_and_tasks_that_overlap_count_once():
    """From 10 to 20: a works in [10, 14] and [12, 15], and in [18, 20]; b in [11, 12]. What was read from the store is no work."""
    tasks = [
        TaskRun("collect", "1", "a", 12.0, 3.0, True),
        TaskRun("collect", "2", "a", 10.0, 4.0, True),
        TaskRun("solve", "3", "a", 18.0, 2.0, True),
        TaskRun("solve", "4", "b", 11.0, 1.0, True),
        TaskRun("evaluate", "5", "c", 0.0, 100.0, False),
    ]
    assert worker_rows(example(timeline=tasks)).rows == [["a", 3, 7.0, pytest.approx(0.7)], ["b", 1, 1.0, pytest.approx(0.1)]]
    assert worker_rows(example(timeline=[])).rows == []
    inside = [TaskRun("collect", "1", "a", 0.0, 10.0, True), TaskRun("collect", "2", "a", 2.0, 1.0, True)]
    assert worker_rows(example(timeline=inside)).rows == [["a", 2, 10.0, 1.0]]


def test_masked_models_have_the_size_of_the_dense_one_and_fewer_parameters_that_are_not_zero():
    report = example(dense_size=DENSE, final_size=DENSE, latency=TIMED)
    found = models(report)
    assert list(found) == ["dense", "one_shot", "recovered"]
    assert [row["accuracy"] for row in found.values()] == [0.97, 0.9, 0.965]
    assert found["dense"]["nonzero_parameters"] == DENSE.parameters
    assert found["recovered"]["nonzero_parameters"] == DENSE.parameters - report.pruned_weights
    assert [row["latency_ms"] for row in found.values()] == [20.0, 14.2, 14.2]
    assert found["dense"]["file_bytes"] == report.sizes.dense_bytes and found["recovered"]["file_bytes"] == report.sizes.file_bytes


def test_models_without_some_of_their_units_are_smaller():
    found = models(structured())
    assert (found["recovered"]["parameters"], found["recovered"]["macs"]) == (SMALL.parameters, SMALL.macs)
    assert found["recovered"]["nonzero_parameters"] == SMALL.parameters
    assert found["recovered"]["latency_ms"] is None and found["dense"]["sparsity"] == 0


def test_each_round_gives_a_model_before_and_after_its_training():
    size = ModelSize(1000, 5000)
    rounds = [part("half", 0.5, 0.95, 0.96, size=size), part("more", 0.75, 0.9, None, size=size)]
    found = models(example(rounds=rounds, dense_size=size, final_size=size, prunable_weights=800, pruned_weights=600))
    assert [(name, row["accuracy"], row["nonzero_parameters"]) for name, row in found.items()] == [
        ("dense", 0.97, 1000),
        ("half/one_shot", 0.95, 600),
        ("half/recovered", 0.96, 600),
        ("more/one_shot", 0.9, 400),
    ]
    assert [row["file_bytes"] is None for row in found.values()] == [False, True, True, False]
    assert all(row["nonzero_parameters"] is None for name, row in models(mixed()).items() if name != "dense"), "units took zeros along"


def test_a_report_without_accuracy_or_models_has_no_models():
    assert pareto_rows(example(stages=[])).rows == []
    assert pareto_rows(example(stages=[replace(stage, metrics={"loss": 1.0}) for stage in example().stages])).rows == []


def test_the_summary_has_the_accuracy_that_a_sweep_optimises_and_times_if_there_are_any():
    numbers = summary(example())
    assert (numbers["accuracy"], numbers["dense_accuracy"]) == (0.965, 0.97) and "latency/final_ms" not in numbers
    timed = summary(structured(latency=TIMED))
    assert (timed["latency/dense_ms"], timed["latency/final_ms"]) == (20.0, 14.2)
    assert timed["removed/latency"] == pytest.approx(0.29) and timed["removed/macs"] == pytest.approx(0.502)
    assert all(value is not None for value in (numbers | timed).values())


def test_staircases_are_the_times_at_all_widths_of_operations_that_can_be_narrowed():
    """One operation with an axis of 2 and 4 units, one with axes of 8 and of 3 or 6, one that stays as it is."""

    def operation(name: str, levels: tuple, ms: dict) -> OperationTable:
        return OperationTable(SimpleNamespace(name=name), levels, ms)

    narrow = operation("0:fc1", ((2, 4),), {(0,): 1.0, (1,): 2.0})
    both = operation("1:fc2", ((8,), (3, 6)), {(0, 0): 5.0, (0, 1): 6.0})
    fixed = operation("2:norm", (), {(): 9.0})
    times = LatencyTable((narrow, both, fixed), 20.0, (), 4)
    assert staircase_rows(times).rows == [["fc2", 1, 8, 3, 5.0], ["fc2", 1, 8, 6, 6.0], ["fc1", 1, 2, None, 1.0], ["fc1", 1, 4, None, 2.0]]
    assert staircase_rows(None).rows == []
    drawn = charts({"staircases": staircase_rows(times)})["staircase_lines"].table
    assert {tuple(row) for row in drawn.data} == {
        (8, "fc2, 3 on the other axis", 5.0),
        (8, "fc2, 6 on the other axis", 6.0),
        (2, "fc1", 1.0),
        (4, "fc1", 2.0),
    }
    assert drawn.columns == ["step", "lineKey", "lineVal"]


def test_a_result_has_the_tables_that_have_rows():
    here = Path("here")
    assert set(result_tables(Result(example(), (), here, here, ""))) == {"workers", "pareto"}
    assert result_tables(Result(example(stages=[], timeline=[]), (), here, here, "")) == {}

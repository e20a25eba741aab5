"""Sweeps from the command line: points that fail or are killed, and the page that is left."""

import json
import signal
from pathlib import Path

import pytest
from run_cases import arguments, run, start
from warm import Ended, orchestrate

BROKEN = """from dataclasses import dataclass

from workers.pruners.magnitude import Magnitude


@dataclass
class Broken(Magnitude):
    def score(self, weight_RC, layer, moments):
        raise ValueError("this pruner is broken")
"""


def sweep(folder: Path, *overrides: str) -> Ended:
    return orchestrate(*arguments(folder, "--multirun", "pruner=magnitude", *overrides), cwd=folder)


def page_of(folder: Path) -> Path:
    (found,) = (folder / "runs" / "sweeps").glob("*/sweep.html")
    return found


def numbers_of(folder: Path) -> dict:
    return json.loads(page_of(folder).with_suffix(".json").read_text(encoding="utf-8"))


def test_a_sweep_leaves_a_page_with_the_numbers_of_its_reports(tmp_path: Path) -> None:
    """Two sparsities with two seeds each; the table has the numbers of report.json."""
    said = run(tmp_path, "--multirun", "pruner=magnitude", "pruner.target.sparsity=0.5,0.75", "seed=0,1")
    page, numbers = page_of(tmp_path), numbers_of(tmp_path)
    assert f"sweep:  {page}" in said.splitlines()
    assert numbers["axes"] == ["pruner.target.sparsity"] and not numbers["failed"]
    assert [row["place"]["pruner.target.sparsity"] for row in numbers["rows"]] == ["0.5", "0.75"]
    for row in numbers["rows"]:
        reports = [json.loads((page.parent / done["report"]).with_suffix(".json").read_text(encoding="utf-8")) for done in row["runs"]]
        assert [report["experiment"]["seed"] for report in reports] == [0, 1] == [int(done["seed"]) for done in row["runs"]]
        accuracies = [report["stages"][-1]["metrics"]["top1"] for report in reports]
        assert row["values"]["top1_one_shot"]["mean"] == pytest.approx(sum(accuracies) / 2)
        assert row["values"]["top1_one_shot"]["spread"] == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2)
    assert "seed=0,1" in numbers["command"]


def test_a_point_with_a_bad_setting_does_not_end_the_others(tmp_path: Path) -> None:
    ended = sweep(tmp_path, "pruner.target.sparsity=0.5,1.5,0.75")
    first, last = ended.stderr.strip().splitlines()
    assert ended.returncode == 2
    assert first.startswith("error: point 1 failed (pruner.target.sparsity=1.5): pruner.target.sparsity: expected a fraction")
    assert last == f"1 of 3 points failed; see {page_of(tmp_path)}"
    numbers = numbers_of(tmp_path)
    assert [row["place"]["pruner.target.sparsity"] for row in numbers["rows"]] == ["0.5", "0.75"]
    assert [(failure["number"], failure["settings"]) for failure in numbers["failed"]] == [(1, "pruner.target.sparsity=1.5")]


def test_an_unexpected_error_in_a_run_leaves_its_trace_and_status_1(tmp_path: Path) -> None:
    """The first point has the pruner of the user, the second a bad setting, the third one is done."""
    (tmp_path / "broken.py").write_text(BROKEN, encoding="utf-8")
    pruners = "pruner._target_=broken.Broken,workers.pruners.nothing.Nothing,workers.pruners.magnitude.Magnitude"
    process = start(tmp_path, "--multirun", "pruner=magnitude", pruners)
    said, _ = process.communicate(timeout=3600)
    page = page_of(tmp_path)
    assert process.returncode == 1, said
    assert f"2 of 3 points failed; see {page}" in said.splitlines() and "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: point 0 failed (pruner._target_=broken.Broken): ")]
    assert "ValueError: this pruner is broken" in line
    failures = numbers_of(tmp_path)["failed"]
    assert [failure["number"] for failure in failures] == [0, 1] and len(numbers_of(tmp_path)["rows"]) == 1
    trace = (page.parent / failures[0]["traceback"]).read_text(encoding="utf-8")
    assert "Traceback" in trace and 'raise ValueError("this pruner is broken")' in trace


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_sweep_that_is_stopped_in_its_second_point_leaves_the_page_of_the_first(tmp_path: Path, kill: signal.Signals) -> None:
    """Repeating the command then does the rest, on a page of its own. Ctrl-C ends the whole sweep."""
    settings = ("--multirun", "pruner=magnitude", "pruner.target.sparsity=0.5,0.75,0.9")
    process = start(tmp_path, *settings)
    assert process.stdout is not None
    scored = 0
    for line in process.stdout:
        scored += line.startswith("score: started")
        if scored == 2:
            process.send_signal(kill)
            break
    process.communicate(timeout=3600)
    assert process.returncode != 0
    first = page_of(tmp_path)
    numbers = json.loads(first.with_suffix(".json").read_text(encoding="utf-8"))
    assert [run["point"] for row in numbers["rows"] for run in row["runs"]] == [0]
    records = sorted(first.parent.glob("points/[0-9]*.json"))
    assert [json.loads(record.read_text(encoding="utf-8"))["state"] for record in records] == ["done", "started"]
    run(tmp_path, *settings)
    (second,) = [page for page in (tmp_path / "runs" / "sweeps").glob("*/sweep.json") if page.parent != first.parent]
    assert len(json.loads(second.read_text(encoding="utf-8"))["rows"]) == 3


def test_a_sweep_of_plans_leaves_no_page(tmp_path: Path) -> None:
    ended = sweep(tmp_path, "mode=plan", "pruner.target.sparsity=0.5,0.75")
    assert ended.returncode == 0, ended.stderr
    assert not list(tmp_path.rglob("sweep.html")) and "sweep:" not in ended.stdout


def test_a_choice_that_does_not_exist_is_refused_before_the_first_point(tmp_path: Path) -> None:
    ended = orchestrate(*arguments(tmp_path, "--multirun", "pruner=magnitude,magnitud"), cwd=tmp_path)
    assert ended.returncode == 2 and "did you mean magnitude" in ended.stderr and len(ended.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("report.json"))


def test_points_that_differ_in_their_output_leave_a_page_in_each_place(tmp_path: Path) -> None:
    ended = sweep(tmp_path, f"output={tmp_path / 'one'},{tmp_path / 'two'}", "pruner.target.sparsity=0.5,2")
    pages = [*tmp_path.glob("one/sweeps/*/sweep.html"), *tmp_path.glob("two/sweeps/*/sweep.html")]
    assert ended.returncode == 2 and len(pages) == 2
    assert "2 of 4 points failed" in ended.stderr and all(str(page) in ended.stdout for page in pages)

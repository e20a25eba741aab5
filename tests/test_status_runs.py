"""What the list of runs says while a run goes on, and after it ended, was killed, terminated, interrupted or refused."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from run_cases import arguments, directory, kill_at, report_of, run, start
from safetensors.torch import load_file, save_file
from tiny import tiny_overrides
from warm import orchestrate

from orchestrator.status.listing import ListedRun, runs_in
from orchestrator.status.state import STATE


def the_run(folder: Path) -> ListedRun:
    (found,) = runs_in(folder / "runs")
    return found


def status(folder: Path) -> str:
    """What ``mode=status`` prints, with nothing of the run given: neither model nor data."""
    ended = orchestrate("mode=status", f"output={folder / 'runs'}", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def page(folder: Path) -> str:
    return (folder / "runs" / "index.html").read_text(encoding="utf-8")


def until(process: subprocess.Popen[str], line_start: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(line_start):
            return
    pytest.fail(f"never said {line_start}")


def test_a_finished_run_is_done_with_its_accuracy_and_links(tmp_path: Path) -> None:
    run(tmp_path)
    found, metrics = the_run(tmp_path), [stage["metrics"]["top1"] for stage in report_of(tmp_path)["stages"]]
    assert found.kind == "done" and found.prunes == "CAP, 75 % of the weights, seed 0" and "report.html" in found.files
    assert found.accuracy is not None and (found.accuracy.dense, found.accuracy.final) == (metrics[0], metrics[-1])
    assert f"{directory(tmp_path).name}/report.html" in page(tmp_path) and "http-equiv" not in page(tmp_path)
    shown = status(tmp_path)
    assert "1 done" in shown and directory(tmp_path).name in shown


def test_a_killed_run_stopped_at_its_stage_and_is_done_once_it_went_on(tmp_path: Path) -> None:
    kill_at("collect", tmp_path)
    assert the_run(tmp_path).what == "stopped at collect"
    assert "1 stopped" in status(tmp_path)
    assert "stopped at collect" in page(tmp_path), "mode=status writes the page that the killed driver left"
    run(tmp_path)
    assert the_run(tmp_path).kind == "done"


@pytest.mark.parametrize(("number", "words", "code"), [("SIGTERM", "terminated (SIGTERM)", 143), ("SIGINT", "interrupted", 130)])
def test_a_run_is_running_until_it_is_ended_from_outside_and_then_failed(number: str, words: str, code: int, tmp_path: Path) -> None:
    process = start(tmp_path, "data.calibration_batches=300")
    until(process, "collect: started")
    os.kill(process.pid, signal.SIGSTOP)  # so that it is at this stage while it is looked at
    found = the_run(tmp_path)
    assert (found.kind, found.stage, found.total) == ("running", "collect", 2)
    assert "1 running" in status(tmp_path) and "http-equiv" in page(tmp_path)
    os.kill(process.pid, getattr(signal, number))
    os.kill(process.pid, signal.SIGCONT)
    output, _ = process.communicate(timeout=3600)
    assert process.returncode == code and "Traceback" not in output
    said = [line for line in output.splitlines() if line.startswith("error: ")]
    assert said == [f"error: {words.split()[0]}; run the same command again to continue: finished work is kept"]
    assert the_run(tmp_path).what == f"failed at collect: {words}"
    assert f"failed at collect: {words}" in page(tmp_path) and "http-equiv" not in page(tmp_path)


def test_a_run_that_is_refused_after_its_folder_exists_says_what_the_console_said(tmp_path: Path) -> None:
    tiny_overrides(tmp_path)
    state = load_file(tmp_path / "tiny.safetensors")
    save_file(state | {"head.weight": state["head.weight"][:5].clone()}, tmp_path / "other.safetensors")
    ended = orchestrate(*arguments(tmp_path, f"model.checkpoint={tmp_path / 'other.safetensors'}"), cwd=tmp_path)
    assert ended.returncode == 2
    assert the_run(tmp_path).what == f"failed at import: {ended.stderr.strip().removeprefix('error: ')}"


def test_a_sweep_lists_each_point_by_what_it_prunes(tmp_path: Path) -> None:
    run(tmp_path, "--multirun", "pruner.target.sparsity=0.5,0.7", "pruner=magnitude")
    assert sorted(found.prunes for found in runs_in(tmp_path / "runs")) == [
        "Magnitude, 50 % of the weights, seed 0",
        "Magnitude, 70 % of the weights, seed 0",
    ]


def test_the_state_is_plain_json_with_the_process_of_the_driver(tmp_path: Path) -> None:
    run(tmp_path, "pruner=magnitude")
    state = json.loads((directory(tmp_path) / STATE).read_text())
    assert state["phase"] == "done" and state["planned"] == 1 and state["pid"] != os.getpid()
    assert state["process_started"] <= state["started"] <= state["updated"]

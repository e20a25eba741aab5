"""Runs that mask weights to a budget of latency."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from budget_cases import PART, steady
from run_cases import arguments, directory, stored
from warm import orchestrate

from orchestrator.composing import experiment_of
from orchestrator.launch import run_experiment
from orchestrator.report.result import Report
from workers.errors import SecateurError
from workers.export import load_masks

BUDGET = (
    "pruner=guided",
    "pruner.target.of=latency",
    "pruner.target.removed=0.5",
    "latency.batch_size=8",
    "latency.seconds=0.001",
    "latency.spread=0.5",
)


def carried_out(folder: Path, *settings: str) -> Report:
    return run_experiment(experiment_of(arguments(folder, *settings)), {}, "")[0]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        steady(patch)
        return folder, carried_out(folder, *BUDGET)


def numbers(verb: str, folder: Path) -> list[dict[str, Any]]:
    return [json.loads((each / "record.json").read_text())["numbers"] for each in stored(folder, verb)]


def test_each_layer_has_the_sparsity_that_was_chosen_for_it(fitted: tuple[Path, Report]) -> None:
    (chosen,) = numbers("fit", fitted[0])
    masks = load_masks(directory(fitted[0]) / "model.safetensors")
    assert masks.keys() == chosen["sparsities"].keys() and len(set(chosen["sparsities"].values())) > 2
    for name, keep in masks.items():
        assert int((~keep).sum()) == pytest.approx(chosen["sparsities"][name] * keep.numel(), abs=1)


def test_the_model_takes_the_budget(fitted: tuple[Path, Report]) -> None:
    """Each layer takes its share of PART of the time, so half of the time is left with half / PART of its weights at zero."""
    (chosen,), told = numbers("fit", fitted[0]), fitted[1].latency
    assert told is not None and chosen["budget"] == 0.5 * chosen["dense"]
    assert told.measured_ms / told.dense_ms == pytest.approx(0.5, abs=0.5 * 0.03)
    assert told.predicted_ms / told.dense_ms == pytest.approx(chosen["predicted"] / chosen["dense"])
    assert chosen["predicted"] / chosen["dense"] == pytest.approx(0.5, abs=0.02)
    assert fitted[1].sparsity == pytest.approx(0.5 / PART, abs=0.02)
    assert not any("target" in warning for warning in fitted[1].warnings)


def test_the_report_tells_the_budget_and_the_time_of_the_result(fitted: tuple[Path, Report]) -> None:
    folder, report = fitted
    assert report.latency is not None and report.latency.runtime == "sparse"
    assert report.latency.table_sizes == 80 and report.latency.measured_sizes == 40  # 8 layers of 4 kinds at 10 sparsities
    assert report.asked["of"] == "latency" and report.asked["removed"] == 0.5 and report.weight_goal is None
    page = (directory(folder) / "report.html").read_text()
    assert "A forward pass takes" in page and "the sparse runtime, 8 images at a time" in page and "latency removed" in page


def test_a_second_run_reads_everything_from_the_store(fitted: tuple[Path, Report]) -> None:
    report = carried_out(fitted[0], *BUDGET)
    assert not [task.verb for task in report.computed if task.verb != "export"] and report.latency == fitted[1].latency


def test_a_wrong_prediction_is_corrected_by_measured_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model saves only half of what the times of its layers predict."""
    import budget_cases

    monkeypatch.setattr(budget_cases, "PART", 0.4)
    steady(monkeypatch)
    report = carried_out(tmp_path, *BUDGET, "pruner.target.removed=0.2")
    assert report.latency is not None and report.latency.corrections == 0  # the dense model's time says so too
    monkeypatch.setattr("orchestrator.allocation.sparsities.Options.scale", 2.0)
    (tmp_path / "wrong").mkdir()
    report = carried_out(tmp_path / "wrong", *BUDGET, "pruner.target.removed=0.2")
    assert report.latency is not None and report.latency.corrections > 0
    assert report.latency.measured_ms / report.latency.dense_ms == pytest.approx(0.8, abs=0.8 * 0.03)


def test_a_result_that_misses_the_budget_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last timing, of the fitted model, is another one than those of its masks."""
    steady(monkeypatch)
    from dataclasses import replace

    from workers import sparse_times

    timed, calls = sparse_times.model_time, []

    def slower_at_last(task, device):
        calls.append(task)
        measured = timed(task, device)
        return replace(measured, ratio=0.7) if len(calls) > 1 and not task.masks else measured

    monkeypatch.setattr(sparse_times, "model_time", slower_at_last)
    report = carried_out(tmp_path, *BUDGET)
    (warning,) = [warning for warning in report.warnings if "than the target" in warning]
    assert "40.0 % more than the target" in warning


def test_a_budget_that_cannot_be_met_says_what_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steady(monkeypatch)
    with pytest.raises(SecateurError, match=r"pruner.target.removed: expected at most 0.78, got 0.9; with 98 % zeros in every layer"):
        carried_out(tmp_path, *BUDGET, "pruner.target.removed=0.9")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("pruner.target.of=latency",), "pruner.target.removed: expected a fraction between 0 and 1 with of=latency, got None"),
        (("pruner.target.sparsity=0.5", "++pruner.target.removed=0.5"), "pruner.target.removed: expected null with of=weights, got 0.5"),
        ((*BUDGET, "pruner.target.scope=uniform"), "pruner.target.scope: expected global with of=latency"),
        ((*BUDGET, "pruner.target.pattern=2:4", "pruner.target.sparsity=0.5"), "pruner.target.pattern: expected unstructured or groups:U"),
        ((*BUDGET, "steps=2"), "steps: expected 1 with pruner.target.of=latency, got 2"),
        ((*BUDGET, "pruner.target.within=0"), "pruner.target.within: expected a fraction between 0 and 1, got 0"),
        ((*BUDGET, "latency.runtime=onnxruntime"), "latency.runtime: expected eager"),
        ((*BUDGET, "+rounds={a:{},b:{}}"), "target.of: expected weights in a run of rounds"),
    ],
)
def test_settings_that_do_not_suit_a_budget_are_refused_first(tmp_path: Path, settings: tuple[str, ...], message: str) -> None:
    ended = orchestrate(*arguments(tmp_path, *settings), cwd=tmp_path)
    assert ended.returncode == 2 and message in ended.stdout + ended.stderr, ended.stdout + ended.stderr

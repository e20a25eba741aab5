"""Gradual pruning in the report: every round in words, tables and pictures, and nothing of it where there are none."""

import io
import json
from dataclasses import replace
from pathlib import Path

import plotly.graph_objects as go
import pytest
from example_report import example, numbers, part, said, says
from rich.console import Console

from orchestrator.report.console import summary_table
from orchestrator.report.page import drawn_figures
from orchestrator.report.parts import LossIncrease, RoundResult, StageResult
from orchestrator.report.result import Report, round_lines
from orchestrator.report.words import verdict
from orchestrator.report.write import write_report


def gradual(*rounds: RoundResult, **changes) -> Report:
    """A report whose last stages are those of its last round, as a run makes it."""
    rounds = rounds or (part("to_50", 0.5, 0.93, 0.96), part("to_75", 0.75, 0.90, 0.965))
    last = [stage for stage in (rounds[-1].after_pruning, rounds[-1].after_recovery) if stage]
    lines = example().curves["recovery"]
    curves = {"dense": lines} | {f"{done.name}/recovery": lines for done in rounds if done.after_recovery}
    return example(rounds=list(rounds), stages=[example().stages[0], *last], **{"curves": curves} | changes)


def test_words_say_how_many_rounds_there_were_and_never_one_shot() -> None:
    report = gradual()
    assert numbers(verdict(report)) == ["75.0", "2", "97.0", "90.0", "96.5"]
    assert numbers(said(report, "2 rounds:")) == ["2", "50.0", "75.0", "2", "8"], "rounds, sparsities, recoveries, epochs"
    assert "last round" in said(report, "calibration loss") and not says(report, "one-shot", "no recovery")


def test_the_pruners_of_the_rounds_are_named_in_order_and_once() -> None:
    first, second, third = (part(name, 0.5, 0.93, 0.96, pruner=pruner) for name, pruner in (("a", "Wanda"), ("b", "CAP"), ("c", "Wanda")))
    assert "masked by Wanda, then CAP, in 3 rounds;" in verdict(gradual(first, second, third))
    assert "masked by CAP in 2 rounds;" in verdict(gradual(second, replace(second, name="d")))


def test_a_harmful_last_recovery_is_told_with_the_settings_of_its_round() -> None:
    sentence = said(gradual(part("a", 0.5, 0.93, 0.96), part("b", 0.75, 0.96, 0.90)), "worse")
    assert numbers(sentence) == ["90.0", "96.0"] and "pruned model" in sentence and "rounds.b.recovery=null" in sentence


def test_a_last_round_without_recovery_is_told_from_a_run_without_any() -> None:
    report = gradual(part("to_50", 0.5, 0.93, 0.96), part("to_75", 0.75, 0.90, None))
    assert "no recovery in the last round" in verdict(report) and "last pruning" in said(report, "no recovery (training)")
    assert numbers(said(report, "2 rounds:")) == ["2", "50.0", "75.0", "1", "4"]
    unrecovered = gradual(part("a", 0.5, 0.93, None), part("b", 0.75, 0.90, None))
    assert "(no recovery)" in verdict(unrecovered) and "No round" in said(unrecovered, "2 rounds:")


def test_the_picture_goes_down_and_up_through_all_models() -> None:
    figure = drawn_figures(gradual())["rounds"]
    go.Figure(figure)  # plotly refuses unknown properties and bad values
    path = figure["data"][0]
    assert list(zip(path["x"], path["y"], strict=True)) == [(0.0, 0.97), (1, 0.93), (1.5, 0.96), (2, 0.90), (2.5, 0.965)]
    marks = {trace["name"]: trace["y"] for trace in figure["data"][1:] if trace["type"] == "scatter"}
    assert marks == {"dense": [0.97], "pruned": [0.93, 0.90], "recovered": [0.96, 0.965]}
    assert [trace["y"] for trace in figure["data"] if trace["type"] == "bar"] == [[0.5, 0.75]]
    low, high = figure["layout"]["yaxis"]["range"]
    assert low < 0.90 and high > 0.97 and high - low >= 0.1


def test_recoveries_of_all_rounds_are_one_curve() -> None:
    drawn = drawn_figures(gradual())
    assert {name for name in drawn if name.startswith("training")} == {"training_0", "training_1"}  # dense; both recoveries
    loss = drawn["training_1"]["data"][0]
    assert loss["x"] == list(range(1, 81)) and loss["y"][:40] == loss["y"][40:]


def test_the_console_shows_every_round_in_eighty_columns() -> None:
    report = gradual(part("epoch_20", 0.5, 0.93, 0.96), part("epoch_280", 0.75, 0.90, 0.965, sparsity=0.7512))
    report = replace(report, stage_seconds={"round epoch_20: collect": 2.0, "round epoch_280: collect": 3.0})
    out = io.StringIO()
    Console(file=out, width=80).print(summary_table(report))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80

    def row(name: str) -> list[str]:
        (line,) = [line for line in lines if line.strip().startswith(name)]
        return line.strip().replace(" %", "%").split()

    assert row("epoch_280") == ["epoch_280", "75.0%", "75.1%", "90.0%", "96.5%", "+0.2", "+0.1", "75"]
    assert row("collect")[-2:] == ["5.0", "s"], "stages of all rounds in one line"


def test_the_page_and_the_json_hold_every_round(tmp_path: Path) -> None:
    report = gradual(part("<b>", 0.5, 0.93, 0.96), part("to_75", 0.75, 0.90, 0.965))
    page = write_report(report, tmp_path).read_text(encoding="utf-8")
    assert "<h2>Rounds</h2>" in page and '<th scope="row">to_75</th>' in page and '<th scope="row"><b>' not in page
    read = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [(done["name"], done["after_recovery"]["metrics"]["top1"]) for done in read["rounds"]] == [("<b>", 0.96), ("to_75", 0.965)]


def test_a_run_without_rounds_has_nothing_of_them(tmp_path: Path) -> None:
    assert "<h2>Rounds</h2>" not in write_report(example(), tmp_path).read_text(encoding="utf-8")
    assert "rounds" not in drawn_figures(example()) and round_lines(example()) == []
    assert not says(example(), "round")


@pytest.mark.parametrize("missing", ["metrics", "loss"])
def test_rounds_with_missing_measurements_are_still_a_page(missing: str, tmp_path: Path) -> None:
    bare = [replace(done, after_pruning=StageResult("one_shot", {}, 1.0), after_recovery=None) for done in gradual().rounds]
    unknown = [replace(done, loss_increase=LossIncrease(None, None, "")) for done in gradual().rounds]
    report = gradual(*(bare if missing == "metrics" else unknown))
    write_report(report, tmp_path)
    Console(file=io.StringIO(), width=80).print(summary_table(report))
    assert ("not measured" in verdict(report)) == (missing == "metrics")


def test_a_tracker_gets_a_line_per_round() -> None:
    first, second = round_lines(gradual())
    given = [first[key] for key in ("step", "round", "sparsity", "pruned_top1", "recovered_top1")]
    assert given == [1, "to_50", 0.5, 0.93, 0.96] and not any("samples" in key for key in first)
    assert (second["step"], second["loss_increase_predicted"], second["loss_increase_measured"]) == (2, 0.1, 0.2)

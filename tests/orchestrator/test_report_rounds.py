"""Gradual pruning in the report: every round in words, tables and pictures, and nothing of it where there are none."""

import io
import json
from dataclasses import replace

import plotly.graph_objects as go
import pytest
from example_report import example, part
from orchestrator.report_page import figures
from orchestrator.report_rounds import round_lines
from rich.console import Console

from orchestrator.report import LossIncrease, Report, RoundResult, StageResult, sentences, summary_table, verdict, write_report


def gradual(*rounds: RoundResult, **changes) -> Report:
    """A report whose last stages are those of its last round, as a run makes it."""
    rounds = rounds or (part("to_50", 0.5, 0.93, 0.96), part("to_75", 0.75, 0.90, 0.965))
    last = [rounds[-1].pruned, *([rounds[-1].recovered] if rounds[-1].recovered else [])]
    lines = example().curves["recovery"]
    curves = {"dense": lines} | {f"{found.name}/recovery": lines for found in rounds if found.recovered}
    return example(rounds=list(rounds), stages=[example().stages[0], *last], **{"curves": curves} | changes)


def test_words_say_how_many_rounds_there_were_and_never_one_shot() -> None:
    report = gradual()
    assert verdict(report) == (
        "75.0 % of the prunable weights removed in 2 rounds; top-1 accuracy 97.0 % dense, 96.5 % after recovery (90.0 % before it)."
    )
    assert "Pruned in 2 rounds, to 50.0 %, 75.0 %, with 2 trainings of 8 epochs in all; each began with a new optimizer" in " ".join(
        sentences(report)
    )
    assert any(sentence.startswith("The last round's pruning was predicted") for sentence in sentences(report))
    assert not any("ne-shot" in sentence for sentence in sentences(report))


def test_a_last_round_without_training_is_not_called_unrecovered() -> None:
    report = gradual(part("to_50", 0.5, 0.93, 0.96), part("to_75", 0.75, 0.90, None))
    assert verdict(report).endswith("90.0 % before any recovery of the last round.")
    assert any("no training after the last pruning" in sentence for sentence in sentences(report))
    untrained = gradual(part("a", 0.5, 0.93, None), part("b", 0.75, 0.90, None))
    assert verdict(untrained).endswith("90.0 % without recovery.")
    assert any("without training in between" in sentence for sentence in sentences(untrained))


def test_the_picture_goes_down_and_up_through_all_models() -> None:
    figure = figures(gradual())["rounds"]
    go.Figure(figure)  # plotly refuses unknown properties and bad values
    path = figure["data"][0]
    assert list(zip(path["x"], path["y"], strict=True)) == [(0.0, 0.97), (1, 0.93), (1.5, 0.96), (2, 0.90), (2.5, 0.965)]
    marks = {trace["name"]: trace["y"] for trace in figure["data"][1:] if trace["type"] == "scatter"}
    assert marks == {"dense": [0.97], "pruned": [0.93, 0.90], "trained": [0.96, 0.965]}
    assert [trace["y"] for trace in figure["data"] if trace["type"] == "bar"] == [[0.5, 0.75]]
    low, high = figure["layout"]["yaxis"]["range"]
    assert low < 0.90 and high > 0.97 and high - low >= 0.1


def test_trainings_of_all_rounds_are_one_curve() -> None:
    drawn = figures(gradual())
    assert {name for name in drawn if name.startswith("training")} == {"training_0", "training_1"}  # dense; both recoveries
    loss = drawn["training_1"]["data"][0]
    assert loss["x"] == list(range(1, 81)) and loss["y"][:40] == loss["y"][40:]


def test_the_table_of_rounds_fits_eighty_columns() -> None:
    report = gradual(part("epoch_20", 0.5, 0.93, 0.96), part("epoch_280", 0.75, 0.90, 0.965, sparsity=0.7512))
    report = replace(report, stage_seconds={"round epoch_20: collect": 2.0, "round epoch_280: collect": 3.0})
    out = io.StringIO()
    Console(file=out, width=80).print(summary_table(report))
    lines = out.getvalue().splitlines()

    def row(name: str) -> list[str]:
        (found,) = [line for line in lines if line.strip("│ ").startswith(name)]
        return [cell.strip() for cell in found.strip("│ ").split("│")]

    assert max(map(len, lines)) <= 80
    assert row("epoch_280") == ["epoch_280", "75.0 %", "75.1 %", "90.0 %", "96.5 %", "+0.1", "+0.2", "75"]  # asked, since it was missed
    assert row("collect")[2] == "5.0 s", "stages of all rounds in one line"


def test_the_page_and_the_json_hold_every_round(tmp_path) -> None:
    report = gradual(part("<b>", 0.5, 0.93, 0.96), part("to_75", 0.75, 0.90, 0.965))
    page = write_report(report, tmp_path).read_text(encoding="utf-8")
    assert "<h2>Rounds</h2>" in page and '<th scope="row">to_75</th>' in page and '<th scope="row"><b>' not in page
    read = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [(found["name"], found["recovered"]["metrics"]["top1"]) for found in read["rounds"]] == [("<b>", 0.96), ("to_75", 0.965)]


def test_a_run_without_rounds_has_nothing_of_them(tmp_path) -> None:
    assert "<h2>Rounds</h2>" not in write_report(example(), tmp_path).read_text(encoding="utf-8")
    assert "rounds" not in figures(example()) and round_lines(example()) == []
    assert not any("round" in sentence for sentence in sentences(example()))


@pytest.mark.parametrize("missing", ["metrics", "loss"])
def test_rounds_with_missing_measurements_are_still_a_page(missing: str, tmp_path) -> None:
    bare = [replace(found, pruned=StageResult("one_shot", {}, 1.0), recovered=None) for found in gradual().rounds]
    unknown = [replace(found, loss_increase=LossIncrease(None, None, "")) for found in gradual().rounds]
    report = gradual(*(bare if missing == "metrics" else unknown))
    write_report(report, tmp_path)
    Console(file=io.StringIO(), width=80).print(summary_table(report))
    assert verdict(report).endswith(".")


def test_a_tracker_gets_a_line_per_round() -> None:
    first, second = round_lines(gradual())
    assert (first["step"], first["round"], first["sparsity"], first["pruned_top1"], first["recovered_top1"]) == (
        1,
        "to_50",
        0.5,
        0.93,
        0.96,
    )
    assert (second["step"], second["loss_increase_predicted"], second["loss_increase_measured"]) == (2, 0.1, 0.2)

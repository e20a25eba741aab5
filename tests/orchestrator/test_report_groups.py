"""What sentences, page, figures and JSON show of groups of units; numbers are counted by hand on ``GROUPS``."""

import json
import re
from dataclasses import replace
from pathlib import Path

import plotly.graph_objects as go
import pytest
from example_report import DENSE, GROUPS, HEAD, MISSING, NEURON, example, metrics, mixed, numbers, part, said, says, stages, structured

from orchestrator.report.page import drawn_figures
from orchestrator.report.parts import GroupResult, ModelSize
from orchestrator.report.result import Report
from orchestrator.report.tables import groups
from orchestrator.report.write import write_report

SWEPT = ([1.0, 0.8, 0.6], [1.0, 1.0, 0.4], [0.9, 0.3, 0.0], [1.0, 1.0, 1.0])  # means 0.8, 0.8, 0.4, 1


def swept(*shares: list[float]) -> Report:
    return structured(groups=[replace(group, swept=kept) for group, kept in zip(GROUPS, shares or SWEPT, strict=True)])


# ---------------------------------------------------------------------------------------------------------- who lost the least


def test_groups_that_lost_nothing_are_named() -> None:
    sentence = said(structured(), "Lost the least")
    assert "blocks.0.attn" in sentence and "all of its units" in sentence and "blocks.1" not in sentence
    both = said(structured(groups=[GROUPS[0], replace(GROUPS[1], kept=128), *GROUPS[2:]]), "Lost the least")
    assert "blocks.0.attn and blocks.0.mlp" in both and "blocks.1" not in both
    assert "17 more groups" in said(MISSING["units, 80 groups"], "Lost the least")


def test_if_all_lost_some_the_group_with_the_largest_share_is_named_with_it() -> None:
    sentence = said(structured(groups=[replace(GROUPS[0], kept=3), *GROUPS[1:]]), "Lost the least")
    assert "blocks.0.attn" in sentence and numbers(sentence) == ["75.0", "4"] and "all of" not in sentence


def test_of_many_groups_the_three_that_kept_the_largest_share_are_named_in_order() -> None:
    kept = [5, 90, 20, 99, 40, 50, 60, 97, 80, 1]
    many = structured(groups=[GroupResult(f"g{index}", "channel", 100, value, 9) for index, value in enumerate(kept)])
    assert [group.name for group in many.least_lost] == ["g3", "g7", "g1"]


@pytest.mark.parametrize("name", ["units, one group", "units, nothing removed"])
def test_of_groups_that_all_kept_the_same_share_none_lost_the_least(name: str) -> None:
    assert not says(MISSING[name], "Lost the least")


def test_a_group_without_units_is_named() -> None:
    assert "blocks.0.attn" in said(MISSING["units, a group removed"], "entirely") and not says(structured(), "entirely")


# ---------------------------------------------------------------------------------------------------------------- bottlenecks


def test_groups_are_ranked_by_what_they_keep_on_average_equal_ones_as_they_stand() -> None:
    assert [group.name for group in swept().bottlenecks] == [GROUPS[index].name for index in (3, 0, 1, 2)]


def test_a_sentence_names_the_bottlenecks_and_the_group_that_would_lose_the_most() -> None:
    sentence = said(swept(), "bottlenecks")
    places = [sentence.index(GROUPS[index].name) for index in (3, 0, 1, 2)]
    assert places == sorted(places) and numbers(sentence) == ["25", "75", "100", "80", "80", "40"]


def test_without_a_sweep_or_a_difference_nothing_is_said_of_bottlenecks() -> None:
    assert "sweep" not in drawn_figures(structured()) and not says(structured(), "bottleneck")
    assert not says(swept(*[[0.5]] * 4), "bottleneck")


def test_the_picture_has_a_row_per_group_bottlenecks_on_top_and_a_column_per_target() -> None:
    figure = drawn_figures(swept())["sweep"]
    go.Figure(figure)  # plotly refuses unknown properties and bad values
    (trace,) = figure["data"]
    assert trace["z"] == [list(SWEPT[index]) for index in (3, 0, 1, 2)] and trace["x"] == [0.25, 0.5, 0.75]
    assert figure["layout"]["yaxis"]["range"] == [3.5, -0.5], "the first row is on top"


# ------------------------------------------------------------------------------------------------------- figures, page and JSON


@pytest.mark.parametrize("copies", [1, 20])
def test_bars_have_the_shares_of_their_groups_and_outlines_mark_those_that_lost_the_least(copies: int) -> None:
    many = [replace(group, name=f"{index}.{group.name}") for index in range(copies) for group in GROUPS]
    figure = drawn_figures(structured(groups=many))["kept_units"]
    go.Figure(figure)
    place, length = ("y", "x") if copies == 1 else ("x", "y")
    traces = {trace["name"]: dict(zip(trace[place], trace[length], strict=True)) for trace in figure["data"] if trace["type"] == "bar"}
    outlined = traces.pop("lost the least")
    assert {at: share for bars in traces.values() for at, share in bars.items()} == dict(enumerate([1.0, 0.5, 0.5, 0.25] * copies))
    assert sorted(traces) == ["head", "neuron"] and set(traces["head"]) == set(range(0, 4 * copies, 2))
    assert outlined == {index: 1.0 for index in range(0, 4 * copies, 4)}
    (line,) = figure["layout"]["shapes"]
    assert line["x0" if copies == 1 else "y0"] == line["x1" if copies == 1 else "y1"] == pytest.approx(102 / 264)


def test_the_table_of_groups_counts_what_was_removed() -> None:
    first, *_, last = groups(structured()).rows
    assert first == ["blocks.0.attn", "head", "4", "4", "100.0 %", f"{HEAD:,}", "0", "lost the least"]
    assert last[:7] == ["blocks.1.mlp", "neuron", "128", "32", "25.0 %", f"{NEURON}", f"{96 * NEURON:,}"]
    bound = groups(structured(groups=[replace(GROUPS[0], kept=0, least=0), replace(GROUPS[1], least=64), *GROUPS[2:]])).rows
    assert "entirely" in bound[0][-1] and "minimum" in bound[1][-1] and bound[3][-1] == "–"


def test_the_page_has_sections_for_what_was_done_and_for_nothing_else(tmp_path: Path) -> None:
    def page(report: Report) -> str:
        return write_report(report, tmp_path).read_text(encoding="utf-8").partition('<script type="application/json"')[0]

    quick = stages(metrics(0.97), metrics(0.9, images_per_second=2000.0))
    units, both, masked = page(structured()), page(mixed()), page(example(stages=quick))
    assert "<h2>Groups (4)</h2>" in units and "<h2>Layers" not in units and "prunable weights" not in units
    assert "<h2>Groups (4)</h2>" in both and "<h2>Layers (8)</h2>" in both
    assert "Groups" not in masked and "multiply-adds" not in masked and "MACs" not in masked
    assert "<b>1.4 ×</b>" in units and " ×</b>" not in masked, "masked weights make no model faster"
    assert '<div class="tiles six">' in both and '<div class="tiles">' in units


@pytest.mark.parametrize("name", [name for name in MISSING if name.startswith(("units", "mixed")) and "not finite" not in name])
def test_nothing_undefined_stands_on_a_page(name: str, tmp_path: Path) -> None:
    text = write_report(MISSING[name], tmp_path).read_text(encoding="utf-8")
    shown = re.sub(r"<style>.*?</style>|<script.*?</script>", "", text, flags=re.DOTALL)
    assert re.findall(r"\b(?:undefined|None|nan|NaN|inf)\b", shown) == []


def test_what_a_model_calls_its_groups_cannot_become_markup(tmp_path: Path) -> None:
    nasty = "<b>&x"
    report = structured(groups=[replace(GROUPS[0], name=nasty), *GROUPS[1:]])
    assert nasty not in write_report(report, tmp_path).read_text(encoding="utf-8").partition("<script>")[0]
    assert nasty not in json.dumps(drawn_figures(report)["kept_units"])


def test_report_json_holds_groups_sizes_and_rounds(tmp_path: Path) -> None:
    write_report(mixed(), tmp_path)
    read = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert read["groups"][3] == {"name": "blocks.1.mlp", "kind": "neuron", "units": 128, "kept": 32, "weights": 65, "least": 1, "swept": []}
    assert read["dense_size"] == {"parameters": 25_576, "macs": 500_000} and read["final_size"]["parameters"] == 13_080
    assert [(done["asked_of"], done["removed"]["macs"]) for done in read["rounds"]] == [("macs", 0.502), ("weights", 0.502)]


def test_a_report_without_groups_is_one_of_masked_weights() -> None:
    report = example()
    assert not report.removes_units and report.masks_weights and report.removed == {}
    assert part("a", 0.5, 0.9, None).reached == 0.5
    assert replace(report, dense_size=DENSE, final_size=ModelSize(25_576, 500_000)).removes_units is False

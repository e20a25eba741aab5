"""What the console, the page and the JSON show of units that were taken out; numbers are counted by hand on ``GROUPS``."""

import io
import json
import re
from dataclasses import replace

import plotly.graph_objects as go
import pytest
from example_report import DENSE, GROUPS, HEAD, MISSING, NEURON, example, metrics, mixed, part, said, stages, structured
from orchestrator.report_groups import least_lost
from orchestrator.report_page import figures
from rich.console import Console

from orchestrator.report import GroupResult, ModelSize, Report, sentences, summary_table, write_report


def table(report: Report) -> list[list[str]]:
    out = io.StringIO()
    Console(file=out, width=80).print(summary_table(report))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    return [[cell.strip() for cell in line.strip("│ ").split("│")] for line in lines]


# ---------------------------------------------------------------------------------------------------------------- bottlenecks


def test_groups_that_lost_least_are_named() -> None:
    assert said(structured(), "Lost least") == "Lost least: blocks.0.attn kept all of its units."
    both = [GROUPS[0], replace(GROUPS[1], kept=128), *GROUPS[2:]]
    assert said(structured(groups=both), "Lost least") == "Lost least: blocks.0.attn and blocks.0.mlp kept all of their units."
    assert "and 17 more groups kept all of their units" in said(MISSING["units, 80 groups"], "Lost least")
    halves = [replace(GROUPS[0], kept=3), *GROUPS[1:]]
    assert said(structured(groups=halves), "Lost least") == "Lost least: blocks.0.attn (75.0 % of 4 heads kept)."


def test_of_many_groups_the_three_that_kept_the_largest_share_are_named_in_order() -> None:
    kept = [5, 90, 20, 99, 40, 50, 60, 97, 80, 1]
    groups = [GroupResult(f"g{index}", "channel", 100, value, 9) for index, value in enumerate(kept)]
    assert [group.name for group in least_lost(structured(groups=groups))] == ["g3", "g7", "g1"]


def test_groups_that_all_kept_the_same_share_have_no_bottleneck() -> None:
    for name in ("units, one group", "units, nothing went"):
        assert not any("Lost least" in sentence for sentence in sentences(MISSING[name]))


def test_a_group_without_units_is_named() -> None:
    assert said(MISSING["units, a group went"], "entirely") == "Taken out entirely: all units of blocks.0.attn."


@pytest.mark.parametrize("copies", [1, 20])
def test_bars_have_the_shares_of_their_groups_and_outlines_mark_those_that_lost_least(copies: int) -> None:
    groups = [replace(group, name=f"{index}.{group.name}") for index in range(copies) for group in GROUPS]
    figure = figures(structured(groups=groups))["kept_units"]
    go.Figure(figure)  # plotly refuses unknown properties and bad values
    place, length = ("y", "x") if copies == 1 else ("x", "y")
    traces = {trace["name"]: dict(zip(trace[place], trace[length], strict=True)) for trace in figure["data"] if trace["type"] == "bar"}
    outlined = traces.pop("lost least")
    assert {at: share for bars in traces.values() for at, share in bars.items()} == dict(enumerate([1.0, 0.5, 0.5, 0.25] * copies))
    assert sorted(traces) == ["head", "neuron"] and set(traces["head"]) == set(range(0, 4 * copies, 2))
    assert outlined == {index: 1.0 for index in range(0, 4 * copies, 4)}
    (line,) = figure["layout"]["shapes"]
    assert line["x0" if copies == 1 else "y0"] == pytest.approx(102 / 264)


# -------------------------------------------------------------------------------------------------------- table, page and JSON


def test_the_console_shows_asked_beside_reached_for_units_and_for_weights() -> None:
    units, both = table(structured()), table(mixed())
    for rows in (units, both):
        assert ["multiply-adds taken out", "50.00 %", "50.20 %"] in rows and ["parameters taken out", "–", "48.86 %"] in rows
    assert ["sparsity", "75.00 %", "75.00 %"] in both and not any(row[0] == "sparsity" for row in units)
    assert not any("taken out" in row[0] for row in table(example()))


def test_the_page_has_groups_and_sizes_and_of_weights_only_what_was_masked(tmp_path) -> None:
    def page(report: Report) -> str:
        return write_report(report, tmp_path).read_text(encoding="utf-8").partition('<script type="application/json"')[0]

    quick = stages(metrics(0.97), metrics(0.9, images_per_second=2000.0))
    asked = {"removed": 0.48, "of": "macs"}
    units, both, masked = page(structured(asked=asked)), page(mixed()), page(example(stages=quick))
    assert "<h2>Groups (4)</h2>" in units and "<h2>Layers" not in units and "prunable weights" not in units
    assert "<h2>Groups (4)</h2>" in both and "<h2>Layers (8)</h2>" in both and "<dt>round small</dt>" in both
    assert "Groups" not in masked and "multiply-adds" not in masked and "MACs" not in masked
    assert "<b>1.4 ×</b>" in units and " ×</b>" not in masked
    assert "<dd>48.00 % of the multiply-adds</dd>" in units and "<small>48.0 % asked, 48.9 % of the parameters</small>" in units
    assert '<div class="tiles six">' in both and '<div class="tiles">' in units
    assert f"<td>neuron</td><td>128</td><td>32</td><td>25.0 %</td><td>{NEURON}</td><td>{96 * NEURON:,}</td>" in units
    assert f"<td>head</td><td>4</td><td>4</td><td>100.0 %</td><td>{HEAD:,}</td><td>0</td><td>lost least</td>" in units
    assert "13,080 of 25,576 (48.86 % taken out)" in units and "3,864 parameters, 15.11 %" in both


@pytest.mark.parametrize("name", [name for name in MISSING if name.startswith(("units", "mixed")) and "not finite" not in name])
def test_nothing_undefined_stands_on_a_page(name: str, tmp_path) -> None:
    text = write_report(MISSING[name], tmp_path).read_text(encoding="utf-8")
    shown = re.sub(r"<style>.*?</style>|<script.*?</script>", "", text, flags=re.DOTALL)
    assert re.findall(r"\b(?:undefined|None|nan|NaN|inf)\b", shown) == []


def test_what_a_model_calls_its_groups_cannot_become_markup(tmp_path) -> None:
    nasty = "<b>&x"
    report = structured(groups=[replace(GROUPS[0], name=nasty), *GROUPS[1:]])
    assert nasty not in write_report(report, tmp_path).read_text(encoding="utf-8").partition("<script>")[0]
    assert nasty not in json.dumps(figures(report)["kept_units"])


def test_report_json_holds_groups_sizes_and_rounds(tmp_path) -> None:
    write_report(mixed(), tmp_path)
    read = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert read["groups"][3] == {"name": "blocks.1.mlp", "kind": "neuron", "units": 128, "kept": 32, "weights": 65, "least": 1, "swept": []}
    assert read["dense_size"] == {"parameters": 25_576, "macs": 500_000} and read["final_size"]["parameters"] == 13_080
    assert [(found["asked_of"], found["removed"]["macs"]) for found in read["rounds"]] == [("macs", 0.502), ("weights", 0.502)]


def test_old_constructors_make_runs_that_only_mask() -> None:
    report = example()
    assert not report.took_units and report.masked_weights and report.removed == {}
    assert part("a", 0.5, 0.9, None).reached == 0.5
    assert replace(report, dense_size=DENSE, final_size=ModelSize(25_576, 500_000)).took_units is False

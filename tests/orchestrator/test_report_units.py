"""Runs that remove units, alone or beside masked weights: what the report claims of them; numbers are counted by hand on ``GROUPS``."""

from dataclasses import replace

import plotly.graph_objects as go
import pytest
from example_report import (
    GROUPS,
    MISSING,
    REMOVED,
    SMALL,
    example,
    metrics,
    mixed,
    numbers,
    part,
    said,
    says,
    stages,
    structured,
    unit_part,
)

from orchestrator.quantities import listed, macs, number, size
from orchestrator.report.page import drawn_figures
from orchestrator.report.parts import FileSizes, GroupResult, Int8Result, LatencyResult
from orchestrator.report.result import Report, round_lines
from orchestrator.report.tables import rounds, targets
from orchestrator.report.words import sentences, verdict

ACCURACIES = ["97.0", "90.0", "96.5"]
FASTER = ["1.4", "2"]  # times as many images per second, on a device of 2 threads


def at(final: float, dense: float = 900.0) -> list:
    """Stages of models with these speeds, in images per second."""
    return stages(metrics(0.97, images_per_second=dense), metrics(0.9, images_per_second=1.0), metrics(0.965, images_per_second=final))


def asked(removed: float, of: str) -> dict:
    return {"removed": removed, "of": of, "min_units": 1}


# --------------------------------------------------------------------------------------------------------------- the verdict


@pytest.mark.parametrize(
    ("report", "removed"),
    [
        # 500 to 249 thousand multiply-adds; 2 heads of 1,048 and 160 neurons of 65 from 25,576 parameters: 12,496; 900 to 1,260 images/s
        (structured(), "50.2 % of the multiply-adds and 48.9 % of the parameters"),
        (structured(asked=asked(0.45, "parameters")), "48.9 % of the parameters and 50.2 % of the multiply-adds"),
        (structured(asked=asked(0.6, "structures")), "61.4 % of the units, 50.2 % of the multiply-adds and 48.9 % of the parameters"),
        (MISSING["units, sizes not counted"], "61.4 % of the units"),  # 102 of 264 are left
    ],
)
def test_the_verdict_gives_what_was_removed_the_target_first_then_accuracy_and_speed(report: Report, removed: str) -> None:
    text = verdict(report)
    assert text.startswith(f"{removed} removed by SOSP;") and "masked" not in text
    assert numbers(text) == [*numbers(removed), *ACCURACIES, *FASTER]


def test_the_verdict_of_a_mixed_run_keeps_the_order_of_its_rounds() -> None:
    units_first, masks_first = verdict(mixed()), verdict(mixed(part("sparse", 0.75, 0.93, 0.96), unit_part("small", 0.5, 0.90, 0.965)))
    assert numbers(units_first) == ["50.2", "48.9", "75.0", "2", *ACCURACIES, *FASTER]
    assert numbers(masks_first) == ["75.0", "50.2", "48.9", "2", *ACCURACIES, *FASTER]
    assert "remaining prunable weights" in units_first and "remaining" not in masks_first
    assert "one-shot" not in units_first + masks_first, "rounds are not one shot"
    assert units_first.index("by SOSP") < units_first.index("by CAP") and masks_first.index("by CAP") < masks_first.index("by SOSP")


@pytest.mark.parametrize(("final", "ratio"), [(1260.0, "1.4"), (927.0, "1.03"), (450.0, "0.50")])
def test_only_a_model_that_is_faster_by_a_twentieth_is_called_faster(final: float, ratio: str) -> None:
    report, slow = structured(stages=at(final)), final < 1.05 * 900
    for text in (verdict(report), said(report, "images/s dense")):
        assert ("not faster" in text) == slow and f"{ratio} times as many images per second" in text


@pytest.mark.parametrize("name", ["units, no speed", "units, speed not finite", "units, no stages"])
def test_without_two_measured_speeds_nothing_is_said_of_being_faster_but_that(name: str) -> None:
    report = MISSING[name]
    assert "per second" not in verdict(report) and "faster" not in verdict(report)
    sentence = said(report, "faster")
    assert "not measured" in sentence and "not known" in sentence and numbers(sentence) == []


# ------------------------------------------------------------------------------------------------------------- size and speed


@pytest.mark.parametrize(
    ("final", "only", "slow"), [(1260.0, True, False), (1750.0, False, False), (880.0, False, True)], ids=["less", "alike", "slow"]
)
def test_multiply_adds_and_measured_speed_are_told_as_two_facts(final: float, only: bool, slow: bool) -> None:
    sentence = said(structured(stages=at(final)), "times fewer")
    ratio = final / 900
    assert numbers(sentence) == ["2.0", f"{ratio:.{2 if slow else 1}f}", "2", "900", f"{final:,.0f}"]
    assert ("only" in sentence, "not faster" in sentence) == (only, slow)


def test_sizes_before_and_after_are_told_and_units_are_not_called_masked() -> None:
    report = structured()
    assert numbers(said(report, "parameters, and")) == ["13,080", "25,576", "249", "500"]
    assert numbers(said(report, "file")) == ["2.0", "52.3", "102"] and not says(report, "masked")
    larger = said(structured(sizes=FileSizes(100, 110)), "file")
    assert "not smaller" in larger and numbers(larger) == ["110", "100"]


def test_in_a_mixed_run_zeros_are_those_of_the_smaller_model_and_of_the_dense_one_together() -> None:
    report = mixed()  # 13,080 parameters are left, 12,288 of them prunable, three of four of these zero
    assert numbers(said(report, "are zero")) == ["9,216", "12,288", "75.00"] and report.nonzero_left == 13_080 - 9_216
    assert numbers(said(report, "not zero")) == ["3,864", "15.1"]


def test_zeros_of_a_round_before_units_were_removed_are_not_counted_in_what_is_left() -> None:
    report = MISSING["mixed, masked first"]
    assert "before units were removed" in said(report, "zero") and "not known" in said(report, "zero")
    assert report.nonzero_left is None and not says(report, "not zero")


# -------------------------------------------------------------------------------------------------------------------- targets


def test_units_left_are_counted_by_kind() -> None:
    assert numbers(said(structured(), "are left")) == ["102", "264", "4", "6", "8", "96", "256"]
    one = GroupResult("stem", "channel", units=1, kept=1, weights=9)
    assert numbers(said(structured(groups=[one]), "are left")) == ["1"] * 5


# 12,496 of 25,576 parameters are 48.858 %, a head is 4.1 % of them, and one of 264 units is 0.4 %
@pytest.mark.parametrize(
    ("of", "goal", "reached", "less_than_a_unit"),
    [
        ("macs", 0.5, "50.20", ""),
        ("parameters", 0.47, "48.86", "more"),
        ("parameters", 0.51, "48.86", "less"),
        ("parameters", 0.43, "48.86", ""),
        ("structures", 0.611, "61.36", "more"),
    ],
)
def test_a_target_that_was_not_met_exactly_is_told_with_both_numbers(of: str, goal: float, reached: str, less_than_a_unit: str) -> None:
    sentence = said(structured(asked=asked(goal, of)), "requested")
    assert numbers(sentence) == [f"{100 * goal:.2f}", reached] and "missed" not in sentence
    assert ("whole units" in sentence) == bool(less_than_a_unit) and f"{less_than_a_unit}." in sentence


def test_a_missed_target_says_how_many_groups_are_at_their_minimum() -> None:
    report = structured(asked=asked(0.9, "macs"))
    assert numbers(said(report, "missed")) == ["90.00", "50.20"] and not says(report, "minimum")
    some = [replace(group, least=2 if group.kind == "head" else 32) for group in GROUPS]
    assert numbers(said(replace(report, groups=some), "missed")) == ["90.00", "50.20", "2", "4"]
    every = [replace(group, least=group.kept) for group in GROUPS]
    sentence = said(replace(report, groups=every), "missed")
    assert "No more could be removed" in sentence and "every group" in sentence


def test_a_target_met_to_the_shown_digits_is_not_spoken_of() -> None:
    assert not says(structured(asked=asked(0.50201, "macs")), "requested", "missed")


def test_both_targets_of_a_mixed_run_are_judged() -> None:
    done = (unit_part("small", 0.6, 0.93, 0.96), part("sparse", 0.8, 0.90, 0.965, removed=REMOVED, size=SMALL))
    missed = [numbers(sentence) for sentence in sentences(mixed(*done)) if "missed" in sentence]
    assert missed == [["60.00", "50.20"], ["80.00", "75.00"]]


def test_the_table_of_targets_has_asked_beside_reached_for_units_and_for_weights() -> None:
    units, both, masked = ({row[0]: row[1:3] for row in targets(report).rows} for report in (structured(), mixed(), example()))
    for rows in (units, both):
        assert rows["multiply-adds removed"] == ["50.00 %", "50.20 %"] and rows["parameters removed"] == ["–", "48.86 %"]
        assert rows["units removed"] == ["–", "61.36 %"]
    assert both["sparsity"] == ["75.00 %", "75.00 %"] and both["left and not zero"] == ["–", "15.11 %"]
    assert "sparsity" not in units and not any("removed" in name for name in masked)
    also = structured(asked=asked(0.5, "macs") | {"also": {"parameters": 0.3}})
    assert ["parameters removed", "30.00 %", "48.86 %"] in [row[:3] for row in targets(also).rows]


# ---------------------------------------------------------------------------------------------------------- latency and 8 bits

TIMED = LatencyResult("eager", 1, 1, "cpu", 20.0, 14.0, 13.5, 14.2, 0.006, 2, 1.13, 30, 120)


@pytest.mark.parametrize(
    ("budget", "words", "off"), [(14.0, "exceeds", "1.4"), (14.21, "meets", ""), (15.0, "below", "5.3")], ids=["over", "met", "under"]
)
def test_a_measured_time_is_held_against_its_budget_and_its_prediction(budget: float, words: str, off: str) -> None:
    report = structured(latency=replace(TIMED, budget_ms=budget), asked=asked(0.3, "latency"))
    sentence = said(report, "forward pass takes", "budget")
    found = numbers(sentence)
    assert found[:3] == ["14.2", "0.6", "20.0"] and found[-1] == "2", "times, spread and corrections"
    assert words in sentence and (not off or off in found) and not says(report, "requested")
    assert numbers(said(report, "table of operations")) == ["13.5", "4.9", "120", "30", "1.13"]
    assert "less" in said(report, "table of operations")


def test_eight_bits_are_told_against_thirty_two() -> None:
    int8 = Int8Result("onnxruntime", 32, 2, "Intel", {"top1": 0.955, "agreement": 0.98}, 30_000, 110_000, 1.23, 2.5, 0.01)
    assert numbers(said(example(int8=int8), "8 bits")) == ["8", "95.5", "96.5", "30", "110", "32", "1.23", "1.0", "2.50", "32", "2"]
    headless = replace(MISSING["headless"], int8=replace(int8, metrics={"agreement": 0.98}))
    assert "agreement" in said(headless, "8 bits") and not says(example(), "8 bits")


# --------------------------------------------------------------------------------------------------------------------- rounds


def test_every_round_of_a_mixed_run_says_what_it_did() -> None:
    table = rounds(mixed())
    assert [row[:3] for row in table.rows] == [["small", "50.0 %", "50.2 % of MACs"], ["sparse", "75.0 %", "75.0 % of weights"]]
    sentence = said(mixed(), "2 rounds")
    assert numbers(sentence) == ["2", "50.2", "75.0", "2", "8"] and sentence.index("removed") < sentence.index("masked")


def test_rounds_that_only_remove_units_name_what_of_once() -> None:
    report = structured(rounds=[unit_part("a", 0.25, 0.9, 0.95, removed={"macs": 0.252}), unit_part("b", 0.5, 0.9, 0.95)])
    table = rounds(report)
    assert "MACs" in table.head[2] and [row[:3] for row in table.rows] == [["a", "25.0 %", "25.2 %"], ["b", "50.0 %", "50.2 %"]]
    assert numbers(said(report, "2 rounds"))[:3] == ["2", "25.2", "50.2"] and said(report, "2 rounds").count("multiply-adds") == 1


def test_the_picture_of_mixed_rounds_has_what_was_removed_beside_what_was_masked() -> None:
    figure = drawn_figures(mixed())["rounds"]
    go.Figure(figure)
    removed, masked = [trace for trace in figure["data"] if trace["type"] == "bar"]
    assert removed["y"] == [0.502, 0.502] and masked["y"] == [None, 0.75] and "multiply-adds" in removed["name"]
    right = [x + removed["width"] / 2 for x in removed["x"]]
    left = [x - masked["width"] / 2 for x in masked["x"]]
    assert all(a <= b for a, b in zip(right, left, strict=True)), "bars of a round lie beside each other"


def test_a_tracker_gets_of_each_round_what_it_asked_for_and_the_size_that_it_left() -> None:
    small, sparse = round_lines(mixed())
    assert (small["removed_macs_asked"], small["removed_macs"], small["parameters"], small["macs"]) == (0.5, 0.502, 13_080, 249_000)
    assert "sparsity" not in small and "sparsity_asked" not in small
    assert (sparse["sparsity_asked"], sparse["sparsity"], sparse["removed_macs"]) == (0.75, 0.75, 0.502)
    assert "removed_macs_asked" not in sparse


# ----------------------------------------------------------------------------------------------------------------- quantities


def test_quantities_have_three_digits_and_no_exponent_just_below_a_unit() -> None:
    assert [macs(value) for value in (None, 999, 17_583_360, 4_608_000_000)] == ["not measured", "999 MACs", "17.6 MMACs", "4.61 GMACs"]
    assert (number(999.6), number(-999.7), number(999.4)) == ("1,000", "-1,000", "999")
    assert (size(999_700), size(999_400), size(1_000_000)) == ("1,000 kB", "999 kB", "1 MB")
    assert [listed(["a", "b", "c"][:many]) for many in range(4)] == ["", "a", "a and b", "a, b and c"]

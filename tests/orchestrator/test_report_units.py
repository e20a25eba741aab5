"""Runs that take units out, alone or beside masked weights, in words, tables and pictures; numbers are counted by hand on ``GROUPS``."""

from dataclasses import replace

import plotly.graph_objects as go
import pytest
from example_report import GROUPS, MISSING, REMOVED, SMALL, example, metrics, mixed, part, said, stages, structured, unit_part
from orchestrator.report_page import figures
from orchestrator.report_rounds import round_columns, round_lines, round_rows

from orchestrator.quantities import listed, macs, number, size
from orchestrator.report import FileSizes, GroupResult, Report, sentences, verdict

ACCURACY = "top-1 accuracy 97.0 % dense, 96.5 % after recovery (90.0 % one-shot)"
FASTER = "1.4 times as many images per second on cpu (2 threads)"


def at(final: float, dense: float = 900.0) -> list:
    """Stages of models with these speeds, in images per second."""
    return stages(metrics(0.97, images_per_second=dense), metrics(0.9, images_per_second=1.0), metrics(0.965, images_per_second=final))


def asked(removed: float, of: str) -> dict:
    return {"removed": removed, "of": of, "min_units": 1}


# --------------------------------------------------------------------------------------------------------------- the verdict


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        # 500 to 249 thousand multiply-adds; 2 heads of 1,048 and 160 neurons of 65 from 25,576 parameters: 12,496; 900 to 1,260 images/s
        (structured(), f"50.2 % of the multiply-adds and 48.9 % of the parameters taken out; {ACCURACY}; {FASTER}."),
        (
            structured(asked=asked(0.45, "parameters")),
            f"48.9 % of the parameters and 50.2 % of the multiply-adds taken out; {ACCURACY}; {FASTER}.",
        ),
        (  # 102 of 264 units are left
            structured(asked=asked(0.6, "structures")),
            f"61.4 % of the units, 50.2 % of the multiply-adds and 48.9 % of the parameters taken out; {ACCURACY}; {FASTER}.",
        ),
        (MISSING["units, sizes not counted"], f"61.4 % of the units taken out; {ACCURACY}; {FASTER}."),
        (
            mixed(),
            "50.2 % of the multiply-adds and 48.9 % of the parameters taken out, then 75.0 % of the remaining prunable weights masked, in "
            f"2 rounds; {ACCURACY.replace('one-shot', 'before it')}; {FASTER}.",
        ),
        (
            mixed(part("sparse", 0.75, 0.93, 0.96), unit_part("small", 0.5, 0.90, 0.965)),
            "75.0 % of the prunable weights masked, then 50.2 % of the multiply-adds and 48.9 % of the parameters taken out, in "
            f"2 rounds; {ACCURACY.replace('one-shot', 'before it')}; {FASTER}.",
        ),
    ],
)
def test_the_verdict_says_what_was_taken_out_and_what_was_masked(report: Report, expected: str) -> None:
    assert verdict(report) == expected


@pytest.mark.parametrize(("final", "words"), [(1260.0, "1.4 times as many"), (927.0, "not faster"), (450.0, "not faster")])
def test_the_verdict_calls_only_a_faster_model_faster(final: float, words: str) -> None:
    said_last = verdict(structured(stages=at(final))).split("; ")[-1]
    assert said_last.startswith(words)
    assert ("(0.50 times as many images per second)" in said_last) == (final == 450.0)


@pytest.mark.parametrize("name", ["units, no speed", "units, speed not finite", "units, no stages"])
def test_without_two_measured_speeds_nothing_is_said_of_being_faster_but_that(name: str) -> None:
    report = MISSING[name]
    assert "images per second" not in verdict(report) and "faster" not in verdict(report)
    assert said(report, "faster") == (
        "Images per second were not measured for both models: nothing is known about whether the smaller one is faster."
    )


def test_a_masked_model_is_never_called_faster_however_fast_it_was() -> None:
    report = example(stages=at(2000.0))
    assert "images per second" not in verdict(report)
    assert "is not faster on cpu" in said(report, "images/s")


# ------------------------------------------------------------------------------------------------------------- size and speed


@pytest.mark.parametrize(
    ("final", "words"),
    [
        (1260.0, "2.0 times fewer multiply-adds, but only 1.4 times as many images per second on cpu (2 threads), measured: 900 images/s"),
        (1750.0, "2.0 times fewer multiply-adds, 1.9 times as many images per second"),
        (880.0, "2.0 times fewer multiply-adds, but not faster: 0.98 times as many images per second"),
    ],
)
def test_multiply_adds_and_measured_speed_are_told_as_two_facts(final: float, words: str) -> None:
    sentence = said(structured(stages=at(final)), "times fewer")
    assert sentence.startswith(words) and sentence.endswith(f"measured: 900 images/s dense, {final:,.0f} pruned.")


def test_sizes_before_and_after_are_told_and_units_are_not_called_masked() -> None:
    report = structured()
    assert said(report, "whole:") == (
        "Units are taken out whole: 13,080 instead of 25,576 parameters, 249 kMACs instead of 500 kMACs for one sample."
    )
    assert "smaller: 52.3 kB instead of 102 kB (2.0 times)" in said(report, "exported")
    assert not any("masked" in sentence for sentence in sentences(report))
    assert said(structured(sizes=FileSizes(100, 110)), "exported") == "The exported file is not smaller: 110 B against 100 B dense."


def test_in_a_mixed_run_zeros_are_those_of_the_smaller_model_and_of_the_dense_one_together() -> None:
    report = mixed()  # 13,080 parameters are left, 12,288 of them prunable, three of four of these zero
    assert said(report, "exactly zero") == "9,216 of 12,288 prunable weights that are left are exactly zero (75.00 %)."
    assert "3,864 are left and not zero (15.1 %)" in said(report, "the zeros are masked")
    assert not any("25,576 parameters in all" in sentence for sentence in sentences(report))


def test_zeros_of_a_round_before_units_went_are_not_counted_in_what_is_left() -> None:
    report = MISSING["mixed, masked first"]
    assert "before units were taken out; how many of these zeros went along is not known" in said(report, "exactly zero")
    assert not any("left and not zero" in sentence for sentence in sentences(report))


# -------------------------------------------------------------------------------------------------------------------- targets


def test_units_left_are_counted_by_kind() -> None:
    assert said(structured(), "are left") == "102 of 264 units in 4 groups are left: 6 of 8 heads and 96 of 256 neurons."
    one = GroupResult("stem", "channel", units=1, kept=1, weights=9)
    assert said(structured(groups=[one]), "are left") == "1 of 1 unit in 1 group are left: 1 of 1 channel."


@pytest.mark.parametrize(
    ("of", "goal", "words"),
    [
        ("macs", 0.5, "50.00 % of the multiply-adds was asked for, 50.20 % was taken out."),
        # 12,496 of 25,576 parameters are 48.858 %, a head is 4.1 % of them
        (
            "parameters",
            0.47,
            "47.00 % of the parameters was asked for, 48.86 % was taken out: units go whole, and this is less than one unit",
        ),
        (
            "parameters",
            0.51,
            "51.00 % of the parameters was asked for, 48.86 % was taken out: units go whole, and this is less than one unit",
        ),
        ("parameters", 0.43, "43.00 % of the parameters was asked for, 48.86 % was taken out."),
        ("structures", 0.611, "61.10 % of the units was asked for, 61.36 % was taken out: units go whole"),
    ],
)
def test_a_target_that_was_not_met_exactly_is_told_with_both_numbers(of: str, goal: float, words: str) -> None:
    assert said(structured(asked=asked(goal, of)), "asked for").startswith(words)


def test_more_and_less_than_one_unit_are_told_apart() -> None:
    assert said(structured(asked=asked(0.47, "parameters")), "asked for").endswith("less than one unit more.")
    assert said(structured(asked=asked(0.51, "parameters")), "asked for").endswith("less than one unit less.")


def test_a_missed_target_says_how_many_groups_are_at_their_fewest() -> None:
    report = structured(asked=asked(0.9, "macs"))
    assert said(report, "missed") == "The target was missed: 90.00 % of the multiply-adds was asked for, 50.20 % was taken out."
    some = [replace(group, least=2 if group.kind == "head" else 32) for group in GROUPS]
    assert said(replace(report, groups=some), "missed").endswith("taken out; 2 of 4 groups are at the fewest units that they may keep.")
    every = [replace(group, least=group.kept) for group in GROUPS]
    assert said(replace(report, groups=every), "missed").endswith(
        "and no more could go, since every group is at the fewest units that it may keep."
    )


def test_a_target_met_to_the_shown_digits_is_not_spoken_of() -> None:
    report = structured(asked=asked(0.50201, "macs"))
    assert not any("asked for" in sentence or "missed" in sentence for sentence in sentences(report))


def test_both_targets_of_a_mixed_run_are_judged() -> None:
    rounds = (unit_part("small", 0.6, 0.93, 0.96), part("sparse", 0.8, 0.90, 0.965, removed=REMOVED, size=SMALL))
    missed = [sentence for sentence in sentences(mixed(*rounds)) if "missed" in sentence]
    assert missed == [
        "The target was missed: 60.00 % of the multiply-adds was asked for, 50.20 % was taken out.",
        "The target was missed: 80.00 % was asked for, 75.00 % was reached.",
    ]


# --------------------------------------------------------------------------------------------------------------------- rounds


def test_every_round_of_a_mixed_run_says_what_it_did() -> None:
    assert round_columns(mixed())[:3] == ["round", "asked", "reached"]
    assert [row[:3] for row in round_rows(mixed())] == [["small", "50.0 %", "50.2 % of MACs"], ["sparse", "75.0 %", "75.0 % of weights"]]
    assert "Pruned in 2 rounds: 50.2 % of the multiply-adds taken out, then 75.0 % of the weights masked, with 2 trainings" in said(
        mixed(), "2 rounds"
    )


def test_rounds_that_only_take_units_out_name_what_of_once() -> None:
    first = unit_part("a", 0.25, 0.9, 0.95, removed={"macs": 0.252})
    report = structured(rounds=[first, unit_part("b", 0.5, 0.9, 0.95)])
    assert round_columns(report)[:3] == ["round", "asked", "MACs taken out"]
    assert [row[:3] for row in round_rows(report)] == [["a", "25.0 %", "25.2 %"], ["b", "50.0 %", "50.2 %"]]
    assert "Pruned in 2 rounds: 25.2 %, 50.2 % of the multiply-adds taken out, with" in said(report, "2 rounds")


def test_the_picture_of_mixed_rounds_has_what_was_taken_out_beside_what_was_masked() -> None:
    figure = figures(mixed())["rounds"]
    go.Figure(figure)
    bars = {trace["name"]: trace for trace in figure["data"] if trace["type"] == "bar"}
    assert bars["multiply-adds taken out"]["y"] == [0.502, 0.502] and bars["weights masked"]["y"] == [None, 0.75]
    right = [x + bars["multiply-adds taken out"]["width"] / 2 for x in bars["multiply-adds taken out"]["x"]]
    left = [x - bars["weights masked"]["width"] / 2 for x in bars["weights masked"]["x"]]
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

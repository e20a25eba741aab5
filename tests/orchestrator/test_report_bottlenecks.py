"""Bottlenecks are the groups that keep most over a sweep of targets; shares below are averaged by hand."""

from dataclasses import replace

import plotly.graph_objects as go
from example_report import GROUPS, said, structured
from orchestrator.report_bottlenecks import bottlenecks, sweep

from orchestrator.report import Report, sentences

SWEPT = ([1.0, 0.8, 0.6], [1.0, 1.0, 0.4], [0.9, 0.3, 0.0], [1.0, 1.0, 1.0])  # means 0.8, 0.8, 0.4, 1


def swept(**changes) -> Report:
    return structured(groups=[replace(group, swept=shares) for group, shares in zip(GROUPS, SWEPT, strict=True)], **changes)


def test_groups_are_ranked_by_what_they_keep_on_average_equal_ones_as_they_stand() -> None:
    assert [group.name for group in bottlenecks(swept())] == [GROUPS[index].name for index in (3, 0, 1, 2)]


def test_a_sentence_names_where_the_architecture_is_narrow() -> None:
    first, second, third, last = (GROUPS[index].name for index in (3, 0, 1, 2))
    text = said(swept(), "architecture is narrow")
    assert f"{first} (100 % kept), {second} (80 % kept) and {third} (80 % kept) would lose least and {last} (40 %) most" in text


def test_the_picture_has_a_row_per_group_bottlenecks_on_top_and_a_column_per_target() -> None:
    figure = sweep(swept())
    assert figure is not None
    go.Figure(figure)
    (trace,) = figure["data"]
    assert trace["z"] == [list(SWEPT[index]) for index in (3, 0, 1, 2)] and trace["x"] == [0.25, 0.5, 0.75]
    assert figure["layout"]["yaxis"]["range"] == [3.5, -0.5], "the first row is on top"


def test_without_a_sweep_nothing_is_said_or_drawn() -> None:
    assert sweep(structured()) is None and not any("narrow" in sentence for sentence in sentences(structured()))
    same = structured(groups=[replace(group, swept=[0.5]) for group in GROUPS])
    assert not any("narrow" in sentence for sentence in sentences(same))

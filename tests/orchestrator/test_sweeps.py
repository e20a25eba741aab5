"""What a run returns to a search, and how points side by side are shown."""

import io
from dataclasses import replace

import pytest
from example_report import example
from rich.console import Console

from orchestrator.composing import experiment_of
from orchestrator.objectives import OBJECTIVES, values
from orchestrator.sweep.screen import Screen
from workers.errors import ConfigError


def test_one_objective_is_a_number_and_several_are_a_tuple_in_their_order() -> None:
    report = example()
    final, one_shot = report.stages[-1].metrics["top1"], report.stage("one_shot").metrics["top1"]
    assert values(report, ["accuracy"]) == final
    assert values(report, ["sparsity", "one_shot_accuracy"]) == (report.pruned_weights / report.prunable_weights, one_shot)


def test_an_objective_that_was_not_measured_is_none() -> None:
    stages = [replace(stage, metrics={}) for stage in example().stages]
    unmeasured = replace(example(), stages=stages, groups=[], dense_size=None, final_size=None, latency=None, memory_removed=None)
    names = [name for name in OBJECTIVES if name not in ("sparsity", "loss_increase")]
    assert values(unmeasured, names) == (None,) * len(names)


def test_only_the_rise_of_the_loss_is_better_when_it_is_smaller() -> None:
    assert [name for name, objective in OBJECTIVES.items() if not objective.maximize] == ["loss_increase"]


@pytest.mark.parametrize("setting", ["objectives=[]", "stop_below=2", "stop_below=-0.1"])
def test_settings_of_searches_are_checked(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"^{setting.partition('=')[0]}: expected"):
        experiment_of([setting])


def shown(terminal: bool) -> str:
    stream = io.StringIO()
    with Screen(Console(file=stream, force_terminal=terminal, width=100)) as screen:
        for number in (0, 1):
            screen.say(number, f"started: seed={number}")
            screen.show(number, f"seed={number}", f"collect: {number + 5}/8")
        screen.ended(0, "done in 3 s")
    return stream.getvalue()


def test_without_a_terminal_every_line_begins_with_the_number_of_its_point() -> None:
    assert shown(terminal=False).splitlines() == [
        "[0] started: seed=0",
        "[0] collect: 5/8",
        "[1] started: seed=1",
        "[1] collect: 6/8",
        "[0] done in 3 s",
    ]


def test_a_terminal_shows_the_last_line_of_each_point_that_runs() -> None:
    assert "[0] done in 3 s" in shown(terminal=True) and "collect: 6/8" in shown(terminal=True)

"""Budgets of time and their correction: towards what meets them, whatever the clock's noise."""

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.allocation.reach import Reach, storable
from orchestrator.outcome import RemovalStep, TimedStep
from orchestrator.shrinking import meet_budget, missed_budget, next_correction
from workers.records import ChosenUnits, ModelComparison, Record


@pytest.mark.parametrize("time", [lambda c: 0.9 * c, lambda c: 1.3 * c, lambda c: 0.3 + 0.8 * c, lambda c: 0.6 * c + 0.3 * c * c])
def test_a_smooth_time_is_met_within_one_percent_in_five_corrections(time):
    """Times over the budget as functions of what the budget was multiplied with: proportional, with an offset, curved."""
    ratios = {1.0: time(1.0)}
    for _ in range(5):
        if abs(list(ratios.values())[-1] - 1) <= 0.01:
            break
        factor = next_correction(ratios)
        ratios[factor] = time(factor)
    assert abs(list(ratios.values())[-1] - 1) <= 0.01


def test_one_disturbed_measurement_does_not_throw_the_budget_far_off():
    """A time three times too long lowers it by a third, not by two."""
    assert next_correction({1.0: 3.0}) == pytest.approx(1 / 1.5)
    assert next_correction({1.0: 0.1}) == pytest.approx(1.5)


def test_between_a_choice_too_slow_and_one_fast_enough_it_stays_between_them():
    assert next_correction({1.0: 1.1, 0.8: 0.9}) == pytest.approx(0.9)
    assert 0.8 < next_correction({1.0: 1.4, 0.6: 0.7, 0.8: 0.95}) < 1.0


def step(factor: float, ratio: float, out_of_reach: list[dict] | None = None) -> RemovalStep:
    """A step whose budget is half of a dense model of 10 ms, times ``factor``, and whose model was read at ``ratio`` of the dense time."""
    chosen = ChosenUnits({"fc": round(100 * factor)}, 10.0, 5.0, {}, out_of_reach or [], 5.0 * factor, {})
    record = Record("f", Path(), {}, chosen, "worker", 0.0, 0.0)
    return RemovalStep([], record, record, record, TimedStep(chosen, ModelComparison(ratio, 10.0, 0.0, 7, "cpu", "2", "1", "here")))


class Clock:
    """A model that takes 1.1 times what its table says, and readings that are off by ``noise``, one after another."""

    def __init__(self, *noise: float) -> None:
        self.noise = list(noise)
        self.factors: list[float] = []

    def attempt(self, factor: float) -> RemovalStep:
        self.factors.append(factor)
        return step(factor, 0.55 * factor * (1 + self.noise.pop(0)))

    def time_again(self, before: RemovalStep) -> TimedStep:
        timed = step(self.factors[-1], 0.55 * self.factors[-1] * (1 + self.noise.pop(0))).timed
        assert timed is not None
        return timed


def test_a_reading_that_fits_by_chance_does_not_end_the_search():
    """The first choice is 10 % too slow. It is read as if it fitted, then as it is; the next one fits twice."""
    clock = Clock(-0.1, 0.0, 0.0, 0.01)
    best = meet_budget(clock.attempt, clock.time_again, within=0.03)
    assert not clock.noise and best.timed.corrections == 1 and clock.factors == [1.0, pytest.approx(1 / 1.1)]
    assert best.excess == pytest.approx(0.01) and missed_budget(best, 0.03) == []


def test_without_a_tolerance_the_table_is_believed_and_one_reading_reported():
    clock = Clock(0.0)
    best = meet_budget(clock.attempt, clock.time_again, within=None)
    assert best.timed.corrections == 0 and best.excess == pytest.approx(0.1) and missed_budget(best, None) == []


def test_a_budget_that_cannot_be_met_is_reported():
    """Readings that stay a fifth too long whatever is chosen: five corrections, then a warning with the measured time and the target."""
    best = meet_budget(lambda factor: step(factor, 0.6), lambda before: before.timed, within=0.03)
    (warning,) = missed_budget(best, 0.03)
    assert best.timed.corrections == 5
    assert all(text in warning for text in ("6 ms", "5 ms", "20.0 %", "5 corrections", "latency.widths"))


def test_a_choice_that_was_made_before_ends_the_search():
    best = meet_budget(lambda factor: replace(step(1.0, 0.6)), lambda before: before.timed, within=0.03)
    assert best.timed.corrections == 1


def test_where_floors_are_in_the_way_no_correction_is_tried_and_the_floors_are_named():
    """Half was asked for, and with all groups at their floors four tenths can be removed: 9 ms, which is 80 % more than 5 ms."""
    reach = storable([Reach("pruner.target.removed", "latency", 0.5, 0.4, {"pruner.target.min_fraction=0.2": 0.7}, 0.1)])
    best = meet_budget(lambda factor: step(factor, 0.9, reach), lambda before: before.timed, within=0.03)
    floors, missed = missed_budget(best, 0.03)
    assert best.timed.corrections == 0
    assert all(text in floors for text in ("pruner.target.removed", "50.0 %", "40.0 %", "pruner.target.min_fraction=0.2", "70.0 %"))
    assert all(text in missed for text in ("9 ms", "5 ms", "80.0 %", "0 corrections", "no more units can be removed"))


def test_floors_are_not_blamed_where_the_clock_says_that_the_target_is_met():
    reach = storable([Reach("pruner.target.removed", "latency", 0.5, 0.4, {}, 0.1)])
    best = meet_budget(lambda factor: step(factor, 0.49, reach), lambda before: before.timed, within=0.03)
    assert best.excess == pytest.approx(-0.02) and missed_budget(best, 0.03) == []

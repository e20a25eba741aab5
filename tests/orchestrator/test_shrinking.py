"""Corrections of a budget of time: towards what meets it, whatever the clock's noise."""

import pytest

from orchestrator.shrinking import next_correction


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

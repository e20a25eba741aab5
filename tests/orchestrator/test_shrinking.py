"""Budgets of time and their correction: towards what meets them, whatever the clock's noise."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from orchestrator import shrinking
from orchestrator.allocation.reach import Reach, storable
from orchestrator.shrinking import next_correction, within_time


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


@dataclass
class Readings:
    """A run whose dense model takes 10 ms and is to take half, whose table is a tenth too low, and whose readings are off by ``noise``."""

    within: float | None
    noise: list[float]
    warnings: list[str] = field(default_factory=list)
    read: int = 0
    reach: list[dict] = field(default_factory=list)
    prefix = ""

    def __post_init__(self) -> None:
        target = SimpleNamespace(within=self.within)
        self.experiment = SimpleNamespace(unit_pruner=SimpleNamespace(target=target))

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def family_of(self, smaller: float) -> float:
        return smaller

    def choose(self, run, model, ranking, times, correction):
        return SimpleNamespace(
            numbers={"kept": correction, "dense": 10.0, "budget": 5.0, "predicted": 5.0 * correction, "reach": self.reach}
        )

    def time(self, run, family, reading=1):
        off = self.noise[self.read]
        self.read += 1
        return SimpleNamespace(numbers={"ratio": 0.55 * family * (1 + off), "beside_ms": 10.0})


def met(monkeypatch, readings: Readings):
    monkeypatch.setattr(shrinking, "measure_times", lambda run, model: SimpleNamespace(table=SimpleNamespace(scale=1.0)))
    monkeypatch.setattr(shrinking, "choose_units", readings.choose)
    monkeypatch.setattr(shrinking, "shrink", lambda run, model, chosen: chosen.numbers["kept"])
    monkeypatch.setattr(shrinking, "time_beside_dense", readings.time)
    return within_time(readings, None, [], None)


def test_a_reading_that_fits_by_chance_does_not_end_the_search(monkeypatch):
    """The first choice is 10 % too slow. It is read as if it fitted, then as it is; the next one fits twice."""
    readings = Readings(0.03, [-0.1, 0.0, 0.0, 0.01])
    found = met(monkeypatch, readings)
    assert (found.corrections, readings.read, readings.warnings) == (1, 4, [])
    assert found.off == pytest.approx(0.01) and found.model == pytest.approx(1 / 1.1)


def test_without_a_bound_the_table_is_believed_and_one_reading_told(monkeypatch):
    readings = Readings(None, [0.0])
    found = met(monkeypatch, readings)
    assert (found.corrections, readings.read, readings.warnings) == (0, 1, []) and found.off == pytest.approx(0.1)


def test_what_cannot_be_met_is_told(monkeypatch):
    """Readings that stay a fifth too long whatever is chosen: five corrections, then a warning with what was measured and asked for."""
    readings = Readings(0.03, [])
    monkeypatch.setattr(Readings, "time", lambda self, run, family, reading=1: SimpleNamespace(numbers={"ratio": 0.6, "beside_ms": 10.0}))
    found = met(monkeypatch, readings)
    assert found.corrections == 5
    assert len(readings.warnings) == 1
    assert "6 ms were measured where 5 ms were asked for, 20.0 % more, after 5 corrections; more latency.widths" in readings.warnings[0]


def test_where_floors_are_in_the_way_no_correction_is_tried_and_the_floors_are_named(monkeypatch):
    """Half was asked for, and with all groups at their floors four tenths can go: measured 9 ms, which is 80 % more than 5 ms."""
    reach = Reach("pruner.target.removed", "latency", 0.5, 0.4, {"pruner.target.min_fraction=0.2": 0.7}, 0.1)
    readings = Readings(0.03, [], reach=storable([reach]))
    monkeypatch.setattr(Readings, "time", lambda self, run, family, reading=1: SimpleNamespace(numbers={"ratio": 0.9, "beside_ms": 10.0}))
    found = met(monkeypatch, readings)
    assert found.corrections == 0
    assert readings.warnings == [
        "pruner.target.removed: 50.0 % of the latency were asked for, and at most 40.0 % can go by the times of operations; "
        "without pruner.target.min_fraction=0.2 70.0 %; 10.0 % lie outside all groups",
        "9 ms were measured where 5 ms were asked for, 80.0 % more, after 0 corrections; no more can go",
    ]


def test_floors_are_not_blamed_where_the_clock_says_that_the_target_is_met(monkeypatch):
    reach = Reach("pruner.target.removed", "latency", 0.5, 0.4, {}, 0.1)
    readings = Readings(0.03, [], reach=storable([reach]))
    monkeypatch.setattr(Readings, "time", lambda self, run, family, reading=1: SimpleNamespace(numbers={"ratio": 0.49, "beside_ms": 10.0}))
    assert met(monkeypatch, readings).off == pytest.approx(-0.02) and readings.warnings == []

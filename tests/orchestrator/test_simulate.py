"""The simulated run against event-by-event bookkeeping and closed forms."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.composing import experiment_of
from orchestrator.launch import plan_experiment
from orchestrator.planning.estimate import Estimate
from orchestrator.planning.plan import Plan
from orchestrator.planning.simulate import Simulation, simulate

STAGES = st.lists(st.lists(st.floats(0.1, 10), min_size=1, max_size=12), min_size=1, max_size=4)


def simulated(stages: list[list[float]], workers: int) -> Simulation:
    estimates = {f"stage {index}": Estimate(len(tasks), 0.0, sum(tasks), tuple(tasks)) for index, tasks in enumerate(stages)}
    return simulate(cast(Plan, SimpleNamespace(stages=estimates, resources=SimpleNamespace(workers=workers))))


def literal(stages: list[list[float]], workers: int) -> float:
    """A clock that stops whenever a task ends. A free worker starts the longest waiting task; a stage waits for the one before."""
    now = 0.0
    for tasks in stages:
        waiting, running = sorted(tasks), []
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(now + waiting.pop())
            now = min(running)
            running.remove(now)
    return now


@given(stages=STAGES, workers=st.integers(1, 5))
def test_the_wall_time_is_that_of_a_clock_that_follows_every_task(stages: list[list[float]], workers: int) -> None:
    assert simulated(stages, workers).seconds == pytest.approx(literal(stages, workers))


@given(stages=STAGES, workers=st.integers(1, 5))
def test_the_speed_up_is_at_most_the_number_of_workers_and_utilisation_is_work_over_available_time(
    stages: list[list[float]], workers: int
) -> None:
    several, alone = simulated(stages, workers), simulated(stages, 1)
    work = sum(map(sum, stages))
    assert alone.seconds == pytest.approx(work) and alone.utilisation == pytest.approx(1)
    assert alone.seconds / several.seconds <= workers * (1 + 1e-9)
    assert several.utilisation == pytest.approx(work / (workers * several.seconds)) and several.utilisation <= 1 + 1e-9


@given(stages=STAGES)
def test_with_a_worker_for_each_task_a_run_takes_as_long_as_the_longest_task_of_each_stage(stages: list[list[float]]) -> None:
    assert simulated(stages, 12).seconds == pytest.approx(sum(map(max, stages)))


def test_a_planned_run_takes_the_seconds_of_its_plan_and_eight_gpus_evaluate_at_once() -> None:
    plan = plan_experiment(experiment_of(["+experiment=dino_vitg_50pct"]))
    simulation = simulate(plan)
    assert simulation.seconds == pytest.approx(plan.seconds)
    (evaluation,) = (stage for stage in simulation.stages if stage.name == "evaluate dense")
    assert {span.worker for span in evaluation.spans} == set(range(8)), "though there are other tasks than shards"


def test_stages_without_single_durations_keep_all_their_workers_busy() -> None:
    estimates: Any = {"start workers": Estimate(4, 30.0, 120.0)}
    simulation = simulate(cast(Plan, SimpleNamespace(stages=estimates, resources=SimpleNamespace(workers=4))))
    assert simulation.seconds == 30 and simulation.utilisation == 1

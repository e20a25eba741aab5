"""Schedules of rounds: what they mean, which are refused, and how their stages are called."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.composing import experiment_of
from orchestrator.config import Experiment
from orchestrator.identity.fingerprints import run_fingerprint
from orchestrator.launch import plan_experiment
from orchestrator.rounds import toward
from orchestrator.stages import kind, over_rounds, prefix, whose
from workers.errors import ConfigError
from workers.models.base import Layer
from workers.pruners.base import Scope, Target
from workers.training.settings import Distill, Optimizer, learning_rate

LAYERS = [Layer("blocks.0.fc", 10, 10), Layer("blocks.1.fc", 10, 10)]


def experiment(*overrides: str) -> Experiment:
    return experiment_of(["cluster=local", *overrides])


def way(target: Target, already: dict[str, int], steps: int) -> list[Target]:
    """The targets of all steps, each reached exactly."""
    found = []
    for left in range(steps, 0, -1):
        found.append(toward(target, LAYERS, already, left))
        if target.scope is Scope.GLOBAL:  # all of it in the first layer: where it goes must not matter
            wanted = round(found[-1].sparsity * 200)
            already = {"blocks.0.fc": min(100, wanted), "blocks.1.fc": max(0, wanted - 100)}
        else:
            already = {name: max(already[name], round(100 * s)) for name, s in found[-1].by_layer(LAYERS).items()}
    return found


# ------------------------------------------------------------------------------------------------------------------ schedule


@pytest.mark.parametrize(("zeros", "expected"), [(0, [0.2, 0.4, 0.6, 0.8]), (40, [0.35, 0.5, 0.65, 0.8])])
def test_steps_rise_linearly_from_what_is_pruned_already(zeros: int, expected: list[float]) -> None:
    target = Target(0.8, Scope.GLOBAL)
    found = way(target, {"blocks.0.fc": zeros, "blocks.1.fc": 0}, 4)
    assert [step.sparsity for step in found] == pytest.approx(expected)
    assert found[-1] is target


def test_steps_rise_linearly_in_each_layer_by_itself() -> None:
    """From 20 and 0 zeros of 100 to uniformly 60: two steps of 20 and 30."""
    target = Target(0.6, Scope.UNIFORM)
    first, last = way(target, {"blocks.0.fc": 20, "blocks.1.fc": 0}, 2)
    assert first.scope is Scope.PER_LAYER and first.per_layer == pytest.approx({"blocks.0.fc": 0.4, "blocks.1.fc": 0.3})
    assert last is target


def test_a_layer_beyond_its_target_stays_as_it_is() -> None:
    target = Target(0.0, Scope.PER_LAYER, {"blocks.1.*": 0.5})
    (first, *_) = way(target, {"blocks.0.fc": 30, "blocks.1.fc": 70}, 3)
    assert first.per_layer == pytest.approx({"blocks.0.fc": 0.3, "blocks.1.fc": 0.7})


@given(zeros=st.integers(0, 100), goal=st.integers(0, 199), steps=st.integers(1, 12))
def test_steps_never_fall_end_at_the_target_and_are_even_to_a_few_weights(zeros: int, goal: int, steps: int) -> None:
    """Each step is rounded to whole weights and the next starts from there, so roundings add up: to less than 0.2 a step."""
    target = Target(goal / 200, Scope.GLOBAL)
    counts = [round(step.sparsity * 200) for step in way(target, {"blocks.0.fc": zeros, "blocks.1.fc": 0}, steps)]
    if goal >= zeros:
        ideal = [zeros + (goal - zeros) * step / steps for step in range(1, steps + 1)]
        assert all(abs(count - wanted) <= 0.5 + 0.2 * steps for count, wanted in zip(counts, ideal, strict=True))
        assert counts == sorted(counts) and counts[0] >= zeros and counts[-1] == goal
    else:
        assert counts[:-1] == [zeros] * (steps - 1)


def test_the_gradual_experiment_is_the_schedule_of_the_paper() -> None:
    """Pruning at the start of each 20-epoch cycle of 300 epochs: .4 at epoch 0, linear to .6 at 40, .75 at 100, .9 at 280, then held."""
    rounds = experiment("+experiment=deit_small_gradual_90pct").schedule
    epochs = np.arange(0, 300, 20)
    assert list(rounds) == [f"epoch_{epoch}" for epoch in epochs]
    asked = [part.pruner.target.sparsity for part in rounds.values()]
    assert asked == pytest.approx(np.interp(epochs, [0, 40, 100, 280], [0.4, 0.6, 0.75, 0.9]), abs=5e-5)
    recipes = [part.recovery for part in rounds.values()]
    assert all(recipe is not None and recipe == recipes[0] for recipe in recipes) and sum(recipe.epochs for recipe in recipes) == 300
    assert recipes[0].optimizer is Optimizer.ADAMW and recipes[0].distill is Distill.NONE
    rates = [learning_rate(recipes[0], step, 5) for step in range(100)]
    assert rates == pytest.approx(np.linspace(5e-4, 1e-5, 100))


# ------------------------------------------------------------------------------------------------------------------- settings


def test_without_rounds_there_is_one_of_the_settings_above() -> None:
    plain = experiment()
    assert plain.rounds == {} and list(plain.schedule) == [""]
    only = plain.schedule[""]
    assert (only.pruner, only.steps, only.recovery) == (plain.pruner, 1, plain.recovery)


def test_an_entry_changes_what_it_names_and_keeps_the_rest() -> None:
    found = experiment(
        "pruner.block_size=32",
        "+rounds={first:{pruner:{target:{sparsity:0.5}},recovery:{epochs:2}},second:{steps:3},third:{recovery:null}}",
    )
    first, second, third = found.rounds.values()
    assert list(found.rounds) == ["first", "second", "third"]
    assert (first.pruner.target.sparsity, first.pruner.block_size, first.pruner.target.scope) == (0.5, 32, Scope.GLOBAL)
    assert first.recovery is not None and second.recovery is not None and found.recovery is not None
    assert (first.recovery.epochs, first.recovery.lr) == (2, found.recovery.lr)
    assert (second.steps, second.pruner, second.recovery) == (3, found.pruner, found.recovery)
    assert third.recovery is None and third.steps == 1


def test_an_entry_with_another_target_is_another_component() -> None:
    found = experiment("+pruner@rounds.only.pruner=magnitude", "+recovery@rounds.only.recovery=none", "pruner.block_size=32")
    assert type(found.rounds["only"].pruner).__name__ == "Magnitude" and found.rounds["only"].recovery is None


def test_components_may_be_chosen_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    lines = ["# @package _global_", "defaults:", "  - /pruner@rounds.first.pruner: magnitude", "  - /pruner@rounds.second.pruner: cap"]
    lines += ["rounds:", "  first:", "    pruner:", "      target:", "        sparsity: 0.5"]
    (tmp_path / "experiment" / "mixed.yaml").write_text("\n".join(lines))
    first, second = experiment("+experiment=mixed", f"hydra.searchpath=[file://{tmp_path}]").rounds.values()
    assert [type(part.pruner).__name__ for part in (first, second)] == ["Magnitude", "CAP"]
    assert (first.pruner.target.sparsity, second.pruner.target.sparsity) == (0.5, 0.9)


def test_what_rounds_do_is_part_of_the_name_of_a_run() -> None:
    written = ["steps=2", "+rounds={a:{}}", "+rounds={b:{}}", "+rounds={a:{},b:{}}", "+rounds={a:{recovery:null}}", "+rounds={a:{steps:2}}"]
    assert len({run_fingerprint(experiment(*override)) for override in [[], *([text] for text in written)]}) == len(written) + 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+rounds={a:{pruner:{target:{sparsity:1.5}}}}"], ["rounds.a.pruner.target.sparsity: expected a fraction", "1.5"]),
        (["+rounds={a:{pruner:{target:{sparsity:much}}}}"], ["rounds.a.pruner.target.sparsity: ", "much"]),
        (["+rounds={a:{pruner:{dampning:1.0}}}"], ["rounds.a.pruner.dampning: unknown setting", "did you mean dampening"]),
        (["+rounds={a:{pruner:{target:{scope:globl}}}}"], ["rounds.a.pruner.target.scope: expected global", "globl"]),
        (["+rounds={a:{prunner:{}}}"], ["rounds.a.prunner: unknown setting", "did you mean pruner"]),
        (["+rounds={a:{recovery:{epochs:0}}}"], ["rounds.a.recovery.epochs: expected at least 1", "0"]),
        (["+rounds={a:{recovery:5}}"], ["rounds.a.recovery: expected a component", "5"]),
        (["+rounds={a:{pruner:null}}"], ["rounds.a.pruner: expected a component", "pruner@rounds.a.pruner=NAME"]),
        (["recovery=none", "+rounds={a:{recovery:{epochs:3}}}"], ["rounds.a.recovery: ", "epochs", "recovery@rounds.a.recovery=NAME"]),
        (["+rounds={a:{pruner:{_target_:workers.pruners.cup.CUP}}}"], ["rounds.a.pruner._target_: there is no workers.pruners.cup"]),
        (["+rounds={a:{steps:0}}"], ["rounds.a.steps: expected at least 1", "0"]),
        (["+rounds={a:{steps:few}}"], ["rounds.a.steps: ", "few"]),
        (["steps=0"], ["steps: expected at least 1"]),
        (["rounds=3"], ["rounds: expected rounds by name", "3"]),
        (["+rounds={a:4}"], ["rounds.a: expected what the round changes", "4"]),
        (["+rounds={a.b:{}}"], ["rounds: expected names", "a.b"]),
        (["steps=2", "pruner.target.pattern='2:4'", "pruner.target.sparsity=0.5"], ["steps: expected 1", "2:4"]),
        (
            ["pruner.target.pattern='2:4'", "pruner.target.sparsity=0.5", "+rounds={a:{steps:2}}"],
            ["rounds.a.steps: expected 1", "pattern 2:4"],
        ),
    ],
    ids=lambda value: value[-1] if "=" in value[-1] else "",
)
def test_what_is_wrong_with_a_round_is_said_with_its_path(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        experiment(*overrides)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "+rounds={a:{pruner:{target:{sparsity:0.6}}},b:{pruner:{target:{sparsity:0.4}}}}",
            ["rounds.b.pruner.target.sparsity: expected at least 0.6", "round a", "got 0.4", "a, b"],
        ),
        (
            "+rounds={a:{pruner:{target:{sparsity:0.5}}},b:{pruner:{target:{scope:per_layer,per_layer:{*.fcc*:0.9}}}}}",
            ["rounds.b.pruner.target.per_layer: '*.fcc*' matches none"],
        ),
        (
            "+rounds={a:{pruner:{target:{sparsity:0.6}}},b:{pruner:{target:{scope:per_layer,per_layer:{*.fc1:0.9}}}}}",
            ["rounds.b.pruner.target.per_layer: expected at least 0.6"],  # fc1 holds a third of the weights
        ),
        ("+rounds={a:{recovery:{batch_size:4096}}}", ["rounds.a.recovery.batch_size: expected at most 1437"]),
    ],
    ids=["falling", "no layer", "falling by layers", "batch"],
)
def test_rounds_that_do_not_fit_together_or_the_model_are_refused(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        plan_experiment(experiment(override))
    assert all(word in str(error.value) for word in words), str(error.value)


# ----------------------------------------------------------------------------------------------------------- plan and names


def test_the_plan_holds_each_stage_of_each_step_once() -> None:
    alone, untrained = plan_experiment(experiment()), plan_experiment(experiment("recovery=none"))
    plan = plan_experiment(experiment("+rounds={a:{pruner:{target:{sparsity:0.5}},steps:2},b:{recovery:null}}"))
    once = ["import", "train dense", "start workers", "evaluate dense", "assess dense"]
    pruning = ["collect", "score", "allocate", "solve", "collect pairs", "refit", "join"]
    seen = ["compare", "evaluate one-shot", "assess one_shot"]
    first = [f"round a, step {step}/2: {stage}" for step in (1, 2) for stage in pruning]
    first += [f"round a: {stage}" for stage in (*seen, "recover", "evaluate recovered", "assess recovered")]
    second = [f"round b: {stage}" for stage in (*pruning, *seen)]
    assert list(plan.stages) == [*once, *first, *second, "export"]
    by_sparsity = ("solve", "refit")  # which take longer the more weights are kept
    assert all(found == alone.stages[kind(name)] for name, found in plan.stages.items() if kind(name) not in by_sparsity)
    assert plan.stages["round a, step 1/2: solve"].seconds > alone.stages["solve"].seconds == plan.stages["round b: solve"].seconds
    assert plan.store_bytes == 2 * alone.store_bytes + untrained.store_bytes
    assert plan.worker_bytes == alone.worker_bytes + plan.profile.model_bytes, "a worker keeps the model of the step before"


def test_a_round_of_larger_blocks_sets_the_memory() -> None:
    small, large = (plan_experiment(experiment("pruner=cap", f"pruner.block_size={size}")) for size in (32, 64))
    both = plan_experiment(experiment("pruner=cap", "+rounds={a:{pruner:{block_size:64}},b:{pruner:{block_size:32}}}"))
    assert both.worker_bytes == large.worker_bytes > small.worker_bytes


def test_names_of_stages_say_whose_they_are() -> None:
    assert prefix("") == prefix("", 1, 1) == ""
    names = {prefix("to_4", 2, 3) + "collect": "to_4", prefix("to_40") + "solve": "to_40", prefix("", 1, 2) + "join": "", "compare": ""}
    assert len(names) == 4 and {name: whose(name) for name in names} == names
    seconds = {"collect": 1.0, prefix("a") + "collect": 2.0, prefix("a", 1, 2) + "collect": 4.0, "solve": 8.0}
    assert over_rounds(seconds) == {"collect": 7.0, "solve": 8.0}

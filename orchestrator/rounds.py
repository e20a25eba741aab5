"""The rounds of a run: the experiment that each of them is by itself, their targets, and the plan of all."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import replace

from orchestrator.cluster.base import Resources
from orchestrator.config import Experiment, placed
from orchestrator.planning.estimate import Estimate
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.stages import prefix
from workers.checks import require
from workers.models.base import Layer
from workers.models.profile import ModelProfile
from workers.pruners.base import Scope, Target, WeightPruner

# Stages of the run; EACH_ROUND are those of a round, all others belong to its steps.
ONCE = ("import", "train dense", "start workers", "evaluate dense", "assess dense", "quantise", "export")
EACH_ROUND = (
    "compare",
    "evaluate one-shot",
    "assess one_shot",
    "recover",
    "evaluate recovered",
    "assess recovered",
)


def one_by_one(experiment: Experiment) -> dict[str, Experiment]:
    """Each round by its name, as an experiment of its own."""
    return {name: replace(experiment, rounds={}, **vars(part)) for name, part in experiment.schedule.items()}


def toward(target: Target, layers: Sequence[Layer], already: Mapping[str, int], left: int) -> Target:
    """The target of the next of ``left`` steps: 1/left of the way from what is pruned ``already`` (weights by layer) to ``target``.

        s_next = s + (s_target - s) / left

    So sparsity rises linearly, of all weights together for scope ``global``, else in each layer by itself. The last step's is ``target``.
    A layer beyond its target stays as it is.
    Source: the recomputation of Kurtic et al. 2022 (oBERT, arXiv 2203.07259), also section 6 of CAP.
    """
    if left == 1:
        return target
    if target.scope is Scope.GLOBAL:
        now = sum(already.values()) / sum(layer.weights for layer in layers)
        return replace(target, sparsity=_between(now, target.sparsity, left))
    final = target.by_layer(layers)
    steps = {glob.escape(layer.name): _between(already[layer.name] / layer.weights, final[layer.name], left) for layer in layers}
    return replace(target, scope=Scope.PER_LAYER, per_layer=steps)


def _between(now: float, final: float, left: int) -> float:
    return now + (max(now, final) - now) / left


def check_targets(experiment: Experiment, layers: Sequence[Layer]) -> None:
    """Raises: ConfigError if a target names no layer, if it asks for less than an earlier round (what is pruned does not come back), or if
    its pattern need not fit the widths that an earlier round leaves.
    """
    multiples: dict[str, int] = {}  # what the widths that a round leaves are multiples of, by round
    reached: dict[str, tuple[str, float]] = {}  # the round that asked last, and for how much, by what it is a fraction of
    for name, part in experiment.schedule.items():
        where = f"rounds.{name}.pruner" if name else "pruner"
        with placed("pruner", where):
            goal = part.pruner.goal(layers)
        timed = isinstance(part.pruner, WeightPruner) and part.pruner.is_timed
        require(not (timed and name), f"{where}.target.of", "weights in a run of rounds", "latency", "set pruner.target.sparsity instead")
        before, least = reached.get(goal.of, ("", 0.0))
        what = "pruned weights" if goal.of == "weights" else "removed units"
        require(
            goal.fraction >= least - 1e-9,
            f"{where}.target.{goal.setting}",
            f"at least {least:g}, the target of round {before}, since {what} do not come back",
            goal.fraction,
            f"the order of rounds is {', '.join(experiment.schedule)} (those that a defaults list names come first)",
        )
        for earlier, multiple in multiples.items():
            require(
                multiple % part.pruner.needs_multiple == 0,
                f"rounds.{earlier}.pruner.target.round_to",
                f"a multiple of {part.pruner.needs_multiple}, since the pattern of round {name} needs such widths",
                multiple,
            )
        if part.pruner.leaves_multiple is not None:
            multiples[name] = part.pruner.leaves_multiple
        if goal.of != "weights":
            reached.pop("weights", None)  # zeros are removed with the units that hold them
        reached[goal.of] = (name, goal.fraction)


def plan_rounds(experiment: Experiment, profile: ModelProfile, resources: Resources) -> Plan:
    """The plan of all rounds: memory is what the largest of them needs, the store grows with each step."""
    parts, plans, family = one_by_one(experiment), {}, experiment.model
    for name, part in parts.items():
        plan = plans[name] = make_plan(replace(part, model=family), profile, resources)
        family, profile = plan.family, plan.after or profile
    stages: dict[str, Estimate] = {}
    for name, plan in plans.items():
        steps = parts[name].steps
        stages = {stage: estimate for stage, estimate in plan.stages.items() if stage in ONCE} | stages
        own = {stage: estimate for stage, estimate in plan.stages.items() if stage not in (*ONCE, *EACH_ROUND)}
        for step in range(1, steps + 1):
            stages |= {prefix(name, step, steps) + stage: estimate for stage, estimate in own.items()}
        stages |= {prefix(name) + stage: estimate for stage, estimate in plan.stages.items() if stage in EACH_ROUND}
    trainings = sum(part.recovery is not None for part in parts.values())
    stages |= {last: stages.pop(last) for last in ("quantise", "export") if last in stages}  # last of all
    start, starts = stages["start workers"], max(1, trainings)  # a gang takes the devices of the workers
    seconds, device_seconds = starts * start.seconds, starts * start.device_seconds
    stages["start workers"] = replace(start, tasks=starts * start.tasks, seconds=seconds, device_seconds=device_seconds)
    largest = max(plans.values(), key=lambda plan: plan.worker_bytes)
    first = next(iter(plans.values()))
    store_bytes = sum(parts[name].steps * plan.store_bytes for name, plan in plans.items())
    unreachable = tuple(dict.fromkeys(sentence for each in plans.values() for sentence in each.out_of_reach))
    unfit = tuple({layer.name: layer for each in plans.values() for layer in each.unfit}.values())
    return replace(
        largest,
        stages=stages,
        profile=first.profile,
        family=family,
        after=plan.after,
        unfit=unfit,
        out_of_reach=unreachable,
        store_bytes=store_bytes,
    )

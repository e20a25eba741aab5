"""The values of a report: what a run achieved, how it was measured, and every fact that follows from that. No sentences, no pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from orchestrator.report.parts import (
    FileSizes,
    Goal,
    GroupResult,
    Int8Result,
    LatencyResult,
    LayerResult,
    LossIncrease,
    ModelSize,
    RoundResult,
    StageResult,
    TaskRun,
)

ACCURACIES = ("top1", "knn", "map", "agreement")  # the first one that was measured stands for a model's accuracy
FASTER = 1.05  # a model is called faster only if its speed rose at least by this factor
LEAST_LOST = 3  # at most so many groups that lost some of their units are called those that lost the least


@dataclass(frozen=True)
class Report:
    """A run. ``prunable_weights`` counts weights, ``pruned_weights`` the zeros among them, ``model_weights`` the dense model's parameters.

    ``pruner`` is the class of the pruner, in rounds that of the last one; "" if it is not known.

    ``rounds`` is empty for a run without rounds; ``stages``, ``asked`` and ``loss_increase`` are those of the last round. ``layers``,
    ``prunable_weights`` and ``pruned_weights`` are those of the last round that masked weights: nothing if units were only removed.

    ``groups`` are those of the dense model after the whole run; empty if no round removed units. ``dense_size`` and ``final_size`` are
    equal if weights were only masked, and None if they were not counted.

    ``asked["sparsity"]`` is the requested fraction of zeros among the prunable weights; ``asked["removed"]`` is the fraction of the dense
    model to remove, measured in ``asked["of"]`` (as in ``RoundResult.asked_of``); further entries are settings, printed as they are.
    ``curves`` maps a training ("dense", "recovery", in rounds "to_60/recovery") to its progress lines: epoch, step, steps, loss, lr,
    images_per_second. ``skipped`` maps what was left out ("calibration batches with non-finite values") to a count.
    """

    name: str
    fingerprint: str
    command: str
    experiment: dict[str, Any]
    asked: dict[str, Any]
    stages: list[StageResult]
    layers: list[LayerResult]
    prunable_weights: int
    pruned_weights: int
    model_weights: int
    loss_increase: LossIncrease
    rounds: list[RoundResult] = field(default_factory=list)
    sizes: FileSizes | None = None
    timeline: list[TaskRun] = field(default_factory=list)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    predicted_stage_seconds: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    groups: list[GroupResult] = field(default_factory=list)
    dense_size: ModelSize | None = None
    final_size: ModelSize | None = None
    latency: LatencyResult | None = None  # of the last round that removed units, if it had a latency target
    int8: Int8Result | None = None
    memory_removed: float | None = None  # fraction of the dense model's, if the last round that removed units had such a target
    pruner: str = ""
    stopped_below: float | None = None  # the run ended before a recovery, since the one-shot accuracy was below this

    # -- what was done

    @property
    def removes_units(self) -> bool:
        return bool(self.groups)

    @property
    def masks_weights(self) -> bool:
        return self.prunable_weights > 0 or not self.removes_units

    @property
    def masks_last(self) -> bool:
        """Whether the counted zeros are in the final model: units removed later take an unknown number of them along."""
        return not self.rounds or self.rounds[-1].masks

    def pruners(self, masks: bool | None = None) -> list[str]:
        """Class names of the pruners, in order: those of all rounds, or only of the rounds that mask weights or that remove units."""
        used = [part.pruner for part in self.rounds if masks in (None, part.masks)] if self.rounds else [self.pruner]
        return [name for name in dict.fromkeys(used) if name]

    @property
    def unit_goals(self) -> list[Goal]:
        """The targets of the rounds that removed units."""
        if self.rounds:
            return [Goal(part.asked, part.asked_of) for part in self.rounds if not part.masks]
        units = {"removed", "of"} <= self.asked.keys() and "scope" not in self.asked
        return [Goal(self.asked["removed"], self.asked["of"])] if units else []

    @property
    def unit_goal(self) -> Goal | None:
        """The last of ``unit_goals``, which the final model is held against."""
        return self.unit_goals[-1] if self.unit_goals else None

    @property
    def weight_goal(self) -> float | None:
        """The sparsity that the last round that masked weights was asked for."""
        last = next((part for part in reversed(self.rounds) if part.masks), None)
        return self.asked.get("sparsity") if last is None else last.asked

    @property
    def sparsity(self) -> float:
        """Zeros among the prunable weights."""
        return self.pruned_weights / self.prunable_weights if self.prunable_weights else 0.0

    @property
    def misses_sparsity(self) -> bool:
        """Whether the zeros differ from the target by more than rounding, which may cost a weight per layer."""
        goal = self.weight_goal
        return goal is not None and abs(goal * self.prunable_weights - self.pruned_weights) > 1 + len(self.layers)

    @property
    def removed(self) -> dict[str, float]:
        """The removed fractions of the dense model, where known: ``macs``, ``parameters``, ``structures``, ``latency``, ``memory``."""
        fractions: dict[str, float] = {}
        if self.dense_size is not None and self.final_size is not None:
            fractions["macs"] = 1 - self.final_size.macs / self.dense_size.macs
            fractions["parameters"] = 1 - self.final_size.parameters / self.dense_size.parameters
        if self.groups:
            fractions["structures"] = 1 - self.units_left / self.units
        if self.latency is not None:
            fractions["latency"] = self.latency.removed
        if self.memory_removed is not None:
            fractions["memory"] = self.memory_removed
        return fractions

    @property
    def main_removals(self) -> dict[str, float]:
        """The removed fractions to tell first: of the target, of multiply-adds and parameters; of units only if nothing else is known."""
        removed, goal = self.removed, self.unit_goal
        keys = [key for key in dict.fromkeys([*([goal.of] if goal else []), "macs", "parameters"]) if key in removed]
        return {key: removed[key] for key in keys or ["structures"]}

    # -- units and groups

    @property
    def units(self) -> int:
        return sum(group.units for group in self.groups)

    @property
    def units_left(self) -> int:
        return sum(group.kept for group in self.groups)

    def largest_unit(self, of: str) -> float | None:
        """The largest fraction of the dense model that one unit accounts for; None for quantities that are not counted by unit."""
        if of == "structures":
            return 1 / self.units
        if of == "parameters" and self.dense_size is not None:
            return max(group.weights for group in self.groups) / self.dense_size.parameters
        return None

    @property
    def least_lost(self) -> list[GroupResult]:
        """The groups that kept the largest share of their units, in descending order; none if all groups kept the same share.

        These are all groups that lost nothing, if there are any, otherwise the first third, up to ``LEAST_LOST``.
        """
        if len({group.share for group in self.groups}) < 2:
            return []
        ordered = sorted(self.groups, key=lambda group: -group.share)
        return [group for group in ordered if group.share == 1] or ordered[: max(1, min(LEAST_LOST, len(ordered) // 3))]

    @property
    def bottlenecks(self) -> list[GroupResult]:
        """The swept groups, the one that keeps the largest share on average first (Nonnenmacher et al. 2022, section 4.3)."""
        return sorted((group for group in self.groups if group.swept), key=lambda group: -mean(group.swept))

    @property
    def sweep_targets(self) -> list[float]:
        """The removed fractions of the dense model that ``GroupResult.swept`` belongs to."""
        steps = max((len(group.swept) for group in self.groups), default=0)
        return [(index + 1) / (steps + 1) for index in range(steps)]

    # -- how the models do

    @property
    def headline_metric(self) -> str | None:
        """The accuracy that stands for the models: the first of ``ACCURACIES`` that was measured; None if none was."""
        return next((key for key in ACCURACIES if key in self.measured), None)

    @property
    def measured(self) -> set[str]:
        """Keys of the metrics that at least one stage has."""
        return {key for stage in self.stages for key, value in stage.metrics.items() if value is not None}

    @property
    def test_samples(self) -> float | None:
        return next((stage.metrics["test_samples"] for stage in self.stages if stage.metrics.get("test_samples")), None)

    def stage(self, name: str) -> StageResult | None:
        return next((stage for stage in self.stages if stage.name == name), None)

    def metric(self, stage_name: str, key: str) -> float | None:
        stage = self.stage(stage_name)
        return None if stage is None else stage.metrics.get(key)

    @property
    def speeds(self) -> tuple[float, float] | None:
        """Images per second of the dense and of the final model; None unless both were measured."""
        dense, final = self.metric("dense", "images_per_second"), self.stages[-1].metrics.get("images_per_second") if self.stages else None
        known = [value for value in (dense, final) if value is not None and math.isfinite(value) and value > 0]
        return (known[0], known[1]) if len(known) == 2 and len(self.stages) > 1 else None

    @property
    def speedup(self) -> float | None:
        """How many times as many images per second the final model processes."""
        return None if self.speeds is None else self.speeds[1] / self.speeds[0]

    @property
    def sparse_speed(self) -> float | None:
        """Images per second of the final model in the sparse runtime; None if it was not measured or no weight was masked."""
        return self.stages[-1].metrics.get("sparse_images_per_second") if self.stages else None

    @property
    def sparse_speedup(self) -> float | None:
        """How many times as many images per second the final model processes in the sparse runtime."""
        return None if self.speeds is None or self.sparse_speed is None else self.sparse_speed / self.speeds[0]

    @property
    def nonzero_left(self) -> int | None:
        """Parameters of the final model that are not zero; None if it is not known how many zeros it has, or how many parameters."""
        counted = self.final_size is not None and self.masks_weights and self.masks_last
        return self.final_size.parameters - self.pruned_weights if counted and self.final_size else None

    # -- how the run went

    @property
    def device(self) -> str:
        return str(self.environment.get("device", "this device"))

    @property
    def computed(self) -> list[TaskRun]:
        """The tasks that were carried out; the others were read from the store."""
        return [task for task in self.timeline if task.computed]

    @property
    def processes(self) -> list[str]:
        """Names of the processes that computed something: the driver, workers, and ranks of trainings."""
        return sorted({task.worker for task in self.computed})

    @property
    def workers(self) -> int | None:
        """The number of workers; None if it is not known."""
        known = self.environment.get("workers")
        return known if isinstance(known, int) else None

    @property
    def damped(self) -> dict[str, int]:
        """By layer, the number of its blocks that needed more dampening than configured."""
        counts = {layer.name: int(layer.notes.get("blocks_with_raised_dampening", 0)) for layer in self.layers}
        return {name: blocks for name, blocks in counts.items() if blocks}


def round_lines(report: Report) -> list[dict[str, Any]]:
    """The rounds as progress lines for a tracker: numbers by ``step``, which counts rounds from 1."""
    return [{"step": index} | part.numbers for index, part in enumerate(report.rounds, start=1)]

"""What was taken out of a model whole, and how much smaller and faster that makes it, in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from orchestrator.quantities import count, listed, macs, percent, size

if TYPE_CHECKING:
    from orchestrator.report import GroupResult, Report

OF = {  # as in RoundResult.asked_of
    "macs": "multiply-adds",
    "parameters": "parameters",
    "structures": "units",
    "memory": "memory",
    "latency": "latency",
    "weights": "weights",
}
KINDS = {"channel": "channel", "neuron": "neuron", "head": "head", "stream": "stream channel"}
SAME = 0.05  # a model whose speed rose by less is not called faster
FAR = 0.75  # a gain of speed below this part of the gain of multiply-adds is far from it


def unit_goal(report: Report) -> tuple[float, str] | None:
    """What the last round that took units out was asked for: a fraction of the dense model, and what of."""
    last = next((part for part in reversed(report.rounds) if not part.masks), None)
    if last is not None:
        return last.asked, last.asked_of
    return (report.asked["removed"], report.asked["of"]) if {"removed", "of"} <= report.asked.keys() else None


def weight_goal(report: Report) -> float | None:
    """The sparsity that the last round that masked weights was asked for."""
    last = next((part for part in reversed(report.rounds) if part.masks), None)
    return last.asked if last is not None else report.asked.get("sparsity")


def masks_last(report: Report) -> bool:
    """Whether the zeros are those of the model that the run leaves: units that go later take an unknown part of them along."""
    return not report.rounds or report.rounds[-1].masks


def fractions(report: Report) -> dict[str, float]:
    """What is told of what was taken out: what was asked for first, multiply-adds and parameters, units only if no more is known."""
    found, goal = report.removed, unit_goal(report)
    told = [key for key in dict.fromkeys([*([goal[1]] if goal else []), "macs", "parameters"]) if key in found]
    return {key: found[key] for key in told or ["structures"]}


def pruned_words(report: Report) -> str:
    """How much went, in the order of the rounds."""
    rounds = f" in {count(len(report.rounds), 'round')}" if report.rounds else ""
    if not report.took_units:
        return f"{percent(report.sparsity)} of the prunable weights removed{rounds}"
    taken = listed([f"{percent(value)} of the {OF[key]}" for key, value in fractions(report).items()]) + " taken out"
    if not report.masked_weights:
        return taken + rounds
    if masks_last(report):
        return f"{taken}, then {percent(report.sparsity)} of the remaining prunable weights masked{',' if rounds else ''}{rounds}"
    return f"{percent(report.sparsity)} of the prunable weights masked, then {taken}{',' if rounds else ''}{rounds}"


def speeds(report: Report) -> tuple[float, float] | None:
    """Images per second of the dense model and of the one that the run leaves; None unless both were measured."""
    found = [report.metric("dense", "images_per_second"), report.stages[-1].metrics.get("images_per_second") if report.stages else None]
    known = [value for value in found if value is not None and math.isfinite(value) and value > 0]
    return (known[0], known[1]) if len(known) == 2 and len(report.stages) > 1 else None


def device(report: Report) -> str:
    return str(report.environment.get("device", "this device"))


def speed_words(report: Report) -> str:
    """The speed of a model without some of its units, for the verdict; "" if it was not measured, or nothing was taken out."""
    found = speeds(report)
    if found is None or not report.took_units:
        return ""
    ratio = found[1] / found[0]
    if ratio < 1 + SAME:
        return f"not faster on {device(report)} ({ratio:.2f} times as many images per second)"
    return f"{ratio:.1f} times as many images per second on {device(report)}"


def on_units(report: Report) -> list[str]:
    """What is left of the groups, and of what was asked for."""
    if not report.took_units:
        return []
    left, units = sum(group.kept for group in report.groups), sum(group.units for group in report.groups)
    kinds = dict.fromkeys(group.kind for group in report.groups)
    parts = [_left_of(kind, [group for group in report.groups if group.kind == kind]) for kind in kinds]
    found = [f"{left:,} of {count(units, 'unit')} in {count(len(report.groups), 'group')} are left: {listed(parts)}."]
    goal = unit_goal(report)
    reached = report.removed.get(goal[1]) if goal else None
    measured = goal is not None and goal[1] == "latency"  # the sentences on time speak of that
    if goal is not None and not measured and reached is not None and percent(goal[0], 2) != percent(reached, 2):
        found.append(_gap(report, *goal, reached))
    return found


def _left_of(kind: str, groups: list[GroupResult]) -> str:
    return f"{sum(group.kept for group in groups):,} of {count(sum(group.units for group in groups), KINDS[kind])}"


def _gap(report: Report, asked: float, of: str, reached: float) -> str:
    """How far the target was missed, and whether anything was left that might have gone."""
    numbers = f"{percent(asked, 2)} of the {OF[of]} was asked for, {percent(reached, 2)} was taken out"
    unit, gap = _largest_unit(report, of), asked - reached
    if unit is not None and abs(gap) < unit:
        return f"{numbers}: units go whole, and this is less than one unit {'more' if gap < 0 else 'less'}."
    if gap < 0:
        return f"{numbers}."
    bound = [group for group in report.groups if group.kept <= group.least]
    if len(bound) == len(report.groups):
        return f"The target was missed: {numbers}, and no more could go, since every group is at the fewest units that it may keep."
    some = f"; {len(bound)} of {count(len(report.groups), 'group')} are at the fewest units that they may keep" if bound else ""
    return f"The target was missed: {numbers}{some}."


def _largest_unit(report: Report, of: str) -> float | None:
    """The largest part of the dense model that goes with one unit; None for multiply-adds, which are not counted by unit."""
    if of == "structures":
        return 1 / sum(group.units for group in report.groups)
    if of == "parameters" and report.dense_size is not None:
        return max(group.weights for group in report.groups) / report.dense_size.parameters
    return None


def on_size_and_speed(report: Report) -> list[str]:
    """Arithmetic, speed and file, each as it was measured."""
    if report.took_units:
        return [*_smaller(report), *_faster(report), _file(report)]
    masked = f"Weights are masked, not taken out: the model does the same arithmetic as before and is not faster on {device(report)}"
    found = speeds(report)
    if found is not None:
        masked += f" (measured: {found[0]:,.0f} images/s dense, {found[1]:,.0f} pruned)"
    return [f"{masked}. {_file(report)}"]


def _smaller(report: Report) -> list[str]:
    dense, final = report.dense_size, report.final_size
    if dense is None or final is None:
        return ["Parameters and multiply-adds were not counted: how much smaller the model is can only be said in units."]
    text = f"Units are taken out whole: {final.parameters:,} instead of {dense.parameters:,} parameters"
    found = [f"{text}, {macs(final.macs)} instead of {macs(dense.macs)} for one sample."]
    if report.masked_weights and masks_last(report):
        left = final.parameters - report.pruned_weights
        found.append(
            f"Of the dense model's parameters, {left:,} are left and not zero ({percent(left / dense.parameters)}); "
            "the zeros are masked, which makes the file smaller, not the model faster."
        )
    return found


def _faster(report: Report) -> list[str]:
    """Fewer multiply-adds are no promise: both ratios are told, and that they differ where they do."""
    found, dense, final = speeds(report), report.dense_size, report.final_size
    if found is None:
        return ["Images per second were not measured for both models: nothing is known about whether the smaller one is faster."]
    ratio, measured = found[1] / found[0], f"{found[0]:,.0f} images/s dense, {found[1]:,.0f} pruned"
    faster = ratio >= 1 + SAME
    speed = f"{ratio:.1f} times as many images per second" if faster else f"not faster: {ratio:.2f} times as many images per second"
    if dense is None or final is None or dense.macs == final.macs:
        return [f"Measured on {device(report)}: {speed} ({measured})."]
    saved = dense.macs / final.macs
    joint = ", " if ratio - 1 >= FAR * (saved - 1) else ", but only " if faster else ", but "
    return [f"{saved:.1f} times fewer multiply-adds{joint}{speed} on {device(report)}, measured: {measured}."]


def _file(report: Report) -> str:
    if report.sizes is None:
        return "No file was exported."
    stored, dense = report.sizes.file_bytes, report.sizes.dense_bytes
    if stored < dense:
        return f"The exported file is smaller: {size(stored)} instead of {size(dense)} ({dense / stored:.1f} times)."
    return f"The exported file is not smaller{'' if report.took_units else ' either'}: {size(stored)} against {size(dense)} dense."

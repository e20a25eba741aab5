"""The report in sentences, continued: units that were removed, and how much smaller and faster that makes the model."""

from __future__ import annotations

from statistics import mean

from orchestrator.quantities import COSTS, count, listed, macs, milliseconds, percent, size
from orchestrator.report.parts import SPARSE, GroupResult, LatencyResult
from orchestrator.report.result import FASTER, Report
from orchestrator.report.terms import ACCURACY_NAMES, UNITS, timed_with

NAMED = 3  # at most so many groups are named in a sentence
FAR = 0.75  # a gain of speed below this part of the gain of multiply-adds is far from it
MET = 0.005  # a time this close to its budget, as a fraction of it, meets it


def removed_words(report: Report) -> str:
    return listed([f"{percent(value)} of the {COSTS[key]}" for key, value in report.main_removals.items()])


def speed_words(report: Report) -> str:
    """The measured speed of a model without some of its units, or of a masked one in the sparse runtime; "" if it was not measured."""
    if report.sparse_speedup is not None and not report.removes_units and report.sparse_speedup >= FASTER:
        return f"{report.sparse_speedup:.1f} times as many images per second on {report.device} in the sparse runtime"
    if report.speedup is None or not report.removes_units:
        return ""
    if report.speedup < FASTER:
        return f"not faster on {report.device} ({report.speedup:.2f} times as many images per second)"
    return f"{report.speedup:.1f} times as many images per second on {report.device}"


def about_units(report: Report) -> list[str]:
    """What is left of the groups and how that compares with the target; where the least was lost, and where everything."""
    if not report.removes_units:
        return []
    kinds = dict.fromkeys(group.kind for group in report.groups)
    parts = [_left_of(kind, [group for group in report.groups if group.kind == kind]) for kind in kinds]
    left, groups = f"{report.units_left:,} of {count(report.units, 'unit')}", count(len(report.groups), "group")
    return [f"{left} in {groups} are left: {listed(parts)}.", *_about_target(report), *_about_groups(report), *_about_bottlenecks(report)]


def _left_of(kind: str, groups: list[GroupResult]) -> str:
    return f"{sum(group.kept for group in groups):,} of {count(sum(group.units for group in groups), UNITS[kind])}"


def _about_target(report: Report) -> list[str]:
    """How far the target was missed, and whether more could have been removed. Latency has sentences of its own."""
    goal = report.unit_goal
    reached = report.removed.get(goal.of) if goal else None
    if goal is None or reached is None or goal.of == "latency" or percent(goal.fraction, 2) == percent(reached, 2):
        return []
    numbers = f"{percent(goal.fraction, 2)} of the {COSTS[goal.of]} was requested, {percent(reached, 2)} was removed"
    unit, gap = report.largest_unit(goal.of), goal.fraction - reached
    if unit is not None and abs(gap) < unit:
        return [f"{numbers}. Only whole units can be removed, and the difference is less than one unit {'more' if gap < 0 else 'less'}."]
    if gap < 0:
        return [f"{numbers}."]
    bound = [group for group in report.groups if group.kept <= group.least]
    if len(bound) == len(report.groups):
        return [f"The target was missed: {numbers}. No more could be removed, because every group is at its minimum number of units."]
    some = f" {len(bound)} of {count(len(report.groups), 'group')} are at their minimum number of units." if bound else ""
    return [f"The target was missed: {numbers}.{some}"]


def _about_groups(report: Report) -> list[str]:
    least, emptied = report.least_lost, [group for group in report.groups if not group.kept]
    told = []
    if least and least[0].share == 1:
        told.append(f"Lost the least: {_named(least)} kept all of {'its' if len(least) == 1 else 'their'} units.")
    elif least:
        kept = [f"{group.name} ({percent(group.share)} of {count(group.units, UNITS[group.kind])} kept)" for group in least]
        told.append(f"Lost the least: {listed(kept)}.")
    return told + ([f"Removed entirely: all units of {_named(emptied)}."] if emptied else [])


def _named(groups: list[GroupResult]) -> str:
    more = [count(len(groups) - NAMED, "more group")] if len(groups) > NAMED else []
    return listed([group.name for group in groups[:NAMED]] + more)


def _about_bottlenecks(report: Report) -> list[str]:
    """Which groups to widen before training again."""
    ranked, targets = report.bottlenecks, report.sweep_targets
    if len(ranked) < 2 or mean(ranked[0].swept) == mean(ranked[-1].swept):
        return []
    first = [f"{group.name} ({percent(mean(group.swept), 0)} kept)" for group in ranked[: min(NAMED, len(ranked) - 1)]]
    return [
        f"Averaged over targets from {percent(targets[0], 0)} to {percent(targets[-1], 0)}, {listed(first)} would lose the least and "
        f"{ranked[-1].name} ({percent(mean(ranked[-1].swept), 0)} kept) the most: the former are the bottlenecks of the architecture."
    ]


def about_latency(report: Report) -> list[str]:
    """The measured time beside the budget, and beside what the table of operations predicted."""
    timed = report.latency
    if timed is None:
        return []
    off, where = timed.measured_ms / timed.budget_ms - 1, timed_with(timed.runtime, timed.batch_size, timed.threads, timed.device)
    held = "meets it" if abs(off) < MET else f"exceeds it by {percent(off)}" if off > 0 else f"stays {percent(-off)} below it"
    after = f", after {count(timed.corrections, 'correction')} of the budget by measured times" if timed.corrections else ""
    return [
        f"A forward pass takes {milliseconds(timed.measured_ms)} ± {percent(timed.spread)} instead of {milliseconds(timed.dense_ms)} "
        f"({where}). The budget was {milliseconds(timed.budget_ms)}; the model {held}{after}.",
        _about_the_table(timed),
    ]


def _about_the_table(timed: LatencyResult) -> str:
    off = timed.predicted_ms / timed.measured_ms - 1
    if timed.runtime == SPARSE:
        return (
            f"The sparsity of each layer follows from predicted losses and from the times of {timed.table_sizes:,} layers and sparsities, "
            f"of which {timed.measured_sizes:,} were measured. They predicted {milliseconds(timed.predicted_ms)}, {percent(abs(off))} "
            f"{'more' if off > 0 else 'less'} than measured."
        )
    return (
        f"The table of operations predicted {milliseconds(timed.predicted_ms)}, {percent(abs(off))} {'more' if off > 0 else 'less'} than "
        f"measured. It covers {timed.table_sizes:,} sizes, of which {timed.measured_sizes:,} were timed. The dense model took "
        f"{timed.scale:.2f} times the sum of its operations."
    )


def about_size_and_speed(report: Report) -> list[str]:
    """Arithmetic, speed and file, each as it was measured."""
    if report.removes_units:
        return [*_about_parameters(report), _about_speed(report), *_about_the_sparse_runtime(report), _about_file(report)]
    measured = ""
    if report.speeds is not None:
        measured = f" Measured: {report.speeds[0]:,.0f} images/s dense, {report.speeds[1]:,.0f} pruned."
    return [
        "Weights are masked, not removed: as an ordinary module, the model does the same arithmetic as before and is not faster on "
        f"{report.device}.{measured}",
        *_about_the_sparse_runtime(report),
        _about_file(report),
    ]


def _about_the_sparse_runtime(report: Report) -> list[str]:
    if report.sparse_speedup is None:
        return []
    layers = report.stages[-1].metrics.get("sparse_layers") or 0
    threads = report.environment.get("threads")
    where = "" if threads is None else f" with {count(int(threads), 'thread')}"
    if report.sparse_speedup < FASTER:
        return [f"The sparse runtime makes it no faster here: {report.sparse_speed:,.0f} images/s{where}."]
    faster, skipping = f"{report.sparse_speedup:.1f} times as many images per second", count(int(layers), "layer")
    return [
        f'With the sparse runtime (load_pruned(…, runtime="sparse")) it processes {faster} as the dense model in torch: '
        f"{report.sparse_speed:,.0f}{where}. {skipping} skip their zeros, where that is faster."
    ]


def _about_parameters(report: Report) -> list[str]:
    dense, final, left = report.dense_size, report.final_size, report.nonzero_left
    if dense is None or final is None:
        return ["Parameters and multiply-adds were not counted: how much smaller the model is, is known in units only."]
    told = [
        f"The model has {final.parameters:,} instead of {dense.parameters:,} parameters, and a forward pass of one sample takes "
        f"{macs(final.macs)} instead of {macs(dense.macs)}."
    ]
    if left is not None:
        told.append(
            f"{left:,} parameters are left and not zero, {percent(left / dense.parameters)} of the dense model's. "
            "The zeros are masked weights: they make the file smaller, and the model faster in the sparse runtime alone."
        )
    return told


def _about_speed(report: Report) -> str:
    """Fewer multiply-adds promise nothing: both ratios are given, and it is said if they differ."""
    dense, final = report.dense_size, report.final_size
    if report.speeds is None or report.speedup is None:
        return "Images per second were not measured for both models: whether the smaller model is faster is not known."
    measured, faster = f"{report.speeds[0]:,.0f} images/s dense, {report.speeds[1]:,.0f} pruned", report.speedup >= FASTER
    speed = f"{report.speedup:.{1 if faster else 2}f} times as many images per second on {report.device}"
    if dense is None or final is None or dense.macs == final.macs:
        return f"The model is {'faster' if faster else 'not faster'}: {speed}. Measured: {measured}."
    fewer = dense.macs / final.macs
    near = report.speedup - 1 >= FAR * (fewer - 1)
    joint = ", but is not faster:" if not faster else " and processes" if near else ", but processes only"
    return f"The model needs {fewer:.1f} times fewer multiply-adds{joint} {speed}. Measured: {measured}."


def _about_file(report: Report) -> str:
    if report.sizes is None:
        return "No file was exported."
    stored, dense = report.sizes.file_bytes, report.sizes.dense_bytes
    if stored < dense:
        return f"The exported file is {dense / stored:.1f} times smaller: {size(stored)} instead of {size(dense)}."
    return f"The exported file is not smaller: {size(stored)}, against {size(dense)} for the dense model."


def about_int8(report: Report) -> list[str]:
    """What 8 bits cost and gain."""
    int8 = report.int8
    if int8 is None:
        return []
    key = report.headline_metric if report.headline_metric in int8.metrics else "agreement"  # k-NN is not measured in 8 bits
    before = report.stages[-1].metrics.get(key) if report.stages else None
    instead = "" if before is None else f" instead of {percent(before)}"
    return [
        f"In 8 bits, {ACCURACY_NAMES[key]} is {percent(int8.metrics[key])}{instead}, the ONNX file takes {size(int8.bytes)} instead of "
        f"{size(int8.float_bytes)} in 32 bits, and a forward pass takes {milliseconds(int8.ms)} ± {percent(int8.spread)} instead of "
        f"{milliseconds(int8.float_ms)} ({timed_with(int8.runtime, int8.batch_size, int8.threads, int8.device)})."
    ]

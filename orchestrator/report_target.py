"""What was asked for beside what was reached: the numbers to take away, and the two lists of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.quantities import macs, percent
from orchestrator.report_latency import latency_pairs
from orchestrator.report_size import OF, SAME, fractions, masks_last, speeds, unit_goal, weight_goal

if TYPE_CHECKING:
    from orchestrator.report import Report, RoundResult

Tile = tuple[str, str, str]  # a number, what it is, and what it is to be held against


def pruned_tiles(report: Report) -> list[Tile]:
    """How much was taken out, and how much was masked."""
    tiles = []
    if report.took_units:
        goal, told = unit_goal(report), fractions(report)
        (first, value), *others = told.items()
        beside = [f"{percent(goal[0])} asked"] if goal and goal[1] == first else []
        beside += [f"{percent(other)} of the {OF[key]}" for key, other in others]
        tiles.append((percent(value), f"of the {OF[first]} taken out", ", ".join(beside)))
    if report.masked_weights:
        asked = weight_goal(report)
        what = "of the prunable weights removed"
        if report.took_units:
            what = "of the prunable weights left are masked" if masks_last(report) else "of the prunable weights masked before"
        tiles.append((percent(report.sparsity), what, "" if asked is None else f"{percent(asked)} asked"))
    return tiles


def speed_tile(report: Report) -> list[Tile]:
    """Speed against the dense model where units were taken out and it was measured."""
    found = speeds(report)
    if found is None or not report.took_units:
        return []
    ratio = found[1] / found[0]
    many, what = (f"{ratio:.1f} ×", "as many images per second") if ratio >= 1 + SAME else (f"{ratio:.2f} ×", "the speed: not faster")
    return [(many, what, f"{found[0]:,.0f} images/s dense, {found[1]:,.0f} now")]


def asked_pairs(report: Report) -> list[tuple[str, str]]:
    """The target of the run, or of every round where they differ in kind, and the settings of the last one."""
    asked, found = report.asked, []
    if len({part.asked_of for part in report.rounds}) > 1:
        found = [(f"round {part.name}", _asked_of_round(part)) for part in report.rounds]
    elif "sparsity" in asked:
        found = [("sparsity", percent(asked["sparsity"], 2))]
    elif "removed" in asked:
        found = [("taken out", f"{percent(asked['removed'], 2)} of the {OF[asked['of']]}")]
    found += [("taken out, too", f"{percent(value, 2)} of the {OF[of]}") for of, value in asked.get("also", {}).items()]
    return found + [(str(name), str(value)) for name, value in asked.items() if name not in ("sparsity", "removed", "of", "also")]


def _asked_of_round(part: RoundResult) -> str:
    return f"{percent(part.asked, 2)} of the {OF[part.asked_of]} {'masked' if part.masks else 'taken out'}"


def reached_pairs(report: Report) -> list[tuple[str, str]]:
    """What is left of the model, and the zeros in it."""
    return (_left(report) if report.took_units else []) + (_zeros(report) if report.masked_weights else [])


def _left(report: Report) -> list[tuple[str, str]]:
    removed, dense, final = report.removed, report.dense_size, report.final_size
    found = []
    if dense is not None and final is not None:
        found += [
            ("multiply-adds", f"{macs(final.macs)} of {macs(dense.macs)} per sample ({percent(removed['macs'], 2)} taken out)"),
            ("parameters", f"{final.parameters:,} of {dense.parameters:,} ({percent(removed['parameters'], 2)} taken out)"),
        ]
    found += latency_pairs(report)
    left, units = sum(group.kept for group in report.groups), sum(group.units for group in report.groups)
    found.append(("units", f"{left:,} of {units:,} ({percent(removed['structures'], 2)} taken out)"))
    speed = speeds(report)
    if speed is not None:
        found.append(("images per second", f"{speed[0]:,.0f} dense, {speed[1]:,.0f} pruned"))
    return found


def _zeros(report: Report) -> list[tuple[str, str]]:
    zeros = f"{report.pruned_weights:,} of {report.prunable_weights:,} prunable weights"
    left = " that are left" if report.took_units and masks_last(report) else ""
    found = [("sparsity", f"{percent(report.sparsity, 2)} of the prunable weights{left}"), ("zeros", zeros + left)]
    if not report.took_units:
        of_model = percent(report.pruned_weights / report.model_weights, 2)
        found.append(("of the whole model", f"{of_model} of {report.model_weights:,} parameters"))
    elif masks_last(report) and report.dense_size is not None and report.final_size is not None:
        rest = report.final_size.parameters - report.pruned_weights
        found.append(("left and not zero", f"{rest:,} parameters, {percent(rest / report.dense_size.parameters, 2)} of the dense model's"))
    return found

"""Groups of units in the report: how many of each stayed, as a picture, a table and a sentence on those that lost least."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.quantities import count, listed, percent
from orchestrator.report_bars import Bar, bars
from orchestrator.report_bottlenecks import bottleneck_part
from orchestrator.report_figures import Figure, safe
from orchestrator.report_html import place, section, table
from orchestrator.report_size import KINDS

if TYPE_CHECKING:
    from orchestrator.report import GroupResult, Report

NAMED = 3  # so many groups are called by their names in a sentence


def least_lost(report: Report) -> list[GroupResult]:
    """The groups that kept the largest share of their units, this largest first; none if all kept the same.

    These are all groups that lost nothing, if there are any, else a third of them, up to ``NAMED``.
    """
    shares = {group.share for group in report.groups}
    if len(shares) < 2:
        return []
    ordered = sorted(report.groups, key=lambda group: -group.share)
    whole = [group for group in ordered if group.kept == group.units]
    return whole or ordered[: max(1, min(NAMED, len(ordered) // 3))]


def on_groups(report: Report) -> list[str]:
    """Where the units stayed, and where none did."""
    found, least = [], least_lost(report)
    if least and least[0].kept == least[0].units:
        found.append(f"Lost least: {_named(least)} kept all of {'its' if len(least) == 1 else 'their'} units.")
    elif least:
        kept = [f"{group.name} ({percent(group.share)} of {count(group.units, KINDS[group.kind])} kept)" for group in least]
        found.append(f"Lost least: {listed(kept)}.")
    gone = [group for group in report.groups if not group.kept]
    if gone:
        found.append(f"Taken out entirely: all units of {_named(gone)}.")
    return found


def _named(groups: list[GroupResult]) -> str:
    more = [f"{count(len(groups) - NAMED, 'more group')}"] if len(groups) > NAMED else []
    return listed([group.name for group in groups[:NAMED]] + more)


def kept_units(report: Report) -> Figure | None:
    """A bar per group, coloured by kind of unit, outlined where least was lost. A dotted line is the share of all units together."""
    if not report.groups:
        return None
    marked = {group.name for group in least_lost(report)}
    found = [
        Bar(group.name, KINDS[group.kind], group.share, f"{group.kept:,} / {group.units:,}", _hover(group), group.name in marked)
        for group in report.groups
    ]
    return bars(found, 1 - report.removed["structures"], "units kept", "groups", "lost least")


def _hover(group: GroupResult) -> str:
    return (
        f"<b>{safe(group.name)}</b><br>{group.kept:,} of {safe(count(group.units, KINDS[group.kind]))} kept ({percent(group.share)})<br>"
        f"{group.weights:,} weights each"
    )


def group_section(report: Report, drawn: dict[str, Any]) -> str:
    if not report.groups:
        return ""
    marked = {group.name for group in least_lost(report)}
    rows = [
        [
            group.name,
            KINDS[group.kind],
            f"{group.units:,}",
            f"{group.kept:,}",
            percent(group.share),
            f"{group.weights:,}",
            f"{group.weights * (group.units - group.kept):,}",
            ", ".join(_notes(group, group.name in marked)) or "–",
        ]
        for group in report.groups
    ]
    head = ["group", "unit", "units", "kept", "share", "weights of one", "weights gone", "notes"]
    note = f"Units kept in each group; the dotted line is the whole: {percent(1 - report.removed['structures'])}."
    explained = (
        "A unit is taken out with everything that makes its output and reads it. Weights of one are those of the dense model; where two "
        "groups meet, weights that go with a unit of either are counted in both."
    )
    pictures = place(drawn, "kept_units", "Units kept in every group") + bottleneck_part(drawn)
    return section(
        f"Groups ({len(report.groups)})",
        f'{pictures}<details><summary>All groups in numbers</summary>{table(head, rows)}<p class="note after">{explained}</p></details>',
        note,
    )


def _notes(group: GroupResult, marked: bool) -> list[str]:
    found = ["lost least"] if marked else []
    return found + (["at its fewest"] if 0 < group.kept <= group.least else ["taken out entirely"] if not group.kept else [])

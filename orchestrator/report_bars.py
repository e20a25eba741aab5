"""A bar for each part of a model: rows with names for few, columns for many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.report_figures import INK, OTHER, PALETTE, Figure, layout_of, safe

MANY = 40  # beyond this, bars are columns without names instead of rows with names
WHOLE_LINE = {"type": "line", "line": {"color": INK, "width": 1, "dash": "dot"}, "layer": "above"}


@dataclass(frozen=True)
class Bar:
    """``fraction`` of the part ``name`` and how it is ``written``; ``hover`` is plotly's small HTML."""

    name: str
    kind: str
    fraction: float
    written: str
    hover: str
    marked: bool = False


def colours_of(kinds: Sequence[str]) -> dict[str, str]:
    """A colour for each of the most frequent kinds, grey for the rest; dictionary order is order of first appearance."""
    frequent = [kind for kind, _ in Counter(kinds).most_common(len(PALETTE))]
    in_order = [kind for kind in dict.fromkeys(kinds) if kind in frequent]
    return {kind: PALETTE[index] for index, kind in enumerate(in_order)}


def bars(found: Sequence[Bar], whole: float, title: str, across: str, mark: str = "") -> Figure:
    """Bars coloured by kind, in the order of ``found``; ``across`` says what they are, ``mark`` what an outline says of some of them.

    A dotted line is ``whole``, the fraction of all together.
    """
    kinds = [bar.kind for bar in found]
    colours = colours_of(kinds)
    data = []
    for kind, colour in [*colours.items(), ("other", OTHER)]:
        members = [index for index, shown in enumerate(kinds) if (shown if shown in colours else "other") == kind]
        data += [_trace(found, members, kind, {"color": colour})] if members else []
    marked = [index for index, bar in enumerate(found) if bar.marked]
    outline = {"color": "rgba(0,0,0,0)", "line": {"color": INK, "width": 1.6}}
    data += [_trace(found, marked, mark, outline) | {"hoverinfo": "skip"}] if marked else []
    axis = {"range": [0, 1.02], "tickvals": [0, 0.25, 0.5, 0.75, 1], "tickformat": ".0%", "title": title}
    return _columns(found, data, whole, axis, across) if len(found) > MANY else _rows(found, data, whole, axis)


def _trace(found: Sequence[Bar], members: list[int], name: str, marker: Figure) -> Figure:
    many = len(found) > MANY
    place, length = ("x", "y") if many else ("y", "x")
    return {
        "type": "bar",
        "name": safe(name),
        "orientation": "v" if many else "h",
        place: members,
        length: [found[index].fraction for index in members],
        "width": 0.86 if many else 0.66,
        "marker": marker | {"cornerradius": 0 if many else 3},
        "hovertext": [found[index].hover for index in members],
        "hoverinfo": "text",
    }


def _columns(found: Sequence[Bar], data: list[Figure], whole: float, axis: Figure, across: str) -> Figure:
    line = WHOLE_LINE | {"xref": "paper", "x0": 0, "x1": 1, "y0": whole, "y1": whole}
    horizontal = {"title": f"{across}, from input to output", "showgrid": False, "range": [-0.7, len(found) - 0.3]}
    return {"data": data, "layout": layout_of(360, xaxis=horizontal, yaxis=axis, barmode="overlay", shapes=[line])}


def _rows(found: Sequence[Bar], data: list[Figure], whole: float, axis: Figure) -> Figure:
    """Names on the left axis, numbers on a right one, which plotly draws only if something invisible lies on it."""
    line = WHOLE_LINE | {"yref": "paper", "y0": 0, "y1": 1, "x0": whole, "x1": whole}
    down = {"range": [len(found) - 0.4, -0.6], "tickvals": list(range(len(found))), "showgrid": False}
    names = down | {"ticktext": [safe(bar.name) for bar in found]}
    numbers = down | {"ticktext": [safe(bar.written) for bar in found], "overlaying": "y", "side": "right"}
    anchor = {"type": "scatter", "x": [0], "y": [0], "yaxis": "y2", "opacity": 0, "showlegend": False, "hoverinfo": "skip"}
    layout = layout_of(90 + 23 * len(found), xaxis=axis, yaxis=names, yaxis2=numbers, barmode="overlay", shapes=[line])
    return {"data": [*data, anchor], "layout": layout}

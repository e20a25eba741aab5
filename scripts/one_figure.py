"""A page with one figure in the look of the reports, which loads nothing from elsewhere."""

from __future__ import annotations

import json
from typing import Any

from plotly.offline import get_plotlyjs

from orchestrator.report_style import STYLE


def page(title: str, figure: dict[str, Any]) -> str:
    """HTML that draws ``figure`` (plotly's data and layout) under ``title``."""
    draw = 'Plotly.newPlot("figure", drawn.data, drawn.layout, {displayModeBar: false});'
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head><body><main>'
        f'<section><h2>{title}</h2><div class="figure" id="figure"></div></section></main><script>{get_plotlyjs()}</script>'
        f"<script>const drawn = {json.dumps(figure)}; {draw}</script></body></html>"
    )


def curve(name: str, x: list[float], y: list[float], colour: str) -> dict[str, Any]:
    """Points of one kind, joined."""
    return {"type": "scatter", "mode": "lines+markers", "name": name, "x": x, "y": y, "line": {"color": colour}, "marker": {"size": 7}}

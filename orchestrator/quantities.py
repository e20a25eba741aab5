"""Formats quantities for people. None is always "not measured"."""

from __future__ import annotations

NOT_MEASURED = "not measured"
COSTS = {  # what a target can be a fraction of
    "macs": "multiply-adds",
    "parameters": "parameters",
    "structures": "units",
    "memory": "memory",
    "latency": "latency",
    "weights": "weights",
}


def percent(fraction: float | None, digits: int = 1) -> str:
    return NOT_MEASURED if fraction is None else f"{100 * fraction:.{digits}f} %"


def points(difference: float) -> str:
    """Formats the absolute difference of two fractions in percentage points."""
    size = f"{100 * abs(difference):.1f}"
    return f"{size} point" if size == "1.0" else f"{size} points"


def number(value: float | None) -> str:
    """Formats with three significant digits, a thousands separator from 1,000 up, and an exponent below 0.001."""
    if value is None:
        return NOT_MEASURED
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def count(value: int, one: str, many: str = "") -> str:
    """Returns "1 block" for ``count(1, "block")`` and "2,000 blocks" for ``count(2000, "block")``."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def size(value_bytes: int | None) -> str:
    """Formats bytes in decimal units: 1 kB is 1000 bytes."""
    if value_bytes is None:
        return NOT_MEASURED
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value_bytes >= limit:
            return f"{number(value_bytes / limit)} {unit}"
    return f"{value_bytes} B"


def macs(value: int | None) -> str:
    """Formats multiply-adds: 1 GMACs is 10^9 multiply-adds."""
    if value is None:
        return NOT_MEASURED
    for limit, unit in ((1e9, "GMACs"), (1e6, "MMACs"), (1e3, "kMACs")):
        if value >= limit:
            return f"{number(value / limit)} {unit}"
    return f"{value} MACs"


def listed(items: list[str]) -> str:
    """Joins items as in "a, b and c"."""
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else "".join(items)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NOT_MEASURED
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        total = round(seconds)
        return f"{total // 60} min {total % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def milliseconds(value: float) -> str:
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms" if value < 100 else f"{value:,.0f} ms"

"""Writes a report: ``report.json`` for programs, and ``report.html``, one page that opens offline, for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from orchestrator.report.result import Report
from orchestrator.report.words import sentences, verdict
from workers.files import write_text

REPORT_FILES = ("report.html", "report.json")


def as_json(value: Any) -> Any:
    """``value`` as what JSON knows. Numbers that JSON lacks become "nan", "inf" and "-inf"."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Enum):
        return as_json(value.value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else str(float(value))
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: as_json(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    return str(value)


def write_report(report: Report, directory: Path) -> Path:
    """Write ``report.json`` and ``report.html`` (which loads nothing) into ``directory``; returns the page's path."""
    from orchestrator.report.page import page

    html_path, json_path = (directory / name for name in REPORT_FILES)
    write_text(html_path, page(report))
    told = {"verdict": verdict(report), "sentences": sentences(report)}
    write_text(json_path, json.dumps(as_json(report) | told, indent=1))
    return html_path

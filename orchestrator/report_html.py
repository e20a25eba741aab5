"""Pieces of the report page; every text is escaped here."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


def section(title: str, body: str, note: str = "") -> str:
    remark = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{remark}{body}</section>\n"


def place(drawn: dict[str, Any], name: str, label: str) -> str:
    """Room for a figure of known height, so that the page does not jump when it is drawn; nothing if it is not drawn."""
    if name not in drawn:
        return ""
    height = drawn[name]["layout"]["height"]
    return f'<div class="figure" id="figure-{name}" role="img" aria-label="{escape(label)}" style="min-height:{height}px"></div>'


def bullets(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A table whose first column names the row."""
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    lines = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'


def pairs(items: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>' for name, value in items)}</dl>"

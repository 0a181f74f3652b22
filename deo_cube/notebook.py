"""Tables in the style of this package's displays in notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

__all__ = ["CELL", "facts_html", "html_table"]

#: Left-aligned without stripes, whatever style a notebook gives its tables.
CELL = "text-align:left;vertical-align:top;padding:.2em .8em .2em 0;background:none;border:none"


def html_table(title: str, rows: str) -> str:
    """Return a table of rows in HTML under a title in plain text."""
    return (
        f'<div style="font-weight:600;margin:.3em 0">{escape(title)}</div>'
        f'<table style="border:none;border-collapse:collapse;margin:0">{rows}</table>'
    )


def facts_html(title: str, facts: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values, all in plain text."""
    rows = "".join(
        f'<tr><th style="{CELL};white-space:nowrap">{escape(k)}</th>'
        f'<td style="{CELL}">{"<br>".join(escape(line) for line in v.splitlines())}</td></tr>'
        for k, v in facts
    )
    return html_table(title, rows)

"""Tables of figures, as Markdown for the card and as HTML for the report."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """Cells are ready to be shown. `title` may be empty; `note` stands below."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def markdown(tables: Sequence[Table]) -> str:
    """Tables one below the other."""
    lines: list[str] = []
    for table in tables:
        if table.title:
            lines += [f"**{table.title}**", ""]
        if table.rows:
            lines += ["| " + " | ".join(table.head) + " |", "|" + "---|" * len(table.head)]
            lines += ["| " + " | ".join(row) + " |" for row in table.rows] + [""]
        if table.note:
            lines += [table.note, ""]
    return "\n".join(lines)


def as_html(table: Table) -> str:
    """One table as HTML; a row whose last cell is `met` or `missed` gets it as its class."""
    parts = [f"<h3>{html.escape(table.title)}</h3>"] if table.title else []
    if table.rows:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.head)
        body = "".join(_row(row) for row in table.rows)
        parts.append(f"<div class=scroll><table><tr>{head}</tr>{body}</table></div>")
    if table.note:
        parts.append(f"<p class=note>{html.escape(table.note)}</p>")
    return "\n".join(parts)


def _row(cells: tuple[str, ...]) -> str:
    mark = f" class={cells[-1]}" if cells[-1] in ("met", "missed") else ""
    return f"<tr{mark}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def interval(summary: dict[str, Any], unit: str = "") -> str:
    """A `stats.Summary` as text: mean, and its 95 % interval where there is more than one episode."""
    return _with_bounds(summary, unit, ".2f")


def signed(summary: dict[str, Any], unit: str = "") -> str:
    """The same with signs, for differences."""
    return _with_bounds(summary, unit, "+.2f")


def share_interval(summary: dict[str, Any]) -> str:
    """The same of a share, in per cent."""
    return _with_bounds(summary, "", ".0%").replace("%", " %")


def _with_bounds(summary: dict[str, Any], unit: str, form: str) -> str:
    mean = f"{summary['mean']:{form}}{unit}"
    if summary["low"] is None:
        return f"{mean} (one episode, no interval)"
    return f"{mean} ({summary['low']:{form}} to {summary['high']:{form}})"


def share(value: float) -> str:
    """A share in per cent."""
    return f"{100 * value:.0f} %"

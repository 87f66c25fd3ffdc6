"""What a preflight found, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

MEASURED = (
    ("clock", "clock_skew", "{:+.3f} s"),
    ("busbw within", "busbw_within", "{:.3g} GB/s"),
    ("busbw across", "busbw_across", "{:.3g} GB/s"),
)
"""Column, key of the summary, and how a figure is written."""


def preflight_table(summary: Mapping[str, Any]) -> RenderableType:
    """A line for each node, its figures by check, and below what is wrong with whom."""
    nodes: Mapping[str, Any] = summary.get("nodes", {})
    rows = {node: _cells(entry) for node, entry in nodes.items()}
    for title, key, text in MEASURED:
        for node, figure in summary.get(key, {}).items():
            rows[node][title] = text.format(figure)
    columns = list(dict.fromkeys(name for cells in rows.values() for name in cells))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("node", *columns):
        table.add_column(column)
    for node, cells in rows.items():
        style = "red" if node in summary["unfit"] else ""
        table.add_row(node, *(cells.get(column, "") for column in columns), style=style)
    return Group(table, *_versions(nodes), *_words(summary))


def _cells(entry: Mapping[str, Any]) -> dict[str, str]:
    cells: dict[str, str] = {"ranks": str(entry["ranks"])}
    for finding in entry["findings"]:
        if not finding["failed"]:
            cells.setdefault(finding["check"], finding["detail"])
        else:
            cells[finding["check"]] = "failed"
    return cells


def _versions(nodes: Mapping[str, Any]) -> list[Text]:
    """Once for all nodes that have the same."""
    by_text: dict[str, list[str]] = {}
    for node, entry in nodes.items():
        text = ", ".join(f"{name} {version}" for name, version in entry["versions"].items())
        by_text.setdefault(text, []).append(node)
    whom = len(by_text) > 1
    return [
        Text((f"{', '.join(named)}: " if whom else "") + text, style="dim")
        for text, named in by_text.items()
        if text
    ]


def _words(summary: Mapping[str, Any]) -> list[Text]:
    unfit = [
        Text(f"unfit: {node}: {reason}", style="red")
        for node, reasons in summary["unfit"].items()
        for reason in reasons
    ]
    common = [Text(f"no node's own fault: {reason}", style="red") for reason in summary["common"]]
    return [*unfit, *common] or [Text("fit", style="green")]

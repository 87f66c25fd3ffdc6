"""What a preflight found, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def preflight_table(summary: Mapping[str, Any]) -> RenderableType:
    """A line for each node, its figures by check, and below what is wrong with whom."""
    nodes: Mapping[str, Any] = summary.get("nodes", {})
    rows = {node: _cells(entry) for node, entry in nodes.items()}
    for title, key in (("busbw within", "busbw_within"), ("busbw across", "busbw_across")):
        for node, speed in summary.get(key, {}).items():
            rows[node][title] = f"{speed:.3g} GB/s"
    columns = list(dict.fromkeys(name for cells in rows.values() for name in cells))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("node", *columns):
        table.add_column(column)
    for node, cells in rows.items():
        style = "red" if node in summary["unfit"] else ""
        table.add_row(node, *(cells.get(column, "") for column in columns), style=style)
    return Group(table, *_words(summary))


def _cells(entry: Mapping[str, Any]) -> dict[str, str]:
    cells: dict[str, str] = {"ranks": str(entry["ranks"])}
    for finding in entry["findings"]:
        if not finding["failed"]:
            cells.setdefault(finding["check"], finding["detail"])
        else:
            cells[finding["check"]] = "failed"
    return cells


def _words(summary: Mapping[str, Any]) -> list[Text]:
    unfit = [
        Text(f"unfit: {node}: {reason}", style="red")
        for node, reasons in summary["unfit"].items()
        for reason in reasons
    ]
    common = [Text(f"no node's own fault: {reason}", style="red") for reason in summary["common"]]
    return [*unfit, *common] or [Text("fit", style="green")]

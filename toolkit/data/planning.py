"""The sources of a stage stay what they were when its work began."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from toolkit.artifacts import write_json
from toolkit.context import StageContext
from toolkit.data.files import Source
from toolkit.errors import DataError

PLAN = "plan.json"


def remember_sources(sources: Sequence[Source], context: StageContext) -> None:
    """Keep what the sources were when the work began, and refuse others later.

    Ranks may start hours apart: a file that came, went or changed in between would shift the
    documents of every shard behind it.

    Raises:
        DataError: a file came, went or changed, or their order did.
    """
    path = context.work / PLAN
    now = {s.name: [s.size, s.mtime_ns, s.etag] for s in sources}
    if not path.exists():
        write_json(path, now)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if list(before.items()) == list(now.items()):
        return
    what, name = _first_difference(before, now)
    raise DataError(
        f"the sources changed since this stage began: {what}",
        where=name,
        hint="--fresh begins the stage anew with the sources as they are now",
    )


def _first_difference(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, str]:
    """What changed between two lists of sources, and the first name that did."""
    for name in sorted(now.keys() | before.keys()):
        if name not in before:
            return "a file that was not there", name
        if name not in now:
            return "a file is gone", name
        if before[name] != now[name]:
            return f"{before[name][0]:,} bytes before, {now[name][0]:,} now, or written again", name
    return "their order", next(iter(now))
